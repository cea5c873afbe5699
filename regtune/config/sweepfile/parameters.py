"""One parameter of a sweep after reading: fixed, one of several values, or a range.

The words are those of Weights & Biases; `forms` has all that a file may say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from regtune.config.mistakes import describe, refused
from regtune.config.trial import Frozen, format_number

Distribution = Literal["uniform", "q_uniform", "int_uniform", "log_uniform_values", "q_log_uniform_values"]
MAX_POINTS = 100_000
Scalar = float | int | str | bool


def _conditions(given: Any) -> dict[str, tuple[Scalar, ...]]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(f"expected parameter: value, for example batchnorm: none, found {describe(given)}")
    wanted = {name: tuple(one) if isinstance(one, list | tuple) else (one,) for name, one in given.items()}
    wrong = [
        ((name,), f"expected a value or a list of values, found {describe(given[name])}")
        for name, values in wanted.items()
        if not values or not all(isinstance(value, Scalar) for value in values)
    ]
    if wrong:
        raise refused(*wrong)
    return wanted


_SCALAR = {"type": ["string", "number", "boolean"]}
_CONDITION = {"anyOf": [_SCALAR, {"type": "array", "items": _SCALAR, "minItems": 1}]}
_Conditions = Annotated[
    dict[str, tuple[Any, ...]],
    BeforeValidator(_conditions),
    WithJsonSchema({"type": "object", "additionalProperties": _CONDITION}),
]


class Constant(Frozen):
    """A value that applies to every trial and is not searched. A list under a technique gives one value a layer."""

    model_config = ConfigDict(defer_build=True, use_attribute_docstrings=False)

    value: Any
    distribution: Literal["constant"] = Field(default="constant", exclude=True)


class Searched(Frozen):
    """What every searched parameter may carry."""

    model_config = ConfigDict(defer_build=True, use_attribute_docstrings=False)

    optional: bool = Field(default=False, description="May be off, that is 0.")
    per_layer: bool = Field(default=False, description="One value for each hidden layer.")
    when: _Conditions = Field(
        default_factory=dict, description="Other searched parameters and the values they must have."
    )

    def _refuse_zero_twice(self, points: Sequence[Any]) -> None:
        if self.optional and 0 in points:
            raise refused((("optional",), "adds 0, which is among the values already; drop one of the two"))


class Categorical(Searched):
    """One of several values; the widths of `hidden` are a tuple each."""

    values: tuple[Any, ...] = Field(min_length=1)
    distribution: Literal["categorical"] = Field(default="categorical", exclude=True)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        again = [n for n, value in enumerate(self.values) if value in self.values[:n]]
        if again:
            raise refused(*((("values", n), f"{describe(self.values[n])} is given twice") for n in again))
        self._refuse_zero_twice(self.values)
        return self


class Range(Searched):
    """A number between `min` and `max`, both included; with `q`, a multiple of it."""

    distribution: Distribution
    min: float | int
    max: float | int
    q: float | int | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        low, high = format_number(self.min), format_number(self.max)
        if self.log and self.min <= 0:
            expected = f"expected more than 0 for {self.distribution}"
            raise refused((("min",), f"{expected}, found {describe(self.min)}; optional: true adds 0"))
        if self.min >= self.max:
            hint = "; for one value use value" if self.min == self.max else ""
            raise refused((("max",), f"expected more than min ({low}), found {describe(self.max)}{hint}"))
        if self.steps is not None:
            first, last = self.steps
            if last - first >= MAX_POINTS:
                what = f"expected at most {MAX_POINTS} multiples between min and max, found more"
                raise refused((("q",), what))
            if first >= last:
                what = f"expected at least two multiples of {self.step} between {low} and {high}"
                raise refused((("q",), what))
            self._refuse_zero_twice([0] if first <= 0 <= last else [])
        return self

    @property
    def log(self) -> bool:
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
        product = Decimal(str(self.step)) * factor
        return int(product) if isinstance(self.step, int) else float(product)

    def has(self, value: float) -> bool:
        if not self.min <= value <= self.max:
            return False
        return self.step is None or self.multiple(round(value / self.step)) == value

    @cached_property
    def points(self) -> tuple[float | int, ...] | None:
        """Every value in ascending order; None where it is continuous."""
        return self.steps and tuple(map(self.multiple, range(self.steps[0], self.steps[1] + 1)))


Parameter = Constant | Categorical | Range
