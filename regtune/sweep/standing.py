"""How a study stands, read from its trials: counts, the best, the time spent. Nothing here is kept anywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from regtune.config import higher_is_better
from regtune.progress import FinishedTrial
from regtune.record import ORIGIN, State
from regtune.study import record_of


@dataclass(frozen=True)
class Tally:
    """Trials by their ends. failed: without those that were tried again. epochs: of all of them."""

    complete: int
    pruned: int
    failed: int
    waiting: int
    epochs: int

    @property
    def finished(self) -> int:
        """Trials that count in the budget."""
        return self.complete + self.pruned

    @classmethod
    def of(cls, trials: Sequence[FrozenTrial]) -> Tally:
        """Count."""
        states = [trial.state for trial in trials]
        retries = sum(trial.user_attrs.get(ORIGIN, {}).get("kind") == "retry" for trial in trials)
        return cls(
            complete=states.count(TrialState.COMPLETE),
            pruned=states.count(TrialState.PRUNED),
            failed=states.count(TrialState.FAIL) - retries,
            waiting=states.count(TrialState.WAITING),
            epochs=sum(len(trial.intermediate_values) for trial in trials),
        )


def ranked(trials: Sequence[FrozenTrial], metric: str) -> list[FrozenTrial]:
    """The complete trials, best first; of equal ones the earlier first."""
    found = [trial for trial in trials if trial.state is TrialState.COMPLETE and trial.value is not None]
    sign = -1.0 if higher_is_better(metric) else 1.0
    return sorted(found, key=lambda trial: (sign * (trial.value or 0.0), trial.number))


def spent_seconds(trials: Sequence[FrozenTrial]) -> float:
    """For how long at least one of `trials` was in an epoch: the length of the union of their epochs."""
    spans = []
    for trial in trials:
        record = record_of(trial)
        if record is not None:
            ends = [ended / 1000 for ended in record.epoch_ended_ms]
            spans += [(end - length, end) for end, length in zip(ends, record.epoch_seconds, strict=True)]
    total, until = 0.0, -math.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def finished_trial(trial: FrozenTrial) -> FinishedTrial:
    """A finished trial as it is shown."""
    record = record_of(trial)
    state: State = (
        "FAIL"
        if trial.state is TrialState.FAIL
        else "PRUNED"
        if trial.state is TrialState.PRUNED
        else "COMPLETE"
    )
    if record is None:
        return FinishedTrial(trial.number, state, trial.value, None, 0, 0.0, "", {}, None, None)
    accuracies = record.history.get("val_accuracy", ())
    accuracy = record.kept.figures["val_accuracy"] if record.kept else accuracies[-1] if accuracies else None
    return FinishedTrial(
        number=trial.number,
        state=state,
        value=trial.value,
        accuracy=accuracy,
        epochs=record.epochs,
        seconds=record.seconds,
        mix=record.config.mix,
        parameters=record.parameters,
        control=record.control,
        end_reason=record.end_reason,
        message=record.message,
    )
