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
from optuna.samplers._tpe.sampler import default_gamma
from optuna.trial import FrozenTrial, TrialState

from regtune.samplers.history import TOLD, OfTheSpace, Rows, View, row_of

if TYPE_CHECKING:
    from optuna import Study


class TPE(OfTheSpace, TPESampler):
    """`optuna.samplers.TPESampler` over one space, for studies of one objective without constraints."""

    _split: tuple[View, list[FrozenTrial], list[FrozenTrial]] | None = None

    def _sample(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        good, others = self._divided(cast("View", study), trial)
        rows = self.history.rows(search_space, len(good) + len(others))
        below, above = (
            self._parzen_estimator_cls(
                self._observed(study, trials, search_space, rows),
                search_space,
                self._parzen_estimator_parameters,
            )
            for trials in (good, others)
        )
        samples = below.sample(self._rng.rng, self._n_ei_candidates)
        found = self._compare(samples, self._compute_acquisition_func(samples, below, above))
        return {name: group.to_external_repr(found[name]) for name, group in search_space.items()}

    def _divided(self, view: View, asked: FrozenTrial) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
        """The trials that are modelled as good ones, and the others: ended, or running beside the one asked for."""
        if self._split is None or self._split[0] is not view:
            told = {trial.number for trial in view.found if trial.state in TOLD}
            best = view.history.best_of(told, default_gamma(len(told)))
            good = [trial for trial in view.found if trial.number in best]
            others = [
                trial
                for trial in view.found
                if (trial.number in told and trial.number not in best)
                or (trial.state is TrialState.RUNNING and trial.number != asked.number)
            ]
            self._split = view, good, others
        return self._split[1:]

    def _observed(
        self,
        study: Study,
        trials: Sequence[FrozenTrial],
        group: Mapping[str, BaseDistribution],
        known: Rows,
    ) -> dict[str, NDArray[np.float64]]:
        """The values of the parameters of `group` in those trials that have all of them, a vector for each."""
        found = []
        for trial in trials:
            if trial.number in known:
                row = known[trial.number]
            else:
                row = row_of(self._get_params(trial, study), group)
                if trial.state in TOLD:
                    known[trial.number] = row
            if row is not None:
                found.append(row)
        columns = np.array(found, dtype=float).reshape(len(found), len(group)).T
        return dict(zip(group, columns, strict=True))
