"""An executor whose trials have made-up figures and take no time: for tests of what a coordinator decides.

The executor that trains is tested in `test_executors.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from hashlib import sha256
from random import Random

from regtune.config.trial import METRICS
from regtune.executors import (
    EpochEnded,
    Event,
    Task,
    TrialEnded,
    TrialFailed,
    TrialStarted,
    WorkerReady,
)
from regtune.study.record import MEASURED
from regtune.training.result import TrialResult, Verdict

EPOCH_SECONDS = 0.25


def drawn(task: Task) -> float:
    """A floor of the loss that the configuration decides."""
    return Random(task.config.digest).uniform(0.1, 0.2)


def nothing(task: Task, epoch: int) -> TrialFailed | str | None:
    """Every epoch ends well."""
    return None


class MadeUp:
    """Tells one event a call. The loss falls from epoch to epoch to the `floor` of a task.

    fate: of an epoch, asked before it ends: None, what fails the trial, or `non_finite`.
    """

    def __init__(
        self,
        workers: int = 1,
        floor: Callable[[Task], float] = drawn,
        fate: Callable[[Task, int], TrialFailed | str | None] = nothing,
    ) -> None:
        self._floor = floor
        self._fate = fate
        self._free = list(range(workers))
        self._tasks: dict[str, tuple[Task, int]] = {}
        self._last: dict[str, EpochEnded] = {}
        self._events: deque[Event] = deque(WorkerReady(worker, 0) for worker in self._free)
        self.submitted: list[Task] = []

    @property
    def idle(self) -> int:
        return len(self._free)

    def submit(self, task: Task) -> None:
        self.submitted.append(task)
        self._tasks[task.uid] = task, self._free.pop()
        self._events.append(TrialStarted(task.uid, self._tasks[task.uid][1]))
        self._train(task.uid, 1)

    def events(self, timeout_seconds: float) -> Sequence[Event]:
        if not self._events:
            return []
        event = self._events.popleft()
        if isinstance(event, TrialEnded | TrialFailed):
            self._free.append(event.worker)
        return [event]

    def decide(self, uid: str, verdict: Verdict) -> None:
        task, epoch = self._tasks[uid][0], self._last[uid].epoch
        if verdict == "prune":
            self._end(uid, "pruned")
        elif verdict == "stop":
            self._end(uid, "stopped")
        elif epoch == task.config.training.max_epochs:
            self._end(uid, "max_epochs")
        else:
            self._train(uid, epoch + 1)

    def close(self) -> None:
        self._events.clear()

    def _train(self, uid: str, epoch: int) -> None:
        task, worker = self._tasks[uid]
        fate = self._fate(task, epoch)
        if isinstance(fate, TrialFailed):
            self._tasks.pop(uid)
            self._events.append(fate)
        elif fate is not None:
            self._end(uid, fate)
        else:
            figures = dict.fromkeys(METRICS, self._floor(task) + 0.3 * 2.0**-epoch)
            self._last[uid] = EpochEnded(uid, worker, epoch, figures, EPOCH_SECONDS)
            self._events.append(self._last[uid])

    def _end(self, uid: str, end: str) -> None:
        task, worker = self._tasks.pop(uid)
        whole = end == "max_epochs"
        last = self._last.get(uid)
        figures = last.figures if last and end != "non_finite" else {}
        epochs = last.epoch if last else 0
        artifacts = {}
        if whole and task.folder and (task.threshold is None or figures[task.metric] < task.threshold):
            task.folder.mkdir(parents=True, exist_ok=True)
            (task.folder / "model.keras").write_bytes(b"weights")
            artifacts["model.keras"] = sha256(b"weights").hexdigest()
        result = TrialResult(
            history={name: (figures.get(name, 0.0),) * epochs for name in METRICS},
            epoch_seconds=(EPOCH_SECONDS,) * epochs,
            end=end,  # type: ignore[arg-type]
            kept_epoch=epochs,
            figures=figures,
            **dict.fromkeys(MEASURED, 0.1 if whole else None),
        )
        self._events.append(TrialEnded(uid, worker, result, artifacts))
