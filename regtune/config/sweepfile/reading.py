"""From plain values to a `SweepSpec`: other tools' words first, then types and limits, then what must fit
together.

A Weights & Biases file is read as it is where it means something here. What means nothing here is passed over
and named in one line; what would mean something else is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from pydantic import ValidationError

from regtune.config.source import Problem, Source, Where, describe
from regtune.config.sweepfile.forms import RejectedError, read_parameter
from regtune.config.sweepfile.parameters import Parameter
from regtune.config.sweepfile.specification import MetricSpec, PrunerSpec, SplitSpec, SweepSpec
from regtune.config.sweepfile.targets import (
    BLOCKS,
    TARGETS,
    UNSUPPORTED,
    expectation,
    suggestion,
    unknown_key,
)
from regtune.config.trial import METRICS, mistakes
from regtune.errors import SpecError

IGNORED = (
    "program",
    "command",
    "project",
    "entity",
    "apiVersion",
    "kind",
    "controller",
    "job",
    "image_uri",
    "launch",
    "scheduler",
)
"""Top-level keys of W&B that mean nothing here."""
IGNORED_BELOW: Mapping[str, tuple[str, ...]] = {
    "metric": ("target", "impute", "impute_while_running"),
    "early_terminate": ("strict",),
}
METHODS = ("tpe", "random", "grid", "qmc", "cmaes", "gp")
_GROUPS: Mapping[str, type[Any]] = {
    "split": SplitSpec,
    "metric": MetricSpec,
    "early_terminate": PrunerSpec,
    **{block: model for block, model in BLOCKS.items() if block != "regularization"},
}
_KEYS = tuple(SweepSpec.model_fields)
_HOMES = {
    name: "parameters" if target.block == "regularization" else target.block
    for name, target in TARGETS.items()
}


def spec_from(source: Source, stem: str | None = None, here: bool = False) -> SweepSpec:
    """The spec in `source`. Raises SpecError with every mistake.

    stem: the name of a sweep that gives none itself. here: whether it is to be run on this machine, so that a
    method whose library is missing is refused.
    """
    if not isinstance(source.values, Mapping):
        raise SpecError(
            [f"{source.label}: expected keys such as parameters and run_cap, found {describe(source.values)}"]
        )
    values = dict(source.values)
    problems: list[Problem] = []
    notes = _pass_over(values)
    if stem is not None and values.get("name") is None:
        values["name"] = stem
    _words(values, problems)
    parameters = _parameters(values, problems, notes)
    rejected = {str(where[1]) for where, _ in problems if where[:1] == ("parameters",) and len(where) > 1}
    spec = _validated({**values, "parameters": parameters}, problems, rejected)
    if here and values.get("method") == "gp" and find_spec("torch") is None:
        problems.append(
            (("method",), 'gp needs torch, which is not installed; try: pip install "regtune[gp]"')
        )
    if problems or source.problems or spec is None:
        raise SpecError(source.lines(problems))
    object.__setattr__(spec, "_notes", tuple(notes))
    return spec


def _pass_over(values: dict[str, Any]) -> list[str]:
    """Remove what means nothing here; one line that names it."""
    found = [key for key in IGNORED if key in values]
    for key in found:
        del values[key]
    for group, keys in IGNORED_BELOW.items():
        if isinstance(values.get(group), Mapping):
            found += [f"{group}.{key}" for key in keys if key in values[group]]
            values[group] = {key: value for key, value in values[group].items() if key not in keys}
    return [f"passed over, because it means nothing here: {', '.join(found)}"] if found else []


def _words(values: dict[str, Any], problems: list[Problem]) -> None:
    """W&B's words in ours; what only a W&B file can have wrong is reported here."""
    if values.get("method") == "bayes":
        values["method"] = "tpe"
    elif values.get("method") == "custom":
        del values["method"]
        problems.append((("method",), f"custom is W&B's own; expected one of {', '.join(METHODS)}"))
    if "metrics" in values:
        del values["metrics"]
        problems.append(
            (("metrics",), "several objectives are not supported; expected metric: with name and goal")
        )
    pruner = values.get("early_terminate")
    if isinstance(pruner, Mapping):  # W&B takes 3.0 for eta
        whole = {
            key: int(value)
            for key, value in pruner.items()
            if isinstance(value, float) and value.is_integer()
        }
        values["early_terminate"] = None if pruner.get("type") == "none" else {**pruner, **whole}
    for key in ("description", "name", "dataset"):
        if isinstance(values.get(key), int | float) and not isinstance(values[key], bool):
            values[key] = str(values[key])  # `name: 2024` is a name


