"""One searched parameter: the forms it may take in a sweep file, and the one form it has afterwards.

The words are those of Weights & Biases. Where two of them say the same they are read as one: `log_uniform`, whose
bounds are exponents of e, becomes `log_uniform_values`, whose bounds are values; the inverse log-uniform distributions
are log-uniform (if log(1/x) is uniform, so is log(x)).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

from pydantic import Field, field_validator

from regtune.config import Frozen, format_number
from regtune.spec.source import Problem, describe
from regtune.spec.targets import TARGETS, Target, suggestion, unknown_key

Scalar = float | int | str | bool
Distribution = Literal["uniform", "q_uniform", "int_uniform", "log_uniform_values", "q_log_uniform_values"]

REFUSED: Mapping[str, str] = {
    "categorical_w_probabilities": "values cannot be weighted; use values alone",
    "normal": "unbounded; use uniform with min and max",
    "q_normal": "unbounded; use q_uniform with min, max and q",
    "log_normal": "unbounded; use log_uniform_values with min and max",
    "q_log_normal": "unbounded; use q_log_uniform_values with min, max and q",
    "beta": "not searched here; use uniform with min and max",
    "q_beta": "not searched here; use q_uniform with min, max and q",
}
_READ_AS: Mapping[str, tuple[str, bool, bool]] = {  # name -> (canonical name, exponents of e, inverse)
    "log_uniform": ("log_uniform_values", True, False),
    "inv_log_uniform": ("log_uniform_values", True, True),
    "inv_log_uniform_values": ("log_uniform_values", False, False),
    "q_log_uniform": ("q_log_uniform_values", True, False),
}
_RANGES: tuple[Distribution, ...] = (
    "uniform",
    "q_uniform",
    "int_uniform",
    "log_uniform_values",
    "q_log_uniform_values",
)
DISTRIBUTIONS = ("constant", "categorical", *_RANGES, *_READ_AS)
"""Every distribution that is read."""
_KEYS = ("value", "values", "distribution", "min", "max", "q", "optional", "per_layer", "when")


class Constant(Frozen):
    """A value that applies to every trial and is not searched. A list under a technique gives one value a layer."""

    value: Scalar | tuple[Scalar, ...]


class _Searched(Frozen):
    """What every searched parameter may carry.

    optional: may be off, that is 0. per_layer: one value for each hidden layer, each searched for itself.
    when: other searched parameters and the values they must have; otherwise this parameter keeps its base value.
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
    def steps(self) -> tuple[int, int] | None:
        """First and last multiple of `q` that lie in the range, as factors of `q`; None where it is continuous."""
        if self.q is None:
            return None
        step = Decimal(str(self.q))
        first = (Decimal(str(self.min)) / step).to_integral_value("ROUND_CEILING")
        last = (Decimal(str(self.max)) / step).to_integral_value("ROUND_FLOOR")
        return int(first), int(last)

    def multiple(self, factor: int) -> float | int:
        """``factor * q`` without the noise of binary fractions."""
        found = Decimal(str(self.q)) * factor
        return int(found) if isinstance(self.q, int) else float(found)

    @property
    def points(self) -> tuple[float | int, ...] | None:
        """Every value in ascending order; None where it is continuous."""
        return (
            None
            if self.steps is None
            else tuple(self.multiple(n) for n in range(self.steps[0], self.steps[1] + 1))
        )


Parameter = Constant | Categorical | Range


class Rejected(Exception):
    """A parameter cannot be read; carries a problem for each mistake, relative to the parameter."""

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems
        super().__init__(str(problems))


def read_parameter(name: str, given: Any) -> Parameter:
    """The parameter `name` from what a sweep file says about it. Raises Rejected."""
    target = TARGETS[name]
    if not isinstance(given, Mapping):
        raise Rejected(((), f"expected {_example(target)}, found {describe(given)}"))
    problems = _unknown(given)
    kind = given.get("distribution")
    if problems:
        raise Rejected(*problems)
    if kind is not None and kind not in DISTRIBUTIONS:
        what = f"expected one of {', '.join(DISTRIBUTIONS)}, found {describe(kind)}"
        if isinstance(kind, str):
            what = f"{kind}: {REFUSED[kind]}" if kind in REFUSED else what + suggestion(kind, DISTRIBUTIONS)
        raise Rejected((("distribution",), what))
    if kind is None:
        kind = _implied(target, given)
    if kind == "constant":
        return _constant(target, given)
    extras = _extras(target, given)
    if kind == "categorical":
        return Categorical(values=_values(target, given), **extras)
    return _range(target, given, str(kind), extras)


