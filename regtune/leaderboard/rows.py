"""What is read of a study: its facts, and one row a trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from regtune.config import higher_is_better
from regtune.progress import FinishedTrial
from regtune.record import State, TrialRecord, Value

COLUMNS = ("rank", "number", "state", "metric", "val_accuracy", "gap", "epochs", "seconds", "control")
"""Columns of a board before its searched parameters; each is a key to sort by."""


@dataclass(frozen=True)
class StudyInfo:
    """A study: what it was begun with, as plain JSON, and how many of its trials are in which state."""

    name: str
    uid: str
    spec: Mapping[str, Any]
    budget: Mapping[str, Any]
    data: Mapping[str, Any]
    versions: Mapping[str, Any]
    counts: Mapping[State, int]
    started: datetime | None
    last_active: datetime | None

    @property
    def metric(self) -> str:
        """The figure by which trials are compared."""
        return str(self.spec.get("metric", {}).get("name", "val_cross_entropy"))

    @property
    def goal(self) -> str:
        """`minimize` or `maximize`."""
        found = self.spec.get("metric", {}).get("goal")
        return str(found or ("maximize" if higher_is_better(self.metric) else "minimize"))

    @property
    def finished(self) -> int:
        """Trials that count in the budget: complete or pruned."""
        return self.counts["COMPLETE"] + self.counts["PRUNED"]


@dataclass(frozen=True)
class Row:
    """One trial of a study. `rank` counts complete trials from the best on, from 1; None for all others.

    `value` is the sweep's metric of the kept weights, for a pruned trial that of its last epoch.
    """

    number: int
    state: State
    value: float | None
    record: TrialRecord | None
    rank: int | None = None

    @property
    def accuracy(self) -> float | None:
        """Validation accuracy of the kept weights, or of the last epoch where none are kept."""
        return self._figure("val_accuracy")

    @property
    def gap(self) -> float | None:
        """Validation minus training cross-entropy of the kept weights, in inference mode."""
        return self.record.kept.generalization_gap if self.record and self.record.kept else None

    @property
    def epochs(self) -> int:
        """Epochs trained."""
        return self.record.epochs if self.record else 0

    @property
    def seconds(self) -> float:
        """Time from start to end."""
        return self.record.seconds if self.record else 0.0

    @property
    def control(self) -> str | None:
        """The control's name, if the trial is one."""
        return self.record.control if self.record else None

    @property
    def parameters(self) -> Mapping[str, Value]:
        """Searched parameters as displayed; an optional one that is off is 0."""
        return self.record.parameters if self.record else {}

    @property
    def mix(self) -> str:
        """The techniques in use, for people."""
        return self.record.config.mix if self.record else ""

    def figure(self, name: str) -> float | None:
        """One of METRICS of the kept weights, or of the last epoch where none are kept."""
        return self._figure(name)

    def _figure(self, name: str) -> float | None:
        if self.record is None:
            return None
        if self.record.kept:
            return self.record.kept.figures.get(name)
        points = self.record.history.get(name, ())
        return points[-1] if points else None

    def cells(self, metric: str, names: Sequence[str]) -> dict[str, Any]:
        """The row as plain values in the order of `COLUMNS`, then `names`; None where there is nothing."""
        return {
            "rank": self.rank,
            "number": self.number,
            "state": self.state,
            metric: self.value,
            "val_accuracy": self.accuracy,
            "gap": self.gap,
            "epochs": self.epochs,
            "seconds": round(self.seconds, 3),
            "control": self.control,
            **{name: self.parameters.get(name) for name in names},
        }


@dataclass(frozen=True)
class StudySummary:
    """A study in the list of all."""

    info: StudyInfo
    best: Row | None = None


def finished_trial(row: Row) -> FinishedTrial:
    """The row as a display takes it."""
    return FinishedTrial(
        number=row.number,
        state=row.state,
        value=row.value,
        accuracy=row.accuracy,
        epochs=row.epochs,
        seconds=row.seconds,
        mix=row.mix,
        parameters=row.parameters,
        control=row.control,
        end_reason=row.record.end_reason if row.record else None,
        message=row.record.message if row.record else None,
    )


def parameter_names(rows: Sequence[Row]) -> tuple[str, ...]:
    """Every searched parameter of `rows`, in the order in which the trials have them."""
    return tuple(dict.fromkeys(name for row in rows for name in row.parameters))
