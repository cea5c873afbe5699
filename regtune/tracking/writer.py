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
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from regtune.credentials import OF_TRACKING, STORAGE_PASSWORD, without_secrets
from regtune.processes import Child
from regtune.record import State, TrialRecord
from regtune.settings import Settings
from regtune.storage import open_engine, redact
from regtune.tracking.facts import ParentState, StudyFacts
from regtune.tracking.store import check_uri, sqlite_path
from regtune.tracking.trials import StudyTrials
from regtune.tracking.views import runs_path

PACE_SECONDS = 1.0
"""How often MLflow is told of progress at most: the lag of a live curve."""
LONGEST_PACE_SECONDS = 3.0
SHARE = 0.005
"""Of all cores: what telling it may cost, unless the pace would be longer than that."""
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
REFUSED_PAUSE_SECONDS = 60.0
RESTARTS = 3
NICENESS = 10
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

STUDY = -1
"""Key of the study's own run among the trials' numbers."""
PAST = -2
"""Key of everything that the study has from before."""


@dataclass(frozen=True)
class _Item:
    """The newest word on one trial, or on the study. version: counts what was put, so that an answer names
    what it means.
    """

    version: int
    state: Any
    record: TrialRecord | None = None
    winner: int | None = None
    at_ms: int | None = None


@dataclass(frozen=True)
class _Answer:
    """What the process tells: items written (key -> version), how the store is, where the experiment is.

    past: trials from before that it has seen to.
    """

    written: tuple[tuple[int, int], ...] = ()
    trouble: str = ""
    away: bool = False
    experiment_id: str = ""
    past: int = 0


class TrackingWriter:
    """Writes one study into MLflow, in the background.

    **Nothing blocks.** `put`, `finish` and `status` return at once; only `close` waits.
    **The newest counts.** A record that is put before an earlier one of the same trial was written takes
    its place.

    settings: where MLflow and the study are. facts: the study. Raises TrackingError for a URI that MLflow
    cannot use.
    """

    def __init__(self, settings: Settings, facts: StudyFacts) -> None:
        check_uri(settings.mlflow_uri)
        self._settings = settings
        self._arguments = (settings, facts)
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._unwritten: dict[int, _Item] = {}
        self._unsent: dict[int, None] = {}
        self._version = 0
        self._trouble = ""
        self._away = False
        self._news: list[str] = []
        self._past = 0
        self._past_done = 0
        self._experiment_id = ""
        self._closing = False
        self._given_up = False
        self._restarts = RESTARTS
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

    def close(self, timeout_seconds: float) -> int:
        """Write what is left, for at most `timeout_seconds`, end the process, and return how many trials
        are unwritten.
        """
        with self._lock:
            self._closing = True
        self._wake()
        self._thread.join(max(0.0, timeout_seconds))
        with self._lock:
            self._given_up = True
        self._child.kill()
        self._thread.join()
        return self.unwritten

    def _waiting(self) -> int:
        trials = sum(key >= 0 for key in self._unwritten)
        return trials + (max(0, self._past - self._past_done) if PAST in self._unwritten else 0)

    def _hand_over(self, key: int, **item: Any) -> None:
        with self._lock:
            if self._closing:
                return
            self._version += 1
            self._unwritten.pop(key, None)
            self._unwritten[key] = _Item(self._version, **item)
            self._unsent.pop(key, None)
            self._unsent[key] = None
        self._wake()

    def _wake(self) -> None:
        if not self._changed.is_set():
            self._changed.set()
            self._wake_out.send_bytes(b".")

    def _start(self) -> Child:
        environment = without_secrets(os.environ, but=(*OF_TRACKING, STORAGE_PASSWORD)) | ONE_THREAD
        return Child("regtune.tracking.writer", *self._arguments, environment=environment)

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
                how = self._child.bury()
                if (told_to_close and how == "exit code 0") or not self._restart():
                    return
                told_to_close = False

    def _take(self, answer: _Answer) -> None:
        with self._lock:
            for key, version in answer.written:
                if key in self._unwritten and self._unwritten[key].version == version:
                    del self._unwritten[key]
            self._trouble = answer.trouble
            self._past_done = answer.past
            if answer.away != self._away:
                self._away = answer.away
                where = redact(self._settings.mlflow_uri)
                if self._away:
                    self._news.append(
                        f"MLflow at {where} is away; the sweep goes on, and MLflow gets it all later"
                    )
                elif waiting := self._waiting():
                    self._news.append(f"MLflow is back; {_wait(waiting)} to be written")
                else:
                    self._news.append("MLflow is back, and has everything")
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


# -- the process


def main(link: Connection, settings: Settings, facts: StudyFacts) -> None:
    """Read from `link` what is to be written and write it, until told to close."""
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    inbox = _Inbox(link)
    threading.Thread(target=inbox.read, name="inbox", daemon=True).start()
    _Scribe(link, inbox, settings, facts).run()


def _wait(count: int) -> str:
    return f"{count} trial{'' if count == 1 else 's'} wait{'s' if count == 1 else ''}"


