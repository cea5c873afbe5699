"""Rows of a study, read from Optuna's database alone: what `board`, `show`, `best` and `watch` see.

Reading a study costs milliseconds: plain SQL, without Optuna, TensorFlow or MLflow.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime

from sqlalchemy import Connection, Engine

from regtune.errors import InputError, StudyNotFound
from regtune.escaping import printable, shell_word
from regtune.study.board.comparison import Comparison, compare, top_and_controls
from regtune.study.board.order import Heads
from regtune.study.board.rows import (
    COLUMNS,
    Column,
    Row,
    StudyInfo,
    StudySummary,
    columns,
    finished_trial,
    order_of,
    parameter_names,
    parameter_of,
)
from regtune.study.board.tables import (
    count_epochs,
    ended_numbers,
    read_info,
    read_spans,
    reading,
    studies_of_regtune,
    with_records,
)
from regtune.study.progress import Progress, RunningTrial, remaining_seconds

__all__ = [
    "COLUMNS",
    "Column",
    "Comparison",
    "Row",
    "StudyInfo",
    "StudySummary",
    "columns",
    "compare",
    "covered",
    "end_without_pauses",
    "finished_trial",
    "list_studies",
    "order_of",
    "parameter_names",
    "parameter_of",
    "read_best",
    "read_board",
    "read_ended",
    "read_parameters",
    "read_progress",
    "read_rows",
    "read_study",
    "read_top",
    "read_trial",
    "top_and_controls",
]


def list_studies(engine: Engine) -> list[StudySummary]:
    """All studies that regtune made, the last active first. Raises StorageError."""
    with reading(engine) as connection:
        names = studies_of_regtune(connection)
        found = []
        for name in names:
            study_id, info = read_info(connection, name)
            found.append(StudySummary(info, _best(connection, study_id, info)))
    never = datetime.min.replace(tzinfo=UTC)
    return sorted(found, key=lambda summary: summary.info.last_active or never, reverse=True)


def read_study(engine: Engine, study: str) -> StudyInfo:
    """What a study was begun with, and its counts. Raises StudyNotFound, StorageError."""
    with reading(engine) as connection:
        return read_info(connection, study)[1]


def read_board(engine: Engine, study: str, sort: str = "rank", limit: int | None = None) -> list[Row]:
    """Rows of a study in the order of `sort`: a column of `COLUMNS`, or a searched parameter.

    The better end comes first, of parameters the smallest; a leading `-` turns that round. By rank: complete
    trials from the best on, then pruned, failed, running and waiting ones. Rows without a value for the
    column come last. limit: at most so many rows.
    Raises InputError for an unknown column, StudyNotFound, StorageError.
    """
    with reading(engine) as connection:
        study_id, info = read_info(connection, study)
        heads = Heads(connection, study_id, info)
        found = heads.ranked(limit) if sort == "rank" else _sorted(connection, heads, sort, info, limit)
        return with_records(connection, found, study)


def read_parameters(engine: Engine, study: str, rows: Sequence[Row]) -> tuple[str, ...]:
    """The searched parameters, also where `rows` are only controls. Raises StudyNotFound, StorageError."""
    with reading(engine) as connection:
        study_id, info = read_info(connection, study)
        searched = Heads(connection, study_id, info).first_of_the_search()
        return parameter_names([*rows, *with_records(connection, searched, study)])


def read_top(engine: Engine, study: str, count: int) -> tuple[list[Row], tuple[str, ...]]:
    """By rank the best `count` trials and every control, and the searched parameters. Raises as `read_board`."""
    with reading(engine) as connection:
        study_id, info = read_info(connection, study)
        heads = Heads(connection, study_id, info)
        rows = top_and_controls(with_records(connection, heads.top_and_controls(count), study), count)
        searched = with_records(connection, heads.first_of_the_search(), study)
    return rows, parameter_names([*rows, *searched])


def read_ended(engine: Engine, study: str) -> set[int]:
    """Numbers of the trials that have come to their end. Raises StudyNotFound, StorageError."""
    with reading(engine) as connection:
        study_id, info = read_info(connection, study)
        return ended_numbers(connection, study_id, info)


def read_rows(engine: Engine, study: str, numbers: Collection[int]) -> list[Row]:
    """The rows of these trials, by number. Raises StudyNotFound, StorageError."""
    with reading(engine) as connection:
        study_id, info = read_info(connection, study)
        return with_records(connection, Heads(connection, study_id, info).numbered(numbers), study)


def read_trial(engine: Engine, study: str, number: int) -> Row:
    """One trial. Raises StudyNotFound, StorageError."""
    rows = read_rows(engine, study, {number})
    if not rows:
        raise StudyNotFound(
            f'study "{printable(study)}" has no trial {number}; try: regtune board {shell_word(study)}'
        )
    return rows[0]


def read_best(engine: Engine, study: str) -> Row:
    """The complete trial with the best value. Raises StudyNotFound when none is complete."""
    with reading(engine) as connection:
        study_id, info = read_info(connection, study)
        best = _best(connection, study_id, info)
    if best is None:
        raise StudyNotFound(
            f'study "{printable(study)}" has no complete trial yet; try: regtune board {shell_word(study)}'
        )
    return best


def read_progress(engine: Engine, study: str) -> Progress:
    """The sweep at this moment, from the database alone. `remaining_seconds` is a guess from its pace."""
    with reading(engine) as connection:
        study_id, info = read_info(connection, study)
        best = _best(connection, study_id, info)
        running = with_records(
            connection, Heads(connection, study_id, info).ranked(states=["RUNNING"]), study
        )
        spans = read_spans(connection, study_id, info)
        epochs = count_epochs(connection, study_id, info)
    elapsed = covered(spans)
    run_cap, timeout = info.budget.get("run_cap"), info.budget.get("timeout")
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
        remaining_seconds=remaining_seconds(
            run_cap=run_cap,
            timeout=timeout,
            finished=info.finished,
            spent=elapsed,
            pace=elapsed / info.finished if info.finished else None,
        )
        if running
        else None,
        trial_epochs=epochs,
        beside=info.beside,
        best=finished_trial(best) if best else None,
        running=tuple(_running(row, info.metric) for row in sorted(running, key=lambda row: row.number)),
    )


def covered(spans: Sequence[tuple[datetime, datetime]]) -> float:
    """Seconds in which at least one span was open: the time a sweep has worked, pauses left out."""
    total, until = 0.0, None
    for start, end in sorted(spans):
        begin = start if until is None else max(start, until)
        if end > begin:
            total += (end - begin).total_seconds()
        until = end if until is None else max(until, end)
    return total


def end_without_pauses(created_ms: int | None, spans: Sequence[tuple[datetime, datetime]]) -> int | None:
    """When a study would have ended, had trials run without a pause since its beginning; Unix milliseconds."""
    return None if created_ms is None else created_ms + round(1000 * covered(spans))


def _best(connection: Connection, study_id: int, info: StudyInfo) -> Row | None:
    """The complete trial with the best value, or None."""
    found = Heads(connection, study_id, info).ranked(1, states=["COMPLETE"])
    return with_records(connection, found, info.name)[0] if found else None


def _sorted(connection: Connection, heads: Heads, sort: str, info: StudyInfo, limit: int | None) -> list[Row]:
    by = order_of(info, sort)
    known = [column.name for column in columns(info)]
    if by.name not in known and not heads.known(by.name):
        names = parameter_names(with_records(connection, heads.first_of_the_search(), info.name))
        raise InputError(f"--sort {printable(by.name)}: expected one of {', '.join((*known, *names))}")
    return heads.sorted(by.name, by.largest_first, limit)


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
