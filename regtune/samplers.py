"""Samplers and pruners: Optuna's own, made for a spec.

A sampler here sees only the trials that are of its space. Others may stand in the study beside them:
controls, which have no parameters, and what another program has put there. Optuna's samplers would take them
for evidence, lose their search space over them, or fail.

The coordinator makes a new sampler before each ask. TPE, GP and random sampling hold no state that matters;
CMA-ES keeps its state in Optuna's database and takes it up from there, as a pickle, so whoever can write to
that database can run code here; quasi-Monte Carlo keeps its place in the study, and its scrambling comes from
the spec's seed alone, so that it stays one sequence.

TPE's time grows with the trials it is shown, and an ask in a study of 10,000 would take a fifth of a second. It is
shown a part of a long `History`; benchmarks/bench_history.py measures what that costs.
"""

from __future__ import annotations

import bisect
import copy
import math
import warnings
from collections.abc import Container, Sequence
from importlib.util import find_spec
from itertools import islice
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


class History:
    """What a sampler is shown of a study: the trials of `space`, and when many have ended, some of these.

    best, recent: then the `best`, and of the others the `recent` latest. TPE models the best tenth, at most 25 trials,
    and all others (Bergstra et al. 2011, section 4; Optuna's `gamma`). The first model is the same as with all trials,
    as long as `best` is not smaller than that; the second has a sample of its trials. The order is TPE's own: complete
    trials by their value, then pruned ones, the longer trained first.

    What a trial was when it ended it stays, so one object for all looks at a study reads each trial once.
    """

    def __init__(self, space: Space, best: int | None = BEST, recent: int = RECENT) -> None:
        self._roots = space.roots
        self._names = space.distributions.keys()
        self._best = best
        self._recent = recent
        self._read = 0
        self._open: set[int] = set()
        self._ended: list[int] = []
        self._order: list[tuple[tuple[int, int, float], int]] = []

    def shown(self, trials: Sequence[FrozenTrial], direction: StudyDirection) -> list[FrozenTrial]:
        """The trials that are shown of all `trials` of a study, which are in the order of their numbers."""
        self._open.update(range(self._read, len(trials)))
        self._read = len(trials)
        for number in sorted(number for number in self._open if trials[number].state.is_finished()):
            self._open.remove(number)
            trial = trials[number]
            if trial.state in _TOLD and self._of_the_space(trial):
                bisect.insort(self._ended, number)
                bisect.insort(self._order, (_goodness(trial, direction), number))
        if self._best is None or len(self._ended) <= self._best + self._recent:
            return [trial for trial in trials if self._of_the_space(trial)]
        kept = {number for _, number in self._order[: self._best]}
        latest = (number for number in reversed(self._ended) if number not in kept)
        kept.update(list(islice(latest, self._recent)))
        kept.update(number for number in self._open if self._of_the_space(trials[number]))
        return [trials[number] for number in sorted(kept)]

    def _of_the_space(self, trial: FrozenTrial) -> bool:
        return self._roots <= trial.params.keys() <= self._names


_TOLD = (TrialState.COMPLETE, TrialState.PRUNED)


def _goodness(trial: FrozenTrial, direction: StudyDirection) -> tuple[int, int, float]:
    """The order in which TPE takes trials for good ones, the best first."""
    sign = -1.0 if direction is StudyDirection.MAXIMIZE else 1.0
    if trial.state is TrialState.COMPLETE:
        return 0, 0, sign * (trial.value or 0.0)
    step = max(trial.intermediate_values, default=None)
    if step is None:
        return 2, 0, 0.0
    amount = trial.intermediate_values[step]
    return 1, -step, math.inf if math.isnan(amount) else sign * amount


class _StudyOfTheSpace:
    """A study as a sampler may see it while it proposes one trial."""

    def __init__(self, study: Study, history: History) -> None:
        self._seen = study
        self._history = history
        self._found: list[FrozenTrial] | None = None

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        if self._found is None:  # one coordinator writes, and it is waiting for this proposal
            trials = self._seen._get_trials(deepcopy=False, states=None, use_cache=False)
            self._found = self._history.shown(trials, self._seen.direction)
        found = [trial for trial in self._found if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._seen, name)


class _OfTheSpace(BaseSampler):
    """Optuna's sampler, seeing the trials of one space. Mixed in before a sampler of Optuna's."""

    _history: History
    _last: tuple[int, Study, _StudyOfTheSpace] | None = None

    def _view(self, study: Study, trial: FrozenTrial) -> Study:
        """One view for all that is asked in a row about one trial."""
        if self._last is None or self._last[:2] != (trial.number, study):
            self._last = trial.number, study, _StudyOfTheSpace(study, self._history)
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


class _Hyperband(HyperbandPruner):
    """Optuna's, which asks for the bracket of every trial at each check and computes it each time."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._brackets: dict[int, int] = {}

    def _get_bracket_id(self, study: Study, trial: FrozenTrial) -> int:
        found = self._brackets.get(trial.number)
        if found is None:
            found = super()._get_bracket_id(study, trial)
            if self._pruners:
                self._brackets[trial.number] = found
        return found


class _TPE(_OfTheSpace, TPESampler):
    pass


class _CmaEs(_OfTheSpace, CmaEsSampler):
    pass


class _QMC(_OfTheSpace, QMCSampler):
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
        sampler._history = history or make_history(spec, space)
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
    return _Hyperband(
        min_resource=min(found.first_epoch, found.max_iter or epochs),
        max_resource=found.max_iter or epochs,
        reduction_factor=found.ratio,
    )