def _unknown(given: Mapping[str, Any]) -> list[Problem]:
    problems: list[Problem] = []
    for key in given:
        if key in _KEYS:
            continue
        if key == "probabilities":
            problems.append(((key,), f"{REFUSED['categorical_w_probabilities']}"))
        elif key in ("mu", "sigma", "a", "b") and given.get("distribution") in REFUSED:
            pass  # the distribution itself is refused below, with what to use
        elif key == "parameters":
            problems.append(
                ((key,), "nested parameters are not read; name each key directly under parameters")
            )
        else:
            problems.append(((key,), unknown_key(key, _KEYS, {})))
    return problems


def _implied(target: Target, given: Mapping[str, Any]) -> str:
    """W&B's rule for a parameter without `distribution`, but that the key's type decides between real and whole."""
    forms = [form for form in ("value", "values", "min", "max") if form in given]
    if forms == ["value"]:
        return "constant"
    if forms == ["values"]:
        return "categorical"
    if forms == ["min", "max"]:
        if "q" in given:
            return "q_uniform"
        return "int_uniform" if target.kind == "whole" else "uniform"
    found = f", found {' and '.join(forms)}" if forms else ""
    raise Rejected(((), f"expected value, or values, or min and max, for example {_example(target)}{found}"))


def _constant(target: Target, given: Mapping[str, Any]) -> Constant:
    problems = _only(given, ("value",), "constant")
    if "value" not in given:
        problems.append((("value",), "missing"))
    elif refusal := target.refusal(given["value"]):
        problems.append((("value",), refusal))
    if problems:
        raise Rejected(*problems)
    return Constant(value=target.convert(given["value"]))


def _values(target: Target, given: Mapping[str, Any]) -> tuple[Any, ...]:
    problems = _only(given, ("values", "optional", "per_layer", "when"), "categorical")
    values = given.get("values")
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise Rejected(
            *problems,
            (("values",), f"expected a list such as {_example_values(target)}, found {describe(values)}"),
        )
    found: list[Any] = []
    for index, value in enumerate(values):
        nested = isinstance(value, list | tuple)
        if nested and target.kind != "layers":
            what = "expected one value, found a list; for one value a layer use per_layer: true"
            problems.append((("values", index), what))
            continue
        if refusal := target.refusal(value):
            problems.append((("values", index), refusal))
            continue
        converted = target.convert(list(value)) if nested else target.convert(value)
        if converted in found:
            problems.append((("values", index), f"{describe(value)} is given twice"))
        found.append(converted)
    if problems:
        raise Rejected(*problems)
    if len(found) == 1:
        raise Rejected((("values",), f"expected at least two; for one use value: {_shown(found[0])}"))
    return tuple(found)


def _range(target: Target, given: Mapping[str, Any], name: str, extras: Mapping[str, Any]) -> Range:
    allowed = ("min", "max", "optional", "per_layer", "when")
    problems = _only(given, (*allowed, "q") if name.startswith("q_") else allowed, name)
    if target.kind not in ("real", "whole"):
        raise Rejected(*problems, ((), f"{target.name} is not a number; expected {_example(target)}"))
    canonical, exponents, inverse = _READ_AS.get(name, (name, False, False))
    ends: dict[str, Any] = {}
    for end in ("min", "max"):
        value = given.get(end)
        if isinstance(value, bool) or not isinstance(value, int | float):
            problems.append(
                ((end,), "missing" if end not in given else f"expected a number, found {describe(value)}")
            )
        else:
            ends[end] = value
    step = given.get("q", 1 if name.startswith("q_") else None)
    if step is not None and (isinstance(step, bool) or not isinstance(step, int | float) or step <= 0):
        problems.append((("q",), f"expected a number above 0, found {describe(step)}"))
    if problems:
        raise Rejected(*problems)
    if exponents:
        ends = _exponentials(ends, inverse)
    canonical, ends, step = _typed(target, canonical, ends, step, name)
    _check_ends(target, canonical, ends, step, exponents)
    return Range(distribution=canonical, **ends, q=step, **extras)


def _exponentials(ends: Mapping[str, float], inverse: bool) -> dict[str, float]:
    """Bounds from exponents of e; of log(1/x) when `inverse`."""
    low, high = (-ends["max"], -ends["min"]) if inverse else (ends["min"], ends["max"])
    for end, value in (("min", low), ("max", high)):
        if abs(value) > 700:
            raise Rejected(
                ((end,), f"expected an exponent of e between -700 and 700, found {describe(value)}")
            )
    return {"min": math.exp(low), "max": math.exp(high)}


