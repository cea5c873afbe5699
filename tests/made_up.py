"""An executor whose trials have made-up figures and take no time: for tests of what a coordinator decides.

The executor that trains is tested in `test_executors.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from hashlib import sha256
from random import Random

from regtune.config.trial import METRICS
from regtune.executors import EpochEnded, Event, Task, TrialEnded, TrialFailed, TrialStarted, WorkerReady
from regtune.study.record import MEASURED
from regtune.training.result import TrialResult, Verdict

EPOCH_SECONDS = 0.25


def drawn(task: Task) -> float:
    """A floor of the loss that the configuration decides."""
    return Random(task.config.digest).uniform(0.1, 0.2)


class MadeUp:
    """One worker, which tells one event a call. The loss falls from epoch to epoch to the `floor` of a task.

    fate: of an epoch, asked before it ends: None, what fails the trial, or `non_finite`.
    """

    def __init__(
        self,
        floor: Callable[[Task], float] = drawn,
        fate: Callable[[Task, int], TrialFailed | str | None] = lambda task, epoch: None,
    ) -> None:
        self._floor = floor
        self._fate = fate
        self._events: deque[Event] = deque([WorkerReady(0, 0)])
        self._epoch, self._figures = 0, dict[str, float]()
        self.idle = 1
        self.submitted: list[Task] = []

    @property
    def waiting(self) -> int:
        """Events that have not been told."""
        return len(self._events)

    def submit(self, task: Task) -> None:
        self.idle, self._epoch, self._figures = 0, 0, {}
        self.submitted.append(task)
        self._events.append(TrialStarted(task.uid, 0))
        self._train(task)

    def events(self, timeout_seconds: float) -> Sequence[Event]:
        event = self._events.popleft()
        if isinstance(event, TrialEnded | TrialFailed):
            self.idle = 1
        return [event]

    def decide(self, uid: str, verdict: Verdict) -> None:
        task = self.submitted[-1]
        if verdict != "continue":
            self._end(task, "pruned" if verdict == "prune" else "stopped")
        elif self._epoch == task.config.training.max_epochs:
            self._end(task, "max_epochs")
        else:
            self._train(task)

    def withdraw(self) -> Sequence[str]:
        return ()

    def close(self) -> None:
        self._events.clear()

    def _train(self, task: Task) -> None:
        fate = self._fate(task, self._epoch + 1)
        if isinstance(fate, TrialFailed):
            self._events.append(fate)
        elif fate is not None:
            self._end(task, fate)
        else:
            self._epoch += 1
            self._figures = dict.fromkeys(METRICS, self._floor(task) + 0.3 * 2.0**-self._epoch)
            self._events.append(EpochEnded(task.uid, 0, self._epoch, self._figures, EPOCH_SECONDS))

    def _end(self, task: Task, end: str) -> None:
        whole, figures = end == "max_epochs", {} if end == "non_finite" else self._figures
        artifacts = {}
        if whole and task.folder and (task.threshold is None or figures[task.metric] < task.threshold):
            task.folder.mkdir(parents=True, exist_ok=True)
            (task.folder / "model.keras").write_bytes(b"weights")
            artifacts["model.keras"] = sha256(b"weights").hexdigest()
        result = TrialResult(
            history={name: (figures.get(name, 0.0),) * self._epoch for name in METRICS},
            epoch_seconds=(EPOCH_SECONDS,) * self._epoch,
            end=end,  # type: ignore[arg-type]
            kept_epoch=self._epoch,
            figures=figures,
            **dict.fromkeys(MEASURED, 0.1 if whole else None),
        )
        self._events.append(TrialEnded(task.uid, 0, result, artifacts))
