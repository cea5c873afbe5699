"""The process that is connected to a Ray cluster: makes actors, and passes tasks, verdicts and events on.

What ends it ends no study: Ray ends its callers with a cluster's head. It has none of the user's secrets, and its
folder is an empty one, because Ray's workers import from their caller's.
"""

from __future__ import annotations

import math
import os
import re
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any

from regtune.data.datasets import Arrays
from regtune.errors import SettingsError, WorkerError
from regtune.escaping import printable
from regtune.executors import EpochEnded, Event, Task, TrialEnded, TrialFailed
from regtune.executors.ray_actor import Actor, versions
from regtune.executors.worker import failure, whole
from regtune.training.result import Verdict

_ADDRESS = re.compile(r"(?:ray://)?\[?(?P<host>[^\s/\[\]]+)\]?:(?P<port>\d{1,5})")
ANSWER_SECONDS = 10.0
CONNECT_TRIES, CONNECT_SECONDS = 5, 60.0
"""Ray Client's server forks one for each caller, while gRPC runs in it: now and then one dies at once."""
ROOM_SECONDS = 2.0
"""How often the cluster is asked for nodes that have joined or left."""


@dataclass(frozen=True)
class RayCluster:
    """A cluster to train on.

    address: as `ray.init` takes it: `auto`, `HOST:PORT` or `ray://HOST:PORT`; None for a cluster of this machine that
    ends with its sweep. cpus_per_trial, gpus_per_trial: what a trial takes of its node, fractions too.
    """

    address: str | None = None
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0

    def __post_init__(self) -> None:
        if self.address not in (None, "auto") and not _ADDRESS.fullmatch(self.address):
            raise SettingsError(
                f"address: expected auto, HOST:PORT or ray://HOST:PORT, found {printable(self.address)}"
            )

    @property
    def where(self) -> str:
        return f"the Ray cluster at {self.address}" if self.address else "this machine's Ray cluster"


@dataclass(frozen=True)
class Hire:
    """Make the actor `worker`. It is `Hired` once it is on a node that passed its checks."""

    worker: int


@dataclass(frozen=True)
class Dismiss:
    """End an actor."""

    worker: int


@dataclass(frozen=True)
class Turn:
    """Hand an actor's worker a task, or an epoch's verdict."""

    worker: int
    message: Task | Verdict


@dataclass(frozen=True)
class Hired:
    worker: int


@dataclass(frozen=True)
class Told:
    """What an actor's worker tells."""

    worker: int
    events: Sequence[Event]


@dataclass(frozen=True)
class Lost:
    """An actor is gone. refused: because of its node, which gets no more of them."""

    worker: int
    message: str
    refused: bool = False


@dataclass(frozen=True)
class Room:
    """How many actors the cluster has room for, if it had no other work."""

    workers: int


def main(coordinator: Connection, cluster: RayCluster, workers: int, arrays: Arrays) -> None:
    """Do what the coordinator sends until it closes the connection. workers: of a cluster of this machine."""
    short = "/tmp" if os.access("/tmp", os.W_OK) else None  # noqa: S108 (a socket's path has 103 characters at most)
    with tempfile.TemporaryDirectory(prefix="regtune-ray-", dir=short, ignore_cleanup_errors=True) as folder:
        os.chdir(folder)
        try:
            ray = connect(cluster, workers, folder)
            driver = _Driver(ray, coordinator, cluster, arrays)
        except Exception as error:  # in as many ways as a cluster can be out of reach
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
            line = lines[-1] if "Traceback" in str(error) else " ".join(lines)
            said = f"{type(error).__name__}: {line[:300]}"
            coordinator.send(WorkerError(f"{cluster.where} cannot be used: {said}"))
            return
        try:
            driver.run()
        except WorkerError as error:
            coordinator.send(error)
        finally:
            ray.shutdown()


