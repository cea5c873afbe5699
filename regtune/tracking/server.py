"""The MLflow page over the store in use: a server of its own where the store is a database, its address
where it is a server.

The server's processes are one process group, ended as a whole: MLflow's command leaves its child serving
when it alone ends.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import webbrowser
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import IO, Self

import psutil

from regtune.credentials import ADMIN_PASSWORD, DATABASE_PASSWORD, TRACKING_PASSWORD, secret, without_secrets
from regtune.errors import TrackingError
from regtune.settings import Settings
from regtune.tracking import names
from regtune.tracking.auth import (
    accounts_environment,
    administrator,
    authorization,
    is_loopback,
    wants_accounts,
)
from regtune.tracking.store import SILENCE, check_uri, is_server, prepare
from regtune.tracking.views import runs_path

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 5000
START_SECONDS = 90.0
STOP_SECONDS = 5.0
ALLOWED_HOSTS = "MLFLOW_SERVER_ALLOWED_HOSTS"

HARDENING = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ENABLE_AI_GATEWAY": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}
"""What a page over trials does not need: running jobs, a gateway to language models, unpickling."""


class Server:
    """An MLflow server as a context: it answers when the block begins, and no process of it is left when it
    ends.

    stop: when set while the server is starting, KeyboardInterrupt is raised. Raises TrackingError when the
    port is taken, naming by what, or when the server does not come up.
    """

    def __init__(
        self,
        settings: Settings,
        port: int = DEFAULT_PORT,
        host: str = DEFAULT_HOST,
        stop: threading.Event | None = None,
        auth: bool = False,
    ) -> None:
        self._settings = settings
        self._auth = auth
        self._host = host
        self._port = port
        self._stop = stop or threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it answers."""
        return address(self._host, self._port)

    @property
    def pid(self) -> int:
        """The server's first process, and its process group."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended by itself."""
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> Self:
        check_port(self._host, self._port)
        accounts = accounts_environment(self._settings) if self._auth else {}
        prepare(self._settings.mlflow_uri, self._settings.artifacts)
        self._log = tempfile.TemporaryFile()
        self._process = launch(self._settings, self._host, self._port, self._log, accounts)
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server's process group: politely, and after a few seconds for good."""
        if self._process is None:
            return
        members = group_members(self._process.pid)
        for signal_number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):  # every one has ended
                os.killpg(self._process.pid, signal_number)
            self._process.poll()
            _, members = psutil.wait_procs(members, timeout=STOP_SECONDS)
            if not members:
                break
        self._process.wait()
        self._process = None
        if self._log is not None:
            self._log.close()

    def last_words(self) -> str:
        """The last line it wrote, for an error's message."""
        assert self._log is not None
        self._log.seek(0)
        lines = [
            line.strip() for line in self._log.read().decode(errors="replace").splitlines() if line.strip()
        ]
        return lines[-1] if lines else "it said nothing"

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._stop.is_set():
                raise KeyboardInterrupt
            if not self.running:
                raise TrackingError(f"the MLflow server could not start: {self.last_words()}")
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2):  # noqa: S310
                    return
            except OSError:  # not listening yet, or not answering with 200
                time.sleep(0.1)
        raise TrackingError(
            f"the MLflow server did not answer within {START_SECONDS:.0f} s: {self.last_words()}"
        )


