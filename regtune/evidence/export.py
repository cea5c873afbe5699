"""The export of a study: all that the report shows, as JSON of a few hundred kilobytes at most.

A page is drawn from an export alone, so a committed export regenerates its page and its figures without the study.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from sqlalchemy import Engine

from regtune.config.sweepfile import SweepSpec
from regtune.config.sweepfile.parameters import Range
from regtune.config.trial import Frozen
from regtune.errors import InputError, RegtuneError
from regtune.escaping import printable
from regtune.evidence.diagnosis import Diagnosis, read_diagnosis
from regtune.search import Space
from regtune.study.board import read_board, read_progress
from regtune.study.decision import Decision, Replicate, Vary, read_decision, read_replicates
from regtune.study.progress import Row, StudyInfo
from regtune.study.record import EndReason, State, TrialRecord, Value

FORMAT: Literal[1] = 1
SUFFIX = ".json"
MOST_TRIALS = 400
"""Trials in an export, in the order of the board; of larger studies the others are only counted."""
MOST_CURVES = 100
"""Trials of one state with their learning curves."""
CURVES = ("cross_entropy", "val_cross_entropy", "val_accuracy")
"""Learning curves of an export, besides that of the ranked metric."""


class SearchedParameter(Frozen):
    """A searched parameter. log: over a logarithmic range, `low` to `high`. optional: 0 is off. takes: for people."""

    name: str
    takes: str
    log: bool = False
    optional: bool = False
    low: float | None = None
    high: float | None = None
    values: tuple[Value, ...] = ()


class StudyFacts(Frozen):
    """What a study was started with and how far it is. Times are ISO 8601 in UTC."""

    name: str
    uid: str
    file: str
    description: str
    metric: str
    goal: Literal["minimize", "maximize"]
    counts: dict[State, int]
    started: str | None
    last_active: str | None
    spec: dict[str, Any]
    budget: dict[str, Any]
    data: dict[str, Any]
    versions: dict[str, Any]
    space: tuple[SearchedParameter, ...]


class ExportedTrial(Frozen):
    """A trial. figures: of the kept weights. curves: one value an epoch, of six digits; None where it is not finite."""

    number: int
    state: State
    rank: int | None
    value: float | None
    control: str | None
    mix: str
    parameters: dict[str, Value | None]
    epochs: int
    max_epochs: int
    kept_epoch: int | None
    seconds: float
    started_ms: int | None
    ended_ms: int | None
    end_reason: EndReason | None
    message: str | None
    figures: dict[str, float]
    curves: dict[str, list[float | None]] = Field(default_factory=dict)


class ExportedReplicate(Frozen):
    """A replicate that has ended. figures: of its kept weights; empty where it kept none."""

    candidate: str
    vary: Vary
    index: int
    end_reason: EndReason
    epochs: int
    kept_epoch: int | None
    seconds: float
    figures: dict[str, float]


class MeanCurve(Frozen):
    """Learning curves of a candidate, means over the replicates that still trained, while at least half of them did.

    spread: standard deviations between replicates. still: how many of them trained in each epoch. kept_epoch: mean
    epoch of the kept weights.
    """

    candidate: str
    replicates: int
    kept_epoch: float
    means: dict[str, list[float]]
    spread: dict[str, list[float]]
    still: tuple[int, ...] = ()


class Cost(Frozen):
    """What some trainings took. seconds: of training, of all workers together."""

    what: str
    trainings: int
    epochs: int
    seconds: float


class Export(Frozen):
    """A study with its trials, its decision and its diagnosis.

    trials: in the order of the board. left_out: how many more there are. worked_seconds: in which the search ran.
    saved_epochs: epochs that pruned trials did not train, of those they might have.
    """

    regtune_export: Literal[1] = FORMAT
    study: StudyFacts
    trials: tuple[ExportedTrial, ...]
    left_out: int
    worked_seconds: float
    saved_epochs: int
    costs: tuple[Cost, ...]
    decision: Decision | None
    replicates: tuple[ExportedReplicate, ...]
    curves: tuple[MeanCurve, ...]
    diagnosis: Diagnosis | None

    def to_json(self) -> dict[str, Any]:
        """Return plain lists, numbers and strings."""
        return self.model_dump(mode="json")


def export_of(engine: Engine, study: str) -> Export:
    """Export a study. Raises StudyNotFound, StorageError."""
    board = read_board(engine, study)
    info, rows = board.info, board.rows
    decision, replicates = read_decision(engine, study), read_replicates(engine, study)
    counted = defaultdict[str, int](int)
    trials = []
    for row in rows[:MOST_TRIALS]:
        counted[row.state] += 1
        names = {*CURVES, info.metric} if counted[row.state] <= MOST_CURVES or row.control else ()
        trials.append(_trial(row, info.metric, board.parameters, names))
    ended = [one for one in replicates if one.record.end_reason]
    return Export(
        study=_facts(info),
        trials=tuple(trials),
        left_out=len(rows) - len(trials),
        worked_seconds=round(read_progress(engine, study).elapsed_seconds, 1),
        saved_epochs=sum(row.max_epochs - row.epochs for row in rows if row.state == "PRUNED"),
        costs=tuple(_costs(rows, ended)),
        decision=decision,
        replicates=tuple(map(_replicate, ended)),
        curves=tuple(_mean_curves(ended, decision, info.metric)),
        diagnosis=read_diagnosis(engine, study),
    )


def load_export(path: Path) -> Export:
    """Read what `regtune report STUDY --json` printed. Raises InputError."""
    again = "expected what `regtune report STUDY --json` prints"
    try:
        return Export.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "JSON"
        raise InputError(f"{printable(str(path))}: {again}; {where}: {first['msg']}") from None
    except OSError as error:
        raise InputError(f"{printable(str(path))}: cannot be read ({error.strerror}); {again}") from None


def _facts(info: StudyInfo) -> StudyFacts:
    facts = info.to_json()
    return StudyFacts(
        name=info.name,
        file=info.file,
        description=str(info.spec.get("description") or ""),
        space=tuple(_space(info)),
        **{name: facts[name] for name in StudyFacts.model_fields if name in facts},
    )


def _space(info: StudyInfo) -> Iterable[SearchedParameter]:
    """The searched parameters; none where another version wrote the study's sweep file."""
    try:
        columns = Space(SweepSpec.from_dict({**info.spec, **info.budget})).columns
    except RegtuneError:
        return
    for column in columns:
        parameter, values = column.parameter, tuple(column.choices or ())
        limits: dict[str, Any] = {"values": values}
        if isinstance(parameter, Range):
            limits = {"low": float(parameter.min), "high": float(parameter.max), "log": parameter.log}
        yield SearchedParameter(name=column.name, takes=column.takes, optional=column.optional, **limits)


