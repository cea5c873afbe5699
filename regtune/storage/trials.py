"""A study's trials in Optuna's tables, read and written by plain SQL: row for row what Optuna's own storage does.

Optuna goes through SQLAlchemy's object mapper, several statements for each value; here a read is six statements for
any number of trials, and a write is one or a part of one.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import sqlalchemy
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import ColumnElement, Connection, Select, Table, bindparam, func, select
from sqlalchemy.dialects import postgresql, sqlite


def _table(model: Any) -> Table:
    found: Table = model.__table__
    return found


_STUDIES = _table(models.StudyModel)
_OF_STUDY = _table(models.StudyUserAttributeModel)
_TRIALS = _table(models.TrialModel)
_VALUES = _table(models.TrialValueModel)
_PARAMS = _table(models.TrialParamModel)
_USER = _table(models.TrialUserAttributeModel)
_SYSTEM = _table(models.TrialSystemAttributeModel)
_STEPS = _table(models.TrialIntermediateValueModel)

_distribution = lru_cache(maxsize=4096)(json_to_distribution)

Write = tuple[Any, Mapping[str, Any]]
"""A statement that writes one value, and its row."""

_ATTRIBUTES = select(_OF_STUDY.c.key, _OF_STUDY.c.value_json).where(
    _OF_STUDY.c.study_id == bindparam("study"), _OF_STUDY.c.key.like(bindparam("like"))
)
_NEWER = (
    select(_TRIALS.c.trial_id)
    .where(_TRIALS.c.study_id == bindparam("study"), _TRIALS.c.trial_id > bindparam("after"))
    .limit(1)
)


def read_trials(
    connection: Connection, study_id: int, *, after: int = -1, ids: Collection[int] = ()
) -> list[FrozenTrial]:
    """Trials in the order of their numbers: those of `ids`, and all whose id is larger than `after`."""
    chosen = (_TRIALS.c.study_id == study_id) & ((_TRIALS.c.trial_id > after) | _TRIALS.c.trial_id.in_(ids))
    heads = connection.execute(select(_TRIALS).where(chosen).order_by(_TRIALS.c.trial_id)).all()
    if not heads:
        return []
    values: dict[int, list[float]] = {}
    params, distributions, user, system, steps = (defaultdict[int, dict[Any, Any]](dict) for _ in range(5))
    for row in connection.execute(_of(_VALUES, chosen).order_by(_VALUES.c.objective)):
        amount = models.TrialValueModel.stored_repr_to_value(row.value, row.value_type)
        values.setdefault(row.trial_id, []).append(amount)
    for row in connection.execute(_of(_PARAMS, chosen).order_by(_PARAMS.c.param_id)):
        found = _distribution(row.distribution_json)
        params[row.trial_id][row.param_name] = found.to_external_repr(row.param_value)
        distributions[row.trial_id][row.param_name] = found
    for table, attributes in ((_USER, user), (_SYSTEM, system)):
        for row in connection.execute(_of(table, chosen)):
            attributes[row.trial_id][row.key] = json.loads(row.value_json)
    for row in connection.execute(_of(_STEPS, chosen)):
        steps[row.trial_id][row.step] = models.TrialIntermediateValueModel.stored_repr_to_intermediate_value(
            row.intermediate_value, row.intermediate_value_type
        )
    return [
        FrozenTrial(
            number=head.number,
            state=head.state,
            value=None,
            values=values.get(head.trial_id),
            datetime_start=_local(head.datetime_start),
            datetime_complete=_local(head.datetime_complete),
            params=params.get(head.trial_id, {}),
            distributions=distributions.get(head.trial_id, {}),
            user_attrs=user.get(head.trial_id, {}),
            system_attrs=system.get(head.trial_id, {}),
            intermediate_values=steps.get(head.trial_id, {}),
            trial_id=head.trial_id,
        )
        for head in heads
    ]


def read_new_trials(connection: Connection, study_id: int, after: int) -> list[FrozenTrial]:
    """Trials whose id is larger than `after`; mostly there are none."""
    newer = connection.execute(_NEWER, {"study": study_id, "after": after}).first()
    return [] if newer is None else read_trials(connection, study_id, after=after)


def read_study_attributes(connection: Connection, study_id: int, beginning: str = "") -> dict[str, Any]:
    """A study's attributes whose names begin like this, without wildcards in it."""
    found = connection.execute(_ATTRIBUTES, {"study": study_id, "like": f"{beginning}%"})
    return {row.key: json.loads(row.value_json) for row in found if row.key.startswith(beginning)}


def _of(table: Table, chosen: ColumnElement[bool]) -> Select[Any]:
    return select(table).join(_TRIALS, _TRIALS.c.trial_id == table.c.trial_id).where(chosen)


def _local(moment: datetime | None) -> datetime | None:
    """Optuna stores UTC without a zone, and shows local time without one."""
    return None if moment is None else moment.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.astimezone(UTC).replace(tzinfo=None)


