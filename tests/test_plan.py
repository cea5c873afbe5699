"""The plan says what the sweep then does, and imports nothing that trains."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import studies
from optuna.trial import TrialState, create_trial
from terminals import environment

from regtune.config.sweepfile import SweepSpec
from regtune.config.trial import TrainingConfig
from regtune.data.datasets import load_arrays
from regtune.settings import load_settings
from regtune.study.record import DATA
from regtune.sweep.plan import Plan, make_plan

SEARCHED = {"dropout": {"min": 0.0, "max": 0.6}, "batchnorm": {"values": ["none", "before_activation"]}}
SPEC = {"name": "planned", "dataset": "mnist-5k", "run_cap": 20, "decide": False, "parameters": SEARCHED}


def spec(**changes: object) -> SweepSpec:
    return SweepSpec.from_dict({**SPEC, **changes})


def begun(name: str = "mnist-5k", **changes: object) -> optuna.Study:
    """The study `planned` in its database, on this data set."""
    study = studies.create(Path("mlruns/studies.db"), "planned", spec=spec(**changes).identity())
    study.set_user_attr(DATA, {"name": name, "digest": load_arrays(name).digest})
    return study


def test_planning_imports_neither_tensorflow_nor_mlflow() -> None:
    code = (
        "import sys; from regtune.sweep.plan import make_plan; from regtune.settings import load_settings; "
        f"from regtune.config.sweepfile import SweepSpec; make_plan(SweepSpec.from_dict({SPEC!r}), load_settings()); "
        "print(sorted({'tensorflow', 'keras', 'mlflow'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], env=environment()).strip() == b"[]"


def test_without_measurements_the_time_is_a_guess_bounded_by_the_timeout_and_nothing_is_written(
    tmp_path: Path,
) -> None:
    duration = make_plan(spec(), load_settings()).duration
    assert duration is not None
    assert duration.epochs_measured == 0
    assert 0 < duration.seconds < duration.at_most_seconds
    timed = make_plan(spec(run_cap=None, timeout=90), load_settings()).duration
    assert timed is not None
    assert timed.seconds == timed.at_most_seconds == 90
    assert list(tmp_path.iterdir()) == []


def test_the_decision_is_a_part_of_the_plan_and_of_its_time() -> None:
    searching, deciding = (make_plan(spec(decide=share), load_settings()) for share in (False, 0.5))
    assert (searching.decision_share, deciding.decision_share) == (0, 0.5)
    assert searching.duration is not None
    assert deciding.duration is not None
    assert deciding.duration.at_most_seconds == pytest.approx(1.5 * searching.duration.at_most_seconds)


def test_epochs_measured_in_this_folder_are_taken() -> None:
    study = studies.create(Path("mlruns/studies.db"), "earlier")
    studies.add(study, studies.record(0, {"dropout": 0.1}, epochs=12), TrialState.COMPLETE)
    other = studies.record(1, {"dropout": 0.1}, epochs=12, training=TrainingConfig(batch_size=512))
    studies.add(study, other, TrialState.COMPLETE)
    duration = make_plan(spec(), load_settings(workers=2)).duration
    assert duration is not None
    assert (duration.epochs_measured, duration.epochs_a_trial) == (11, 12)
    assert duration.epoch_seconds == pytest.approx(studies.EPOCH_MS / 1000)
    assert duration.seconds == pytest.approx(8 + 20 / 2 * 12 * studies.EPOCH_MS / 1000)


def most_seconds(plan: Plan, trials: int) -> Any:
    assert plan.duration is not None
    return pytest.approx(8 + trials * plan.max_epochs * plan.duration.epoch_seconds)


def test_a_grid_is_counted_controls_come_beside_it_and_what_a_budget_has_no_room_for_is_said() -> None:
    grid = {"method": "grid", "parameters": {"dropout": {"values": [0.0, 0.1, 0.2]}}}
    plan = make_plan(spec(**grid, run_cap=1000), load_settings(workers=1))
    assert (plan.size, plan.untried, make_plan(spec(**grid, run_cap=2), load_settings()).untried) == (3, 0, 1)
    assert not make_plan(spec(run_cap=4), load_settings()).controls_fit
    assert make_plan(spec(run_cap=4, controls=False), load_settings()).controls == ()
    beside = len(plan.controls) - 2  # early stopping alone and dropout 0.2 are points of the grid
    assert (plan.beside, plan.controls_fit) == (beside, True)
    assert plan.duration is not None
    assert plan.duration.at_most_seconds == most_seconds(plan, 3 + beside)
    study = begun(**grid)
    for number, parameters in enumerate([{}, {"dropout": 0.0}, {"dropout": 0.1}, {"dropout": 0.1}]):
        studies.add(study, studies.record(number, parameters), TrialState.COMPLETE)
    left = make_plan(spec(**grid, run_cap=4), load_settings(workers=1))
    assert left.standing == "resumes; 2 of 3 points of the grid are tried"
    assert left.duration is not None
    assert left.duration.at_most_seconds == most_seconds(left, beside)  # one point, and one control less
    ended = (
        "complete; 2 of 3 points of the grid are tried; resume with: the same command with --set run_cap=4"
    )
    assert make_plan(spec(**grid, run_cap=3), load_settings()).standing == ended


def test_a_plan_is_of_the_trials_that_are_left() -> None:
    study = begun()
    for number in range(3):
        studies.add(study, studies.record(number, {"dropout": 0.1}, epochs=12), TrialState.COMPLETE)
    left = make_plan(spec(run_cap=4), load_settings(workers=1))
    assert left.duration is not None
    assert (left.standing, left.refusal) == ("resumes; finished trials: 3", "")
    assert left.duration.seconds == pytest.approx(8 + 1 * 12 * studies.EPOCH_MS / 1000)
    ended = make_plan(spec(run_cap=3), load_settings(workers=1))
    said = "complete; finished trials: 3; resume with: the same command with --set"
    assert (ended.duration, ended.standing) == (None, f"{said} run_cap=4")
    assert make_plan(spec(run_cap=3), load_settings(), fresh=True).duration is not None
    record = studies.of(study, studies.record(3, {"dropout": 0.1}))
    longer = create_trial(value=0.1, user_attrs=studies.attributes(record))
    assert longer.datetime_start is not None
    longer.datetime_start -= timedelta(seconds=100)
    study.add_trial(longer)
    timed = make_plan(spec(run_cap=None, timeout=90), load_settings())
    assert timed.standing == f"{said.replace('3', '4')} timeout=180"
    assert make_plan(spec(run_cap=None, timeout=900), load_settings()).duration.seconds < 801


def test_data_elsewhere_is_the_same_data_and_other_data_of_the_same_name_is_not() -> None:
    one, other = Path("a/data.npz"), Path("b/UPPER.NPZ")
    for path in (one, other):
        path.parent.mkdir()
        with path.open("wb") as file:
            np.savez(file, x_train=np.eye(784), y_train=np.arange(784) % 2)
    studies.add(
        begun(str(one), dataset=str(one)), studies.record(0, {"dropout": 0.1}, epochs=12), TrialState.COMPLETE
    )
    elsewhere = make_plan(spec(dataset=str(other)), load_settings())
    assert (elsewhere.refusal, elsewhere.standing) == ("", "resumes; finished trials: 1")
    assert elsewhere.duration is not None
    assert elsewhere.duration.epochs_measured == 11
    changed = make_plan(spec(dataset="mnist-5k"), load_settings())
    assert "data: a/data.npz with digest " in changed.refusal


def test_a_study_of_the_same_name_that_is_of_another_spec_says_why_it_cannot_go_on() -> None:
    begun()
    changed = make_plan(spec(seed=7), load_settings())
    assert "what differs:\n  seed: 42 → 7" in changed.refusal
    assert make_plan(spec(seed=7), load_settings(), fresh=True).refusal == ""
    assert make_plan(spec(name="other"), load_settings()).standing == "new"
