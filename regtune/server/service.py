"""The MLflow server of a project folder, run in the background: `up`, `down`, and whether it runs.

Its processes are in a session of their own, so that a closed terminal does not reach them, and carry the folder in
their environment, by which they are found whatever was killed and whichever numbers the kernel has given out since.
The file FILE says where it answers; it is written when it does, and believed only while its process is there.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import psutil

from regtune.errors import InputError, TrackingError
from regtune.server.accounts import accounts_environment, administrators_password, wants_accounts
from regtune.server.choice import choose, named
from regtune.server.databases import init_databases, running_sweeps
from regtune.server.process import (
    DEFAULT_HOST,
    DEFAULT_PORT,
    START_SECONDS,
    STOP_SECONDS,
    address,
    check_port,
    launch,
    notices,
    wait_until_it_answers,
)
from regtune.settings import Settings, read_stores, write_stores
from regtune.storage import lock, place
from regtune.storage.mlflow import is_server, prepare
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
HEALTH_SECONDS = 5.0
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

    def answers(self, within_seconds: float = HEALTH_SECONDS) -> bool:
        """Whether it answers now."""
        with suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=within_seconds):  # noqa: S310
            return True
        return False


def usual_port(settings: Settings) -> int:
    """Where this folder's pages are when nobody names a port: where `up` had them last, else 5000."""
    try:
        found = int((settings.home / PORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return DEFAULT_PORT
    return found if 0 < found < 2**16 else DEFAULT_PORT


def running(settings: Settings) -> Service | None:
    """The server of this folder, or None while there is none."""
    path = settings.home / FILE
    try:
        found = Service(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # none, or not ours to read: then nothing is known of a server
        return None
    try:
        process = psutil.Process(found.pid)
        theirs = _is_anothers(process, path)
        return found if theirs or _is_ours(process, _mark(settings.home)) else None
    except (psutil.Error, OSError):
        return None


def up(
    settings: Settings,
    *,
    store: str | None = None,
    port: int | None = None,
    host: str | None = None,
    auth: bool | None = None,
    tell: Callable[[str], None] = print,
) -> Service:
    """See that this folder's server runs; tell what was done and where it answers.

    Args:
        settings: the folder.
        store: `sqlite`, `postgres` for the PostgreSQL that comes with regtune, or a server's URL; None keeps what the
            folder has.
        port: where it was last, by default; at first 5000.
        host: address to listen at; 127.0.0.1 by default.
        auth: whether it asks for an account; by default where other machines reach it.
        tell: told one line at a time.

    Raises:
        InputError: what was asked for contradicts itself or the environment.
        TrackingError: the port is taken, the server runs otherwise than asked for, or does not start.
        StorageError: the database cannot be used.
    """
    if is_server(settings.tracking_uri):
        raise InputError(
            f"MLFLOW_TRACKING_URI names a server already, {settings.tracking_uri}; unset it to run one of this folder"
        )
    home = settings.home.resolve()
    with lock(home, "service", LOCK_SECONDS):
        known = running(settings)
        if known is not None:
            return _keep(settings, known, store, port, host, auth, tell)
        host, port = host or DEFAULT_HOST, port or usual_port(settings)
        wanted = wants_accounts(host, auth)
        if wanted:
            administrators_password()
        _end(processes(home))
        (home / FILE).unlink(missing_ok=True)
        check_port(host, port, "up")
        before, began = read_stores(home), Embedded(home).postmaster is None
        try:
            choose(settings, store, tell)
            found = _start(settings, host, port, accounts_environment(settings) if wanted else {})
        except BaseException:
            if began:
                Embedded(home).stop()
            write_stores(home, before)
            raise
    tell(f"MLflow: {found.url}, on {place(found.store)}")
    for line in notices(host, found.url, found.auth):
        tell(line)
    return found


def down(settings: Settings, tell: Callable[[str], None] = print) -> bool:
    """End this folder's server, and its PostgreSQL; says whether there was anything to end. Raises StorageError."""
    home = settings.home.resolve()
    if not home.exists():
        return False
    with lock(home, "service", LOCK_SECONDS):
        known = running(settings)
        if known is not None and _is_anothers(process := psutil.Process(known.pid), home / FILE):
            raise TrackingError(
                f"the server of this folder, {known.url}, is that of the account {process.username()}, which alone can "
                f"end it: regtune down"
            )
        found = processes(home)
        _end(found)
        (home / FILE).unlink(missing_ok=True)
        embedded = Embedded(home)
        cut = embedded.postmaster is not None and embedded.owns(settings.storage_url)
        if cut and (sweeps := running_sweeps(settings.storage_url)):
            tell(f"A sweep of {' and of '.join(map(str, sweeps))} waits for its database until: regtune up")
        return embedded.stop() or bool(found)


def processes(home: Path) -> list[psutil.Process]:
    """Every process of this folder's server, whatever has become of the others."""
    mark = _mark(home)
    return [process for process in psutil.process_iter() if _is_ours(process, mark)]


def _start(settings: Settings, host: str, port: int, accounts: dict[str, str]) -> Service:
    home = settings.home.resolve()
    init_databases(settings)
    prepare(settings.mlflow_uri, settings.artifacts)
    trim(home / LOG, LONGEST_LOG)
    url = address(host, port)
    with (home / LOG).open("a+b") as log:
        begin = log.seek(0, os.SEEK_END)
        process = launch(settings, host, port, log, {**accounts, MARK: _mark(home)})
        try:
            wait_until_it_answers(url, process, lambda: (home / LOG).read_bytes()[begin:])
        except BaseException:
            _end(processes(home))
            process.wait()
            raise
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    found = Service(url, host, port, bool(accounts), settings.mlflow_uri, process.pid, since)
    fresh = home / f"{FILE}.new"
    fresh.write_text(json.dumps(asdict(found), indent=2) + "\n", encoding="utf-8")
    fresh.replace(home / FILE)
    (home / PORT).write_text(f"{port}\n", encoding="utf-8")
    return found


def _keep(
    settings: Settings,
    known: Service,
    store: str | None,
    port: int | None,
    host: str | None,
    auth: bool | None,
    tell: Callable[[str], None],
) -> Service:
    """What `up` does while the server runs: nothing, or it says how to have it otherwise."""
    embedded = Embedded(settings.home)
    option = (
        "" if store is None else f"--{store}" if store in ("sqlite", "postgres") else f"--postgres {store}"
    )
    if store is not None and named(settings.home, store)["mlflow"] == known.store:
        option = ""
    differs = [
        option,
        f"--port {port}" if port not in (None, known.port) else "",
        f"--host {host}" if host not in (None, known.host) else "",
        ("--auth" if auth else "--no-auth") if auth not in (None, known.auth) else "",
    ]
    wanted = " ".join(option for option in differs if option)
    if wanted or known.store != settings.mlflow_uri:
        raise TrackingError(
            f"the server of this folder runs otherwise, at {known.url} on {place(known.store)} since "
            f"{clock(known.since)}; to change it: regtune down, then: regtune up {wanted}".rstrip()
        )
    if embedded.owns(known.store) and embedded.start():
        tell("PostgreSQL had ended; it runs again")
    if not known.answers(ANSWER_SECONDS):
        raise TrackingError(
            f"the server of this folder, process {known.pid} at {known.url}, does not answer within "
            f"{ANSWER_SECONDS:.0f} s; end it with: regtune down, then: regtune up"
        )
    tell(f"MLflow: {known.url}, on {place(known.store)}, since {clock(known.since)}")
    return known


def clock(since: str) -> str:
    """A moment as people read it: the time of today, else with its day."""
    found = datetime.fromisoformat(since)
    today = found.date() == datetime.now().astimezone().date()
    return found.strftime("%H:%M" if today else "%Y-%m-%d %H:%M")


def _mark(home: Path) -> str:
    """The folder itself, also apart from another of the same path in a container."""
    home = home.resolve()
    return f"{home}#{home.stat().st_ino if home.exists() else 0}"


def _is_ours(process: psutil.Process, mark: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark
    except (psutil.Error, OSError):
        return False


def _is_anothers(process: psutil.Process, file: Path) -> bool:
    """Whether a process, whose environment this account may not read, is the one that FILE tells of: its owner is that
    of FILE, and it was there when FILE was written.
    """
    written, owner = file.stat(), process.uids().real
    may_read = os.geteuid() in (0, owner)
    return not may_read and written.st_uid == owner and process.create_time() <= written.st_mtime


def _end(found: list[psutil.Process]) -> None:
    """End processes: politely, and after a few seconds for good."""
    for polite in (True, False):
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.terminate() if polite else process.kill()
        _, found = psutil.wait_procs(found, timeout=STOP_SECONDS)
        if not found:
            return
