"""The sampler and the pruner of a sweep, both Optuna's.

The coordinator makes a new sampler before each ask. TPE, GP and random sampling hold no state that matters;
CMA-ES keeps its state in Optuna's database and takes it up from there, as a pickle, so whoever can write to
that database can run code here; quasi-Monte Carlo keeps its place in the study, and its scrambling comes from
the spec's seed alone, so that it stays one sequence.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec

from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, CmaEsSampler, QMCSampler, RandomSampler, TPESampler

from regtune.config.sweepfile import SweepSpec
from regtune.config.sweepfile.checks import most_epochs
from regtune.errors import SpecError
from regtune.search import Space


def make_sampler(spec: SweepSpec, space: Space, seed: int) -> BaseSampler:
    """Return a sampler for the next ask.

    Args:
        spec: its `method`, and its `seed` for the one sequence of `qmc`.
        space: the space of `spec`.
        seed: of this ask. For method grid a sampler is never asked: the coordinator walks `space.grid()`.

    Raises:
        SpecError: the method's library is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if spec.method == "tpe":  # a conditional space needs TPE's `group`
            return TPESampler(seed=seed, multivariate=True, constant_liar=True, group=not space.static)
        if spec.method == "cmaes":
            return CmaEsSampler(seed=seed, warn_independent_sampling=False)
        if spec.method == "qmc":
            return QMCSampler(
                seed=spec.seed,
                scramble=True,
                independent_sampler=RandomSampler(seed=seed),
                warn_independent_sampling=False,
            )
        return _gp(seed) if spec.method == "gp" else RandomSampler(seed=seed)


def _gp(seed: int) -> BaseSampler:
    if find_spec("torch") is None:
        raise SpecError(['method: gp needs torch, which is not installed; try: pip install "regtune[gp]"'])
    from optuna.samplers import GPSampler

    return GPSampler(seed=seed, warn_independent_sampling=False)


def make_pruner(spec: SweepSpec, max_epochs: int | None = None) -> BasePruner:
    """Return the pruner of a spec, for values reported at steps 1 to `max_epochs`, one an epoch.

    max_epochs: the most a trial can have; by default what the spec says, searched or fixed.

    W&B's `min_iter` is the first epoch at which a trial may be ended, in all three; `eta` is Optuna's
    `reduction_factor`, `max_iter` hyperband's `max_resource`. With `s` the first rung stands at max_iter / eta ** s.
    """
    rules = spec.early_terminate
    if rules is None:
        return NopPruner()
    if rules.type == "median":
        startup = 5 if rules.startup_trials is None else rules.startup_trials
        return MedianPruner(n_startup_trials=startup, n_warmup_steps=rules.first_epoch)
    if rules.type == "successive_halving":
        return SuccessiveHalvingPruner(min_resource=rules.first_epoch, reduction_factor=rules.ratio)
    last = rules.max_iter or (most_epochs(spec) if max_epochs is None else max_epochs)
    return HyperbandPruner(
        min_resource=min(rules.first_epoch, last), max_resource=last, reduction_factor=rules.ratio
    )
