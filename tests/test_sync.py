"""`regtune sync` on studies of real sweeps: all comes back, nothing twice, every damage is found and mended."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType
from terminals import regtune
from test_sweep import spec

from regtune.executors.local import LocalExecutor
from regtune.settings import Settings, load_settings
from regtune.study.ownership import hold
from regtune.sweep import run_sweep
from regtune.tracking import names
from regtune.tracking.sync import sync

pytestmark = pytest.mark.slow
RUNS = {names.PARENT, names.BEST_RUN}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three studies: one set aside, one of the same sweep after it, and one cut short."""
    folder = tmp_path_factory.mktemp("made")
    settings = load_settings(home=folder / "mlruns")
    executor = LocalExecutor(1)
    try:
        run_sweep(spec(run_cap=4, controls=True), settings=settings, executor=executor)
        run_sweep(spec(run_cap=3), settings=settings, executor=executor, fresh=True)
        run_sweep(spec(name="another + one", run_cap=3), settings=settings, executor=executor)
    finally:
        executor.close()
    return folder


@pytest.fixture
def settings(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """The same folder, at the same place, as it was made."""
    saved = tmp_path / "saved"
    shutil.copytree(made / "mlruns", saved)
    monkeypatch.chdir(made)
    yield load_settings()
    shutil.rmtree(made / "mlruns")
    shutil.copytree(saved, made / "mlruns")


def dump(settings: Settings) -> Any:
    """All that MLflow's own client says, asked in a process of its own: here it would go on reading a deleted file."""
    code = "import json, test_sync; print(json.dumps(test_sync.everything(), sort_keys=True))"
    path = os.pathsep.join((str(Path(__file__).parent), str(Path(__file__).parents[1])))
    variables = {**os.environ, "PYTHONPATH": path}
    asked = subprocess.check_output([sys.executable, "-c", code], env=variables, text=True)
    return json.loads(asked.splitlines()[-1])


def everything() -> dict[str, Any]:
    """Experiments and runs of the current folder, without the ids that MLflow gives and who was logged in."""
    client = MlflowClient(load_settings().mlflow_uri)
    found: dict[str, Any] = {}
    for experiment in client.search_experiments(ViewType.ALL):
        if names.SWEEP not in experiment.tags:
            continue
        runs = client.search_runs([experiment.experiment_id], "", ViewType.ALL, 1000)
        uids = {run.info.run_id: _uid(run) for run in runs}
        assert len(set(uids.values())) == len(runs), "a run was made twice"
        found[experiment.name] = {
            "tags": dict(experiment.tags),
            "runs": {_uid(run): _run(client, run, uids) for run in runs},
        }
    return found


def differences(found: Any, wanted: Any, where: str = "") -> Iterator[str]:
    """Where two dumps differ."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            yield from differences(found.get(key), wanted.get(key), f"{where}/{key}")
    elif found != wanted:
        yield f"{where}: {found!r}, not {wanted!r}"


def _uid(run: Any) -> str:
    return str(run.data.tags.get(names.TRIAL_UID) or run.data.tags[names.STUDY_TAG])


def _run(client: MlflowClient, run: Any, uids: dict[str, str]) -> Any:
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    return {
        "info": (run.info.run_name, run.info.status, run.info.start_time, run.info.end_time),
        "stage": run.info.lifecycle_stage,
        "params": dict(run.data.params),
        "tags": {name: value for name, value in run.data.tags.items() if name not in {*RUNS, "mlflow.user"}},
        "ids": {name: uids[run.data.tags[name]] for name in RUNS & run.data.tags.keys()},
        "curves": {
            name: [(m.step, m.value, m.timestamp) for m in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        },
        "inputs": sorted(
            (entry.dataset.name, entry.dataset.digest, *((tag.key, tag.value) for tag in entry.tags))
            for entry in run.inputs.dataset_inputs
        ),
        "files": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*")
            if path.is_file()
        },
    }


def content(settings: Settings) -> str:
    """Every row of MLflow's database."""
    with sqlite3.connect(settings.home / "mlflow.db") as database:
        text = "\n".join(database.iterdump())
    database.close()
    return text


def remove(settings: Settings) -> None:
    """What somebody does who tidies up."""
    for path in settings.home.glob("mlflow.db*"):
        path.unlink()
    shutil.rmtree(settings.artifacts / "runs")


def test_what_a_sweep_has_written_lacks_nothing_and_comes_back_whole_when_it_was_deleted(
    settings: Settings,
) -> None:
    before, unchanged = dump(settings), content(settings)
    study = optuna.load_study(study_name="small", storage=settings.storage_url)
    study.enqueue_trial({"dropout": 0.1})  # it has not begun, so that MLflow lacks nothing of it
    found = regtune("sync", "--check")
    assert (found.returncode, found.stderr) == (0, ""), found.stdout
    assert found.stdout.count("MLflow is up to date") == 3
    assert content(settings) == unchanged
    assert sum(len(experiment["runs"]) for experiment in before.values()) == 4 + 3 + 3 + 3
    remove(settings)
    checked = regtune("sync", "--check")
    assert checked.returncode == 1
    assert "4 trials without a run" in checked.stdout
    assert not (settings.home / "mlflow.db").exists()
    brought = regtune("sync")
    assert brought.returncode == 0, brought.stderr
    others = [line for line in differences(dump(settings), before) if "study small (until" not in line]
    assert others == []  # the run of the study that was set aside gets the name that it has now
    written = content(settings)
    assert regtune("sync", "--check").returncode == 0
    again = regtune("sync", "--json")
    assert [entry["wrote"] for entry in json.loads(again.stdout)] == 3 * [{"trials": 0, "own": False}]
    assert content(settings) == written


CHOSEN = """
    SELECT runs.run_uuid, artifact_uri FROM runs
    JOIN tags ON tags.run_uuid = runs.run_uuid AND tags.key = 'regtune.sha256.model.keras'
    JOIN params ON params.run_uuid = runs.run_uuid AND params.key = 'dropout'
    JOIN experiments USING (experiment_id) WHERE experiments.name = 'small' ORDER BY runs.start_time DESC
"""
"""Trials that have parameters and a model."""
DAMAGES = {
    "DELETE FROM metrics WHERE run_uuid = :run AND key = 'val_loss'; "
    "DELETE FROM latest_metrics WHERE run_uuid = :run AND key = 'val_loss'": "points",
    "UPDATE tags SET value = '17' WHERE run_uuid = :run AND key = 'regtune.seed'": "tags",
    "DELETE FROM tags WHERE run_uuid = :run AND key = 'regtune.mix'": "tags",
    "DELETE FROM params WHERE run_uuid = :run AND key = 'dropout'": "params",
    "UPDATE runs SET status = 'RUNNING' WHERE run_uuid = :run": "state",
    "config.yaml": "config.yaml",
    "model.keras": "files",
    "; ".join(
        f"DELETE FROM {table} WHERE run_uuid = :run"
        for table in ("latest_metrics", "metrics", "params", "tags", "runs")
    ): "",
}
"""What is done to a run -> what it lacks then; empty: it is gone."""


def test_every_damage_is_found_and_all_are_mended(settings: Settings) -> None:
    before = dump(settings)
    with closing(sqlite3.connect(settings.home / "mlflow.db")) as database:
        rows = database.execute(CHOSEN).fetchall()
        for damage, kind in DAMAGES.items():
            run, place = rows[0] if kind else rows[1]
            if damage.endswith((".yaml", ".keras")):
                (Path(place.removeprefix("file://")) / damage).unlink()
            else:
                for statement in damage.split("; "):
                    assert database.execute(statement, {"run": run}).rowcount >= 1
            database.commit()
            (found,) = sync(settings, ["small"], check=True, tell=lambda *_: None)
            assert found.lacks is not None
            assert kind in found.lacks.kinds if kind else found.lacks.absent == 1
    said = regtune("sync", "--check")
    assert (said.returncode, "small: MLflow lacks" in said.stdout) == (1, True)
    assert regtune("sync").returncode == 0
    assert regtune("sync", "--check").returncode == 0
    assert list(differences(dump(settings), before)) == []


def test_a_study_that_is_being_run_is_left_to_its_sweep(settings: Settings) -> None:
    remove(settings)
    with hold(settings, "small"):
        found = regtune("sync", "--json")
    by_name = {entry["study"]: entry for entry in json.loads(found.stdout)}
    assert f"process {os.getpid()}" in by_name["small"]["running"]
    assert by_name["another + one"]["wrote"] == {"trials": 3, "own": True}
    assert by_name["small"]["wrote"] is None
