"""Live tracking: the synchronization of one study in a loop, in a process that reads the study.

The process has no other source than the study, so its death loses nothing: another one begins by catching up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from sqlalchemy import Engine

from regtune.errors import StorageError, StudyNotFound
from regtune.settings import Settings
from regtune.storage import database_path, is_sqlite, open_engine
from regtune.tracking.store import project, refusal
from regtune.tracking.trials import StudyTrials

PACE_SECONDS = 2.0
"""How often MLflow is told of progress at most: the lag of a live curve."""
LONGEST_PACE_SECONDS = 10.0
SHARE = 0.001
"""Of all cores: what telling it may cost, unless the pace would be longer than that."""
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
REFUSED_PAUSE_SECONDS = 60.0
NICENESS = 10


@dataclass(frozen=True)
class Report:
    """How far MLflow is. waiting: trials that are not up to date. own: whether the study's own run is not, either.

    away: MLflow does not answer. outside: where files would go, if none is written there.
    """

    waiting: int = 0
    own: bool = True
    trouble: str = ""
    away: bool = False
    outside: str = ""


def main(link: Connection, settings: Settings, study: str, aside: str | None, away: bool) -> None:
    """Keep MLflow up to date until something comes through `link`; then write what is left, and end.

    aside: the new name of a study that was set aside for this one. away: the store was, a moment ago.
    """
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    follower = Follower(settings, study, aside, away)
    told = None
    closing = False
    while True:
        pause = follower.round()
        if (report := follower.report) != told:
            told = report
            link.send(told)
        if closing:
            if follower.finished:
                return
            time.sleep(min(1.0, pause))
        elif link.poll(pause):
            link.recv()
            closing = True
            follower.close()


class Follower:
    """Writes one study into MLflow, round by round: first what MLflow lacks of it, then what has changed since."""

    def __init__(self, settings: Settings, study: str, aside: str | None = None, away: bool = False) -> None:
        self._settings = settings
        self._study = study
        self._aside = aside
        self._failures = int(away)
        self._since = time.time()
        self._refusal = ""
        self._retry_at = 0.0
        self._closing = False
        self._engine: Engine | None = None
        self._forget()

    def _forget(self) -> None:
        self._trials: StudyTrials | None = None
        self._projection: Any = None
        self._pending: set[int] = set()
        self._behind = True
        self._steps: Iterator[int] | None = None
        self._done = 0
        self._own: object = None

    def close(self) -> None:
        """Finish soon: what was refused is tried once more at once."""
        self._closing = True
        self._retry_at = 0.0

    @property
    def finished(self) -> bool:
        """Whether nothing is left that could be written now."""
        return self._failures > 1 or not (self._behind or self._pending or self._failures)

    def round(self) -> float:
        """Write what can be written; of what MLflow lacks from before one step. Returns the seconds to the next."""
        began = time.process_time()
        try:
            if self._trials is None:
                self._engine = self._engine or open_engine(self._settings.storage_url)
                self._trials = StudyTrials(self._engine, self._study, at_rest=False)
            else:
                self._pending |= self._trials.look()
            self._write(self._trials)
        except (StorageError, StudyNotFound):  # others may have synchronized it meanwhile
            self._forget()
            return PACE_SECONDS
        except Exception as error:  # MLflow and its stores raise many kinds: nothing was written
            self._disconnect()
            self._since = self._since if self._failures else time.time()
            self._failures, self._refusal = self._failures + 1, refusal(error)
            return min(FIRST_PAUSE_SECONDS * 2.0 ** min(self._failures - 1, 9), LONGEST_PAUSE_SECONDS)
        self._failures, self._refusal = 0, ""
        if self._behind or self._closing:
            return 0.0
        share = (time.process_time() - began) / (SHARE * (os.cpu_count() or 1))
        return min(LONGEST_PACE_SECONDS, max(PACE_SECONDS, share))

    def _disconnect(self) -> None:
        if self._projection is not None:
            self._pending |= self._projection.refusals.keys()
        self._projection, self._steps, self._own = None, None, None

    def _write(self, trials: StudyTrials) -> None:
        uri = self._settings.mlflow_uri
        if (
            is_sqlite(uri) and not database_path(uri).exists()
        ):  # SQLite would go on writing into the deleted file
            self._disconnect()
            self._behind = True
        if self._projection is None:
            self._projection = project(self._settings, trials.facts)
        if self._steps is None and self._behind:
            self._steps, self._done = self._past(trials), 0
        if time.monotonic() >= self._retry_at:
            self._pending |= self._projection.refusals.keys()
            self._retry_at = time.monotonic() + REFUSED_PAUSE_SECONDS
        for number, state, record in trials.read(self._pending):
            self._projection.trial(number, state, record)
            self._pending.discard(number)
        self._pending.clear()  # the others have not begun
        if self._steps is not None:
            self._done = next(self._steps, -1)
            if self._done < 0:
                self._steps, self._behind = None, False
        running = trials.state == "RUNNING"
        if running or not self._behind:  # its end comes last
            own = (trials.state, None if running else trials.winner, None if running else trials.ended_ms)
            if own != self._own:
                self._projection.study(*own)
                self._own = own

    def _past(self, trials: StudyTrials) -> Iterator[int]:
        for done, _ in self._projection.catch_up(trials):
            yield done
        if self._aside is not None:
            for _ in _bring(self._settings, self._aside):
                yield len(trials)

    @property
    def report(self) -> Report:
        refusals = {} if self._projection is None else self._projection.refusals
        waiting = len(self._pending | refusals.keys())
        if self._behind and self._trials is not None:
            waiting = max(waiting, len(self._trials) - self._done)
        trouble = ""
        if self._refusal:
            trouble = f"MLflow refuses the study ({self._refusal})"
        elif self._failures > 1:
            trouble = f"MLflow is away since {time.strftime('%H:%M', time.localtime(self._since))}"
        elif refusals:
            number, reason = next(iter(refusals.items()))
            trouble = f"MLflow refuses #{number:03d} ({reason})"
        return Report(
            waiting=waiting,
            own=self._own is None or self._behind,
            trouble=trouble,
            away=self._failures > 1 and not self._refusal,
            outside="" if self._projection is None else self._projection.outside,
        )


def _bring(settings: Settings, name: str) -> Iterator[None]:
    """Write what MLflow lacks of a study that was set aside."""
    engine = open_engine(settings.storage_url)
    try:
        trials = StudyTrials(engine, name, at_rest=True)
        if trials.begun:
            projection = project(settings, trials.facts)
            for _ in projection.catch_up(trials):
                yield
            projection.study(trials.state, trials.winner, trials.ended_ms)
    except (StudyNotFound, StorageError):  # another program's, or what cannot be read any more
        return
    except Exception as error:
        if not refusal(error):
            raise
    finally:
        engine.dispose()
