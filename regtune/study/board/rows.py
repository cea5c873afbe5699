"""The facts of a study, one row per trial, and the winner against no technique."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from regtune.config.trial import RegularizationConfig, TrialConfig, higher_is_better
from regtune.study.progress import FinishedTrial
from regtune.study.record import State, TrialRecord, Value

STATES: tuple[State, ...] = ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING", "FOREIGN")
"""States in the order of a board."""


@dataclass(frozen=True)
class Column:
    """A column of a board. name: the one name of the table, CSV, JSON and `--sort`.

    also: what `--sort` takes for it besides, such as MLflow's name of the same figure. largest_first: which end is the
    better one.
    """

    name: str
    also: tuple[str, ...] = ()
    largest_first: bool = False


COLUMNS = (
    Column("rank"),
    Column("trial", ("number",)),
    Column("state"),
    Column("metric"),
    Column("val_accuracy", ("best/val_accuracy",), largest_first=True),
    Column("gap", ("best/generalization_gap",)),
    Column("sparsity", ("weights/sparsity",), largest_first=True),
    Column("l2_norm", ("weights/l2_norm",)),
    Column("epochs"),
    Column("seconds"),
    Column("control"),
)
"""Columns of a board before its searched parameters. The metric's own name and end are the study's."""


_STARTED_WITH = ("data", "versions", "spec")


@dataclass(frozen=True)
class StudyInfo:
    """A study: what it was started with, as plain JSON, and how many of its trials are in which state.

    id: in the database. foreign: ids in the database of the trials that regtune has not trained; they count for
    nothing. beside: how many of the complete and pruned ones are controls beside a grid. file: path of the sweep file
    as last given; empty where unknown.
    """

    id: int
    name: str
    uid: str
    spec: Mapping[str, Any]
    budget: Mapping[str, Any]
    data: Mapping[str, Any]
    versions: Mapping[str, Any]
    counts: Mapping[State, int]
    started: datetime | None
    last_active: datetime | None
    foreign: tuple[int, ...] = ()
    beside: int = 0
    file: str = ""

    @property
    def metric(self) -> str:
        return str(self.spec.get("metric", {}).get("name", "val_cross_entropy"))

    @property
    def goal(self) -> str:
        goal = self.spec.get("metric", {}).get("goal")
        return str(goal or ("maximize" if higher_is_better(self.metric) else "minimize"))

    @property
    def trials(self) -> int:
        return sum(self.counts.values())

    @property
    def finished(self) -> int:
        """Trials that count in the budget: complete or pruned, of a grid its points."""
        return self.counts["COMPLETE"] + self.counts["PRUNED"] - self.beside

    def to_json(self) -> dict[str, Any]:
        return {
            "study": self.name,
            "uid": self.uid,
            "metric": self.metric,
            "goal": self.goal,
            "counts": dict(self.counts),
            "budget": dict(self.budget),
            "started": self.started.isoformat() if self.started else None,
            "last_active": self.last_active.isoformat() if self.last_active else None,
            "data": dict(self.data),
            "versions": dict(self.versions),
            "spec": dict(self.spec),
        }


@dataclass(frozen=True)
class Row:
    """One trial of a study. `rank` counts complete trials from the best on, from 1; None for all others.

    `value` is the sweep's metric of the kept weights, for a pruned trial that of its last epoch. `refused` says why a
    foreign trial was not trained, if regtune was asked to.
    """

    number: int
    state: State
    value: float | None
    record: TrialRecord | None
    rank: int | None = None
    refused: str | None = None

    @property
    def accuracy(self) -> float | None:
        """Validation accuracy of the kept weights, or of the last epoch where none are kept."""
        return self.record.figure("val_accuracy") if self.record else None

    @property
    def epochs(self) -> int:
        return self.record.epochs if self.record else 0

    @property
    def seconds(self) -> float:
        return self.record.seconds if self.record else 0.0

    @property
    def control(self) -> str | None:
        return self.record.control if self.record else None

    @property
    def parameters(self) -> Mapping[str, Value]:
        """Searched parameters as displayed; an optional one that is off is 0."""
        return self.record.parameters if self.record else {}

    @property
    def mix(self) -> str:
        return self.record.config.mix if self.record else ""

    def parameter(self, name: str) -> Value | None:
        """A searched parameter; one that a control was not given is read from its configuration."""
        value = self.parameters.get(name)
        return parameter_of(self.record.config, name) if value is None and self.record else value

    def cells(self, metric: str, names: Sequence[str]) -> dict[str, Any]:
        """The row as plain values in the order of `COLUMNS`, then `names`; None where there is nothing.

        A waiting trial has no figures, also when it was begun before and begins anew; nor has one that does so now,
        until it is as far as it was, or a foreign one.
        """
        again = self.record is not None and self.record.again is not None
        waits = again or self.state in ("WAITING", "FOREIGN")
        shown = None if waits else self.record
        kept = shown.kept if shown else None
        return {
            "rank": self.rank,
            "trial": self.number,
            "state": self.state,
            metric: None if waits else self.value,
            "val_accuracy": None if waits else self.accuracy,
            "gap": kept.generalization_gap if kept else None,
            "sparsity": kept.sparsity if kept else None,
            "l2_norm": kept.l2_norm if kept else None,
            "epochs": None if waits else self.epochs,
            "seconds": None if waits else round(self.seconds, 3),
            "control": self.control,
            **{name: self.parameter(name) for name in names},
        }

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "record": self.record.to_json() if self.record else None}


@dataclass(frozen=True)
class Board:
    """Rows of a study. parameters: the searched ones. by: the column they are ordered by, None for the rank."""

    info: StudyInfo
    rows: list[Row]
    parameters: tuple[str, ...]
    by: Column | None = None

    @property
    def best(self) -> Row | None:
        return next((row for row in self.rows if row.rank == 1), None)

    @property
    def columns(self) -> list[str]:
        return [column.name for column in columns(self.info, self.parameters)]

    def cells(self) -> list[dict[str, Any]]:
        return [row.cells(self.info.metric, self.parameters) for row in self.rows]


@dataclass(frozen=True)
class StudySummary:
    info: StudyInfo
    best: Row | None = None

    def to_json(self) -> dict[str, Any]:
        facts = {name: value for name, value in self.info.to_json().items() if name not in _STARTED_WITH}
        best = self.best and {
            "number": self.best.number,
            "value": self.best.value,
            "val_accuracy": self.best.accuracy,
        }
        return {**facts, "best": best}


def finished_trial(row: Row) -> FinishedTrial:
    return FinishedTrial.of(row.number, row.state, row.value, row.record)


def columns(info: StudyInfo, names: Sequence[str] = ()) -> list[Column]:
    """The columns of a study's board, as `Row.cells` has them: COLUMNS with the study's own metric, then `names`."""
    metric = Column(info.metric, ("metric", f"best/{info.metric}"), info.goal == "maximize")
    shown = [metric if column.name == "metric" else column for column in COLUMNS]
    return [
        *(column for column in shown if column is metric or column.name != info.metric),
        *(Column(name) for name in names),
    ]


def order_of(info: StudyInfo, sort: str) -> Column:
    """What to sort by, and from which end: a column by any of its names, or else a parameter; a `-` turns it round."""
    typed = sort.removeprefix("-")
    column = next((one for one in columns(info) if typed in (one.name, *one.also)), Column(typed))
    return replace(column, largest_first=column.largest_first != sort.startswith("-"))


def parameter_names(rows: Sequence[Row]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for row in rows for name in row.parameters))


def parameter_of(config: TrialConfig, name: str) -> Value | None:
    """What `config` has for a searched parameter (`dropout`, `dropout.2`, `hidden`, `patience`).

    None where there is no one value for it: layers that differ, or early stopping that is off.
    """
    key, _, layer = name.partition(".")
    if key in RegularizationConfig.model_fields:
        values: tuple[Value, ...] = getattr(config.regularization, key)
        if layer:
            return values[int(layer) - 1] if layer.isdigit() and 0 < int(layer) <= len(values) else None
        return values[0] if len(set(values)) == 1 else None
    if key == "hidden":
        return "-".join(str(width) for width in config.model.hidden)
    for block in (config.model, config.training, config.early_stopping):
        if block is not None and key in type(block).model_fields:
            value: Value = getattr(block, key)
            return value
    return None


@dataclass(frozen=True)
class Comparison:
    """The best trial and the control `none`, one run each.

    value_by, accuracy_by: value and validation accuracy of the best trial minus those of the control.
    standard_error: of one validation accuracy, sqrt(p (1 - p) / n) over the n validation
    images; None where n is unknown.
    """

    metric: str
    winner: Row
    baseline: Row | None
    value_by: float | None
    accuracy_by: float | None
    standard_error: float | None


def compare(board: Board) -> Comparison | None:
    """Compare the best trial with the control `none`; None when no trial is complete."""
    winner, info = board.best, board.info
    if winner is None:
        return None
    baseline = next((row for row in board.rows if row.rank and row.control == "none"), None)
    images, accuracy = info.data.get("validation"), winner.accuracy
    standard_error = value_by = accuracy_by = None
    if isinstance(images, int) and images > 0 and accuracy is not None:
        standard_error = math.sqrt(accuracy * (1 - accuracy) / images)
    if baseline is not None and baseline is not winner:
        value_by = (winner.value or 0.0) - (baseline.value or 0.0)
        if accuracy is not None and baseline.accuracy is not None:
            accuracy_by = accuracy - baseline.accuracy
    return Comparison(info.metric, winner, baseline, value_by, accuracy_by, standard_error)


def top_and_controls(rows: Sequence[Row], count: int) -> list[Row]:
    """Of `rows`, which are in the order of rank: the best `count`, and every control."""
    return [row for place, row in enumerate(rows) if (place < count and row.rank) or row.control]
