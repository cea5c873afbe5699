"""Specs for tests: one small legal sweep to start from, and hypothesis strategies over all that a sweep may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from regtune.config.sweepfile import SweepSpec
from regtune.config.sweepfile.parameters import TARGETS, Target

SWEEPS = sorted((Path(__file__).parent.parent / "sweeps").glob("*.yaml"))
QUICK = next(path for path in SWEEPS if path.stem == "quickstart")
"""It needs no other data than the embedded."""


def spec_of(parameters: dict[str, Any], **keys: Any) -> SweepSpec:
    """A spec with these parameters and a budget."""
    return SweepSpec.from_dict({"run_cap": 100, **keys, "parameters": parameters})


_LIMITS = {  # narrower than the types' own where the whole range would make grids or epochs endless
    "dropout": (0.0, 0.95),
    "l1": (0.0, 1.0),
    "l2": (0.0, 1.0),
    "learning_rate": (1e-6, 10.0),
    "momentum": (0.0, 0.99),
    "weight_decay": (0.0, 1.0),
    "min_delta": (0.0, 10.0),
    "batch_size": (1, 512),
    "max_epochs": (1, 60),
    "patience": (0, 30),
}


def _numbers(target: Target, low: float | None = None) -> st.SearchStrategy[Any]:
    bottom, top = _LIMITS[target.name]
    bottom = bottom if low is None else max(bottom, low)
    if target.kind == "whole":
        return st.integers(int(bottom), int(top))
    return st.floats(bottom, top, allow_subnormal=False).map(lambda value: value + 0.0)


def values_of(target: Target) -> st.SearchStrategy[Any]:
    """One legal value of a key."""
    if target.kind == "word":
        return st.sampled_from(target.choices)
    if target.kind == "switch":
        return st.booleans()
    if target.kind == "layers":
        return st.lists(st.integers(1, 64), min_size=2, max_size=2)
    return _numbers(target)


@st.composite
def parameters(draw: st.DrawFn, target: Target, *, discrete: bool = False) -> dict[str, Any]:
    """One legal parameter, without a condition."""
    whole = target.kind == "whole"
    forms = ["value", "values"]
    if whole or target.kind == "real":
        forms += (
            ["q_uniform"]
            if discrete
            else ["range", "log_uniform_values", "q_uniform", "q_log_uniform_values"]
        )
    form = draw(st.sampled_from(forms))
    if form == "value":
        return {"value": draw(values_of(target))}
    given: dict[str, Any] = {} if form in ("values", "range") else {"distribution": form}
    if form == "values":
        most = max(2, len(target.choices) or (2 if target.kind == "switch" else 4))
        given["values"] = draw(st.lists(values_of(target), min_size=2, max_size=most, unique_by=str))
    elif form.startswith("q_"):
        step = draw(st.integers(1, 3) if whole else st.sampled_from([0.001, 0.01, 0.05]))
        least = 0 if whole and target.zero and form == "q_uniform" else 1
        low, steps = draw(st.integers(least, 8)), draw(st.integers(2, 6))
        given |= {"q": step, "min": step * low, "max": step * (low + steps)}
    else:
        smallest = None if form == "range" else 1 if whole else 1e-9
        ends = draw(st.lists(_numbers(target, smallest), min_size=2, max_size=2, unique=True))
        given |= {"min": min(ends), "max": max(ends)}
    if target.layered:
        given["per_layer"] = draw(st.booleans())
    zero = 0 in given.get("values", ()) or (("q" in given or whole) and given.get("min") == 0)
    if target.zero and not zero:
        given["optional"] = draw(st.booleans())
    return given


@st.composite
def specs(draw: st.DrawFn, *, discrete: bool = False) -> SweepSpec:
    """A legal spec: some keys searched, some fixed, perhaps conditions on one of them."""
    names = draw(st.lists(st.sampled_from(sorted(TARGETS)), min_size=1, max_size=4, unique=True))
    given = {name: draw(parameters(TARGETS[name], discrete=discrete)) for name in names}
    if all("value" in parameter for parameter in given.values()):
        given["dropout"] = {"values": [0.0, 0.5]}
    asked = [name for name, one in given.items() if "values" in one and not one.get("per_layer")]
    value = given[asked[0]]["values"][0] if asked else []
    for name, parameter in given.items():
        conditional = not isinstance(value, list) and name != asked[0] and "value" not in parameter
        if conditional and draw(st.booleans()):
            parameter["when"] = {asked[0]: value}
    method = draw(st.sampled_from(["tpe", "random"]))
    return spec_of(given, seed=draw(st.integers(0, 2**31 - 1)), method=method)
