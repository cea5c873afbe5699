"""What a sweep may search: the keys of a configuration, every form in which a file may give one, and what it reads as.

The words are those of Weights & Biases. A whole number's range by logarithms has steps of 1. The q_ distributions give
multiples of `q`, as those of W&B do, but never one outside the bounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property, partial, reduce
from operator import or_
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetPydanticSchema,
    Tag,
    TypeAdapter,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic_core import core_schema

from regtune.config.mistakes import Keys, Where, describe, refused
from regtune.config.trial import (
    EarlyStoppingConfig,
    Frozen,
    ModelConfig,
    RegularizationConfig,
    TrainingConfig,
    format_number,
)

Block = Literal["regularization", "model", "training", "early_stopping"]
Kind = Literal["real", "whole", "word", "switch", "layers"]
Distribution = Literal["uniform", "q_uniform", "int_uniform", "log_uniform_values", "q_log_uniform_values"]
Scalar = float | int | str | bool
MAX_POINTS = 100_000
_ALL_KEYS = ("value", "values", "distribution", "min", "max", "q", "optional", "per_layer", "when")
TAGS = frozenset(("<constant>", "<values>", "<range>", "<one>", "<layers>"))
"""The forms of a parameter, and those of a constant."""

BLOCKS: Mapping[Block, type[Frozen]] = {
    "regularization": RegularizationConfig,
    "model": ModelConfig,
    "training": TrainingConfig,
    "early_stopping": EarlyStoppingConfig,
}


@dataclass(frozen=True)
class Target:
    """One key of a configuration, which may be searched.

    values: the type of one value, with its limits. choices: the words it takes, empty where it takes numbers.
    """

    name: str
    block: Block
    kind: Kind
    values: Any
    choices: tuple[str, ...] = ()

    @property
    def layered(self) -> bool:
        return self.block == "regularization"

    @cached_property
    def zero(self) -> bool:
        """Whether it takes 0, so that it may be off."""
        try:
            TypeAdapter(self.values).validate_python(0, strict=True)
        except ValidationError:
            return False
        return True

    def convert(self, value: Any) -> Any:
        """`value` in the type of this key: whole numbers become real ones, a list of widths a tuple."""
        if self.kind == "real" and type(value) is int and abs(value) <= 2**53:
            return float(value)
        if self.kind == "whole":
            return whole(value)
        return tuple(value) if isinstance(value, list) else value


def whole(value: Any) -> Any:
    """W&B writes whole numbers as real ones, too."""
    return int(value) if type(value) is float and value.is_integer() else value


def _target(block: Block, name: str) -> Target:
    info = BLOCKS[block].model_fields[name]
    values: Any = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
    if block == "regularization":  # tuple[X, ...]: one X a hidden layer
        values = get_args(info.annotation)[0]
    plain = get_args(values)[0] if get_origin(values) is Annotated else values
    if get_origin(plain) is Literal:
        return Target(name, block, "word", values, get_args(plain))
    if plain is int:
        return Target(name, block, "whole", Annotated[values, BeforeValidator(whole)])
    kinds: Mapping[Any, Kind] = {float: "real", bool: "switch"}
    return Target(name, block, kinds.get(plain, "layers"), values)


TARGETS: Mapping[str, Target] = {
    name: _target(block, name) for block, model in BLOCKS.items() for name in model.model_fields
}
"""Every key that may stand under `parameters`, in the order in which they are shown and asked for."""

Wanted = Annotated[
    tuple[Any, ...],
    Field(min_length=1),
    BeforeValidator(
        lambda given: tuple(given) if isinstance(given, list | tuple) else (given,),
        json_schema_input_type=Scalar | Annotated[tuple[Scalar, ...], Field(min_length=1)],
    ),
]
"""The values that another parameter must have: one, or one of a list."""


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
    when: dict[str, Wanted] = Field(
        default={}, description="Other searched parameters and the values they must have."
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
            raise refused((("max",), f"expected more than min ({low}), found {describe(self.max)}"))
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


def _as(kind: type[Frozen]) -> AfterValidator:
    return AfterValidator(lambda parsed: kind.model_construct(**dict(parsed)))


_TUPLE: Any = tuple


def _forms(target: Target) -> Any:
    """The type of what a file may say about one parameter."""
    extras: dict[str, Any] = {
        key: (bool if applies else Literal[False], Searched.model_fields[key])
        for key, applies in (("optional", target.zero), ("per_layer", target.layered))
    }
    value, several = target.values, Field(min_length=1, json_schema_extra={"uniqueItems": True})
    one = value
    if target.layered:
        layers = Annotated[_TUPLE[value, ...], Field(min_length=1), Tag("<layers>")]
        is_list = Discriminator(lambda given: "<layers>" if isinstance(given, tuple) else "<one>")
        one = Annotated[Annotated[value, Tag("<one>")] | layers, is_list]
    constant = create_model(f"{target.name} constant", __base__=Constant, value=(one, ...))
    fields = {"values": (_TUPLE[value, ...], several), **extras}
    values = create_model(f"{target.name} values", __base__=Categorical, **fields)
    forms = [
        Annotated[constant, _as(Constant), Tag("<constant>")],
        Annotated[values, _as(Categorical), AfterValidator(_constant_of_one), Tag("<values>")],
    ]
    expected = "expected {values: [...]} or {value: ...}"
    if target.kind in ("real", "whole"):
        forms.append(_range(target, extras))
        expected = "expected {min: ..., max: ...}, {values: [...]} or {value: ...}"
    choice = Discriminator(_form, custom_error_type="form", custom_error_message=expected)
    meaning = BLOCKS[target.block].model_fields[target.name].description
    return Annotated[reduce(or_, forms), choice, Field(description=meaning)]


def _range(target: Target, extras: Mapping[str, Any]) -> Any:
    known = _distributions(target)
    names: Any = Literal[known]
    step: Any = Annotated[int, BeforeValidator(whole)] if target.kind == "whole" else float
    values = create_model(
        f"{target.name} range",
        __base__=Range,
        distribution=(names, known[0]),
        min=(target.values, ...),
        max=(target.values, ...),
        q=(Annotated[step, Field(gt=0)] | None, None),
        **extras,
    )
    return Annotated[values, BeforeValidator(partial(_named, target)), _as(Range), Tag("<range>")]


def _form(given: Any) -> str | None:
    """Which form this is, by W&B's rule; None where it is none, or several."""
    if not isinstance(given, Mapping):
        return None
    name = given.get("distribution")
    if name is not None:
        return {"constant": "<constant>", "categorical": "<values>"}.get(str(name), "<range>")
    forms = {"value": "<constant>", "values": "<values>", "min": "<range>", "max": "<range>"}
    possible = {form for key, form in forms.items() if key in given}
    return possible.pop() if len(possible) == 1 else None


