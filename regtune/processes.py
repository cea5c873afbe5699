"""Child processes: workers and the tracker.

They are started as `python -c` rather than through `multiprocessing`: the caller's main module is not run again, no
helper process is left over, and what they are told is in no argument list. They import this regtune, and packages
before what lies in folders of a user's: a `keras.py` beside a script is not Keras.

A child ends when its parent is gone, whatever ended it: it reads from a lifeline, a pipe whose write end only the
parent holds. Ctrl-C, SIGTERM and a closed terminal are the parent's to decide about; a child does not hear them.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import psutil

_LOG_BYTES = 4096
_ROOT = Path(__file__).parents[1]  # where this regtune lies


class Process(Protocol):
    """What `subprocess.Popen` is for a process that is spawned."""

    @property
    def pid(self) -> int: ...

    def kill(self) -> None: ...

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code. Raises TimeoutExpired, and EOFError with what is known where it cannot be."""


Start = Callable[[int, int, int], Process]
"""Starts a process that serves a connection and a lifeline and writes into a log, given their file descriptors."""


def spawn(module: str, environment: Mapping[str, str]) -> Start:
    """Return what starts `module.main` in an interpreter of its own."""

    def start(connection: int, lifeline: int, log: int) -> Process:
        code = (
            f"import sys, typing; sys.path.insert(0, {str(_ROOT)!r}); import regtune; del sys.path[0]; "
            f"sys.path += {[entry or str(Path.cwd()) for entry in sys.path]!r}; "
            f"from regtune.processes import serve; serve({module!r}, {connection}, {lifeline})"
        )
        return subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            pass_fds=(connection, lifeline),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={name: value for name, value in environment.items() if name != "PYTHONPATH"},
        )

    return start


class Child:
    """A running `main(connection, *arguments)` in a process of its own. Raises OSError when it cannot start."""

    def __init__(self, start: Start, *arguments: Any) -> None:
        ours, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (kept open until `wait`)
        self._how = ""
        try:
            self._process = start(theirs.fileno(), lifeline, self._log.fileno())
        except OSError:
            os.close(self._lifeline)
            raise
        finally:
            theirs.close()
            os.close(lifeline)
        self.kill = self._process.kill
        self.connection = Connection(ours.detach())
        with suppress(OSError):  # it died at once: reading from the connection says so
            self.connection.send(arguments)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, seconds: float | None = None) -> str:
        """Wait for its end and free its resources. Returns how it ended, with its last line if that was an error's.

        seconds: how long it may take to end by itself before it is killed.
        """
        if not self._how:
            self._how = self._wait(seconds)
            self.connection.close()
            os.close(self._lifeline)
            self._log.close()
        return self._how

    def _wait(self, seconds: float | None) -> str:
        try:
            try:
                code = self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.kill()
                code = self._process.wait()
        except EOFError as error:
            return str(error)
        self._log.seek(max(0, os.fstat(self._log.fileno()).st_size - _LOG_BYTES))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        told = lines and code not in (0, -signal.SIGKILL)  # whom another kills has not said why
        return f"{how}: {lines[-1][:300]}" if told else how


def serve(module: str, connection_fd: int, lifeline_fd: int) -> None:
    """Run in the child: call `module.main` with the connection and the arguments that come first through it."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(lifeline_fd,), name="lifeline", daemon=True).start()
    connection = Connection(connection_fd)
    import_module(module).main(connection, *connection.recv())


def _end_with(lifeline_fd: int) -> None:
    os.read(lifeline_fd, 1)
    os._exit(0)


def end(processes: Sequence[psutil.Process], seconds: float, first: int = signal.SIGTERM) -> None:
    """End processes: with the signal `first`, and those that have not ended within `seconds` with SIGKILL."""
    import psutil

    for number in (first, signal.SIGKILL):
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        _, processes = psutil.wait_procs(processes, timeout=seconds)


def identity() -> str:
    """Which process this is, on whatever machine: ``4711 since 1764400000.12 on host``."""
    import psutil

    return f"{os.getpid()} since {psutil.Process().create_time():.2f} on {socket.gethostname()}"


def is_gone(process: str) -> bool:
    """Whether the process with this `identity` has ended; of another machine's it cannot be known, so False."""
    import psutil

    found = re.fullmatch(r"(\d+) since (\d+\.\d+) on (.*)", process)
    if found is None or found[3] != socket.gethostname():
        return False
    try:
        return f"{psutil.Process(int(found[1])).create_time():.2f}" != found[2]
    except psutil.NoSuchProcess:
        return True


def bypass_proxies() -> None:
    """Add this machine's addresses and names to NO_PROXY where the environment names a proxy."""
    known = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    proxies = {name.lower() for name in os.environ if name.lower().endswith("_proxy")} - {"no_proxy"}
    if not proxies or known.strip() == "*":
        return
    import psutil

    cards = [one for card in psutil.net_if_addrs().values() for one in card]
    internet = [one for one in cards if one.family in (socket.AF_INET, socket.AF_INET6)]
    addresses = ["localhost", "127.0.0.1", "::1", *(one.address.partition("%")[0] for one in internet)]
    bracketed = [f"[{address}]" for address in addresses if ":" in address]  # libraries differ in this
    name = socket.gethostname().lower()
    excepted = [part.strip() for part in known.split(",") if part.strip()]
    excepted += [*addresses, *bracketed, name, name.partition(".")[0]]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys(excepted))
