"""A study: made, opened, continued, asked and told. The coordinator is the only one who holds it open.

Optuna's database is the truth. What a study needs beside Optuna's own columns lies in a handful of attributes (named in
`record.py`), and everything that can be counted is counted from the trials.
"""

from __future__ import annotations

import json
import platform
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from regtune.config.sweepfile import SweepSpec
from regtune.config.trial import MAX_SEED
from regtune.errors import COMMAND, SpecChanged, StorageError, StudyNotFound
from regtune.escaping import printable, shell_word
from regtune.settings import Settings
from regtune.storage import open_storage, place, understood
from regtune.storage.patience import Patience, PatientStorage
from regtune.study.foreign import seen
from regtune.study.origins import Origin, Request
from regtune.study.ownership import Ownership, hold, session
from regtune.study.record import (
    BUDGET,
    COORDINATOR,
    CREATED,
    DATA,
    DESCRIPTION,
    ENDED,
    ORIGIN,
    RECORD,
    REFUSED,
    REQUEST,
    SPEC,
    STUDY_UID,
    VERSIONS,
    TrialRecord,
    Value,
    uid_of,
)
from regtune.study.trial_cache import FIXED, Ledger, unpack


def derive_seed(seed: int, number: int, purpose: str) -> int:
    """A seed for `purpose` of trial `number`, from the study's seed (numpy.random.SeedSequence, spawn key)."""
    key = {"training": 0, "sampler": 1}[purpose]
    state = np.random.SeedSequence(entropy=seed, spawn_key=(key, number)).generate_state(1, np.uint32)
    return int(state[0]) & MAX_SEED


_BEGINNING = {SPEC, BUDGET, DESCRIPTION, VERSIONS, CREATED, DATA}
"""Attributes that a study has before it has its uid; one with no other and without trials was cut off there."""


