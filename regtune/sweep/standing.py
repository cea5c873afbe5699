"""The standing of a study: counts, the best trials of the search, what was queued, which points of a grid are trained.

An ended trial never changes, so each look reads only the trials that are new and those still open: it costs the same
in a study of ten trials and of ten thousand.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from optuna.trial import FixedTrial, FrozenTrial, TrialState

from regtune.config.trial import higher_is_better
from regtune.search import Space
from regtune.study.board import covered
from regtune.study.progress import Row, Tally
from regtune.study.record import ORIGIN, RECORD, Value
from regtune.study.study import Study, record_of

Point = tuple[Value, ...]


class Standing:
    """The standing of `study`, whose trials are of `space`, at the moment it is asked for."""

    def __init__(self, study: Study, space: Space) -> None:
        self._study = study
        self._space = space
        self._sign = -1.0 if higher_is_better(space.spec.metric.name) else 1.0
        self._grid = space.spec.method == "grid"
        self._seen = 0
        self._open: set[int] = set()
        self._ended = dict.fromkeys(TrialState, 0)
        self._epochs = 0
        self._retries = 0
        self._beside = 0
        self._order: list[tuple[float, int]] = []
        self._queued: set[str] = set()
        self._points: set[Point] = set()
        self._winner: Row | None = None

    @property
    def tally(self) -> Tally:
        trials = self._look()
        open_ = [trials[number] for number in self._open]
        return Tally(
            complete=self._ended[TrialState.COMPLETE],
            pruned=self._ended[TrialState.PRUNED],
            failed=self._ended[TrialState.FAIL] - self._retries,
            waiting=sum(trial.state is TrialState.WAITING for trial in open_),
            trial_epochs=self._epochs + sum(len(trial.intermediate_values) for trial in open_),
            beside=self._beside,
        )

    def best(self, count: int | None = None) -> list[int]:
        """Numbers of complete trials, the best first, of equal ones the earlier first; at most `count`.

        Controls outside the search space are not among them.
        """
        self._look()
        return [number for _, number in self._order[:count]]

    def value(self, place: int) -> float | None:
        """The value of the trial at `place` of the best, counted from 1; None when there are fewer."""
        self._look()
        return self._sign * self._order[place - 1][0] if place <= len(self._order) else None

    @property
    def winner(self) -> Row | None:
        trials = self._look()
        if not self._order:
            return None
        number = self._order[0][1]
        if self._winner is None or self._winner.number != number:
            trial = trials[number]
            self._winner = Row(number, "COMPLETE", trial.value, record_of(trial))
        return self._winner

    def has_queued(self, key: str) -> bool:
        self._look()
        return key in self._queued

    @property
    def ended_points(self) -> set[Point]:
        """The points of a grid whose trials have ended, whoever wanted them."""
        self._look()
        return self._points

    @property
    def known_points(self) -> set[Point]:
        """The same, and those in training."""
        trials = self._look()
        return self._points | self._points_of(trials[number] for number in self._open)

    def _points_of(self, trials: Iterable[FrozenTrial]) -> set[Point]:
        own = (trial for trial in trials if RECORD in trial.user_attrs)  # not another program's
        fixed = (FixedTrial(trial.params) for trial in own if trial.params)
        return {tuple(self._space.suggest(trial).values()) for trial in fixed}

    def _look(self) -> Sequence[FrozenTrial]:
        trials = self._study.trials()
        for trial in trials[self._seen :]:
            self._open.add(trial.number)
            if origin := trial.user_attrs.get(ORIGIN):
                self._queued.add(origin["key"])
                self._retries += origin["kind"] == "retry"
        self._seen = len(trials)
        for trial in [trials[number] for number in self._open if trials[number].state.is_finished()]:
            self._open.remove(trial.number)
            self._end(trial)
        return trials

    def _end(self, trial: FrozenTrial) -> None:
        self._ended[trial.state] += RECORD in trial.user_attrs  # without one it was never trained
        self._epochs += len(trial.intermediate_values)
        if trial.state is TrialState.COMPLETE and trial.value is not None and trial.params:
            bisect.insort(self._order, (self._sign * trial.value, trial.number))
        if self._grid:
            self._beside += trial.state is not TrialState.FAIL and not trial.params
            self._points |= self._points_of([trial])


def spent_seconds(trials: Sequence[FrozenTrial]) -> float:
    """For how long at least one of `trials` was in an epoch: the length of the union of their epochs."""
    spans = []
    for record in filter(None, map(record_of, trials)):
        ends = [datetime.fromtimestamp(ended / 1000, UTC) for ended in record.epoch_ended_ms]
        lengths = [timedelta(seconds=seconds) for seconds in record.epoch_seconds]
        spans += [(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    return covered(spans)
