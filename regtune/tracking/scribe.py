"""The process in which a `TrackingWriter` writes: what comes in is written as soon as the store takes it, at a pace
that costs a sweep next to nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from regtune.settings import Settings
from regtune.storage import open_engine
from regtune.storage.mlflow import sqlite_path
from regtune.tracking.facts import StudyFacts
from regtune.tracking.trials import StudyTrials
from regtune.tracking.writer import ASIDE, PAST, STUDY, Answer, Item

PACE_SECONDS = 2.0
"""How often MLflow is told of progress at most: the lag of a live curve."""
LONGEST_PACE_SECONDS = 10.0
SHARE = 0.001
"""Of all cores: what telling it may cost, unless the pace would be longer than that."""
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
REFUSED_PAUSE_SECONDS = 60.0
NICENESS = 10


def main(link: Connection, settings: Settings, facts: StudyFacts, away: bool) -> None:
    """Read from `link` what is to be written and write it, until told to close. away: the store was, a moment ago."""
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    inbox = _Inbox(link)
    threading.Thread(target=inbox.read, name="inbox", daemon=True).start()
    _Scribe(link, inbox, settings, facts, away).run()


class _Inbox:
    """What came in and is not written yet, the newest for each key, in the order of its coming."""

    def __init__(self, link: Connection) -> None:
        self._link = link
        self._items: dict[int, Item] = {}
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

    def pending(self) -> list[tuple[int, Item]]:
        """What is to be written, the study's own run, its past and what was set aside last."""
        with self._lock:
            return sorted(self._items.items(), key=lambda entry: entry[0] < 0)

    def written(self, key: int, version: int) -> None:
        """Forget an item, unless a newer one has come."""
        with self._lock:
            if key in self._items and self._items[key].version == version:
                del self._items[key]


class _Scribe:
    """Writes what the inbox holds; knows when the store went away and when to try again."""

    def __init__(
        self, link: Connection, inbox: _Inbox, settings: Settings, facts: StudyFacts, away: bool
    ) -> None:
        self._link = link
        self._inbox = inbox
        self._settings = settings
        self._facts = facts
        self._projection: Any = None
        self._steps: dict[int, Iterator[tuple[int, int]]] = {}
        self._past_done = 0
        self._failures = int(away)
        self._failing_since = time.time()
        self._pause = FIRST_PAUSE_SECONDS
        self._refused: dict[int, tuple[float, str]] = {}

    def run(self) -> None:
        """Until told to close and nothing is left that can be written, or the store is away and stays away. What was
        refused is tried once more before that.
        """
        tried_last = released = False
        while True:
            if not self._writable():
                self._inbox.arrived.wait(REFUSED_PAUSE_SECONDS if self._refused else None)
            self._inbox.arrived.clear()
            began = time.process_time()
            away = self._pass()
            if self._inbox.closing:
                if self._refused and not released:
                    released = True
                    self._refused = {key: (0.0, reason) for key, (_, reason) in self._refused.items()}
                    continue
                if (tried_last or self._failures > 1) if away else not self._writable():
                    return
            tried_last = self._inbox.closing and away
            if away:
                self._rest(self._pause)
                self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
            elif not self._steps:
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

    def _writable(self) -> list[tuple[int, Item]]:
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
                    self._projection, self._steps = None, {}
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

    def _write(self, key: int, item: Item) -> bool:
        """Write an item. Returns whether nothing is left of it."""
        database = sqlite_path(self._settings.mlflow_uri)
        if database is not None and not database.exists():
            self._projection, self._steps = (
                None,
                {},
            )  # SQLite would go on writing into the file that is deleted
        if self._projection is None:
            from regtune.tracking.sync import project

            self._projection = project(self._settings, self._facts)
        if key in (PAST, ASIDE):
            return self._step(key, item)
        if item.record is None:
            self._projection.study(item.state, item.winner, item.at_ms)
        else:
            self._projection.trial(key, item.state, item.record)
        return True

    def _step(self, key: int, item: Item) -> bool:
        if key not in self._steps:
            self._steps[key] = self._past() if key == PAST else self._aside(item.state)
        step = next(self._steps[key], None)
        if step is None:
            del self._steps[key]
        elif key == PAST:
            self._past_done = step[0]
        return step is None

    def _past(self) -> Iterator[tuple[int, int]]:
        engine = open_engine(self._settings.storage_url)
        found: Iterator[tuple[int, int]] = self._projection.catch_up(
            StudyTrials(engine, self._facts.name, at_rest=False)
        )
        return found

    def _aside(self, facts: StudyFacts) -> Iterator[tuple[int, int]]:
        from regtune.tracking.sync import project

        trials = StudyTrials(open_engine(self._settings.storage_url), facts.name, at_rest=True)
        projection = project(self._settings, facts)
        yield from projection.catch_up(trials)
        projection.study(trials.state, trials.winner, trials.ended_ms)

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
        outside = "" if self._projection is None else self._projection.outside
        self._link.send(Answer(written, trouble, away, experiment_id, self._past_done, outside))
