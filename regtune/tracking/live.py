"""Live tracking: a process of its own keeps MLflow up to date while a study runs.

MLflow can delay neither a sweep nor its training: nothing is handed over, the process reads the study itself, as
`regtune sync` does, in a loop. A store that is away is tried again for as long as the sweep runs; what is missing then
is caught up at the next start, or by `regtune sync`. The process has no other source than the study, so its death
loses nothing: another one begins by catching up. It ends with its coordinator, however that ends.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

from sqlalchemy import Engine

from regtune.credentials import OF_TRACKING, STORAGE_PASSWORD, without_secrets
from regtune.errors import StorageError, StudyNotFound
from regtune.processes import Child, spawn
from regtune.settings import Settings
from regtune.storage import database_path, is_sqlite, open_engine, redact
from regtune.storage.mlflow import is_server, trouble
from regtune.tracking.projection import Projection, project, refusal
from regtune.tracking.studies import Key, StudyTrials

PACE_SECONDS = 2.0
"""How often MLflow is told of progress at most: the lag of a live curve."""
LONGEST_PACE_SECONDS = 10.0
SHARE = 0.001
"""Of all cores: what telling it may cost, unless the pace would be longer than that."""
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
REFUSED_PAUSE_SECONDS = 60.0
RESTARTS = 3
DRAIN_SECONDS = 60.0
"""How long a finished sweep waits for MLflow to take what is left; what is missing then is caught up later."""
START_SECONDS = 180.0
"""How long it waits before that while the process has not said a word since it was started: on a busy machine MLflow's
import outlasts a short sweep.
"""
GOES_ON = "is away; the sweep continues, and MLflow catches up later"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Report:
    """How far MLflow is. waiting: trials and replicates that are not up to date. own: whether the parents are not.

    away: MLflow does not answer. outside: where files would go, if none is written there.
    """

    waiting: int = 0
    own: bool = True
    trouble: str = ""
    away: bool = False
    outside: str = ""


class Tracker:
    """Writes a study into MLflow in the background. Nothing blocks but `close`. To be used by one thread.

    aside: the name of a study that was set aside for it. Whether MLflow answers at a server's address is asked once.
    """

    def __init__(self, settings: Settings, study: str, aside: str | None = None) -> None:
        uri = settings.mlflow_uri
        self._where, self._artifacts = redact(uri), settings.artifacts
        wrong = trouble(uri) if is_server(uri) else ""
        self._news = [f"{self._where} {wrong}: MLflow {GOES_ON}"] if wrong else []
        self._arguments = (settings, study, aside, bool(wrong))
        self._report = Report(away=bool(wrong))
        self._heard = self._closing = self._over = False
        self._restarts = RESTARTS
        self._began = time.monotonic()
        self._child = self._start()

    def news(self) -> list[str]:
        """What is to be said once, and has not been said: that MLflow is away, that it is back."""
        self._listen(0.0)
        found, self._news = self._news, []
        return found

    @property
    def status(self) -> str:
        """One phrase on how far MLflow is behind and why; empty when there is nothing to say."""
        self._listen(0.0)
        return f"{self._report.trouble}; {_wait(self._report.waiting)}" if self._report.trouble else ""

    @property
    def pid(self) -> int:
        return self._child.pid

    def close(self, timeout_seconds: float | None = None) -> int:
        """Write what is left, end the process, and return the number of unwritten runs, the study's own among them.

        timeout_seconds: how long writing may take; None for DRAIN_SECONDS, counted from the process's first word, for
        which START_SECONDS since the tracker was created are allowed.
        """
        if not self._closing:
            self._closing = True
            self._tell()
        if timeout_seconds is None:
            first_word = self._began + START_SECONDS
            while not (self._heard or self._over) and (left := first_word - time.monotonic()) > 0:
                self._listen(left)
            timeout_seconds = DRAIN_SECONDS
        deadline = time.monotonic() + timeout_seconds
        while not self._over and (left := deadline - time.monotonic()) > 0:
            self._listen(left)
        behind = self._report.waiting + self._report.own
        if not self._over:
            self._over = True
            self._child.kill()
            self._child.wait()
            behind = max(1, behind)
        return behind

    def _start(self) -> Child:
        environment = without_secrets(os.environ, but=(*OF_TRACKING, STORAGE_PASSWORD)) | ONE_THREAD
        return Child(spawn(__name__, environment), *self._arguments)

    def _tell(self) -> None:
        with suppress(OSError):  # it has died; listening finds that out
            self._child.connection.send(None)

    def _listen(self, seconds: float) -> None:
        """Take what the process has said; wait for a first word of it for `seconds`."""
        while not self._over and self._child.connection.poll(seconds):
            seconds = 0.0
            try:
                self._take(self._child.connection.recv())
            except (EOFError, OSError):
                self._restart(self._child.wait())

    def _take(self, report: Report) -> None:
        if report.waiting < self._report.waiting or (self._report.own and not report.own):
            self._restarts = RESTARTS
        if report.away != self._report.away:
            waiting = f"; {_wait(report.waiting)} to be written" if report.waiting else ", and up to date"
            back = f"MLflow is back{waiting}"
            self._news.append(f"MLflow at {self._where} {GOES_ON}" if report.away else back)
        if report.outside and not self._report.outside:
            self._news.append(
                f"MLflow keeps this sweep's files in {report.outside}, outside {self._artifacts}; "
                f"there nothing is written: to have them in MLflow take another --name, or another store"
            )
        self._heard, self._report = True, report

    def _restart(self, how: str) -> None:
        """After the process has ended: another one, unless it was told to end."""
        if self._closing and how == "exit code 0":
            self._over = True
            return
        if self._restarts == 0:
            self._give_up("the MLflow writer died; the next sweep catches up")
            return
        self._restarts -= 1
        try:
            self._child = self._start()
        except OSError as error:
            self._give_up(f"the MLflow writer died and cannot be started ({error.strerror})")
            return
        if self._closing:
            self._tell()

    def _give_up(self, why: str) -> None:
        self._over = True
        self._report = Report(max(1, self._report.waiting), True, why)


def _wait(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'} wait{'s' if count == 1 else ''}"


def main(link: Connection, settings: Settings, study: str, aside: str | None, away: bool) -> None:
    """Keep MLflow up to date until something comes through `link`; then write what is left, and end.

    aside: the new name of a study that was set aside for this one. away: the store was, a moment ago.
    """
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
        self._settings, self._study, self._aside = settings, study, aside
        self._failures = int(away)
        self._since = time.time()
        self._refusal = ""
        self._retry_at = 0.0
        self._closing = False
        self._coordinator: str | None = None
        self._taken_over = False
        self._engine: Engine | None = None
        self._forget()

    def _forget(self) -> None:
        self._trials: StudyTrials | None = None
        self._pending: set[Key] = set()
        self._behind = True
        self._done = 0
        self._disconnect()

    def _disconnect(self) -> None:
        self._projection: Projection | None = None
        self._steps: Iterator[int] | None = None
        self._own: object = None

    def close(self) -> None:
        """Finish soon: nothing runs any more, and what was refused is tried once more at once."""
        self._closing = True
        self._retry_at = 0.0

    @property
    def finished(self) -> bool:
        """Whether nothing is left that could be written now."""
        return self._taken_over or self._failures > 1 or not (self._behind or self._pending or self._failures)

    def round(self) -> float:
        """Write what can be written; of what MLflow lacks from before one step. Returns the seconds to the next."""
        began = time.process_time()
        try:
            if self._engine is None:
                self._engine = open_engine(self._settings.storage_url)
            if self._trials is None:
                self._trials = StudyTrials(self._engine, self._study, at_rest=False)
            else:
                self._pending |= self._trials.look()
            self._coordinator = self._coordinator or self._trials.coordinator
            self._taken_over = self._trials.coordinator != self._coordinator
            if self._taken_over:  # whoever runs the study now writes it: of two writers both would make a run
                return PACE_SECONDS
            self._trials.at_rest = self._closing
            self._write(self._engine, self._trials)
        except (StorageError, StudyNotFound):  # others may have synchronized it meanwhile
            self._forget()
            return PACE_SECONDS
        except Exception as error:  # MLflow and its stores raise many kinds: nothing was written
            self._pending |= self._refused.keys()
            self._disconnect()
            self._since = self._since if self._failures else time.time()
            self._failures, self._refusal = self._failures + 1, refusal(error)
            return min(FIRST_PAUSE_SECONDS * 2.0 ** min(self._failures - 1, 9), LONGEST_PAUSE_SECONDS)
        self._failures, self._refusal = 0, ""
        if self._behind or self._closing:
            return 0.0
        share = (time.process_time() - began) / (SHARE * (os.cpu_count() or 1))
        return min(LONGEST_PACE_SECONDS, max(PACE_SECONDS, share))

    def _write(self, engine: Engine, trials: StudyTrials) -> None:
        uri = self._settings.mlflow_uri
        if is_sqlite(uri) and not database_path(uri).exists():
            self._disconnect()  # SQLite would go on writing into the deleted file
            self._behind = True
        projection = self._projection = self._projection or project(self._settings, trials.facts)
        projection.facts = trials.facts
        if self._behind and self._steps is None:
            self._steps, self._done = self._past(engine, trials, projection), 0
        if time.monotonic() >= self._retry_at:
            self._pending |= self._refused.keys()
            self._retry_at = time.monotonic() + REFUSED_PAUSE_SECONDS
        else:
            self._pending -= self._refused.keys()
        for number, state, record in trials.read(self._pending):
            projection.trial(number, state, record)
            self._pending.discard(number)
        self._pending.clear()  # the others have not begun
        if self._steps is not None:
            self._done = next(self._steps, -1)
            if self._done < 0:
                self._steps, self._behind = None, False
        running = trials.state == "RUNNING"
        if running or not self._behind:  # its end comes last
            own = (trials.state, None if running else trials.winner, None if running else trials.ended_ms)
            if (own, trials.facts.deciding) != self._own:
                projection.study(*own)
                self._own = own, trials.facts.deciding

    def _past(self, engine: Engine, trials: StudyTrials, projection: Projection) -> Iterator[int]:
        """Write what MLflow lacks from before, also of a study that was set aside; yields as `catch_up` does."""
        yield from projection.catch_up(trials)
        if self._aside is None:
            return
        with suppress(StudyNotFound, StorageError):  # another program's, or what cannot be read any more
            aside = StudyTrials(engine, self._aside, at_rest=True)
            if aside.begun:
                for _ in project(self._settings, aside.facts).bring(aside):
                    yield len(trials)

    @property
    def _refused(self) -> dict[Key, str]:
        """What MLflow refuses, and why."""
        return {} if self._projection is None else self._projection.refusals

    @property
    def report(self) -> Report:
        refused = self._refused
        waiting = len(self._pending | refused.keys())
        if self._behind and self._trials is not None:
            waiting = max(waiting, len(self._trials) - self._done)
        said = ""
        if self._refusal:
            said = f"MLflow refuses the study ({self._refusal})"
        elif self._failures > 1:
            said = f"MLflow is away since {time.strftime('%H:%M', time.localtime(self._since))}"
        elif refused:
            said = f"MLflow refuses {next(iter(refused.values()))}"
        return Report(
            waiting=waiting,
            own=self._own is None or self._behind,
            trouble=said,
            away=self._failures > 1 and not self._refusal,
            outside="" if self._projection is None else self._projection.outside,
        )
