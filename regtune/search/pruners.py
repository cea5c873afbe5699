"""Pruners: Optuna's own, made for a spec."""

from __future__ import annotations

import copy
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any, cast

from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.trial import FrozenTrial, TrialState

from regtune.config.sweepfile import SweepSpec
from regtune.config.sweepfile.checks import most_epochs

if TYPE_CHECKING:
    from optuna import Study


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
    return Hyperband(
        min_resource=min(found.first_epoch, found.max_iter or epochs),
        max_resource=found.max_iter or epochs,
        reduction_factor=found.ratio,
    )


class Hyperband(HyperbandPruner):
    """Optuna's, for one study. Optuna computes the bracket of every trial at each check, and makes a class for it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._brackets: dict[int, _Bracket] = {}
        self._members: dict[int, list[int]] = {}
        self._read = 0

    def members(self, study: Study, bracket: int, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Of all `trials` of the study those of a bracket; a trial stays in its bracket."""
        if not self._pruners:  # Optuna makes the brackets at the first check; until then there is one
            return [] if bracket else list(trials)
        for trial in trials[self._read :]:
            self._members.setdefault(self._get_bracket_id(study, trial), []).append(trial.number)
        self._read = len(trials)
        return [trials[number] for number in self._members.get(bracket, ())]

    def _create_bracket_study(self, study: Study, bracket_id: int) -> Study:
        found = self._brackets.get(bracket_id)
        if found is None or found.study is not study:
            found = self._brackets[bracket_id] = _Bracket(study, self, bracket_id)
        return cast("Study", found)


class _Bracket:
    """A study of which `get_trials` gives the trials of one bracket, as in Optuna's `_BracketStudy`."""

    def __init__(self, study: Study, pruner: Hyperband, bracket: int) -> None:
        self.study = study
        self._pruner = pruner
        self._bracket = bracket

    def get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials = self.study._get_trials(deepcopy=False)
        found = [
            trial
            for trial in self._pruner.members(self.study, self._bracket, trials)
            if states is None or trial.state in states
        ]
        return copy.deepcopy(found) if deepcopy else found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.study, name)
