"""The forms that one parameter may take in a sweep file, read into a `Parameter`.

Where two of W&B's words say the same they are read as one: `log_uniform`, whose bounds are exponents of e,
becomes `log_uniform_values`, whose bounds are values; the inverse log-uniform distributions are log-uniform,
because where log(1/x) is uniform log(x) is. The q_ distributions give multiples of `q`, as W&B's do, but
never one outside the bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

from regtune.config.source import Problem, describe
from regtune.config.sweepfile.parameters import Categorical, Constant, Distribution, Parameter, Range
from regtune.config.sweepfile.targets import TARGETS, Target, suggestion, unknown_key
from regtune.config.trial import format_number

REFUSED: Mapping[str, str] = {
    "categorical_w_probabilities": "values cannot be weighted; use values alone",
    "normal": "unbounded; use uniform with min and max",
    "q_normal": "unbounded; use q_uniform with min, max and q",
    "log_normal": "unbounded; use log_uniform_values with min and max",
    "q_log_normal": "unbounded; use q_log_uniform_values with min, max and q",
    "beta": "not searched here; use uniform with min and max",
    "q_beta": "not searched here; use q_uniform with min, max and q",
}


class Alias(NamedTuple):
    """A distribution that is read as another one: whether its bounds are exponents of e, and of 1/x."""

    canonical: Distribution
    exponents: bool
    inverse: bool


ALIASES: Mapping[str, Alias] = {
    "log_uniform": Alias("log_uniform_values", exponents=True, inverse=False),
    "inv_log_uniform": Alias("log_uniform_values", exponents=True, inverse=True),
    "inv_log_uniform_values": Alias("log_uniform_values", exponents=False, inverse=False),
    "q_log_uniform": Alias("q_log_uniform_values", exponents=True, inverse=False),
}
RANGES: tuple[Distribution, ...] = get_args(Distribution)
MAX_POINTS = 100_000
DISTRIBUTIONS = ("constant", "categorical", *RANGES, *ALIASES)
"""Every distribution that is read."""
_KEYS = ("value", "values", "distribution", "min", "max", "q", "optional", "per_layer", "when")


class RejectedError(Exception):
    """A parameter cannot be read; carries a problem for each mistake, relative to the parameter."""

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems
        super().__init__(str(problems))


def read_parameter(name: str, given: Any) -> Parameter:
    """The parameter `name` from what a sweep file says about it. Raises RejectedError."""
    target = TARGETS[name]
    if not isinstance(given, Mapping):
        raise RejectedError(((), f"expected {_example(target)}, found {describe(given)}"))
    problems = _unknown(given)
    kind = given.get("distribution")
    if problems:
        raise RejectedError(*problems)
    if kind is not None and kind not in DISTRIBUTIONS:
        what = f"expected one of {', '.join(DISTRIBUTIONS)}, found {describe(kind)}"
        if isinstance(kind, str):
            what = f"{kind}: {REFUSED[kind]}" if kind in REFUSED else what + suggestion(kind, DISTRIBUTIONS)
        raise RejectedError((("distribution",), what))
    if kind is None:
        kind = _implied(target, given)
    if kind == "constant":
        return _constant(target, given)
    extras = _extras(target, given)
    if kind != "categorical":
        found: Categorical | Range = _range(target, given, str(kind), extras)
    else:
        values = _values(target, given)
        if len(values) == 1 and not extras["optional"]:
            if extras["per_layer"] or extras["when"]:
                raise RejectedError((("values",), "expected at least two values"))
            return Constant(value=values[0])
        found = Categorical(values=values, **extras)
    points = found.values if isinstance(found, Categorical) else found.points or ()
    if found.optional and 0 in points:
        raise RejectedError((("optional",), "adds 0, which is among the values already; drop one of the two"))
    return found


def _unknown(given: Mapping[str, Any]) -> list[Problem]:
    problems: list[Problem] = []
    kind = given.get("distribution")
    for key in given:
        if key in _KEYS:
            continue
        if key == "probabilities":
            problems.append(((key,), f"{REFUSED['categorical_w_probabilities']}"))
        elif key in ("mu", "sigma", "a", "b") and isinstance(kind, str) and kind in REFUSED:
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
    expected = f"expected value, or values, or min and max, for example {_example(target)}"
    raise RejectedError(((), expected + found))


def _constant(target: Target, given: Mapping[str, Any]) -> Constant:
    problems = _only(given, ("value",), "constant")
    if "value" not in given:
        problems.append((("value",), "missing"))
    elif refusal := target.refusal(given["value"]):
        problems.append((("value",), refusal))
    if problems:
        raise RejectedError(*problems)
    return Constant(value=target.convert(given["value"]))


def _values(target: Target, given: Mapping[str, Any]) -> tuple[Any, ...]:
    problems = _only(given, ("values", "optional", "per_layer", "when"), "categorical")
    values = given.get("values")
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise RejectedError(
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
        raise RejectedError(*problems)
    return tuple(found)


def _range(target: Target, given: Mapping[str, Any], name: str, extras: Mapping[str, Any]) -> Range:
    allowed = ("min", "max", "optional", "per_layer", "when")
    problems = _only(given, (*allowed, "q") if name.startswith("q_") else allowed, name)
    if target.kind not in ("real", "whole"):
        raise RejectedError(*problems, ((), f"{target.name} is not a number; expected {_example(target)}"))
    alias = ALIASES.get(name) or Alias(_distribution(name), exponents=False, inverse=False)
    ends: dict[str, Any] = {}
    for end in ("min", "max"):
        value = given.get(end)
        if not _is_number(value):
            problems.append(
                ((end,), "missing" if end not in given else f"expected a number, found {describe(value)}")
            )
        else:
            ends[end] = value
    step = given.get("q", 1 if name.startswith("q_") else None)
    if step is not None and not (_is_number(step) and 0 < step < math.inf):
        problems.append((("q",), f"expected a number above 0, found {describe(step)}"))
    if problems:
        raise RejectedError(*problems)
    if alias.exponents:
        ends = _exponentials(ends, alias.inverse)
    canonical, ends, step = _typed(target, alias, ends, step)
    _check_ends(target, canonical, ends, step, alias.exponents)
    return Range(distribution=canonical, **ends, q=step, **extras)


def _exponentials(ends: Mapping[str, float], inverse: bool) -> dict[str, float]:
    """Bounds from exponents of e; of log(1/x) when `inverse`."""
    low, high = (-ends["max"], -ends["min"]) if inverse else (ends["min"], ends["max"])
    for end, value in (("min", low), ("max", high)):
        if not abs(value) <= 700:
            raise RejectedError(
                ((end,), f"expected an exponent of e between -700 and 700, found {describe(value)}")
            )
    return {"min": math.exp(low), "max": math.exp(high)}


def _typed(
    target: Target, alias: Alias, ends: dict[str, Any], step: Any
) -> tuple[Distribution, dict[str, Any], Any]:
    """Bounds and step in the key's own type, and the distribution that goes with it."""
    canonical = alias.canonical
    if target.kind == "real":
        if canonical == "int_uniform":
            raise RejectedError(
                (("distribution",), f"{target.name} is a real number; use uniform, or q_uniform with q: 1")
            )
        ends = {end: float(value) for end, value in ends.items()}
        return canonical, ends, None if step is None else float(step)
    if canonical == "uniform":
        raise RejectedError(
            (("distribution",), f"{target.name} is a whole number; use int_uniform, or q_uniform with q: 1")
        )
    if step is None:
        step = 1
    if not float(step).is_integer():
        raise RejectedError((("q",), f"expected a whole number, found {describe(step)}"))
    if canonical == "log_uniform_values":
        canonical = "q_log_uniform_values"
    if alias.exponents:
        ends = {"min": math.ceil(ends["min"] - 1e-9), "max": math.floor(ends["max"] + 1e-9)}
    for end, value in ends.items():
        if not (math.isfinite(value) and float(value).is_integer()):
            raise RejectedError(((end,), f"expected a whole number, found {describe(value)}"))
    ends = {end: int(value) for end, value in ends.items()}
    if canonical == "int_uniform" or (canonical == "q_uniform" and step == 1):
        return "int_uniform", ends, None
    return canonical, ends, int(step)


