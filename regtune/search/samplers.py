"""The sampler and the pruner of a sweep, as Optuna has them, and what a sampler sees of a study.

The coordinator makes a new sampler before each ask. TPE, GP and random sampling hold no state that matters;
CMA-ES keeps its state in Optuna's database and takes it up from there, as a pickle, so whoever can write to
that database can run code here; quasi-Monte Carlo keeps its place in the study, and its scrambling comes from
the spec's seed alone, so that it stays one sequence.

A study holds trials beside the search: controls, which have no parameters, and what another program has put there.
Optuna's samplers would take them for evidence, lose their search space over them, or fail; `History` leaves them out.
"""

from __future__ import annotations

import bisect
import math
import warnings
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from itertools import chain, islice

from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, CmaEsSampler, QMCSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from regtune.config.sweepfile import SweepSpec
from regtune.config.sweepfile.checks import most_epochs
from regtune.errors import SpecError
from regtune.search.halving import HalvingPruner, Mark
from regtune.search.space import Space

BEST, RECENT = 50, 250
"""How many finished trials TPE is shown at most: the best, and of the others the latest."""
_ENDS = TrialState.COMPLETE, TrialState.PRUNED
_Goodness = tuple[float, ...]


def make_sampler(space: Space, seed: int) -> BaseSampler:
    """Return a sampler for the next ask, of which `seed` is. Raises SpecError when its library is not installed.

    For method grid it is never asked: the coordinator walks `space.grid()`.
    """
    spec = space.spec
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
        if spec.method != "gp":
            return RandomSampler(seed=seed)
        if find_spec("torch") is None:
            raise SpecError(
                ['method: gp needs torch, which is not installed; try: pip install "regtune[gp]"']
            )
        from optuna.samplers import GPSampler

        return GPSampler(seed=seed, warn_independent_sampling=False)


def make_pruner(spec: SweepSpec, mark: Mark) -> BasePruner:
    """Return the pruner of a spec, for one value reported an epoch, from step 1 on; `mark` is HalvingPruner's.

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
        return HalvingPruner(mark, rules.first_epoch, rules.ratio, last=rules.max_iter or math.inf)
    last = rules.max_iter or most_epochs(spec)
    first = min(rules.first_epoch, last)
    brackets = math.floor(math.log(last / first, rules.ratio)) + 1
    return HalvingPruner(mark, first, rules.ratio, brackets, rules.max_iter or math.inf)


class History:
    """The trials of a study that a sampler is shown: those of `space`; for TPE, when many have ended, some of these.

    best, recent: then the `best`, and of the others the `recent` latest, because TPE's time grows with the trials it is
    shown (benchmarks/bench_history.py measures what a part of them costs). TPE models the best tenth, at most 25
    trials, and all others (Bergstra et al. 2011, section 4; Optuna's `gamma`). The first model is the same as with all
    trials, as long as `best` is not smaller than that; the second has a sample of its trials.

    One object for all asks of one study looks at each trial once after its end, so that an ask costs the same in a
    study of ten trials and of ten thousand.
    """

    def __init__(self, space: Space, best: int | None = BEST, recent: int = RECENT) -> None:
        self._roots = space.roots
        self._names = space.distributions.keys()
        self._best = best if space.spec.method == "tpe" else None
        self._recent = recent
        self._seen = 0
        self._open: set[int] = set()
        self._ended: list[int] = []
        self._order: list[tuple[_Goodness, int]] = []

    def shown(self, trials: Sequence[FrozenTrial], direction: StudyDirection) -> list[FrozenTrial]:
        """Return the trials that are shown of all `trials` of a study, which are in the order of their numbers."""
        self._look(trials, direction)
        running = (number for number in self._open if self._of_the_space(trials[number]))
        ended: Iterable[int] = self._ended
        if self._best is not None and len(self._ended) > self._best + self._recent:
            best = {number for _, number in self._order[: self._best]}
            others = (number for number in reversed(self._ended) if number not in best)
            ended = chain(best, islice(others, self._recent))
        return [trials[number] for number in sorted(chain(ended, running))]

    def _look(self, trials: Sequence[FrozenTrial], direction: StudyDirection) -> None:
        self._open.update(range(self._seen, len(trials)))
        self._seen = len(trials)
        for number in [number for number in self._open if trials[number].state.is_finished()]:
            self._open.remove(number)
            trial = trials[number]
            if trial.state in _ENDS and self._of_the_space(trial):
                bisect.insort(self._ended, number)
                bisect.insort(self._order, (_goodness(trial, direction), number))

    def _of_the_space(self, trial: FrozenTrial) -> bool:
        return self._roots <= trial.params.keys() <= self._names


def _goodness(trial: FrozenTrial, direction: StudyDirection) -> _Goodness:
    """TPE's order of trials, the best first: complete ones by value, then pruned ones, the longer trained first."""
    sign = -1.0 if direction is StudyDirection.MAXIMIZE else 1.0
    if trial.state is TrialState.COMPLETE:
        return 0, 0, sign * (trial.value or 0.0)
    step = trial.last_step
    if step is None:
        return 2, 0, 0.0
    amount = trial.intermediate_values[step]
    return 1, -step, math.inf if math.isnan(amount) else sign * amount
