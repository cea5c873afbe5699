"""Optuna's database: opened, made, migrated and waited for, and the private names of Optuna that regtune relies on.

Reading Optuna's tables by plain SQL is a matter of `study/tables.py`, which checks their revision.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, cast

from sqlalchemy import Engine, column, event, table, update

from regtune.errors import NoStudies, StorageError
from regtune.storage.engines import engine_options, full_url, is_sqlite, place
from regtune.storage.schema import STUDIES, make_tables, schema_of, upgrade
from regtune.storage.troubles import away, understood

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

    from regtune.settings import Settings

FIXED_PARAMS = "fixed_params"
"""Trial attribute under which `Study.enqueue_trial` stores what `Trial.suggest_*` must return.

Configurations that other programs queue are checked and completed, and Optuna cannot change a queued trial.
"""
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 5.0
_STUDIES = table("studies", column("study_id"), column("study_name"))
_Result = TypeVar("_Result")


def open_engine(url: str) -> Engine:
    """Return an engine for reading Optuna's database. Raises NoStudies when there is none yet, StorageError."""
    schema = schema_of(url, STUDIES)
    if schema.blank and is_sqlite(url):
        raise NoStudies(f"{schema.where}: no studies yet; try: regtune sweep sweeps/quickstart.yaml")
    if schema.problem:
        raise StorageError(schema.problem)
    return STUDIES.engine(url)


def open_storage(
    settings: Settings, check: Callable[[], None] | None = None, session: str = "regtune"
) -> RDBStorage:
    """Return Optuna's storage for writing; a SQLite database is made first if there is none.

    check: called before a new connection is used. session: what PostgreSQL calls its connections. Raises StorageError.
    """
    import optuna
    from optuna.storages import RDBStorage

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url = full_url(settings.storage_url)
    if is_sqlite(url):
        make_studies(url)
    else:  # psycopg warns of connections that were lost; `Patience` says so
        logging.getLogger("psycopg").setLevel(logging.ERROR)
    open_engine(url).dispose()
    with understood(place(url)):
        storage = RDBStorage(url, engine_kwargs=engine_options(url, session), skip_table_creation=True)
        storage.engine.dispose()
        if is_sqlite(url):  # in WAL mode NORMAL survives all but a power cut, which may take the last moments
            relaxed = "PRAGMA synchronous=NORMAL"
            event.listen(storage.engine, "connect", lambda connection, _: connection.execute(relaxed))
        elif check is not None:
            event.listen(storage.engine, "connect", lambda *_: check())
        return storage


def make_studies(url: str) -> bool:
    """Create Optuna's tables unless they exist; return whether it did. Raises StorageError."""
    from optuna.storages import RDBStorage

    def create(url: str) -> None:
        RDBStorage(url, engine_kwargs=engine_options(url)).engine.dispose()

    return make_tables(url, STUDIES, create)


def upgrade_studies(url: str) -> None:
    """Migrate Optuna's tables to the installed version's. Raises StorageError."""
    upgrade(url, STUDIES, _migrate)


def rename_study(storage: RDBStorage, study_id: int, name: str) -> None:
    """Rename a study; Optuna itself can only copy one, trial by trial."""
    with storage.engine.begin() as connection:
        connection.execute(update(_STUDIES).where(_STUDIES.c.study_id == study_id).values(study_name=name))


def _migrate(url: str) -> None:
    from optuna.storages import RDBStorage

    url, options = full_url(url), engine_options(url)
    storage = RDBStorage(url, engine_kwargs=options, skip_compatibility_check=True, skip_table_creation=True)
    nobody = logging.NullHandler()  # without one Optuna's migrations set up logging for the whole process
    logging.getLogger().addHandler(nobody)
    try:
        storage.upgrade()
    finally:
        logging.getLogger().removeHandler(nobody)
        storage.engine.dispose()


class Patience:
    """Waiting for a PostgreSQL server that is away.

    A sweep lasts longer than a server's uptime. Each call of Optuna's storage is one transaction, and the coordinator
    is the only one that writes to a study, so a call that was cut off can be made again: setting an attribute, a step
    or a parameter twice is setting it once, and a trial that has ended meanwhile has ended as it was told to.

    note: told of an outage's begin and end. stop: when it is set, the waiting ends. outages: how many there were.
    check: raises what says that nothing may be written any more; it is called before a call is made again, and before
    any is made on a new connection, as the one before may have been cut off unseen.
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
        try:
            return call()
        except Exception as error:
            inside = self._waiting  # of a call that is made again
            if inside or not away(error) or self._stop.is_set():
                raise
        self._waiting = True
        try:
            return self._again(call)
        finally:
            self._waiting = False

    def _again(self, call: Callable[[], _Result]) -> _Result:
        from optuna.exceptions import UpdateFinishedTrialError

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
