"""A study in Optuna's database: create, open, resume, ask and tell; only its coordinator holds it open.

Optuna's database is the truth. What a study needs beside Optuna's own columns is in a handful of attributes (named in
`record.py`), and everything that can be counted is counted from the trials.

Nothing is lost between two writes: a trial's record is written before its state, so a trial that runs has a record, and
`settle` gives a trial the state that its record says.
"""

from __future__ import annotations

import difflib
import platform
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from regtune.config.sweepfile import SweepSpec
from regtune.config.trial import MAX_SEED
from regtune.errors import COMMAND, SpecChanged, StorageError, StudyNotFound
from regtune.escaping import printable, shell_word
from regtune.search.memory import Draft, numbered, plain
from regtune.settings import Settings
from regtune.storage import open_storage, place, understood
from regtune.storage.optuna import FIXED_PARAMS, Patience, rename_study
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
from regtune.study.trial_cache import TrialCache, unpack


def derive_seed(seed: int, number: int, purpose: str) -> int:
    """Return a seed for `purpose` of trial `number`, from the study's seed (numpy.random.SeedSequence, spawn key)."""
    key = {"training": 0, "sampler": 1}[purpose]
    state = np.random.SeedSequence(entropy=seed, spawn_key=(key, number)).generate_state(1, np.uint32)
    return int(state[0]) & MAX_SEED


_BEGINNING = {SPEC, BUDGET, DESCRIPTION, VERSIONS, CREATED, DATA}
"""Attributes that a study has before it has its uid; one with no other and without trials was cut off there."""


