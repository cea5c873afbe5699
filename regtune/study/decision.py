"""Replicates and the decision of a study, as stored in Optuna's database: attributes of the study.

A replicate is a candidate trained once more with a fresh seed, a fresh split, or both. Replicate i of every candidate
has the same seed and the same split, so that differences are paired. The decision is what `regtune.evidence` concluded
from the replicates last; reading it imports neither SciPy nor TensorFlow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, ValidationError
from sqlalchemy import Engine

from regtune.config.trial import Frozen, TrialConfig
from regtune.errors import StorageError
from regtune.study import tables
from regtune.study.record import DECISION, REPLICATE, TrialRecord

Vary = Literal["both", "seed", "split"]
"""What differs between the replicates of a candidate."""
Standing = Literal["chosen", "tied", "beaten", "diverged"]
End = Literal["settled", "practical", "overlap", "budget", "stopped", "one_candidate", "too_few"]
"""Why replication ended: every comparison is settled; only differences below `practical` remain; more replicates would
hardly narrow the intervals, because their splits share images; the budget is used; it was stopped, or goes on; there is
nothing to compare; or the budget is too small for the first look.
"""


class Candidate(Frozen):
    """A configuration that is replicated.

    key: `t16` for trial 16 of the search, `c-dropout` for a control; it names the candidate's replicates. trial: the
    number of the trial that trained it in the search; None for a control that the search did not run. searched:
    whether the search space contains it. value: its metric in the search.
    """

    key: str = Field(pattern=r"^(t\d+|c-[a-z0-9_]+)$")
    trial: int | None = None
    control: str | None = None
    searched: bool
    value: float | None = None
    mix: str
    config: TrialConfig

    @property
    def name(self) -> str:
        """What a person reads: `trial 16` or `control dropout`."""
        return named(self.key)


def named(key: str) -> str:
    """The name of a candidate by its key: `trial 16`, `control batch norm before`."""
    if key.startswith("t"):
        return f"trial {key[1:]}"
    return f"control {key[2:].replace('_', ' ').replace('batchnorm', 'batch norm')}"


class Estimate(Frozen):
    """A mean and the half width of its confidence interval at the decision's level, None where it is unknown."""

    mean: float
    half_width: float | None = None

    @property
    def low(self) -> float | None:
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        return None if self.half_width is None else self.mean + self.half_width


class Judged(Frozen):
    """A candidate and what its replicates say.

    replicates: how many count; diverged: how many ended without finite figures. estimate: of the ranked metric.
    to_chosen, to_none: paired differences, this candidate minus the chosen one or minus the control `none`; None for
    these two themselves. beats_none, below_none: whether it is better or worse than no technique, with the error over
    all candidates and looks controlled. figures: estimates of `val_accuracy`, `val_cross_entropy`,
    `generalization_gap`, `ece`, `brier`, `epochs`, `epoch_seconds`, `l2_norm`, `sparsity`, `prunable`. bought: of the
    same figures, the paired differences to the control `none`.
    beyond: of a technique's control, the same to the control `early_stopping`, which is what the technique adds: its
    control has the sweep's early stopping too, and `none` has not.
    """

    candidate: Candidate
    standing: Standing
    replicates: int
    diverged: int = 0
    estimate: Estimate | None = None
    to_chosen: Estimate | None = None
    to_none: Estimate | None = None
    beats_none: bool = False
    below_none: bool = False
    figures: dict[str, Estimate] = Field(default_factory=dict)
    bought: dict[str, Estimate] = Field(default_factory=dict)
    beyond: dict[str, Estimate] = Field(default_factory=dict)

    @property
    def added(self) -> dict[str, Estimate]:
        """What it adds, of each figure: `beyond`, or `bought` where `beyond` is empty.

        So a technique's control is compared with early stopping alone, and with no technique where the study has no
        control with early stopping alone; that control itself, and what the search found, with no technique.
        """
        return self.beyond or self.bought


