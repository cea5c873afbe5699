"""The sampler of a sweep, one of Optuna's.

The coordinator makes a new sampler before each ask. TPE, GP and random sampling hold no state that matters;
CMA-ES keeps its state in Optuna's database and takes it up from there, as a pickle, so whoever can write to
that database can run code here; quasi-Monte Carlo keeps its place in the study, and its scrambling comes from
the spec's seed alone, so that it stays one sequence.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, QMCSampler, RandomSampler, TPESampler

from regtune.config.sweepfile import SweepSpec
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
