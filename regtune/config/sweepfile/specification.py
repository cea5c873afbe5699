"""`SweepSpec`: a sweep, decided and validated, however it was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator
from pydantic_core import PydanticCustomError

from regtune.config.source import SWEEP, Source, describe, read
from regtune.config.sweepfile import checks
from regtune.config.sweepfile.parameters import Constant, Parameter
from regtune.config.sweepfile.targets import TARGETS
from regtune.config.trial import (
    MAX_SEED,
    EarlyStoppingConfig,
    Frozen,
    Metric,
    ModelConfig,
    TrainingConfig,
    higher_is_better,
)
from regtune.errors import SpecError
from regtune.escaping import shell_word

Method = Literal["tpe", "random", "grid", "qmc", "cmaes", "gp"]
Goal = Literal["minimize", "maximize"]
NAME = r"^\w([\w .+=@-]{0,98}[\w.+=@-])?$"
BUDGET_KEYS = (
    "run_cap",
    "timeout",
    "description",
    "keep_models",
    "max_failures",
    "trial_timeout",
    "trial_memory_mb",
)
"""What may differ when a study goes on: the budget, and what changes no proposal and no result."""


class SplitSpec(Frozen):
    """The share of the training images that validates, and the seed that chooses them."""

    validation: float = Field(default=0.2, gt=0.0, lt=1.0)
    seed: int = Field(default=42, ge=0, le=MAX_SEED)


class MetricSpec(Frozen):
    """What a sweep is after. Without a goal, accuracies are maximized and losses minimized."""

    name: Metric = "val_cross_entropy"
    goal: Goal = "minimize"

    @model_validator(mode="before")
    @classmethod
    def _goal_of_the_metric(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and "goal" not in given and isinstance(given.get("name"), str):
            return {**given, "goal": "maximize" if higher_is_better(given["name"]) else "minimize"}
        return given

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        right = "maximize" if higher_is_better(self.name) else "minimize"
        if self.goal != right:
            better = "higher" if right == "maximize" else "lower"
            raise ValueError(f"expected goal: {right}, because {self.name} is better when it is {better}")
        return self


class PrunerSpec(Frozen):
    """When an unpromising trial is ended early; epochs are counted from 1.

    type: `median` ends a trial whose best epoch is worse than the median of the others at the same epoch;
    `successive_halving` lets the best 1/eta of the trials pass each rung; `hyperband` runs several such
    ladders that start at different epochs. min_iter: the first epoch at which a trial can be ended, default
    1. eta: the ratio of one rung to the next and of the trials that pass, default 3. max_iter: the epoch at
    which the last rung would stand, default the sweep's max_epochs. s: the number of rungs counted back from
    `max_iter`, instead of min_iter. startup_trials: how many trials must be complete before `median` judges,
    default 5.
    """

    type: Literal["median", "hyperband", "successive_halving"]
    min_iter: int | None = Field(default=None, ge=1, le=10_000)
    eta: int | None = Field(default=None, ge=2, le=100)
    max_iter: int | None = Field(default=None, ge=1, le=10_000)
    s: int | None = Field(default=None, ge=1, le=20)
    startup_trials: int | None = Field(default=None, ge=1, le=10_000)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        foreign = ("eta", "max_iter", "s") if self.type == "median" else ("startup_trials",)
        for key in foreign:
            if getattr(self, key) is not None:
                raise ValueError(f"{key} means nothing for {self.type}")
        if self.s is not None and (self.max_iter is None or self.min_iter is not None):
            raise ValueError(
                "s counts rungs back from max_iter: expected max_iter with s, or min_iter without s"
            )
        if self.type == "successive_halving" and self.max_iter is not None and self.s is None:
            raise ValueError("max_iter needs s here; or give min_iter, the first rung")
        if (
            self.s is not None
            and self.max_iter is not None
            and self.first_epoch * self.ratio**self.s > self.max_iter
        ):
            raise ValueError(
                f"expected max_iter to be at least eta ** s = {self.ratio**self.s}, found {self.max_iter}"
            )
        return self

    @property
    def ratio(self) -> int:
        """`eta`, or its default."""
        return 3 if self.eta is None else self.eta

    @property
    def first_epoch(self) -> int:
        """The first epoch at which a trial can be ended."""
        if self.s is not None and self.max_iter is not None:
            return max(1, self.max_iter // int(self.ratio**self.s))
        return 1 if self.min_iter is None else self.min_iter

    def brackets(self, max_epochs: int) -> tuple[int, ...]:
        """First rungs of hyperband's ladders, for trials of at most `max_epochs`: min_iter * eta ** k."""
        last = self.max_iter or max_epochs
        found = []
        rung = self.first_epoch
        while rung <= last:
            found.append(rung)
            rung *= self.ratio
        return tuple(found)


