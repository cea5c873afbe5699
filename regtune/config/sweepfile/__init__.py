"""The sweep file: what is searched, how, on which data, and for how long.

`SweepSpec.load` reads a file and reports every mistake in it at once, each with its line. `forms` is the grammar of
what is searched, `checks` says what must fit together, `schema` what editors need.
"""

from regtune.config.mistakes import suggestion
from regtune.config.sweepfile.groups import MetricSpec, PrunerSpec, SplitSpec
from regtune.config.sweepfile.parameters import Categorical, Constant, Parameter, Range, Scalar
from regtune.config.sweepfile.schema import json_schema
from regtune.config.sweepfile.specification import SweepSpec
from regtune.config.sweepfile.targets import TARGETS, Target

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
