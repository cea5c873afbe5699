"""Databases: engines, the schema's first creation, locks, and URLs that can be shown.

Optuna's database is opened here and nowhere else. A SQLite file is put into WAL mode when it is made; its schema is
made once, under a lock, because several processes that open an empty database at once trip over each other.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy
from filelock import FileLock, Timeout
from sqlalchemy import event
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from regtune.errors import SettingsError, StorageError

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

    from regtune.settings import Settings

BUSY_SECONDS = 30
DISK_FULL = "the disk is full; make room and give the same command again: nothing recorded is lost"


def redact(url: str) -> str:
    """The URL with its password, if it has one, replaced by three stars."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return re.sub(r"://[^@/]*@", "://***@", url)


def parse_url(url: str) -> URL:
    """The parsed URL of Optuna's database. Raises SettingsError for a URL that cannot be used."""
    try:
        found = make_url(url)
    except ArgumentError:
        raise SettingsError(
            f"OPTUNA_STORAGE: expected a database URL such as sqlite:///studies.db, found {redact(url)}"
        ) from None
    if found.get_backend_name() != "sqlite":
        raise SettingsError(
            f"OPTUNA_STORAGE: expected sqlite:///PATH, found {redact(url)}; this version keeps studies in SQLite"
        )
    if not found.database or found.database == ":memory:":
        raise SettingsError("OPTUNA_STORAGE: expected sqlite:///PATH; a study in memory would be lost")
    return found


def database_path(url: str) -> Path:
    """The file of a SQLite URL."""
    return Path(parse_url(url).database or "").expanduser().resolve()


def open_engine(url: str) -> Engine:
    """An engine for reading Optuna's database. Raises StorageError when there is none or it is damaged."""
    path = database_path(url)
    if not path.exists():
        raise StorageError(f"{path}: no studies yet; try: regtune sweep sweeps/quickstart.yaml")
    engine = sqlalchemy.create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_SECONDS})
    with understood(path):
        tables = sqlalchemy.inspect(engine).get_table_names()
    if tables and "version_info" not in tables:
        raise StorageError(f"{path}: not a database of Optuna studies; set OPTUNA_STORAGE to another file")
    if not tables:
        raise StorageError(f"{path}: no studies yet; try: regtune sweep sweeps/quickstart.yaml")
    return engine


def open_storage(settings: Settings) -> RDBStorage:
    """Optuna's storage for writing, its database made first if there is none. Raises StorageError."""
    import optuna
    from optuna.storages import RDBStorage

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = database_path(settings.storage_url)
    folder = writable_folder(path.parent)
    url = f"sqlite:///{path}"
    with understood(path), lock(folder, "studies.db", wait_seconds=60):
        fresh = not path.exists() or path.stat().st_size == 0
        if fresh:
            with sqlite3.connect(path) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
            connection.close()
            RDBStorage(url).engine.dispose()
    if not fresh:
        open_engine(url).dispose()
    with understood(path):
        storage = RDBStorage(
            url, engine_kwargs={"connect_args": {"timeout": BUSY_SECONDS}}, skip_table_creation=True
        )
        event.listen(storage.engine, "connect", _relax)
        storage.engine.dispose()
        return storage


def _relax(connection: Any, _: Any) -> None:
    """In WAL mode NORMAL survives every death of a process; only a power cut may take the last moments."""
    connection.execute("PRAGMA synchronous=NORMAL")


def writable_folder(folder: Path) -> Path:
    """Make `folder` if need be and see that files can be made there. Raises StorageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot be written ({error.strerror}); choose another folder with REGTUNE_HOME"
        ) from None
    return folder


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """Turn what a database throws into a StorageError that says what to do."""
    try:
        yield
    except (sqlite3.Error, SQLAlchemyError) as error:
        raise StorageError(explain(error, path)) from error
    except OSError as error:
        raise StorageError(f"{error.filename or path}: {error.strerror or error}") from error
    except Exception as error:
        if type(error).__name__ == "StorageInternalError":  # Optuna's; readers do without importing Optuna
            raise StorageError(explain(error, path)) from error
        if not isinstance(error, RuntimeError) or "version" not in str(error):
            raise
        raise StorageError(f"{path}: its schema is of another Optuna version ({error})") from error


def explain(error: BaseException, path: Path) -> str:
    """One line for a database's complaint."""
    text = str(getattr(error, "orig", None) or error.__cause__ or error).splitlines()[0]
    lower = text.lower()
    if "full" in lower:
        return f"{path}: {DISK_FULL}"
    if "readonly" in lower or "read-only" in lower:
        return f"{path}: cannot be written; is the folder read-only?"
    if "locked" in lower:
        return f"{path}: locked by another process for more than {BUSY_SECONDS} s; end it and try again"
    if "not a database" in lower or "malformed" in lower:
        return f"{path}: damaged, or not a SQLite database ({text}); restore it from a backup or move it away"
    return f"{path}: {text}"


def lock_path(folder: Path, name: str) -> Path:
    """The lock file for `name`: readable, and different for different names, whatever characters they have."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:40].strip(".-") or "study"
    return folder / "locks" / f"{slug}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.lock"


@contextmanager
def lock(folder: Path, name: str, wait_seconds: float) -> Iterator[None]:
    """Hold the lock `name` of `folder`. Raises StorageError when another process keeps it longer."""
    path = lock_path(folder, name)
    path.parent.mkdir(exist_ok=True)
    try:
        with FileLock(path, timeout=wait_seconds):
            yield
    except Timeout:
        raise StorageError(f"{path}: held by another process for more than {wait_seconds:.0f} s") from None
