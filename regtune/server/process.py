"""The processes of an MLflow server over a folder's store.

They are one process group and ended as a whole: MLflow's command leaves its child serving when it alone ends.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Self

import psutil

from regtune.credentials import (
    ADMIN_PASSWORD,
    DATABASE_PASSWORD,
    TRACKING_PASSWORD,
    TRACKING_USERNAME,
    secret,
    without_secrets,
)
from regtune.errors import TrackingError
from regtune.processes import end
from regtune.server.accounts import accounts_environment, administrator, is_loopback, password_notice
from regtune.settings import Settings
from regtune.storage.mlflow import SILENCE, prepare, store_url

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 5000
START_SECONDS = 180.0
STOP_SECONDS = 5.0
ALLOWED_HOSTS = "MLFLOW_SERVER_ALLOWED_HOSTS"
PASSED_ON = (
    ALLOWED_HOSTS,
    "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS",
    "MLFLOW_SERVER_X_FRAME_OPTIONS",
    *(f"MLFLOW_SQLALCHEMYSTORE_{name}" for name in ("POOL_SIZE", "POOL_RECYCLE", "MAX_OVERFLOW")),
)
"""What a person may set for the server. Anything else that MLflow, or what it runs in, would read from the environment
was set for another server, or for clients, and moves its pages, splits its work or loses runs.
"""
_OF_SERVERS = ("MLFLOW_", "_MLFLOW_", "UVICORN_", "FLASK_")

HARDENING = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ENABLE_AI_GATEWAY": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_REMOTE_ASSISTANT": "false",
    "MLFLOW_ENABLE_ASSISTANT_SANDBOX": "true",
}
"""What a page over trials does not need: running jobs, a gateway to language models, unpickling, and an assistant that
runs commands on this machine for whoever reaches the page from it; that one has no switch but its sandbox.
"""


@dataclass
class Server:
    """An MLflow server as a context: it answers inside the block, and no process of it is left after it.

    stop: when set while the server is starting, KeyboardInterrupt is raised. Raises TrackingError when the port is
    taken, naming by what, or when the server does not start.
    """

    settings: Settings
    port: int = DEFAULT_PORT
    host: str = DEFAULT_HOST
    stop: threading.Event | None = None
    auth: bool = False

    @property
    def url(self) -> str:
        return address(self.host, self.port)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def __enter__(self) -> Self:
        check_port(self.host, self.port)
        accounts = accounts_environment(self.settings) if self.auth else {}
        self._log = tempfile.TemporaryFile()
        self._process = start(self.settings, self.host, self.port, self._log, accounts, self.stop)
        return self

    def __exit__(self, *_: object) -> None:
        end(group_members(self._process.pid), STOP_SECONDS)
        self._process.wait()
        self._log.close()

    def last_words(self) -> str:
        """Return the last line it wrote, for an error's message."""
        return _last_line(self._log, 0)


def start(
    settings: Settings,
    host: str,
    port: int,
    log: IO[bytes],
    more: Mapping[str, str],
    stop: threading.Event | None = None,
) -> subprocess.Popen[bytes]:
    """Start the MLflow server on this folder's store, in a session of its own, and wait until it answers.

    more: added to its environment. stop: when set, KeyboardInterrupt is raised. Raises TrackingError.
    """
    prepare(settings.mlflow_uri, settings.artifacts)
    begin = log.seek(0, os.SEEK_END)
    environment = server_environment(settings, more)
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)]
    command += ["--workers", "1", "--uvicorn-opts", "--log-level warning --no-access-log"]
    command += ["--app-name", "basic-auth"] if ADMIN_PASSWORD in environment else []
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    deadline = time.monotonic() + START_SECONDS
    try:
        while not answers(address(host, port), 2):
            if stop is not None and stop.is_set():
                raise KeyboardInterrupt
            ended = process.poll() is not None
            if ended or time.monotonic() > deadline:
                what = "could not start" if ended else f"did not answer within {START_SECONDS:.0f} s"
                raise TrackingError(f"the MLflow server {what}: {_last_line(log, begin)}")
            time.sleep(0.1)
    except BaseException:
        end(group_members(process.pid), STOP_SECONDS)
        process.wait()
        raise
    return process


