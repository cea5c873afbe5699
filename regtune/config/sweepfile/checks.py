"""Checks of a whole sweep: what must fit together (problems), what is probably not meant (warnings)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from regtune.config.mistakes import Problem, describe, suggestion
from regtune.config.sweepfile.parameters import Categorical, Constant, Range
from regtune.config.sweepfile.targets import TARGETS
from regtune.config.trial import MAX_LAYERS

if TYPE_CHECKING:
    from regtune.config.sweepfile.specification import SweepSpec

DATASETS = ("mnist", "mnist-5k", "fashion-mnist")
_ANY = "use tpe or random"
_FLAT_ONLY: Mapping[str, str] = {
    "cmaes": "searches one fixed space of numbers",
    "qmc": "walks one sequence through a fixed space",
    "gp": "models one fixed space",
}
_OF_ITS_OPTIMIZER = {"weight_decay": "adamw", "momentum": "sgd", "fused": "adam"}


def problems(spec: SweepSpec) -> list[Problem]:
    """Mistakes between keys that are legal each for itself."""
    return [
        *_budget(spec),
        *_dataset(spec),
        *_layers(spec),
        *_early_stopping(spec),
        *_conditions(spec),
        *_method(spec),
    ]


def _budget(spec: SweepSpec) -> Iterator[Problem]:
    if spec.run_cap is None and spec.timeout is None:
        yield (
            ("run_cap",),
            "missing; expected a budget: run_cap (trials) or timeout (seconds), for example run_cap: 60",
        )
    if not spec.searched:
        example = "dropout: {min: 0.0, max: 0.6}"
        fixed = ", each has one value only" if spec.parameters else ""
        yield (
            ("parameters",),
            f"nothing is searched{fixed}; expected at least one range or list, for example {example}",
        )


def _dataset(spec: SweepSpec) -> Iterator[Problem]:
    name = spec.dataset
    if not name.isprintable():
        yield ("dataset",), f"expected a name or path of printable characters, found {describe(name)}"
    elif name not in DATASETS and not name.lower().endswith(".npz"):
        hint = suggestion(name, DATASETS)
        yield (
            ("dataset",),
            f"expected {', '.join(DATASETS)} or a path to a .npz file, found {describe(name)}{hint}",
        )


def _layers(spec: SweepSpec) -> Iterator[Problem]:
    depths = depths_of(spec)
    counts = " or ".join(map(str, sorted(depths)))
    for name, parameter in spec.parameters.items():
        if not TARGETS[name].layered:
            continue
        if not isinstance(parameter, Constant):
            if parameter.per_layer and len(depths) > 1:
                what = f"expected one number of hidden layers, found {counts}"
                yield (
                    ("parameters", name, "per_layer"),
                    f"{what}; drop per_layer, or search hidden of one depth",
                )
        elif (
            isinstance(parameter.value, tuple)
            and depths != {len(parameter.value)}
            and len(parameter.value) != 1
        ):
            what = f"expected one value, or {counts} (one a hidden layer), found {len(parameter.value)}"
            yield ("parameters", name, "value"), what


def depths_of(spec: SweepSpec) -> set[int]:
    """Every number of hidden layers a trial can have."""
    hidden = spec.parameters.get("hidden")
    if isinstance(hidden, Categorical):
        return {len(widths) for widths in hidden.values if isinstance(widths, tuple)}
    fixed = spec.fixed("hidden") if isinstance(hidden, Constant) else spec.model.hidden
    return {len(fixed)} if 0 < len(fixed) <= MAX_LAYERS else {1}


def _early_stopping(spec: SweepSpec) -> Iterator[Problem]:
    if spec.early_stopping is None:
        for name in spec.parameters:
            if TARGETS[name].block == "early_stopping":
                yield (
                    ("parameters", name),
                    "early_stopping is null, so this would never act; give early_stopping, or remove it",
                )


def _conditions(spec: SweepSpec) -> Iterator[Problem]:
    searched = spec.searched
    edges: dict[str, list[str]] = {}
    for name, parameter in searched.items():
        for other, values in parameter.when.items():
            where = ("parameters", name, "when", other)
            base, _, layer = other.partition(".")
            if base not in searched:
                yield where, _not_searched(base, spec)
                continue
            edges.setdefault(name, []).append(base)
            if refusal := _layer_refusal(spec, name, base, layer):
                yield where, refusal
            for refusal in _outside(base, searched[base], values):
                yield where, refusal
    for cycle in _cycles(edges):
        yield (
            ("parameters", cycle[0], "when"),
            f"a circle: {' needs '.join((*cycle, cycle[0]))}; expected one that needs none",
        )


def _not_searched(name: str, spec: SweepSpec) -> str:
    if name in spec.parameters:
        return "has one value only; expected another searched parameter"
    near = get_close_matches(name, list(spec.searched), n=1)
    hint = f'; did you mean "{near[0]}"?' if near else ""
    return f"expected another searched parameter, one of {', '.join(spec.searched)}{hint}"


def _layer_refusal(spec: SweepSpec, name: str, other: str, layer: str) -> str | None:
    if not spec.searched[other].per_layer:
        return f"{other} is not per layer; expected {other}" if layer else None
    count = max(depths_of(spec))
    if not layer:
        both = spec.searched[name].per_layer
        return None if both else f"{other} is per layer; expected {other}.1 to {other}.{count}"
    if not layer.isdigit() or not 1 <= int(layer) <= count or layer != str(int(layer)):
        return f"expected {other}.1 to {other}.{count}"
    return None


def _outside(name: str, parameter: Categorical | Range, values: Iterable[Any]) -> Iterator[str]:
    """Why those of `values` that `name` cannot have are none of its."""
    shown = dict.fromkeys(map(shown_value, parameter.values)) if isinstance(parameter, Categorical) else {}
    points = frozenset(parameter.points or ()) if isinstance(parameter, Range) else frozenset()
    for value in values:
        converted = TARGETS[name].convert(value)
        number = type(converted) in (int, float)
        if parameter.optional and number and converted == 0:
            continue
        if isinstance(parameter, Categorical):
            if shown_value(converted) not in shown:
                hint = suggestion(value, tuple(shown)) if isinstance(value, str) else ""
                yield f"{name} is one of {', '.join(shown)}, found {describe(value)}{hint}"
        elif parameter.points is None:
            only = "expected 0 (off)" if parameter.optional else "expected a parameter with values or q"
            yield f"{name} is continuous, no single value of it recurs; {only}"
        elif not number or converted not in points:
            first, last = parameter.points[0], parameter.points[-1]
            yield f"{name} goes from {first} to {last} by {parameter.step}, found {describe(value)}"


def shown_value(value: Any) -> str:
    """A value as text: widths of layers as ``128-64``."""
    if isinstance(value, tuple):
        return "-".join(map(str, value))
    return describe(value).strip('"')


def _cycles(edges: Mapping[str, list[str]]) -> Iterator[tuple[str, ...]]:
    seen: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if name in path:
            yield path[path.index(name) :]
        elif name not in seen:
            for other in edges.get(name, ()):
                yield from walk(other, (*path, name))
            seen.add(name)

    for name in edges:
        yield from walk(name, ())


def _method(spec: SweepSpec) -> Iterator[Problem]:
    for name, parameter in spec.searched.items():
        where = ("parameters", name)
        if spec.method == "grid" and isinstance(parameter, Range) and parameter.points is None:
            yield where, f"continuous, and method grid needs single values; give values or q, or {_ANY}"
        if spec.method in _FLAT_ONLY:
            for key in ("optional", "when"):
                if getattr(parameter, key):
                    reason = _FLAT_ONLY[spec.method]
                    yield (
                        (*where, key),
                        f"method {spec.method} {reason}, where nothing is conditional; {_ANY}",
                    )
    searched = spec.searched
    if (
        spec.method == "cmaes"
        and searched
        and all(isinstance(found, Categorical) for found in searched.values())
    ):
        yield (
            ("method",),
            f"cmaes searches numbers, and every parameter here is a list of values; {_ANY}, or grid",
        )


def warnings(spec: SweepSpec) -> list[str]:
    """One line for each thing that is legal and probably not meant."""
    return [
        *_penalty(spec),
        *_wasted(spec),
        *_method_warnings(spec),
        *_pruner_warnings(spec),
        *_controls(spec),
    ]


def _penalty(spec: SweepSpec) -> Iterator[str]:
    penalties = [name for name in ("l1", "l2") if name in spec.searched]
    if not penalties:
        return
    named = " and ".join(penalties)
    monitors: set[str] = {spec.early_stopping.monitor} if spec.early_stopping else set()
    if isinstance(found := spec.parameters.get("monitor"), Categorical):
        monitors = {str(value) for value in found.values}
    searched: set[str] = {spec.metric.name}
    for key, metrics in (("metric.name", searched), ("early_stopping.monitor", monitors)):
        for metric in sorted(metrics & {"loss", "val_loss"}):
            better = metric.replace("loss", "cross_entropy")
            yield (
                f"{key}: {metric} contains the penalty of {named}, which is searched, so it cannot compare "
                f"strengths; use {better}"
            )


def _wasted(spec: SweepSpec) -> Iterator[str]:
    optimizer = spec.parameters.get("optimizer")
    possible = set(optimizer.values) if isinstance(optimizer, Categorical) else {spec.fixed("optimizer")}
    for name, needed in _OF_ITS_OPTIMIZER.items():
        if name in spec.searched and needed not in possible:
            yield f"parameters.{name}: acts under optimizer {needed} only, which no trial uses"


def _method_warnings(spec: SweepSpec) -> Iterator[str]:
    listed = [name for name, found in spec.searched.items() if isinstance(found, Categorical)]
    if spec.method == "cmaes" and listed:
        yield f"method: cmaes searches numbers only and draws {', '.join(listed)} at random; {_ANY}"
    if spec.method in ("cmaes", "gp") and spec.early_terminate is not None:
        yield f"early_terminate: {spec.method} learns from complete trials only, not from pruned ones; use tpe"


def _pruner_warnings(spec: SweepSpec) -> Iterator[str]:
    pruner = spec.early_terminate
    if pruner is None:
        return
    epochs, first = most_epochs(spec), pruner.first_epoch
    if first >= epochs:
        yield f"early_terminate: the first check is at epoch {first} of at most {epochs}, so nothing is ended early"
        return
    if pruner.max_iter is not None and pruner.max_iter > epochs:
        yield f"early_terminate.max_iter: {pruner.max_iter} is more than the {epochs} epochs of a trial"
    if pruner.type == "hyperband" and spec.run_cap is not None:
        count, controls = len(pruner.brackets(epochs)), 0 if spec.method == "grid" else control_count(spec)
        trials = max(0, spec.run_cap - controls)
        few = "1 trial" if trials == 1 else f"{trials} trials"
        if trials <= 10 * count:
            yield (
                f"early_terminate: hyperband has {count} bracket{'s' if count > 1 else ''} for {few}; "
                f"expected more than 10 a bracket: run_cap above {10 * count + controls}, a larger min_iter, "
                "or type: median"
            )


def most_epochs(spec: SweepSpec) -> int:
    """The most epochs a trial can have."""
    found = spec.parameters.get("max_epochs")
    if isinstance(found, Range):
        return int((found.points or (found.max,))[-1])
    if isinstance(found, Categorical):
        return max(value for value in found.values if isinstance(value, int))
    return int(spec.fixed("max_epochs"))


def control_count(spec: SweepSpec) -> int:
    """How many controls run first: without early stopping, `none` and `early_stopping` are the same one."""
    if not spec.controls:
        return 0
    return 6 if spec.early_stopping is None else 7


def _controls(spec: SweepSpec) -> Iterator[str]:
    count = control_count(spec)
    if spec.method != "grid" and spec.run_cap is not None and count and spec.run_cap <= count:
        yield (
            f"run_cap: {spec.run_cap} leaves nothing for the search, because {count} controls run first; "
            f"raise it above {count}, or set controls: false"
        )
