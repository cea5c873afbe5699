"""A sampler's view of a study: its own search space, at most 300 finished trials.

A study holds trials beside the search: controls, which have no parameters, and what another program has put there.
Optuna's samplers would take them for evidence, lose their search space over them, or fail.

TPE's time grows with the trials it is shown; benchmarks/bench_history.py measures what a part of them costs.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from itertools import islice

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from regtune.config.sweepfile import SweepSpec
from regtune.search import Space

BEST, RECENT = 50, 250
"""How many finished trials TPE is shown at most: the best, and of the others the latest."""

_Goodness = tuple[float, ...]


class History:
    """The trials of a study that a sampler is shown: those of `space`, and when many have ended, some of these.

    best, recent: then the `best`, and of the others the `recent` latest; best=None: all. TPE models the best tenth, at
    most 25 trials, and all others (Bergstra et al. 2011, section 4; Optuna's `gamma`). The first model is the same as
    with all trials, as long as `best` is not smaller than that; the second has a sample of its trials.

    One object for all asks of one study looks at each trial once after its end.
    """

    def __init__(self, space: Space, best: int | None = BEST, recent: int = RECENT) -> None:
        self._roots = space.roots
        self._names = space.distributions.keys()
        self._best = best
        self._recent = recent
        self._ended: dict[int, _Goodness] = {}

    @classmethod
    def of(cls, spec: SweepSpec, space: Space) -> History:
        """Return the history of a spec's method: bounded for TPE, whose cost grows with it, else whole."""
        return cls(space) if spec.method == "tpe" else cls(space, best=None)

    def shown(self, trials: Sequence[FrozenTrial], direction: StudyDirection) -> list[FrozenTrial]:
        """Return the trials that are shown of all `trials` of a study, in their order."""
        for trial in trials:
            if trial.number not in self._ended and trial.state.is_finished():
                self._ended[trial.number] = _goodness(trial, direction) if self._counts(trial) else ()
        ended = [trial for trial in trials if self._ended.get(trial.number)]
        running = [trial for trial in trials if trial.number not in self._ended and self._of_the_space(trial)]
        if self._best is None or len(ended) <= self._best + self._recent:
            return sorted([*ended, *running])
        best = heapq.nsmallest(self._best, ended, key=lambda trial: (self._ended[trial.number], trial.number))
        numbers = {trial.number for trial in best}
        latest = islice((trial for trial in reversed(ended) if trial.number not in numbers), self._recent)
        return sorted([*best, *latest, *running])

    def _counts(self, trial: FrozenTrial) -> bool:
        return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and self._of_the_space(trial)

    def _of_the_space(self, trial: FrozenTrial) -> bool:
        return self._roots <= trial.params.keys() <= self._names


def _goodness(trial: FrozenTrial, direction: StudyDirection) -> _Goodness:
    """TPE's order of trials, the best first: complete ones by value, then pruned ones, the longer trained first."""
    sign = -1.0 if direction is StudyDirection.MAXIMIZE else 1.0
    if trial.state is TrialState.COMPLETE:
        return 0, 0, sign * (trial.value or 0.0)
    step = trial.last_step
    if step is None:
        return 2, 0, 0.0
    amount = trial.intermediate_values[step]
    return 1, -step, math.inf if math.isnan(amount) else sign * amount
