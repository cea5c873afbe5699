"""Leaderboards: the rows of a study, read from Optuna's database, for `board`, `show`, `best` and `watch`.

The best rows cost milliseconds: plain SQL, without Optuna, TensorFlow or MLflow. Any other order than by rank reads
every record.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from typing import Any, NoReturn

from sqlalchemy import Connection, Engine

from regtune.errors import InputError, StudyNotFound
from regtune.escaping import printable, shell_word
from regtune.study import tables
from regtune.study.deciding import deciding_of, read_replicates, under_way
from regtune.study.decision_text import sentence
from regtune.study.progress import Observer, Progress, Row, StudyInfo


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
    Column("decision"),
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


@dataclass(frozen=True)
class Board:
    """Rows of a study. parameters: the searched ones. by: the column they are ordered by, None for the rank."""

    info: StudyInfo
    rows: list[Row]
    parameters: tuple[str, ...]
    by: Column | None = None

    @property
    def best(self) -> Row | None:
        """The best of the search; a control outside the search space is not, whatever its rank."""
        return min((row for row in self.rows if row.rank and row.searched), key=_rank, default=None)

    @property
    def columns(self) -> list[str]:
        return [*(column.name for column in columns(self.info)), *self.parameters]

    def cells(self) -> list[dict[str, Any]]:
        return [row.cells(self.info.metric, self.parameters) for row in self.rows]


@dataclass(frozen=True)
class StudySummary:
    info: StudyInfo
    best: Row | None

    def to_json(self) -> dict[str, Any]:
        facts = self.info.to_json()
        for started_with in ("data", "versions", "spec"):
            del facts[started_with]
        facts["decision"] = self.info.decision and sentence(self.info.decision)
        best = self.best
        of_best = best and {"number": best.number, "value": best.value, "val_accuracy": best.accuracy}
        return {**facts, "best": of_best}


@dataclass(frozen=True)
class Comparison:
    """The best trial of the search beside the controls, a single run each: what one run scored, not who is better.

    baseline: the control `none`; None where it is not complete. above: the best control outside the search space that
    ranks above the winner. standard_error: of the winner's value where that is a validation accuracy, from the n
    validation images alone, sqrt(p (1 - p) / n); None for any other metric, whose error a single run does not tell.
    """

    metric: str
    winner: Row
    baseline: Row | None
    above: Row | None
    standard_error: float | None


def compare(board: Board) -> Comparison | None:
    """Set the best trial of the search beside the controls; None when no trial of the search is complete."""
    winner = board.best
    if winner is None:
        return None
    ranked = sorted((row for row in board.rows if row.rank), key=_rank)
    baseline = next((row for row in ranked if row.control == "none"), None)
    images, accuracy, error = board.info.data.get("validation"), winner.value, None
    if (
        board.info.metric == "val_accuracy"
        and isinstance(images, int)
        and images > 0
        and accuracy is not None
    ):
        error = math.sqrt(accuracy * (1 - accuracy) / images)
    above = ranked[0] if ranked[0] != winner else None
    return Comparison(board.info.metric, winner, baseline, above, error)


def columns(info: StudyInfo) -> list[Column]:
    """The columns of a study's board, as `Row.cells` has them: COLUMNS with the study's own metric."""
    metric = Column(info.metric, ("metric", f"best/{info.metric}"), info.goal == "maximize")
    shown = [metric if column.name == "metric" else column for column in COLUMNS]
    return [column for column in shown if column is metric or column.name != info.metric]


def order_of(info: StudyInfo, sort: str) -> Column:
    """What to sort by, and from which end: a column by any of its names, or else a parameter; a `-` turns it round."""
    typed = sort.removeprefix("-")
    column = next((one for one in columns(info) if typed in (one.name, *one.also)), Column(typed))
    return replace(column, largest_first=column.largest_first != sort.startswith("-"))


def list_studies(engine: Engine) -> list[StudySummary]:
    """List regtune's studies, the last active first. Raises StorageError."""
    with tables.reading(engine) as connection:
        infos = [tables.read_info(connection, name) for name in tables.studies_of_regtune(connection)]
        summaries = [StudySummary(info, _best(connection, info)) for info in infos]
    never = datetime.min.replace(tzinfo=UTC)
    return sorted(summaries, key=lambda summary: summary.info.last_active or never, reverse=True)