class Study:
    """An open study: open one with `Study.open` while `hold` holds its name."""

    def __init__(self, storage: BaseStorage, name: str, patience: Patience) -> None:
        self._patience = patience
        self._id = storage.get_study_id_from_name(name)
        self.attributes: dict[str, Any] = storage.get_study_user_attrs(self._id)
        """As far as this process has set or read them."""
        self.uid = uid_of(self.attributes[STUDY_UID])
        self._storage = TrialCache(storage, self._id, self.uid, patience)
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
        """Start the study of this spec and data, or resume it. Raises SpecChanged, StorageError.

        data: what is stored of the data set, its digest among it. fresh: set an earlier study of the same name aside,
        under another name, and start anew. patience: waits while a PostgreSQL server is away; by default nothing does.
        """
        where = place(settings.storage_url)
        if patience is None:
            patience = Patience(where)
            patience.stop()
        storage = open_storage(settings, patience.check, session(spec.name))
        aside: str | None = None

        def opened() -> Study:
            nonlocal aside
            known = {study.study_name: study.user_attrs for study in storage.get_all_studies()}
            if fresh and spec.name in known and aside is None:
                aside = _set_aside(storage, spec.name)
            elif spec.name in known:
                if known[spec.name].get(STUDY_UID):
                    return cls._resume(storage, spec, data, patience)
                study_id = storage.get_study_id_from_name(spec.name)
                if not known[spec.name].keys() <= _BEGINNING or storage.get_n_trials(study_id):
                    raise SpecChanged(
                        f'study "{spec.name}" in {where} was not created by regtune; take another name with: '
                        f"{COMMAND.get()} --name {shell_word(f'{spec.name}-2')}"
                    )
                storage.delete_study(study_id)  # a beginning that was cut off
            return cls._start(storage, spec, data, patience)

        with understood(where):
            study = patience.through(opened)
        study.aside = aside
        return study

    @classmethod
    def _start(
        cls, storage: RDBStorage, spec: SweepSpec, data: Mapping[str, Any] | None, patience: Patience
    ) -> Study:
        study = optuna.create_study(storage=storage, study_name=spec.name, direction=spec.metric.goal)
        attributes = {
            SPEC: spec.identity(),
            BUDGET: _budget(spec),
            DESCRIPTION: spec.description,
            VERSIONS: versions(),
            CREATED: now_ms(),
            **({} if data is None else {DATA: dict(data)}),
            STUDY_UID: uuid.uuid4().hex,
        }
        for key, value in attributes.items():  # the uid last: without it the study has not begun
            study.set_user_attr(key, value)
        return cls(storage, spec.name, patience)

    @classmethod
    def _resume(
        cls, storage: RDBStorage, spec: SweepSpec, data: Mapping[str, Any] | None, patience: Patience
    ) -> Study:
        study = cls(storage, spec.name, patience)
        for trial in study.trials():  # before anything is written: what cannot be read is not resumed
            record_of(trial)
        known = study.attributes.get(SPEC)
        if not isinstance(known, Mapping):
            unread = f'study "{spec.name}": its sweep file cannot be read'
            raise StorageError(f"{unread}; was it written by another program?")
        known_data = study.attributes.get(DATA)
        require_same(spec, known, known_data, data)
        if data is not None and known_data is None:  # cut off in a version that stored it later
            study.set_attribute(DATA, dict(data))
        study.set_attribute(BUDGET, _budget(spec))
        study.set_attribute(VERSIONS, versions())
        return study

    def set_attribute(self, key: str, value: Any) -> None:
        self.optuna.set_user_attr(key, value)
        self.attributes[key] = value

    def trials(self, *states: TrialState) -> Sequence[FrozenTrial]:
        """Return trials in the order of their numbers, of all states or of those given; they must not be changed."""
        return self.optuna.get_trials(deepcopy=False, states=states or None)

    def begin(self) -> None:
        """Record that a sweep is under way."""
        if self.attributes.get(ENDED) is not None:
            self.set_attribute(ENDED, None)

    def end(self, state: str, at_ms: int) -> None:
        """Record how a sweep ended: FINISHED, KILLED or FAILED."""
        self.set_attribute(ENDED, {"state": state, "at_ms": at_ms})

    def settle(self, held: Collection[int] = ()) -> None:
        """After a coordinator's death, end the trials whose end was recorded, and queue the others again.

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
        return self._patience.outages

    def sign(self, ownership: Ownership) -> None:
        ownership.sign(self._storage)

    def check_ownership(self) -> None:
        """Require that this process still owns the study, waiting for its database if it is away. Raises StudyBusy."""
        self._patience.through(self._patience.check)

    def read_queue(self) -> None:
        """Read what other programs have queued through Optuna's own API."""
        self._storage.read_new()

    def adopt(self, number: int, parameters: Mapping[str, Any]) -> None:
        """Take a trial that another program has queued for a request, with the given Optuna parameters."""
        self._storage.set_trial_system_attr(number, FIXED_PARAMS, dict(parameters))
        origin = Origin("request", f"queued {number}")
        self._storage.set_trial_user_attr(number, ORIGIN, origin.to_json())

    def refuse(self, number: int, reason: str) -> None:
        self._storage.set_trial_user_attr(number, REFUSED, reason)
        self._storage.set_trial_state_values(number, TrialState.FAIL)

    def queue(self, origin: Origin, parameters: Mapping[str, Any]) -> None:
        self.optuna.enqueue_trial(dict(parameters), user_attrs={ORIGIN: origin.to_json()})

    def ask(self, sampler: BaseSampler, shown: Iterable[FrozenTrial]) -> Draft:
        """Return a draft of the first trial that waits, else of a new one. shown: the trials that the sampler sees."""
        return Draft(self._storage, shown, sampler)

    def start(self, trial: FrozenTrial, record: TrialRecord) -> bool:
        """Write a trial with its record as running; False when another program has taken it or its number."""
        started = numbered(trial, trial.number)
        started.user_attrs[RECORD] = plain(record.to_json())
        return self._storage.start(started)

    def report(self, number: int, epoch: int, value: float) -> None:
        self._storage.set_trial_intermediate_value(number, epoch, value)

    def should_prune(self, number: int) -> bool:
        """Ask the pruner whether a trial ends after the epoch that was reported last."""
        return self.optuna.pruner.prune(self.optuna, self._storage.get_trial(number))

    def write(self, number: int, record: TrialRecord) -> None:
        self._storage.set_trial_user_attr(number, RECORD, record.to_json())

    def tell(self, number: int, record: TrialRecord) -> TrialState:
        """Give a trial the state and the value that its record says."""
        state = TrialState[record.end_state or "FAIL"]
        value = None
        if state is TrialState.COMPLETE and record.kept is not None:
            value = record.kept.figures[str(self.attributes[SPEC]["metric"]["name"])]
        self.optuna.tell(number, value, state=state, skip_if_finished=True)
        return state

    def requeue(self, number: int) -> None:
        """Put a running trial back into the queue, under its own number."""
        self._storage.set_trial_state_values(number, TrialState.WAITING)

    def requests(self) -> list[Request]:
        """Return what other terminals have asked for and nobody has taken up, oldest first."""
        asked = {key: value for key, value in self._stored().items() if key.startswith(REQUEST)}
        keys = [key for key in asked if asked[key].get("taken_ms") is None]
        keys.sort(key=lambda key: asked[key]["at_ms"])
        return [Request(key, asked[key]["verb"], asked[key]["parameters"]) for key in keys]

    def take(self, request: Request, answer: str = "") -> None:
        """Mark a request as taken up. answer: for whoever has asked."""
        value = self._stored()[request.key]
        self.optuna.set_user_attr(request.key, {**value, "taken_ms": now_ms(), "answer": answer})

    def _stored(self) -> dict[str, Any]:
        return self._storage.get_study_user_attrs(self._id)


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


