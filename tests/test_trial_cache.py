"""The cache of a study's trials: it says what Optuna's own storage reads from the database, at every moment."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import HyperbandPruner
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from stores import Postgres

from regtune.search.memory import Draft
from regtune.storage.optuna import Patience
from regtune.study.record import RECORD, trial_uid
from regtune.study.trial_cache import TrialCache, unpack

UID = "u"
FLAT = {"x": FloatDistribution(0, 1), "kind": CategoricalDistribution(["a", "b"])}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "sqlite":
        yield "sqlite:///studies.db"
    else:
        server: Postgres = request.getfixturevalue("postgres_server")
        yield server.fresh("cache")


def opened(url: str, direction: str = "minimize") -> tuple[RDBStorage, TrialCache, optuna.Study]:
    """Optuna's storage of the study `s`, a cache in front of it, and the study through the cache."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = RDBStorage(url)
    optuna.create_study(storage=storage, study_name="s", direction=direction, load_if_exists=True)
    cache = TrialCache(storage, storage.get_study_id_from_name("s"), UID, Patience("the database"))
    return storage, cache, optuna.load_study(storage=cache, study_name="s")


def start(cache: TrialCache, sampler: optuna.samplers.BaseSampler | None = None) -> int:
    """Propose a trial, of which the sampler sees all, and write it with its record."""
    draft = Draft(cache, cache.get_all_trials(cache.study_id), sampler or RandomSampler(seed=1))
    draft.trial.suggest_float("x", 0, 1)
    draft.trial.suggest_categorical("kind", ["a", "b"])
    trial = draft.proposed
    trial.user_attrs[RECORD] = record(trial.number)
    assert cache.start(trial)
    return trial.number


def record(number: int, **more: Any) -> dict[str, Any]:
    return {"uid": trial_uid(UID, number), **more}


def content(trial: FrozenTrial) -> tuple[Any, ...]:
    """Everything of a trial but the database's id and its times, which the database notes itself."""
    attributes = dict(trial.user_attrs)
    if isinstance(attributes.get(RECORD), bytes):
        attributes[RECORD] = json.loads(unpack(attributes[RECORD]))
    several = (attributes, trial.system_attrs, trial.intermediate_values)
    plain = (trial.number, trial.state, trial.values, trial.params, trial.distributions)
    return (*plain, *(sorted(found.items()) for found in several))


def same(cache: TrialCache, storage: RDBStorage) -> bool:
    ours, theirs = (found.get_all_trials(cache.study_id) for found in (cache, storage))
    return str([content(trial) for trial in ours]) == str([content(trial) for trial in theirs])


def test_at_every_moment_it_says_what_the_database_says(url: str) -> None:
    """Proposed, queued and requeued trials, pruned, failed and complete ones, and values that are infinite or NaN."""
    storage, cache, study = opened(url, "maximize")
    draft = Draft(cache, [], RandomSampler(seed=1))
    draft.trial.suggest_float("x", 0, 1)
    assert storage.get_n_trials(cache.study_id) == len(study.trials) == 0
    study.pruner = HyperbandPruner(min_resource=1, max_resource=5, reduction_factor=2)
    study.enqueue_trial({"x": 0.5}, user_attrs={"why": ("asked", None)})
    for turn in range(12):
        number = start(cache, TPESampler(seed=turn, n_startup_trials=4))
        assert same(cache, storage)
        if turn == 2:
            params = study.trials[number].params
            cache.set_trial_state_values(number, TrialState.WAITING)
            assert same(cache, storage)
            assert start(cache) == number
            assert study.trials[number].params == params
        value = (cache.get_trial(number).params["x"] - 0.3) ** 2
        state = TrialState.COMPLETE
        for step in range(1, 6):
            cache.set_trial_intermediate_value(number, step, math.nan if turn == 5 else value + 1 / step)
            cache.set_trial_user_attr(number, RECORD, record(number, steps=(step, value), name="Größe"))
            assert same(cache, storage)
            if study.pruner.prune(study, cache.get_trial(number)):
                state = TrialState.PRUNED
                break
        state = TrialState.FAIL if turn == 3 else state
        complete = state is TrialState.COMPLETE
        study.tell(number, (math.inf if turn == 1 else value) if complete else None, state=state)
        assert same(cache, storage)
    assert {trial.state.name for trial in study.trials} == {"COMPLETE", "PRUNED", "FAIL"}
    assert study.best_trial.number == storage.get_best_trial(cache.study_id).number
    assert same(opened(url)[1], storage)