def read_study(engine: Engine, study: str) -> StudyInfo:
    """Read what a study was started with, and its counts. Raises StudyNotFound, StorageError."""
    with _reading(engine, study) as (_, info):
        return info


def read_board(engine: Engine, study: str, sort: str = "rank", limit: int | None = None) -> Board:
    """Read at most `limit` of a study's rows. Raises InputError for an unknown column, StudyNotFound, StorageError.

    sort: a column of `COLUMNS` or a searched parameter; a leading `-` reverses the order. By rank, complete trials come
    first, from the best on, then pruned, failed, running and waiting ones. Any other order starts with the better end,
    for parameters with the smallest value; rows without a value come last.
    """
    with _reading(engine, study) as (connection, info):
        by = None if sort == "rank" else order_of(info, sort)
        rows = list(_rows(connection, info, limit=None if by else limit))
        if by:
            rows = _sorted(rows, info, by)[:limit]
        parameters = _parameters(connection, info, rows, tables.read_controls(connection, info))
    board = Board(info, rows, parameters, by)
    if by and by.name not in board.columns:
        raise InputError(f"--sort {printable(by.name)}: expected one of {', '.join(board.columns)}")
    return board


def read_top(engine: Engine, study: str, count: int) -> Board:
    """Read the best `count` trials, the best of the search, every control and every candidate of the decision, by rank.

    Raises StudyNotFound, StorageError.
    """
    with _reading(engine, study) as (connection, info):
        controls = tables.read_controls(connection, info)
        heads = tables.read_heads(connection, info, states=["COMPLETE"], limit=count)
        heads += tables.read_heads(connection, info, states=["COMPLETE"], searched=True, limit=1)
        best = {head.number for head in heads}
        rows = list(_rows(connection, info, numbers=controls | best | {*info.standings}))
        parameters = _parameters(connection, info, rows, controls)
    return Board(info, [row for row in rows if row.number in best or row.control or row.standing], parameters)


def read_ended(engine: Engine, study: str) -> set[int]:
    """Read the numbers of the trials that have ended. Raises StudyNotFound, StorageError."""
    with _reading(engine, study) as (connection, info):
        return set(tables.read_ended(connection, info))


def read_ended_replicates(engine: Engine, study: str) -> list[Row]:
    """Read the replicates that have ended. Raises StudyNotFound, StorageError."""
    with _reading(engine, study) as (connection, info):
        return [row for row in read_replicates(connection, info) if row.state != "RUNNING"]


def read_rows(engine: Engine, study: str, numbers: Collection[int]) -> list[Row]:
    """Read the rows of these trials, by number. Raises StudyNotFound, StorageError."""
    with _reading(engine, study) as (connection, info):
        return sorted(_rows(connection, info, numbers=numbers), key=lambda row: row.number)


def read_trial(engine: Engine, study: str, number: int) -> Row:
    """Read one trial. Raises StudyNotFound, StorageError."""
    rows = read_rows(engine, study, {number})
    return rows[0] if rows else _refuse(study, f"trial {number}")


def read_best(engine: Engine, study: str) -> Row:
    """Read the complete trial of the search with the best value.

    A control outside the search space is none of the search, whatever its rank. Raises StudyNotFound where none is.
    """
    with _reading(engine, study) as (connection, info):
        return _best(connection, info) or _refuse(study, "complete trial of its search yet")


def _refuse(study: str, missing: str) -> NoReturn:
    board = f"regtune board {shell_word(study)}"
    raise StudyNotFound(f'study "{printable(study)}" has no {missing}; try: {board}')


