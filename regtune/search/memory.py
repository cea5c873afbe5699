"""One study's trials in memory, as an Optuna storage in front of another one."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Container, Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

_Result = TypeVar("_Result")


class StudyInMemory(BaseStorage):
    """The study `study_id` of `backend`: its trials in memory, its attributes in the backend.

    **A trial's id is its number.** **A trial that was handed out does not change**: each write replaces it. **One
    thread.**
    """

    def __init__(self, backend: BaseStorage, study_id: int, trials: Iterable[FrozenTrial] = ()) -> None:
        self.backend = backend
        self.study_id = study_id
        self._name = self._call(lambda: backend.get_study_name_from_id(study_id))
        self._directions = self._call(lambda: backend.get_study_directions(study_id))
        self._trials: dict[int, FrozenTrial] = {}
        self._open: set[int] = set()
        self._hidden = 0
        for trial in trials:
            self.keep(trial)

    def keep(self, trial: FrozenTrial) -> None:
        """Add a trial, whose number is its id, or replace the one of its number."""
        self._trials[trial.number] = trial
        (self._open.discard if trial.state.is_finished() else self._open.add)(trial.number)

    def _call(self, call: Callable[[], _Result]) -> _Result:
        return call()

    # -- trials

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        number = len(self._trials) + self._hidden
        self.keep(numbered(template_trial or create_trial(state=TrialState.RUNNING), number))
        return number

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        trial = self._updatable(trial_id)
        value = distribution.to_external_repr(param_value_internal)
        trial.params = {**trial.params, param_name: value}
        trial.distributions = {**trial.distributions, param_name: distribution}
        self.keep(trial)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        trial = self._updatable(trial_id)
        if state is TrialState.RUNNING and trial.state is not TrialState.WAITING:
            return False
        trial.state = state
        if values is not None:
            trial.values = list(values)
        if state is TrialState.RUNNING:
            trial.datetime_start = datetime.now()
        if state.is_finished():
            trial.datetime_complete = datetime.now()
        self.keep(trial)
        return True

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        trial = self._updatable(trial_id)
        trial.intermediate_values = {**trial.intermediate_values, step: intermediate_value}
        self.keep(trial)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        trial = self._updatable(trial_id)
        trial.user_attrs = {**trial.user_attrs, key: plain(value)}
        self.keep(trial)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        trial = self._updatable(trial_id)
        trial.system_attrs = {**trial.system_attrs, key: plain(value)}
        self.keep(trial)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._trials[trial_id]

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        return self._trials[trial_number].number

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials = list(self._trials.values())
        if states is not None and not any(state in states for state in TrialState if state.is_finished()):
            trials = [self._trials[number] for number in sorted(self._open)]
        if states is not None:
            trials = [trial for trial in trials if trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def _updatable(self, trial_id: int) -> FrozenTrial:
        trial = self.get_trial(trial_id)
        self.check_trial_is_updatable(trial_id, trial.state)
        return copy.copy(trial)

    # -- the study

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise KeyError(f"this storage is of study {self._name} alone")

    create_new_study = delete_study = get_all_studies = _refuse

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._call(lambda: self.backend.set_study_user_attr(study_id, key, value))

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._call(lambda: self.backend.set_study_system_attr(study_id, key, value))

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return self._call(lambda: self.backend.get_study_user_attrs(study_id))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._call(lambda: self.backend.get_study_system_attrs(study_id))

    def get_study_id_from_name(self, study_name: str) -> int:
        if study_name != self._name:
            self._refuse()
        return self.study_id

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._directions


class Draft(StudyInMemory):
    """A study as a sampler sees it while it proposes one trial; what that trial is given stays in memory.

    Args:
        study: its first waiting trial is proposed, else a new one.
        shown: the trials that the sampler sees.
        sampler: made for this trial.
    """

    def __init__(self, study: StudyInMemory, shown: Iterable[FrozenTrial], sampler: BaseSampler) -> None:
        waiting = study.get_all_trials(study.study_id, deepcopy=False, states=(TrialState.WAITING,))[:1]
        trials = {trial.number: trial for trial in (*shown, *waiting)}
        super().__init__(study, study.study_id, sorted(trials.values()))
        self._hidden = study.get_n_trials(study.study_id) - len(trials)
        self.trial = optuna.load_study(study_name=self._name, storage=self, sampler=sampler).ask()

    @property
    def proposed(self) -> FrozenTrial:
        """The trial with what it has been given."""
        return self.get_trial(self.trial.number)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a copy: `optuna.Trial` changes its parameters in place."""
        return numbered(super().get_trial(trial_id), trial_id)


def numbered(trial: FrozenTrial, number: int) -> FrozenTrial:
    """Return a copy of a trial that has `number` as its number and its id."""
    return FrozenTrial(
        number=number,
        state=trial.state,
        value=None,
        values=trial.values,
        datetime_start=trial.datetime_start,
        datetime_complete=trial.datetime_complete,
        params=dict(trial.params),
        distributions=dict(trial.distributions),
        user_attrs=dict(trial.user_attrs),
        system_attrs=dict(trial.system_attrs),
        intermediate_values=dict(trial.intermediate_values),
        trial_id=number,
    )


def plain(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    return json.loads(json.dumps(value))
