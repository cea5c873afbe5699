"""What regtune relies on of Optuna beside its public interface: these tests fail when a new version changes it."""

from __future__ import annotations

import optuna
from optuna.distributions import FloatDistribution
from optuna.samplers import RandomSampler
from optuna.samplers._tpe.sampler import default_gamma
from optuna.storages import RDBStorage

from regtune.search.samplers import BEST
from regtune.storage.optuna import FIXED_PARAMS, rename_study
from regtune.storage.schema import STUDIES


def storage() -> RDBStorage:
    return RDBStorage("sqlite:///studies.db")


def test_a_queued_trial_gets_what_its_attribute_says() -> None:
    study = optuna.create_study(study_name="s", storage=storage(), sampler=RandomSampler(seed=1))
    study.enqueue_trial({"x": 0.25})
    assert study.trials[0].system_attrs == {FIXED_PARAMS: {"x": 0.25}}
    id_ = storage().get_trial_id_from_study_id_trial_number(storage().get_study_id_from_name("s"), 0)
    storage().set_trial_system_attr(id_, FIXED_PARAMS, {"x": 0.75})
    assert study.ask({"x": FloatDistribution(0, 1)}).params == {"x": 0.75}


def test_the_newest_migration_is_the_revision_that_optuna_writes() -> None:
    assert STUDIES.migrations.head == storage().get_head_version() == storage().get_current_version()


def test_a_renamed_study_keeps_its_trials() -> None:
    study = optuna.create_study(study_name="before", storage=storage())
    study.tell(study.ask(), 0.5)
    rename_study(storage(), storage().get_study_id_from_name("before"), "after")
    assert optuna.get_all_study_names(storage()) == ["after"]
    assert optuna.load_study(study_name="after", storage=storage()).best_value == 0.5


def test_tpe_takes_no_more_trials_for_good_ones_than_a_bounded_history_keeps() -> None:
    assert max(map(default_gamma, (10, 100, 1000, 10**6))) <= BEST
