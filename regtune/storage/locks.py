"""Locks: a file's on one machine, PostgreSQL's advisory locks for a shared database.

Both are free at once when their holder's process dies. A holder on another machine that vanishes with its network is
noticed by the server within SILENT_SECONDS and a probe's interval.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from regtune.errors import StorageError
from regtune.escaping import printable
from regtune.storage.engines import SILENT_SECONDS, place

NOTICED_SECONDS = SILENT_SECONDS + 10
"""Until a server has noticed that a client has vanished: it looks at its next probe."""
SCHEMA_SECONDS = 120.0
LOOK_SECONDS = 1.0  # `file_holder` takes a file's lock for a moment; that is no reason to refuse another
_APPLICATION = re.compile(r"regtune (\d+) (\S+) (.+)", re.DOTALL)
"""The name that PostgreSQL has of a connection with a lock: process, since when, machine."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock."""

    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        return printable(f"process {self.pid} on {self.host} since {self.since}")

    @classmethod
    def me(cls) -> Holder:
        return cls(os.getpid(), socket.gethostname(), time.strftime("%H:%M"))


_ELSEWHERE = Holder(0, "another machine", "a moment ago")


class Taken(Exception):
    """A lock is held by another process, which the text names."""


def lock_path(folder: Path, name: str) -> Path:
    """Return the lock file for `name`: readable, and another for each name."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:40].strip(".-") or "study"
    return folder / "locks" / f"{slug}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.lock"


@contextmanager
def lock(folder: Path, name: str, wait_seconds: float) -> Iterator[None]:
    """Hold the lock `name` of `folder`. Raises StorageError when another process keeps it longer."""
    path = lock_path(folder, name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (NotADirectoryError, FileExistsError):
        raise StorageError(f"{folder}: expected a folder") from None
    try:
        with FileLock(path, timeout=wait_seconds):
            yield
    except Timeout:
        raise StorageError(f"{path}: held by another process for more than {wait_seconds:.0f} s") from None


@contextmanager
def hold_file(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, with this process' name beside it. Raises Taken."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        acquired = FileLock(path, timeout=LOOK_SECONDS).acquire()
    except Timeout:
        raise Taken(_read_holder(path)) from None
    with acquired:
        path.with_suffix(".json").write_text(json.dumps(asdict(Holder.me())))
        try:
            yield
        finally:
            path.with_suffix(".json").unlink(missing_ok=True)


def file_holder(path: Path) -> Holder | None:
    """Return who holds the lock file `path`, or None."""
    try:
        with path.open("rb") as file:  # which who may only read can open, too
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        pass
    except BlockingIOError:
        return _read_holder(path)
    return None


def file_holders(folder: Path) -> list[Holder]:
    """List who runs a study of the databases in `folder`."""
    named = sorted((folder / "locks").glob("*.json"))
    return [who for path in named if (who := file_holder(path.with_suffix(".lock"))) is not None]


def _read_holder(path: Path) -> Holder:
    try:
        return Holder(**json.loads(path.with_suffix(".json").read_text()))
    except (OSError, ValueError, TypeError):
        return Holder(0, "this machine", "a moment ago")


def session_name(name: str) -> str:
    """Return the `application_name` of the connections on which the holder of `name` writes; the next one ends them."""
    return f"regtune {lock_key(name) % 2**64:016x}"


def lock_key(name: str) -> int:
    """Return the signed 64-bit key of an advisory lock for `name`."""
    return int.from_bytes(hashlib.sha256(f"regtune {name}".encode()).digest()[:8], "big", signed=True)


class AdvisoryHold:
    """A connection that keeps an advisory lock while it answers; when the server lost it, both are renewed."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self._name = name
        self._backend: dict[str, Any] = {}
        self._closed = False
        self.connection = self._lock()

    def check(self) -> bool:
        """Require that it is held; return whether it had been lost, so that another may have had it meanwhile.

        Raises Taken when another has it, or what the database raises.
        """
        try:
            self.connection.execute(text("SELECT 1"))
            return False
        except SQLAlchemyError:
            if self._closed:
                raise
            self._drop()
            self.connection = self._lock()
            return True

    def close(self) -> None:
        self._closed = True
        self._drop()

    def end_earlier(self) -> None:
        """End the connections on which the holder before wrote, so that nothing comes late on one of them.

        Those of another role end when the server has noticed that they are dead. Raises StorageError when they do not.
        """
        theirs = text(
            "SELECT pid FROM pg_stat_activity WHERE application_name = :session AND datname = current_database()"
        )
        deadline = time.monotonic() + NOTICED_SECONDS
        while pids := self.connection.scalars(theirs, {"session": session_name(self._name)}).all():
            if time.monotonic() > deadline:
                where = place(self._engine.url.render_as_string())
                raise StorageError(
                    f"{where}: connections of the process that ran the study before are still open (pid "
                    f"{', '.join(map(str, pids))} in pg_stat_activity); end them as their role"
                )
            for pid in pids:
                with suppress(DBAPIError):  # not permitted
                    self.connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
            time.sleep(0.05)

    def _lock(self) -> Connection:
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        try:
            me = Holder.me()
            named = f"regtune {me.pid} {me.since} {me.host}".encode()[:63].decode(errors="ignore")
            connection.execute(text("SELECT set_config('application_name', :name, false)"), {"name": named})
            if self._backend:  # our own lost connection may have it still: the server does not know yet
                same = "FROM pg_stat_activity WHERE pid = :pid AND backend_start = :start"
                connection.execute(text(f"SELECT pg_terminate_backend(pid) {same}"), self._backend)
            mine = "SELECT pid, backend_start AS start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
            self._backend = dict(connection.execute(text(mine)).mappings().one())
            if not _acquire(connection, lock_key(self._name), LOOK_SECONDS):
                raise Taken(_holders(connection).get(lock_key(self._name), _ELSEWHERE))
        except BaseException:
            connection.close()
            raise
        return connection

    def _drop(self) -> None:
        with suppress(SQLAlchemyError):
            self.connection.invalidate()  # it must not go back to the pool with its lock
            self.connection.close()


