"""How a study stands, read from its trials: counts, the order of the best, the time spent.

What a trial was when it ended it stays, so a look reads those that are new and those that had not ended: it costs the
same in a study of ten trials and of ten thousand, and a coordinator that takes over knows what the dead one knew.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import cast

from optuna.trial import FrozenTrial, TrialState

from regtune.config.trial import higher_is_better
from regtune.study.board import end_without_pauses
from regtune.study.progress import FinishedTrial
from regtune.study.record import CREATED, ORIGIN, RECORD, SPEC, State
from regtune.study.study import Study, record_of


@dataclass(frozen=True)
class Tally:
    """Trials by their ends. failed: without those that were tried again. epochs: of all of them.

    beside: how many of the complete and pruned ones are controls beside a grid.
    """

    complete: int
    pruned: int
    failed: int
    waiting: int
    epochs: int
    beside: int = 0

    @property
    def finished(self) -> int:
        """Trials that count in the budget."""
        return self.complete + self.pruned - self.beside


class Standing:
    """How `study` stands whenever it is asked. `metric` says which way is better."""

    def __init__(self, study: Study, metric: str) -> None:
        self._study = study
        self._sign = -1.0 if higher_is_better(metric) else 1.0
        self._seen = 0
        self._open: set[int] = set()
        self._ended = dict.fromkeys(TrialState, 0)
        self._epochs = 0
        self._retries = 0
        self._grid = study.attributes[SPEC].get("method") == "grid"
        self._beside = 0
        self._order: list[tuple[float, int]] = []
        self._best: FinishedTrial | None = None

    @property
    def tally(self) -> Tally:
        """The counts."""
        trials = self._look()
        open_ = [trials[number] for number in self._open]
        return Tally(
            complete=self._ended[TrialState.COMPLETE],
            pruned=self._ended[TrialState.PRUNED],
            failed=self._ended[TrialState.FAIL] - self._retries,
            waiting=sum(trial.state is TrialState.WAITING for trial in open_),
            epochs=self._epochs + sum(len(trial.intermediate_values) for trial in open_),
            beside=self._beside,
        )

    def best(self, count: int | None = None) -> list[int]:
        """Numbers of complete trials, the best first, of equal ones the earlier first; at most `count`."""
        self._look()
        return [number for _, number in self._order[:count]]

    def value(self, place: int) -> float | None:
        """The value of the complete trial at `place`, counted from 1; None when there are fewer."""
        self._look()
        return self._sign * self._order[place - 1][0] if place <= len(self._order) else None

    @property
    def winner(self) -> FinishedTrial | None:
        """The best trial as it is shown."""
        trials = self._look()
        if not self._order:
            return None
        number = self._order[0][1]
        if self._best is None or self._best.number != number:
            self._best = finished_trial(trials[number])
        return self._best

    def _look(self) -> Sequence[FrozenTrial]:
        trials = self._study.trials()
        for trial in trials[self._seen :]:
            self._open.add(trial.number)
            self._retries += trial.user_attrs.get(ORIGIN, {}).get("kind") == "retry"
        self._seen = len(trials)
        for number in [number for number in self._open if trials[number].state.is_finished()]:
            trial = trials[number]
            self._open.remove(number)
            self._ended[trial.state] += RECORD in trial.user_attrs  # without one it was never trained
            self._epochs += len(trial.intermediate_values)
            self._beside += self._grid and trial.state is not TrialState.FAIL and not trial.params
            if trial.state is TrialState.COMPLETE and trial.value is not None:
                bisect.insort(self._order, (self._sign * trial.value, number))
        return trials


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


def shown_end(study: Study) -> int | None:
    """The end of a study as MLflow shows it, see `end_without_pauses`."""
    spans = [
        (trial.datetime_start.astimezone(UTC), trial.datetime_complete.astimezone(UTC))
        for trial in study.trials()
        if trial.datetime_start and trial.datetime_complete
    ]
    return end_without_pauses(study.attributes.get(CREATED), spans)


def finished_trial(trial: FrozenTrial) -> FinishedTrial:
    """A finished trial as it is shown."""
    return FinishedTrial.of(trial.number, cast("State", trial.state.name), trial.value, record_of(trial))
