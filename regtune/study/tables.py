"""Read-only SQL on Optuna's tables, without importing Optuna.

`storage.open_engine` requires the revision of the installed Optuna, and `reading` that it is one of `REVISIONS`.
Times in the tables are UTC without a zone.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any

import sqlalchemy as sql
from sqlalchemy import ColumnElement, Connection, Engine, Float, Integer, String, Subquery, Text, func, select
from sqlalchemy.types import TypeEngine

from regtune.errors import StorageError, StudyNotFound
from regtune.escaping import printable
from regtune.storage import place, understood
from regtune.storage.schema import STUDIES
from regtune.study import record as stored
from regtune.study.progress import Row, StudyInfo
from regtune.study.record import STATES, State, TrialRecord, trial_uid


def _table(name: str, **types: type[TypeEngine[Any]]) -> sql.TableClause:
    return sql.table(name, *(sql.column(column, kind) for column, kind in types.items()))


_STUDIES = _table("studies", study_id=Integer, study_name=String)
_STUDY_ATTRIBUTES = _table("study_user_attributes", study_id=Integer, key=String, value_json=Text)
_TIMES = {"datetime_start": String, "datetime_complete": String}
_TRIALS = _table("trials", trial_id=Integer, number=Integer, study_id=Integer, state=String, **_TIMES)
_VALUES = _table("trial_values", trial_id=Integer, objective=Integer, value=Float, value_type=String)
_TRIAL_ATTRIBUTES = _table("trial_user_attributes", trial_id=Integer, key=String, value_json=Text)
_STEPS = _table("trial_intermediate_values", trial_id=Integer, step=Integer)
_PARAMETERS = _table("trial_params", trial_id=Integer)
_OF_TRIAL = _TRIAL_ATTRIBUTES.c.trial_id == _TRIALS.c.trial_id
_IS_UID = _STUDY_ATTRIBUTES.c.key == stored.STUDY_UID
_IS_RECORD = _OF_TRIAL & (_TRIAL_ATTRIBUTES.c.key == stored.RECORD)

REVISIONS = frozenset({"v3.2.0.a"})
"""Revisions of Optuna's tables that are as this module reads them."""
_BATCH = 500
_RECORD_START = '{"uid": "'
_RECORD_BEGINS = re.compile(r'\{"uid": ?"([A-Za-z0-9_-]+)-\d+"')
"""How a trial's record begins: with the uid of its study and its number."""


@dataclass(frozen=True)
class Head:
    """A trial without its record.

    own: whether it has regtune's record. searched: whether the search space contains it, as it does not contain every
    control. span: its start and end, once it has both.
    """

    trial_id: int
    number: int
    state: State
    value: float | None
    own: bool
    searched: bool
    span: tuple[datetime, datetime] | None


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Open a connection for reading. Raises StorageError for whatever the database refuses."""
    if STUDIES.migrations.head not in REVISIONS:
        differ = f"are of revision {STUDIES.migrations.head}; regtune reads {', '.join(REVISIONS)}"
        raise StorageError(f"Optuna's tables {differ}; install the Optuna version that regtune names")
    with understood(place(engine.url.render_as_string())), engine.connect() as connection:
        yield connection


def _own(study_uid: str) -> ColumnElement[bool]:
    """Whether a trial has regtune's record, whose text begins with the trial's uid."""
    study = sql.literal(f'{{"uid": "{trial_uid(study_uid, 0)[:-1]}')
    begins = study + sql.cast(_TRIALS.c.number, String) + sql.literal('"')
    text = func.substr(_TRIAL_ATTRIBUTES.c.value_json, 1, func.length(begins))
    return sql.exists().where(_IS_RECORD, text == begins)


def _searched(trial_id: ColumnElement[int]) -> ColumnElement[bool]:
    """Whether a trial has parameters: a control outside the search space has none."""
    return sql.exists().where(_PARAMETERS.c.trial_id == trial_id)


def _foreign(connection: Connection, study_id: int, uid: str) -> tuple[int, ...]:
    """Ids of the trials that regtune has not trained, as the cache of trials (`trial_cache`) sees them.

    A trial of regtune's has its record; one that is just beginning has nothing yet.
    """
    state = sql.cast(_TRIALS.c.state, String)
    begun = _searched(_TRIALS.c.trial_id)
    ours = (state == "WAITING") | ((state == "RUNNING") & ~begun) | _own(uid)
    return tuple(connection.scalars(select(_TRIALS.c.trial_id).where(_TRIALS.c.study_id == study_id, ~ours)))


def require_records(connection: Connection, study: StudyInfo) -> None:
    """Require that no record is cut off or overwritten. Raises StorageError with the number of the first that is.

    A trial with such a record counts as foreign wherever figures are only read.
    """
    start = func.substr(_TRIAL_ATTRIBUTES.c.value_json, 1, len(_RECORD_START)) != _RECORD_START
    damaged = select(_TRIALS.c.number).where(_IS_RECORD, start, _TRIALS.c.study_id == study.id)
    number = connection.scalar(damaged.order_by(_TRIALS.c.number).limit(1))
    if number is not None:
        unread = f"{printable(study.name)}: trial {number}: its record cannot be read"
        raise StorageError(f"{unread}; restore a backup with: regtune db restore FILE")


def _trials_of(study_id: int, foreign: Sequence[int]) -> Subquery:
    """A study's trials with their states, FOREIGN for those that regtune has not trained."""
    is_foreign = _among(_TRIALS.c.trial_id, foreign)
    state = sql.case((is_foreign, "FOREIGN"), else_=sql.cast(_TRIALS.c.state, String))
    times = _TRIALS.c.datetime_start, _TRIALS.c.datetime_complete
    chosen = select(_TRIALS.c.trial_id, _TRIALS.c.number, *times, state.label("state"))
    return chosen.where(_TRIALS.c.study_id == study_id).subquery()


