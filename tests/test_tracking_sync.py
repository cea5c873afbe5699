"""`regtune sync` and deletion: all comes back, nothing twice, every damage is found and mended."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Collection
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import tracking_records as records
from mlflow import MlflowClient
from stores import free_port
from terminals import run_here

from regtune.errors import TrackingError
from regtune.server.process import serving
from regtune.settings import Settings
from regtune.study.ownership import hold
from regtune.tracking import names
from regtune.tracking.live import Follower
from regtune.tracking.missing import Missing
from regtune.tracking.store import delete_study, tracked_studies
from regtune.tracking.studies import Recorded
from regtune.tracking.sync import Synced, catch_up, sync


@pytest.fixture
def settings(tmp_path: Path, empty_mlflow: bytes) -> Settings:
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "mlflow.db").write_bytes(empty_mlflow)
    return Settings(REGTUNE_HOME=tmp_path / "mlruns")


@pytest.fixture
def swept(settings: Settings) -> Settings:
    """A study of four trials, and MLflow as its sweep has left it."""
    sweep = records.Sweeping(settings.storage_url)
    sweep.write(*records.with_model(records.complete(0), settings.artifacts))
    sweep.write(*records.failed(1, "pruned"))
    sweep.write(*records.complete(2))
    sweep.write(*records.failed(3, "non_finite"))
    sweep.study.enqueue_trial({"dropout": 0.1})  # it has not begun, so that MLflow lacks nothing of it
    sweep.end("FINISHED")
    follower = Follower(settings, records.NAME)
    while not follower.finished:
        follower.round()
    return settings


def synced(settings: Settings, check: bool = False) -> Synced:
    (found,) = sync(settings, [records.NAME], check=check, tell=lambda *_: None)
    return found


def told(settings: Settings, *queries: str) -> list[tuple[Any, ...]]:
    """All that MLflow's database says, with uids in the place of the ids that MLflow gives."""
    with closing(sqlite3.connect(settings.home / "mlflow.db")) as database:
        of_runs = "SELECT run_uuid, max(value) FROM tags WHERE key IN (?, ?) GROUP BY run_uuid"
        uids = dict(database.execute(of_runs, (names.TRIAL_UID, names.STUDY_TAG)))
        rows = [row for query in queries for row in database.execute(query)]
    assert len(set(uids.values())) == len(uids), "a run was made twice"
    return sorted((tuple(uids.get(value, value) for value in row) for row in rows), key=repr)