def _parameters(values: dict[str, Any], problems: list[Problem], notes: list[str]) -> dict[str, Parameter]:
    given = values.pop("parameters", None)
    found: dict[str, Parameter] = {}
    if given is None:
        return found
    if not isinstance(given, Mapping):
        problems.append((("parameters",), f"expected a parameter on each line, found {describe(given)}"))
        return found
    for name, parameter in given.items():
        if name not in TARGETS:
            problems.append((("parameters", name), unknown_parameter(str(name))))
            continue
        try:
            found[name] = read_parameter(name, parameter)
        except RejectedError as rejected:
            problems += [(("parameters", name, *where), what) for where, what in rejected.problems]
            continue
        if isinstance(parameter, Mapping) and parameter.get("distribution") in (
            "log_uniform",
            "q_log_uniform",
        ):
            notes += _exponents_note(name, parameter, found[name])
    return found


def unknown_parameter(name: str) -> str:
    """``unknown parameter; did you mean "dropout"?``."""
    if name in UNSUPPORTED:
        return UNSUPPORTED[name]
    known = tuple(TARGETS)
    plain = name.rsplit(".", 1)[-1]
    if plain in TARGETS and plain != name:
        return f'unknown parameter; did you mean "{plain}"?'
    return f"unknown parameter{suggestion(name, known) or '; expected one of ' + ', '.join(known)}"


def _exponents_note(name: str, given: Mapping[str, Any], found: Parameter) -> list[str]:
    low, high = getattr(found, "min", 0), getattr(found, "max", 0)
    if low <= 0 or high / low > 2:
        return []
    return [
        f"parameters.{name}: {given['distribution']} takes exponents of e, so this searches {low:.4g} to "
        f"{high:.4g}; for {given['min']} to {given['max']} themselves use log_uniform_values"
    ]


def _validated(values: dict[str, Any], problems: list[Problem], rejected: set[str]) -> SweepSpec | None:
    """Validate; when a key is wrong, again without it, so that mistakes behind it are found too."""
    removed: set[str] = set()
    reported = {where for where, _ in problems}
    for _ in range(2):
        try:
            return SweepSpec.model_validate(values)
        except ValidationError as error:
            wrong = mistakes(error)
        for found in wrong:
            if found["type"] == "sweep":
                problems += [
                    problem
                    for problem in found["ctx"]["problems"]
                    if problem[0] not in reported and not _follows(problem[0], removed, rejected)
                ]
                continue
            where = tuple(part for part in found["loc"])
            problems.append((where, _expected(where, found)))
            removed.add(str(where[0]))
        if not removed:
            break
        values = {key: value for key, value in values.items() if key not in removed}
    return None


def _follows(where: Where, removed: set[str], rejected: set[str]) -> bool:
    """Whether a problem is only the consequence of one already reported."""
    if where == ("run_cap",):
        return bool(removed & {"run_cap", "timeout"})
    if where == ("parameters",):
        return bool(rejected) or "parameters" in removed
    if where[:1] == ("parameters",) and len(where) == 4 and where[2] == "when":
        return str(where[3]) in rejected
    return False


def _expected(where: Where, found: Any) -> str:
    """What to say about one of pydantic's errors."""
    text = expectation(found)
    if found["type"] == "extra_forbidden":
        return _unknown(where)
    if where == ("metric", "name"):
        return text.replace("expected one of", "expected a metric of an epoch, one of")
    if where == ("name",):
        return f"expected up to 100 letters, digits, spaces or . _ + = @ -, found {describe(found['input'])}"
    if where in (("timeout",), ("trial_timeout",)):
        return text.replace("expected a number", "expected seconds, such as 3600")
    if len(where) == 1 and found["type"].startswith("model"):
        return text + _group_hint(str(where[0]))
    return text


def _unknown(where: Where) -> str:
    key = str(where[-1])
    if len(where) == 1:
        return unknown_key(key, _KEYS, _HOMES)
    group = str(where[0])
    homes = {name: home for name, home in _HOMES.items() if home != group}
    return unknown_key(key, tuple(_GROUPS[group].model_fields), homes)


def _group_hint(group: str) -> str:
    examples = {
        "metric": f"name: {METRICS[-1]}",
        "split": "validation: 0.2",
        "early_terminate": "type: hyperband",
        "early_stopping": "patience: 4",
        "model": "hidden: [128, 64]",
        "training": "max_epochs: 30",
    }
    return f", for example {{{examples[group]}}}"
