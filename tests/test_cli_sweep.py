"""The verbs that train, as a person meets them: real processes, real studies, a real MLflow store."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest
from terminals import Terminal, regtune

from regtune.settings import load_settings
from regtune.storage.mlflow import connect
from regtune.study.best import load_best
from regtune.upkeep.cleanup import find_garbage

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
model: {hidden: [64]}
training: {max_epochs: 40}
early_stopping: null
parameters: {dropout: {min: 0.0, max: 0.5}}
controls: false
"""
ENDED = re.compile(r"\b[1-9]\d* of 200\b")
"""A trial of LONG has ended; two that end together are shown at once."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("swept")
    (made / "tiny.yaml").write_text(TINY)
    (made / "long.yaml").write_text(LONG)
    return made


@pytest.fixture(scope="module")
def swept(folder: Path) -> subprocess.CompletedProcess[str]:
    return regtune("sweep", str(folder / "tiny.yaml"), "--workers", "1", "--home", str(folder / "mlruns"))


@pytest.fixture
def home(swept: subprocess.CompletedProcess[str], folder: Path) -> str:
    assert swept.returncode == 0, swept.stderr
    return str(folder / "mlruns")


def test_in_a_pipe_each_finished_trial_is_a_line_and_the_board_is_the_result(
    swept: subprocess.CompletedProcess[str],
) -> None:
    assert swept.returncode == 0, swept.stderr
    lines = [line for line in swept.stderr.splitlines() if line.startswith("[")]
    assert [line.split("]")[0] for line in lines] == ["[1/4", "[2/4", "[3/4", "[4/4"]
    assert swept.stdout.splitlines()[1].split()[:4] == ["rank", "trial", "state", "val_cross_entropy"]
    assert "best  trial" in swept.stdout
    assert "regtune best tiny -o best.yaml" in swept.stderr
    assert "\x1b" not in swept.stdout + swept.stderr


def test_a_study_that_has_used_its_budget_has_nothing_left_and_quiet_prints_the_result_alone(
    home: str, folder: Path
) -> None:
    again = regtune("sweep", str(folder / "tiny.yaml"), "--workers", "1", "--home", home, "--quiet")
    assert (again.returncode, again.stderr) == (0, "")
    assert "best  trial" in again.stdout
    assert len(json.loads(regtune("board", "tiny", "--json", "--home", home).stdout)) == 4


def test_another_sweep_file_of_the_same_name_is_refused_with_what_differs(home: str, folder: Path) -> None:
    found = regtune("sweep", str(folder / "tiny.yaml"), "--home", home, "--set", "seed=7")
    assert found.returncode == 2
    assert "seed: 42 → 7" in found.stderr
    assert "--fresh" in found.stderr


def test_a_dry_run_is_the_plan(home: str, folder: Path) -> None:
    more = (str(folder / "tiny.yaml"), "--home", home, "--set", "run_cap=5")
    dry = regtune("sweep", *more, "--dry-run")
    assert dry.stdout == regtune("plan", *more).stdout
    assert "goes on; finished trials: 4" in dry.stdout
    assert "measured here" in dry.stdout
    assert "none, it is finished" in regtune("plan", *more[:3]).stdout


def test_a_configuration_can_be_asked_for(home: str) -> None:
    found = regtune("enqueue", "tiny", "dropout=0.3", "l2=0.0001", "--home", home)
    assert (found.returncode, "dropout=0.3" in found.stderr) == (0, True)
    for wrong, said in (
        ("drop=0.3", 'did you mean "dropout"'),
        ("dropout=0.9", "0.9"),
        ("dropout", "dropout"),
    ):
        refused = regtune("enqueue", "tiny", wrong, "--home", home)
        assert refused.returncode == 2
        assert said in refused.stderr
        assert "Traceback" not in refused.stderr


def test_the_best_trains_again_bit_for_bit(home: str, tmp_path: Path) -> None:
    best = tmp_path / "best.yaml"
    assert regtune("best", "tiny", "-o", str(best), "--home", home).returncode == 0
    found = regtune("train", str(best), "--home", home, "--json")
    assert found.returncode == 0, found.stderr
    result = json.loads(found.stdout)
    provenance = load_best(best).provenance
    assert provenance is not None
    assert result["identical"] is True
    assert result["figures"] == provenance.figures
    assert Path(result["model"]).exists()
    assert not result["unwritten"]
    runs = runs_of(home, provenance.uid)
    (child,) = (run for run in runs if run.data.tags.get("regtune.trial_uid", "").startswith(result["uid"]))
    (parent,) = (run for run in runs if run.data.tags["regtune.kind"] == "study")
    assert child.info.status == "FINISHED"
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.metrics["best/val_accuracy"] == provenance.figures["val_accuracy"]
    assert str(child.info.run_name).startswith(f"again #{provenance.trial:03d} ")
    (shown,) = re.findall("`regtune (show .*)`", child.data.tags["mlflow.note.content"])
    assert regtune(*shown.split(), "--home", home).returncode == 0


@pytest.mark.slow
def test_figures_that_differ_are_said_and_are_no_success(home: str, tmp_path: Path) -> None:
    best = tmp_path / "best.yaml"
    regtune("best", "tiny", "-o", str(best), "--home", home)
    text = best.read_text()
    recorded = load_best(best)
    assert recorded.provenance is not None
    value = recorded.provenance.figures["val_cross_entropy"]
    best.write_text(text.replace(repr(value), repr(value + 1e-6)))
    found = regtune("train", str(best), "--home", home, "--quiet")
    assert found.returncode == 1
    assert "The figures differ with the same versions" in found.stdout
    seed = recorded.config.seed
    best.write_text(text.replace(f"seed: {seed}", f"seed: {seed + 1}"))
    other = regtune("train", str(best), "--home", home)
    assert other.returncode == 0
    why = f"ot compared: the configuration was changed since trial {recorded.provenance.trial} of tiny was recorded"
    assert f"n{why}: seed: {seed} → {seed + 1}" in other.stderr
    assert f"N{why}: seed: {seed} → {seed + 1}." in other.stdout


def test_other_data_than_the_recorded_is_refused(home: str, tmp_path: Path) -> None:
    best = tmp_path / "best.yaml"
    regtune("best", "tiny", "-o", str(best), "--home", home)
    digest = load_best(best).config.data.digest
    assert digest is not None
    best.write_text(best.read_text().replace(digest, "f" * 64))
    found = regtune("train", str(best), "--home", home)
    assert found.returncode == 2
    assert "expected the same data" in found.stderr


def test_nothing_of_a_study_or_of_a_retraining_is_garbage(home: str) -> None:
    assert not find_garbage(load_settings(home=Path(home)))
    assert "Nothing to remove." in regtune("gc", "--home", home).stderr


def test_gc_leaves_stores_alone_that_other_folders_may_share(home: str) -> None:
    (Path(home) / "artifacts" / "trials" / "gone-0").mkdir(parents=True)
    try:
        shared = load_settings(home=Path(home), storage="sqlite:////elsewhere/studies.db")
        assert not find_garbage(shared)
        (left,) = find_garbage(load_settings(home=Path(home)))
        assert [folder.name for folder in left.folders] == ["gone-0"]
        assert left.kept == "no run in MLflow says whose they are"
        assert "gone" in regtune("gc", "--yes", "--home", home).stderr
        assert left.folders[0].is_dir()
    finally:
        shutil.rmtree(Path(home) / "artifacts" / "trials" / "gone-0")


def test_delete_removes_the_study_its_runs_and_its_artifacts_and_gc_what_was_forgotten(home: str) -> None:
    """The last of this module: it takes the study away."""
    import optuna

    settings = load_settings(home=Path(home))
    study = optuna.load_study(study_name="tiny", storage=settings.storage_url)
    uid = study.user_attrs["regtune.uid"]
    trials = settings.artifacts / "trials"
    assert [path for path in trials.iterdir() if path.name.startswith(uid)]
    runs = runs_of(home, uid)
    kinds = Counter(run.data.tags["regtune.kind"] for run in runs)
    assert (kinds["study"], kinds["trial"]) == (1, 4)
    refused = regtune("delete", "tiny", "--home", home)
    assert (refused.returncode, "add --yes" in refused.stderr) == (2, True)
    assert len(runs_of(home, uid)) == len(runs)
    terminal = Terminal(["delete", "tiny", "--home", home], columns=80)
    terminal.until("[y/N]")
    terminal.process.sendline("n")
    assert terminal.finish() == 1
    assert len(runs_of(home, uid)) == len(runs)
    older = optuna.create_study(study_name="older", storage=settings.storage_url)
    earlier = optuna.trial.create_trial(value=1.0)
    earlier.datetime_start = datetime(2020, 1, 1)
    older.add_trial(earlier)
    optuna.delete_study(study_name="tiny", storage=settings.storage_url)
    (found,) = find_garbage(settings)
    assert (found.uid, found.name, found.runs, found.kept) == (uid, "tiny", len(runs), "")
    removed = regtune("gc", "--yes", "--home", home)
    assert (removed.returncode, f"tiny (uid {uid[:12]}, last run 20" in removed.stderr) == (0, True)
    assert runs_of(home, uid) == []
    assert not [path for path in trials.iterdir() if path.name.startswith(uid)]
    assert not find_garbage(settings)


@pytest.mark.slow
@pytest.mark.parametrize("columns", [40, 100])
def test_ctrl_c_stops_at_the_epoch_s_end_and_the_same_line_goes_on(
    folder: Path, tmp_path: Path, columns: int
) -> None:
    arguments = ["sweep", str(folder / "long.yaml"), "--workers", "2", "--home", str(tmp_path / "mlruns")]
    terminal = Terminal(arguments, columns=columns)
    text = terminal.until(ENDED, 180)
    assert max(len(line) for line in text.splitlines()) <= columns
    terminal.process.sendintr()
    assert terminal.finish() == 130
    everything = terminal.everything
    assert "Traceback" not in everything
    assert "of 200" not in everything.split("rank")[0]
    assert "Goonwith:regtunesweep" in "".join(everything.split())  # the terminal wraps within words
    rows = json.loads(regtune("board", "long", "--json", "--home", str(tmp_path / "mlruns")).stdout)
    assert {row["state"] for row in rows} <= {"COMPLETE", "WAITING"}
    finished = sum(row["state"] == "COMPLETE" for row in rows)
    again = regtune(*arguments, "--set", f"run_cap={finished + 2}")
    assert again.returncode == 0
    assert len([line for line in again.stderr.splitlines() if line.startswith("[")]) == 2


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_and_loses_nothing(folder: Path, tmp_path: Path) -> None:
    home = str(tmp_path / "mlruns")
    terminal = Terminal(["sweep", str(folder / "long.yaml"), "--workers", "2", "--home", home], columns=80)
    terminal.until(ENDED, 180)
    terminal.process.sendintr()
    time.sleep(0.05)  # two at once would be one
    terminal.process.sendintr()
    assert terminal.finish() == 130
    assert "Traceback" not in terminal.everything
    assert "╭" not in terminal.everything
    rows = json.loads(regtune("board", "long", "--json", "--home", home).stdout)
    assert sum(row["state"] == "COMPLETE" for row in rows) >= 1
    assert not [row for row in rows if row["state"] == "FAIL"]


@pytest.mark.slow
def test_another_terminal_can_stop_a_sweep(folder: Path, tmp_path: Path) -> None:
    home = str(tmp_path / "mlruns")
    terminal = Terminal(["sweep", str(folder / "long.yaml"), "--workers", "1", "--home", home], columns=80)
    terminal.until(ENDED, 180)
    busy = regtune("sweep", str(folder / "long.yaml"), "--home", home)
    assert (busy.returncode, "is being run by process" in busy.stderr) == (1, True)
    asked = regtune("stop", "long", "--home", home)
    assert f"Asked process {terminal.process.pid}" in asked.stderr
    assert terminal.finish() == 130


def runs_of(home: str, uid: str) -> list[object]:
    settings = load_settings(home=Path(home))
    client = connect(settings.mlflow_uri, settings.artifacts)
    experiments = [found.experiment_id for found in client.search_experiments()]
    return list(client.search_runs(experiments, f"tags.`regtune.study_uid` = '{uid}'")) if experiments else []