def _typed(
    target: Target, canonical: str, ends: dict[str, Any], step: Any, name: str
) -> tuple[Distribution, dict[str, Any], Any]:
    """Bounds and step in the key's own type, and the distribution that goes with it."""
    if target.kind == "real":
        if canonical == "int_uniform":
            raise Rejected(
                (("distribution",), f"{target.name} is a real number; use uniform, or q_uniform with q: 1")
            )
        ends = {end: float(value) for end, value in ends.items()}
        return _distribution(canonical), ends, None if step is None else float(step)
    if canonical == "uniform":
        raise Rejected(
            (("distribution",), f"{target.name} is a whole number; use int_uniform, or q_uniform with q: 1")
        )
    if step is None:
        step = 1
    if not float(step).is_integer():
        raise Rejected((("q",), f"expected a whole number, found {describe(step)}"))
    if canonical == "log_uniform_values":
        canonical = "q_log_uniform_values"
    if name in ("log_uniform", "q_log_uniform", "inv_log_uniform"):
        ends = {"min": math.ceil(ends["min"] - 1e-9), "max": math.floor(ends["max"] + 1e-9)}
    for end, value in ends.items():
        if not float(value).is_integer():
            raise Rejected(((end,), f"expected a whole number, found {describe(value)}"))
    ends = {end: int(value) for end, value in ends.items()}
    if canonical == "q_uniform" and int(step) == 1:
        canonical = "int_uniform"
    return _distribution(canonical), ends, int(step)


def _distribution(name: str) -> Distribution:
    return next(known for known in _RANGES if known == name)


def _check_ends(target: Target, canonical: str, ends: Mapping[str, Any], step: Any, exponents: bool) -> None:
    low, high = ends["min"], ends["max"]
    problems: list[Problem] = []
    if "log" in canonical and low <= 0:
        raise Rejected(
            (("min",), f"expected more than 0 for {canonical}, found {describe(low)}; optional: true adds 0")
        )
    as_exponents = (
        " (e to the power given; for the values themselves use log_uniform_values)" if exponents else ""
    )
    for end, value in ends.items():
        if refusal := target.refusal(value):
            problems.append(((end,), refusal + as_exponents))
    if low >= high:
        what = f"expected more than min ({_shown(low)}), found {describe(high)}"
        problems.append((("max",), what + ("; for one value use value" if low == high else "")))
    if problems:
        raise Rejected(*problems)
    if step is not None:
        first, last = Range(distribution=_distribution(canonical), min=low, max=high, q=step).steps or (0, 0)
        if last <= first:
            raise Rejected(
                (
                    ("q",),
                    f"expected at least two multiples of {step} between {_shown(low)} and {_shown(high)}",
                )
            )


def _extras(target: Target, given: Mapping[str, Any]) -> dict[str, Any]:
    problems: list[Problem] = []
    for key in ("optional", "per_layer"):
        if not isinstance(given.get(key, False), bool):
            problems.append(((key,), f"expected true or false, found {describe(given[key])}"))
    if given.get("optional") is True and target.refusal(0) is not None:
        hint = "; add none to its values" if target.name == "batchnorm" else ""
        problems.append((("optional",), f"{target.name} cannot be off: it does not take 0{hint}"))
    if given.get("per_layer") is True and not target.layered:
        layered = ", ".join(name for name, found in TARGETS.items() if found.layered)
        problems.append(
            (("per_layer",), f"{target.name} has one value for all layers; per_layer is for {layered}")
        )
    when = given.get("when")
    conditions: dict[str, tuple[Any, ...]] = {}
    if when is not None and not isinstance(when, Mapping):
        problems.append(
            (("when",), f"expected parameter: value, for example batchnorm: none, found {describe(when)}")
        )
    elif when:
        for other, wanted in when.items():
            values = tuple(wanted) if isinstance(wanted, list | tuple) else (wanted,)
            if not values or any(value is None or isinstance(value, list | dict) for value in values):
                problems.append(
                    (("when", other), f"expected a value or a list of values, found {describe(wanted)}")
                )
            conditions[other] = values
    if problems:
        raise Rejected(*problems)
    return {
        "optional": given.get("optional", False),
        "per_layer": given.get("per_layer", False),
        "when": conditions,
    }


def _only(given: Mapping[str, Any], allowed: tuple[str, ...], kind: str) -> list[Problem]:
    return [
        ((key,), f"means nothing for {kind}; expected {', '.join(allowed)}")
        for key in given
        if key != "distribution" and key not in allowed
    ]


def _example_values(target: Target) -> str:
    if target.kind == "layers":
        return "[[128, 64], [256, 128]]"
    if target.kind == "switch":
        return "[true, false]"
    return f"[{', '.join(target.choices)}]" if target.choices else "[1, 2]"


def _example(target: Target) -> str:
    if target.kind in ("real", "whole"):
        return "min: ... and max: ..."
    return f"values: {_example_values(target)}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return describe(value)
    if isinstance(value, float):
        return format_number(value)
    return str(list(value) if isinstance(value, tuple) else value)
