"""Migration of Optuna's and MLflow's tables by their own code, once and under a lock."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine

from regtune.credentials import STORAGE_PASSWORD, secret
from regtune.settings import sqlite_url
from regtune.storage import sqlite
from regtune.storage.engines import engine_options, studies_engine
from regtune.storage.locks import schema_lock
from regtune.storage.passwords import give_password
from regtune.storage.schema import STUDIES, Schema, Tables, look
from regtune.storage.troubles import understood
from regtune.storage.urls import database_path, full_url, is_sqlite, place


def studies_schema(url: str) -> Schema:
    """How the database of studies stands; nothing is changed. Raises StorageError."""
    return schema_of(url, STUDIES, studies_engine)


def schema_of(url: str, tables: Tables, engine_of: Callable[[str], Engine]) -> Schema:
    """How the database `url` stands; a SQLite file that is not there is not made. Raises StorageError."""
    where = place(url)
    if is_sqlite(url) and not database_path(url).exists():
        return Schema(tables, where, "missing")
    engine = engine_of(url)
    try:
        with understood(where):
            return look(engine, tables, where)
    finally:
        engine.dispose()


def upgrade_studies(url: str) -> None:
    """Migrate Optuna's tables to the installed version's. Raises StorageError."""
    give_password(url, secret(STORAGE_PASSWORD))
    upgrade(url, STUDIES, studies_engine, _migrate)


def upgrade(
    url: str, tables: Tables, engine_of: Callable[[str], Engine], migrate: Callable[[str], None]
) -> None:
    """Run `migrate` on the database `url` under its schema's lock, unless another process has just done it.

    In PostgreSQL a migration is one transaction. In SQLite it is not: there a copy is migrated, and its content put
    back in one transaction. Raises StorageError, and what `migrate` raises.
    """
    engine = engine_of(url)
    path = database_path(url) if is_sqlite(url) else None
    try:
        with (
            understood(place(url)),
            schema_lock(engine, path.parent if path else Path()),
            _quiet_alembic(),
        ):
            if look(engine, tables, "").state != "older":
                return
            if path is None:
                migrate(url)
                return
            engine.dispose()
            draft = path.with_name(f"{path.name}.upgrade")
            sqlite.discard(draft)
            try:
                sqlite.copy(path, draft)
                migrate(sqlite_url(draft))
                sqlite.copy(draft, path)
            finally:
                sqlite.discard(draft)
    finally:
        engine.dispose()


def _migrate(url: str) -> None:
    from optuna.storages import RDBStorage

    options = engine_options(url, secret(STORAGE_PASSWORD))
    url = full_url(url)
    storage = RDBStorage(url, engine_kwargs=options, skip_compatibility_check=True, skip_table_creation=True)
    try:
        storage.upgrade()
    finally:
        storage.engine.dispose()


@contextmanager
def _quiet_alembic() -> Iterator[None]:
    """Optuna's migrations set up logging for the whole process, unless somebody has done so."""
    nobody = logging.NullHandler()
    logging.getLogger().addHandler(nobody)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(nobody)