def test_what_others_queue_is_found_and_its_number_is_not_given_twice(url: str) -> None:
    storage, cache, study = opened(url)
    other = optuna.load_study(storage=RDBStorage(url), study_name="s")
    other.enqueue_trial({"x": 0.25})
    assert study.trials == []
    cache.read_new()
    assert same(cache, storage)
    assert start(cache) == 0
    draft = Draft(cache, [], RandomSampler(seed=1))
    other.enqueue_trial({"x": 0.75})
    trial = draft.proposed
    trial.user_attrs[RECORD] = record(1)
    assert not cache.start(trial)  # the third has no parameters then, and a record of another number
    assert [trial.state.name for trial in study.trials] == ["RUNNING", "WAITING", "RUNNING"]
    other.ask()
    waiting = study.trials[1]
    waiting.user_attrs[RECORD] = record(1)
    assert not cache.start(waiting)
    assert study.trials[1].state is TrialState.RUNNING


def test_what_others_end_is_found_and_not_changed(url: str) -> None:
    storage, cache, study = opened(url)
    number = start(cache)
    (theirs,) = storage.get_all_trials(cache.study_id)
    optuna.load_study(storage=storage, study_name="s").tell(theirs.number, 0.5)
    with pytest.raises(UpdateFinishedTrialError):
        cache.set_trial_state_values(number, TrialState.FAIL)
    assert same(cache, storage)
    assert study.trials[0].value == 0.5
    with pytest.raises(UpdateFinishedTrialError):
        cache.set_trial_user_attr(number, "late", 1)


def test_what_another_program_has_trained_is_a_failed_trial_of_which_nothing_is_known(url: str) -> None:
    _, cache, _ = opened(url)
    start(cache)
    other = optuna.load_study(storage=RDBStorage(url), study_name="s")
    other.ask(FLAT)
    other.tell(other.ask(FLAT), 0.5)
    other.ask()
    copied = {"params": {}, "distributions": {}, "user_attrs": {RECORD: record(0)}}
    other.add_trial(create_trial(state=TrialState.COMPLETE, value=0.1, **copied))
    other.add_trial(create_trial(state=TrialState.WAITING, user_attrs={RECORD: record(0)}))
    cache.refresh()
    trials = cache.get_all_trials(cache.study_id)
    states = [trial.state.name for trial in trials]
    assert states == ["RUNNING", "FAIL", "FAIL", "RUNNING", "FAIL", "WAITING"]
    assert all((trial.params, trial.user_attrs, trial.values) == ({}, {}, None) for trial in trials[1:])


class Away(Exception):
    """A server that has just gone."""


class Impatient(Patience):
    """Calls again what failed with `Away`, at once."""

    def through(self, call: Any) -> Any:
        try:
            return call()
        except Away:
            self.outages += 1
            return self.through(call)


def test_a_call_that_was_cut_off_after_it_was_done_is_made_again_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage, cache, study = opened("sqlite:///studies.db")
    cache.patience = Impatient("the database")
    for name in (
        *("create_new_trial", "set_trial_param", "set_trial_state_values", "set_trial_intermediate_value"),
        *("set_trial_user_attr", "set_trial_system_attr", "set_study_user_attr", "get_study_user_attrs"),
    ):
        real, calls = getattr(storage, name), iter(range(1000))

        def cut_off(*given: Any, real: Any = real, calls: Iterator[int] = calls) -> Any:
            result = real(*given)
            if next(calls) % 2 == 0:
                raise Away
            return result

        monkeypatch.setattr(storage, name, cut_off)
    study.enqueue_trial({"x": 0.25}, user_attrs={"key": "once"})
    assert [start(cache), start(cache)] == [0, 1]
    study.set_user_attr("ended", 1)
    assert study.user_attrs == {"ended": 1}
    cache.set_trial_intermediate_value(1, 1, 0.5)
    assert same(cache, storage)
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING, TrialState.RUNNING]