class SweepSpec(Frozen):
    """A sweep, decided and validated. `load` reads a file; `to_dict` gives the one canonical form.

    Times are seconds. `timeout` ends the sweep, `trial_timeout` one trial. run_cap counts finished trials,
    the controls among them; of a grid its points alone. keep_models: how many of the best trials keep their weights on
    disk.

    Example:
        >>> spec = SweepSpec.from_dict({"run_cap": 20, "parameters": {"dropout": {"min": 0.0, "max": 0.6}}})
        >>> spec.method, spec.metric.goal
        ('tpe', 'minimize')
        >>> SweepSpec.from_dict(spec.to_dict()) == spec
        True
    """

    name: str = Field(default="sweep", min_length=1, max_length=100, pattern=NAME)
    description: str = Field(default="", max_length=10_000)
    dataset: str = Field(default="mnist", min_length=1, max_length=1024)
    split: SplitSpec = SplitSpec()
    method: Method = "tpe"
    metric: MetricSpec = MetricSpec()
    run_cap: int | None = Field(default=None, ge=1, le=1_000_000)
    timeout: float | None = Field(default=None, gt=0.0, le=1e9)
    seed: int = Field(default=42, ge=0, le=MAX_SEED)
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    early_stopping: EarlyStoppingConfig | None = EarlyStoppingConfig()
    parameters: dict[str, Parameter] = Field(default_factory=dict)
    early_terminate: PrunerSpec | None = None
    controls: bool = True
    max_failures: int = Field(default=5, ge=0, le=1_000_000)
    trial_timeout: float | None = Field(default=None, gt=0.0, le=1e9)
    trial_memory_mb: int | None = Field(default=None, ge=1, le=2**24)
    keep_models: int = Field(default=5, ge=0, le=100_000)
    _notes: tuple[str, ...] = PrivateAttr(default=())
    _file: str = PrivateAttr(default="")

    @field_validator("parameters", mode="after")
    @classmethod
    def _canonical_order(cls, given: dict[str, Parameter]) -> dict[str, Parameter]:
        return {name: given[name] for name in TARGETS if name in given} | given

    @model_validator(mode="after")
    def _fits(self) -> Self:
        found = checks.problems(self)
        if found:
            text = "; ".join(f"{'.'.join(map(str, where))}: {what}" for where, what in found)
            raise PydanticCustomError("sweep", "{text}", {"text": text, "problems": found})
        return self

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = (), name: str | None = None) -> SweepSpec:
        """Read a sweep file. Raises SpecError with one line for each mistake.

        Args:
            path: the file; its stem names the sweep when the file does not.
            overrides: `key=value` each, a dot in the key goes one level down (``training.max_epochs=5``).
            name: stands above the file's own name.
        """
        from regtune.config.sweepfile.reading import spec_from

        source = read(Path(path), SWEEP)
        if "provenance" in source.values or "regularization" in source.values:
            instead = f"regtune train {shell_word(str(path))}"
            raise SpecError([f"{source.label}: this is a configuration, not a sweep file; try: {instead}"])
        for assignment in overrides:
            source.set(assignment)
        if name is not None:
            source.values["name"] = name
            source.places[("name",)] = f"--name {name}"
        found = spec_from(source, stem=Path(path).stem, here=True)
        found._file = str(path)
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "spec") -> SweepSpec:
        """The same from plain values, in the words of a sweep file. Raises SpecError, each line led by `source`."""
        from regtune.config.sweepfile.reading import spec_from

        return spec_from(Source(dict(values), source))

    @classmethod
    def of(cls, given: SweepSpec | Mapping[str, Any] | str | Path) -> SweepSpec:
        """A spec as a person has it: itself, the path of a sweep file, or plain values. Raises SpecError."""
        if isinstance(given, SweepSpec):
            return given
        if isinstance(given, Mapping):
            return cls.from_dict(given)
        if not isinstance(given, str | Path):
            raise SpecError([f"expected a SweepSpec or the path of a sweep file, found {describe(given)}"])
        return cls.load(given)

    @property
    def file(self) -> str:
        """Path of the sweep file; empty where it was read from none."""
        return self._file

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is legal and probably not meant, one line each."""
        return (*self._notes, *checks.warnings(self))

    @property
    def searched(self) -> dict[str, Any]:
        """The parameters that are searched, those with a fixed value left out."""
        return {name: found for name, found in self.parameters.items() if not isinstance(found, Constant)}

    def fixed(self, name: str) -> Any:
        """What `name` is where it is not searched: its constant, else its value in `model`, `training` or
        `early_stopping`; a technique that is neither is off."""
        found = self.parameters.get(name)
        if isinstance(found, Constant):
            return found.value
        block = TARGETS[name].block
        if block == "regularization":
            return "none" if name == "batchnorm" else 0.0
        return getattr(getattr(self, block), name)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, a sweep file in itself; what is at its default is written out too."""
        values = self.model_dump(mode="json", exclude={"parameters", "early_terminate"})
        values["parameters"] = {
            name: {
                key: value
                for key, value in parameter.model_dump(mode="json").items()
                if (value is not None and value is not False and value != {}) or key == "value"
            }
            for name, parameter in self.parameters.items()
        }
        pruner = self.early_terminate
        values["early_terminate"] = pruner.model_dump(mode="json", exclude_none=True) if pruner else None
        return values

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def identity(self) -> dict[str, Any]:
        """What must stay the same for a study to go on: all but BUDGET_KEYS."""
        return {key: value for key, value in self.to_dict().items() if key not in BUDGET_KEYS}

    def differences(self, other_identity: Mapping[str, Any]) -> list[str]:
        """What has changed since `other_identity`, one line a key: ``method: tpe → random``.

        The name of the data set is left out: the same data may lie elsewhere, and its digest decides.
        """
        return list(differences_of({**other_identity, "dataset": self.dataset}, self.identity()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SweepSpec) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.digest)


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
