"""The sweep file: what is searched, how, on which data, and for how long.

`SweepSpec.load` reads a file and reports every mistake in it at once, each with its line. `source` knows lines,
`targets` what may be searched, `parameters` the forms of one parameter, `reading` the words of other tools and `checks`
what must fit together.
"""

from regtune.spec.parameters import Categorical, Constant, Parameter, Range, Scalar
from regtune.spec.specification import MetricSpec, PrunerSpec, SplitSpec, SweepSpec
from regtune.spec.targets import TARGETS, Target, suggestion

__all__ = [
    "TARGETS",
    "Categorical",
    "Constant",
    "MetricSpec",
    "Parameter",
    "PrunerSpec",
    "Range",
    "Scalar",
    "SplitSpec",
    "SweepSpec",
    "Target",
    "suggestion",
]