class Study:
    """An open study. Make one with `Study.open` while `hold` holds its name."""

    def __init__(self, storage: RDBStorage, name: str) -> None:
        self._patience = storage.patience if isinstance(storage, PatientStorage) else None
        self._id = storage.get_study_id_from_name(name)
        self._attributes: dict[str, Any] = storage.get_study_user_attrs(self._id)
        self.uid = uid_of(self._attributes[STUDY_UID])
        self._storage = Ledger(storage, self._id, packed=(RECORD,), seen=partial(seen, study=self.uid))
        self.optuna = optuna.load_study(storage=self._storage, study_name=name)
        self.name = name
        self.aside: str | None = None
        """The name that the earlier study of this name has now, where one was set aside."""

    @classmethod
    def open(
        cls,
        settings: Settings,
        spec: SweepSpec,
        *,
        data: Mapping[str, Any] | None = None,
        fresh: bool = False,
        patience: Patience | None = None,
    ) -> Study:
        """Go on with the study of this spec and data, or begin it. Raises SpecChanged, StorageError.

        data: what is stored of the data set, its digest among it. fresh: set an earlier study of the same name aside,
        under another name, and begin anew. patience: how to wait while a PostgreSQL server is away.
        """
        where = place(settings.storage_url)
        storage = open_storage(settings, patience, session(spec.name))
        with understood(where):
            known = {study.study_name: study for study in storage.get_all_studies()}
            aside = None
            if spec.name in known and fresh:
                aside = _set_aside(storage, spec.name)
            elif spec.name in known and known[spec.name].user_attrs.get(STUDY_UID):
                return cls._continue(storage, spec, data)
            elif spec.name in known and (
                not known[spec.name].user_attrs.keys() <= _BEGINNING
                or storage.get_n_trials(known[spec.name]._study_id)
            ):
                raise SpecChanged(
                    f'study "{spec.name}" in {where} was not created by regtune; take another name with: '
                    f"{COMMAND.get()} --name {shell_word(f'{spec.name}-2')}"
                )
            elif spec.name in known:
                optuna.delete_study(study_name=spec.name, storage=storage)  # a beginning that was cut off
            begun = cls._begin(storage, spec, data)
            begun.aside = aside
            return begun

    @classmethod
    def _begin(cls, storage: RDBStorage, spec: SweepSpec, data: Mapping[str, Any] | None) -> Study:
        study = optuna.create_study(storage=storage, study_name=spec.name, direction=spec.metric.goal)
        found = {
            SPEC: spec.identity(),
            BUDGET: _budget(spec),
            DESCRIPTION: spec.description,
            VERSIONS: versions(),
            CREATED: now_ms(),
            **({} if data is None else {DATA: dict(data)}),
            STUDY_UID: uuid.uuid4().hex,
        }
        for key, value in found.items():  # the uid last: without it the study has not begun
            study.set_user_attr(key, value)
        return cls(storage, spec.name)

    @classmethod
    def _continue(cls, storage: RDBStorage, spec: SweepSpec, data: Mapping[str, Any] | None) -> Study:
        found = cls(storage, spec.name)
        for trial in found.trials():  # before anything is written: what cannot be read is not gone on with
            record_of(trial)
        known = found._attributes.get(SPEC)
        if not isinstance(known, Mapping):
            raise StorageError(
                f'study "{spec.name}": its sweep file cannot be read; was it written by another program?'
            )
        known_data = found._attributes.get(DATA)
        require_same(spec, known, known_data, data)
        if (
            known_data is None and data is not None
        ):  # begun by a version that stored it later, and cut off there
            found.set_attribute(DATA, dict(data))
        found.set_attribute(BUDGET, _budget(spec))
        found.set_attribute(VERSIONS, versions())
        return found

    def set_attribute(self, key: str, value: Any) -> None:
        """Set an attribute of the study."""
        self.optuna.set_user_attr(key, value)
        self._attributes[key] = value

    @property
    def attributes(self) -> Mapping[str, Any]:
        """The study's attributes, as far as this process has set or read them."""
        return self._attributes

    def trials(self, *states: TrialState) -> Sequence[FrozenTrial]:
        """Trials in the order of their numbers, of all states or of those given; not to be changed."""
        return self.optuna.get_trials(deepcopy=False, states=states or None)

    def begin(self) -> None:
        """Record that a sweep is under way."""
        if self._attributes.get(ENDED) is not None:
            self.set_attribute(ENDED, None)

    def end(self, state: str, at_ms: int) -> None:
        """Record how a sweep ended: FINISHED, KILLED or FAILED."""
        self.set_attribute(ENDED, {"state": state, "at_ms": at_ms})

    def settle(self, held: Collection[int] = ()) -> None:
        """After a coordinator's death: end the trials whose end was recorded, and queue the others again.

        A trial that was interrupted keeps its number, its parameters and its seed, so it repeats itself exactly.
        held: numbers of trials that are in a worker's hands and go on.
        """
        self._storage.refresh()
        for trial in self.trials(TrialState.RUNNING):
            if trial.number in held:
                continue
            record = record_of(trial)
            if record is not None and record.end_reason is not None:
                self.tell(trial.number, record)
            else:
                self.requeue(trial.number)

    @property
    def outages(self) -> int:
        """How often the database was away since the study was opened; 0 on SQLite."""
        return self._patience.outages if self._patience else 0

    def sign(self, ownership: Ownership) -> None:
        """Sign as the one who runs the study."""
        ownership.sign(self._storage)

    def check_ownership(self) -> None:
        """Require that this process still owns the study, waiting for its database if it is away. Raises StudyBusy."""
        if self._patience:
            self._patience.through(self._patience.check)

    def requeue(self, number: int) -> None:
        """Put a running trial back into the queue, under its own number."""
        self._storage.set_trial_state_values(self._trial_id(number), TrialState.WAITING)

    def adopt(self, number: int, parameters: Mapping[str, Any]) -> None:
        """Take a trial that another program has queued for a request, with the given Optuna parameters."""
        origin = Origin("request", f"queued {number}")
        with self.together():
            self._storage.set_trial_system_attr(self._trial_id(number), FIXED, dict(parameters))
            self._storage.set_trial_user_attr(self._trial_id(number), ORIGIN, origin.to_json())

    def refuse(self, number: int, reason: str) -> None:
        """End a trial that another program has queued before it is trained."""
        with self.together():
            self._storage.set_trial_user_attr(self._trial_id(number), REFUSED, reason)
            self._storage.set_trial_state_values(self._trial_id(number), TrialState.FAIL)

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)

    def queue(self, origin: Origin, parameters: Mapping[str, Any]) -> None:
        """Queue a trial with the given Optuna parameters."""
        self.optuna.enqueue_trial(dict(parameters), user_attrs={ORIGIN: origin.to_json()})

    def together(self) -> AbstractContextManager[None]:
        """Whatever is written of trials in this block is one transaction."""
        return self._storage.together()

    def look(self) -> None:
        """See what others have queued through Optuna's own API."""
        self._storage.look()

    def write(self, trial: optuna.Trial, record: TrialRecord) -> None:
        """Write a trial's record."""
        trial.set_user_attr(RECORD, record.to_json())

    def tell(self, number: int, record: TrialRecord) -> TrialState:
        """Give a trial the state and the value that its record says."""
        state = state_of(record)
        value = None
        if state is TrialState.COMPLETE and record.kept is not None:
            value = record.kept.figures[str(self._attributes[SPEC]["metric"]["name"])]
        self.optuna.tell(number, value, state=state, skip_if_finished=True)
        return state

    def requests(self) -> list[Request]:
        """What other terminals have asked for and nobody has taken up, oldest first."""
        found = []
        for key, value in self._storage.get_study_user_attrs_like(REQUEST).items():
            if value.get("taken_ms") is None:
                found.append((value["at_ms"], Request(key, value["verb"], value["parameters"]), value))
        return [request for _, request, _ in sorted(found, key=lambda item: item[0])]

    def take(self, request: Request, answer: str = "") -> None:
        """Mark a request as taken up. answer: for whoever has asked."""
        value = self._storage.get_study_user_attrs(self._id)[request.key]
        self.optuna.set_user_attr(request.key, {**value, "taken_ms": now_ms(), "answer": answer})


