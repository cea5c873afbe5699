"""Simulated training: an executor that plays recorded learning curves by a virtual clock.

The clock goes on with the work of whoever drives the executor, and jumps to the next event when that waits for one: a
sweep over hundreds of workers passes on one core as it would beside them, only sooner.
"""

from __future__ import annotations

import heapq
import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from regtune.config.trial import METRICS, RegularizationConfig, TrialConfig
from regtune.errors import WorkerError
from regtune.executors import EpochEnded, Event, Task, TrialEnded, TrialFailed, TrialStarted
from regtune.study.record import MEASURED
from regtune.tracking.live import Tracker
from regtune.training.result import TrialResult, Verdict

RECORDED = Path(__file__).resolve().parent / "study.json"
CURVES = ("cross_entropy", "val_cross_entropy", "val_accuracy")
WIDTH = 0.15
"""How far the curve of a recorded trial reaches, in a space whose parameters go from 0 to 1."""
OTHER_PLACE = 0.5
"""Distance of one placement of batch norm from another."""
JITTER = 0.055
"""Standard deviation of the logarithm of an epoch's validation cross-entropy beside its neighbours, as recorded."""
SPREAD = 0.1
"""An epoch's duration varies by so much to either side."""
RESTART_SECONDS = 10.0
"""How long another worker takes to stand in the place of one that died."""


class Untracked(Tracker):
    """In the place of a tracker: starts no process and writes nothing."""

    status = ""

    def __init__(self, *_: Any) -> None: ...

    def news(self) -> list[str]:
        """Nothing has happened."""
        return []

    def close(self, timeout_seconds: float | None = None) -> int:
        """Nothing is left to write."""
        return 0


class OwnTime:
    """A clock of what this thread has worked or waited for others, as if each had a core of its own.

    Time in which one was ready to run and others ran is left out, where the system tells it (Linux).
    """

    def __init__(self) -> None:
        self._files: list[int] = []
        self._before = 0.0
        self.add("thread-self")

    def add(self, process: int | str) -> None:
        """Count in a process for whose answers this thread waits."""
        with suppress(OSError):
            file = os.open(f"/proc/{process}/schedstat", os.O_RDONLY)
            self._before += _delayed(file)
            self._files.append(file)

    def __call__(self) -> float:
        """Seconds since some moment."""
        return time.perf_counter() - sum(map(_delayed, self._files)) + self._before

    def close(self) -> None:
        """Forget the processes."""
        while self._files:
            os.close(self._files.pop())


def _delayed(file: int) -> float:
    """For how many seconds a process has been ready and has not run."""
    return int(os.pread(file, 100, 0).split()[1]) / 1e9


class Recorded:
    """Learning curves of configurations: means of recorded ones, each the heavier the nearer its configuration.

    A trial that was pruned goes on as the mean of the complete ones does, from where it was; behind its end a curve
    stays as it is.
    """

    def __init__(self, file: Path = RECORDED) -> None:
        trials = json.loads(file.read_text())["trials"]
        longest = max(trial["epochs"] for trial in trials)
        whole = np.mean([_curves(one, longest) for one in trials if one["state"] == "COMPLETE"], axis=0)
        curves = []
        for trial in trials:
            found = _curves(trial, longest)
            if trial["state"] != "COMPLETE":
                last = trial["epochs"] - 1
                found[:, last:] = whole[:, last:] * (found[:, last] / whole[:, last])[:, None]
            curves.append(found)
        self._curves = np.array(curves)
        self._points = np.array([_point(**trial["parameters"]) for trial in trials])

    def curves(self, regularization: RegularizationConfig) -> NDArray[np.float64]:
        """CURVES of a configuration, one an epoch, without the luck of a run."""
        point = _point(*(getattr(regularization, name)[0] for name in ("dropout", "l1", "l2", "batchnorm")))
        distances = ((self._points - point) ** 2).sum(axis=1)
        weights = np.exp((distances.min() - distances) / (2 * WIDTH**2))
        mean: NDArray[np.float64] = np.tensordot(weights / weights.sum(), self._curves, 1)
        return mean

    def loss(self, regularization: RegularizationConfig) -> float:
        """The lowest validation cross-entropy of a configuration, without the luck of a run."""
        return float(self.curves(regularization)[1].min())

    def trained(self, config: TrialConfig) -> NDArray[np.float64]:
        """CURVES as a run with this seed has them."""
        curves = self.curves(config.regularization)
        epochs = min(config.training.max_epochs, curves.shape[1])
        luck = np.random.default_rng(config.seed).normal(0.0, JITTER, epochs)
        curves = curves[:, :epochs].copy()
        curves[1] *= np.exp(luck)
        return curves


