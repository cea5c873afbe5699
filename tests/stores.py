"""Real databases for the tests: a PostgreSQL server, and the four ways in which stores are put together."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy
from parts import missing

from regtune.errors import StorageError
from regtune.storage.postgres import ACCOUNT, Embedded
from regtune.storage.schema import STUDIES

UNUSUAL = "a b#c%20d 100%41 ?x=1;+&'\"äö日本{y},&token=1"
"""A folder's name with whatever a URL, a shell or a template takes for its own."""
PAIRS = ("sqlite", "sqlite-server", "postgres", "postgres-server")
"""SQLite files and PostgreSQL, each written directly and with MLflow behind its server."""


@dataclass(frozen=True)
class Postgres:
    """A running server. socket: the folder of its Unix socket, which is that of its data, too."""

    socket: Path
    programs: Path
    system_user: str | None

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://postgres@/{database}?host={self.socket}"

    def run(self, statement: str, database: str = "postgres") -> None:
        engine = sqlalchemy.create_engine(self.url(database), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(statement))
        engine.dispose()

    def fresh(self, database: str, template: str = "template1") -> str:
        """Make the database anew, empty or as a copy of `template`, and return its URL."""
        self.run(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')
        self.run(f'CREATE DATABASE "{database}" TEMPLATE "{template}"')
        return self.url(database)

    def control(self, *arguments: str) -> None:
        """Run pg_ctl on the server: `("stop", "-m", "immediate")`, `("start",)`."""
        log = str(self.socket / "log")
        options = ("-o", f"-h '' -k {self.socket}") if "start" in arguments else ()
        subprocess.run(
            [self.programs / "pg_ctl", "-w", "-s", "-D", str(self.socket), "-l", log, *options, *arguments],
            user=self.system_user,
            cwd="/",
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=60,
        )

    def end_connections(self) -> None:
        self.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )

    def ensure_running(self) -> None:
        try:
            self.run("SELECT 1")
        except sqlalchemy.exc.OperationalError:
            with suppress(subprocess.CalledProcessError):
                self.control("stop", "-m", "immediate")
            self.control("start")


@contextmanager
def postgres(folder: Path | None = None) -> Iterator[Postgres]:
    """A server on a Unix socket, as the extra `postgres` brings it; it ends with the block. folder: for its data."""
    with tempfile.TemporaryDirectory(prefix="pg", dir=folder, ignore_cleanup_errors=True) as home:
        Path(home).chmod(0o711)  # as root it runs as another account
        server = Embedded(Path(home))
        try:
            server.start()
        except StorageError as error:
            missing(str(error))
        try:
            with STUDIES.opened(server.url("postgres")) as engine, engine.begin() as connection:
                connection.execute(sqlalchemy.text("CREATE ROLE postgres SUPERUSER LOGIN"))
            account = ACCOUNT if os.geteuid() == 0 else None
            started = Postgres(server.data, server.program("postgres").parent, account)
            started.run("ALTER SYSTEM SET fsync = off")  # no test cuts the power
            started.run("SELECT pg_reload_conf()")
            yield started
        finally:
            server.stop()


def free_port() -> int:
    """A free port of 127.0.0.1, below those that the system gives out.

    Tests that run side by side each have a range of their own.
    """
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 12_000 + 500 * (number % 40)
    for port in random.SystemRandom().sample(range(first, first + 500), 500):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError(f"no port from {first} on is free")


def until(true: Callable[[], Any], seconds: float = 240.0, pause: float = 0.1, what: str = "") -> Any:
    """Wait until `true()` and return what it gave; `pause` is long where to look takes a process of its own."""
    deadline = time.monotonic() + seconds
    while not (seen := true()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(pause)
    return seen
