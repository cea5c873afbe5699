"""A command measured from outside, from its start to its end, with all the processes that it starts."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLE_SECONDS = 1.0


@dataclass(frozen=True)
class Measured:
    """seconds: on the clock. started: Unix time. cpu_seconds, peak_mib: of all its processes together."""

    started: float
    seconds: float
    cpu_seconds: float
    peak_mib: float


def measure(command: Sequence[str | Path], folder: Path, environment: Mapping[str, str]) -> Measured:
    """Run a command in a folder, where `log.txt` gets what it prints. Raises SystemExit where it fails."""
    before = os.times()
    with (folder / "log.txt").open("w") as log:
        started, begun = time.time(), time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **environment}, stdout=log, stderr=log
        )
        tree = _Tree(process.pid)
        code = process.wait()
        seconds = time.perf_counter() - begun
    tree.end()
    if code:
        raise SystemExit(f"{command} ended with {code}; {folder}/log.txt says why")
    after = os.times()
    waited = after.children_user + after.children_system - before.children_user - before.children_system
    return Measured(started, seconds, max(waited, tree.cpu_seconds), tree.peak_mib)


class _Tree(threading.Thread):
    """Samples a process and its descendants, those too that outlive their parents."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._root = psutil.Process(pid)
        self._seen = {pid: self._root}
        self._cpu: dict[int, float] = {}
        self._over = threading.Event()
        self.peak_mib = 0.0
        self.start()

    @property
    def cpu_seconds(self) -> float:
        """What was last seen of each process."""
        return sum(self._cpu.values())

    def run(self) -> None:
        """Until the end."""
        while not self._over.wait(SAMPLE_SECONDS):
            for process in psutil.process_iter():
                with suppress(psutil.Error):
                    if process.ppid() in self._seen:
                        self._seen[process.pid] = process
            self.peak_mib = max(self.peak_mib, sum(map(self._look, self._seen.values())) / 2**20)

    def end(self) -> None:
        self._over.set()
        self.join()

    def _look(self, process: psutil.Process) -> float:
        """Keep its CPU seconds; its bytes, those it shares with others divided among them."""
        with suppress(psutil.Error):
            times = process.cpu_times()
            self._cpu[process.pid] = times.user + times.system
            return float(getattr(process.memory_full_info(), "pss", 0) or process.memory_info().rss)
        return 0.0
