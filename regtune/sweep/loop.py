"""The event loop over an executor: submits tasks, answers epochs, returns the records of ended trials.

It knows no study, no database and no MLflow. What is submitted next, and what becomes of a record, is its caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from regtune.errors import StorageError
from regtune.executors import EpochEnded, Executor, Task, TrialEnded, TrialFailed, TrialStarted, WorkerDied
from regtune.storage import DISK_FULL
from regtune.study.record import EndReason, Kept, TrialRecord
from regtune.study.study import now_ms
from regtune.training.result import Verdict

TICK_SECONDS = 0.25


@dataclass
class Running:
    """A task in a worker's hands. `epoch`: how many epochs this attempt has trained."""

    record: TrialRecord
    epoch: int = 0


class Loop:
    """Tasks on `executor`, from their submission to their end.

    on_epoch: decides what follows an epoch, given its figures; the record does not have them yet.
    on_record: called with the record after each epoch, once the worker was answered and trains on.
    note: told of a worker that died without a task.
    on_predictions: called with a task's uid and the predictions that it asked for, before its record is yielded.
    """

    def __init__(
        self,
        executor: Executor,
        on_epoch: Callable[[Running, Mapping[str, float]], Verdict],
        on_record: Callable[[TrialRecord], None] = lambda record: None,
        note: Callable[[str], None] = lambda message: None,
        on_predictions: Callable[[str, NDArray[np.float32]], None] = lambda uid, predictions: None,
    ) -> None:
        self._executor = executor
        self._on_epoch = on_epoch
        self._on_record = on_record
        self._note = note
        self._on_predictions = on_predictions
        self.running: dict[str, Running] = {}
        """What was submitted and has not ended, by uid."""

    def submit(self, task: Task, record: TrialRecord) -> None:
        """Hand a task to an idle worker. `record`: what is known of it, from an attempt that was interrupted too."""
        self.running[task.uid] = Running(record)
        self._executor.submit(task)

    def withdraw(self) -> list[str]:
        """Take back what no worker has begun with for want of a worker; return the uids."""
        uids = [*self._executor.withdraw()]
        for uid in uids:
            del self.running[uid]
        return uids

    def turn(self, wait: bool = True) -> Iterator[TrialRecord]:
        """Deal with what has happened, and yield the records of tasks that ended.

        wait: for at most TICK_SECONDS, where nothing has.

        Raises StorageError when the disk is full; the task then still counts as running.
        """
        for event in self._executor.events(TICK_SECONDS if wait else 0.0):
            match event:
                case TrialStarted():
                    running = self.running[event.uid]
                    running.record = replace(running.record, worker=event.worker)
                case EpochEnded():
                    self._epoch_ended(self.running[event.uid], event)
                case TrialEnded():
                    if event.predictions is not None:
                        self._on_predictions(event.uid, event.predictions)
                    yield _trial_ended(self.running.pop(event.uid), event)
                case TrialFailed():
                    if event.reason == "disk_full":
                        raise StorageError(f"{event.message}: {DISK_FULL}")
                    yield _ended(self.running.pop(event.uid).record, event.reason, event.message)
                case WorkerDied():
                    self._note(f"{event.message}; another takes its place")

    def _epoch_ended(self, running: Running, event: EpochEnded) -> None:
        running.epoch = event.epoch
        self._executor.decide(event.uid, self._on_epoch(running, event.figures))
        running.record = running.record.after_epoch(event.epoch, event.figures, event.seconds, now_ms())
        self._on_record(running.record)


def _trial_ended(running: Running, event: TrialEnded) -> TrialRecord:
    end = event.result.end
    try:
        kept = Kept.of(event.result)
    except ValueError as error:  # finite in every epoch, and yet not in the end
        return _ended(running.record, "error", str(error))
    record = replace(running.record, kept=kept, artifacts=dict(event.artifacts))
    message = f"the loss became non-finite in epoch {running.epoch + 1}" if end == "non_finite" else None
    return _ended(record, end, message)


def _ended(record: TrialRecord, reason: EndReason, message: str | None) -> TrialRecord:
    return replace(record, again=None, ended_ms=now_ms(), end_reason=reason, message=message)
