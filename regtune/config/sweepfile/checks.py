"""Checks of a whole sweep: what must fit together (problems), what is probably not meant (warnings)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any

from regtune.config.mistakes import Problem, describe, suggestion
from regtune.config.sweepfile.parameters import TARGETS, Categorical, Constant, Range
from regtune.config.trial import DATASETS

if TYPE_CHECKING:
    from regtune.config.sweepfile.specification import SweepSpec

_ANY = "use tpe or random"
_FLAT_ONLY = ("cmaes", "qmc", "gp")
_OF_ITS_OPTIMIZER = {"weight_decay": "adamw", "momentum": "sgd", "fused": "adam"}


def problems(spec: SweepSpec) -> list[Problem]:
    """Mistakes between keys that are legal each for itself."""
    return [*_budget(spec), *_dataset(spec), *_layers(spec), *_conditions(spec), *_method(spec)]


def _budget(spec: SweepSpec) -> Iterator[Problem]:
    if spec.run_cap is None and spec.timeout is None:
        budget = "run_cap (trials) or timeout (seconds), for example run_cap: 60"
        yield ("run_cap",), f"missing; expected a budget: {budget}"
    if not spec.searched:
        expected = "expected at least one range or list, for example dropout: {min: 0.0, max: 0.6}"
        yield ("parameters",), f"nothing is searched; {expected}"


def _dataset(spec: SweepSpec) -> Iterator[Problem]:
    name = spec.dataset
    if not name.isprintable():
        yield ("dataset",), f"expected a name or path of printable characters, found {describe(name)}"
    elif name not in DATASETS and not name.lower().endswith(".npz"):
        found = f"found {describe(name)}{suggestion(name, DATASETS)}"
        yield ("dataset",), f"expected {', '.join(DATASETS)} or a path to a .npz file, {found}"


def _layers(spec: SweepSpec) -> Iterator[Problem]:
    depths = depths_of(spec)
    counts = " or ".join(map(str, sorted(depths)))
    for name, parameter in spec.parameters.items():
        where, target = ("parameters", name), TARGETS[name]
        if target.block == "early_stopping" and spec.early_stopping is None:
            yield where, "early_stopping is null, so this would never act; give early_stopping, or remove it"
        elif isinstance(parameter, Constant):
            value = parameter.value
            length = len(value) if target.layered and isinstance(value, tuple) else 1
            if length != 1 and depths != {length}:
                expected = f"expected one value, or {counts} (one a hidden layer)"
                yield (*where, "value"), f"{expected}, found {length}"
        elif parameter.per_layer and len(depths) > 1:
            remedy = "drop per_layer, or search hidden of one depth"
            yield (*where, "per_layer"), f"expected one number of hidden layers, found {counts}; {remedy}"


def depths_of(spec: SweepSpec) -> set[int]:
    """Every number of hidden layers a trial can have."""
    return {len(widths) for widths in _possible(spec, "hidden")}


def _conditions(spec: SweepSpec) -> Iterator[Problem]:
    searched = spec.searched
    edges: dict[str, list[str]] = {name: [] for name in searched}
    for name, parameter in searched.items():
        for other, values in parameter.when.items():
            where = ("parameters", name, "when", other)
            base, _, layer = other.partition(".")
            if base not in searched or other.endswith("."):
                expected = f"expected another searched parameter, one of {', '.join(searched)}"
                yield where, expected + suggestion(base, tuple(searched))
                continue
            edges[name].append(base)
            if refusal := _layer_refusal(spec, name, base, layer):
                yield where, refusal
            for refusal in _outside(base, searched[base], values):
                yield where, refusal
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        circle = error.args[1][::-1]  # each node needs the one before it
        yield ("parameters", circle[0], "when"), f"a circle: {' needs '.join(circle)}"


def _layer_refusal(spec: SweepSpec, name: str, other: str, layer: str) -> str | None:
    layers = [str(number) for number in range(1, max(depths_of(spec)) + 1)]
    if not spec.searched[other].per_layer:
        return f"{other} is not per layer; expected {other}" if layer else None
    if layer in layers or (not layer and spec.searched[name].per_layer):
        return None
    return f"{other} is per layer; expected {other}.1 to {other}.{layers[-1]}"


def _outside(name: str, parameter: Categorical | Range, values: Iterable[Any]) -> Iterator[str]:
    """What is wrong with values of a condition: those that the parameter asked about never has."""
    words = dict.fromkeys(map(shown_value, parameter.values)) if isinstance(parameter, Categorical) else {}
    for value in values:
        converted = TARGETS[name].convert(value)
        number = type(converted) in (int, float)
        if parameter.optional and number and converted == 0:
            continue
        if isinstance(parameter, Categorical):
            if shown_value(converted) not in words:
                yield f"{name} is one of {', '.join(words)}, found {describe(value)}"
        elif parameter.steps is None:
            yield f"{name} is continuous, no single value of it recurs; expected values or q there"
        elif not number or not parameter.has(converted):
            first, last = map(parameter.multiple, parameter.steps)
            yield f"{name} goes from {first} to {last} by {parameter.step}, found {describe(value)}"


def shown_value(value: Any) -> str:
    """A value as text: widths of layers as ``128-64``, a small number as ``1e-5``."""
    text = "-".join(map(str, value)) if isinstance(value, tuple) else describe(value).strip('"')
    return text.replace("e-0", "e-") if isinstance(value, float) else text


def _method(spec: SweepSpec) -> Iterator[Problem]:
    for name, parameter in spec.searched.items():
        where = ("parameters", name)
        if spec.method == "grid" and isinstance(parameter, Range) and parameter.points is None:
            yield where, f"continuous, and method grid needs single values; give values or q, or {_ANY}"
        for key in ("optional", "when"):
            if spec.method in _FLAT_ONLY and getattr(parameter, key):
                reason = f"method {spec.method} searches one fixed space, without conditions"
                yield (*where, key), f"{reason}; {_ANY}"
    kinds = {type(parameter) for parameter in spec.searched.values()}
    if spec.method == "cmaes" and kinds == {Categorical}:
        yield ("method",), f"cmaes searches numbers, and every parameter here is a list of values; {_ANY}"


def warnings(spec: SweepSpec) -> list[str]:
    """One line for each thing that is legal and probably not meant."""
    return [*_penalty(spec), *_method_warnings(spec), *_budget_warnings(spec)]


def _penalty(spec: SweepSpec) -> Iterator[str]:
    penalties = [name for name in ("l1", "l2") if name in spec.searched]
    monitors = _possible(spec, "monitor") if spec.early_stopping else set()
    for key, metrics in (("metric.name", {spec.metric.name}), ("early_stopping.monitor", monitors)):
        for metric in sorted(metrics & {"loss", "val_loss"}) if penalties else ():
            reason = f"contains the penalty of {' and '.join(penalties)}, which is searched"
            better = metric.replace("loss", "cross_entropy")
            yield f"{key}: {metric} {reason}, so it cannot compare strengths; use {better}"


def _possible(spec: SweepSpec, name: str) -> set[Any]:
    parameter = spec.parameters.get(name)
    return set(parameter.values) if isinstance(parameter, Categorical) else {spec.fixed(name)}


def _method_warnings(spec: SweepSpec) -> Iterator[str]:
    for name, needed in _OF_ITS_OPTIMIZER.items():
        if name in spec.searched and needed not in _possible(spec, "optimizer"):
            yield f"parameters.{name}: acts under optimizer {needed} only, which no trial uses"
    listed = [name for name, parameter in spec.searched.items() if isinstance(parameter, Categorical)]
    if spec.method == "cmaes" and listed:
        yield f"method: cmaes searches numbers only and draws {', '.join(listed)} at random; {_ANY}"
    if spec.method in ("cmaes", "gp") and spec.early_terminate is not None:
        yield f"early_terminate: {spec.method} learns from complete trials only, not from pruned ones; use tpe"


def _budget_warnings(spec: SweepSpec) -> Iterator[str]:
    pruner, epochs = spec.early_terminate, most_epochs(spec)
    controls = 0 if spec.method == "grid" else len(control_names(spec))
    searched = math.inf if spec.run_cap is None else spec.run_cap - controls
    if pruner and pruner.first_epoch >= epochs:
        when = f"the first check is at epoch {pruner.first_epoch} of at most {epochs}"
        yield f"early_terminate: {when}, so nothing is ended early"
    elif pruner and pruner.max_iter and pruner.max_iter > epochs:
        yield f"early_terminate.max_iter: {pruner.max_iter} is more than the {epochs} epochs of a trial"
    elif pruner and pruner.type == "hyperband" and searched <= (least := 10 * len(pruner.brackets(epochs))):
        remedy = "use a larger run_cap or min_iter, or type: median"
        yield f"early_terminate: hyperband needs more than {least} trials, found {searched}; {remedy}"
    if searched <= 0:
        nothing = f"{spec.run_cap} leaves nothing for the search, because {controls} controls run first"
        yield f"run_cap: {nothing}; raise it above {controls}, or set controls: false"


def most_epochs(spec: SweepSpec) -> int:
    """The most epochs a trial can have."""
    parameter = spec.parameters.get("max_epochs")
    if isinstance(parameter, Range):
        return int((parameter.points or (parameter.max,))[-1])
    return int(max(_possible(spec, "max_epochs")))


def control_names(spec: SweepSpec) -> list[str]:
    """The controls that run first: no technique, early stopping alone, and each searched technique alone.

    Without early stopping, `none` and `early_stopping` are the same one. Of batch norm, the placements that are tried.
    """
    if not spec.controls:
        return []
    names = ["none"] if spec.early_stopping is None else ["none", "early_stopping"]
    names += [name for name in ("dropout", "l1", "l2") if name in spec.searched]
    placements = _possible(spec, "batchnorm") if "batchnorm" in spec.searched else ()
    return names + [f"batchnorm_{one}" for one in ("before", "after") if f"{one}_activation" in placements]
