"""The only place where Optuna's database is opened.

A SQLite file is put into WAL mode when it is made. Tables are made once, under a lock, because several processes that
open an empty database at once trip over each other: in PostgreSQL by `regtune db init`, in SQLite also by the first
verb that writes. Whoever else opens a database makes none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.pool import NullPool

from regtune.credentials import STORAGE_PASSWORD, secret
from regtune.errors import NoStudies
from regtune.settings import sqlite_url
from regtune.storage.locks import KEEPALIVE, SILENT_SECONDS, schema_lock
from regtune.storage.schema import STUDIES, check_studies, look
from regtune.storage.sqlite import beside, connect_to_read, may_write
from regtune.storage.troubles import BUSY_SECONDS, understood, writable_folder
from regtune.storage.urls import database_path, full_url, is_sqlite, place

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

    from regtune.settings import Settings

CONNECT_SECONDS = 10
FIRST = "no studies yet; try: regtune sweep sweeps/quickstart.yaml"


def engine_options(url: str, password: str | None = None, session: str = "regtune") -> dict[str, Any]:
    """What `create_engine` needs beside the URL. password: of a PostgreSQL role; libpq's own ways work too."""
    if is_sqlite(url):
        path = database_path(url)
        if path.exists() and not may_write(path):
            return {"creator": partial(connect_to_read, path), "poolclass": NullPool}
        return {"connect_args": {"timeout": BUSY_SECONDS}}
    arguments: dict[str, Any] = {
        "connect_timeout": CONNECT_SECONDS,
        "application_name": session,
        "options": KEEPALIVE,
        "keepalives_idle": 10,  # these are how we notice that the server's machine has vanished
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": SILENT_SECONDS * 1000,
    }
    for name in sqlalchemy.make_url(url).query:  # what the URL says of these counts
        if name.startswith(("keepalives", "tcp_user_timeout", "connect_timeout")):
            arguments.pop(name, None)
    if password is not None:
        arguments["password"] = password
    return {"connect_args": arguments, "pool_pre_ping": True}


def studies_engine(url: str) -> Engine:
    url = full_url(url)
    return sqlalchemy.create_engine(url, **engine_options(url, secret(STORAGE_PASSWORD)))


def open_engine(url: str) -> Engine:
    """An engine for reading Optuna's database.

    Raises NoStudies when there is none yet, StorageError when it cannot be used.
    """
    where = place(url)
    if is_sqlite(url) and not database_path(url).exists():
        raise NoStudies(f"{where}: {FIRST}")
    engine = studies_engine(url)
    try:
        with understood(where):
            if not check_studies(engine, where):
                raise NoStudies(f"{where}: {FIRST}")
    except BaseException:
        engine.dispose()
        raise
    return engine


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
    options = engine_options(url, secret(STORAGE_PASSWORD), session)
    with understood(place(url)):
        storage = RDBStorage(url, engine_kwargs=options, skip_table_creation=True)
        storage.engine.dispose()
        if is_sqlite(url):
            event.listen(storage.engine, "connect", _relax)
        elif check is not None:
            event.listen(storage.engine, "connect", lambda *_: check())
        return storage


def make_studies(url: str) -> bool:
    """Make Optuna's tables unless they are there; say whether it did. Raises StorageError.

    A SQLite database, in WAL mode, is there as a whole or not at all.
    """
    import optuna
    from optuna.storages import RDBStorage

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = database_path(url) if is_sqlite(url) else None
    folder = writable_folder(path.parent) if path else Path()
    engine = studies_engine(url)
    try:
        with understood(place(url)), schema_lock(engine, folder):
            if (path is None or path.exists()) and not look(engine, STUDIES, place(url)).blank:
                return False
            if path is None:
                options = engine_options(url, secret(STORAGE_PASSWORD))
                RDBStorage(full_url(url), engine_kwargs=options).engine.dispose()
                return True
            engine.dispose()
            with beside(path) as fresh:
                RDBStorage(sqlite_url(fresh)).engine.dispose()
            return True
    finally:
        engine.dispose()


def _relax(connection: Any, _: Any) -> None:
    """In WAL mode NORMAL survives every death of a process; only a power cut may take the last moments."""
    connection.execute("PRAGMA synchronous=NORMAL")
