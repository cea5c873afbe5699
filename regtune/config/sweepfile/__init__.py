"""The sweep file: what is searched, how, on which data, and for how long.

`SweepSpec.load` reads a file and reports every mistake in it at once, each with its line. `source` knows
lines, `targets` what may be searched; `forms` reads one into `parameters`; `reading` knows other tools'
words, `checks` what must fit together, `schema` what editors need.
"""

from regtune.config.sweepfile.parameters import Categorical, Constant, Parameter, Range, Scalar
from regtune.config.sweepfile.schema import json_schema
from regtune.config.sweepfile.specification import MetricSpec, PrunerSpec, SplitSpec, SweepSpec
from regtune.config.sweepfile.targets import TARGETS, Target, suggestion

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
    "json_schema",
    "suggestion",
]
