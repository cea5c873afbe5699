"""The sweeps of the repository: each says what it asks, each can be run."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from specs import SWEEPS

from regtune.config.sweepfile import SweepSpec
from regtune.config.sweepfile.parameters import Constant
from regtune.config.trial import DataConfig
from regtune.search import Space, controls


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_begins_with_its_question_has_room_beside_its_controls_and_proposes_configurations(
    path: Path,
):
    first = path.read_text(encoding="utf-8").split("\n\n", 1)[0]
    assert all(line.startswith("# ") for line in first.splitlines())
    assert "?" in first
    spec = SweepSpec.load(path)
    space, data = Space(spec), DataConfig(name=spec.dataset)
    assert spec.warnings == ()
    assert spec.run_cap is not None
    assert sum(bool(one.parameters) or spec.method != "grid" for one in controls(spec, data)) < spec.run_cap
    if spec.method == "grid":
        assert spec.run_cap == space.size
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    assert len({space.config(space.suggest(study.ask()), seed=0, data=data) for _ in range(9)}) > 1


def test_the_notebook_is_repeated_with_dropout_and_without():
    spec = SweepSpec.load(next(path for path in SWEEPS if path.stem == "notebook"))
    assert [found["dropout"] for found in Space(spec).grid()] == [0.0, 0.2]
    assert spec.model.hidden == (128, 64)
    assert (spec.training.optimizer, spec.training.learning_rate) == ("adam", 0.001)
    assert (spec.training.batch_size, spec.training.max_epochs, spec.training.fused) == (32, 10, False)
    assert (spec.split.validation, spec.split.seed) == (0.2, 42)
    assert (spec.early_stopping, spec.controls, spec.dataset) == (None, False, "mnist")
    assert not any(isinstance(found, Constant) for found in spec.parameters.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["notebook", "per_layer"])
def test_a_sweep_runs(name: str):
    from regtune.settings import load_settings
    from regtune.sweep import run_sweep

    spec = SweepSpec.load(
        SWEEPS[0].with_stem(name),
        ["dataset=mnist-5k", "training.max_epochs=2", "controls=false", "run_cap=2", "timeout=null"],
    )
    settings = load_settings()
    run_sweep(spec, settings=settings, workers=1)
    study = optuna.load_study(study_name=spec.name, storage=settings.storage_url)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE"]
    assert len(study.trials[0].params) >= 1
