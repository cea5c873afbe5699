"""Actors of a Ray cluster: `local`'s workers on its nodes, warm and reused.

There are as many as there are tasks for them, so that those that find no room tell an autoscaler what is missing, and
what has nothing to do for a while is given back.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import count, islice

from regtune.credentials import without_secrets
from regtune.data.datasets import Arrays
from regtune.errors import COMMAND, WorkerError
from regtune.executors import Event, Task, TrialEnded, TrialFailed, TrialStarted, WorkerDied, WorkerReady
from regtune.executors.local import default_workers
from regtune.executors.ray_driver import Dismiss, Hire, Hired, Lost, RayCluster, Room, Told, Turn
from regtune.processes import Child, spawn
from regtune.training.result import Verdict

_LOGGED = re.compile(r"\[.*?\] \S+:\d+: ")
"""What stands before a message of Ray's."""
CONNECT_SECONDS = 120
CLOSE_SECONDS = 30
IDLE_SECONDS = 10.0
"""After how long without a task an actor is given back."""
FAILED_STARTS = 4
"""In a row, at least; as many as two for each worker where there are more: one node may have had them all."""


@dataclass
class _Worker:
    number: int
    hired: bool = False
    task: Task | None = None
    started: bool = False
    pid: int | None = None
    since: float = field(default_factory=time.monotonic)

    @property
    def free(self) -> bool:
        return self.hired and self.task is None


class RayExecutor:
    """Trains tasks in at most `workers` actors, by default as many as the cluster has room for.

    A task that has not begun when its actor is lost is handed to another. Raises WorkerError when Ray is not installed
    or the cluster cannot be used, and from `events` when it is gone, when none of its nodes has the versions and data
    that are here, and when actors are lost before they are ready, again and again.
    """

    def __init__(self, cluster: RayCluster, arrays: Arrays, workers: int | None = None) -> None:
        if find_spec("ray") is None:
            raise WorkerError('Ray is not installed; try: pip install "regtune[ray]"')
        self._cluster = cluster
        self._fixed = workers if cluster.address or workers else default_workers()
        self._tasks: dict[str, Task] = {}
        self._waiting: deque[Task] = deque()
        self._workers: dict[int, _Worker] = {}
        self._numbers = count()  # none is used twice: what is still said of one who left means no other
        self._failed_starts = self._most_failures = 0
        self._ended = ""
        self._room: int | None = None
        environment = without_secrets(os.environ)
        arguments = cluster, self._fixed or 0, arrays
        try:
            self._child = Child(spawn("regtune.executors.ray_driver", environment), *arguments)
        except OSError as error:
            raise WorkerError(f"the process that talks to Ray cannot be started: {error}") from None
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    @property
    def idle(self) -> int:
        return max(0, self._most - len(self._tasks))

    @property
    def pids(self) -> dict[int, int]:
        """Of the processes that train, each on its actor's node."""
        return {worker.number: worker.pid for worker in self._workers.values() if worker.pid is not None}

    def submit(self, task: Task) -> None:
        """Hand a task to the actor that is free first, or to a new one."""
        if not self.idle:
            raise WorkerError("no worker is idle")
        self._tasks[task.uid] = task
        self._waiting.append(task)
        self._assign()

    def decide(self, uid: str, verdict: Verdict) -> None:
        """Answer an epoch. A trial that has ended meanwhile needs no answer."""
        for worker in self._workers.values():
            if worker.task is not None and worker.task.uid == uid:
                self._send(Turn(worker.number, verdict))

    def withdraw(self) -> Sequence[str]:
        uids = [task.uid for task in self._waiting]
        self._waiting.clear()
        for uid in uids:
            del self._tasks[uid]
        return uids

    def events(self, timeout_seconds: float) -> Sequence[Event]:
        connection, told = self._child.connection, list[Event]()
        self._give_back()
        self._most_failures = max(FAILED_STARTS, 2 * len(self._workers))  # before any of them is lost
        try:
            wait = timeout_seconds
            while connection.poll(wait):
                told += self._heard(connection.recv())
                wait = 0.0
        except (EOFError, OSError):
            why = _LOGGED.sub("", self._end()).partition(". ")[0]
            gone = f"{self._cluster.where} is gone ({why})"
            raise WorkerError(f"{gone}; once it runs again, resume with: {COMMAND.get()}") from None
        self._assign()
        return told

    def close(self) -> None:
        self._end()

    def _end(self) -> str:
        """End the process that talks to Ray, and with it its actors. Returns how it ended."""
        if not self._ended:
            self._child.connection.close()
            self._ended = self._child.wait(CLOSE_SECONDS)
        return self._ended

    def _connect(self) -> None:
        deadline = time.monotonic() + CONNECT_SECONDS
        while self._room is None:
            if time.monotonic() > deadline:
                raise WorkerError(f"{self._cluster.where} has not answered for {CONNECT_SECONDS} s")
            self.events(1.0)

    @property
    def _most(self) -> int:
        return self._fixed or max(1, self._room or 0)

    def _send(self, message: Hire | Dismiss | Turn) -> None:
        with suppress(OSError):  # it is gone: the next call of `events` says so
            self._child.connection.send(message)

    def _assign(self) -> None:
        """Hand waiting tasks to those who are free, and hire for the others."""
        for worker in self._workers.values():
            if worker.free and self._waiting:
                worker.task = self._waiting.popleft()
                self._send(Turn(worker.number, worker.task))
        coming = sum(not worker.hired for worker in self._workers.values())
        for number in islice(self._numbers, max(0, len(self._waiting) - coming)):
            self._workers[number] = _Worker(number)
            self._send(Hire(number))

    def _give_back(self) -> None:
        """Dismiss who has had nothing to do for a while, and who is not there yet and no longer needed."""
        now = time.monotonic()
        coming = [worker for worker in self._workers.values() if not worker.hired]
        needless = coming[len(self._waiting) :]
        needless += [one for one in self._workers.values() if one.free and now - one.since > IDLE_SECONDS]
        for worker in needless:
            del self._workers[worker.number]
            self._send(Dismiss(worker.number))

    def _heard(self, said: WorkerError | Room | Hired | Told | Lost) -> Iterator[Event]:
        match said:
            case WorkerError():
                raise said
            case Room(workers):
                self._room = workers
            case Hired(number) if number in self._workers:
                self._workers[number].hired = True
                self._workers[number].since = time.monotonic()
            case Told(number, events):
                for event in events:
                    self._follow(self._workers[number], event)
                yield from events
            case Lost(number, message, refused) if number in self._workers:
                yield from self._lost(self._workers.pop(number), message, refused)

    def _follow(self, worker: _Worker, event: Event) -> None:
        if isinstance(event, WorkerReady):
            worker.pid, self._failed_starts = event.pid, 0
        elif isinstance(event, TrialStarted):
            worker.started = True
        elif isinstance(event, TrialEnded | TrialFailed):
            del self._tasks[event.uid]
            worker.task, worker.started, worker.since = None, False, time.monotonic()
            if isinstance(event, TrialFailed) and event.reason not in ("error", "disk_full"):
                worker.pid = None

    def _lost(self, worker: _Worker, message: str, refused: bool) -> Iterator[Event]:
        if worker.started and worker.task is not None:
            del self._tasks[worker.task.uid]
            yield TrialFailed(worker.task.uid, worker.number, "worker_died", message)
            return
        if worker.task is not None:
            self._waiting.appendleft(worker.task)
        if not refused:
            self._failed_starts += 1
            if self._failed_starts >= self._most_failures:
                raise WorkerError(f"workers die before they are ready: {message}")
        if message:
            yield WorkerDied(worker.number, message)