def _among(numbers: ColumnElement[int], wanted: Collection[int]) -> ColumnElement[bool]:
    """`IN` with any number of values: databases limit how many parameters a statement has."""
    values: Any = sql.bindparam(None, sorted(wanted), expanding=True, literal_execute=True)
    return numbers.in_(values)


def read_info(connection: Connection, study: str) -> StudyInfo:
    """Read a study's facts. Raises StudyNotFound with the nearest name."""
    study_id = connection.scalar(select(_STUDIES.c.study_id).where(_STUDIES.c.study_name == study))
    if study_id is None:
        raise unknown_study(study, [*connection.scalars(select(_STUDIES.c.study_name))])
    attributes = read_attributes(connection, study_id)
    if stored.STUDY_UID not in attributes:
        raise StudyNotFound(f'study "{printable(study)}" was not created by regtune')
    uid = str(attributes[stored.STUDY_UID])
    counts: dict[State, int] = dict.fromkeys(STATES, 0)
    foreign = _foreign(connection, study_id, uid)
    trials = _trials_of(study_id, foreign).c
    begun, ended = trials.datetime_start, trials.datetime_complete
    moments = func.min(begun), func.max(begun), func.max(ended)
    by_state = select(trials.state, func.count(), *moments).group_by(trials.state)
    times = list[datetime]()
    for state, count, *moments_utc in connection.execute(by_state):
        counts[state] = count
        if state != "FOREIGN":
            times += filter(None, map(_utc, moments_utc))
    spec, beside = _mapping(attributes.get(stored.SPEC)), 0
    if spec.get("method") == "grid":  # a control that is no point of it has no parameters
        chosen = trials.state.in_(("COMPLETE", "PRUNED")) & ~_searched(trials.trial_id)
        beside = connection.scalar(select(func.count(trials.trial_id)).where(chosen)) or 0
    return StudyInfo(
        id=study_id,
        name=study,
        uid=uid,
        foreign=foreign,
        beside=beside,
        spec=spec,
        budget=_mapping(attributes.get(stored.BUDGET)),
        data=_mapping(attributes.get(stored.DATA)),
        versions=_mapping(attributes.get(stored.VERSIONS)),
        file=str(attributes.get(stored.FILE, "")),
        decided=attributes.get(stored.DECISION),
        counts=counts,
        started=min(times, default=None),
        last_active=max(times, default=None),
    )


def unknown_study(study: str, names: Sequence[str]) -> StudyNotFound:
    """The error for a study that is not among `names`, with the nearest name."""
    hint = "; try: regtune studies" if names else ": there are no studies here yet"
    for near in get_close_matches(study, names, n=1):
        hint = f'; did you mean "{printable(near)}"?'
    return StudyNotFound(f'no study "{printable(study)}"{hint}')


def read_attributes(connection: Connection, study_id: int) -> dict[str, Any]:
    """All attributes of a study, requests, replicates and the diagnosis aside."""
    key = _STUDY_ATTRIBUTES.c.key
    aside = _begins(key, stored.REQUEST) | _begins(key, stored.REPLICATE) | (key == stored.DIAGNOSIS)
    return _select_attributes(connection, study_id, ~aside)


def read_replicates(
    connection: Connection, study_id: int, names: Collection[str] | None = None
) -> dict[str, Any]:
    """The attributes of a study that hold its replicates, of all by default."""
    key = _STUDY_ATTRIBUTES.c.key
    which = _begins(key, stored.REPLICATE) if names is None else key.in_(names)
    return _select_attributes(connection, study_id, which)


