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

import warnings
from collections.abc import Container
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, CmaEsSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from regtune.errors import SpecError
from regtune.space import Space
from regtune.spec import SweepSpec
from regtune.spec.checks import most_epochs

if TYPE_CHECKING:
    from optuna import Study


class _StudyOfTheSpace:
    """A study as a sampler may see it: without the trials that are not of the space."""

    def __init__(
        self, study: Study, roots: frozenset[str], distributions: dict[str, BaseDistribution]
    ) -> None:
        self._seen = study
        self._roots = roots
        self._names = distributions.keys()

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        trials = self._seen._get_trials(deepcopy=deepcopy, states=states, use_cache=use_cache)
        return [trial for trial in trials if self._roots <= trial.params.keys() <= self._names]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._seen, name)


class _OfTheSpace(BaseSampler):
    """Optuna's sampler, seeing the trials of one space. Mixed in before a sampler of Optuna's."""

    _space: Space

    def _view(self, study: Study) -> Study:
        return cast("Study", _StudyOfTheSpace(study, self._space.roots, self._space.distributions))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return super().infer_relative_search_space(self._view(study), trial)  # type: ignore[safe-super]

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        view = self._view(study)
        return super().sample_relative(view, trial, search_space)  # type: ignore[safe-super]

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        view = self._view(study)
        return super().sample_independent(view, trial, param_name, param_distribution)  # type: ignore[safe-super]


class _TPE(_OfTheSpace, TPESampler):
    pass


class _CmaEs(_OfTheSpace, CmaEsSampler):
    pass


class _QMC(_OfTheSpace, QMCSampler):
    pass


def make_sampler(spec: SweepSpec, space: Space, seed: int) -> BaseSampler:
    """A sampler for the next ask. Raises SpecError when the method's library is missing.

    Args:
        spec: its `method`, and its `seed` for the one sequence of `qmc`.
        space: the space of `spec`.
        seed: of this ask. For method grid a sampler is never asked: the coordinator walks `space.grid()`.
    """
    sampler: BaseSampler
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # TPE's group, which a conditional space needs
        if spec.method == "tpe":
            sampler = _TPE(seed=seed, group=not space.static)
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
