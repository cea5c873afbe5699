"""Samplers and pruners: Optuna's own, made for a spec.

The coordinator makes a new sampler before each ask. TPE, GP and random sampling hold no state that matters;
CMA-ES keeps its state in Optuna's database and takes it up from there, as a pickle, so whoever can write to
that database can run code here; quasi-Monte Carlo keeps its place in the study, and its scrambling comes from
the spec's seed alone, so that it stays one sequence.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, QMCSampler, RandomSampler

from regtune.config.sweepfile import SweepSpec
from regtune.errors import SpecError
from regtune.search import Space
from regtune.search.history import BEST, RECENT, History, OfTheSpace
from regtune.search.pruners import make_pruner
from regtune.search.tpe import TPE

__all__ = ["BEST", "RECENT", "History", "make_history", "make_pruner", "make_sampler"]


class _CmaEs(OfTheSpace, CmaEsSampler):
    pass


class _QMC(OfTheSpace, QMCSampler):
    pass


def make_history(spec: SweepSpec, space: Space) -> History:
    """What the sampler of a spec is shown of one study. TPE's cost grows with it; the other methods see all."""
    return History(space) if spec.method == "tpe" else History(space, best=None)


def make_sampler(spec: SweepSpec, space: Space, seed: int, history: History | None = None) -> BaseSampler:
    """A sampler for the next ask. Raises SpecError when the method's library is missing.

    Args:
        spec: its `method`, and its `seed` for the one sequence of `qmc`.
        space: the space of `spec`.
        seed: of this ask. For method grid a sampler is never asked: the coordinator walks `space.grid()`.
        history: what is shown of the one study that is asked about; by default read anew.
    """
    sampler: BaseSampler
    history = history or make_history(spec, space)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # TPE's group, which a conditional space needs
        if spec.method == "tpe":
            sampler = TPE(seed=seed, group=not space.static, dice=history.dice)
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
    if isinstance(sampler, OfTheSpace):
        sampler.history = history
    return sampler


def _gp(seed: int) -> BaseSampler:
    if find_spec("torch") is None:
        raise SpecError(['method: gp needs torch, which is not installed; try: pip install "regtune[gp]"'])
    from optuna.samplers import GPSampler

    class _GP(OfTheSpace, GPSampler):
        pass

    return _GP(seed=seed, warn_independent_sampling=False)