def everything(settings: Settings) -> Any:
    files = [path for path in (settings.artifacts / "runs").rglob("*") if path.is_file()]
    digests = {(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files}
    return digests, told(
        settings,
        "SELECT run_uuid, name, status, start_time, end_time, lifecycle_stage FROM runs",
        "SELECT run_uuid, key, value FROM params",
        "SELECT run_uuid, key, value FROM tags WHERE key != 'mlflow.user'",
        "SELECT run_uuid, key, step, value, timestamp FROM metrics",
        "SELECT run_uuid, key, step, value FROM latest_metrics",
        "SELECT run_uuid, d.name, digest FROM datasets d JOIN inputs ON source_id = dataset_uuid "
        "JOIN runs ON run_uuid = destination_id",
        "SELECT name, key, value FROM experiment_tags JOIN experiments USING (experiment_id)",
    )


def rows(settings: Settings, tables: Collection[str]) -> dict[str, int]:
    with closing(sqlite3.connect(settings.home / "mlflow.db")) as database:
        return {table: database.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}


def test_what_a_sweep_has_written_lacks_nothing_and_comes_back_whole_when_it_was_deleted(
    swept: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(swept)
    assert not synced(swept, check=True).lacks
    for path in swept.home.glob("mlflow.db*"):
        path.unlink()
    shutil.rmtree(swept.artifacts / "runs")
    assert synced(swept, check=True).lacks == Missing(absent=4, own=True)
    assert not (swept.home / "mlflow.db").exists()
    monkeypatch.setenv("MLFLOW_ENABLE_WORKSPACES", "true")  # of another server; a folder's store has none
    assert synced(swept).to_json()["wrote"] == WROTE | {"trials": 4, "own": True}
    assert everything(swept) == before
    with closing(sqlite3.connect(swept.home / "mlflow.db")) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        version = database.execute("PRAGMA data_version").fetchone()
        assert synced(swept).to_json()["wrote"] == WROTE
        assert not synced(swept, check=True).lacks
        assert database.execute("PRAGMA data_version").fetchone() == version


WROTE = {"trials": 0, "replicates": 0, "own": False, "decision": False}
OF_RUN = "WHERE run_uuid = (SELECT run_uuid FROM tags WHERE value = 'study-1-0')"
OF_OTHER = OF_RUN.replace("1-0", "1-2")
DAMAGES = {
    f"DELETE FROM metrics {OF_RUN} AND key = 'val_loss'; "
    f"DELETE FROM latest_metrics {OF_RUN} AND key = 'val_loss'": "points",
    f"UPDATE tags SET value = '17' {OF_RUN} AND key = 'regtune.seed'": "tags",
    f"DELETE FROM params {OF_RUN} AND key = 'dropout'": "params",
    f"UPDATE runs SET status = 'RUNNING' {OF_RUN}": "state",
    "config.yaml": "config.yaml",
    "model.keras": "files",
    "; ".join(
        f"DELETE FROM {table} {OF_OTHER}" for table in ("latest_metrics", "metrics", "params", "runs", "tags")
    ): "",
    "UPDATE experiment_tags SET value = '' WHERE key = 'mlflow.note.content'": "",
}
"""What is done to MLflow -> what the run of trial 0 lacks then."""


def test_every_damage_is_found_and_all_are_mended(
    swept: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(swept)
    with closing(sqlite3.connect(swept.home / "mlflow.db")) as database:
        for damage, kind in DAMAGES.items():
            if damage.endswith((".yaml", ".keras")):
                (place,) = database.execute(f"SELECT artifact_uri FROM runs {OF_RUN}").fetchone()
                (Path(place.removeprefix("file://")) / damage).unlink()
            else:
                for statement in damage.split("; "):
                    assert database.execute(statement).rowcount >= 1
            database.commit()
            assert kind in (synced(swept, check=True).lacks or Missing()).kinds or not kind
    lacks = synced(swept, check=True).lacks
    assert lacks is not None
    assert (lacks.absent, lacks.wrong, lacks.own) == (1, 1, True)
    assert lacks.kinds.keys() == {*DAMAGES.values()} - {""}
    code, said, _ = run_here(capsys, "sync", "--check")
    assert (code, said.startswith(f"{records.NAME}: MLflow lacks 1 trial without a run; ")) == (1, True)
    (entry,) = json.loads(run_here(capsys, "sync", "--check", "--json")[1])
    assert entry["lacks"] == asdict(lacks)
    assert run_here(capsys, "sync")[:2] == (0, f"{records.NAME}: wrote 2 trials and the study's own run\n")
    assert run_here(capsys, "sync", "--check")[:2] == (0, f"{records.NAME}: MLflow is up to date\n")
    assert everything(swept) == before


def test_a_study_that_is_being_run_is_left_to_its_sweep(swept: Settings) -> None:
    (swept.home / "mlflow.db").unlink()
    with hold(swept, records.NAME):
        found = synced(swept)
    assert (f"process {os.getpid()}" in str(found.running), found.wrote) == (True, None)
    assert not (swept.home / "mlflow.db").exists()


def test_a_deleted_study_leaves_no_row_and_no_file_and_no_other_study_loses_any(settings: Settings) -> None:
    tables = ("runs", "metrics", "latest_metrics", "params", "tags", "inputs", "input_tags", "experiments")
    tables += ("experiment_tags", "datasets")
    other = [(0, "COMPLETE", replace(records.complete(0)[2], uid="x"))]
    catch_up(settings, Recorded(records.facts("other", "study-2"), other))
    before = rows(settings, tables)
    files = sorted((settings.artifacts / "runs").rglob("*"))
    trials = [records.with_model(records.complete(0), settings.artifacts), *records.study(3)[1:]]
    catch_up(settings, Recorded(records.facts(), trials, winner=0))
    known = {uid: found.runs for uid, found in tracked_studies(settings).items()}
    assert known == {"study-1": 4, "study-2": 2}
    assert [delete_study(settings, uid) for uid in ("study-9", "study-1")] == [0, 4]
    assert rows(settings, tables) == before
    assert sorted((settings.artifacts / "runs").rglob("*")) == files
    client = MlflowClient(settings.mlflow_uri)
    (experiment,) = [found for found in client.search_experiments() if names.SWEEP in found.tags]
    client.delete_experiment(experiment.experiment_id)  # into MLflow's bin
    assert delete_study(settings, "study-2") == 2
    assert rows(settings, ["runs"]) == {"runs": 0}


def test_a_store_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is not a database, it only looks like a file" * 50)
    with pytest.raises(TrackingError, match=r"mlflow\.db.*not a database"):
        catch_up(Settings(REGTUNE_HOME=tmp_path), Recorded(records.facts(), []))


@pytest.mark.slow
def test_through_a_server_the_same_calls_do_the_same_and_mlflow_says_nothing(
    settings: Settings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trials = [records.with_model(records.complete(0), settings.artifacts), *records.study(3)[1:]]
    with serving(settings, free_port()) as server:
        client_side = Settings(REGTUNE_HOME=settings.home, MLFLOW_TRACKING_URI=server.url)
        study = Recorded(records.facts(), trials, winner=0)
        assert catch_up(client_side, study, check=True) == Missing(absent=3, own=True)
        assert catch_up(client_side, study).trials == 3
        assert not catch_up(client_side, study, check=True)
        assert not catch_up(client_side, study)
        assert capfd.readouterr().out == ""
        client = MlflowClient(server.url)
        (run,) = client.search_runs(["1"], f"tags.`{names.NUMBER}` = '0'")
        copy = Path(client.download_artifacts(run.info.run_id, "model.keras", str(tmp_path)))
        assert copy.read_bytes() == b"weights"
        gone = replace(study, trials=[(0, "COMPLETE", replace(trials[0][2], artifacts={}))])
        assert catch_up(client_side, gone).kinds == {"files": 1}
        assert [entry.path for entry in client.list_artifacts(run.info.run_id)] == ["config.yaml"]
        assert delete_study(client_side, "study-1") == 4
        assert not client.search_runs(["1"])