def require_same(
    spec: SweepSpec,
    known: Mapping[str, Any],
    known_data: Mapping[str, Any] | None,
    data: Mapping[str, Any] | None,
) -> None:
    """Raise SpecChanged unless `spec` and the digest of `data` are what the study of this name was begun with."""
    differences = spec.differences(known)
    if known_data and data and known_data["digest"] != data["digest"]:
        before, now = (f"{one['name']} with digest {one['digest'][:12]}..." for one in (known_data, data))
        differences.append(f"data: {before} → {now}")
    if differences:
        command = COMMAND.get()
        raise SpecChanged(
            f'study "{spec.name}" exists and was started with another sweep file or other data; '
            f"take another name with: {command} --name {shell_word(f'{spec.name}-2')}; "
            f"or set the earlier one aside with: {command} --fresh; what differs:",
            [f"  {line}" for line in differences],
        )


def state_of(record: TrialRecord) -> TrialState:
    """The state of a trial whose record has an end."""
    return TrialState[record.end_state or "FAIL"]


def record_of(trial: FrozenTrial) -> TrialRecord | None:
    """A trial's record, or None when it never started."""
    found = trial.user_attrs.get(RECORD)
    if isinstance(found, bytes):
        found = unpack(found)
    return None if found is None else TrialRecord.from_json(found, f"trial {trial.number}")


def now_ms() -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


def versions() -> dict[str, str]:
    """What decides whether a trial repeats itself: versions and the machine's kind."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("regtune", "tensorflow", "tensorflow-cpu", "keras", "numpy", "optuna", "mlflow"):
        try:
            found["tensorflow" if name == "tensorflow-cpu" else name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def request(settings: Settings, name: str, verb: str, parameters: Mapping[str, Value] | None = None) -> str:
    """Ask the coordinator of study `name` for something. Returns the request's key. Raises StudyNotFound."""
    storage = open_storage(settings)
    with understood(place(settings.storage_url)):
        study = load(storage, name)
        key = f"{REQUEST}{uuid.uuid4().hex}"
        value = {"verb": verb, "parameters": dict(parameters or {}), "at_ms": now_ms(), "taken_ms": None}
        study.set_user_attr(key, value)
    return key


def load(storage: optuna.storages.BaseStorage, name: str) -> optuna.Study:
    """An Optuna study by name. Raises StudyNotFound with the nearest name."""
    import difflib

    names = optuna.get_all_study_names(storage=storage)
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f'; did you mean "{printable(near[0])}"?' if near else "; see: regtune studies"
        raise StudyNotFound(f'no study "{printable(name)}"{hint}')
    return optuna.load_study(storage=storage, study_name=name)


def delete(settings: Settings, name: str, first: Callable[[str], None] = lambda uid: None) -> str:
    """Delete a study from Optuna's database; `first` is called with its uid before, while nobody else can run it.

    Returns its uid. Raises StudyNotFound, StudyBusy.
    """
    where = place(settings.storage_url)
    with understood(where):
        uid = uid_of(load(open_storage(settings), name).user_attrs.get(STUDY_UID))
        with hold(settings, name) as ownership:
            patience = Patience(where, ownership.check)
            patience.stop()
            first(uid)
            optuna.delete_study(study_name=name, storage=open_storage(settings, patience, session(name)))
    return uid


def _set_aside(storage: RDBStorage, name: str) -> str:
    """Rename a study and return its new name; nothing of it is lost. Who may still run it is shut out."""
    aside = f"{name} (until {time.strftime('%Y-%m-%d %H:%M:%S')})"
    given = {"aside": aside, "name": name, "key": COORDINATOR, "nobody": json.dumps("")}
    with storage.engine.begin() as connection:
        for statement in (
            "UPDATE study_user_attributes SET value_json = :nobody WHERE key = :key "
            "AND study_id = (SELECT study_id FROM studies WHERE study_name = :name)",
            "UPDATE studies SET study_name = :aside WHERE study_name = :name",
        ):
            connection.execute(sqlalchemy.text(statement), given)
    return aside


def _budget(spec: SweepSpec) -> dict[str, Any]:
    return {"run_cap": spec.run_cap, "timeout": spec.timeout, "keep_models": spec.keep_models}
