"""Where a trial's kept model lies and where its run is shown, and the configuration of a trial that a person names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import studies
from stores import free_port
from terminals import run_here

from regtune.study.best import load_best

NAME = "mnist-regularization"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _study() -> None:
    studies.fill(studies.create(Path("mlruns/studies.db")))


def kept(capsys: Capture, trial: int) -> Path:
    """The file of a trial's model, made as a worker makes it."""
    uid = json.loads(run_here(capsys, "show", NAME, str(trial), "--json")[1])["record"]["uid"]
    file = Path("mlruns/artifacts/trials", uid, "model.keras").resolve()
    file.parent.mkdir(parents=True)
    file.touch()
    return file


def test_show_and_best_say_where_the_kept_model_lies(capsys: Capture) -> None:
    said = {"show": ("show", NAME, "3"), "best": ("best", NAME)}
    for words in said.values():
        code, _, errors = run_here(capsys, *words)
        assert (code, errors.endswith("MLflow: regtune ui\n"), "model:" in errors) == (0, True, False)
    file = kept(capsys, 3)
    where = f"model: {file} (takes 784 numbers from 0 to 1)\nMLflow: regtune ui\n"
    for words in said.values():
        assert run_here(capsys, *words)[2].endswith(where)
    shown = json.loads(run_here(capsys, "show", NAME, "3", "--json")[1])
    assert (shown["model"], shown["mlflow"]) == (str(file), "regtune ui")
    assert "model:" not in run_here(capsys, "best", NAME, "-q")[2]
    away = f"http://127.0.0.1:{free_port()}"
    assert run_here(capsys, "show", NAME, "3", MLFLOW_TRACKING_URI=away)[2].endswith(f"MLflow: {away}\n")


def test_best_of_a_trial_that_a_person_names(capsys: Capture) -> None:
    code, _, errors = run_here(capsys, "best", NAME, "--trial", "4", "-o", "best.yaml")
    assert (code, errors.splitlines()[0].startswith("trial 4: ")) == (0, True)
    assert errors.splitlines()[0].endswith(", as you asked")
    provenance = load_best(Path("best.yaml")).provenance
    assert provenance is not None
    assert (provenance.trial, provenance.chosen) == (4, "person")
    for words, said in (
        ("--trial 5", "--trial 5: expected a complete trial, it is pruned; try: regtune board"),
        ("--trial 99", f'study "{NAME}" has no trial 99'),
        ("--trial 4 --control dropout", "--control and --trial: choose one"),
    ):
        code, _, errors = run_here(capsys, "best", NAME, *words.split())
        assert (code, errors.startswith(f"error: {said}"), errors.count("\n")) == (2, True, 1), errors
