"""Optuna's storage of one study, for the one process that writes to it: read once, then known.

Optuna's own cache asks the database for all unfinished trials at every look, and looks a dozen times a trial. As long
as a process holds a study, nobody else changes its trials, so what was read or written stays true; every write goes to
the database before it is known here. What others may have done all the same (queued a trial through Optuna's own API,
or what an outage of the server left behind) `refresh` finds.
"""

from __future__ import annotations

import copy
import json
import time
import zlib
from collections.abc import Callable, Collection, Container, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar

from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection

from regtune.storage.trials import Write, Writes, read_new_trials, read_study_attributes, read_trials
from regtune.storage.troubles import away

_Found = TypeVar("_Found")
_OPEN = (TrialState.RUNNING, TrialState.WAITING)

FIXED = "fixed_params"
"""Optuna's own attribute of a trial: what `enqueue_trial` was given."""
KEPT_SECONDS = 1.0
"""How long after a call the next one is made on the same connection, without trying first whether it lives."""


class Ledger(BaseStorage):
    """The trials of the study `study_id` in memory, in front of `backend`, which keeps everything else.

    **One writer**, in one thread. The process holds the study. **Ids are the database's.** **A trial that was handed
    out does not change**: each write replaces it, as in Optuna's own storage in memory. **Ended trials are small**:
    there may be a hundred thousand of them.

    packed: user attributes that are known as JSON text once they were written here, and of ended trials as `pack` makes
    it. seen: a trial that is read from the database, as it is known here.
    """

    def __init__(
        self,
        backend: RDBStorage,
        study_id: int,
        packed: Collection[str] = (),
        seen: Callable[[FrozenTrial], FrozenTrial] = lambda trial: trial,
    ) -> None:
        self.backend = backend
        self._study_id = study_id
        self._packed = packed
        self._seen = seen
        self._spaces: dict[tuple[str, ...], dict[str, BaseDistribution]] = {}
        self._name = backend.get_study_name_from_id(study_id)
        self._directions = backend.get_study_directions(study_id)
        self._writes = Writes(backend.engine.dialect.name)
        self._trials: list[FrozenTrial] = []
        self._numbers: dict[int, int] = {}
        self._open: dict[int, None] = {}
        self._known: dict[str, BaseDistribution] = {}
        self._pending: list[Write] | None = None
        self._connection: Connection | None = None
        self._used = 0.0
        self.refresh()

    def refresh(self) -> None:
        """Read the trials that are new in the database, and those that have not ended, again."""
        last = self._trials[-1]._trial_id if self._trials else -1
        ids = [self._trials[number]._trial_id for number in self._open]
        for trial in self._read(
            lambda connection: read_trials(connection, self._study_id, after=last, ids=ids)
        ):
            self._know(self._seen(trial))

    def look(self) -> None:
        """Read the trials that are new in the database: one look at the primary key when there is none."""
        last = self._trials[-1]._trial_id if self._trials else -1
        for trial in self._read(lambda connection: read_new_trials(connection, self._study_id, last)):
            self._know(self._seen(trial))

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is written in the block is one transaction, at its end or with the next change of a state.

        Until then it is known here and not to the database. Blocks within the block belong to it.
        """
        if self._pending is not None:
            yield
            return
        self._pending = []
        try:
            yield
        finally:
            try:
                if self._pending:
                    self._write_now(lambda _: None)
            finally:
                self._pending = None

    # -- trials

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """A new trial, running if there is no template. Trials that others have made meanwhile are known afterwards."""
        self._checked(study_id)
        found = copy.copy(template_trial or _running())
        trial_id, number = self._write_now(
            lambda connection: self._writes.create(connection, study_id, found)
        )
        if template_trial is not None or number != len(self._trials):
            self.look()
        else:
            found.number, found._trial_id = number, trial_id
            self._know(found)
        return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Write a parameter. Raises ValueError when other trials have it in another kind."""
        trial = self._updatable(trial_id)
        check_distribution_compatibility(self._known.get(param_name, distribution), distribution)
        self._write(self._writes.param(trial_id, param_name, param_value_internal, distribution))
        trial.params = {**trial.params, param_name: distribution.to_external_repr(param_value_internal)}
        trial.distributions = {**trial.distributions, param_name: distribution}
        self._know(trial)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Change the state; False when a trial that is to run does not wait. Raises UpdateFinishedTrialError."""
        trial, now = self._updatable(trial_id), datetime.now()
        before = (TrialState.WAITING,) if state is TrialState.RUNNING else _OPEN
        done = self._write_now(
            lambda connection: self._writes.state(connection, trial_id, before, state, now, values)
        )
        if not done:
            self.refresh()
            if state is TrialState.RUNNING:
                return False
            if self.get_trial(trial_id).state is not state:
                raise UpdateFinishedTrialError(f"trial {trial.number} has ended meanwhile")
            return True
        trial.state = state
        if values is not None:
            trial.values = list(values)
        if state is TrialState.RUNNING:
            trial.datetime_start = now
        if state.is_finished():
            trial.datetime_complete = now
        self._know(trial)
        return True

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Write the value of a step."""
        trial = self._updatable(trial_id)
        self._write(self._writes.step(trial_id, step, intermediate_value))
        trial.intermediate_values = {**trial.intermediate_values, step: intermediate_value}
        self._know(trial)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write an attribute; it is known as JSON gives it back, or as its text."""
        trial = self._updatable(trial_id)
        text = json.dumps(value)
        self._write(self._writes.attribute("user", trial_id, key, text))
        trial.user_attrs = {**trial.user_attrs, key: text if key in self._packed else json.loads(text)}
        self._know(trial)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Write an attribute of Optuna's."""
        trial = self._updatable(trial_id)
        text = json.dumps(value)
        self._write(self._writes.attribute("system", trial_id, key, text))
        trial.system_attrs = {**trial.system_attrs, key: json.loads(text)}
        self._know(trial)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """The trial, not to be changed. Raises KeyError."""
        return self._trials[self._numbers[trial_id]]

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """The database's id of a trial. Raises KeyError."""
        if self._checked(study_id) != study_id or not 0 <= trial_number < len(self._trials):
            raise KeyError(f"no trial {trial_number} in study {study_id}")
        return self._trials[trial_number]._trial_id

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Trials in the order of their numbers; copies, or not to be changed."""
        self._checked(study_id)
        if states is None:
            found = list(self._trials)
        elif not any(state in states for state in TrialState if state.is_finished()):
            found = [self._trials[number] for number in sorted(self._open)]
            found = [trial for trial in found if trial.state in states]
        else:
            found = [trial for trial in self._trials if trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    # -- the study

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Not here: a ledger is of one study. Raises KeyError."""
        raise KeyError(f"this storage is of study {self._name} alone")

    def delete_study(self, study_id: int) -> None:
        """Delete it from the database."""
        self.backend.delete_study(self._checked(study_id))

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """As Optuna's storage does."""
        self.backend.set_study_user_attr(study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """As Optuna's storage does."""
        self.backend.set_study_system_attr(study_id, key, value)

    def get_study_id_from_name(self, study_name: str) -> int:
        """The study's id. Raises KeyError for another study."""
        if study_name != self._name:
            raise KeyError(f"this storage is of study {self._name} alone")
        return self._study_id

    def get_study_name_from_id(self, study_id: int) -> str:
        """The study's name."""
        self._checked(study_id)
        return self._name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """The study's directions."""
        self._checked(study_id)
        return self._directions

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """As they are in the database now: other terminals write them."""
        self._checked(study_id)
        return self._read(lambda connection: read_study_attributes(connection, study_id))

    def get_study_user_attrs_like(self, beginning: str) -> dict[str, Any]:
        """Those whose names begin so, as they are in the database now."""
        return self._read(lambda connection: read_study_attributes(connection, self._study_id, beginning))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """As they are in the database now."""
        return self.backend.get_study_system_attrs(self._checked(study_id))

    def get_all_studies(self) -> list[FrozenStudy]:
        """The one study."""
        return [found for found in self.backend.get_all_studies() if found._study_id == self._study_id]

    # -- inside

    def _checked(self, study_id: int) -> int:
        if study_id != self._study_id:
            raise KeyError(f"this storage is of study {self._name} alone")
        return study_id

    def _updatable(self, trial_id: int) -> FrozenTrial:
        """A copy to be changed. Raises UpdateFinishedTrialError."""
        trial = self.get_trial(trial_id)
        self.check_trial_is_updatable(trial_id, trial.state)
        found = FrozenTrial.__new__(
            FrozenTrial
        )  # what copy.copy makes in five times the time, twenty times a trial
        vars(found).update(vars(trial))
        return found

    def _know(self, trial: FrozenTrial) -> None:
        if trial.state.is_finished():
            self._make_small(trial)
        if trial.number == len(self._trials):
            self._trials.append(trial)
            self._numbers[trial._trial_id] = trial.number
        else:
            self._trials[trial.number] = trial
        for name, distribution in trial.distributions.items():
            self._known.setdefault(name, distribution)
        if trial.state.is_finished():
            self._open.pop(trial.number, None)
        else:
            self._open[trial.number] = None

    def _make_small(self, trial: FrozenTrial) -> None:
        attributes = trial.user_attrs
        if any(key in attributes for key in self._packed):
            trial.user_attrs = {
                key: pack(value) if key in self._packed and not isinstance(value, bytes) else value
                for key, value in attributes.items()
            }
        known = self._spaces.setdefault(tuple(trial.distributions), trial.distributions)
        if known == trial.distributions:
            trial.distributions = known

    def _read(self, call: Callable[[Connection], _Found]) -> _Found:
        if self._pending:
            self._write_now(lambda _: None)
        return self._patiently(lambda: self._in_transaction(call))

    def _write(self, write: Write) -> None:
        if self._pending is None:
            self._write_now(lambda connection: self._writes.make(connection, [write]))
        else:
            self._pending.append(write)

    def _write_now(self, call: Callable[[Connection], _Found]) -> _Found:
        before = list(self._pending or ())

        def written(connection: Connection) -> _Found:
            self._writes.make(connection, before)
            return call(connection)

        if self._pending:
            self._pending.clear()
        return self._patiently(lambda: self._in_transaction(written))

    def _in_transaction(self, call: Callable[[Connection], _Found]) -> _Found:
        """On the connection of a moment ago, and if that was lost meanwhile on one that the pool has tried just now."""
        if time.monotonic() - self._used > KEPT_SECONDS:
            self._let_go()
        while True:
            kept = self._connection is not None
            connection = self._connection = self._connection or self.backend.engine.connect()
            called = False
            try:
                with connection.begin():
                    found = call(connection)
                    called = True
            except BaseException as error:
                self._let_go()
                if called or not kept or not away(error):  # once called it may be written
                    raise
                continue
            self._used = time.monotonic()
            return found

    def _let_go(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()

    def _patiently(self, call: Callable[[], _Found]) -> _Found:
        """Wait for a server that is away, where the backend does."""
        patience = getattr(self.backend, "patience", None)
        found: _Found = call() if patience is None else patience.through(call)
        return found


def _running() -> FrozenTrial:
    return FrozenTrial(
        number=-1,
        state=TrialState.RUNNING,
        value=None,
        datetime_start=datetime.now(),
        datetime_complete=None,
        params={},
        distributions={},
        user_attrs={},
        system_attrs={},
        intermediate_values={},
        trial_id=-1,
    )


def pack(value: Any) -> bytes:
    """A value of plain JSON, or the text of one, in a sixth of the memory that its objects take."""
    text = value if isinstance(value, str) else json.dumps(value)
    return zlib.compress(text.encode(), 1)


def unpack(packed: bytes) -> str:
    """The JSON text of what `pack` was given."""
    return zlib.decompress(packed).decode()
