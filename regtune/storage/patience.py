"""Waiting for a PostgreSQL server that is away.

A sweep lasts longer than a server's uptime: it is restarted, failed over, its connections are terminated. Each call of
Optuna's storage is one transaction, and the coordinator is the only one that writes to a study, so a call that was cut
off can be made again: setting an attribute, a step or a parameter twice is setting it once, and a trial that has ended
meanwhile has ended as it was told to.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar, cast

from optuna.exceptions import UpdateFinishedTrialError

from regtune.storage.troubles import away

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 5.0
_Result = TypeVar("_Result")


class Patience:
    """How a storage waits. `note` is told of an outage's begin and end; when `stop` is set, the waiting ends.

    outages: how many there were. check: raises what says that nothing may be written any more; it is called before a
    call is made again, and before any is made on a new connection, as the one before may have been cut off unseen.
    """

    def __init__(
        self,
        place: str,
        check: Callable[[], None] = lambda: None,
        note: Callable[[str], None] = lambda _: None,
        stop: threading.Event | None = None,
    ) -> None:
        self._place = place
        self.check = check
        self._note = note
        self._stop = stop or threading.Event()
        self.outages = 0
        self._waiting = False

    def stop(self) -> None:
        self._stop.set()

    def through(self, call: Callable[[], _Result]) -> _Result:
        """Return `call()`, called again while the server is away. Raises what `call` raises for any other reason."""
        if self._waiting:  # in a call that is made again
            return call()
        try:
            return call()
        except Exception as error:
            if not away(error) or self._stop.is_set():
                raise
        self._waiting = True
        try:
            return self._again(call)
        finally:
            self._waiting = False

    def _again(self, call: Callable[[], _Result]) -> _Result:
        since = time.strftime("%H:%M:%S")
        self.outages += 1
        self._note(f"{self._place} is away since {since}; the sweep is waiting for it")
        pause = FIRST_PAUSE_SECONDS
        while True:
            stopped = self._stop.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            try:
                self.check()
                result = call()
            except UpdateFinishedTrialError:  # the call that was cut off had done it
                result = cast("_Result", True)
            except Exception as error:
                if not away(error) or stopped:
                    raise
                continue
            self._note(f"{self._place} is back; nothing was lost")
            return result
