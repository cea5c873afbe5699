"""A study in Optuna's database: create, open, resume, ask and tell; only its coordinator holds it open.

Optuna's database is the truth. What a study needs beside Optuna's own columns is in a handful of attributes (named in
`record.py`), and everything that can be counted is counted from the trials.

Nothing is lost between two writes: a trial's record is written before its state, so a trial that runs has a record, and
`settle` gives a trial the state that its record says.
"""

from __future__ import annotations

import platform
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from regtune.config.sweepfile import SweepSpec
from regtune.config.trial import MAX_SEED
from regtune.errors import COMMAND, SpecChanged, StorageError
from regtune.escaping import shell_word
from regtune.search.memory import Draft, numbered, plain
from regtune.settings import Settings
from regtune.storage import open_storage, place, understood
from regtune.storage.optuna import FIXED_PARAMS, Patience, rename_study
from regtune.study import record as stored
from regtune.study import tables
from regtune.study.decision import Decision, Replicate, decision_of, replicates_of
from regtune.study.ownership import hold, session
from regtune.study.record import Origin, TrialRecord, Value, uid_of
from regtune.study.tables import unknown_study
from regtune.study.trial_cache import TrialCache, unpack


def derive_seed(seed: int, number: int, purpose: str) -> int:
    """Return a seed for `purpose` of trial or replicate `number`, from the study's (numpy.random.SeedSequence)."""
    key = {"training": 0, "sampler": 1, "replicate": 2, "split": 3}[purpose]
    state = np.random.SeedSequence(entropy=seed, spawn_key=(key, number)).generate_state(1, np.uint32)
    return int(state[0]) & MAX_SEED


_BEGINNING = {stored.SPEC, stored.BUDGET, stored.DESCRIPTION, stored.VERSIONS, stored.CREATED, stored.DATA}
"""Attributes that a study has before it has its uid; one with no other and without trials was cut off there."""


@dataclass(frozen=True)
class Request:
    """What another terminal asks of the coordinator."""

    key: str
    verb: str
    parameters: Mapping[str, Value]
    at_ms: int