def answers(url: str, seconds: float) -> bool:
    """Return whether the server at `url` answers within `seconds`."""
    with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=seconds):  # noqa: S310
        return True
    return False


def _last_line(log: IO[bytes], begin: int) -> str:
    log.seek(begin)
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"


def address(host: str, port: int) -> str:
    """Return the URL at which a server that listens at `host` answers on this machine."""
    host = {"0.0.0.0": DEFAULT_HOST, "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def server_environment(settings: Settings, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of the MLflow server on this folder's store; `more` is added.

    Of secrets only the password of a PostgreSQL store is in it; of the variables that servers read those PASSED_ON.
    """
    uri = settings.mlflow_uri
    inherited = without_secrets(os.environ).items()
    return {
        **{name: value for name, value in inherited if name in PASSED_ON or not name.startswith(_OF_SERVERS)},
        **SILENCE,
        **HARDENING,
        **(_libpq() if uri.startswith("postgresql") else {}),
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_BACKEND_STORE_URI": store_url(uri),
        "MLFLOW_ARTIFACTS_DESTINATION": (settings.artifacts / "runs").as_uri(),
        **(more or {}),
    }


def _libpq() -> dict[str, str]:
    password = (None if secret(TRACKING_USERNAME) else secret(TRACKING_PASSWORD)) or secret(DATABASE_PASSWORD)
    if password:
        return {DATABASE_PASSWORD: password}
    return {"PGPASSFILE": os.environ["PGPASSFILE"]} if "PGPASSFILE" in os.environ else {}


def notices(host: str, url: str, accounts: bool) -> list[str]:
    """Return what to know about who reaches a server that answers at `url`, a line each."""
    lines = []
    if accounts:
        lines.append(f"It requires an account; the administrator's is {administrator()}.")
        lines += [notice] if (notice := password_notice(url)) else []
    if not is_loopback(host):
        tls = f"Other machines reach it at {host}, unencrypted: put TLS in front (deploy/Caddyfile is an example)"
        names = (
            f" and name the addresses that it is asked for by, {ALLOWED_HOSTS}=NAME:PORT,localhost:*; "
            f"without that it answers to localhost and private addresses only."
        )
        lines.append(tls + ("." if os.environ.get(ALLOWED_HOSTS) else names))
    return lines


def check_port(host: str, port: int, verb: str = "ui") -> None:
    """Raise TrackingError for a port that cannot be listened at, naming who has it, and one that is free for `verb`."""
    try:
        _bind(host, port)
    except (socket.gaierror, UnicodeError):  # no name of a machine at all
        raise TrackingError(f"host {host}: not an address of this machine; try 127.0.0.1") from None
    except OSError as error:
        said = f"{host}:{port} cannot be bound ({error.strerror}); try another --port"
        if error.errno == errno.EADDRINUSE:
            free = _free_port(host, port)
            said = f"port {port} is taken by {_listener(port)}; stop it, or try: regtune {verb} --port {free}"
        raise TrackingError(said) from None


def _bind(host: str, port: int) -> None:
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


def _listener(port: int) -> str:
    with suppress(psutil.AccessDenied, psutil.NoSuchProcess):  # another user's, or gone in this moment
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and one.pid and one.laddr and one.laddr.port == port:
                process = psutil.Process(one.pid)
                command = " ".join(process.cmdline())[:60] or process.name()
                return f"process {one.pid} ({command})"
    return "another process"


def _free_port(host: str, port: int) -> int:
    for candidate in range(port + 1, min(port + 50, 65536)):
        with suppress(OSError):
            _bind(host, candidate)
            return candidate
    return port + 1


def group_members(group: int) -> list[psutil.Process]:
    """List the processes of a process group, orphans among them."""
    members = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == group:
                members.append(process)
    return members
