"""The specification of a sweep: its file, read and validated.

A Weights & Biases file is read as it is where it means something here. What means nothing here is ignored and named in
one line; what would mean something else is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from regtune.config.mistakes import Problem, Where, describe, explain, refused
from regtune.config.source import Source, read
from regtune.config.sweepfile import checks
from regtune.config.sweepfile.groups import MetricSpec, PrunerSpec, SplitSpec
from regtune.config.sweepfile.parameters import TAGS, TARGETS, Constant, Parameters, SweepKeys, whole
from regtune.config.trial import MAX_SEED, EarlyStoppingConfig, Frozen, ModelConfig, TrainingConfig
from regtune.errors import SpecError
from regtune.escaping import shell_word

Method = Literal["tpe", "random", "grid", "qmc", "cmaes", "gp"]
NAME = r"^\w([\w .+=@-]{0,98}[\w.+=@-])?$"
BUDGET_KEYS = (
    *("run_cap", "timeout", "decide", "description", "keep_models"),
    *("max_failures", "trial_timeout", "trial_memory_mb"),
)
"""What may differ when a study goes on: the budget, and what changes no proposal and no result."""
DECIDE_SHARE = 1 / 3
"""The share of the search's epochs that `decide: true` stands for."""
MAX_DECIDE = 100
IGNORED = {
    "": ("program", "command", "project", "entity"),
    "metric": ("target",),
    "early_terminate": ("strict",),
}
"""Keys of W&B that mean nothing here, by the group in which they stand."""


