"""Optuna's tables (`optuna/storages/_rdb/models.py`, schema 12), read with plain SQL; Optuna is not imported.

Nothing is written. Times in the tables are UTC without a zone.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, get_args

from sqlalchemy import Connection, Engine, Float, Integer, String, Text, cast, column, func, select, table
from sqlalchemy.exc import SQLAlchemyError

from regtune.errors import StorageError, StudyNotFound
from regtune.leaderboard.rows import Row, StudyInfo
from regtune.quoting import printable
from regtune.record import BUDGET, DATA, RECORD, REQUEST, SPEC, STUDY_UID, VERSIONS, State, TrialRecord
from regtune.storage import explain, not_json, place

_STUDIES = table("studies", column("study_id", Integer), column("study_name", String))
_STUDY_ATTRIBUTES = table(
    "study_user_attributes", column("study_id", Integer), column("key", String), column("value_json", Text)
)
TRIALS = table(
    "trials",
    column("trial_id", Integer),
    column("number", Integer),
    column("study_id", Integer),
    column("state", String),
    column("datetime_start", String),
    column("datetime_complete", String),
)
VALUES = table(
    "trial_values",
    column("trial_id", Integer),
    column("objective", Integer),
    column("value", Float),
    column("value_type", String),
)
TRIAL_ATTRIBUTES = table(
    "trial_user_attributes", column("trial_id", Integer), column("key", String), column("value_json", Text)
)
_STEPS = table("trial_intermediate_values", column("trial_id", Integer), column("step", Integer))

_BATCH = 500
_BEGINS = re.compile(r'\{"uid": ?"([A-Za-z0-9_-]+)-\d+"')
"""How a trial's record begins: with the uid of its study and its number."""


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection for reading; what the database complains of is told as StorageError."""
    try:
        with engine.connect() as connection:
            yield connection
    except SQLAlchemyError as error:
        raise StorageError(explain(error, place(engine.url.render_as_string()))) from None
    except json.JSONDecodeError as error:
        raise StorageError(not_json(error, place(engine.url.render_as_string()))) from None


def read_info(connection: Connection, study: str) -> tuple[int, StudyInfo]:
    """A study's id and facts. Raises StudyNotFound with the nearest name."""
    study_id = connection.scalar(select(_STUDIES.c.study_id).where(_STUDIES.c.study_name == study))
    if study_id is None:
        raise StudyNotFound(_unknown(connection, study))
    attributes: dict[str, Any] = {
        key: json.loads(text)
        for key, text in connection.execute(
            select(_STUDY_ATTRIBUTES.c.key, _STUDY_ATTRIBUTES.c.value_json).where(
                _STUDY_ATTRIBUTES.c.study_id == study_id,
                _STUDY_ATTRIBUTES.c.key.in_((STUDY_UID, SPEC, BUDGET, DATA, VERSIONS)),
            )
        )
    }
    if STUDY_UID not in attributes:
        raise StudyNotFound(f'study "{printable(study)}" was not made by regtune')
    counts: dict[State, int] = dict.fromkeys(get_args(State), 0)
    state = cast(TRIALS.c.state, String)
    found = select(state, func.count()).where(TRIALS.c.study_id == study_id).group_by(state)
    for name, count in connection.execute(found):
        counts[name] = count  # type: ignore[index]
    first, begun, ended = connection.execute(
        select(
            func.min(TRIALS.c.datetime_start),
            func.max(TRIALS.c.datetime_start),
            func.max(TRIALS.c.datetime_complete),
        ).where(TRIALS.c.study_id == study_id)
    ).one()
    moments = [found for found in (_utc(begun), _utc(ended)) if found]
    return study_id, StudyInfo(
        name=study,
        uid=str(attributes[STUDY_UID]),
        spec=_object(attributes.get(SPEC)),
        budget=_object(attributes.get(BUDGET)),
        data=_object(attributes.get(DATA)),
        versions=_object(attributes.get(VERSIONS)),
        counts=counts,
        started=_utc(first),
        last_active=max(moments, default=None),
    )


def _unknown(connection: Connection, study: str) -> str:
    from difflib import get_close_matches

    names = list(connection.scalars(select(_STUDIES.c.study_name)))
    near = get_close_matches(study, names, n=1)
    missing = f'no study "{printable(study)}"'
    if near:
        return f'{missing}; did you mean "{printable(near[0])}"?'
    return f"{missing}; try: regtune studies" if names else f"{missing}: there is none here yet"


def read_attributes(connection: Connection, study_id: int) -> dict[str, Any]:
    """All attributes of a study, requests aside."""
    attributes = _STUDY_ATTRIBUTES
    chosen = select(attributes.c.key, attributes.c.value_json).where(
        attributes.c.study_id == study_id, attributes.c.key.not_like(f"{REQUEST}%")
    )
    return {key: json.loads(text) for key, text in connection.execute(chosen)}


def read_numbers(connection: Connection, study_id: int) -> dict[int, State]:
    """Number and state of every trial that has a record."""
    chosen = (
        select(TRIALS.c.number, cast(TRIALS.c.state, String))
        .join(TRIAL_ATTRIBUTES, TRIAL_ATTRIBUTES.c.trial_id == TRIALS.c.trial_id)
        .where(TRIALS.c.study_id == study_id, TRIAL_ATTRIBUTES.c.key == RECORD)
    )
    return {found.number: found.state for found in connection.execute(chosen)}


