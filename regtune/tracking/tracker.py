"""The tracker of a running study: keeps MLflow up to date from a process of its own.

MLflow can delay neither a sweep nor its training: nothing is handed over, the process reads the study itself. A store
that is away is tried again for as long as the sweep runs; what is missing then is caught up at the next start, or by
`regtune sync`. The process ends with its coordinator, however that ends.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

from regtune.credentials import OF_TRACKING, STORAGE_PASSWORD, without_secrets
from regtune.processes import Child
from regtune.settings import Settings
from regtune.storage import redact
from regtune.storage.mlflow import is_server, trouble
from regtune.tracking.live import Report

RESTARTS = 3
DRAIN_SECONDS = 60.0
"""How long a finished sweep waits for MLflow to take what is left; what is missing then is caught up later."""
START_SECONDS = 180.0
"""How long it waits before that while the process has not said a word since it was started: on a busy machine MLflow's
import outlasts a short sweep.
"""
GOES_ON = "is away; the sweep continues, and MLflow catches up later"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


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
        return Child("regtune.tracking.live", *self._arguments, environment=environment)

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
    return f"{count} trial{'' if count == 1 else 's'} wait{'s' if count == 1 else ''}"