def read_replicate_names(connection: Connection, study_id: int) -> list[str]:
    """The names of the attributes that hold a study's replicates: what is there, without reading it."""
    attributes = _STUDY_ATTRIBUTES.c
    ours = attributes.study_id == study_id, _begins(attributes.key, stored.REPLICATE)
    return list(connection.scalars(select(attributes.key).where(*ours).order_by(attributes.key)))


def read_diagnosis(connection: Connection, study_id: int) -> Any:
    """A study's diagnosis as JSON, None where there is none."""
    diagnosis = _STUDY_ATTRIBUTES.c.key == stored.DIAGNOSIS
    return _select_attributes(connection, study_id, diagnosis).get(stored.DIAGNOSIS)


def read_requests(engine: Engine, study_id: int) -> dict[str, Any]:
    """The attributes of a study that hold what other terminals ask for."""
    with engine.connect() as connection:
        return _select_attributes(connection, study_id, _begins(_STUDY_ATTRIBUTES.c.key, stored.REQUEST))


def _select_attributes(connection: Connection, study_id: int, which: ColumnElement[bool]) -> dict[str, Any]:
    attributes = _STUDY_ATTRIBUTES.c
    ours = attributes.study_id == study_id
    rows = connection.execute(select(attributes.key, attributes.value_json).where(ours, which))
    return {key: json.loads(text) for key, text in rows}


def _begins(key: ColumnElement[str], prefix: str) -> ColumnElement[bool]:
    return key.like(f"{prefix}%")


def read_standings(connection: Connection, info: StudyInfo, after: int, ids: Collection[int]) -> list[Head]:
    """Read how the trials with an id above `after`, and those of `ids`, stand, in order."""
    kind = sql.cast(_VALUES.c.value_type, String)
    searched = _searched(_TRIALS.c.trial_id).label("searched")
    chosen = (
        select(_TRIALS, _VALUES.c.value, kind.label("kind"), _own(info.uid).label("own"), searched)
        .outerjoin(_VALUES, (_VALUES.c.trial_id == _TRIALS.c.trial_id) & (_VALUES.c.objective == 0))
        .where(_TRIALS.c.study_id == info.id, (_TRIALS.c.trial_id > after) | _among(_TRIALS.c.trial_id, ids))
        .order_by(_TRIALS.c.number)
    )
    heads = []
    for row in connection.execute(chosen):
        value, span = _value_of(row.value, row.kind), _span(row.datetime_start, row.datetime_complete)
        known = row.state, value, bool(row.own), bool(row.searched), span
        heads.append(Head(row.trial_id, row.number, *known))
    return heads


def read_records(connection: Connection, ids: Collection[int]) -> list[tuple[int, State, str]]:
    """Read number, state and record, as JSON text, of those of the trials `ids` that have one, in order."""
    chosen = (
        select(_TRIALS.c.number, sql.cast(_TRIALS.c.state, String), _TRIAL_ATTRIBUTES.c.value_json)
        .join(_TRIAL_ATTRIBUTES, _IS_RECORD)
        .where(_among(_TRIALS.c.trial_id, ids))
        .order_by(_TRIALS.c.number)
    )
    return [(number, state, text) for number, state, text in connection.execute(chosen)]


def read_heads(
    connection: Connection,
    info: StudyInfo,
    *,
    states: Sequence[State] = STATES,
    numbers: Collection[int] | None = None,
    searched: bool = False,
    limit: int | None = None,
) -> list[Row]:
    """Read rows without their records, by rank: in the order of STATES, each by value and then by number.

    searched: only those of the search space, with the rank that they have among all.
    """
    trials = _trials_of(info.id, info.foreign)
    kind = sql.cast(_VALUES.c.value_type, String)
    best, sign = ("INF_POS", -1) if info.goal == "maximize" else ("INF_NEG", 1)
    order = (
        sql.case({name: place for place, name in enumerate(STATES)}, value=trials.c.state),
        sql.case({best: 0, "FINITE": 1}, value=kind, else_=2),
        sign * _VALUES.c.value,
        trials.c.number,
    )
    ours = trials.c.state != "FOREIGN"  # no value of another program is compared
    value = (_VALUES.c.trial_id == trials.c.trial_id) & (_VALUES.c.objective == 0) & ours
    ranked = (
        select(
            trials.c.trial_id,
            trials.c.number,
            trials.c.state,
            _VALUES.c.value,
            kind.label("kind"),
            func.row_number().over(order_by=order).label("place"),
        )
        .select_from(trials.outerjoin(_VALUES, value))
        .subquery()
    )
    chosen = select(ranked).where(ranked.c.state.in_(states)).order_by(ranked.c.place).limit(limit)
    if searched:
        chosen = chosen.where(_searched(ranked.c.trial_id))
    if numbers is not None:
        chosen = chosen.where(_among(ranked.c.number, numbers))
    return [
        Row(number, state, _value_of(amount, kind), None, place if state == "COMPLETE" else None)
        for _, number, state, amount, kind, place in connection.execute(chosen)
    ]


