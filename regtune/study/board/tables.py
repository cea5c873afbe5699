"""Optuna's tables (`optuna/storages/_rdb/models.py`, schema 12), read with plain SQL; Optuna is not imported.

Nothing is written. Times in the tables are UTC without a zone.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, get_args

from sqlalchemy import (
    Connection,
    Engine,
    Float,
    Integer,
    String,
    Subquery,
    Text,
    bindparam,
    case,
    cast,
    column,
    exists,
    func,
    literal,
    select,
    table,
)
from sqlalchemy.exc import SQLAlchemyError

from regtune.errors import StorageError, StudyNotFound
from regtune.escaping import printable
from regtune.storage import explain, not_json, place
from regtune.study.board.rows import Row, StudyInfo
from regtune.study.record import (
    BUDGET,
    DATA,
    FILE,
    RECORD,
    REFUSED,
    REQUEST,
    SPEC,
    STUDY_UID,
    VERSIONS,
    State,
    TrialRecord,
    trial_uid,
)

_STUDIES = table("studies", column("study_id", Integer), column("study_name", String))
_STUDY_ATTRIBUTES = table(
    "study_user_attributes", column("study_id", Integer), column("key", String), column("value_json", Text)
)
_TRIALS = table(
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
_PARAMETERS = table("trial_params", column("trial_id", Integer))

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


def _foreign(connection: Connection, study_id: int, uid: str) -> tuple[int, ...]:
    """Ids of the trials that regtune has not trained, as `foreign.seen` finds them.

    A trial of regtune's has its record, whose text begins with its uid; one that is just beginning has nothing yet.
    """
    trials, attributes = _TRIALS.c, TRIAL_ATTRIBUTES.c
    state = cast(trials.state, String)
    begins = literal(f'{{"uid": "{trial_uid(uid, 0)[:-1]}') + cast(trials.number, String) + literal('"')
    own = exists().where(
        attributes.trial_id == trials.trial_id,
        attributes.key == RECORD,
        func.substr(attributes.value_json, 1, func.length(begins)) == begins,
    )
    begun = exists().where(_PARAMETERS.c.trial_id == trials.trial_id)
    ours = (state == "WAITING") | ((state == "RUNNING") & ~begun) | own
    return tuple(connection.scalars(select(trials.trial_id).where(trials.study_id == study_id, ~ours)))


def trials_of(study_id: int, info: StudyInfo) -> Subquery:
    """A study's trials with their states, FOREIGN for those that regtune has not trained."""
    return _trials_of(study_id, info.foreign)