def _curves(trial: dict[str, dict[str, list[float]]], epochs: int) -> NDArray[np.float64]:
    found = [trial["curves"][name] for name in CURVES]
    return np.array([values + values[-1:] * (epochs - len(values)) for values in found])


def _point(dropout: float, l1: float, l2: float, batchnorm: str) -> NDArray[np.float64]:
    """A configuration in a space where a penalty that is off is as weak as the weakest."""
    strengths = [(math.log10(value) + 7) / 4 if value else 0.0 for value in (l1, l2)]
    places = [
        OTHER_PLACE / math.sqrt(2) * (batchnorm == f"{side}_activation") for side in ("before", "after")
    ]
    return np.array([dropout / 0.6, *strengths, *places])


@dataclass
class _Run:
    """A task in the hands of a simulated worker."""

    task: Task
    worker: int
    curves: NDArray[np.float64]
    seconds: NDArray[np.float64]
    epoch: int = 0

    def figures(self, epoch: int) -> dict[str, float]:
        """METRICS of an epoch from 1; what was not recorded is taken from what was."""
        loss, val_loss, val_accuracy = map(float, self.curves[:, epoch - 1])
        return {
            **dict.fromkeys(METRICS, val_loss),
            **{"loss": loss, "cross_entropy": loss},
            **{"accuracy": val_accuracy, "val_accuracy": val_accuracy},
        }

    @property
    def best(self) -> int:
        """The epoch with the lowest validation cross-entropy so far."""
        return int(self.curves[1, : self.epoch].argmin()) + 1

    def end(self) -> Literal["max_epochs", "early_stopping"] | None:
        """Why it ends after this epoch, if it does."""
        if self.epoch == len(self.seconds):
            return "max_epochs"
        stopping = self.task.config.early_stopping
        waited = stopping is not None and self.epoch - self.best >= max(1, stopping.patience)
        return "early_stopping" if waited else None


