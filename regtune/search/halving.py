"""Successive halving and hyperband with Optuna's decisions, at a cost that does not grow with the study."""

from __future__ import annotations

import bisect
import math
from binascii import crc32
from collections import defaultdict
from collections.abc import Callable, Sequence

from optuna import Study
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

RUNGS = "regtune.rungs"
"""Attribute of a trial: its value at each rung that it has reached."""
Mark = Callable[[int, str, list[float]], None]
"""Writes an attribute of a trial, by the trial's number."""


class HalvingPruner(BasePruner):
    """Optuna's SuccessiveHalvingPruner (Li et al. 2020) and HyperbandPruner (Li et al. 2018), decision for decision.

    Those read all trials whenever a trial reaches a rung. This one reads them once, then keeps each rung's values in
    order, so it is of one study whose rungs nobody else writes.

    Args:
        mark: writes what a trial has reached.
        first: epoch of the first rung of the first bracket.
        eta: ratio of one rung to the next and of the trials that pass.
        brackets: each begins a rung later than the one before; 1 is successive halving.
        last: no rung stands at a later epoch.
    """

    def __init__(self, mark: Mark, first: int, eta: int, brackets: int = 1, last: float = math.inf) -> None:
        self._mark = mark
        self._first = first
        self._eta = eta
        self._last = last
        self._shares = [math.ceil(brackets * eta ** (left - 1) / left) for left in range(brackets, 0, -1)]
        self._values: dict[tuple[int, int], list[float]] = {}

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial ends at its last epoch; a rung that it reaches is marked.

        One that was marked there before is judged again: whoever was to end it was killed meanwhile.
        """
        step, reached = trial.last_step, list(_reached(trial))
        bracket = self._bracket(study, trial)
        if reached and step == self._epoch(bracket, len(reached) - 1):
            return self._ends(study, reached[-1], self._rung(study, bracket, len(reached) - 1))
        while step is not None and self._last >= self._epoch(bracket, len(reached)) <= step:
            value = trial.intermediate_values[step]
            if math.isnan(value):
                return True
            values = self._rung(study, bracket, len(reached))
            reached.append(value)
            self._mark(trial.number, RUNGS, reached)
            bisect.insort(values, value)
            if self._ends(study, value, values):
                return True
        return False

    def _epoch(self, bracket: int, rung: int) -> int:
        return int(self._first * self._eta ** (bracket + rung))

    def _ends(self, study: Study, value: float, values: Sequence[float]) -> bool:
        """Whether a value is not among the best of its rung."""
        place = max(1, len(values) // self._eta)
        if study.direction is StudyDirection.MAXIMIZE:
            return value < values[-place]
        return value > values[place - 1]

    def _rung(self, study: Study, bracket: int, rung: int) -> list[float]:
        """Values of the trials that have reached a rung of a bracket, in ascending order."""
        if not self._values:
            self._values = defaultdict(list)
            for trial in study.get_trials(deepcopy=False):
                for at, value in enumerate(_reached(trial)):
                    bisect.insort(self._values[self._bracket(study, trial), at], value)
        return self._values[bracket, rung]

    def _bracket(self, study: Study, trial: FrozenTrial) -> int:
        """The bracket that a trial's number falls into, by the brackets' shares."""
        place = crc32(f"{study.study_name}_{trial.number}".encode()) % sum(self._shares)
        return next(at for at in range(len(self._shares)) if place < sum(self._shares[: at + 1]))


def _reached(trial: FrozenTrial) -> Sequence[float]:
    """Its values at the rungs that it has reached."""
    reached: Sequence[float] = trial.user_attrs.get(RUNGS, ())
    return reached