def _named(target: Target, given: Mapping[str, Any]) -> dict[str, Any]:
    """A range with the one name of its distribution, and the step that goes with it."""
    values, known = dict(given), _distributions(target)
    name = values.get("distribution") or ("q_uniform" if "q" in values else known[0])
    if name in ("log_uniform", "q_log_uniform"):
        instead = f"use {name}_values with the bounds themselves"
        raise refused((("distribution",), f"the bounds of {name} are exponents of e; {instead}"))
    if name not in known:
        return values
    if values.get("q") is not None and not name.startswith("q_"):
        raise refused((("q",), f"means nothing for {name}; use q_{name.removeprefix('int_')}"))
    if target.kind == "whole" and name == "log_uniform_values":
        name = "q_log_uniform_values"
    if name.startswith("q_"):
        values.setdefault("q", 1)
    if name == "q_uniform" and target.kind == "whole" and values["q"] in (1, None):
        name, values["q"] = "int_uniform", None
    return {**values, "distribution": name}


def _distributions(target: Target) -> tuple[str, ...]:
    plain = "int_uniform" if target.kind == "whole" else "uniform"
    return (plain, "q_uniform", "log_uniform_values", "q_log_uniform_values")


def _constant_of_one(given: Categorical) -> Constant | Categorical:
    if len(given.values) > 1 or given.optional:
        return given
    if given.per_layer or given.when:
        raise refused((("values",), "expected at least two values"))
    return Constant(value=given.values[0])


def _by_name(_: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
    fields = {
        name: core_schema.typed_dict_field(handler.generate_schema(_forms(target)), required=False)
        for name, target in TARGETS.items()
    }
    return core_schema.typed_dict_schema(fields, extra_behavior="forbid")


Parameters = Annotated[dict[str, Parameter], GetPydanticSchema(_by_name)]
"""What is searched, in the order of TARGETS."""


class SweepKeys(Keys):
    """The keys of a sweep file, those of its parameters included."""

    def at(self, where: Where) -> Sequence[str]:
        if where[:1] != ("parameters",):
            return super().at(where)
        return tuple(TARGETS) if len(where) == 1 else _ALL_KEYS
