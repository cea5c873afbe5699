"""Samplers and pruners: Optuna's own, made for a spec.

A sampler here sees only the trials that are of its space. Others may stand in the study beside them:
controls, which have no parameters, and what another program has put there. Optuna's samplers would take them
for evidence, lose their search space over them, or fail.

The coordinator makes a new sampler before each ask. TPE, GP and random sampling hold no state that matters;
CMA-ES keeps its state in Optuna's database and takes it up from there, as a pickle, so whoever can write to
that database can run code here; quasi-Monte Carlo keeps its place in the study, and its scrambling comes from
the spec's seed alone, so that it stays one sequence.
"""

from __future__ import annotations

import copy
import heapq
import math
import warnings
from collections.abc import Container, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, CmaEsSampler, QMCSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from regtune.errors import SpecError
from regtune.space import Space
from regtune.spec import SweepSpec
from regtune.spec.checks import most_epochs

if TYPE_CHECKING:
    from optuna import Study


BEST, RECENT = 50, 250
"""How many finished trials TPE is shown at most: the best, and of the others the latest."""


class _StudyOfTheSpace:
    """A study as a sampler may see it while it proposes one trial: without the trials that are not of the space.

    most: how many finished trials are shown, as (best, latest others); None for all.
    """

    def __init__(self, study: Study, space: Space, most: tuple[int, int] | None) -> None:
        self._seen = study
        self._roots = space.roots
        self._names = space.distributions.keys()
        self._most = most
        self._found: list[FrozenTrial] | None = None

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        if self._found is None:  # one coordinator writes, and it is waiting for this proposal
            trials = self._seen._get_trials(deepcopy=False, states=None, use_cache=False)
            self._found = [trial for trial in trials if self._roots <= trial.params.keys() <= self._names]
            if self._most is not None:
                self._found = shown(self._found, self._seen.direction, *self._most)
        found = [trial for trial in self._found if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._seen, name)


def shown(
    trials: Sequence[FrozenTrial], direction: StudyDirection, best: int, recent: int
) -> list[FrozenTrial]:
    """Of `trials`, in their order: those that have not ended, the `best` and of the others the `recent` latest.

    TPE models the best tenth, at most 25 trials, and all others (Bergstra et al. 2011, section 4; Optuna's `gamma`).
    The first model is the same as with all trials, as long as `best` is not smaller than that; the second has a sample
    of its trials. The order is TPE's own: complete trials by their value, then pruned ones, the longer trained first.
    """
    ended = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    if len(ended) <= best + recent:
        return list(trials)
    sign = -1.0 if direction is StudyDirection.MAXIMIZE else 1.0

    def order(trial: FrozenTrial) -> tuple[int, int, float]:
        if trial.state is TrialState.COMPLETE:
            return 0, 0, sign * (trial.value or 0.0)
        step = max(trial.intermediate_values, default=None)
        if step is None:
            return 2, 0, 0.0
        amount = trial.intermediate_values[step]
        return 1, -step, math.inf if math.isnan(amount) else sign * amount

    kept = {trial.number for trial in heapq.nsmallest(best, ended, key=order)}
    others = [trial.number for trial in ended if trial.number not in kept]
    kept.update(others[-recent:])
    return [trial for trial in trials if trial.number in kept or not trial.state.is_finished()]


class _OfTheSpace(BaseSampler):
    """Optuna's sampler, seeing the trials of one space. Mixed in before a sampler of Optuna's."""

    _space: Space
    _most: tuple[int, int] | None = None
    _last: tuple[int, Study, _StudyOfTheSpace] | None = None

    def _view(self, study: Study, trial: FrozenTrial) -> Study:
        """One view for all that is asked in a row about one trial."""
        if self._last is None or self._last[:2] != (trial.number, study):
            self._last = trial.number, study, _StudyOfTheSpace(study, self._space, self._most)
        return cast("Study", self._last[2])

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._last = None
        super().before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        view = self._view(study, trial)
        return super().infer_relative_search_space(view, trial)  # type: ignore[safe-super]

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        view = self._view(study, trial)
        return super().sample_relative(view, trial, search_space)  # type: ignore[safe-super]

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        view = self._view(study, trial)
        return super().sample_independent(view, trial, param_name, param_distribution)  # type: ignore[safe-super]


class _TPE(_OfTheSpace, TPESampler):
    pass


class _CmaEs(_OfTheSpace, CmaEsSampler):
    pass


class _QMC(_OfTheSpace, QMCSampler):
    pass


def make_sampler(
    spec: SweepSpec, space: Space, seed: int, most: tuple[int, int] | None = (BEST, RECENT)
) -> BaseSampler:
    """A sampler for the next ask. Raises SpecError when the method's library is missing.

    Args:
        spec: its `method`, and its `seed` for the one sequence of `qmc`.
        space: the space of `spec`.
        most: how many finished trials TPE is shown, the best and of the others the latest; None for all.
        seed: of this ask. For method grid a sampler is never asked: the coordinator walks `space.grid()`.
    """
    sampler: BaseSampler
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # TPE's group, which a conditional space needs
        if spec.method == "tpe":
            sampler = _TPE(seed=seed, group=not space.static)
            sampler._most = most
        elif spec.method == "cmaes":
            sampler = _CmaEs(seed=seed, warn_independent_sampling=False)
        elif spec.method == "qmc":
            sampler = _QMC(
                seed=spec.seed,
                scramble=True,
                independent_sampler=RandomSampler(seed=seed),
                warn_independent_sampling=False,
            )
        elif spec.method == "gp":
            sampler = _gp(seed)
        else:
            return RandomSampler(seed=seed)
    if isinstance(sampler, _OfTheSpace):
        sampler._space = space
    return sampler


def _gp(seed: int) -> BaseSampler:
    if find_spec("torch") is None:
        raise SpecError(['method: gp needs torch, which is not installed; try: pip install "regtune[gp]"'])
    from optuna.samplers import GPSampler

    class _GP(_OfTheSpace, GPSampler):
        pass

    return _GP(seed=seed, warn_independent_sampling=False)


def make_pruner(spec: SweepSpec, max_epochs: int | None = None) -> BasePruner:
    """The pruner of a spec, for intermediate values reported at steps 1 to `max_epochs`, one an epoch.

    max_epochs: the most a trial can have; by default what the spec says, searched or fixed.

    W&B's `min_iter` is the first epoch at which a trial may be ended, in all three; `eta` is Optuna's
    `reduction_factor`, `max_iter` hyperband's `max_resource`. With `max_iter` and `s` the first rung stands
    at max_iter / eta ** s.
    """
    found = spec.early_terminate
    if found is None:
        return NopPruner()
    epochs = most_epochs(spec) if max_epochs is None else max_epochs
    if found.type == "median":
        startup = 5 if found.startup_trials is None else found.startup_trials
        return MedianPruner(n_startup_trials=startup, n_warmup_steps=found.first_epoch)
    if found.type == "successive_halving":
        return SuccessiveHalvingPruner(min_resource=found.first_epoch, reduction_factor=found.ratio)
    return HyperbandPruner(
        min_resource=min(found.first_epoch, found.max_iter or epochs),
        max_resource=found.max_iter or epochs,
        reduction_factor=found.ratio,
    )
