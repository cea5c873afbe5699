"""`TrackingWriter`: the projection in a process of its own, so that MLflow can delay neither a sweep nor
its training.

The coordinator hands over each trial's latest record and goes on. Of every trial only the newest record is
kept until the process says that MLflow has it; a store that is away is tried again, calmly, for as long as
the sweep runs, and what is still missing then is caught up from the study at the next start. The process
ends with its coordinator, however that ends.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from regtune.credentials import OF_TRACKING, without_secrets
from regtune.processes import Child
from regtune.record import State, TrialRecord
from regtune.tracking.facts import ParentState, StudyFacts
from regtune.tracking.store import check_uri, connect, sqlite_path
from regtune.tracking.views import runs_path

PACE_SECONDS = 1.0
"""How often MLflow is told of progress: the lag of a live curve."""
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
REFUSED_PAUSE_SECONDS = 60.0
RESTARTS = 3
NICENESS = 5
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

STUDY = -1
"""Key of the study's own run among the trials' numbers."""


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
    """What the process tells: items written (key -> version), how the store is, where the experiment is."""

    written: tuple[tuple[int, int], ...] = ()
    trouble: str = ""
    experiment_id: str = ""


class TrackingWriter:
    """Writes one study into MLflow, in the background.

    **Nothing blocks.** `put`, `finish` and `status` return at once; only `close` waits.
    **The newest counts.** A record that is put before an earlier one of the same trial was written takes
    its place.

    uri: the MLflow store or server. artifacts: regtune's artifact folder. facts: the study. Raises
    TrackingError for a URI that MLflow cannot use.
    """

    def __init__(self, uri: str, artifacts: Path, facts: StudyFacts) -> None:
        check_uri(uri)
        self._arguments = (uri, artifacts, facts)
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._unwritten: dict[int, _Item] = {}
        self._unsent: dict[int, None] = {}
        self._version = 0
        self._trouble = ""
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

    def finish(self, state: ParentState, winner: int | None) -> None:
        """Say how the study stands and which trial is its best; it is written after every trial put before."""
        self._hand_over(STUDY, state=state, winner=winner, at_ms=int(time.time() * 1000))

    @property
    def status(self) -> str:
        """One phrase on how far MLflow is behind and why; empty when there is nothing to say."""
        with self._lock:
            if not self._trouble:
                return ""
            waiting = sum(key != STUDY for key in self._unwritten)
            return f"{self._trouble}; {waiting} trial{'' if waiting == 1 else 's'} wait{'s' if waiting == 1 else ''}"

    @property
    def unwritten(self) -> int:
        """Trials whose newest record MLflow has not."""
        with self._lock:
            return sum(key != STUDY for key in self._unwritten)

    @property
    def experiment_url(self) -> str | None:
        """Address of the trials' page on a tracking server; None before it is known and for a local
        store.
        """
        uri = self._arguments[0]
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
        environment = without_secrets(os.environ, but=OF_TRACKING) | ONE_THREAD
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


def main(link: Connection, uri: str, artifacts: Path, facts: StudyFacts) -> None:
    """Read from `link` what is to be written and write it, until told to close."""
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    inbox = _Inbox(link)
    threading.Thread(target=inbox.read, name="inbox", daemon=True).start()
    _Scribe(link, inbox, uri, artifacts, facts).run()


class _Inbox:
    """What came in and is not written yet, the newest for each key, in the order of its coming."""

    def __init__(self, link: Connection) -> None:
        self._link = link
        self._items: dict[int, _Item] = {}
        self._lock = threading.Lock()
        self.arrived = threading.Event()
        self.closing = False

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
                    self.closing = True
                else:
                    key, item = message
                    self._items.pop(key, None)
                    self._items[key] = item
            self.arrived.set()

    def pending(self) -> list[tuple[int, _Item]]:
        """What is to be written, the study's own run last."""
        with self._lock:
            return sorted(self._items.items(), key=lambda entry: entry[0] == STUDY)

    def written(self, key: int, version: int) -> None:
        """Forget an item, unless a newer one has come."""
        with self._lock:
            if key in self._items and self._items[key].version == version:
                del self._items[key]


class _Scribe:
    """Writes what the inbox holds; knows when the store went away and when to try again."""

    def __init__(self, link: Connection, inbox: _Inbox, uri: str, artifacts: Path, facts: StudyFacts) -> None:
        self._link = link
        self._inbox = inbox
        self._uri = uri
        self._artifacts = artifacts
        self._facts = facts
        self._projection: Any = None
        self._away_since: float | None = None
        self._pause = FIRST_PAUSE_SECONDS
        self._refused: dict[int, tuple[float, str]] = {}

    def run(self) -> None:
        """Until told to close and nothing is left that can be written, or the store is away and stays away."""
        tried_last = False
        while True:
            self._inbox.arrived.wait(REFUSED_PAUSE_SECONDS if self._refused else None)
            self._inbox.arrived.clear()
            away = self._pass()
            if self._inbox.closing and (tried_last or (not away and not self._writable())):
                return
            tried_last = self._inbox.closing and away
            if away:
                self._rest(self._pause)
                self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
                self._inbox.arrived.set()
            elif not self._inbox.closing:
                time.sleep(PACE_SECONDS)

    def _rest(self, seconds: float) -> None:
        """Wait, but not beyond the moment at which the coordinator wants to close: then try once more a
        second.
        """
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(min(1.0, max(0.0, until - time.monotonic())))
            if self._inbox.closing:
                return

    def _writable(self) -> list[tuple[int, _Item]]:
        now = time.monotonic()
        return [
            (key, item) for key, item in self._inbox.pending() if self._refused.get(key, (0.0, ""))[0] <= now
        ]

    def _pass(self) -> bool:
        """Write everything that waits. Returns whether the store is away."""
        for key, item in self._writable():
            try:
                self._write(key, item)
            except (
                Exception
            ) as error:  # MLflow and its stores raise many kinds; each means that it is not written
                if not self._set_aside(key, error):
                    self._away_since = self._away_since or time.time()
                    self._projection = None
                    self._tell()
                    return True
                self._tell()
                continue
            self._away_since, self._pause = None, FIRST_PAUSE_SECONDS
            self._refused.pop(key, None)
            self._inbox.written(key, item.version)
            self._tell((key, item.version))
        return False

    def _write(self, key: int, item: _Item) -> None:
        database = sqlite_path(self._uri)
        if database is not None and not database.exists():
            self._projection = None  # SQLite would go on writing into the file that somebody has deleted
        if self._projection is None:
            client = connect(self._uri, self._artifacts)
            from regtune.tracking.projection import Projection

            self._projection = Projection(client, self._facts, self._artifacts)
        if item.record is None:
            self._projection.study(item.state, item.winner, item.at_ms)
        else:
            self._projection.trial(key, item.state, item.record)

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
        if self._away_since is not None:
            trouble = f"MLflow is away since {time.strftime('%H:%M', time.localtime(self._away_since))}"
        elif self._refused:
            key, (_, reason) = next(iter(self._refused.items()))
            trouble = f"MLflow refuses {'the study' if key == STUDY else f'#{key:03d}'} ({reason})"
        experiment_id = "" if self._projection is None else self._projection.experiment_id
        self._link.send(_Answer(written, trouble, experiment_id))
