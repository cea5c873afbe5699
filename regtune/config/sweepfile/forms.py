"""The grammar of one parameter: every form in which a sweep file may give it.

Where two words of Weights & Biases say the same they are read as one: `log_uniform`, whose bounds are exponents of e,
becomes `log_uniform_values`, whose bounds are values; the inverse log-uniform distributions are log-uniform, because
where log(1/x) is uniform log(x) is. The q_ distributions give multiples of `q`, as W&B's do, but never one outside the
bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from operator import or_
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetPydanticSchema,
    Tag,
    ValidationError,
    create_model,
)
from pydantic_core import core_schema

from regtune.config.mistakes import Keys, Where, describe, explain, refused, suggestion
from regtune.config.sweepfile.parameters import Categorical, Constant, Parameter, Range, Searched
from regtune.config.sweepfile.targets import BLOCKS, TARGETS, Target, whole
from regtune.config.trial import Frozen

_UNBOUNDED = {
    "normal": "unbounded; use uniform with min and max",
    "q_normal": "unbounded; use q_uniform with min, max and q",
    "log_normal": "unbounded; use log_uniform_values with min and max",
    "q_log_normal": "unbounded; use q_log_uniform_values with min, max and q",
    "beta": "not searched here; use uniform with min and max",
    "q_beta": "not searched here; use q_uniform with min, max and q",
    "categorical_w_probabilities": "values cannot be weighted; use values alone",
}
_ALL_KEYS = ("value", "values", "distribution", "min", "max", "q", "optional", "per_layer", "when")
TAGS = frozenset(("<constant>", "<values>", "<range>", "<exponents>", "<one>", "<layers>"))
"""The forms of a parameter, and those of a constant."""


class _Exponents(Searched):
    """A range whose bounds are exponents of e."""

    distribution: Literal["log_uniform", "inv_log_uniform", "q_log_uniform"]
    min: float = Field(ge=-700, le=700)
    max: float = Field(ge=-700, le=700)
    q: float | None = Field(default=None, gt=0)


_OTHERS = {
    "constant": "<constant>",
    "categorical": "<values>",
    **dict.fromkeys(("log_uniform", "inv_log_uniform", "q_log_uniform"), "<exponents>"),
}
"""Distributions that are no ranges of values, and their forms."""
_TUPLE: Any = tuple


def _as(kind: type[Frozen]) -> Callable[[Frozen], Frozen]:
    return lambda parsed: kind.model_construct(**dict(parsed))


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
    listed = Annotated[values, AfterValidator(_as(Categorical)), AfterValidator(_constant_of_one)]
    forms = [
        Annotated[constant, AfterValidator(_as(Constant)), Tag("<constant>")],
        Annotated[listed, Tag("<values>")],
    ]
    expected = f"values, such as {_example(target)}, or value"
    if target.kind in ("real", "whole"):
        forms += _ranges(target, extras)
        expected = "min and max, or values, or value"
    choice = Discriminator(_form, custom_error_type="form", custom_error_message=f"expected {expected}")
    meaning = BLOCKS[target.block].model_fields[target.name].description
    return Annotated[reduce(or_, forms), choice, Field(description=meaning)]


def _ranges(target: Target, extras: Mapping[str, Any]) -> list[Any]:
    known = _distributions(target)
    canonical: Any = Literal[known[:-1]]
    given: Any = Literal[known]
    step: Any = Annotated[int, BeforeValidator(whole)] if target.kind == "whole" else float
    distribution = Annotated[canonical, BeforeValidator(lambda name: name, json_schema_input_type=given)]
    values = create_model(
        f"{target.name} range",
        __base__=Range,
        distribution=(distribution, known[0]),
        min=(target.values, ...),
        max=(target.values, ...),
        q=(Annotated[step, Field(gt=0)] | None, None),
        **extras,
    )
    exponents = create_model(f"{target.name} exponents", __base__=_Exponents, **extras)
    parsed = Annotated[values, BeforeValidator(partial(_named, target)), AfterValidator(_as(Range))]
    as_values = AfterValidator(partial(_values_of, target, values))
    return [Annotated[parsed, Tag("<range>")], Annotated[exponents, as_values, Tag("<exponents>")]]


def _form(given: Any) -> str | None:
    """Which form this is, by W&B's rule; None where it is none, or several."""
    if not isinstance(given, Mapping):
        return None
    name = given.get("distribution")
    if name is not None:
        return _OTHERS.get(name, "<range>") if isinstance(name, str) else "<range>"
    forms = {"value": "<constant>", "values": "<values>", "min": "<range>", "max": "<range>"}
    possible = {form for key, form in forms.items() if key in given}
    return possible.pop() if len(possible) == 1 else None


def _named(target: Target, given: Mapping[str, Any]) -> dict[str, Any]:
    """A range with the one name of its distribution, and the step that goes with it."""
    values, known = dict(given), _distributions(target)
    name = values.get("distribution") or ("q_uniform" if "q" in values else known[0])
    if name not in known:
        what = f"expected one of {', '.join(known)}, found {describe(name)}"
        if isinstance(name, str):
            what += suggestion(name, (*known, *_OTHERS))
            what = f"{name}: {_UNBOUNDED[name]}" if name in _UNBOUNDED else what
        raise refused((("distribution",), what))
    name = name.removeprefix("inv_")
    if values.get("q") is not None and not name.startswith("q_"):
        raise refused((("q",), f"means nothing for {name}; use q_{name.removeprefix('int_')}"))
    if name.startswith("q_") or (target.kind == "whole" and name == "log_uniform_values"):
        name = "q_" + name.removeprefix("q_")
        values.setdefault("q", 1)
    if name == "q_uniform" and target.kind == "whole" and values["q"] in (1, None):
        name, values["q"] = "int_uniform", None
    return {**values, "distribution": name}


def _distributions(target: Target) -> tuple[str, ...]:
    plain = "int_uniform" if target.kind == "whole" else "uniform"
    return (plain, "q_uniform", "log_uniform_values", "q_log_uniform_values", "inv_log_uniform_values")


def _values_of(target: Target, model: type[Range], given: _Exponents) -> Frozen:
    low, high = (-given.max, -given.min) if given.distribution.startswith("inv_") else (given.min, given.max)
    ends: dict[str, float] = {"min": math.exp(low), "max": math.exp(high)}
    if target.kind == "whole":
        ends = {"min": math.ceil(ends["min"] - 1e-9), "max": math.floor(ends["max"] + 1e-9)}
    name = given.distribution.removeprefix("inv_") + "_values"
    values = {**given.model_dump(exclude_none=True), **ends, "distribution": name}
    try:
        return _as(Range)(model.model_validate(_named(target, values)))
    except ValidationError as error:
        hint = " (e to the power given; for the values themselves use log_uniform_values)"
        raise refused(*((where, what + hint) for where, what in explain(error, Keys(Range, {})))) from None


def _constant_of_one(given: Categorical) -> Constant | Categorical:
    if len(given.values) > 1 or given.optional:
        return given
    if given.per_layer or given.when:
        raise refused((("values",), "expected at least two values"))
    return Constant(value=given.values[0])


def _example(target: Target) -> str:
    if target.kind == "layers":
        return "[[128, 64], [256, 128]]"
    return f"[{', '.join(target.choices)}]" if target.choices else "[true, false]"


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