class SimulatedExecutor:
    """`workers` simulated workers that train by a virtual clock; deaths: probability that one dies in an epoch.

    worked: a real clock, for how long whoever drives this has worked; by default its work takes no time, and then a
    sweep is the same each time.

    What is measured begins when every worker has had a task, and ends when one has none while others are waited for.
    """

    def __init__(
        self,
        workers: int,
        *,
        epoch_seconds: float = 10.0,
        deaths: float = 0.0,
        worked: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.now = 0.0
        self.dead = 0
        self.worked = 0.0
        """Seconds that whoever drives this has worked in all."""
        self.verdicts: list[float] = []
        """Seconds that workers have waited for the answer to an epoch, while it is measured."""
        self.trials: list[float] = []
        """Seconds that they have waited for their next trial."""
        self._workers, self._epoch_seconds, self._deaths = workers, epoch_seconds, deaths
        self._clock = worked
        self._read = math.nan
        self._since, self._until, self._slept = math.inf, math.inf, 0.0
        self._recorded = Recorded()
        self._dice = np.random.default_rng(0)
        self._free = deque((0.0, worker) for worker in range(workers))
        """Idle workers: since when, or from when on, and which."""
        self._coming: list[tuple[float, int, Event]] = []
        self._begun = self._told = 0
        self._runs: dict[str, _Run] = {}
        self._asked: dict[str, float] = {}
        """When epochs ended that were not answered."""
        self._trained: list[tuple[float, float]] = []
        """From when to when a worker was in an epoch."""

    @property
    def idle(self) -> int:
        """Workers without a task."""
        return len(self._free)

    def submit(self, task: Task) -> None:
        """Begin a task at this moment."""
        with self._at_work():
            if not self._free:
                raise WorkerError("no worker is idle")
            since, worker = self._free.popleft()
            self._begun += 1
            if self._measured:
                self.trials.append(max(0.0, self.now - since))
            elif self._begun == self._workers:  # who waits longest is served first: all have had one
                self._since = self.now
            curves = self._recorded.trained(task.config)
            spread = np.random.default_rng(task.config.seed).uniform(1 - SPREAD, 1 + SPREAD, curves.shape[1])
            run = self._runs[task.uid] = _Run(task, worker, curves, self._epoch_seconds * spread)
            begin = max(self.now, since)
            self._tell(begin, TrialStarted(task.uid, worker))
            self._train(run, begin)

    def events(self, timeout_seconds: float) -> Sequence[Event]:
        """What has happened until now, else the next event; time goes on until then."""
        with self._at_work():
            if self._free and self._measured and timeout_seconds > 0:
                self._until = self.now
            if not self._coming or self._coming[0][0] > self.now:
                ahead = (
                    min(timeout_seconds, self._coming[0][0] - self.now) if self._coming else timeout_seconds
                )
                self._slept += ahead * self._measured
                self.now += ahead
            found = []
            while self._coming and self._coming[0][0] <= self.now + 1e-9:
                at, _, event = heapq.heappop(self._coming)
                found.append(event)
                if isinstance(event, EpochEnded):
                    self._asked[event.uid] = at
                elif isinstance(event, TrialEnded | TrialFailed):
                    again = at + RESTART_SECONDS if isinstance(event, TrialFailed) else at
                    self._free.append((again, event.worker))
            return found

    def decide(self, uid: str, verdict: Verdict) -> None:
        """Train on, or end."""
        with self._at_work():
            run = self._runs[uid]
            waited = self.now - self._asked.pop(uid)
            if self._measured:
                self.verdicts.append(waited)
            end = run.end() if verdict == "continue" else "pruned" if verdict == "prune" else "stopped"
            if end is None:
                self._train(run, self.now)
                return
            del self._runs[uid]
            whole = end in ("max_epochs", "early_stopping")
            epochs = range(1, run.epoch + 1)
            kept = run.best if end == "early_stopping" else run.epoch
            result = TrialResult(
                history={name: tuple(run.figures(epoch)[name] for epoch in epochs) for name in METRICS},
                epoch_seconds=tuple(map(float, run.seconds[: run.epoch])),
                end=end,  # type: ignore[arg-type]
                kept_epoch=kept,
                figures=run.figures(kept),
                **dict.fromkeys(MEASURED, 0.1 if whole else None),
            )
            self._tell(self.now, TrialEnded(uid, run.worker, result, {}))

    def withdraw(self) -> Sequence[str]:
        """Each task has a worker."""
        return ()

    def close(self) -> None:
        """Nothing is left."""

    @property
    def seconds(self) -> float:
        """How long it was measured."""
        return self._until - self._since

    @property
    def ramp(self) -> float:
        """Seconds until every worker had a task."""
        return self._since

    @property
    def busy(self) -> float:
        """Share of the workers' time in which they trained."""
        spans = np.clip(np.array(self._trained), self._since, self._until)
        return float((spans[:, 1] - spans[:, 0]).sum()) / (self._workers * self.seconds)

    @property
    def working(self) -> float:
        """Share of the time in which whoever drives this has worked."""
        return 1 - self._slept / self.seconds

    @property
    def _measured(self) -> bool:
        return self._since <= self.now < self._until

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Let the time go on that the caller has worked since the last call; the simulation itself takes none."""
        if self._trained:  # what comes before the first task takes no time
            worked = self._clock() - self._read
            self.worked += worked
            self.now += worked
        yield
        self._read = self._clock()

    def _train(self, run: _Run, begin: float) -> None:
        run.epoch += 1
        seconds = float(run.seconds[run.epoch - 1])
        if self._dice.random() < self._deaths:
            seconds *= self._dice.random()
            del self._runs[run.task.uid]
            self.dead += 1
            said = f"worker {run.worker} ended with signal SIGKILL"
            event: Event = TrialFailed(run.task.uid, run.worker, "worker_died", said)
        else:
            event = EpochEnded(run.task.uid, run.worker, run.epoch, run.figures(run.epoch), seconds)
        self._trained.append((begin, begin + seconds))
        self._tell(begin + seconds, event)

    def _tell(self, at: float, event: Event) -> None:
        self._told += 1
        heapq.heappush(self._coming, (at, self._told, event))