def _trials_of(study_id: int, foreign: Sequence[int]) -> Subquery:
    ids: Any = bindparam("foreign", foreign, expanding=True, literal_execute=True)
    state = case((_TRIALS.c.trial_id.in_(ids), "FOREIGN"), else_=cast(_TRIALS.c.state, String))
    times = _TRIALS.c.datetime_start, _TRIALS.c.datetime_complete
    found = select(_TRIALS.c.trial_id, _TRIALS.c.number, *times, state.label("state"))
    return found.where(_TRIALS.c.study_id == study_id).subquery()


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
                _STUDY_ATTRIBUTES.c.key.in_((STUDY_UID, SPEC, BUDGET, DATA, FILE, VERSIONS)),
            )
        )
    }
    if STUDY_UID not in attributes:
        raise StudyNotFound(f'study "{printable(study)}" was not made by regtune')
    uid = str(attributes[STUDY_UID])
    counts: dict[State, int] = dict.fromkeys(get_args(State), 0)
    foreign = _foreign(connection, study_id, uid)
    trials = _trials_of(study_id, foreign).c
    starts: list[datetime] = []
    moments: list[datetime] = []
    for name, count, *found in connection.execute(
        select(
            trials.state,
            func.count(),
            func.min(trials.datetime_start),
            func.max(trials.datetime_start),
            func.max(trials.datetime_complete),
        ).group_by(trials.state)
    ):
        counts[name] = count
        if name != "FOREIGN":
            first, begun, ended = map(_utc, found)
            starts += [first] if first else []
            moments += [moment for moment in (begun, ended) if moment]
    spec, beside = _object(attributes.get(SPEC)), 0
    if spec.get("method") == "grid":  # a control that is no point of it has no parameters
        searched = exists().where(_PARAMETERS.c.trial_id == trials.trial_id)
        chosen = trials.state.in_(("COMPLETE", "PRUNED")) & ~searched
        beside = connection.scalar(select(func.count(trials.trial_id)).where(chosen)) or 0
    return study_id, StudyInfo(
        name=study,
        uid=uid,
        foreign=foreign,
        beside=beside,
        spec=spec,
        budget=_object(attributes.get(BUDGET)),
        data=_object(attributes.get(DATA)),
        versions=_object(attributes.get(VERSIONS)),
        file=str(attributes.get(FILE, "")),
        counts=counts,
        started=min(starts, default=None),
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


def read_numbers(connection: Connection, study_id: int, info: StudyInfo) -> dict[int, State]:
    """Number and state of every trial that has a record."""
    trials = trials_of(study_id, info).c
    chosen = (
        select(trials.number, trials.state)
        .join(TRIAL_ATTRIBUTES, TRIAL_ATTRIBUTES.c.trial_id == trials.trial_id)
        .where(trials.state != "FOREIGN", TRIAL_ATTRIBUTES.c.key == RECORD)
    )
    return {found.number: found.state for found in connection.execute(chosen)}


def read_records(
    connection: Connection, study_id: int, numbers: Collection[int]
) -> list[tuple[int, State, str]]:
    """Number, state and record, as JSON text, of those of `numbers` that have one, in order."""
    chosen = (
        select(_TRIALS.c.number, cast(_TRIALS.c.state, String), TRIAL_ATTRIBUTES.c.value_json)
        .join(TRIAL_ATTRIBUTES, TRIAL_ATTRIBUTES.c.trial_id == _TRIALS.c.trial_id)
        .where(
            _TRIALS.c.study_id == study_id,
            TRIAL_ATTRIBUTES.c.key == RECORD,
            _TRIALS.c.number.in_(numbers),
        )
        .order_by(_TRIALS.c.number)
    )
    return [(number, state, text) for number, state, text in connection.execute(chosen)]


def with_records(connection: Connection, heads: Sequence[Row], study: str) -> list[Row]:
    """The rows with their records, in the same order; of a running trial that of the attempt under way. Raises
    StorageError for an unreadable one.
    """
    found: dict[int, dict[str, Any]] = {}
    for start in range(0, len(heads), _BATCH):
        numbers = {head.number: head.state for head in heads[start : start + _BATCH]}
        chosen = (
            select(_TRIALS.c.number, TRIAL_ATTRIBUTES.c.key, TRIAL_ATTRIBUTES.c.value_json)
            .join(TRIAL_ATTRIBUTES, TRIAL_ATTRIBUTES.c.trial_id == _TRIALS.c.trial_id)
            .join(_STUDIES, _STUDIES.c.study_id == _TRIALS.c.study_id)
            .where(
                _STUDIES.c.study_name == study,
                TRIAL_ATTRIBUTES.c.key.in_((RECORD, REFUSED)),
                _TRIALS.c.number.in_(numbers),
            )
        )
        for number, key, text in connection.execute(chosen):
            state, value = numbers[number], json.loads(text)
            if key == REFUSED and state == "FOREIGN":
                found[number] = {"refused": str(value)}
            elif key == RECORD and state != "FOREIGN":
                record = TrialRecord.from_json(value, f"{study}: trial {number}")
                found[number] = {"record": record.now if state == "RUNNING" else record}
    return [replace(head, **found.get(head.number, {})) for head in heads]


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
    return _utc(connection.scalar(select(func.min(_TRIALS.c.datetime_start))))


def ended_numbers(connection: Connection, study_id: int, info: StudyInfo) -> set[int]:
    """Numbers of the trials that have come to their end."""
    trials = trials_of(study_id, info).c
    ended = trials.state.in_(("COMPLETE", "PRUNED", "FAIL"))
    return set(connection.scalars(select(trials.number).where(ended)))


def count_epochs(connection: Connection, study_id: int, info: StudyInfo) -> int:
    """Epochs that the study's trials have trained, all together."""
    trials = trials_of(study_id, info)
    found = connection.scalar(
        select(func.count())
        .select_from(_STEPS.join(trials, _STEPS.c.trial_id == trials.c.trial_id))
        .where(trials.c.state != "FOREIGN")
    )
    return found or 0


def read_spans(
    connection: Connection, study_id: int, info: StudyInfo, *, running: bool = True
) -> list[tuple[datetime, datetime]]:
    """Start and end of every trial that has begun; now for those still running, unless they are left out."""
    now = datetime.now(UTC) if running else None
    trials = trials_of(study_id, info).c
    found = connection.execute(
        select(trials.datetime_start, trials.datetime_complete, trials.state).where(trials.state != "FOREIGN")
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