def read_records(
    connection: Connection, study_id: int, numbers: Collection[int]
) -> list[tuple[int, State, str]]:
    """Number, state and record, as JSON text, of those of `numbers` that have one, in order."""
    chosen = (
        select(TRIALS.c.number, cast(TRIALS.c.state, String), TRIAL_ATTRIBUTES.c.value_json)
        .join(TRIAL_ATTRIBUTES, TRIAL_ATTRIBUTES.c.trial_id == TRIALS.c.trial_id)
        .where(
            TRIALS.c.study_id == study_id,
            TRIAL_ATTRIBUTES.c.key == RECORD,
            TRIALS.c.number.in_(numbers),
        )
        .order_by(TRIALS.c.number)
    )
    return [(number, state, text) for number, state, text in connection.execute(chosen)]


def with_records(connection: Connection, heads: Sequence[Row], study: str) -> list[Row]:
    """The rows with their records, in the same order; of a running trial that of the attempt under way. Raises
    StorageError for an unreadable one.
    """
    records: dict[int, TrialRecord] = {}
    for start in range(0, len(heads), _BATCH):
        numbers = [head.number for head in heads[start : start + _BATCH]]
        found = connection.execute(
            select(TRIALS.c.number, TRIAL_ATTRIBUTES.c.value_json)
            .join(TRIAL_ATTRIBUTES, TRIAL_ATTRIBUTES.c.trial_id == TRIALS.c.trial_id)
            .join(_STUDIES, _STUDIES.c.study_id == TRIALS.c.study_id)
            .where(
                _STUDIES.c.study_name == study,
                TRIAL_ATTRIBUTES.c.key == RECORD,
                TRIALS.c.number.in_(numbers),
            )
        )
        for number, text in found:
            records[number] = TrialRecord.from_json(json.loads(text), f"{study}: trial {number}")
    for head in heads:
        if head.state == "RUNNING" and head.number in records:
            records[head.number] = records[head.number].now
    return [Row(head.number, head.state, head.value, records.get(head.number), head.rank) for head in heads]


def studies_of_regtune(connection: Connection) -> list[str]:
    """Names of the studies that regtune made."""
    return list(
        connection.scalars(
            select(_STUDIES.c.study_name)
            .join(_STUDY_ATTRIBUTES, _STUDY_ATTRIBUTES.c.study_id == _STUDIES.c.study_id)
            .where(_STUDY_ATTRIBUTES.c.key == STUDY_UID)
        )
    )


def read_uids(connection: Connection) -> set[str]:
    """Uids of studies that any study or any trial here carries, also a trial of a study that has lost its own.

    Raises StorageError.
    """
    own = select(_STUDY_ATTRIBUTES.c.value_json).where(_STUDY_ATTRIBUTES.c.key == STUDY_UID)
    begins = func.substr(TRIAL_ATTRIBUTES.c.value_json, 1, 120)
    records = select(begins).where(TRIAL_ATTRIBUTES.c.key == RECORD).distinct()
    found = {json.loads(text) for text in connection.scalars(own)}
    for text in connection.scalars(records):
        uid = _BEGINS.match(text)
        if uid is None:
            raise StorageError(
                "a trial's record does not begin with its uid; was it written by another program?"
            )
        found.add(uid[1])
    return found


def read_first_start(connection: Connection) -> datetime | None:
    """When the first trial of the whole database began."""
    return _utc(connection.scalar(select(func.min(TRIALS.c.datetime_start))))


def ended_numbers(connection: Connection, study_id: int) -> set[int]:
    """Numbers of the trials that have come to their end."""
    state = cast(TRIALS.c.state, String)
    ended = (TRIALS.c.study_id == study_id) & state.in_(("COMPLETE", "PRUNED", "FAIL"))
    return set(connection.scalars(select(TRIALS.c.number).where(ended)))


def count_epochs(connection: Connection, study_id: int) -> int:
    """Epochs that the study's trials have trained, all together."""
    found = connection.scalar(
        select(func.count())
        .select_from(_STEPS.join(TRIALS, _STEPS.c.trial_id == TRIALS.c.trial_id))
        .where(TRIALS.c.study_id == study_id)
    )
    return found or 0


def read_spans(
    connection: Connection, study_id: int, *, running: bool = True
) -> list[tuple[datetime, datetime]]:
    """Start and end of every trial that has begun; now for those still running, unless they are left out."""
    now = datetime.now(UTC) if running else None
    found = connection.execute(
        select(TRIALS.c.datetime_start, TRIALS.c.datetime_complete, cast(TRIALS.c.state, String)).where(
            TRIALS.c.study_id == study_id
        )
    )
    return list(_closed(found, now))


def _closed(found: Any, now: datetime | None) -> Iterator[tuple[datetime, datetime]]:
    for begun, ended, state in found:
        start, end = _utc(begun), _utc(ended)
        end = end or (now if state == "RUNNING" else None)
        if start and end:
            yield start, max(start, end)


def value_of(amount: float | None, kind: str | None) -> float | None:
    """A value from its two columns in Optuna's table."""
    return {"INF_POS": math.inf, "INF_NEG": -math.inf}.get(kind or "", amount)


def _utc(found: Any) -> datetime | None:
    if found is None:
        return None
    moment = found if isinstance(found, datetime) else datetime.fromisoformat(str(found))
    return moment.replace(tzinfo=UTC)


def _object(found: Any) -> Mapping[str, Any]:
    value = json.loads(found) if isinstance(found, str) else found
    return value if isinstance(value, dict) else {}
