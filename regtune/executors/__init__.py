"""Executors: the training of trials in other processes, and its events.

`local` runs warm worker processes on this machine. An executor knows configurations and data; it never sees a study, a
database or MLflow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from regtune.config.trial import TrialConfig
from regtune.data.datasets import Data
from regtune.training.result import TrialResult, Verdict


@dataclass(frozen=True)
class Sample:
    """The images to train on, in place of the split's.

    images: how many, the first of the split's; None for all. bootstrap: seed of as many drawn with replacement.
    validation: the validation images besides; figures over them then say nothing about images that were not seen.
    """

    images: int | None = None
    bootstrap: int | None = None
    validation: bool = False

    def draw(self, data: Data) -> Data:
        """Return `data` with this sample in place of its training images. Raises ValueError where it has fewer."""
        count = len(data.x_train)
        size = count if self.images is None else self.images
        if size > count:
            raise ValueError(
                f"a sample of {size:,} images was asked for; the split has {count:,} to train on"
            )
        rows = np.arange(size)
        if self.bootstrap is not None:
            rows = np.random.default_rng(self.bootstrap).integers(size, size=size)
        x_train, y_train = data.x_train[rows], data.y_train[rows]
        if self.validation:
            x_train, y_train = np.concatenate([x_train, data.x_val]), np.concatenate([y_train, data.y_val])
        return replace(data, x_train=x_train, y_train=y_train)


@dataclass(frozen=True)
class Task:
    """One trial to train.

    folder: gets `model.keras` when the kept weights' `metric` is better than `threshold` (None: always); None: never.
    timeout_seconds: of training; what a trial waits for its verdicts does not count. memory_bytes: of its worker.
    Beyond them the trial is ended at once, with its worker, which is replaced.
    tolerance: measure calibration and the share of weights that can be set to zero before validation accuracy falls by
    this much (`TrialResult.extra`); None measures neither. sample: the training images, all of them by default.
    predictions: whether the end brings class probabilities of the validation images.
    """

    uid: str
    config: TrialConfig
    metric: str
    folder: Path | None
    threshold: float | None = None
    timeout_seconds: float | None = None
    memory_bytes: int | None = None
    tolerance: float | None = None
    sample: Sample | None = None
    predictions: bool = False


@dataclass(frozen=True)
class WorkerReady:
    """A worker has imported what it needs and waits for a task."""

    worker: int
    pid: int


@dataclass(frozen=True)
class TrialStarted:
    uid: str
    worker: int


@dataclass(frozen=True)
class EpochEnded:
    """An epoch ended. The worker waits for `Executor.decide`. `epoch` counts from 1; `figures` has the six METRICS."""

    uid: str
    worker: int
    epoch: int
    figures: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class TrialEnded:
    """A task came to its end.

    artifacts: the files written and their SHA-256. predictions: of the kept weights, `(images, classes) float32`, where
    the task asked and weights were kept.
    """

    uid: str
    worker: int
    result: TrialResult
    artifacts: Mapping[str, str]
    predictions: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class TrialFailed:
    """A task was ended by an error, its worker's death, its timeout or its memory.

    disk_full: it was trained, but there is no room for its model in the folder that `message` names.
    """

    uid: str
    worker: int
    reason: Literal["error", "worker_died", "timeout", "out_of_memory", "disk_full"]
    message: str


@dataclass(frozen=True)
class WorkerDied:
    """A worker without a task is gone; it is being replaced."""

    worker: int
    message: str


Event = WorkerReady | TrialStarted | EpochEnded | TrialEnded | TrialFailed | WorkerDied


class Executor(Protocol):
    """Where trials are trained.

    **One task a worker.** `idle` says how many tasks can be submitted now; a task beyond them is refused.
    **Epochs are answered.** After each EpochEnded its trial waits until `decide` is called once.
    **Workers are replaced.** A worker that dies fails its task, and another takes its place.
    """

    @property
    def idle(self) -> int:
        """Workers that can take a task now, those still starting among them."""

    def submit(self, task: Task) -> None:
        """Hand a task to an idle worker. Raises WorkerError when there is none."""

    def events(self, timeout_seconds: float) -> Sequence[Event]:
        """What has happened since the last call; waits for at most `timeout_seconds` when nothing has."""

    def decide(self, uid: str, verdict: Verdict) -> None:
        """Answer an epoch."""

    def withdraw(self) -> Sequence[str]:
        """Take back the tasks that no worker has yet, as if they had not been submitted; return their uids."""

    def close(self) -> None:
        """End every worker at once; nothing is left behind."""
