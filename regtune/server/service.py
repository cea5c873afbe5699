"""The MLflow server of a project folder in the background: `up`, `down`, and whether it runs.

Its processes are in a session of their own, so that a closed terminal does not reach them, and carry the folder in
their environment, by which they are known whatever was killed and whichever ids the kernel has given out since. The
file FILE says where it answers; it is written when it does, and believed only while its process is there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from os import geteuid
from pathlib import Path

import psutil

from regtune.errors import InputError, StorageError, TrackingError
from regtune.processes import end
from regtune.server.accounts import accounts_environment, wants_accounts
from regtune.server.databases import choose, init_databases, urls_of
from regtune.server.process import (
    DEFAULT_HOST,
    DEFAULT_PORT,
    START_SECONDS,
    STOP_SECONDS,
    address,
    answers,
    check_port,
    notices,
    start,
)
from regtune.settings import Settings, is_own_postgres, read_choice, write_choice
from regtune.storage import lock, place
from regtune.storage.mlflow import is_server
from regtune.storage.postgres import Embedded, trim

FILE = "service.json"
PORT = "service.port"
"""The port that `up` took last, also after `down`."""
LOG = "service.log"
LONGEST_LOG = 10 * 2**20
MARK = "REGTUNE_SERVICE"
"""In the environment of the server's processes: their folder."""
LOCK_SECONDS = 2 * START_SECONDS
"""How long a second `up` waits for a first."""
ANSWER_SECONDS = 30.0
"""How long one that runs may take to answer, on a machine that has much to do."""


@dataclass(frozen=True)
class Service:
    """A server that runs. since: local time, ISO 8601. store: URL of the database that it shows."""

    url: str
    host: str
    port: int
    auth: bool
    store: str
    pid: int
    since: str


def usual_port(settings: Settings) -> int:
    """Return the port of this folder's pages when nobody names one: that of the last `up`, else 5000."""
    with suppress(OSError, ValueError):
        return int((settings.home / PORT).read_text(encoding="utf-8"))
    return DEFAULT_PORT


def running(settings: Settings) -> Service | None:
    """Return the server of this folder, or None while there is none."""
    path = settings.home / FILE
    try:
        service = Service(**json.loads(path.read_text(encoding="utf-8")))
        process = psutil.Process(service.pid)
        ours = _is_anothers(process, path) or _is_ours(process, _mark(settings.home))
        return service if ours else None
    except (OSError, ValueError, TypeError, psutil.Error):  # none, or not ours to read
        return None


def require_no_server(settings: Settings) -> None:
    """Raise StorageError while the server of this folder runs."""
    if server := running(settings):
        raise StorageError(f"{server.url}: this folder's server is running; stop it first with: regtune down")


def up(
    settings: Settings,
    *,
    databases: str | None = None,
    port: int | None = None,
    host: str | None = None,
    auth: bool | None = None,
    tell: Callable[[str], None] = print,
) -> Service:
    """Start this folder's server unless it runs; tell what was done and where it answers.

    databases: as for `choose`. port: `usual_port` by default. host: 127.0.0.1 by default. auth: whether it asks for an
    account; by default where other machines reach it. Raises InputError for what contradicts itself or the environment,
    TrackingError when the server runs otherwise than asked for or does not start, StorageError.
    """
    if is_server(settings.tracking_uri):
        named = f"MLFLOW_TRACKING_URI names a server already, {settings.tracking_uri}"
        raise InputError(f"{named}; unset it to run one of this folder")
    home = settings.home.resolve()
    with lock(home, "service", LOCK_SECONDS):
        known = running(settings)
        if known is not None:
            asked = replace(
                known,
                port=port or known.port,
                host=host or known.host,
                auth=known.auth if auth is None else auth,
                store=urls_of(home, databases)["mlflow"] if databases else settings.mlflow_uri,
            )
            if asked != known:
                runs = f"the server of this folder runs with other options, {_where(known)}"
                raise TrackingError(f"{runs}; to change it: regtune down, then this command again")
            _require_answer(known, home, tell)
            return known
        host, port = host or DEFAULT_HOST, port or usual_port(settings)
        accounts = wants_accounts(host, auth)
        end(processes(home), STOP_SECONDS)
        (home / FILE).unlink(missing_ok=True)
        check_port(host, port)
        before, database_ran = read_choice(home), Embedded(home).postmaster is not None
        try:
            choose(settings, databases, tell)
            service = _start(settings, host, port, accounts)
        except BaseException:
            end(processes(home), STOP_SECONDS)
            if not database_ran:
                Embedded(home).stop()
            write_choice(home, before)
            raise
    tell(f"MLflow: {service.url}, on {place(service.store)}")
    for line in notices(host, accounts):
        tell(line)
    return service


