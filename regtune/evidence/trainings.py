"""Trainings for measurement alone, through the loop of a sweep: nothing is stored, all comes back."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regtune.config.trial import TrialConfig
from regtune.executors import Executor, Sample, Task
from regtune.study.record import TrialRecord
from regtune.study.study import now_ms
from regtune.sweep.loop import Loop, Running
from regtune.training.result import Verdict


@dataclass(frozen=True)
class Job:
    """One training to do. key: what it is for. predictions: whether its class probabilities are wanted."""

    key: Hashable
    config: TrialConfig
    sample: Sample | None = None
    predictions: bool = False


@dataclass(frozen=True)
class Trained:
    """A training that has ended. predictions: `(validation images, classes)`, of one that came to its own end."""

    record: TrialRecord
    predictions: NDArray[np.float32] | None

    @property
    def complete(self) -> bool:
        return self.record.kept is not None


def train_all(
    executor: Executor,
    jobs: Sequence[Job],
    seconds: float | None = None,
    on_ended: Callable[[int], None] = lambda count: None,
) -> dict[Hashable, Trained]:
    """Train `jobs` in their order, and return what has ended, by key.

    seconds: after these no training is begun, and those under way end with their epoch, without kept weights.
    on_ended: told how many have ended.
    """
    begun = time.monotonic()
    waiting, keys = deque(jobs), dict[str, Hashable]()
    ended = dict[Hashable, Trained]()
    predictions = dict[str, NDArray[np.float32]]()

    def over() -> bool:
        return seconds is not None and time.monotonic() - begun > seconds

    def decide(running: Running, figures: Mapping[str, float]) -> Verdict:
        return "stop" if over() else "continue"

    loop = Loop(executor, decide, on_predictions=predictions.__setitem__)
    while loop.running or (waiting and not over()):
        while waiting and executor.idle and not over():
            job = waiting.popleft()
            uid = f"diagnose-{len(keys)}"
            keys[uid] = job.key
            task = Task(
                uid=uid,
                config=job.config,
                metric="val_cross_entropy",
                folder=None,
                sample=job.sample,
                predictions=job.predictions,
            )
            loop.submit(task, TrialRecord(uid=uid, config=job.config, parameters={}, started_ms=now_ms()))
        for record in loop.turn():
            predicted = predictions.pop(record.uid, None)
            ended[keys[record.uid]] = Trained(record, predicted if record.kept else None)
            on_ended(len(ended))
    return ended
