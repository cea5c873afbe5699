"""What a sampler sees of a study: the trials of one space, and of very many a part.

A study holds trials beside the search: controls, which have no parameters, and what another program has put there.
Optuna's samplers would take them for evidence, lose their search space over them, or fail.

TPE's time grows with the trials it is shown, and an ask in a study of 10,000 would take a fifth of a second. It is
shown a part of a long `History`; benchmarks/bench_history.py measures what that costs.
"""

from __future__ import annotations

import bisect
import copy
import math
from collections.abc import Callable, Container, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from regtune.search import Space

if TYPE_CHECKING:
    from optuna import Study


BEST, RECENT = 50, 250
"""How many finished trials TPE is shown at most: the best, and of the others the latest."""

TOLD = (TrialState.COMPLETE, TrialState.PRUNED)


class Values:
    """Parameters of ended trials in Optuna's internal form: a row a trial number, of NaN where one of them is missing.

    group: the parameters and their distributions, in the order of the columns.
    """

    def __init__(self, group: Mapping[str, BaseDistribution]) -> None:
        self.group = dict(group)
        self._rows = np.empty((0, len(group)))
        self._known = np.empty(0, dtype=bool)

    def of(
        self, numbers: NDArray[np.intp], parameters: Callable[[int], tuple[Mapping[str, Any], bool]]
    ) -> NDArray[np.float64]:
        """The rows of trials with these numbers that have all parameters, in their order.

        parameters: of a trial that is not known yet, and whether it has ended, so that they will not change.
        """
        missing = numbers.max(initial=-1) + 1 - len(self._known)
        if missing > 0:
            missing += len(self._known)  # room for as many again
            self._rows = np.pad(self._rows, ((0, missing), (0, 0)))
            self._known = np.pad(self._known, (0, missing))
        for number in numbers[~self._known[numbers]].tolist():
            given, ended = parameters(number)
            self._rows[number] = [
                distribution.to_internal_repr(given[name]) if self.group.keys() <= given.keys() else math.nan
                for name, distribution in self.group.items()
            ]
            self._known[number] = ended
        found = self._rows[numbers]
        return found[~np.isnan(found[:, 0])]


class History:
    """What a sampler is shown of a study: the trials of `space`, and when many have ended, some of these.

    best, recent: then the `best`, and of the others the `recent` latest. TPE models the best tenth, at most 25 trials,
    and all others (Bergstra et al. 2011, section 4; Optuna's `gamma`). The first model is the same as with all trials,
    as long as `best` is not smaller than that; the second has a sample of its trials. The order is TPE's own: complete
    trials by their value, then pruned ones, the longer trained first.

    What a trial was when it ended it stays, so one object for all looks at a study reads each trial once.

    told: numbers of the complete and the pruned trials that were shown last, in order. searched: the search space that
    a sampler found last, and the trials that decided it. dice: for the sampler that is asked now, which seeds it.
    """

    def __init__(self, space: Space, best: int | None = BEST, recent: int = RECENT) -> None:
        self._roots = space.roots
        self._names = space.distributions.keys()
        self._best = best
        self._recent = recent
        self._read = 0
        self._open: set[int] = set()
        self._ended: list[int] = []
        self.told: Sequence[int] = ()
        self._order: list[tuple[tuple[int, int, float], int]] = []
        self._values: dict[tuple[str, ...], Values] = {}
        self.searched: tuple[Sequence[FrozenTrial], Any] = ((), None)
        self.dice = np.random.RandomState()

    def shown(self, trials: Sequence[FrozenTrial], direction: StudyDirection) -> list[FrozenTrial]:
        """The trials that are shown of all `trials` of a study, which are in the order of their numbers."""
        self._open.update(range(self._read, len(trials)))
        self._read = len(trials)
        for number in sorted(number for number in self._open if trials[number].state.is_finished()):
            self._open.remove(number)
            trial = trials[number]
            if trial.state in TOLD and self._of_the_space(trial):
                bisect.insort(self._ended, number)
                bisect.insort(self._order, (_goodness(trial, direction), number))
        if self._best is None or len(self._ended) <= self._best + self._recent:
            self.told = self._ended
            return [trial for trial in trials if self._of_the_space(trial)]
        kept = {number for _, number in self._order[: self._best]}
        latest = (number for number in reversed(self._ended) if number not in kept)
        kept.update(list(islice(latest, self._recent)))
        self.told = sorted(kept)
        kept.update(number for number in self._open if self._of_the_space(trials[number]))
        return [trials[number] for number in sorted(kept)]

    def good(self, count: int) -> list[int]:
        """The numbers of the `count` best of `told`, in their order there."""
        told = set(self.told)
        return sorted(islice((number for _, number in self._order if number in told), count))

    def values(self, group: Mapping[str, BaseDistribution]) -> Values:
        """What is known of a group of parameters that are proposed together."""
        found = self._values.get(tuple(group))
        if found is None or found.group != group:
            found = self._values[tuple(group)] = Values(group)
        return found

    def _of_the_space(self, trial: FrozenTrial) -> bool:
        return self._roots <= trial.params.keys() <= self._names