class Decision(Frozen):
    """What the replicates of a study decide.

    replicates: of each candidate that is still open. level: of every interval, over all looks together. practical:
    differences below it do not matter, in units of the metric. chosen: key of the simplest of the tied candidates
    inside the search space. answer: key of the simplest of all tied ones: another key than `chosen` where a control
    outside the search space is as good and simpler, or better. winner: key of the search's own best trial.
    optimism: by how much its score in the search is better than its mean over replicates, positive where the search
    flattered it. trainings, epochs, seconds: what the replicates cost. decided: ISO 8601 in UTC. notes: what a person
    must know besides, one line each.
    """

    study: str
    uid: str
    metric: str
    goal: Literal["minimize", "maximize"]
    vary: Vary
    level: float
    practical: float
    replicates: int
    end: End
    candidates: tuple[Judged, ...]
    chosen: str | None = None
    answer: str | None = None
    winner: str | None = None
    optimism: Estimate | None = None
    trainings: int = 0
    epochs: int = 0
    seconds: float = 0.0
    decided: str
    notes: tuple[str, ...] = ()

    def judged(self, key: str | None) -> Judged | None:
        """Return a candidate by its key."""
        return next((one for one in self.candidates if one.candidate.key == key), None)

    @property
    def none(self) -> Judged | None:
        """The control without any technique."""
        return self.judged("c-none")

    @property
    def techniques(self) -> tuple[Judged, ...]:
        """The controls that tell what a technique adds, early stopping alone first."""
        told = [one for one in self.candidates if one.candidate.control and one.added]
        return tuple(sorted(told, key=lambda one: one.candidate.control != "early_stopping"))

    def with_standing(self, *standings: Standing) -> tuple[Judged, ...]:
        return tuple(one for one in self.candidates if one.standing in standings)


@dataclass(frozen=True)
class Replicate:
    """One training of a candidate. index: from 0; it gives seed and split. record: its `uid` is `replicate_uid`."""

    candidate: str
    vary: Vary
    index: int
    record: TrialRecord

    @property
    def attribute(self) -> str:
        """Name of the study's attribute that stores it."""
        return f"{REPLICATE}{self.vary}.{self.candidate}.{self.index}"

    @classmethod
    def of(cls, attribute: str, value: Any) -> Replicate:
        """Read an attribute. Raises StorageError."""
        vary, candidate, index = attribute.removeprefix(REPLICATE).split(".")
        return cls(candidate, vary, int(index), TrialRecord.from_json(value, attribute))  # type: ignore[arg-type]


def replicate_uid(study: str, vary: Vary, candidate: str, index: int) -> str:
    """The uid of a replicate's run, from the uid of its study."""
    return f"{study}-{vary}-{candidate}-{index}"


def decision_of(attributes: Mapping[str, Any]) -> Decision | None:
    """Return the decision in a study's attributes. Raises StorageError."""
    return read_stored(attributes.get(DECISION))


def read_stored(value: Any) -> Decision | None:
    """Return a decision as an attribute has it; None for None. Raises StorageError."""
    if value is None:
        return None
    try:
        return Decision.model_validate_json(value if isinstance(value, str) else json.dumps(value))
    except ValidationError as error:
        raise StorageError(
            f"its decision cannot be read ({error.errors()[0]['msg']}); was it written by another version?"
        ) from None


def replicates_of(attributes: Mapping[str, Any]) -> list[Replicate]:
    """Return the replicates in a study's attributes, by candidate and index. Raises StorageError."""
    replicates = [Replicate.of(key, value) for key, value in attributes.items() if key.startswith(REPLICATE)]
    return sorted(replicates, key=lambda one: (one.vary, one.candidate, one.index))


def read_decision(engine: Engine, study: str) -> Decision | None:
    """Read a study's decision; None where nothing was replicated. Raises StudyNotFound, StorageError."""
    with tables.reading(engine) as connection:
        return decision_of(tables.read_attributes(connection, tables.read_info(connection, study).id))


def read_replicates(engine: Engine, study: str) -> list[Replicate]:
    """Read a study's replicates, running ones too. Raises StudyNotFound, StorageError."""
    with tables.reading(engine) as connection:
        return replicates_of(tables.read_replicates(connection, tables.read_info(connection, study).id))
