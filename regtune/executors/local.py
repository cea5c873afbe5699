"""Warm worker processes on this machine, one TensorFlow thread each: measured best on CPUs.

Workers are started as `python -c` with inherited pipes rather than forked or spawned through `multiprocessing`: the
caller's main module is not run again in them, and no helper process is left over.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import IO, Literal

import psutil

from regtune.errors import WorkerError
from regtune.executors import EpochEnded, Event, Task, TrialEnded, TrialFailed, TrialStarted, Verdict, WorkerDied, WorkerReady

START_SECONDS = 180
MEMORY_CHECK_SECONDS = 0.5
THREADS = {
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "-1",
    "KERAS_BACKEND": "tensorflow",
    "PYTHONHASHSEED": "0",
}


def default_workers() -> int:
    """One per core that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass
class _Worker:
    number: int
    process: subprocess.Popen[bytes]
    connection: Connection
    lifeline: int
    log: IO[bytes]
    since: float
    ready: bool = False
    task: Task | None = None
    started: float | None = None
    ended: tuple[Literal["timeout", "out_of_memory"], str] | None = field(default=None)


class LocalExecutor:
    """Trains tasks in `workers` processes, which start at once and are kept until `close`.

    Raises WorkerError from `events` when workers die before they are ready, twice in a row.
    """

    def __init__(self, workers: int, data_dir: Path | None = None) -> None:
        self._data_dir = data_dir
        self._stillborn = 0
        self._memory_checked = 0.0
        self._workers = [self._start(number) for number in range(workers)]

    @property
    def idle(self) -> int:
        """Workers that can take a task now, those still starting among them."""
        return sum(worker.task is None for worker in self._workers)

    @property
    def pids(self) -> dict[int, int]:
        """Process id of each worker."""
        return {worker.number: worker.process.pid for worker in self._workers}

    def submit(self, task: Task) -> None:
        """Hand a task to an idle worker, one that is ready before one that still starts."""
        free = sorted((worker for worker in self._workers if worker.task is None), key=lambda worker: not worker.ready)
        if not free:
            raise WorkerError("no worker is idle")
        free[0].task = task
        self._send(free[0], task)

    def decide(self, uid: str, verdict: Verdict) -> None:
        """Answer an epoch. A trial that has ended meanwhile needs no answer."""
        for worker in self._workers:
            if worker.task is not None and worker.task.uid == uid:
                self._send(worker, verdict)

    def events(self, timeout_seconds: float) -> Sequence[Event]:
        """What has happened; waits for at most `timeout_seconds`."""
        self._enforce_limits()
        wait([worker.connection for worker in self._workers], timeout_seconds)
        events: list[Event] = []
        for worker in list(self._workers):
            events += self._drain(worker)
        return events

    def close(self) -> None:
        """End every worker at once; nothing is left behind."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            self._bury(worker)
        self._workers = []

    def _start(self, number: int) -> _Worker:
        ours, theirs = socket.socketpair()
        lifeline_read, lifeline_write = os.pipe()
        log = tempfile.TemporaryFile()
        data_dir = str(self._data_dir.resolve()) if self._data_dir else ""
        arguments = f"{number}, {theirs.fileno()}, {lifeline_read}, {data_dir!r}"
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", f"from regtune.executors.worker import main; main({arguments})"],
                pass_fds=(theirs.fileno(), lifeline_read),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **THREADS, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            )
        except OSError as error:
            raise WorkerError(f"a worker cannot be started: {error}") from None
        finally:
            theirs.close()
            os.close(lifeline_read)
        return _Worker(number, process, Connection(ours.detach()), lifeline_write, log, time.monotonic())

    def _send(self, worker: _Worker, message: Task | Verdict) -> None:
        try:
            worker.connection.send(message)
        except OSError:
            return  # it is dead: the next call of `events` says so

    def _drain(self, worker: _Worker) -> list[Event]:
        events: list[Event] = []
        try:
            while worker.connection.poll():
                event: Event = worker.connection.recv()
                events.append(event)
                self._note(worker, event)
        except (EOFError, OSError):
            events.append(self._replace(worker))
        return events

    def _note(self, worker: _Worker, event: Event) -> None:
        match event:
            case WorkerReady():
                worker.ready = True
                self._stillborn = 0
            case TrialStarted():
                worker.started = time.monotonic()
            case TrialEnded() | TrialFailed():
                worker.task = worker.started = None
            case EpochEnded() | WorkerDied():
                pass

    def _replace(self, dead: _Worker) -> TrialFailed | WorkerDied:
        dead.process.kill()
        why = self._bury(dead)
        if not dead.ready:
            self._stillborn += 1
            if self._stillborn >= 2 * len(self._workers):
                self._workers.remove(dead)
                raise WorkerError(f"workers die before they are ready: {why}")
        self._workers[self._workers.index(dead)] = self._start(dead.number)
        if dead.task is None:
            return WorkerDied(dead.number, why)
        reason, message = dead.ended or ("worker_died", why)
        return TrialFailed(dead.task.uid, dead.number, reason, message)

    def _bury(self, worker: _Worker) -> str:
        code = worker.process.wait()
        worker.connection.close()
        os.close(worker.lifeline)
        worker.log.seek(max(0, os.fstat(worker.log.fileno()).st_size - 4096))
        lines = worker.log.read().decode(errors="replace").strip().splitlines()
        worker.log.close()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"worker {worker.number} ended with {how}" + (f": {lines[-1][:300]}" if lines and code > 0 else "")

    def _enforce_limits(self) -> None:
        now = time.monotonic()
        check_memory = now - self._memory_checked > MEMORY_CHECK_SECONDS
        if check_memory:
            self._memory_checked = now
        for worker in self._workers:
            if not worker.ready and now - worker.since > START_SECONDS:
                worker.process.kill()
            if worker.task is None or worker.started is None or worker.ended:
                continue
            limit = worker.task.timeout_seconds
            if limit is not None and now - worker.started > limit:
                self._end(worker, "timeout", f"longer than trial_timeout, {limit:g} s")
            elif check_memory and worker.task.memory_bytes is not None:
                used = _rss(worker.process.pid)
                if used > worker.task.memory_bytes:
                    allowed = worker.task.memory_bytes / 2**20
                    self._end(worker, "out_of_memory", f"{used / 2**20:.0f} MiB, more than trial_memory_mb, {allowed:.0f}")

    def _end(self, worker: _Worker, reason: Literal["timeout", "out_of_memory"], message: str) -> None:
        worker.ended = (reason, message)
        worker.process.kill()


def _rss(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
