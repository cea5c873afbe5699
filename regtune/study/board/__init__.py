"""Leaderboards: the rows of a study, read from Optuna's database, for `board`, `show`, `best` and `watch`.

The best rows cost milliseconds: plain SQL, without Optuna, TensorFlow or MLflow. Any other order than by rank reads
every record.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Engine

from regtune.errors import InputError, StudyNotFound
from regtune.escaping import printable, shell_word
from regtune.study.board import tables
from regtune.study.board.rows import (
    Board,
    Column,
    Row,
    StudyInfo,
    StudySummary,
    columns,
    finished_trial,
    order_of,
    parameter_names,
    top_and_controls,
)
from regtune.study.progress import Progress, RunningTrial, remaining_seconds


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
    """Read a study's rows in the order of `sort`.

    By rank, complete trials come first, from the best on, then pruned, failed, running and waiting ones. Any other
    order starts with the better end, for parameters with the smallest value; rows without a value come last.

    Args:
        engine: of `storage.open_engine`.
        study: the study's name.
        sort: a column of `COLUMNS` or a searched parameter; a leading `-` reverses the order.
        limit: at most so many rows.

    Raises:
        InputError: for an unknown column.
        StudyNotFound: for an unknown study.
        StorageError: for a database that cannot be read.
    """
    with _reading(engine, study) as (connection, info):
        by = None if sort == "rank" else order_of(info, sort)
        rows = _rows(connection, info, limit=None if by else limit)
        chosen = _sorted(rows, info, by, limit) if by else list(rows)
        names = _parameters(connection, info, chosen, tables.read_controls(connection, info))
    if by and by.name not in (shown := [column.name for column in columns(info, names)]):
        raise InputError(f"--sort {printable(by.name)}: expected one of {', '.join(shown)}")
    return Board(info, chosen, names, by)


def read_top(engine: Engine, study: str, count: int) -> Board:
    """Read the best `count` trials and every control, by rank. Raises StudyNotFound, StorageError."""
    with _reading(engine, study) as (connection, info):
        controls = tables.read_controls(connection, info)
        best = tables.read_heads(connection, info, states=["COMPLETE"], limit=count)
        numbers = controls.union(head.number for head in best)
        rows = list(_rows(connection, info, numbers=numbers))
        return Board(info, top_and_controls(rows, count), _parameters(connection, info, rows, controls))


def read_ended(engine: Engine, study: str) -> set[int]:
    """Read the numbers of the trials that have ended. Raises StudyNotFound, StorageError."""
    with _reading(engine, study) as (connection, info):
        return set(tables.read_numbers_of(connection, info, tables.ENDED))


def read_rows(engine: Engine, study: str, numbers: Collection[int]) -> list[Row]:
    """Read the rows of these trials, by number. Raises StudyNotFound, StorageError."""
    with _reading(engine, study) as (connection, info):
        return sorted(_rows(connection, info, numbers=numbers), key=lambda row: row.number)


def read_trial(engine: Engine, study: str, number: int) -> Row:
    """One trial. Raises StudyNotFound, StorageError."""
    rows = read_rows(engine, study, {number})
    if not rows:
        raise _lacking(study, f"trial {number}")
    return rows[0]


def read_best(engine: Engine, study: str) -> Row:
    """Read the complete trial with the best value. Raises StudyNotFound when none is complete."""
    with _reading(engine, study) as (connection, info):
        best = _best(connection, info)
    if best is None:
        raise _lacking(study, "complete trial yet")
    return best


def _lacking(study: str, what: str) -> StudyNotFound:
    board = f"regtune board {shell_word(study)}"
    return StudyNotFound(f'study "{printable(study)}" has no {what}; try: {board}')


def read_progress(engine: Engine, study: str) -> Progress:
    """Read how far a sweep is, from the database alone; `remaining_seconds` is estimated from its pace."""
    with _reading(engine, study) as (connection, info):
        best = _best(connection, info)
        running = sorted(_rows(connection, info, states=["RUNNING"]), key=lambda row: row.number)
        spans = tables.read_spans(connection, info)
        epochs = tables.count_epochs(connection, info)
    elapsed = covered(spans)
    run_cap, timeout = info.budget.get("run_cap"), info.budget.get("timeout")
    pace = elapsed / info.finished if info.finished else None
    remaining = remaining_seconds(
        run_cap=run_cap, timeout=timeout, finished=info.finished, spent=elapsed, pace=pace
    )
    return Progress(
        study=info.name,
        metric=info.metric,
        goal=info.goal,
        run_cap=run_cap,
        timeout_seconds=timeout,
        complete=info.counts["COMPLETE"],
        pruned=info.counts["PRUNED"],
        failed=info.counts["FAIL"],
        waiting=info.counts["WAITING"],
        elapsed_seconds=elapsed,
        remaining_seconds=remaining if running else None,
        trial_epochs=epochs,
        beside=info.beside,
        best=finished_trial(best) if best else None,
        running=tuple(_running(row, info.metric) for row in running),
    )


def covered(spans: Sequence[tuple[datetime, datetime]]) -> float:
    """Seconds in which at least one span was open: the time a sweep has worked, without pauses."""
    total, until = 0.0, None
    for start, end in sorted(spans):
        begin = start if until is None else max(start, until)
        if end > begin:
            total += (end - begin).total_seconds()
        until = end if until is None else max(until, end)
    return total


def end_without_pauses(created_ms: int | None, spans: Sequence[tuple[datetime, datetime]]) -> int | None:
    """When a study would have ended, had trials run without a pause since its start; Unix milliseconds."""
    return None if created_ms is None else created_ms + round(1000 * covered(spans))


@contextmanager
def _reading(engine: Engine, study: str) -> Iterator[tuple[Connection, StudyInfo]]:
    with tables.reading(engine) as connection:
        yield connection, tables.read_info(connection, study)


def _rows(connection: Connection, info: StudyInfo, **which: Any) -> Iterator[Row]:
    return tables.with_records(connection, info, tables.read_heads(connection, info, **which))


def _best(connection: Connection, info: StudyInfo) -> Row | None:
    return next(_rows(connection, info, states=["COMPLETE"], limit=1), None)


def _parameters(
    connection: Connection, info: StudyInfo, rows: Sequence[Row], controls: Collection[int]
) -> tuple[str, ...]:
    """Names of the searched parameters, also where `rows` are only controls: the first other trial has them all."""
    ended = tables.read_numbers_of(connection, info, tables.ENDED)
    first = [*islice((number for number in ended if number not in controls), 1)]
    return parameter_names([*rows, *_rows(connection, info, numbers=first)])


def _sorted(rows: Iterable[Row], info: StudyInfo, by: Column, limit: int | None) -> list[Row]:
    """The first rows by a column or a parameter, ties in the given order; only `limit` of them are held at a time."""
    searched = by.name not in (column.name for column in columns(info))

    def key(row: Row) -> tuple[bool, bool, Any]:
        value = row.parameter(by.name) if searched else row.cells(info.metric, ())[by.name]
        empty = value is None or (isinstance(value, float) and math.isnan(value))
        return empty != by.largest_first, isinstance(value, str), None if empty else value

    if limit is None:
        return sorted(rows, key=key, reverse=by.largest_first)
    return (heapq.nlargest if by.largest_first else heapq.nsmallest)(limit, rows, key=key)


def _running(row: Row, metric: str) -> RunningTrial:
    record = row.record
    return RunningTrial(
        number=row.number,
        control=row.control,
        mix=row.mix,
        parameters=row.parameters,
        worker=record.worker if record and record.worker is not None else -1,
        epoch=row.epochs,
        max_epochs=record.config.training.max_epochs if record else 0,
        curve=tuple(record.history.get(metric, ())) if record else (),
    )