def _trial(row: Row, metric: str, parameters: Sequence[str], names: Iterable[str]) -> ExportedTrial:
    cells, record = row.cells(metric, parameters), row.record
    return ExportedTrial(
        number=row.number,
        state=row.state,
        rank=row.rank,
        value=_finite(cells[metric]),
        control=row.control,
        mix=row.mix,
        parameters={name: cells[name] for name in parameters},
        epochs=row.epochs,
        max_epochs=row.max_epochs,
        kept_epoch=record.kept.epoch if record and record.kept else None,
        seconds=round(row.seconds, 3),
        started_ms=record.started_ms if record else None,
        ended_ms=record.ended_ms if record else None,
        end_reason=record.end_reason if record else None,
        message=record.message if record else None,
        figures=_figures(record) if record else {},
        curves={name: list(map(_short, row.curve(name))) for name in sorted(names)},
    )


def _replicate(one: Replicate) -> ExportedReplicate:
    record = one.record
    assert record.end_reason is not None
    return ExportedReplicate(
        candidate=one.candidate,
        vary=one.vary,
        index=one.index,
        end_reason=record.end_reason,
        epochs=record.epochs,
        kept_epoch=record.kept.epoch if record.kept else None,
        seconds=round(record.seconds, 3),
        figures=_figures(record),
    )


def _figures(record: TrialRecord) -> dict[str, float]:
    """The figures of the kept weights by one name each."""
    kept = record.kept
    if kept is None:
        return {}
    validation = {name: value for name, value in kept.figures.items() if name.startswith("val_")}
    names = ("train_cross_entropy", "train_accuracy", "generalization_gap", "sparsity", "l2_norm")
    whole = {**validation, **{name: getattr(kept, name) for name in names}, **kept.extra}
    return {name: short for name, value in whole.items() if (short := _short(value)) is not None}


def _costs(rows: Sequence[Row], replicates: Sequence[Replicate]) -> Iterable[Cost]:
    kinds = {"complete trials": "COMPLETE", "pruned trials": "PRUNED", "failed trials": "FAIL"}
    spent: Mapping[str, list[Any]] = {
        **{what: [row for row in rows if row.state == state] for what, state in kinds.items()},
        "replicates": [one.record for one in replicates],
    }
    for what, trained in spent.items():
        if trained:
            epochs, seconds = sum(one.epochs for one in trained), sum(one.seconds for one in trained)
            yield Cost(what=what, trainings=len(trained), epochs=epochs, seconds=round(seconds, 1))


def _mean_curves(
    replicates: Sequence[Replicate], decision: Decision | None, metric: str
) -> Iterable[MeanCurve]:
    by_candidate = defaultdict[str, list[TrialRecord]](list)
    for one in replicates:
        if decision and one.vary == decision.vary and one.record.kept:
            by_candidate[one.candidate].append(one.record)
    for candidate, records in by_candidate.items():
        lengths = sorted((record.epochs for record in records), reverse=True)
        epochs = range(lengths[(len(records) - 1) // 2])
        still = tuple(sum(length > epoch for length in lengths) for epoch in epochs)
        means, spread = dict[str, list[float]](), dict[str, list[float]]()
        for name in sorted({*CURVES, metric}):
            columns = [
                [record.history[name][epoch] for record in records if record.epochs > epoch]
                for epoch in epochs
            ]
            if all(math.isfinite(value) for column in columns for value in column):
                means[name] = [_digits(statistics.fmean(column)) for column in columns]
                spread[name] = [
                    _digits(statistics.stdev(column)) if len(column) > 1 else 0.0 for column in columns
                ]
        kept = statistics.fmean(record.kept.epoch for record in records if record.kept)
        yield MeanCurve(
            candidate=candidate,
            replicates=len(records),
            kept_epoch=_digits(kept),
            means=means,
            spread=spread,
            still=still,
        )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _short(value: float | None) -> float | None:
    """The value with six significant digits; None where it is not finite."""
    return None if value is None or not math.isfinite(value) else _digits(value)


def _digits(value: float) -> float:
    return float(f"{value:.6g}")
