"""Optuna's TPE, which looks up what does not change from one proposal to the next.

Optuna sorts all trials by their goodness, and puts all their values into its internal form, for each group of
parameters of each proposal: half of a coordinator's time. A `History` keeps the order already, and the values of trials
that have ended. What is estimated from them, and what is drawn, is Optuna's own; so are the proposals.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.samplers._lazy_random_state import LazyRandomState
from optuna.samplers._tpe.sampler import default_gamma
from optuna.trial import FrozenTrial, TrialState

from regtune.search.history import OfTheSpace, View

if TYPE_CHECKING:
    from optuna import Study


_Numbers = NDArray[np.intp]


class _Dice(LazyRandomState):
    """Optuna's, seeded when it is first used. dice: what is seeded; to make it takes fifty times as long."""

    def __init__(self, seed: int, dice: np.random.RandomState | None = None) -> None:
        super().__init__()
        self._seed = seed
        self._dice = dice

    def _set_rng(self) -> None:
        self._rng = self._dice or np.random.RandomState()
        self._rng.seed(self._seed)


class TPE(OfTheSpace, TPESampler):
    """`optuna.samplers.TPESampler` over one space, for studies of one objective without constraints.

    dice: the caller's, for one sampler at a time.
    """

    def __init__(self, *, seed: int, group: bool, dice: np.random.RandomState) -> None:
        super().__init__(group=group)
        self._divided: tuple[View, _Numbers, _Numbers] | None = None
        self._rng = _Dice(seed, dice)
        self._random_sampler._rng = _Dice(seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Optuna's, which copies every distribution, until a trial of another kind is told."""
        kinds = self._view(study, trial).kinds
        known, found = self.history.searched
        if found is None or [*map(_kind, known)] != [*map(_kind, kinds)]:
            space = super().infer_relative_search_space(study, trial)
            found = space, self._search_space_group
            self.history.searched = kinds, found
        space, self._search_space_group = found
        return dict(space)

    def _sample(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        view = cast("View", study)
        values = self.history.values(search_space)

        def parameters(number: int) -> tuple[Mapping[str, Any], bool]:
            found = view.trials[number]
            return self._get_params(found, study), found.state.is_finished()

        below, above = (
            self._parzen_estimator_cls(
                dict(zip(search_space, values.of(numbers, parameters).T, strict=True)),
                search_space,
                self._parzen_estimator_parameters,
            )
            for numbers in self._good_and_others(view, trial)
        )
        samples = below.sample(self._rng.rng, self._n_ei_candidates)
        found = self._compare(samples, self._compute_acquisition_func(samples, below, above))
        return {name: group.to_external_repr(found[name]) for name, group in search_space.items()}

    def _good_and_others(self, view: View, asked: FrozenTrial) -> tuple[_Numbers, _Numbers]:
        """Numbers of the trials that are modelled as good ones, and of the others; those that run are not good yet."""
        if self._divided is None or self._divided[0] is not view:
            good = view.history.good(default_gamma(len(view.told)))
            running = (
                trial.number
                for trial in view.open
                if trial.state is TrialState.RUNNING and trial.number != asked.number
            )
            others = sorted({*view.told, *running}.difference(good))
            self._divided = view, np.array(good, dtype=np.intp), np.array(others, dtype=np.intp)
        return self._divided[1:]


def _kind(trial: FrozenTrial) -> tuple[TrialState, int]:
    return trial.state, id(trial.distributions)  # while a trial is kept no other dict has its id