def down(settings: Settings) -> bool:
    """Stop this folder's server and its PostgreSQL; return whether anything ran. Raises StorageError, TrackingError."""
    home = settings.home.resolve()
    if not home.exists():
        return False
    with lock(home, "service", LOCK_SECONDS):
        known = running(settings)
        if known is not None and _is_anothers(process := psutil.Process(known.pid), home / FILE):
            whose = f"the server of this folder, {known.url}, is that of the account {process.username()}"
            raise TrackingError(f"{whose}, which alone can end it: regtune down")
        parts = processes(home)
        end(parts, STOP_SECONDS)
        (home / FILE).unlink(missing_ok=True)
        return Embedded(home).stop() or bool(parts)


def processes(home: Path) -> list[psutil.Process]:
    """List every process of this folder's server, whatever has become of the others."""
    mark = _mark(home)
    return [process for process in psutil.process_iter() if _is_ours(process, mark)]


def clock(since: str) -> str:
    """Write a moment as people read it."""
    return datetime.fromisoformat(since).strftime("%Y-%m-%d %H:%M")


def _start(settings: Settings, host: str, port: int, accounts: bool) -> Service:
    home = settings.home.resolve()
    init_databases(settings)
    trim(home / LOG, LONGEST_LOG)
    more = {**(accounts_environment(settings) if accounts else {}), MARK: _mark(home)}
    with (home / LOG).open("a+b") as log:
        process = start(settings, host, port, log, more)
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    service = Service(address(host, port), host, port, accounts, settings.mlflow_uri, process.pid, since)
    fresh = home / f"{FILE}.new"
    fresh.write_text(json.dumps(asdict(service), indent=2) + "\n", encoding="utf-8")
    fresh.replace(home / FILE)
    (home / PORT).write_text(f"{port}\n", encoding="utf-8")
    return service


def _require_answer(known: Service, home: Path, tell: Callable[[str], None]) -> None:
    """Start its PostgreSQL again if that has ended, and tell where it answers. Raises TrackingError, StorageError."""
    if is_own_postgres(known.store) and Embedded(home).start():
        tell("PostgreSQL had stopped; it is running again")
    if not answers(known.url, ANSWER_SECONDS):
        raise TrackingError(
            f"the server of this folder, process {known.pid} at {known.url}, does not answer within "
            f"{ANSWER_SECONDS:.0f} s; restart it with: regtune down, then: regtune up"
        )
    tell(f"MLflow: {_where(known)}")


def _where(known: Service) -> str:
    return f"{known.url}, on {place(known.store)}, since {clock(known.since)}"


def _mark(home: Path) -> str:
    """The folder itself, also apart from another of the same path in a container."""
    home = home.resolve()
    return f"{home}#{home.stat().st_ino if home.exists() else 0}"


def _is_ours(process: psutil.Process, mark: str) -> bool:
    with suppress(psutil.Error, OSError):
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark
    return False


def _is_anothers(process: psutil.Process, file: Path) -> bool:
    """Return whether a process whose environment this account may not read is the one that FILE names.

    It is when its owner is that of FILE and it was there when FILE was written.
    """
    written, owner = file.stat(), process.uids().real
    may_read = geteuid() in (0, owner)
    return not may_read and written.st_uid == owner and process.create_time() <= written.st_mtime