def _goodness(trial: FrozenTrial, direction: StudyDirection) -> tuple[int, int, float]:
    """The order in which TPE takes trials for good ones, the best first."""
    sign = -1.0 if direction is StudyDirection.MAXIMIZE else 1.0
    if trial.state is TrialState.COMPLETE:
        return 0, 0, sign * (trial.value or 0.0)
    step = max(trial.intermediate_values, default=None)
    if step is None:
        return 2, 0, 0.0
    amount = trial.intermediate_values[step]
    return 1, -step, math.inf if math.isnan(amount) else sign * amount


class Shown:
    """A study as a sampler may see it: some of its trials."""

    def __init__(self, study: Study, shown: Sequence[FrozenTrial]) -> None:
        self._seen = study
        self._shown = shown
        self._of: dict[Container[TrialState] | None, list[FrozenTrial]] = {}

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        found = self._of.get(states) if isinstance(states, tuple) else None
        if found is None:
            found = [trial for trial in self._shown if states is None or trial.state in states]
        if isinstance(states, tuple):
            self._of[states] = found
        return copy.deepcopy(found) if deepcopy else list(found)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._seen, name)


class View(Shown):
    """What `history` shows of a study while one trial is proposed: one coordinator writes, and waits for that.

    trials: all of the study. told: numbers of those shown that have been told, in order. open: those shown that run or
    wait.
    """

    def __init__(self, study: Study, history: History) -> None:
        self.trials = study._get_trials(deepcopy=False, states=None, use_cache=False)
        super().__init__(study, history.shown(self.trials, study.direction))
        self.history = history
        self.told = history.told
        self.open = [trial for trial in self._shown if not trial.state.is_finished()]

    @cached_property
    def kinds(self) -> Sequence[FrozenTrial]:
        """The first told trial of each state and set of distributions: nothing else decides a search space."""
        first: dict[tuple[bool, int], FrozenTrial] = {}
        for trial in map(self.trials.__getitem__, self.told):
            first.setdefault((trial.state is TrialState.COMPLETE, id(trial.distributions)), trial)
        return list(first.values())


class OfTheSpace(BaseSampler):
    """Optuna's sampler, seeing the trials of one space. Mixed in before a sampler of Optuna's.

    history: what it is shown; set it before the first ask.
    """

    history: History
    _last: tuple[int, Study, View] | None = None

    def _view(self, study: Study, trial: FrozenTrial) -> View:
        """One view for all that is asked in a row about one trial."""
        if self._last is None or self._last[:2] != (trial.number, study):
            self._last = trial.number, study, View(study, self.history)
        return self._last[2]

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._last = None
        super().before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        view = self._view(study, trial)
        few = cast("Study", Shown(study, [*view.kinds, *view.open]))
        return super().infer_relative_search_space(few, trial)  # type: ignore[safe-super]

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        view = cast("Study", self._view(study, trial))
        return super().sample_relative(view, trial, search_space)  # type: ignore[safe-super]

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        view = cast("Study", self._view(study, trial))
        return super().sample_independent(view, trial, param_name, param_distribution)  # type: ignore[safe-super]