class SweepSpec(Frozen):
    """A sweep file, read and validated.

    `load` reads a file, `from_dict` plain values; `to_dict` returns the canonical form. Every attribute is a key of the
    sweep file. Times are in seconds.

    Example:
        >>> spec = SweepSpec.from_dict({"run_cap": 20, "parameters": {"dropout": {"min": 0.0, "max": 0.6}}})
        >>> spec.method, spec.metric.goal
        ('tpe', 'minimize')
        >>> SweepSpec.from_dict(spec.to_dict()) == spec
        True
    """

    model_config = ConfigDict(defer_build=True)

    name: str = Field(default="sweep", json_schema_extra={"pattern": NAME})
    """The sweep's and the study's name; the file's stem when it is missing."""
    description: str = Field(default="", max_length=10_000)
    """A text for people."""
    dataset: str = Field(default="mnist", max_length=1024)
    """mnist, mnist-5k (part of the installation), fashion-mnist, or a path to a .npz file."""
    split: SplitSpec = SplitSpec()
    """How the training images are divided."""
    method: Method = "tpe"
    """How the next trial is chosen. bayes reads as tpe."""
    metric: MetricSpec = MetricSpec()
    """What the sweep is after."""
    run_cap: int | None = Field(default=None, ge=1, le=1_000_000)
    """Finished trials after which the search ends, controls included; of a grid its points, controls aside."""
    timeout: float | None = Field(default=None, gt=0.0, le=1e9)
    """Seconds after which the search ends."""
    seed: int = Field(default=42, ge=0, le=MAX_SEED)
    """Everything random follows from it."""
    model: ModelConfig = ModelConfig()
    """The network before any regularization."""
    training: TrainingConfig = TrainingConfig()
    """How weights are fitted; a key under parameters stands above it."""
    early_stopping: EarlyStoppingConfig | None = EarlyStoppingConfig()
    """Keras' EarlyStopping with restored best weights; null for none."""
    parameters: Parameters = Field(default_factory=dict)
    """What is searched."""
    early_terminate: PrunerSpec | None = None
    """When an unpromising trial is ended early."""
    controls: bool = True
    """Run first: the network without any technique, then each searched technique alone."""
    decide: bool | Annotated[float, Field(gt=0.0, le=MAX_DECIDE)] = True
    """Share of the search's epochs for replicates of finalists and controls, which decide; true is 1/3."""
    max_failures: int = Field(default=5, ge=0, le=1_000_000)
    """Failed trials that are replaced before the sweep gives up."""
    trial_timeout: float | None = Field(default=None, gt=0.0, le=1e9)
    """Seconds of training after which one trial is stopped."""
    trial_memory_mb: int | None = Field(default=None, ge=1, le=2**24)
    """Memory in MiB at which one trial is stopped."""
    keep_models: int = Field(default=5, ge=0, le=100_000)
    """How many of the best trials keep their weights on disk."""
    _notes: Sequence[str] = PrivateAttr(default=())
    _file: str = PrivateAttr(default="")

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not re.fullmatch(NAME, name):
            expected = "expected up to 100 letters, digits, spaces or . _ + = @ -"
            raise ValueError(f"{expected}, found {describe(name)}")
        return name

    @field_validator("decide", mode="before")
    @classmethod
    def _share(cls, given: Any) -> Any:
        if isinstance(given, bool) or (isinstance(given, int | float) and 0 < given <= MAX_DECIDE):
            return given
        share = f"a share of the search's epochs (more than 0, at most {MAX_DECIDE})"
        raise ValueError(f"expected true, false or {share}, found {describe(given)}")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        problems = checks.problems(self)
        if problems:
            raise refused(*problems)
        return self

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = (), name: str | None = None) -> SweepSpec:
        """Read a sweep file.

        Args:
            path: The file; its stem names the sweep when the file does not.
            overrides: Changes of the form `key=value`; a dot goes one level down (``training.max_epochs=5``).
            name: The sweep's name, instead of the file's own.

        Returns:
            The validated sweep.

        Raises:
            SpecError: The file is not valid; one line for each mistake.
        """
        source = read(Path(path), SpecError)
        if "provenance" in source.values or "regularization" in source.values:
            instead = f"regtune train {shell_word(str(path))}"
            raise SpecError([f"{source.label}: this is a configuration, not a sweep file; try: {instead}"])
        for assignment in overrides:
            source.set(assignment)
        if name is not None:
            source.values["name"] = name
            source.places[("name",)] = f"--name {name}"
        if source.values.get("name") is None:
            source.values["name"] = Path(path).stem
        if source.values.get("method") == "gp" and find_spec("torch") is None:
            missing = 'gp needs torch, which is not installed; try: pip install "regtune[gp]"'
            source.problems.append((("method",), missing))
        return cls._read(source, str(path))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "spec") -> SweepSpec:
        """Validate the keys and values of a sweep file.

        Args:
            values: Keys and values, as a sweep file has them.
            source: The beginning of each line of an error.

        Returns:
            The validated sweep.

        Raises:
            SpecError: A value is not valid; one line for each mistake.
        """
        if not isinstance(values, Mapping):
            raise SpecError([f"{source}: expected {SpecError.expected}, found {describe(values)}"])
        return cls._read(Source(dict(values), source))

    @classmethod
    def of(cls, given: SweepSpec | Mapping[str, Any] | str | Path) -> SweepSpec:
        """Return a spec as it is, read it from the path of a sweep file, or validate plain values. Raises SpecError."""
        if isinstance(given, SweepSpec):
            return given
        if isinstance(given, Mapping):
            return cls.from_dict(given)
        if not isinstance(given, str | Path):
            raise SpecError([f"expected a SweepSpec or the path of a sweep file, found {describe(given)}"])
        return cls.load(given)

    @classmethod
    def _read(cls, source: Source, file: str = "") -> SweepSpec:
        values = dict(source.values)
        notes = _ignore(values)
        _translate(values)
        spec, problems = _validated(values, {"file": file, "notes": notes})
        if spec is None or source.problems:
            raise SpecError(source.lines(problems))
        return spec

    def model_post_init(self, context: Any) -> None:
        """Keep what no key says: the path of the file, and what is to be noted about its words."""
        if context:
            self._file, self._notes = context["file"], context["notes"]

    @property
    def file(self) -> str:
        """Path of the sweep file; empty where it was read from none."""
        return self._file

    @property
    def warnings(self) -> tuple[str, ...]:
        """Doubts about a valid file, one line each."""
        return (*self._notes, *checks.warnings(self))

    @property
    def searched(self) -> dict[str, Any]:
        """The searched parameters, without those that have a fixed value."""
        parameters = self.parameters.items()
        return {name: parameter for name, parameter in parameters if not isinstance(parameter, Constant)}

    @property
    def decision_share(self) -> float:
        """Epochs of the decision at most, as a share of the search's; 0 for no decision."""
        return DECIDE_SHARE * self.decide if isinstance(self.decide, bool) else self.decide

    def fixed(self, name: str) -> Any:
        """Return the value of a key that is not searched: its constant, else that of its block; a technique is off."""
        parameter = self.parameters.get(name)
        if isinstance(parameter, Constant):
            return parameter.value
        block = TARGETS[name].block
        if block == "regularization":
            return "none" if name == "batchnorm" else 0.0
        return getattr(getattr(self, block), name)

    def to_dict(self) -> dict[str, Any]:
        """Return the canonical form: plain JSON, a sweep file in itself, with all defaults written out."""
        values = self.model_dump(mode="json", exclude={"parameters", "early_terminate"})
        searched = {name: _short(parameter) for name, parameter in self.parameters.items()}
        pruner = self.early_terminate and _short(self.early_terminate)
        return {**values, "parameters": searched, "early_terminate": pruner}

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def identity(self) -> dict[str, Any]:
        """Return what must stay the same for a study to resume: all but BUDGET_KEYS."""
        return {key: value for key, value in self.to_dict().items() if key not in BUDGET_KEYS}

    def differences(self, other_identity: Mapping[str, Any]) -> list[str]:
        """Return what has changed since `other_identity`, one line per key: ``method: tpe → random``.

        The name of the data set is left out, because the same data may be elsewhere; its digest decides.
        """
        return list(differences_of({**other_identity, "dataset": self.dataset}, self.identity()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SweepSpec) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.digest)


