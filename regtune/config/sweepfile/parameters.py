"""One parameter of a sweep, in the one form it has after reading: fixed, one of several values, or a range.

The words are those of Weights & Biases; `forms` reads all that a file may say.
"""

from __future__ import annotations

from decimal import Decimal
from functools import cached_property
from typing import Any, Literal

from pydantic import Field, field_validator

from regtune.config.trial import Frozen

Scalar = float | int | str | bool
Distribution = Literal["uniform", "q_uniform", "int_uniform", "log_uniform_values", "q_log_uniform_values"]


class Constant(Frozen):
    """A value that applies to every trial and is not searched. A list under a technique gives one value a layer."""

    value: Scalar | tuple[Scalar, ...]


class _Searched(Frozen):
    """What every searched parameter may carry.

    optional: may be off, that is 0. per_layer: one value for each hidden layer, each searched for itself.
    when: other searched parameters and the values they must have; otherwise this parameter keeps its base
    value.
    """

    optional: bool = False
    per_layer: bool = False
    when: dict[str, tuple[Scalar, ...]] = Field(default_factory=dict)

    @field_validator("when", mode="before")
    @classmethod
    def _tuples(cls, value: Any) -> Any:
        return {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}


class Categorical(_Searched):
    """One of several values; the widths of `hidden` are a tuple each."""

    values: tuple[Scalar | tuple[int, ...], ...]


class Range(_Searched):
    """A number between `min` and `max`, both included; with `q`, a multiple of it."""

    distribution: Distribution
    min: float | int
    max: float | int
    q: float | int | None = None

    @property
    def log(self) -> bool:
        """Whether magnitudes are searched, not differences."""
        return "log" in self.distribution

    @property
    def step(self) -> float | int | None:
        """What every value is a multiple of; None where the range is continuous."""
        return 1 if self.distribution == "int_uniform" else self.q

    @property
    def steps(self) -> tuple[int, int] | None:
        """First and last multiple of `step` that lie in the range, as factors; None where it is continuous."""
        if self.step is None:
            return None
        step = Decimal(str(self.step))
        first = (Decimal(str(self.min)) / step).to_integral_value("ROUND_CEILING")
        last = (Decimal(str(self.max)) / step).to_integral_value("ROUND_FLOOR")
        return int(first), int(last)

    def multiple(self, factor: int) -> float | int:
        """``factor * step`` without the noise of binary fractions."""
        found = Decimal(str(self.step)) * factor
        return int(found) if isinstance(self.step, int) else float(found)

    @cached_property
    def points(self) -> tuple[float | int, ...] | None:
        """Every value in ascending order; None where it is continuous."""
        return (
            None
            if self.steps is None
            else tuple(self.multiple(n) for n in range(self.steps[0], self.steps[1] + 1))
        )


Parameter = Constant | Categorical | Range