def _distribution(name: str) -> Distribution:
    return next(known for known in RANGES if known == name)


def _check_ends(
    target: Target, canonical: Distribution, ends: Mapping[str, Any], step: Any, exponents: bool
) -> None:
    low, high = ends["min"], ends["max"]
    if "log" in canonical and low <= 0:
        what = f"expected more than 0 for {canonical}, found {describe(low)}; optional: true adds 0"
        raise RejectedError((("min",), what))
    hint = " (e to the power given; for the values themselves use log_uniform_values)" if exponents else ""
    problems: list[Problem] = [
        ((end,), refusal + hint) for end, value in ends.items() if (refusal := target.refusal(value))
    ]
    if low >= high:
        what = f"expected more than min ({_shown(low)}), found {describe(high)}"
        problems.append((("max",), what + ("; for one value use value" if low == high else "")))
    if problems:
        raise RejectedError(*problems)
    steps = Range(distribution=canonical, min=low, max=high, q=step).steps
    if steps is None:
        return
    count = steps[1] - steps[0] + 1
    if count > MAX_POINTS:
        what = f"expected at most {MAX_POINTS} multiples between min and max, found {count}"
        raise RejectedError((("q",), what))
    if count < 2:
        what = f"expected at least two multiples of {step} between {_shown(low)} and {_shown(high)}"
        raise RejectedError((("q",), what))


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
        raise RejectedError(*problems)
    return {
        "optional": given.get("optional", False),
        "per_layer": given.get("per_layer", False),
        "when": conditions,
    }


def _is_number(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= 2**53
    return isinstance(value, float)


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
