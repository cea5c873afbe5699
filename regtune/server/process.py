"""The processes of an MLflow server over a folder's store.

They are one process group and ended as a whole: MLflow's command leaves its child serving when it alone ends.
"""

from __future__ import annotations

import errno
import os
import shlex
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO

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
from regtune.server.accounts import accounts_environment, administrator, is_loopback
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


@dataclass(frozen=True)
class Server:
    """A running MLflow server."""

    url: str
    process: subprocess.Popen[bytes]
    log: IO[bytes]


@contextmanager
def serving(
    settings: Settings,
    port: int,
    host: str = DEFAULT_HOST,
    stop: threading.Event | None = None,
    auth: bool = False,
) -> Iterator[Server]:
    """Run an MLflow server on this folder's store; no process of it is left after the block.

    auth: whether it asks for an account. stop: when set while the server is starting, KeyboardInterrupt is raised.
    Raises TrackingError when the port is taken or the server does not start, SettingsError.
    """
    check_port(host, port)
    accounts = accounts_environment(settings) if auth else {}
    with tempfile.TemporaryFile() as log:
        process = start(settings, host, port, log, accounts, stop)
        try:
            yield Server(address(host, port), process, log)
        finally:
            _end(process)


def start(
    settings: Settings,
    host: str,
    port: int,
    log: IO[bytes],
    more: Mapping[str, str],
    stop: threading.Event | None = None,
) -> subprocess.Popen[bytes]:
    """Start the server in a session of its own, and wait until it answers; `more` is added to its environment.

    Raises as `serving` does.
    """
    prepare(settings.mlflow_uri, settings.artifacts)
    begin = log.seek(0, os.SEEK_END)
    environment = server_environment(settings, more)
    command = [sys.executable, "-P", "-m", "mlflow", "server", "--host", host, "--port", str(port)]
    packages = shlex.quote(
        sysconfig.get_path("purelib")
    )  # uvicorn would import from the current folder first
    command += [
        "--workers",
        "1",
        "--uvicorn-opts",
        f"--log-level warning --no-access-log --app-dir {packages}",
    ]
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
                raise TrackingError(f"the MLflow server {what}: {last_line(log, begin)}")
            time.sleep(0.1)
    except BaseException:
        _end(process)
        raise
    return process


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the process group, orphans among them."""
    members = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == server.pid:
                members.append(process)
    end(members, STOP_SECONDS)
    server.wait()


def answers(url: str, seconds: float) -> bool:
    """Return whether the server at `url` answers within `seconds`."""
    with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=seconds):  # noqa: S310
        return True
    return False


def last_line(log: IO[bytes], begin: int = 0) -> str:
    """Return the last line that a server wrote."""
    log.seek(begin)
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"


def address(host: str, port: int) -> str:
    """Return the URL at which a server that listens at `host` answers on this machine."""
    host = {"0.0.0.0": DEFAULT_HOST, "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def server_environment(settings: Settings, more: Mapping[str, str]) -> dict[str, str]:
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
        "PYTHONSAFEPATH": "1",  # also for what it starts: a person's `mlflow.py` is not MLflow
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_BACKEND_STORE_URI": store_url(uri),
        "MLFLOW_ARTIFACTS_DESTINATION": (settings.artifacts / "runs").as_uri(),
        **more,
    }


def _libpq() -> dict[str, str]:
    password = (None if secret(TRACKING_USERNAME) else secret(TRACKING_PASSWORD)) or secret(DATABASE_PASSWORD)
    if password:
        return {DATABASE_PASSWORD: password}
    return {"PGPASSFILE": os.environ["PGPASSFILE"]} if "PGPASSFILE" in os.environ else {}


def notices(host: str, accounts: bool) -> list[str]:
    """Return what to know about who reaches a server that listens at `host`, a line each."""
    lines = []
    if accounts:
        admin = f"the administrator's is {administrator()}, with the password that it was created with"
        lines.append(f"It requires an account; {admin}.")
    if not is_loopback(host):
        lines.append(
            f"Other machines reach it at {host}, unencrypted: put TLS in front (deploy/Caddyfile is an example), and "
            f"name the addresses that it is asked for by: {ALLOWED_HOSTS}=NAME:PORT,localhost:*"
        )
    return lines


def check_port(host: str, port: int) -> None:
    """Raise TrackingError for a port that cannot be listened at, naming who has it, and one that is free."""
    try:
        _bind(host, port)
    except OSError as error:
        said = f"{host}:{port} cannot be bound ({error.strerror}); try another --port"
        if error.errno == errno.EADDRINUSE:
            said = f"port {port} is taken by {_listener(port)}; stop it, or try --port {_bind(host, 0)}"
        raise TrackingError(said) from None


def _bind(host: str, port: int) -> int:
    """Bind to a port for a moment, to any free one for 0, and return it."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        return int(probe.getsockname()[1])


def _listener(port: int) -> str:
    with suppress(psutil.AccessDenied, psutil.NoSuchProcess):  # another user's, or gone in this moment
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and one.pid and one.laddr and one.laddr.port == port:
                process = psutil.Process(one.pid)
                command = " ".join(process.cmdline())[:60] or process.name()
                return f"process {one.pid} ({command})"
    return "another process"