class Study:
    """An open study: open one with `Study.open` while `hold` holds its name."""

    def __init__(self, storage: BaseStorage, name: str, patience: Patience) -> None:
        self._patience = patience
        self._settled_outages = 0
        study_id = storage.get_study_id_from_name(name)
        self.attributes: dict[str, Any] = storage.get_study_user_attrs(study_id)
        """As far as this process has set or read them."""
        self.uid = uid_of(self.attributes[stored.STUDY_UID])
        self._storage = TrialCache(storage, study_id, self.uid, patience)
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
            study_id = _id_of(storage, spec.name)
            if study_id is not None and fresh and aside is None:
                aside = _set_aside(storage, spec.name)
            elif study_id is not None:
                known = storage.get_study_user_attrs(study_id)
                if known.get(stored.STUDY_UID):
                    study = cls(storage, spec.name, patience)
                    study._resume(spec, data)
                    return study
                if not known.keys() <= _BEGINNING or storage.get_n_trials(study_id):
                    raise SpecChanged(
                        f'study "{spec.name}" in {where} was not created by regtune; {_another_name(spec)}'
                    )
                storage.delete_study(study_id)  # a beginning that was cut off
            _start(storage, spec, data)
            return cls(storage, spec.name, patience)

        with understood(where):
            study = patience.through(opened)
        study.aside = aside
        return study

    def _resume(self, spec: SweepSpec, data: Mapping[str, Any] | None) -> None:
        for trial in self.trials():  # before anything is written: what cannot be read is not resumed
            record_of(trial)
        known, known_data = self.attributes.get(stored.SPEC), self.attributes.get(stored.DATA)
        if not isinstance(known, Mapping):
            unread = f'study "{spec.name}": its sweep file cannot be read'
            raise StorageError(f"{unread}; was it written by another program?")
        require_same(spec, known, known_data, data)
        if data is not None and known_data is None:  # cut off in a version that stored it later
            self.set_attribute(stored.DATA, dict(data))
        self.set_attribute(stored.BUDGET, _budget(spec))
        self.set_attribute(stored.VERSIONS, versions())

    def set_attribute(self, key: str, value: Any) -> None:
        self.optuna.set_user_attr(key, value)
        self.attributes[key] = value

    def trials(self, *states: TrialState) -> Sequence[FrozenTrial]:
        """Return trials in the order of their numbers, of all states or of those given; they must not be changed."""
        return self.optuna.get_trials(deepcopy=False, states=states or None)

    def trial(self, number: int) -> FrozenTrial:
        """Return one trial, which must not be changed."""
        return self._storage.get_trial(number)

    def mark(self, number: int, key: str, value: Any) -> None:
        """Write an attribute of a trial."""
        self._storage.set_trial_user_attr(number, key, value)

    def set_end(self, state: str | None) -> None:
        """Record how a sweep ended: FINISHED, KILLED or FAILED; None that it is under way."""
        self.set_attribute(stored.ENDED, state and {"state": state, "at_ms": now_ms()})

    def replicates(self) -> list[Replicate]:
        """Return the replicates, by candidate and index. Raises StorageError."""
        return replicates_of(self.attributes)

    def write_replicate(self, replicate: Replicate) -> None:
        self.set_attribute(replicate.attribute, replicate.record.to_json())

    @property
    def decision(self) -> Decision | None:
        """The decision as it was written last. Raises StorageError."""
        return decision_of(self.attributes)

    def write_decision(self, decision: Decision) -> None:
        self.set_attribute(stored.DECISION, decision.model_dump(mode="json"))

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

    def check(self, held: Collection[int]) -> None:
        """Require that this process still owns the study; after an outage, settle. Raises StudyBusy."""
        self._patience.through(self._patience.check)
        if self._patience.outages != self._settled_outages:
            self._settled_outages = self._patience.outages
            self.settle(held)

    def read_queue(self) -> None:
        """Read what other programs have queued through Optuna's own API."""
        self._storage.read_new()

    def adopt(self, number: int, parameters: Mapping[str, Any]) -> None:
        """Take a trial that another program has queued for a request, with the given Optuna parameters."""
        self._storage.set_trial_system_attr(number, FIXED_PARAMS, dict(parameters))
        origin = Origin("request", f"queued {number}")
        self._storage.set_trial_user_attr(number, stored.ORIGIN, origin.to_json())

    def refuse(self, number: int, reason: str) -> None:
        self._storage.set_trial_user_attr(number, stored.REFUSED, reason)
        self._storage.set_trial_state_values(number, TrialState.FAIL)

    def queue(self, origin: Origin, parameters: Mapping[str, Any]) -> None:
        self.optuna.enqueue_trial(dict(parameters), user_attrs={stored.ORIGIN: origin.to_json()})

    def ask(self, sampler: BaseSampler, shown: Iterable[FrozenTrial]) -> Draft:
        """Return a draft of the first trial that waits, else of a new one. shown: the trials that the sampler sees."""
        return Draft(self._storage, shown, sampler)

    def start(self, trial: FrozenTrial, record: TrialRecord) -> bool:
        """Write a trial with its record as running; False when another program has taken it or its number."""
        started = numbered(trial, trial.number)
        started.user_attrs[stored.RECORD] = plain(record.to_json())
        return self._storage.start(started)

    def report(self, number: int, epoch: int, value: float) -> None:
        self._storage.set_trial_intermediate_value(number, epoch, value)

    def should_prune(self, number: int) -> bool:
        """Ask the pruner whether a trial ends after the epoch that was reported last."""
        return self.optuna.pruner.prune(self.optuna, self.trial(number))

    def write(self, number: int, record: TrialRecord) -> None:
        self._storage.set_trial_user_attr(number, stored.RECORD, record.to_json())

    def tell(self, number: int, record: TrialRecord) -> TrialState:
        """Give a trial the state and the value that its record says."""
        state = TrialState[record.end_state or "FAIL"]
        value = None
        if state is TrialState.COMPLETE and record.kept is not None:
            value = record.kept.figures[str(self.attributes[stored.SPEC]["metric"]["name"])]
        self.optuna.tell(number, value, state=state, skip_if_finished=True)
        return state

    def requeue(self, number: int) -> None:
        """Put a running trial back into the queue, under its own number."""
        self._storage.set_trial_state_values(number, TrialState.WAITING)

    def requests(self) -> list[Request]:
        """Return what other terminals have asked for and nobody has taken up, oldest first."""
        backend, study_id = cast("RDBStorage", self._storage.backend), self._storage.study_id
        asked = self._patience.through(lambda: tables.read_requests(backend.engine, study_id))
        waiting = sorted((item for item in asked.items() if item[1].get("taken_ms") is None), key=_asked_at)
        return [Request(key, value["verb"], value["parameters"], value["at_ms"]) for key, value in waiting]

    def take(self, request: Request) -> None:
        """Mark a request as taken up."""
        value = {name: item for name, item in vars(request).items() if name != "key"}
        self.optuna.set_user_attr(request.key, {**value, "taken_ms": now_ms()})


