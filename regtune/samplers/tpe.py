"""Optuna's TPE, which looks up what does not change from one proposal to the next.

Optuna sorts all trials by their goodness, and puts all their values into its internal form, for each group of
parameters of each proposal: half of a coordinator's time. A `History` keeps the order already, and the values of trials
that have ended. What is estimated from them, and what is drawn, is Optuna's own; so are the proposals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.samplers._lazy_random_state import LazyRandomState
from optuna.samplers._tpe.sampler import default_gamma
from optuna.trial import FrozenTrial, TrialState

from regtune.samplers.history import TOLD, OfTheSpace, Rows, View, row_of

if TYPE_CHECKING:
    from optuna import Study


class _Dice(LazyRandomState):
    """Optuna's, made when it is first used, the seeded one too: most samplers use one of their two."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed

    def _set_rng(self) -> None:
        self._rng = np.random.RandomState(self._seed)


class TPE(OfTheSpace, TPESampler):
    """`optuna.samplers.TPESampler` over one space, for studies of one objective without constraints."""

    def __init__(self, *, seed: int, group: bool) -> None:
        super().__init__(group=group)
        self._divided: tuple[View, list[int], list[int]] | None = None
        self._rng = _Dice(seed)
        self._random_sampler._rng = _Dice(seed)

    def _sample(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        view = cast("View", study)
        good, others = self._good_and_others(view, trial)
        rows = self.history.rows(search_space, len(good) + len(others))
        below, above = (
            self._parzen_estimator_cls(
                self._observed(view, numbers, search_space, rows),
                search_space,
                self._parzen_estimator_parameters,
            )
            for numbers in (good, others)
        )
        samples = below.sample(self._rng.rng, self._n_ei_candidates)
        found = self._compare(samples, self._compute_acquisition_func(samples, below, above))
        return {name: group.to_external_repr(found[name]) for name, group in search_space.items()}

    def _good_and_others(self, view: View, asked: FrozenTrial) -> tuple[list[int], list[int]]:
        """Numbers of the trials that are modelled as good ones, and of the others; those that run are not good yet."""
        if self._divided is None or self._divided[0] is not view:
            good = view.history.good(default_gamma(len(view.told)))
            running = (
                trial.number
                for trial in view.open
                if trial.state is TrialState.RUNNING and trial.number != asked.number
            )
            self._divided = view, good, sorted({*view.told, *running}.difference(good))
        return self._divided[1:]

    def _observed(
        self, view: View, numbers: Sequence[int], group: Mapping[str, BaseDistribution], known: Rows
    ) -> dict[str, NDArray[np.float64]]:
        """The values of the parameters of `group` in those trials that have all of them, a vector for each."""
        running = set()
        for number in numbers:
            if number not in known:
                trial = view.trials[number]
                known[number] = row_of(self._get_params(trial, cast("Study", view)), group)
                if trial.state not in TOLD:
                    running.add(number)
        found = [row for number in numbers if (row := known[number]) is not None]
        for number in running:  # what a running trial will have been may change
            del known[number]
        columns = np.array(found, dtype=float).reshape(len(found), len(group)).T
        return dict(zip(group, columns, strict=True))
