"""Optuna's storage on PostgreSQL, which waits while its server is away.

A sweep lasts longer than a server's uptime: it is restarted, failed over, its connections are terminated. Each call of
Optuna's storage is one transaction, and the coordinator is the only one that writes to a study, so a call that was cut
off can be made again: setting an attribute, a step or a parameter twice is setting it once, and a trial that has ended
meanwhile has ended as it was told to. Only a trial that was made without our hearing of it is left running in nobody's
hands; the coordinator puts such trials back into the queue when `outages` has grown.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy import event

from regtune.storage.troubles import away

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 5.0


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
        self._checking = False

    def stop(self) -> None:
        """Wait no more, now and later."""
        self._stop.set()

    def check_once(self) -> None:
        """Call `check`, unless it is its own call that is to be made."""
        if self._checking:
            return
        self._checking = True
        try:
            self.check()
        finally:
            self._checking = False

    def through(self, call: Callable[[], Any]) -> Any:
        """`call()`, made again while the server is away. Raises what `call` raises for any other reason."""
        try:
            return call()
        except Exception as error:
            if not away(error) or self._stop.is_set():
                raise
        since = time.strftime("%H:%M:%S")
        self.outages += 1
        self._note(f"{self._place} is away since {since}; the sweep is waiting for it")
        pause = FIRST_PAUSE_SECONDS
        while True:
            stopped = self._stop.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            try:
                self.check_once()
                found = call()
            except UpdateFinishedTrialError:  # the call that was cut off had done it
                found = True
            except Exception as error:
                if not away(error) or stopped:
                    raise
                continue
            self._note(f"{self._place} is back; nothing was lost")
            return found


class PatientStorage(RDBStorage):
    """`RDBStorage`, each call through `patience`."""

    def __init__(self, url: str, patience: Patience, **options: Any) -> None:
        self.patience = patience
        super().__init__(url, **options)
        event.listen(self.engine, "connect", lambda *_: patience.check_once())


def _patient(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: PatientStorage, *args: Any, **kwargs: Any) -> Any:
        return self.patience.through(lambda: method(self, *args, **kwargs))

    return call


_CALLS = {
    name
    for name in (*BaseStorage.__abstractmethods__, "get_trial_id_from_study_id_trial_number")
    if not name.startswith("__")
}
_CALLS |= {
    "_create_new_trial",
    "_set_trial_param",
    "_get_trials",
    "_get_best_trial_id",
}  # Optuna's cache calls these
_CALLS -= {"create_new_trial", "get_all_trials", "set_trial_param", "get_best_trial"}  # they call those
for _name in sorted(_CALLS):
    setattr(PatientStorage, _name, _patient(getattr(RDBStorage, _name)))
