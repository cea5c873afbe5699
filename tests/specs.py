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
    forms = ["value", "values"]
    if target.kind in ("real", "whole"):
        forms += ["q_range"] if discrete else ["range", "log", "q_range", "q_log"]
    form = draw(st.sampled_from(forms))
    if form == "value":
        return {"value": draw(values_of(target))}
    if form == "values":
        most = len(target.choices) or (2 if target.kind == "switch" else 4)
        found: dict[str, Any] = {
            "values": draw(st.lists(values_of(target), min_size=2, max_size=max(2, most), unique_by=str))
        }
    else:
        smallest = (1 if target.kind == "whole" else 1e-9) if "log" in form else None
        ends = sorted(draw(st.lists(_numbers(target, smallest), min_size=2, max_size=2, unique=True)))
        found = {"min": ends[0], "max": ends[1]}
        if form == "log":
            found["distribution"] = "log_uniform_values"
        if form.startswith("q_"):
            steps = draw(st.integers(2, 6))
            if target.kind == "whole":
                step: float = draw(st.integers(1, 3))
                found["max"] = min(int(_LIMITS[target.name][1]), found["min"] + step * steps)
                found["min"] = found["max"] - step * steps if found["max"] - step * steps >= 1 else 1
                found["max"] = max(found["max"], found["min"] + 2 * step)
            else:
                step = draw(st.sampled_from([0.001, 0.01, 0.05]))
                low = draw(st.integers(1, 8))
                found["min"], found["max"] = step * low, step * (low + steps)
            found |= {"q": step, "distribution": "q_log_uniform_values" if form == "q_log" else "q_uniform"}
    if target.layered:
        found["per_layer"] = draw(st.booleans())
    zero = 0 in found.get("values", ()) or (
        ("q" in found or target.kind == "whole") and found.get("min") == 0
    )
    if target.zero and not zero:
        found["optional"] = draw(st.booleans())
    return found


@st.composite
def specs(draw: st.DrawFn, *, discrete: bool = False) -> SweepSpec:
    """A legal spec: some keys searched, some fixed, perhaps one condition."""
    names = draw(st.lists(st.sampled_from(sorted(TARGETS)), min_size=1, max_size=4, unique=True))
    given = {name: draw(parameters(TARGETS[name], discrete=discrete)) for name in names}
    if all("value" in found for found in given.values()):
        given["dropout"] = {"values": [0.0, 0.5]}
    asked = next(
        (name for name, found in given.items() if "values" in found and not found.get("per_layer")), None
    )
    for name, found in given.items():
        if asked and name != asked and "value" not in found and draw(st.booleans()):
            value = given[asked]["values"][0]
            if not isinstance(value, list):
                found["when"] = {asked: value}
    return spec_of(
        given, seed=draw(st.integers(0, 2**31 - 1)), method=draw(st.sampled_from(["tpe", "random"]))
    )