def connect(cluster: RayCluster, workers: int, folder: str) -> Any:
    """Connect to a cluster, or start this machine's, with its files in `folder`. Returns `ray`."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
    options: dict[str, Any] = {"address": cluster.address}
    if cluster.address is None:
        os.environ |= {
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray then binds to 127.0.0.1
            "RAY_TMPDIR": folder,
            "RAY_memory_monitor_refresh_ms": "0",  # what a trial may have of it says the sweep file
            "RAY_worker_niceness": "0",
        }
        options = {
            "address": "local",
            "num_cpus": math.ceil(workers * cluster.cpus_per_trial),
            "include_dashboard": False,
        }
    elif found := _ADDRESS.fullmatch(cluster.address):  # Ray waits for minutes
        socket.create_connection((found["host"], int(found["port"])), ANSWER_SECONDS).close()
    import ray

    began = time.monotonic()
    for tries_left in reversed(range(CONNECT_TRIES)):
        try:
            ray.init(**options, log_to_driver=False, logging_level="ERROR", configure_logging=True)
            break
        except ConnectionAbortedError:
            if not tries_left or time.monotonic() - began > CONNECT_SECONDS:
                raise
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Ray's own handler would end this process
    return ray


class _Driver:
    """Actors by their workers' numbers. Everything happens in one thread, in the order of `_todo`."""

    def __init__(self, ray: Any, coordinator: Connection, cluster: RayCluster, arrays: Arrays) -> None:
        self._ray = ray
        self._coordinator = coordinator
        self._cluster = cluster
        self._digest = arrays.digest
        self._arrays = ray.put(arrays)
        taken = {"num_cpus": cluster.cpus_per_trial, "num_gpus": cluster.gpus_per_trial}
        self._actor = ray.remote(**taken, max_restarts=0)(Actor)
        self._actors: dict[int, Any] = {}
        self._tasks: dict[int, Task] = {}
        self._refused: dict[str, str] = {}
        self._room = 0
        self._todo: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def run(self) -> None:
        """Until the coordinator closes the connection."""
        if not self._look() and self._cluster.address is None:  # nobody adds to it
            needs = f"--gpus-per-trial {self._cluster.gpus_per_trial:g}"
            raise WorkerError(f"{self._cluster.where} has too few GPUs for {needs}")
        threading.Thread(target=self._listen, name="listen", daemon=True).start()
        self._coordinator.send(Room(self._room))
        looked = time.monotonic()
        while True:
            with suppress(Empty):
                do = self._todo.get(timeout=ROOM_SECONDS)
                if do is None:
                    break
                do()
            if time.monotonic() - looked > ROOM_SECONDS:
                looked, before = time.monotonic(), self._room
                if self._look() != before:
                    self._coordinator.send(Room(self._room))
        for worker in list(self._actors):
            self._dismiss(worker)

    def _listen(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                self._todo.put(partial(self._obey, self._coordinator.recv()))
        self._todo.put(None)

    def _obey(self, said: Hire | Dismiss | Turn) -> None:
        match said:
            case Hire(worker):
                others = f"!in({','.join(self._refused)})"
                where = {"label_selector": {"ray.io/node-id": others}} if self._refused else {}
                self._actors[worker] = self._actor.options(**where).remote()
                self._ask(worker, self._actors[worker].place.remote(), self._placed)
            case Dismiss(worker):
                self._dismiss(worker)
            case Turn(worker, message) if worker in self._actors:
                if isinstance(message, Task):
                    self._tasks[worker] = message
                self._ask(worker, self._actors[worker].turn.remote(message), self._told)

    def _dismiss(self, worker: int) -> None:
        if actor := self._actors.pop(worker, None):
            self._ray.kill(actor)

    def _ask(self, worker: int, answer: Any, then: Callable[[int, Any], None]) -> None:
        """Call `then` with the worker's number and the answer once that is there."""
        actor = self._actors[worker]
        answer.future().add_done_callback(
            lambda future: self._todo.put(partial(self._answered, worker, actor, future, then))
        )

    def _answered(
        self, worker: int, actor: Any, future: Future[Any], then: Callable[[int, Any], None]
    ) -> None:
        if self._actors.get(worker) is not actor:
            return
        try:
            answer = future.result()
        except self._ray.exceptions.RayError as error:
            self._dismiss(worker)
            self._coordinator.send(
                Lost(worker, f"worker {worker} on {self._cluster.where} ended: {_why(error)}")
            )
        else:
            then(worker, answer)

    def _placed(self, worker: int, place: tuple[str, str, Mapping[str, str]]) -> None:
        node, address, theirs = place
        ours = versions()
        other = [
            f"{name} {theirs.get(name)}, here {ours[name]}" for name in ours if theirs.get(name) != ours[name]
        ]
        if other:
            self._refuse(worker, node, f"node {address} has other versions: {'; '.join(other)}")
            return
        began = self._actors[worker].begin.remote(worker, self._arrays, self._cluster.gpus_per_trial > 0)
        self._ask(worker, began, partial(self._begun, node, address))

    def _begun(self, node: str, address: str, worker: int, digest: str) -> None:
        if digest == self._digest:
            self._coordinator.send(Hired(worker))
        else:
            had = f"data with digest {digest[:12]}..., expected {self._digest[:12]}..."
            self._refuse(worker, node, f"node {address} has {had}")

    def _refuse(self, worker: int, node: str, why: str) -> None:
        """Use a node no more. Raises WorkerError when there is no other."""
        self._dismiss(worker)
        known = node in self._refused
        self._refused[node] = why
        if not self._look():
            raise WorkerError(f"{self._cluster.where}: {why}; install the same on every node")
        self._coordinator.send(Room(self._room))
        self._coordinator.send(Lost(worker, "" if known else f"{why}; it gets no work", refused=True))

    def _told(self, worker: int, told: tuple[Sequence[Event], Mapping[str, bytes]]) -> None:
        events, files = told
        task = self._tasks[worker]
        if files and task.folder is not None:
            try:
                for name, content in files.items():
                    with whole(task.folder / name) as path:
                        path.write_bytes(content)
            except OSError as error:
                failed = failure(task, worker, error)
                events = [failed if isinstance(event, TrialEnded) else event for event in events]
        self._coordinator.send(Told(worker, events))
        if not any(isinstance(event, EpochEnded | TrialEnded | TrialFailed) for event in events):
            self._ask(worker, self._actors[worker].turn.remote(None), self._told)

    def _look(self) -> int:
        """How many trials the cluster's nodes have room for, if they had no other work."""
        taken = {"CPU": self._cluster.cpus_per_trial, "GPU": self._cluster.gpus_per_trial}
        self._room = sum(
            min(int(node["Resources"].get(name, 0) / each + 1e-9) for name, each in taken.items() if each)
            for node in self._ray.nodes()
            if node["Alive"] and node["NodeID"] not in self._refused
        )
        return self._room


def _why(error: Exception) -> str:
    """An error of Ray's in one line: an actor's own says what it is, another's cause stands last."""
    if type(error).__name__ == "ActorUnavailableError":
        return "its node does not answer"
    cause = getattr(error, "cause", None)
    lines = [line.strip() for line in str(cause or error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("The actor never ran")]
    line = lines[0] if cause and lines else lines[-1] if lines else ""
    return f"{type(cause or error).__name__}: {line}"[:400]
