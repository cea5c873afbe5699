"""A study's ledger says at each moment what Optuna's own storage reads from the database, and writes what it writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import HyperbandPruner
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import event
from stores import Postgres

from regtune.study.trial_cache import Ledger, unpack

FLAT = {"x": FloatDistribution(0, 1), "kind": CategoricalDistribution(["a", "b"])}


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "sqlite":
        yield "sqlite:///studies.db"
    else:
        server: Postgres = request.getfixturevalue("postgres_server")
        yield server.fresh("ledger")


def begun(url: str, direction: str = "minimize") -> tuple[RDBStorage, Ledger, optuna.Study]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = RDBStorage(url)
    study_id = optuna.create_study(storage=storage, study_name="s", direction=direction)._study_id
    ledger = Ledger(storage, study_id)
    return storage, ledger, optuna.load_study(storage=ledger, study_name="s")


def seen(trials: list[FrozenTrial]) -> list[dict[str, Any]]:
    """Everything of the trials."""
    return [vars(trial) for trial in trials]


def same(ledger: Ledger, storage: RDBStorage) -> bool:
    study_id = ledger.get_study_id_from_name("s")
    return seen(ledger.get_all_trials(study_id)) == seen(storage.get_all_trials(study_id))


def train(study: optuna.Study, count: int, each: Any = lambda: None) -> list[dict[str, Any]]:
    """Ask, suggest, report, prune and tell; every fourth trial waits again before it runs on."""
    proposed = []
    for turn in range(count):
        trial = study.ask()
        x = trial.suggest_float("x", 0, 1)
        penalty = 0.1 * (trial.suggest_categorical("kind", ["a", "b"]) == "b")
        proposed.append(trial.params)
        each()
        state, value = TrialState.COMPLETE, None
        for step in range(1, 6):
            value = (x - 0.3) ** 2 + penalty + 1 / step
            trial.report(value, step)
            trial.set_user_attr("record", {"steps": (step, value), "name": "Größe"})
            each()
            if trial.should_prune():
                state, value = TrialState.PRUNED, None
                break
        if turn % 7 == 3:
            state, value = TrialState.FAIL, None
        study.tell(trial, value, state=state)
        each()
    return proposed


def test_at_every_moment_it_says_what_the_database_says(url: str) -> None:
    storage, ledger, study = begun(url)
    study.pruner = HyperbandPruner(min_resource=1, max_resource=5, reduction_factor=2)
    study.sampler = TPESampler(seed=1, n_startup_trials=4)
    study.enqueue_trial({"x": 0.5}, user_attrs={"why": ("asked", None)})

    def check() -> None:
        assert same(ledger, storage)

    train(study, 12, check)
    assert {trial.state for trial in study.trials} >= {
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
    }
    again = Ledger(storage, study._study_id)
    assert seen(again.get_all_trials(study._study_id)) == seen(study.get_trials())


def test_proposals_and_rows_are_those_of_optunas_own_storage() -> None:
    found = []
    for url in ("sqlite:///ours.db", "sqlite:///theirs.db"):
        storage, _, study = begun(url)
        if "theirs" in url:
            study = optuna.load_study(storage=storage, study_name="s")
        study.pruner = HyperbandPruner(min_resource=1, max_resource=5, reduction_factor=2)
        study.sampler = TPESampler(seed=3, n_startup_trials=4)
        proposed = train(study, 25)
        with storage.engine.connect() as connection:
            rows = {
                table: connection.exec_driver_sql(f"SELECT * FROM {table} ORDER BY 1").all()
                for table in (
                    *("trial_values", "trial_params", "trial_user_attributes"),
                    *("trial_system_attributes", "trial_intermediate_values"),
                )
            }
        found.append((proposed, {name: sorted(row[1:] for row in rows[name]) for name in rows}))
    assert found[0] == found[1]


def test_a_trial_goes_back_into_the_queue_and_comes_out_again(url: str) -> None:
    storage, ledger, study = begun(url)
    trial = study.ask()
    x = trial.suggest_float("x", 0, 1)
    ledger.set_trial_state_values(trial._trial_id, TrialState.WAITING)
    assert same(ledger, storage)
    again = study.ask()
    assert (again.number, again.suggest_float("x", 0, 1)) == (trial.number, x)
    assert same(ledger, storage)
    assert not ledger.set_trial_state_values(trial._trial_id, TrialState.RUNNING)


def test_what_others_queue_is_found(url: str) -> None:
    storage, ledger, study = begun(url)
    train(study, 2)
    other = optuna.load_study(storage=RDBStorage(url), study_name="s")
    other.enqueue_trial({"x": 0.25})
    assert len(study.trials) == 2
    ledger.look()
    assert study.ask().suggest_float("x", 0, 1) == 0.25
    other.enqueue_trial({"x": 0.75})
    study.add_trial(create_trial(state=TrialState.FAIL))
    assert [trial.number for trial in study.trials] == [0, 1, 2, 3, 4]
    assert same(ledger, storage)


def test_what_others_end_is_found_and_not_changed(url: str) -> None:
    storage, ledger, study = begun(url)
    mine = study.ask()
    storage.set_trial_state_values(mine._trial_id, TrialState.COMPLETE, [0.5])
    with pytest.raises(UpdateFinishedTrialError):
        ledger.set_trial_state_values(mine._trial_id, TrialState.FAIL)
    assert same(ledger, storage)
    assert study.trials[0].value == 0.5
    with pytest.raises(UpdateFinishedTrialError):
        mine.set_user_attr("late", 1)


def test_writing_again_what_was_written_changes_nothing(url: str) -> None:
    """A server that goes away in the middle of a call may have done it: the call is made again."""
    storage, ledger, study = begun(url)
    trial = study.ask()
    for _ in range(2):
        ledger.set_trial_param(trial._trial_id, "x", 0.5, FLAT["x"])
        ledger.set_trial_intermediate_value(trial._trial_id, 1, 0.25)
        ledger.set_trial_user_attr(trial._trial_id, "a", {"b": 1})
    assert same(ledger, storage)
    with pytest.raises(ValueError, match="distribution"):
        ledger.set_trial_param(trial._trial_id, "x", 0.0, FLAT["kind"])


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_values_that_are_infinite_or_nan_come_back(url: str, direction: str) -> None:
    storage, _ledger, study = begun(url, direction)
    for value in (float("inf"), float("-inf"), 0.1):
        trial = study.ask()
        trial.report(value, 1)
        study.tell(trial, value)
    last = study.ask()
    last.report(float("nan"), 1)
    assert str(seen(study.get_trials())) == str(seen(storage.get_all_trials(study._study_id)))
    assert study.best_value == (float("-inf") if direction == "minimize" else float("inf"))
    assert study.best_trial.number == storage.get_best_trial(study._study_id).number


def test_looking_at_trials_asks_the_database_nothing(url: str) -> None:
    storage, _ledger, study = begun(url)
    train(study, 3)
    study.ask()
    statements: list[str] = []
    event.listen(storage.engine, "before_cursor_execute", lambda *found: statements.append(str(found[2])))
    assert len(study.get_trials(deepcopy=False)) == 4
    assert len(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))) == 1
    assert study.best_trial.number in (0, 1, 2)
    assert statements == []


def test_it_is_of_one_study(url: str) -> None:
    storage, ledger, _ = begun(url)
    optuna.create_study(storage=storage, study_name="other")
    with pytest.raises(KeyError, match="of study s alone"):
        optuna.load_study(storage=ledger, study_name="other")


def test_what_is_written_together_is_one_transaction_and_known_at_once(url: str) -> None:
    storage, ledger, study = begun(url)
    commits: list[object] = []
    event.listen(storage.engine, "commit", commits.append)
    trial = study.ask()
    commits.clear()
    with ledger.together(), ledger.together():
        trial.suggest_float("x", 0, 1)
        trial.report(0.5, 1)
        trial.set_user_attr("record", {"a": 1})
        assert study.trials[0].intermediate_values == {1: 0.5}
        assert commits == []
        assert storage.get_all_trials(study._study_id)[0].params == {}
        commits.clear()
        study.tell(trial, 0.5)
        assert len(commits) == 1
    assert same(ledger, storage)
    assert storage.get_all_trials(study._study_id)[0].user_attrs == {"record": {"a": 1}}


def test_what_was_written_before_an_error_stays_written(url: str) -> None:
    storage, ledger, study = begun(url)
    trial = study.ask()

    def report_and_fail() -> None:
        with ledger.together():
            trial.report(0.5, 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        report_and_fail()
    assert same(ledger, storage)
    assert study.trials[0].intermediate_values == {1: 0.5}


def test_an_epoch_is_one_statement_where_the_database_can(url: str) -> None:
    storage, ledger, study = begun(url)
    first, second = study.ask(), study.ask()
    statements: list[str] = []
    event.listen(storage.engine, "before_cursor_execute", lambda *found: statements.append(str(found[2])))
    for step, value in ((1, 0.5), (1, 0.25), (2, float("nan")), (3, float("inf"))):
        with ledger.together():
            ledger.set_trial_intermediate_value(first._trial_id, step, value)
            first.set_user_attr("record", {"steps": step})
    written = len(statements)
    assert written == (4 if "postgres" in url else 8)
    with ledger.together():  # of two trials, and two rows of one: each by its own statement
        first.report(0.125, 5)
        second.set_user_attr("record", {"steps": 0})
    with ledger.together():
        first.report(0.125, 6)
        first.report(0.125, 7)
        first.set_user_attr("record", {"steps": 7})
    assert len(statements) == written + 4
    stored = storage.get_all_trials(study._study_id)
    assert str(seen(study.get_trials())) == str(seen(stored))
    assert str(stored[0].intermediate_values) == "{1: 0.25, 2: nan, 3: inf, 5: 0.125, 6: 0.125, 7: 0.125}"
    assert [trial.user_attrs["record"]["steps"] for trial in stored] == [7, 0]


def test_after_a_write_that_failed_blocks_are_written_at_their_end_again() -> None:
    storage, ledger, study = begun("sqlite:///studies.db")
    trial = study.ask()
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE trial_intermediate_values RENAME TO away")
    with pytest.raises(sqlalchemy.exc.OperationalError), ledger.together():
        trial.report(0.5, 1)
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE away RENAME TO trial_intermediate_values")
    with ledger.together():
        trial.report(0.25, 2)
    assert storage.get_all_trials(study._study_id)[0].intermediate_values == {2: 0.25}


def test_an_ended_trial_has_its_packed_attributes_and_shares_its_space(url: str) -> None:
    storage, ledger, study = begun(url)
    ledger = Ledger(storage, study._study_id, packed=("record",))
    study = optuna.load_study(storage=ledger, study_name="s")
    record = {"history": [0.1, 1e-300, 3], "name": "dropout \u00e9"}
    for value in (1.0, 2.0):
        trial = study.ask(FLAT)
        trial.set_user_attr("record", record)
        trial.set_user_attr("other", 1)
        running = study.trials[-1].user_attrs
        assert (json.loads(running["record"]), running["other"]) == (record, 1)
        study.tell(trial, value)
    opened = Ledger(storage, study._study_id, packed=("record",))
    for known in (ledger, opened):
        first, second = known.get_all_trials(study._study_id, deepcopy=False)
        assert json.loads(unpack(second.user_attrs["record"])) == record
        assert second.user_attrs["other"] == 1
        assert first.distributions is second.distributions
        assert first.distributions == FLAT
    assert storage.get_all_trials(study._study_id)[1].user_attrs == {"record": record, "other": 1}