class Writes:
    """Statements that write one value of a trial; writing the same again changes nothing."""

    def __init__(self, dialect: str) -> None:
        insert: Any = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[dialect]

        def upsert(table: Table, key: str, *rest: str) -> Any:
            given: Any = {name: bindparam(name) for name in ("trial_id", key, *rest)}
            statement = insert(table).values(given).inline()  # nobody asks for the row's id
            new = {name: statement.excluded[name] for name in rest}
            return statement.on_conflict_do_update(index_elements=["trial_id", key], set_=new)

        self._attributes = {
            "user": upsert(_USER, "key", "value_json"),
            "system": upsert(_SYSTEM, "key", "value_json"),
        }
        self._step = upsert(_STEPS, "step", "intermediate_value", "intermediate_value_type")
        self._param = upsert(_PARAMS, "param_name", "param_value", "distribution_json")
        # What an epoch writes, as one statement where the database can: a fifth of a transaction's time.
        self._epoch = (
            self._attributes["user"].add_cte(self._step.cte("step")) if dialect == "postgresql" else None
        )
        self._value = upsert(_VALUES, "objective", "value", "value_type")
        self._state = (
            sqlalchemy.update(_TRIALS)
            .where(
                _TRIALS.c.trial_id == bindparam("id"),
                _TRIALS.c.state.in_(bindparam("before", expanding=True)),
            )
            .values(state=bindparam("after"))
        )
        self._lock = (
            select(_STUDIES.c.study_id).where(_STUDIES.c.study_id == bindparam("study")).with_for_update()
        )
        row: dict[str, Any] = {
            name: bindparam(name) for name in ("study_id", "state", "datetime_start", "datetime_complete")
        }
        before = select(func.count()).where(_TRIALS.c.study_id == bindparam("study_id")).scalar_subquery()
        self._new = (
            insert(_TRIALS).values({**row, "number": before}).returning(_TRIALS.c.trial_id, _TRIALS.c.number)
        )
        self._begun = self._state.values(datetime_start=bindparam("at"))
        self._ended = self._state.values(datetime_complete=bindparam("at"))

    def make(self, connection: Connection, writes: Sequence[Write]) -> None:
        """Make writes that do not depend on each other; those of one statement at once, in their order."""
        rows: dict[int, list[Mapping[str, Any]]] = {}
        statements: dict[int, Any] = {}
        for statement, row in writes:
            statements[id(statement)] = statement
            rows.setdefault(id(statement), []).append(row)
        if self._epoch is not None and [*statements.values()] == [self._step, self._attributes["user"]]:
            (step, *more), (attribute, *others) = rows.values()
            if not more and not others and step["trial_id"] == attribute["trial_id"]:
                connection.execute(self._epoch, {**step, **attribute})
                return
        for key, found in rows.items():
            connection.execute(statements[key], found if len(found) > 1 else found[0])

    def create(self, connection: Connection, study_id: int, trial: FrozenTrial) -> tuple[int, int]:
        """A new trial like `trial`; its id and its number, which counts the study's trials."""
        connection.execute(self._lock, {"study": study_id})
        row = {
            "study_id": study_id,
            "state": trial.state,
            "datetime_start": _utc(trial.datetime_start),
            "datetime_complete": _utc(trial.datetime_complete),
        }
        made = connection.execute(self._new, row).one()
        trial_id, number = int(made.trial_id), int(made.number)
        writes = []
        for name, value in trial.params.items():
            distribution = trial.distributions[name]
            writes.append(self.param(trial_id, name, distribution.to_internal_repr(value), distribution))
        for kind, attributes in (("user", trial.user_attrs), ("system", trial.system_attrs)):
            for key, value in attributes.items():
                writes.append(self.attribute(kind, trial_id, key, json.dumps(value)))
        for step, amount in trial.intermediate_values.items():
            writes.append(self.step(trial_id, step, amount))
        self.make(connection, [*writes, *self._values(trial_id, trial.values)])
        return trial_id, number

    def attribute(self, kind: str, trial_id: int, key: str, text: str) -> Write:
        """An attribute as JSON text; kind: `user` or `system`."""
        return self._attributes[kind], {"trial_id": trial_id, "key": key, "value_json": text}

    def step(self, trial_id: int, step: int, amount: float) -> Write:
        """An intermediate value."""
        stored, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(amount)
        row = {"step": step, "intermediate_value": stored, "intermediate_value_type": kind}
        return self._step, {"trial_id": trial_id, **row}

    def param(self, trial_id: int, name: str, internal: float, distribution: BaseDistribution) -> Write:
        """A parameter in Optuna's internal form."""
        row = {"param_value": internal, "distribution_json": distribution_to_json(distribution)}
        return self._param, {"trial_id": trial_id, "param_name": name, **row}

    def state(
        self,
        connection: Connection,
        trial_id: int,
        before: Sequence[TrialState],
        after: TrialState,
        at: datetime,
        values: Sequence[float] | None,
    ) -> bool:
        """Change a trial's state from one of `before`, with its values; False, and nothing, when it has another."""
        row: Mapping[str, Any] = {"id": trial_id, "before": list(before), "after": after}
        moment = {"at": _utc(at)}
        if after is TrialState.WAITING:
            changed = connection.execute(self._state, row).rowcount
        else:
            statement = self._begun if after is TrialState.RUNNING else self._ended
            changed = connection.execute(statement, {**row, **moment}).rowcount
        if changed:
            self.make(connection, self._values(trial_id, values))
        return bool(changed)

    def _values(self, trial_id: int, values: Sequence[float] | None) -> list[Write]:
        found: list[Write] = []
        for objective, amount in enumerate(values or ()):
            stored, kind = models.TrialValueModel.value_to_stored_repr(amount)
            row = {"trial_id": trial_id, "objective": objective, "value": stored, "value_type": kind}
            found.append((self._value, row))
        return found
