"""Warm worker processes on this machine, one TensorFlow thread each: measured best on CPUs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Literal

import psutil

from regtune.credentials import without_secrets
from regtune.data.datasets import Arrays
from regtune.errors import WorkerError
from regtune.executors import (
    EpochEnded,
    Event,
    Task,
    TrialEnded,
    TrialFailed,
    TrialStarted,
    WorkerDied,
    WorkerReady,
)
from regtune.forks import Forks
from regtune.processes import Child
from regtune.training.result import Verdict
from regtune.training.runtime import NO_GPU, environment_of_worker

START_SECONDS = 180
MEMORY_CHECK_SECONDS = 0.5
LAST_WORDS_SECONDS = 10.0
"""How long a worker that has hung up may take to end by itself, so that it can say why."""


def default_workers() -> int:
    """One per core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class _Worker:
    number: int
    child: Child
    since: float
    ready: bool = False
    task: Task | None = None
    trained: float = 0.0
    turned: float | None = None
    """Since when it trains. What it waits for a verdict does not count: it may be as long as a database is away."""
    ended: tuple[Literal["timeout", "out_of_memory"], str] | None = None

    def enforce_limits(self, now: float, check_memory: bool) -> None:
        if self.task is None or self.turned is None or self.ended:
            return
        seconds, most = self.task.timeout_seconds, self.task.memory_bytes
        if seconds is not None and self.trained + now - self.turned > seconds:
            self.ended = "timeout", f"longer than trial_timeout, {seconds:g} s"
        elif check_memory and most is not None:
            with suppress(psutil.NoSuchProcess):
                used = psutil.Process(self.child.pid).memory_info().rss
                if used > most:
                    said = f"{used / 2**20:.0f} MiB, more than trial_memory_mb, {most / 2**20:.0f}"
                    self.ended = "out_of_memory", said


class LocalExecutor:
    """Trains tasks in `workers` processes, which start with the first task and are kept until `close`.

    What they import is imported from now on, once for all of them.
    data: the data set of all tasks, or the folder where workers find them. first: the first worker's number.
    gpus: what workers may use, as CUDA_VISIBLE_DEVICES names them.
    Raises WorkerError from `events` when workers die before they are ready, twice in a row.
    """

    def __init__(
        self, workers: int, data: Path | Arrays | None = None, *, first: int = 0, gpus: str = NO_GPU
    ) -> None:
        self._data = data
        self._first = first
        self._failed_starts = 0
        self._memory_checked = 0.0
        self._unstarted = workers
        self._workers: list[_Worker] = []
        try:
            self._forks = Forks(
                "regtune.executors.worker", environment_of_worker(without_secrets(os.environ), gpus)
            )
        except OSError as error:
            raise WorkerError(f"workers cannot be started: {error}") from None

    @property
    def idle(self) -> int:
        return self._unstarted + len(self._free())

    @property
    def pids(self) -> dict[int, int]:
        return {worker.number: worker.child.pid for worker in self._workers}

    def submit(self, task: Task) -> None:
        """Hand a task to an idle worker, one that is ready before one that still starts."""
        self._workers += map(self._start, range(self._first, self._first + self._unstarted))
        self._unstarted = 0
        free = sorted(self._free(), key=lambda worker: not worker.ready)
        if not free:
            raise WorkerError("no worker is idle")
        free[0].task = task
        self._send(free[0], task)

    def decide(self, uid: str, verdict: Verdict) -> None:
        """Answer an epoch. A trial that has ended meanwhile needs no answer."""
        for worker in self._workers:
            if worker.task is not None and worker.task.uid == uid:
                worker.turned = time.monotonic()
                self._send(worker, verdict)

    def withdraw(self) -> Sequence[str]:
        return ()

    def events(self, timeout_seconds: float) -> Sequence[Event]:
        wait([worker.child.connection for worker in self._workers], timeout_seconds)
        told = [event for worker in list(self._workers) for event in self._drain(worker)]
        self._enforce_limits()  # now that what they have done meanwhile is known
        return told

    def close(self) -> None:
        for worker in self._workers:
            worker.child.kill()
        for worker in self._workers:
            worker.child.wait()
        self._forks.close()
        self._workers, self._unstarted = [], 0

    def _free(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.task is None and worker.ended is None]

    def _start(self, number: int) -> _Worker:
        try:
            child = self._forks.child(number, self._data)
        except OSError as error:
            raise WorkerError(f"a worker cannot be started: {error}") from None
        return _Worker(number, child, time.monotonic())

    def _send(self, worker: _Worker, message: Task | Verdict) -> None:
        with suppress(OSError):  # it is dead: the next call of `events` says so
            worker.child.connection.send(message)

    def _drain(self, worker: _Worker) -> Iterator[Event]:
        try:
            while worker.child.connection.poll():
                event: Event = worker.child.connection.recv()
                yield event
                if isinstance(event, WorkerReady):
                    worker.ready = True
                    self._failed_starts = 0
                elif isinstance(event, TrialStarted):
                    worker.trained, worker.turned = 0.0, time.monotonic()
                elif isinstance(event, EpochEnded):
                    worker.trained, worker.turned = worker.trained + event.seconds, None
                elif isinstance(event, TrialEnded | TrialFailed):
                    worker.task = worker.turned = None
                exhausted = isinstance(event, TrialFailed) and event.reason == "out_of_memory"
                if exhausted or (worker.ended and worker.task is None):
                    worker.child.kill()  # what is left in such a process is in no known state
                    self._renew(worker)
                    break
        except (EOFError, OSError):
            yield self._replace(worker)

    def _replace(self, dead: _Worker) -> TrialFailed | WorkerDied:
        why = f"worker {dead.number} ended with {self._renew(dead)}"
        if not dead.ready:
            self._failed_starts += 1
            if self._failed_starts >= 2 * len(self._workers):
                raise WorkerError(f"workers die before they are ready: {why}")
        if dead.task is None:
            return WorkerDied(dead.number, why)
        reason, message = dead.ended or ("worker_died", why)
        return TrialFailed(dead.task.uid, dead.number, reason, message)

    def _renew(self, worker: _Worker) -> str:
        """Start another in the place of a worker that ends; says how it ended."""
        how = worker.child.wait(LAST_WORDS_SECONDS)
        place = self._workers.index(worker)
        del self._workers[place]
        self._workers.insert(place, self._start(worker.number))
        return how

    def _enforce_limits(self) -> None:
        now = time.monotonic()
        check_memory = now - self._memory_checked > MEMORY_CHECK_SECONDS
        if check_memory:
            self._memory_checked = now
        for worker in self._workers:
            worker.enforce_limits(now, check_memory)
            if worker.ended or (not worker.ready and now - worker.since > START_SECONDS):
                worker.child.kill()