def address(host: str, port: int) -> str:
    """URL at which a server that listens at `host` answers on this machine."""
    host = {"0.0.0.0": DEFAULT_HOST, "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def launch(
    settings: Settings, host: str, port: int, log: IO[bytes], more: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start the MLflow server on this folder's store, in a session of its own. `more` is added to its environment.

    Secrets that it does not need are not in its environment; the password of a PostgreSQL store is, as libpq's.
    """
    uri = settings.mlflow_uri
    environment = {
        **without_secrets(os.environ),
        **SILENCE,
        **HARDENING,
        **(_libpq() if uri.startswith("postgresql") else {}),
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_ARTIFACTS_DESTINATION": (settings.artifacts / "runs").as_uri(),
        **(more or {}),
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)]
    command += ["--workers", "1", "--uvicorn-opts", "--log-level warning --no-access-log"]
    command += ["--app-name", "basic-auth"] if ADMIN_PASSWORD in environment else []
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _libpq() -> dict[str, str]:
    """The password of a PostgreSQL store as libpq reads it."""
    password = secret(TRACKING_PASSWORD) or secret(DATABASE_PASSWORD)
    if password:
        return {DATABASE_PASSWORD: password}
    return {"PGPASSFILE": os.environ["PGPASSFILE"]} if "PGPASSFILE" in os.environ else {}


def serve_ui(
    settings: Settings,
    port: int | None = None,
    host: str = DEFAULT_HOST,
    open_browser: bool = True,
    tell: Callable[[str], None] = print,
    auth: bool | None = None,
) -> None:
    """Show the MLflow page until Ctrl-C: tell its address, open it in a browser where there is one.

    port: 5000 by default. auth: whether the page asks for an account; by default where other machines reach it.
    A store that is a server already is only named and opened. To be called from the main thread. Raises
    TrackingError, and InputError for what would let strangers in.
    """
    uri = settings.mlflow_uri
    check_uri(uri)
    if is_server(uri):
        tell(f"MLflow: {uri}")
        _browse(uri, open_browser)
        return
    accounts = wants_accounts(host, auth)
    stop = threading.Event()
    wanted = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    previous = {number: signal.signal(number, lambda *_: stop.set()) for number in wanted}
    try:
        with (
            suppress(KeyboardInterrupt),
            Server(settings, port or DEFAULT_PORT, host, stop, accounts) as server,
        ):
            tell(f"MLflow: {server.url}  (Ctrl-C ends it)")
            for line in notices(host, accounts):
                tell(line)
            newest = newest_sweep(server.url)
            if newest is not None:
                tell(f"The newest sweep's trials, best first: {newest}")
            _browse(newest or server.url, open_browser)
            while server.running and not stop.wait(0.5):
                pass
            if not stop.is_set():
                raise TrackingError(f"the MLflow server has ended by itself: {server.last_words()}")
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def notices(host: str, accounts: bool) -> list[str]:
    """What whoever starts a server should know about who reaches it."""
    found = []
    if accounts:
        found.append(f"It asks for an account; the administrator's is {administrator()}.")
    if not is_loopback(host):
        found.append(
            f"Other machines reach it at {host}, unencrypted: put TLS in front (deploy/Caddyfile is an example)"
            + (
                "."
                if os.environ.get(ALLOWED_HOSTS)
                else f" and name the addresses that it is asked for by, {ALLOWED_HOSTS}=NAME:PORT,localhost:*; "
                f"without that it answers to localhost and private addresses only."
            )
        )
    return found


def newest_sweep(url: str) -> str | None:
    """The page of the sweep that was begun last, or None when there is no sweep."""
    asked = {"filter": f"tags.`{names.SWEEP}` LIKE '%'", "order_by": ["creation_time DESC"], "max_results": 1}
    request = urllib.request.Request(  # noqa: S310
        f"{url}/api/2.0/mlflow/experiments/search",
        json.dumps(asked).encode(),
        {"Content-Type": "application/json", **authorization()},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            found = json.load(answer).get("experiments", [])
    except (OSError, ValueError):  # the page itself will say what is wrong with the store
        return None
    return url + runs_path(found[0]["experiment_id"]) if found else None


def check_port(host: str, port: int) -> None:
    """See that `port` can be listened at. Raises TrackingError naming who has it, and another that is free."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror:
        raise TrackingError(f"host {host}: not an address of this machine; try 127.0.0.1") from None
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise TrackingError(
                f"{host}:{port} cannot be listened at ({error.strerror}); try another --port"
            ) from None
        raise TrackingError(
            f"port {port} is taken by {_listener(port)}; end it, or try: regtune ui --port {_free_port(host, port)}"
        ) from None


def _listener(port: int) -> str:
    try:
        for found in psutil.net_connections("tcp"):
            if found.status == psutil.CONN_LISTEN and found.pid and found.laddr and found.laddr.port == port:
                process = psutil.Process(found.pid)
                command = " ".join(process.cmdline())[:60] or process.name()
                return f"process {found.pid} ({command})"
    except (psutil.AccessDenied, psutil.NoSuchProcess):  # another user's, or gone in this moment
        pass
    return "another process"


def _free_port(host: str, port: int) -> int:
    family, kind, _, _, _ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    for candidate in range(port + 1, min(port + 50, 65536)):
        with socket.socket(family, kind) as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, candidate))
            return candidate
    return port + 1


def _browse(url: str, wanted: bool) -> None:
    """Open a window, where there are windows: a text browser would take the terminal."""
    if wanted and (
        sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        webbrowser.open(url)


def group_members(group: int) -> list[psutil.Process]:
    """The processes of a process group, orphans among them."""
    found = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == group:
                found.append(process)
    return found