def _attributes(info: StudyInfo, *keys: str) -> sql.Select[int, str, str]:
    chosen = select(_TRIALS.c.number, _TRIAL_ATTRIBUTES.c.key, _TRIAL_ATTRIBUTES.c.value_json)
    ours = _TRIALS.c.study_id == info.id
    return chosen.join(_TRIAL_ATTRIBUTES, _OF_TRIAL).where(ours, _TRIAL_ATTRIBUTES.c.key.in_(keys))


def with_records(connection: Connection, info: StudyInfo, heads: Sequence[Row]) -> Iterator[Row]:
    """Yield the rows with their records, in batches; of a running trial, that of the attempt under way.

    Raises StorageError for an unreadable record.
    """
    for start in range(0, len(heads), _BATCH):
        batch = heads[start : start + _BATCH]
        states = {head.number: head.state for head in batch}
        chosen = _attributes(info, stored.RECORD, stored.REFUSED).where(_TRIALS.c.number.in_(states))
        known: dict[int, dict[str, Any]] = {}
        for number, key, text in connection.execute(chosen):
            state, value = states[number], json.loads(text)
            if key == stored.REFUSED and state == "FOREIGN":
                known[number] = {"refused": str(value)}
            elif key == stored.RECORD and state != "FOREIGN":
                record = TrialRecord.from_json(value, f"{info.name}: trial {number}")
                known[number] = {"record": record.now if state == "RUNNING" else record}
        yield from (replace(head, **known.get(head.number, {})) for head in batch)


def read_controls(connection: Connection, info: StudyInfo) -> set[int]:
    rows = connection.execute(_attributes(info, stored.ORIGIN))
    origins = ((number, _mapping(json.loads(text))) for number, _, text in rows)
    return {number for number, origin in origins if origin.get("kind") == "control" or origin.get("control")}


def studies_of_regtune(connection: Connection) -> list[str]:
    own = (_STUDY_ATTRIBUTES.c.study_id == _STUDIES.c.study_id) & _IS_UID
    return list(connection.scalars(select(_STUDIES.c.study_name).join(_STUDY_ATTRIBUTES, own)))


def read_uids(connection: Connection) -> set[str]:
    """Read the uids of studies that any study or trial here has. Raises StorageError."""
    own = select(_STUDY_ATTRIBUTES.c.value_json).where(_IS_UID)
    begins = func.substr(_TRIAL_ATTRIBUTES.c.value_json, 1, 120)
    records = select(begins).where(_TRIAL_ATTRIBUTES.c.key == stored.RECORD).distinct()
    uids = {json.loads(text) for text in connection.scalars(own)}
    for text in connection.scalars(records):
        if (match := _RECORD_BEGINS.match(text)) is None:
            raise StorageError("a trial's record has no uid; was it written by another program?")
        uids.add(match[1])
    return uids


def read_first_start(connection: Connection) -> datetime | None:
    return _utc(connection.scalar(select(func.min(_TRIALS.c.datetime_start))))


def read_ended(connection: Connection, info: StudyInfo) -> list[int]:
    """Read the numbers of the trials that have ended, in order."""
    trials = _trials_of(info.id, info.foreign).c
    ended = trials.state.in_(("COMPLETE", "PRUNED", "FAIL"))
    return list(connection.scalars(select(trials.number).where(ended).order_by(trials.number)))


def count_epochs(connection: Connection, info: StudyInfo) -> int:
    trials = _trials_of(info.id, info.foreign)
    ours = (_STEPS.c.trial_id == trials.c.trial_id) & (trials.c.state != "FOREIGN")
    return connection.scalar(select(func.count()).select_from(_STEPS.join(trials, ours))) or 0


def read_spans(connection: Connection, info: StudyInfo) -> list[tuple[datetime, datetime]]:
    """Read start and end of every trial that has begun; now for those still running."""
    trials = _trials_of(info.id, info.foreign).c
    chosen = select(trials.datetime_start, trials.datetime_complete, trials.state)
    rows = connection.execute(chosen.where(trials.state != "FOREIGN"))
    ends = {"RUNNING": datetime.now(UTC)}
    return [span for begun, ended, state in rows if (span := _span(begun, ended or ends.get(state)))]


def _span(begun: Any, ended: Any) -> tuple[datetime, datetime] | None:
    start, end = _utc(begun), _utc(ended)
    return (start, max(start, end)) if start and end else None


def _value_of(amount: float | None, kind: str | None) -> float | None:
    return {"INF_POS": math.inf, "INF_NEG": -math.inf}.get(kind or "", amount)


def _utc(time: Any) -> datetime | None:
    if time is None:
        return None
    moment = time if isinstance(time, datetime) else datetime.fromisoformat(str(time))
    return moment.replace(tzinfo=UTC)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