KEYS = SweepKeys(SweepSpec)


def _short(group: Frozen) -> dict[str, Any]:
    return group.model_dump(mode="json", exclude_defaults=True)


def _ignore(values: dict[str, Any]) -> list[str]:
    ignored = []
    for group, keys in IGNORED.items():
        inner = values.get(group) if group else values
        if isinstance(inner, Mapping):
            ignored += [f"{group}.{key}" if group else key for key in keys if key in inner]
            if group:
                values[group] = {key: value for key, value in inner.items() if key not in keys}
    for key in IGNORED[""]:
        values.pop(key, None)
    use = "them" if len(ignored) > 1 else "it"
    return [f"ignored: {', '.join(ignored)} (regtune does not use {use})"] if ignored else []


def _translate(values: dict[str, Any]) -> None:
    """W&B's words in ours, and what YAML takes for a number in text."""
    if values.get("method") == "bayes":
        values["method"] = "tpe"
    if isinstance(pruner := values.get("early_terminate"), Mapping):  # W&B takes 3.0 for eta
        values["early_terminate"] = {key: whole(value) for key, value in pruner.items()}
    for key in ("description", "name", "dataset"):
        if type(values.get(key)) in (int, float):
            values[key] = str(values[key])  # `name: 2024` is a name
    if values.get("parameters") is None:
        values["parameters"] = {}


def _validated(values: Mapping[str, Any], context: Any) -> tuple[SweepSpec | None, list[Problem]]:
    """Validate; when a key is wrong, again without it, so that mistakes between the others are found too."""
    problems: list[Problem] = []
    wrong: set[Where] = set()
    for _ in range(2):
        try:
            spec = SweepSpec.model_validate(values, context=context)
        except ValidationError as error:
            found = explain(error, KEYS, tags=TAGS)
            between_keys = error.errors()[0]["loc"] == ()
        else:
            return (None if problems else spec), problems
        problems += [problem for problem in found if not _follows(problem[0], wrong)]
        if between_keys:
            break
        wrong = {where[:2] if where[0] == "parameters" else where[:1] for where, _ in found}
        values = {key: value for key, value in values.items() if (key,) not in wrong}
        given = values.pop("parameters", {})
        values["parameters"] = {name: one for name, one in given.items() if ("parameters", name) not in wrong}
    return None, problems


def _follows(where: Where, wrong: set[Where]) -> bool:
    """Whether a mistake is only the consequence of keys that are wrong, and were left out."""
    if where == ("run_cap",):
        return not wrong.isdisjoint({("run_cap",), ("timeout",)})
    if where == ("parameters",):
        return any(at[0] == "parameters" for at in wrong)
    asked = str(where[-1]).partition(".")[0]
    return where[:1] in wrong or ("parameters", asked) in wrong


def differences_of(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """What differs between plain values, one line a key: ``method: tpe → random``."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in dict.fromkeys((*old, *new)):
            yield from differences_of(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield f"{key}: {_text(old)} → {_text(new)}"


def _text(value: Any) -> str:
    if value is None:
        return "nothing"
    return value if isinstance(value, str) else json.dumps(value)


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a sweep file, for completion and checks in editors.

    What only several keys together can have wrong (a circle of conditions, a range upside down) it cannot say.
    """
    schema = SweepSpec.model_json_schema()
    parts = schema["$defs"]
    groups = {"": schema, "metric": parts["MetricSpec"], "early_terminate": parts["PrunerSpec"]}
    for group, keys in IGNORED.items():
        ignored = {"description": "A key of Weights & Biases; regtune does not use it.", "deprecated": True}
        groups[group]["properties"] |= dict.fromkeys(keys, ignored)
    schema["properties"]["method"]["enum"].append("bayes")
    schema["properties"]["parameters"]["minProperties"] = 1
    del schema["properties"]["name"]["default"]
    budgets = {"run_cap": "integer", "timeout": "number"}
    return schema | {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "regtune sweep",
        "required": ["parameters"],
        "anyOf": [{"required": [key], "properties": {key: {"type": kind}}} for key, kind in budgets.items()],
    }