def _asked_at(asked: tuple[str, Mapping[str, Any]]) -> int:
    return int(asked[1]["at_ms"])


def _id_of(storage: BaseStorage, name: str) -> int | None:
    try:
        return storage.get_study_id_from_name(name)
    except KeyError:
        return None


def _start(storage: RDBStorage, spec: SweepSpec, data: Mapping[str, Any] | None) -> None:
    study = optuna.create_study(storage=storage, study_name=spec.name, direction=spec.metric.goal)
    attributes = {
        stored.SPEC: spec.identity(),
        stored.BUDGET: _budget(spec),
        stored.DESCRIPTION: spec.description,
        stored.VERSIONS: versions(),
        stored.CREATED: now_ms(),
        **({} if data is None else {stored.DATA: dict(data)}),
        stored.STUDY_UID: uuid.uuid4().hex,
    }
    for key, value in attributes.items():  # the uid last: without it the study has not begun
        study.set_user_attr(key, value)


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
        raise SpecChanged(
            f'study "{spec.name}" exists and was started with another sweep file or other data; '
            f"{_another_name(spec)}; or set the earlier one aside with: {COMMAND.get()} --fresh; what differs:",
            [f"  {line}" for line in differences],
        )


def _another_name(spec: SweepSpec) -> str:
    return f"take another name with: {COMMAND.get()} --name {shell_word(f'{spec.name}-2')}"


def record_of(trial: FrozenTrial) -> TrialRecord | None:
    """Return a trial's record, or None when it never started. Raises StorageError."""
    record = trial.user_attrs.get(stored.RECORD)
    if isinstance(record, bytes):
        record = unpack(record)
    return None if record is None else TrialRecord.from_json(record, f"trial {trial.number}")


def origin_of(trial: FrozenTrial) -> Origin | None:
    """Return where a trial comes from, or None when the sampler proposed it."""
    origin = trial.user_attrs.get(stored.ORIGIN)
    return None if origin is None else Origin.from_json(origin)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def versions() -> dict[str, str]:
    """Return what decides whether a trial repeats itself: versions, and the kind of machine."""
    installed = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("regtune", "tensorflow", "tensorflow-cpu", "keras", "numpy", "optuna", "mlflow"):
        with suppress(PackageNotFoundError):
            installed["tensorflow" if name == "tensorflow-cpu" else name] = version(name)
    return installed


def request(settings: Settings, name: str, verb: str, parameters: Mapping[str, Value]) -> None:
    """Ask the coordinator of study `name` for something. Raises StudyNotFound."""
    storage = open_storage(settings)
    with understood(place(settings.storage_url)):
        value = {"verb": verb, "parameters": dict(parameters), "at_ms": now_ms(), "taken_ms": None}
        load(storage, name).set_user_attr(f"{stored.REQUEST}{uuid.uuid4().hex}", value)


def load(storage: optuna.storages.BaseStorage, name: str) -> optuna.Study:
    """Return an Optuna study by name. Raises StudyNotFound with the nearest name."""
    if _id_of(storage, name) is None:
        raise unknown_study(name, optuna.get_all_study_names(storage=storage))
    return optuna.load_study(storage=storage, study_name=name)


@contextmanager
def deleting(settings: Settings, name: str) -> Iterator[str]:
    """Yield the uid of a study that nobody else can run meanwhile, then delete it. Raises StudyNotFound, StudyBusy."""
    with understood(place(settings.storage_url)):
        uid = uid_of(load(open_storage(settings), name).user_attrs.get(stored.STUDY_UID))
        with hold(settings, name) as ownership:
            yield uid
            storage = open_storage(settings, ownership.check, session(name))
            optuna.delete_study(study_name=name, storage=storage)


def _set_aside(storage: RDBStorage, name: str) -> str:
    """Rename a study and return its new name; nothing of it is lost."""
    aside = f"{name} (until {time.strftime('%Y-%m-%d %H:%M:%S')})"
    rename_study(storage, storage.get_study_id_from_name(name), aside)
    return aside


def _budget(spec: SweepSpec) -> dict[str, Any]:
    return {key: getattr(spec, key) for key in ("run_cap", "timeout", "keep_models", "decide")}
