"""Whole SQLite files: creation, copies while others write, checks, replacement in one transaction."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from regtune.errors import StorageError
from regtune.storage.troubles import BUSY_SECONDS, understood

BESIDE = ("", "-wal", "-shm", "-journal")
"""The files of a SQLite database; left over, the last three would be applied to the next one of that name."""


def may_write(path: Path) -> bool:
    """Return whether this account may write a database: the file, and others beside it."""
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Connect for a moment to a database that this account may only read. Raises sqlite3.OperationalError.

    Where nothing lies beside it SQLite would make it, unless it is told that nobody writes ("Write-Ahead Logging",
    read-only databases).
    """
    try:
        return _open_to_read(path)
    except sqlite3.OperationalError:  # what lay beside it may have vanished in between
        return _open_to_read(path)


def _open_to_read(path: Path) -> sqlite3.Connection:
    in_use = any(path.with_name(path.name + suffix).exists() for suffix in ("-wal", "-shm"))
    uri = f"file:{quote(str(path))}?mode=ro{'' if in_use else '&immutable=1'}"
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, check_same_thread=False)
    try:
        connection.execute("PRAGMA schema_version").fetchone()
    except sqlite3.OperationalError:
        connection.close()
        raise
    return connection


def discard(path: Path) -> None:
    """Delete a SQLite file with everything beside it."""
    for suffix in BESIDE:
        path.with_name(path.name + suffix).unlink(missing_ok=True)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """An empty file in WAL mode beside `path`, which takes the place of what is there when the block ends well."""
    fresh = path.with_name(f"{path.name}.new")
    discard(fresh)
    try:
        fresh.touch()  # SQLite itself lets the group write no file, whatever the umask says
        with closing(sqlite3.connect(fresh)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        yield fresh
        discard(path)
        fresh.replace(path)
    except BaseException:
        discard(fresh)
        raise


def copy(source: Path, target: Path) -> None:
    """Copy a database as it is at one moment, also while others write to it (SQLite's online backup).

    A `target` that exists gets its content in one transaction, which those who have it open see as one. Raises
    StorageError.
    """
    with understood(source), closing(sqlite3.connect(source, timeout=BUSY_SECONDS)) as reading:
        reading.execute("PRAGMA schema_version").fetchone()  # it is a database: only then is a target made
        with understood(target), closing(sqlite3.connect(target, timeout=BUSY_SECONDS)) as writing:
            reading.backup(writing)


@contextmanager
def unwritten(path: Path) -> Iterator[Callable[[], bool]]:
    """Yield what tells whether no other connection has written to a database since. Raises StorageError."""
    with understood(path), closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as watching:

        def version() -> int:
            return int(watching.execute("PRAGMA data_version").fetchone()[0])

        before = version()
        yield lambda: version() == before


def check(path: Path) -> None:
    """Read a database in full. Raises StorageError when a page or an index of it is broken."""
    with understood(path), closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as connection:
        problems = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(3)")]
        if problems != ["ok"]:
            damage = f"{path}: damaged: {'; '.join(problems)}"
            raise StorageError(f"{damage}; restore it from a backup or move it away")
