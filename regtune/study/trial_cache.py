"""A cache of one study's trials, for the one process that writes to the study.

Optuna's own cache asks the database for all unfinished trials at every look, and looks a dozen times a trial. As long
as a process owns a study, nobody else changes its trials: they are read once and then known, and every write goes to
the database before it is known here. `refresh` finds what others have done all the same: trials that they queued
through Optuna's own API, and what an outage of the server left behind.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from regtune.search.memory import StudyInMemory, numbered, plain
from regtune.storage.optuna import Patience
from regtune.study.record import RECORD, trial_uid

_Result = TypeVar("_Result")


class TrialCache(StudyInMemory):
    """The trials of one study in memory, each write passed on to the database.

    What another program has trained is a failed trial of which nothing is known (`board` calls it FOREIGN), so that it
    counts for nothing. Records of ended trials are packed: there may be a hundred thousand of them. Each call of the
    database's public methods goes through `patience`. uid: of the study; a record with another was copied.
    """

    def __init__(self, database: BaseStorage, study_id: int, uid: str, patience: Patience) -> None:
        self.patience = patience
        self._uid = uid
        self._ids: dict[int, int] = {}
        super().__init__(database, study_id)
        for trial in self._call(lambda: database.get_all_trials(study_id, deepcopy=False)):
            self.keep(self._own(trial))

    def keep(self, trial: FrozenTrial) -> None:
        """Add or replace a trial; the record of an ended one is packed."""
        record = trial.user_attrs.get(RECORD)
        if trial.state.is_finished() and record is not None and not isinstance(record, bytes):
            trial.user_attrs = {**trial.user_attrs, RECORD: pack(record)}
        super().keep(trial)

    def refresh(self) -> None:
        for number in sorted(self._open):
            self._read(number)
        self.read_new()

    def read_new(self) -> None:
        """Read the trials that are new in the database; where there are none, that is one query."""
        while True:
            number = len(self._trials)
            try:
                self._id(number)
            except KeyError:
                return
            self._read(number)

    def start(self, trial: FrozenTrial) -> bool:
        """Write a trial of a `Draft` as running: a new one as a whole, one that waited step by step, its state last.

        Returns False when another program has added a trial of this number, or has taken this one.
        """
        number = trial.number
        if number not in self._trials:
            return self.create_new_trial(self.study_id, trial) == number
        known = self._trials[number]
        for name, distribution in trial.distributions.items():
            if name not in known.params:
                value = distribution.to_internal_repr(trial.params[name])
                self.set_trial_param(number, name, value, distribution)
        for key, value in trial.system_attrs.items():
            if known.system_attrs.get(key) != value:
                self.set_trial_system_attr(number, key, value)
        for key, value in trial.user_attrs.items():
            if known.user_attrs.get(key) != value:
                self.set_trial_user_attr(number, key, value)
        return self.set_trial_state_values(number, TrialState.RUNNING)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        template = template_trial or create_trial(state=TrialState.RUNNING)
        known = numbered(template, len(self._trials))
        known.user_attrs, known.system_attrs = plain(template.user_attrs), plain(template.system_attrs)
        outages = self.patience.outages

        def created() -> int | None:
            """The number of a trial that a call has created which was cut off before it said so."""
            self.read_new()
            new = range(known.number, len(self._trials))
            same = (n for n in new if known.user_attrs and self._trials[n].user_attrs == known.user_attrs)
            return next(same, None)

        def create() -> int:
            number = created() if self.patience.outages != outages else None
            return self.backend.create_new_trial(study_id, template) if number is None else self._id(number)

        trial_id = self._call(create)
        if known.number == len(self._trials) and self._id(known.number) == trial_id:
            self.keep(known)
            return known.number
        number = created()  # Optuna too makes a call again that was cut off
        if number is None:
            number = next(n for n in reversed(self._trials) if self._id(n) == trial_id)
        return number

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        given = param_name, param_value_internal, distribution
        self._call_with_id(self.backend.set_trial_param, trial_id, *given)
        super().set_trial_param(trial_id, *given)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        outages = self.patience.outages
        try:
            done = self._call_with_id(self.backend.set_trial_state_values, trial_id, state, values)
        except UpdateFinishedTrialError:
            self._read(trial_id)
            raise
        if done:
            return super().set_trial_state_values(trial_id, state, values)
        self._read(trial_id)
        return self.patience.outages != outages  # then the call that was cut off had done it

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self._call_with_id(self.backend.set_trial_intermediate_value, trial_id, step, intermediate_value)
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._call_with_id(self.backend.set_trial_user_attr, trial_id, key, value)
        super().set_trial_user_attr(trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._call_with_id(self.backend.set_trial_system_attr, trial_id, key, value)
        super().set_trial_system_attr(trial_id, key, value)

    def _call(self, call: Callable[[], _Result]) -> _Result:
        return self.patience.through(call)

    def _call_with_id(self, call: Callable[..., _Result], number: int, *given: Any) -> _Result:
        trial_id = self._id(number)
        return self._call(lambda: call(trial_id, *given))

    def _read(self, number: int) -> None:
        self.keep(self._own(self._call_with_id(self.backend.get_trial, number)))

    def _id(self, number: int) -> int:
        """The database's id of a trial. Raises KeyError."""
        if number not in self._ids:
            find = self.backend.get_trial_id_from_study_id_trial_number
            self._ids[number] = self._call(lambda: find(self.study_id, number))
        return self._ids[number]

    def _own(self, trial: FrozenTrial) -> FrozenTrial:
        """A trial of the database as it is known here: its number is its id, and a foreign one has failed."""
        record = trial.user_attrs.get(RECORD)
        own = isinstance(record, dict) and record.get("uid") == trial_uid(self._uid, trial.number)
        begins = trial.state is TrialState.WAITING or (trial.state is TrialState.RUNNING and not trial.params)
        if not own and not begins:
            return numbered(create_trial(state=TrialState.FAIL), trial.number)
        known = numbered(trial, trial.number)
        if not own and record is not None:
            known.user_attrs = {}
        return known


def pack(record: Any) -> bytes:
    """Return plain JSON in a sixth of the memory that its objects take."""
    return zlib.compress(json.dumps(record).encode(), 1)


def unpack(packed: bytes) -> str:
    return zlib.decompress(packed).decode()
