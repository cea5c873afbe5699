"""Children that are forks of one process, which has imported what all of them need: they share its memory.

The server is a `Child` that imports, and runs nothing of what it has imported: it has no thread that a fork would lose
but that of its lifeline, which only waits. It forks when it is told to, and learns how a fork ended when it is asked.
A fork is a `Child` as well: connection, lifeline and log are its own, and its environment is the server's. Where the
system's libraries do not survive a fork, on macOS, each child is spawned.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

from regtune.processes import Child, Process, serve, spawn

SAFE = sys.platform != "darwin"


class Forks:
    """Starts children that run `main` of a module, for which its `prepare` was called once.

    That begins now, and again when the server is found gone. Raises OSError when it cannot start.
    """

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        self._module, self._environment = module, environment
        self._server = self._serve() if SAFE else None

    def child(self, *arguments: Any) -> Child:
        """Start `main(connection, *arguments)`: the process is there once the server has imported."""
        if self._server is None:
            return Child(spawn(self._module, self._environment), *arguments)
        try:
            return Child(self._fork, *arguments)
        except OSError:  # it is gone, or nothing can be opened any more, which the second attempt says
            self._server.kill()
            self._server.wait()
            self._server = self._serve()
            return Child(self._fork, *arguments)

    def close(self) -> None:
        """End the server; its forks go on."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()

    def _serve(self) -> Child:
        return Child(spawn(__name__, self._environment), self._module)

    def _fork(self, connection: int, lifeline: int, log: int) -> Process:
        assert self._server is not None
        ours, theirs = socket.socketpair()
        with theirs, socket.socket(fileno=os.dup(self._server.connection.fileno())) as asked:
            self._server.connection.send(None)
            socket.send_fds(asked, [b"."], [connection, lifeline, log, theirs.fileno()])
        return _Fork(self._server, Connection(ours.detach()))


class _Fork:
    """The process of a fork. `told`: what the server says of it, its id and, when it is asked, its exit code."""

    def __init__(self, server: Child, told: Connection) -> None:
        self._server, self._told = server, told
        self._asked = False

    @cached_property
    def pid(self) -> int:
        return int(self._told.recv())

    def kill(self) -> None:
        """Kill it, or the server while that has not forked it yet."""
        if "pid" not in vars(self) and not self._told.poll():
            self._server.kill()
        with suppress(EOFError, ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        try:
            if not self._asked:
                self._server.connection.send(self.pid)
                self._asked = True
            if not self._told.poll(timeout):
                raise subprocess.TimeoutExpired("fork", timeout or 0.0)
            return int(self._told.recv())
        except (EOFError, OSError):  # the server is gone
            raise EOFError(self._server.wait(timeout)) from None


def main(parent: Connection, module: str) -> None:
    """Be the server, until the parent closes the connection."""
    import_module(module).prepare()
    gc.collect()
    gc.freeze()  # a collection in a fork would write into all that is shared
    told: dict[int, Connection] = {}
    while True:
        try:
            ended: int | None = parent.recv()
        except EOFError:
            return
        if ended is not None:
            with told.pop(ended) as teller:
                teller.send(os.waitstatus_to_exitcode(os.waitpid(ended, 0)[1]))
            continue
        with socket.socket(fileno=os.dup(parent.fileno())) as asked:
            connection, lifeline, log, theirs = socket.recv_fds(asked, 1, 4)[1]
        pid = os.fork()
        if pid == 0:
            for other in (parent, Connection(theirs), *told.values()):
                other.close()
            for stream in (1, 2):
                os.dup2(log, stream)
            os.close(log)
            serve(module, connection, lifeline)
            return
        for descriptor in (connection, lifeline, log):
            os.close(descriptor)
        told[pid] = Connection(theirs)
        told[pid].send(pid)