def record_of(trial: FrozenTrial) -> TrialRecord | None:
    """Return a trial's record, or None when it never started. Raises StorageError."""
    record = trial.user_attrs.get(RECORD)
    if isinstance(record, bytes):
        record = unpack(record)
    return None if record is None else TrialRecord.from_json(record, f"trial {trial.number}")


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def versions() -> dict[str, str]:
    """Return what decides whether a trial repeats itself: versions, and the kind of machine."""
    installed = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("regtune", "tensorflow", "tensorflow-cpu", "keras", "numpy", "optuna", "mlflow"):
        with suppress(PackageNotFoundError):
            installed["tensorflow" if name == "tensorflow-cpu" else name] = version(name)
    return installed


def request(settings: Settings, name: str, verb: str, parameters: Mapping[str, Value] | None = None) -> str:
    """Ask the coordinator of study `name` for something and return the request's key. Raises StudyNotFound."""
    storage = open_storage(settings)
    with understood(place(settings.storage_url)):
        study = load(storage, name)
        key = f"{REQUEST}{uuid.uuid4().hex}"
        value = {"verb": verb, "parameters": dict(parameters or {}), "at_ms": now_ms(), "taken_ms": None}
        study.set_user_attr(key, value)
    return key


def load(storage: optuna.storages.BaseStorage, name: str) -> optuna.Study:
    """Return an Optuna study by name. Raises StudyNotFound with the nearest name."""
    names = optuna.get_all_study_names(storage=storage)
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f'; did you mean "{printable(near[0])}"?' if near else "; see: regtune studies"
        raise StudyNotFound(f'no study "{printable(name)}"{hint}')
    return optuna.load_study(storage=storage, study_name=name)


def delete(settings: Settings, name: str, first: Callable[[str], None] = lambda uid: None) -> str:
    """Delete a study from Optuna's database and return its uid. Raises StudyNotFound, StudyBusy.

    first: called with the uid before, while nobody else can run the study.
    """
    where = place(settings.storage_url)
    with understood(where):
        uid = uid_of(load(open_storage(settings), name).user_attrs.get(STUDY_UID))
        with hold(settings, name) as ownership:
            first(uid)
            storage = open_storage(settings, ownership.check, session(name))
            optuna.delete_study(study_name=name, storage=storage)
    return uid


def _set_aside(storage: RDBStorage, name: str) -> str:
    """Rename a study and return its new name; nothing of it is lost. Who may still run it is shut out."""
    aside = f"{name} (until {time.strftime('%Y-%m-%d %H:%M:%S')})"
    study_id = storage.get_study_id_from_name(name)
    storage.set_study_user_attr(study_id, COORDINATOR, "")
    rename_study(storage, study_id, aside)
    return aside


def _budget(spec: SweepSpec) -> dict[str, Any]:
    return {"run_cap": spec.run_cap, "timeout": spec.timeout, "keep_models": spec.keep_models}
