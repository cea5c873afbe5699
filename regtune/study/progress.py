"""The progress of a sweep: values that the coordinator and `watch` produce and displays draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from regtune.study.record import EndReason, State, TrialRecord, Value


@dataclass(frozen=True)
class RunningTrial:
    """A trial in training. `curve`: the sweep's metric at each epoch so far."""

    number: int
    control: str | None
    mix: str
    parameters: Mapping[str, Value]
    worker: int
    epoch: int
    max_epochs: int
    curve: tuple[float, ...]


@dataclass(frozen=True)
class FinishedTrial:
    """A trial at its end. `value` and validation `accuracy`: those of the kept weights, None where there are none."""

    number: int
    state: State
    value: float | None
    accuracy: float | None
    epochs: int
    seconds: float
    mix: str
    parameters: Mapping[str, Value]
    control: str | None
    end_reason: EndReason | None
    message: str | None = None

    @classmethod
    def of(cls, number: int, state: State, value: float | None, record: TrialRecord | None) -> FinishedTrial:
        """A trial as it lies in the study; without a record where it never started."""
        if record is None:
            return cls(number, state, value, None, 0, 0.0, "", {}, None, None)
        return cls(
            number=number,
            state=state,
            value=value,
            accuracy=record.figure("val_accuracy"),
            epochs=record.epochs,
            seconds=record.seconds,
            mix=record.config.mix,
            parameters=record.parameters,
            control=record.control,
            end_reason=record.end_reason,
            message=record.message,
        )


@dataclass(frozen=True)
class Progress:
    """A sweep at one moment.

    `starting`: running trials whose workers still start, as the coordinator knows it. `tracking`: one phrase on how
    far MLflow is, empty when there is nothing to say. `beside`: how many of the complete and pruned ones are controls
    beside a grid.
    """

    study: str
    metric: str
    goal: str
    run_cap: int | None
    timeout_seconds: float | None
    complete: int
    pruned: int
    failed: int
    waiting: int
    elapsed_seconds: float
    remaining_seconds: float | None
    trial_epochs: int
    best: FinishedTrial | None
    running: tuple[RunningTrial, ...]
    starting: int = 0
    tracking: str = ""
    beside: int = 0

    @property
    def finished(self) -> int:
        """Trials that count in the budget: complete or pruned, of a grid its points."""
        return self.complete + self.pruned - self.beside


class Observer(Protocol):
    """Who watches a sweep; called from the coordinator's loop, so each call must return at once."""

    def progress(self, progress: Progress) -> None:
        """Show that something changed."""

    def finished(self, trial: FinishedTrial, progress: Progress) -> None:
        """Show that a trial ended."""

    def note(self, message: str) -> None:
        """Something worth one line."""


def remaining_seconds(
    *, run_cap: int | None, timeout: float | None, finished: int, spent: float, pace: float | None
) -> float | None:
    """Seconds until a budget is used, whichever of its limits comes first; None when nothing is known.

    finished: trials that count in `run_cap`. spent: seconds that count in `timeout`. pace: seconds a finished trial,
    None before there is one.
    """
    left = []
    if run_cap is not None and pace is not None:
        left.append(pace * max(0, run_cap - finished))
    if timeout is not None:
        left.append(max(0.0, timeout - spent))
    return min(left, default=None)
