"""The plan says what the sweep then does, and imports nothing that trains."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import studies
from optuna.trial import TrialState
from terminals import environment

from regtune.config import TrainingConfig
from regtune.plan import make_plan
from regtune.settings import load_settings
from regtune.spec import SweepSpec

SPEC = {
    "name": "planned",
    "dataset": "mnist-5k",
    "run_cap": 20,
    "parameters": {
        "dropout": {"min": 0.0, "max": 0.6},
        "batchnorm": {"values": ["none", "before_activation"]},
    },
}


def spec(**changes: object) -> SweepSpec:
    return SweepSpec.from_dict({**SPEC, **changes})


def test_planning_imports_neither_tensorflow_nor_mlflow() -> None:
    code = (
        "import sys; from regtune.plan import make_plan; from regtune.settings import load_settings; "
        f"from regtune.spec import SweepSpec; make_plan(SweepSpec.from_dict({SPEC!r}), load_settings()); "
        "print(sorted({'tensorflow', 'keras', 'mlflow'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False
    )
    assert found.stdout.strip() == "[]", found.stderr


def test_planning_writes_nothing(tmp_path: Path) -> None:
    make_plan(spec(), load_settings())
    assert list(tmp_path.iterdir()) == []


def test_without_measurements_the_time_is_marked_as_a_guess() -> None:
    plan = make_plan(spec(), load_settings())
    assert plan.duration is not None
    assert plan.duration.epochs_measured == 0
    assert 0 < plan.duration.seconds < plan.duration.at_most_seconds


def test_epochs_measured_in_this_folder_are_taken() -> None:
    study = studies.create(Path("mlruns/studies.db"), "earlier")
    studies.add(study, studies.record(0, {"dropout": 0.1}, epochs=12), TrialState.COMPLETE)
    other = studies.record(1, {"dropout": 0.1}, epochs=12, training=TrainingConfig(batch_size=512))
    studies.add(study, other, TrialState.COMPLETE)
    plan = make_plan(spec(), load_settings(workers=2))
    assert plan.duration is not None
    assert plan.duration.epochs_measured == 11
    assert plan.duration.epoch_seconds == pytest.approx(studies.EPOCH_MS / 1000)
    assert plan.duration.epochs_a_trial == 12
    assert plan.duration.seconds == pytest.approx(8 + 20 / 2 * 12 * studies.EPOCH_MS / 1000)


def test_a_timeout_bounds_the_time() -> None:
    plan = make_plan(spec(run_cap=None, timeout=90), load_settings())
    assert plan.duration is not None
    assert plan.duration.seconds == plan.duration.at_most_seconds == 90


def test_a_grid_is_counted_and_runs_no_more_than_there_is() -> None:
    grid = {"dropout": {"values": [0.1, 0.2, 0.3]}, "batchnorm": {"values": ["none", "before_activation"]}}
    plan = make_plan(spec(method="grid", parameters=grid, run_cap=1000), load_settings(workers=1))
    assert plan.size == 6
    assert plan.duration is not None
    trials = 6 + len(plan.controls)
    assert plan.duration.at_most_seconds == pytest.approx(
        8 + trials * plan.max_epochs * plan.duration.epoch_seconds
    )


def test_a_budget_too_small_for_the_controls_is_said() -> None:
    assert make_plan(spec(), load_settings()).controls_fit
    assert not make_plan(spec(run_cap=4), load_settings()).controls_fit
    assert make_plan(spec(run_cap=4, controls=False), load_settings()).controls == ()


def test_what_a_budget_leaves_out_of_a_grid_is_said() -> None:
    grid = {"method": "grid", "parameters": {"dropout": {"values": [0.0, 0.1, 0.2]}}}
    assert make_plan(spec(**grid), load_settings()).untried == 0
    assert make_plan(spec(**grid, run_cap=8), load_settings()).untried == 2


def test_missing_data_is_said_and_does_not_prevent_the_plan(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("regtune.data.KERAS_CACHE", tmp_path)
    plan = make_plan(spec(dataset="mnist"), load_settings(data_dir=tmp_path))
    assert "regtune data fetch mnist" in plan.data_problem
    assert plan.duration is not None


def test_a_study_of_the_same_name_goes_on_or_says_why_not() -> None:
    study = studies.create(Path("mlruns/studies.db"), "planned", spec=spec().identity())
    studies.add(study, studies.record(0, {"dropout": 0.1}), TrialState.COMPLETE)
    assert make_plan(spec(run_cap=50), load_settings()).standing == "goes on; finished trials: 1"
    changed = make_plan(spec(seed=7), load_settings())
    assert changed.differences == ("seed: 42 → 7",)
    assert make_plan(spec(name="other"), load_settings()).standing == "new"