@contextmanager
def hold_advisory(engine: Engine, name: str, take_over: bool = True) -> Iterator[AdvisoryHold]:
    """Hold the advisory lock for `name`; `engine` is for this alone and disposed of in the end. Raises Taken."""
    held = AdvisoryHold(engine, name)
    try:
        if take_over:
            held.end_earlier()
        yield held
    finally:
        held.close()
        engine.dispose()


def advisory_holder(engine: Engine, name: str) -> Holder | None:
    """Return who holds the advisory lock for `name`, or None."""
    with engine.connect() as connection:
        return _holders(connection).get(lock_key(name))


def advisory_holders(engine: Engine) -> list[Holder]:
    """List who runs a study of the database, whatever its tables look like."""
    with engine.connect() as connection:
        return sorted({*_holders(connection).values()}, key=str)


@contextmanager
def schema_lock(engine: Engine) -> Iterator[None]:
    """Hold the lock under which a database's schema is made. Raises StorageError when another process keeps it."""
    if engine.dialect.name == "sqlite":
        with lock(Path(engine.url.database or "").parent, "schema", SCHEMA_SECONDS):
            yield
        return
    key = lock_key("schema")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if not _acquire(connection, key, SCHEMA_SECONDS):
            where, seconds = place(engine.url.render_as_string()), f"{SCHEMA_SECONDS:.0f} s"
            raise StorageError(f"{where}: its schema has been under creation for more than {seconds}")
        try:
            yield
        finally:
            connection.scalar(text("SELECT pg_advisory_unlock(:key)"), {"key": key})


def _acquire(connection: Connection, key: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": key}):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _holders(connection: Connection) -> dict[int, Holder]:
    """Which processes of regtune's hold advisory locks of the database, by the locks' keys."""
    rows = connection.execute(
        text(
            "SELECT held.classid::bigint << 32 | held.objid::bigint, activity.application_name "
            "FROM pg_locks AS held JOIN pg_stat_activity AS activity USING (pid) "
            "WHERE held.locktype = 'advisory' AND held.granted AND held.objsubid = 1 "
            "AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
    )
    named = [(key, _APPLICATION.fullmatch(application or "")) for key, application in rows]
    return {key: Holder(int(words[1]), words[3], words[2]) for key, words in named if words}
