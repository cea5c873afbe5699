"""The search space of a sweep, between a sweep file's values and Optuna's.

People see one flat assignment, name to value: an optional parameter that is off is 0, a parameter whose condition is
not met has its base value, widths of layers read ``128-64``. Optuna sees its distributions under the same names, and a
switch `NAME.on` beside each optional one. A per-layer parameter is one column a hidden layer: `dropout.1`, `dropout.2`.
"""

from regtune.search.columns import Column, Value
from regtune.search.controls import Control, controls
from regtune.search.space import Searched, Space

__all__ = ["Column", "Control", "Searched", "Space", "Value", "controls"]
