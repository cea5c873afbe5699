"""The verbs that train, as a person meets them: one real sweep, one real training, a real MLflow store."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from terminals import Terminal, regtune, run_here

from regtune.training.runtime import configure

configure()

from regtune import load_data, open_study  # noqa: E402
from regtune.errors import StorageError  # noqa: E402
from regtune.settings import load_settings  # noqa: E402
from regtune.storage.mlflow import connect  # noqa: E402
from regtune.study.best import load_best  # noqa: E402
from regtune.study.decision import Decision  # noqa: E402
from regtune.study.decision_text import more_command  # noqa: E402
from regtune.upkeep.cleanup import find_garbage  # noqa: E402

TINY = """\
name: tiny
dataset: mnist-5k
run_cap: 4
model: {hidden: [16]}
training: {max_epochs: 3, batch_size: 128}
parameters: {dropout: {min: 0.0, max: 0.5}, l2: {min: 0.0, max: 0.001}}
early_terminate: null
controls: false
"""
LONG = """\
name: long
dataset: mnist-5k
run_cap: 200
model: {hidden: [16]}
training: {max_epochs: 40}
early_stopping: null
parameters: {dropout: {min: 0.0, max: 0.5}}
controls: false
decide: false
"""
ENDED = re.compile(r"\b[1-9]\d* of 200\b")
"""A trial of LONG has ended; two that end together are shown at once."""
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("swept")
    (path / "tiny.yaml").write_text(TINY)
    (path / "long.yaml").write_text(LONG)
    return path


@pytest.fixture(scope="module")
def swept(folder: Path) -> subprocess.CompletedProcess[str]:
    return regtune("sweep", str(folder / "tiny.yaml"), "--workers", "1", "--home", str(folder / "mlruns"))


@pytest.fixture
def home(swept: subprocess.CompletedProcess[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    assert swept.returncode == 0, swept.stderr
    monkeypatch.chdir(folder)
    return folder / "mlruns"


def test_in_a_pipe_trials_are_lines_and_the_board_the_result(swept: subprocess.CompletedProcess[str]) -> None:
    assert swept.returncode == 0, swept.stderr
    lines = [line for line in swept.stderr.splitlines() if line.startswith("[")]
    assert [line.split("]")[0] for line in lines] == ["[1/4", "[2/4", "[3/4", "[4/4"]
    assert swept.stdout.splitlines()[1].split()[:4] == ["rank", "trial", "state", "val_cross_entropy"]
    assert "best  trial" in swept.stdout
    assert "regtune best tiny -o best.yaml" in swept.stderr
    assert "\x1b" not in swept.stdout + swept.stderr


def test_a_dry_run_is_the_plan_and_another_file_of_that_name_is_refused(home: Path, capsys: Capture) -> None:
    dry = run_here(capsys, "sweep", "tiny.yaml", "--set", "run_cap=5", "--dry-run")
    assert dry == run_here(capsys, "plan", "tiny.yaml", "--set", "run_cap=5")
    assert "resumes; finished trials: 4" in dry[1]
    assert "measured here" in dry[1]
    on_ray = run_here(capsys, "sweep", "tiny.yaml", "--set", "run_cap=5", "--dry-run", "--on", "ray")
    assert on_ray[1] == dry[1]  # on a cluster of this machine
    far = run_here(
        capsys, "sweep", "tiny.yaml", "--set", "run_cap=5", *["--dry-run", "--on", "ray", "--address", "auto"]
    )
    assert "1 worker, less with as many as the Ray cluster has room for" in " ".join(far[1].split())
    assert "none, it is complete" in run_here(capsys, "plan", "tiny.yaml")[1]
    code, _, errors = run_here(capsys, "sweep", "tiny.yaml", "--set", "seed=7")
    assert (code, "seed: 42 → 7" in errors, "--fresh" in errors) == (2, True, True)


def test_a_used_budget_leaves_nothing_and_quiet_prints_the_result_alone(home: Path, capsys: Capture) -> None:
    code, output, errors = run_here(capsys, "sweep", "tiny.yaml", "--quiet")
    assert (code, errors, "best  trial" in output) == (0, "", True)
    assert len(json.loads(run_here(capsys, "board", "tiny", "--json")[1])) == 4
    code, _, errors = run_here(capsys, "enqueue", "tiny", "dropout=0.3", "l2=0.0001")
    assert (code, "dropout=0.3" in errors, "--set run_cap=5" in errors) == (0, True, True)


def test_the_best_trains_again_and_other_data_is_refused(home: Path, capsys: Capture, tmp_path: Path) -> None:
    best = tmp_path / "best.yaml"
    assert run_here(capsys, "best", "tiny", "-o", str(best))[0] == 0
    file = tmp_path / "digits.keras"
    code, output, errors = run_here(capsys, "train", str(best), "-o", str(file), "--json")
    assert code == 0, errors
    result = json.loads(output)
    recorded = load_best(best)
    provenance = recorded.provenance
    assert provenance is not None
    assert (result["identical"], result["figures"]) == (True, provenance.figures)
    assert Path(result["model"]).exists()
    import keras

    data = load_data(recorded.config)
    pixels = np.rint(data.x_val * 255).astype(np.uint8).reshape(-1, 28, 28)
    answers = keras.models.load_model(file).predict(pixels, verbose=0).argmax(axis=1)
    assert (answers == data.y_val).mean() == pytest.approx(provenance.figures["val_accuracy"])
    code, _, errors = run_here(capsys, "train", str(best), "-o", str(file))
    assert (code, errors.startswith(f"error: Replace {file}? There is no terminal to ask")) == (2, True)
    assert not result["unwritten"]
    runs = runs_of(provenance.uid)
    (child,) = (run for run in runs if run.data.tags.get("regtune.trial_uid", "").startswith(result["uid"]))
    (parent,) = (run for run in runs if run.data.tags["regtune.kind"] == "study")
    assert child.info.status == "FINISHED"
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.metrics["best/val_accuracy"] == provenance.figures["val_accuracy"]
    assert str(child.info.run_name).startswith(f"again #{provenance.trial:03d} ")
    (shown,) = re.findall("`regtune (show .*)`", child.data.tags["mlflow.note.content"])
    assert run_here(capsys, *shown.split())[0] == 0
    assert not find_garbage(load_settings())  # neither the study's nor the retraining's
    assert recorded.config.data.digest is not None
    best.write_text(best.read_text().replace(recorded.config.data.digest, "f" * 64))
    code, _, errors = run_here(capsys, "train", str(best))
    assert (code, "expected the same data" in errors) == (2, True)


def test_a_kept_model_is_rebuilt_with_its_weights_and_another_file_is_refused(home: Path) -> None:
    study = open_study("tiny")
    best = int(study.board().loc[0, "trial"])
    config, data = study.config(best), load_data(study.config(best), load_settings().data_dir)
    probabilities = study.model(best).predict(data.x_val, verbose=0)
    right = probabilities[range(len(data.y_val)), data.y_val]
    assert -np.log(right).mean() == pytest.approx(study.board().loc[0, "val_cross_entropy"], rel=1e-5)
    assert config == study.best
    (file,) = load_settings().artifacts.glob(f"trials/*-{best}/model.keras")
    content = file.read_bytes()
    try:
        file.write_bytes(content[:-1] + b"x")
        with pytest.raises(StorageError, match=f"expected the weights of trial {best} of tiny"):
            study.model(best)
    finally:
        file.write_bytes(content)


@pytest.mark.slow
def test_figures_that_differ_are_said_and_are_no_success(home: Path, capsys: Capture, tmp_path: Path) -> None:
    best = tmp_path / "best.yaml"
    run_here(capsys, "best", "tiny", "-o", str(best))
    text = best.read_text()
    recorded = load_best(best)
    assert recorded.provenance is not None
    value = recorded.provenance.figures["val_cross_entropy"]
    best.write_text(text.replace(repr(value), repr(value + 1e-6)))
    code, output, _ = run_here(capsys, "train", str(best), "--quiet")
    assert (code, "The figures differ with the same versions" in output) == (1, True)
    seed = recorded.config.seed
    best.write_text(text.replace(f"seed: {seed}", f"seed: {seed + 1}"))
    code, output, errors = run_here(capsys, "train", str(best))
    why = f"compared: the configuration was changed since trial {recorded.provenance.trial} of tiny was recorded"
    for said in (output, errors):
        assert (code, why in said) == (0, True)


@pytest.mark.slow
def test_ctrl_c_stops_a_decision_and_keeps_its_replicates(home: Path, capsys: Capture) -> None:
    decide = ["decide", "tiny", "--top", "1", "--workers", "1", "--home", str(home)]
    terminal = Terminal(decide, columns=100)
    terminal.until(re.compile(r"\b[1-9]\d* of \d+ replicates"), 180)
    terminal.process.sendintr()
    assert terminal.finish() == 130
    assert "Resumewith:regtunedecidetiny" in "".join(terminal.everything.split())
    assert "Traceback" not in terminal.everything
    code, output, errors = run_here(capsys, *decide, "--budget", "1s", "--json")
    decided = json.loads(output)
    assert (code, decided["trainings"] > 0) == (0, True)
    assert (decided["end"] == "too_few") == (decided["replicates"] == 0)
    more = more_command(Decision.model_validate_json(output))
    assert errors == (f"settle more:  {more} --home {home}\n" if more else "")


def test_delete_asks_first_and_gc_removes_what_was_forgotten(home: Path, capsys: Capture) -> None:
    """The last of those that share the study: it takes it away."""
    settings = load_settings()
    study = optuna.load_study(study_name="tiny", storage=settings.storage_url)
    uid = study.user_attrs["regtune.uid"]
    runs = len(runs_of(uid))
    assert "Nothing to remove." in run_here(capsys, "gc")[2]
    code, _, errors = run_here(capsys, "delete", "tiny")
    assert (code, "add --yes" in errors) == (2, True)
    terminal = Terminal(["delete", "tiny", "--home", str(home)], columns=80)
    terminal.until("[y/N]")
    terminal.process.sendline("n")
    assert terminal.finish() == 1
    assert len(runs_of(uid)) == runs
    older = optuna.create_study(study_name="older", storage=settings.storage_url)
    earlier = optuna.trial.create_trial(value=1.0)
    earlier.datetime_start = datetime(2020, 1, 1)
    older.add_trial(earlier)
    optuna.delete_study(study_name="tiny", storage=settings.storage_url)
    code, _, errors = run_here(capsys, "gc", "--yes")
    assert (code, f"tiny (uid {uid[:12]}, last run 20" in errors) == (0, True)
    assert runs_of(uid) == []
    assert not [path for path in (settings.artifacts / "trials").iterdir() if path.name.startswith(uid)]


# -- Ctrl-C, and another terminal


@pytest.fixture
def sweeping(folder: Path, tmp_path: Path) -> list[str]:
    return ["sweep", str(folder / "long.yaml"), "--workers", "2", "--home", str(tmp_path / "mlruns")]


def states_of(home: Sequence[str]) -> list[str]:
    return [row["state"] for row in json.loads(regtune("board", "long", "--json", *home).stdout)]


@pytest.mark.slow
def test_ctrl_c_ends_the_epoch_and_the_same_line_goes_on(sweeping: list[str]) -> None:
    terminal = Terminal(sweeping, columns=100)
    text = terminal.until(ENDED, 180)
    assert max(len(line) for line in text.splitlines()) <= 100
    terminal.process.sendintr()
    assert terminal.finish() == 130
    everything = terminal.everything
    assert "Traceback" not in everything
    assert "of 200" not in everything.split("rank")[0]
    assert "Resumewith:regtunesweep" in "".join(everything.split())  # the terminal wraps within words
    states = states_of(sweeping[-2:])
    assert set(states) <= {"COMPLETE", "WAITING"}
    again = regtune(*sweeping, "--set", f"run_cap={states.count('COMPLETE') + 2}")
    assert again.returncode == 0
    assert len([line for line in again.stderr.splitlines() if line.startswith("[")]) == 2


@pytest.mark.slow
def test_another_terminal_stops_a_sweep_and_a_second_ctrl_c_loses_nothing(sweeping: list[str]) -> None:
    terminal = Terminal(sweeping, columns=80)
    terminal.until(ENDED, 180)
    busy = regtune(*sweeping)
    assert (busy.returncode, "is being run by process" in busy.stderr) == (1, True)
    asked = regtune("stop", "long", *sweeping[-2:])
    assert f"Asked process {terminal.process.pid}" in asked.stderr
    assert terminal.finish() == 130
    terminal = Terminal(sweeping, columns=80)
    terminal.until(ENDED, 180)
    terminal.process.sendintr()
    time.sleep(0.05)  # two at once would be one
    terminal.process.sendintr()
    assert terminal.finish() == 130
    assert "Traceback" not in terminal.everything
    assert "╭" not in terminal.everything
    states = states_of(sweeping[-2:])
    assert "COMPLETE" in states
    assert "FAIL" not in states


def runs_of(uid: str) -> list[Any]:
    """The runs of a study in the MLflow store of the current folder."""
    settings = load_settings()
    client = connect(settings.mlflow_uri, settings.artifacts)
    experiments = [found.experiment_id for found in client.search_experiments()]
    return list(client.search_runs(experiments, f"tags.`regtune.study_uid` = '{uid}'")) if experiments else []