class _Inbox:
    """What came in and is not written yet, the newest for each key, in the order of its coming."""

    def __init__(self, link: Connection) -> None:
        self._link = link
        self._items: dict[int, _Item] = {}
        self._lock = threading.Lock()
        self.arrived = threading.Event()
        self.closed = threading.Event()

    def read(self) -> None:
        """Take in what is sent. Ends the process at once when the coordinator is gone: the study has it
        all.
        """
        while True:
            try:
                message = self._link.recv()
            except (EOFError, OSError):
                os._exit(0)
            with self._lock:
                if message is None:
                    self.closed.set()
                else:
                    key, item = message
                    self._items.pop(key, None)
                    self._items[key] = item
            self.arrived.set()

    @property
    def closing(self) -> bool:
        """Whether the coordinator wants to close."""
        return self.closed.is_set()

    def pending(self) -> list[tuple[int, _Item]]:
        """What is to be written, the study's own run and its past last."""
        with self._lock:
            return sorted(self._items.items(), key=lambda entry: entry[0] < 0)

    def written(self, key: int, version: int) -> None:
        """Forget an item, unless a newer one has come."""
        with self._lock:
            if key in self._items and self._items[key].version == version:
                del self._items[key]


class _Scribe:
    """Writes what the inbox holds; knows when the store went away and when to try again."""

    def __init__(self, link: Connection, inbox: _Inbox, settings: Settings, facts: StudyFacts) -> None:
        self._link = link
        self._inbox = inbox
        self._settings = settings
        self._facts = facts
        self._projection: Any = None
        self._past: Iterator[tuple[int, int]] | None = None
        self._past_done = 0
        self._failures = 0
        self._failing_since = 0.0
        self._pause = FIRST_PAUSE_SECONDS
        self._refused: dict[int, tuple[float, str]] = {}

    def run(self) -> None:
        """Until told to close and nothing is left that can be written, or the store is away and stays away."""
        tried_last = False
        while True:
            if not self._writable():
                self._inbox.arrived.wait(REFUSED_PAUSE_SECONDS if self._refused else None)
            self._inbox.arrived.clear()
            began = time.process_time()
            away = self._pass()
            if self._inbox.closing and (tried_last or (not away and not self._writable())):
                return
            tried_last = self._inbox.closing and away
            if away:
                self._rest(self._pause)
                self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
            elif self._past is None:
                share = (time.process_time() - began) / (SHARE * (os.cpu_count() or 1))
                self._rest(min(LONGEST_PACE_SECONDS, max(PACE_SECONDS, share)))

    def _rest(self, seconds: float) -> None:
        """Wait, but not beyond the moment at which the coordinator wants to close; when that has come, for a second
        at most.
        """
        if self._inbox.closing:
            time.sleep(min(1.0, seconds) if self._failures else 0)
        else:
            self._inbox.closed.wait(seconds)

    def _writable(self) -> list[tuple[int, _Item]]:
        """What can be written now; the study's end only when nothing is left of its past."""
        now = time.monotonic()
        found = self._inbox.pending()
        past = any(key == PAST for key, _ in found)
        return [
            (key, item)
            for key, item in found
            if self._refused.get(key, (0.0, ""))[0] <= now
            and not (key == STUDY and past and item.state != "RUNNING")
        ]

    def _pass(self) -> bool:
        """Write everything that waits, of the past one step. Returns whether the store is away."""
        for key, item in self._writable():
            try:
                done = self._write(key, item)
            except (
                Exception
            ) as error:  # MLflow and its stores raise many kinds; each means that it is not written
                if not self._set_aside(key, error):
                    self._failures += 1
                    if self._failures == 1:
                        self._failing_since = time.time()
                    self._projection = self._past = None
                    self._tell()
                    return True
                self._tell()
                continue
            self._failures, self._pause = 0, FIRST_PAUSE_SECONDS
            if done:
                self._refused.pop(key, None)
                self._inbox.written(key, item.version)
                self._tell((key, item.version))
            else:
                self._tell()
        return False

    def _write(self, key: int, item: _Item) -> bool:
        """Write an item. Returns whether nothing is left of it."""
        database = sqlite_path(self._settings.mlflow_uri)
        if database is not None and not database.exists():
            self._projection = self._past = None  # SQLite would go on writing into the file that is deleted
        if self._projection is None:
            from regtune.tracking.sync import project

            self._projection = project(self._settings, self._facts)
        if key == PAST:
            return self._catch_up()
        if item.record is None:
            self._projection.study(item.state, item.winner, item.at_ms)
        else:
            self._projection.trial(key, item.state, item.record)
        return True

    def _catch_up(self) -> bool:
        if self._past is None:
            engine = open_engine(self._settings.storage_url)
            trials = StudyTrials(engine, self._facts.name, at_rest=False)
            self._past = self._projection.catch_up(trials)
        step = next(self._past, None)
        if step is not None:
            self._past_done = step[0]
            return False
        self._past = None
        return True

    def _set_aside(self, key: int, error: Exception) -> bool:
        """Put off a trial that the store will not take, so that it does not hold up the others."""
        if self._projection is None:
            return False
        from regtune.tracking.projection import refused

        if not refused(error):
            return False
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        self._refused[key] = (time.monotonic() + REFUSED_PAUSE_SECONDS, reason)
        return True

    def _tell(self, *written: tuple[int, int]) -> None:
        trouble = ""
        away = self._failures > 1
        refusals = {} if self._projection is None else self._projection.refusals
        if away:
            trouble = f"MLflow is away since {time.strftime('%H:%M', time.localtime(self._failing_since))}"
        elif self._refused or refusals:
            all_ = {**refusals, **{key: reason for key, (_, reason) in self._refused.items()}}
            key, reason = next(iter(all_.items()))
            trouble = f"MLflow refuses {'the study' if key < 0 else f'#{key:03d}'} ({reason})"
        experiment_id = "" if self._projection is None else self._projection.experiment_id
        self._link.send(_Answer(written, trouble, away, experiment_id, self._past_done))
