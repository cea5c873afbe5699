"""`TrackingWriter`: the projection in a process of its own, so that MLflow can delay neither a sweep nor
its training.

The coordinator hands over each trial's latest record and goes on. Of every trial only the newest record is
kept until the process says that MLflow has it; a store that is away is tried again, calmly, for as long as
the sweep runs, and what is still missing then is caught up from the study at the next start, or by
`regtune sync`. What MLflow lacks from before, the process reads from the study itself. It ends with its
coordinator, however that ends.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

from regtune.credentials import OF_TRACKING, STORAGE_PASSWORD, without_secrets
from regtune.processes import Child
from regtune.settings import Settings
from regtune.storage import redact
from regtune.storage.health import trouble
from regtune.storage.mlflow import check_uri, is_server
from regtune.study.record import State, TrialRecord
from regtune.tracking.facts import ParentState, StudyFacts
from regtune.tracking.views import runs_path

RESTARTS = 3
DRAIN_SECONDS = 60.0
"""How long a finished sweep waits for MLflow to take what is left; what is missing then is caught up later."""
START_SECONDS = 180.0
"""How long it waits before that while the process has not said a word since it was started: on a busy machine MLflow's
import outlasts a short sweep.
"""
GOES_ON = "is away; the sweep goes on, and MLflow gets it all later"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

STUDY = -1
"""Key of the study's own run among the trials' numbers."""
PAST = -2
"""Key of everything that the study has from before."""
ASIDE = -3
"""Key of a study that was set aside for this one: its runs say its new name."""


@dataclass(frozen=True)
class Item:
    """The newest word on one trial, or on the study. version: counts what was put, so that an answer names
    what it means.
    """

    version: int
    state: Any
    record: TrialRecord | None = None
    winner: int | None = None
    at_ms: int | None = None


@dataclass(frozen=True)
class Answer:
    """What the process tells: items written (key -> version), how the store is, where the experiment is.

    past: trials from before that it has seen to. outside: where files would go, if nothing is written there.
    """

    written: tuple[tuple[int, int], ...] = ()
    trouble: str = ""
    away: bool = False
    experiment_id: str = ""
    past: int = 0
    outside: str = ""


class TrackingWriter:
    """Writes one study into MLflow, in the background.

    **Nothing blocks.** `put`, `finish` and `status` return at once; only `close` waits.
    **The newest counts.** A record that is put before an earlier one of the same trial was written takes
    its place.

    settings: where MLflow and the study are. facts: the study. Whether MLflow answers at a server's address is asked
    once, here. Raises TrackingError for a URI that MLflow cannot use.
    """

    def __init__(self, settings: Settings, facts: StudyFacts) -> None:
        check_uri(settings.mlflow_uri)
        self._settings = settings
        where = redact(settings.mlflow_uri)
        wrong = trouble(settings.mlflow_uri) if is_server(settings.mlflow_uri) else ""
        self._arguments = (settings, facts, bool(wrong))
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._unwritten: dict[int, Item] = {}
        self._unsent: dict[int, None] = {}
        self._version = 0
        self._trouble = ""
        self._away = bool(wrong)
        self._news = [f"{where} {wrong}: MLflow {GOES_ON}"] if wrong else []
        self._past = 0
        self._past_done = 0
        self._experiment_id = ""
        self._outside = ""
        self._closing = False
        self._given_up = False
        self._restarts = RESTARTS
        self._began = time.monotonic()
        self._heard = threading.Event()
        self._wake_in, self._wake_out = multiprocessing.Pipe(duplex=False)
        self._child = self._start()
        self._thread = threading.Thread(target=self._serve, name="tracking", daemon=True)
        self._thread.start()

    def put(self, number: int, state: State | str, record: TrialRecord) -> None:
        """Hand over a trial's state and record. Never blocks."""
        self._hand_over(number, state=state, record=record)

    def catch_up(self, count: int) -> None:
        """Have everything written that MLflow lacks of the study's trials, `count` of them, beside those put."""
        with self._lock:
            self._past, self._past_done = count, 0
        self._hand_over(PAST, state="")

    def bring(self, facts: StudyFacts) -> None:
        """Have everything written that MLflow lacks of another study, one that was set aside."""
        self._hand_over(ASIDE, state=facts)

    def finish(self, state: ParentState, winner: int | None, at_ms: int | None = None) -> None:
        """Say how the study stands and which trial is its best; it is written after every trial put before.

        at_ms: since when, in Unix milliseconds; now, if not given.
        """
        at_ms = at_ms or int(time.time() * 1000)
        self._hand_over(STUDY, state=state, winner=winner, at_ms=at_ms)

    def news(self) -> list[str]:
        """What is to be said once, and has not been said: that MLflow is away, that it is back."""
        with self._lock:
            found, self._news = self._news, []
        return found

    @property
    def status(self) -> str:
        """One phrase on how far MLflow is behind and why; empty when there is nothing to say."""
        with self._lock:
            if not self._trouble:
                return ""
            return f"{self._trouble}; {_wait(self._waiting())}"

    @property
    def unwritten(self) -> int:
        """Trials whose newest record MLflow has not."""
        with self._lock:
            return self._waiting()

    @property
    def experiment_url(self) -> str | None:
        """Address of the trials' page on a tracking server; None before it is known and for a local
        store.
        """
        uri = self._settings.mlflow_uri
        if not self._experiment_id or not uri.startswith(("http://", "https://")):
            return None
        return uri.rstrip("/") + runs_path(self._experiment_id)

    @property
    def experiment_id(self) -> str | None:
        """MLflow's id of the experiment, None before it is known."""
        return self._experiment_id or None

    @property
    def pid(self) -> int:
        """The writing process."""
        return self._child.pid

    def close(self, timeout_seconds: float | None = None) -> int:
        """Write what is left, for at most `timeout_seconds`, end the process, and return how many runs are
        unwritten: those of trials, and the study's own. None: DRAIN_SECONDS, from the process's first word on if it has
        not come yet, for which START_SECONDS since the writer was made are allowed.
        """
        with self._lock:
            self._closing = True
        self._wake()
        if timeout_seconds is None:
            self._heard.wait(max(0.0, self._began + START_SECONDS - time.monotonic()))
            timeout_seconds = DRAIN_SECONDS
        self._thread.join(max(0.0, timeout_seconds))
        with self._lock:
            self._given_up = True
        self._child.kill()
        self._thread.join()
        with self._lock:
            return self._waiting() + (STUDY in self._unwritten)

    def _waiting(self) -> int:
        trials = sum(key >= 0 for key in self._unwritten)
        return trials + (max(0, self._past - self._past_done) if PAST in self._unwritten else 0)

    def _hand_over(self, key: int, **item: Any) -> None:
        with self._lock:
            if self._closing:
                return
            self._version += 1
            self._unwritten.pop(key, None)
            self._unwritten[key] = Item(self._version, **item)
            self._unsent.pop(key, None)
            self._unsent[key] = None
        self._wake()

    def _wake(self) -> None:
        if not self._changed.is_set():
            self._changed.set()
            self._wake_out.send_bytes(b".")

    def _start(self) -> Child:
        environment = without_secrets(os.environ, but=(*OF_TRACKING, STORAGE_PASSWORD)) | ONE_THREAD
        return Child("regtune.tracking.scribe", *self._arguments, environment=environment)

    # -- the thread that talks to the process

    def _serve(self) -> None:
        told_to_close = False
        while True:
            link = self._child.connection
            ready = wait([self._wake_in, link])
            try:
                if link in ready:
                    self._take(link.recv())
                if self._wake_in in ready:
                    self._wake_in.recv_bytes()
                    self._changed.clear()
                self._send()
                if self._closing and not told_to_close:
                    link.send(None)
                    told_to_close = True
            except (EOFError, OSError):
                how = self._child.wait()
                if (told_to_close and how == "exit code 0") or not self._restart():
                    self._heard.set()
                    return
                told_to_close = False

    def _take(self, answer: Answer) -> None:
        self._heard.set()
        with self._lock:
            for key, version in answer.written:
                if key in self._unwritten and self._unwritten[key].version == version:
                    del self._unwritten[key]
            self._trouble = answer.trouble
            self._past_done = answer.past
            if answer.written:
                self._restarts = RESTARTS
            if answer.away != self._away:
                self._away = answer.away
                where = redact(self._settings.mlflow_uri)
                if self._away:
                    self._news.append(f"MLflow at {where} {GOES_ON}")
                elif waiting := self._waiting():
                    self._news.append(f"MLflow is back; {_wait(waiting)} to be written")
                else:
                    self._news.append("MLflow is back, and has everything")
            if answer.outside and not self._outside:
                self._outside = answer.outside
                self._news.append(
                    f"MLflow keeps this sweep's files in {answer.outside}, outside {self._settings.artifacts}; "
                    f"there nothing is written: to have them in MLflow take another --name, or another store"
                )
            self._experiment_id = answer.experiment_id or self._experiment_id

    def _send(self) -> None:
        while True:
            with self._lock:
                if not self._unsent:
                    return
                key = next(iter(self._unsent))
                del self._unsent[key]
                item = self._unwritten.get(key)
            if item is not None:
                self._child.connection.send((key, item))

    def _restart(self) -> bool:
        """After the process died by itself: another one, with all that is unwritten. Returns whether there
        is one.
        """
        with self._lock:
            if self._given_up or self._restarts == 0:
                self._trouble = "the MLflow writer died; the next sweep catches up"
                return False
            self._restarts -= 1
            self._unsent = dict.fromkeys(self._unwritten)
            try:
                self._child = self._start()
            except OSError as error:
                self._trouble = f"the MLflow writer died and cannot be started ({error.strerror})"
                return False
        self._wake()
        return True


def _wait(count: int) -> str:
    return f"{count} trial{'' if count == 1 else 's'} wait{'s' if count == 1 else ''}"