def read_progress(engine: Engine, study: str) -> Progress:
    """Read how far a sweep is, from the database alone. Raises StudyNotFound, StorageError."""
    with _reading(engine, study) as (connection, info):
        best = _best(connection, info)
        running = sorted(_rows(connection, info, states=["RUNNING"]), key=lambda row: row.number)
        replicates = [] if running else under_way(read_replicates(connection, info))
        elapsed = covered(tables.read_spans(connection, info))
        epochs = tables.count_epochs(connection, info)
    return Progress(
        study=info.name,
        metric=info.metric,
        goal=info.goal,
        run_cap=info.budget.get("run_cap"),
        timeout_seconds=info.budget.get("timeout"),
        complete=info.counts["COMPLETE"],
        pruned=info.counts["PRUNED"],
        failed=info.counts["FAIL"],
        waiting=info.counts["WAITING"],
        elapsed_seconds=elapsed,
        trial_epochs=epochs,
        beside=info.beside,
        best=best,
        running=(*running, *(row for row in replicates if row.state == "RUNNING")),
        deciding=deciding_of(info, replicates),
    )


def follow(
    engine: Engine, study: str, observer: Observer, running: Callable[[], bool], wait: Callable[[], object]
) -> None:
    """Tell `observer` what happens in `study` while it is `running`; trials that had ended before are not told.

    wait: called between two readings; when it returns something true, following ends.
    """
    known = read_ended(engine, study)
    replicated = {(row.replicate, row.vary) for row in read_ended_replicates(engine, study)}
    while True:
        goes_on, progress = running(), read_progress(engine, study)
        observer.progress(progress)
        now = read_ended(engine, study)
        for row in read_rows(engine, study, now - known):
            observer.finished(row, progress)
        known = now
        for row in read_ended_replicates(engine, study):
            if (row.replicate, row.vary) not in replicated:
                replicated.add((row.replicate, row.vary))
                observer.finished(row, progress)
        if not goes_on or wait():
            return


def covered(spans: Iterable[tuple[datetime, datetime]]) -> float:
    """Seconds in which at least one span was open: the time a sweep has worked, without pauses."""
    total, until = 0.0, datetime.min.replace(tzinfo=UTC)
    for start, end in sorted(spans):
        total += max(0.0, (end - max(start, until)).total_seconds())
        until = max(until, end)
    return total


@contextmanager
def _reading(engine: Engine, study: str) -> Iterator[tuple[Connection, StudyInfo]]:
    with tables.reading(engine) as connection:
        yield connection, tables.read_info(connection, study)


def _rows(connection: Connection, info: StudyInfo, **which: Any) -> Iterator[Row]:
    standings = info.standings
    for row in tables.with_records(connection, info, tables.read_heads(connection, info, **which)):
        yield replace(row, standing=standings[row.number]) if row.number in standings else row


def _best(connection: Connection, info: StudyInfo) -> Row | None:
    return next(_rows(connection, info, states=["COMPLETE"], searched=True, limit=1), None)


def _rank(row: Row) -> int:
    return row.rank or 0


def _parameters(
    connection: Connection, info: StudyInfo, rows: Sequence[Row], controls: Collection[int]
) -> tuple[str, ...]:
    """Names of the searched parameters, also where `rows` are only controls: the first other trial has them all."""
    ended = tables.read_ended(connection, info)
    first = [*islice((number for number in ended if number not in controls), 1)]
    every = (*rows, *_rows(connection, info, numbers=first))
    return tuple(dict.fromkeys(name for row in every for name in row.parameters))


def _sorted(rows: Sequence[Row], info: StudyInfo, by: Column) -> list[Row]:
    """Sort by a column or a parameter, ties in the given order."""
    searched = by.name not in (column.name for column in columns(info))

    def key(row: Row) -> tuple[bool, bool, Any]:
        value = row.parameter(by.name) if searched else row.cells(info.metric, ())[by.name]
        empty = value is None or (isinstance(value, float) and math.isnan(value))
        return empty != by.largest_first, isinstance(value, str), None if empty else value

    return sorted(rows, key=key, reverse=by.largest_first)
