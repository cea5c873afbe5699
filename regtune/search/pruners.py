"""The pruner of a sweep, one of Optuna's."""

from __future__ import annotations

from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner

from regtune.config.sweepfile import SweepSpec
from regtune.config.sweepfile.checks import most_epochs


def make_pruner(spec: SweepSpec, max_epochs: int | None = None) -> BasePruner:
    """Return the pruner of a spec, for values reported at steps 1 to `max_epochs`, one an epoch.

    max_epochs: the most a trial can have; by default what the spec says, searched or fixed.

    W&B's `min_iter` is the first epoch at which a trial may be ended, in all three; `eta` is Optuna's
    `reduction_factor`, `max_iter` hyperband's `max_resource`. With `max_iter` and `s` the first rung stands
    at max_iter / eta ** s.
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
