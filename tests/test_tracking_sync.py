"""Catching up, rebuilding and deleting, on real SQLite stores and a real server."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tracking_records as records
from mlflow import MlflowClient
from stores import free_port

from regtune.errors import TrackingError
from regtune.server.process import serving
from regtune.settings import Settings
from regtune.tracking import StudyFacts, names
from regtune.tracking.removal import delete_study, tracked_studies
from regtune.tracking.sync import catch_up as catch_up_with


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(REGTUNE_HOME=tmp_path / "home")


def catch_up(settings: Settings, facts: StudyFacts, trials: Sequence[records.Trial], *end: Any) -> int:
    """Catch up from trials at hand."""
    return catch_up_with(settings, facts, records.Listed(trials), *end).trials


def rows(settings: Settings) -> dict[str, int]:
    """How many rows each table of a study's runs has."""
    tables = ("runs", "metrics", "latest_metrics", "params", "tags", "inputs", "input_tags")
    tables += ("experiments", "experiment_tags", "datasets")
    with sqlite3.connect(settings.home / "mlflow.db") as database:
        return {table: database.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}


def test_catching_up_writes_what_is_missing_then_nothing_and_from_nothing_everything(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_WORKSPACES", "true")  # of another server; a folder's store has none
    trials = [*records.study(8), records.failed(8, "pruned")]
    assert catch_up(settings, records.facts(), trials[:3]) == 3
    assert catch_up(settings, records.facts(), trials, "FINISHED", 5) == 6
    before = rows(settings)
    assert catch_up(settings, records.facts(), trials, "FINISHED", 5) == 0
    assert rows(settings) == before
    assert before["runs"] == 10
    for file in settings.home.glob("mlflow.db*"):
        file.unlink()
    assert catch_up(settings, records.facts(), trials, "FINISHED", 5) == 9
    assert rows(settings) == before
    with sqlite3.connect(settings.home / "mlflow.db") as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_deleted_study_leaves_no_row_and_no_file_and_no_other_study_loses_any(
    settings: Settings, empty_mlflow: bytes
) -> None:
    settings.home.mkdir()
    (settings.home / "mlflow.db").write_bytes(empty_mlflow)
    other = [(0, "COMPLETE", replace(records.complete(0)[2], uid="x"))]
    catch_up(settings, records.facts("other", "study-2"), other)
    before = rows(settings)
    files = sorted((settings.artifacts / "runs").rglob("*"))
    trials = [records.with_model(records.complete(0), settings.artifacts), *records.study(3)[1:]]
    catch_up(settings, records.facts(), trials, "FINISHED", 0)
    known = {uid: found.runs for uid, found in tracked_studies(settings).items()}
    assert known == {"study-1": 4, "study-2": 2}
    assert [delete_study(settings, uid) for uid in ("study-9", "study-1")] == [0, 4]
    assert rows(settings) == before
    assert sorted((settings.artifacts / "runs").rglob("*")) == files
    client = MlflowClient(settings.mlflow_uri)
    (experiment,) = [found for found in client.search_experiments() if names.SWEEP in found.tags]
    client.delete_experiment(experiment.experiment_id)  # into MLflow's bin
    assert delete_study(settings, "study-2") == 2
    assert rows(settings)["runs"] == 0


def test_a_store_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is not a database, it only looks like a file" * 50)
    with pytest.raises(TrackingError, match=r"mlflow\.db.*not a database"):
        catch_up(Settings(REGTUNE_HOME=tmp_path), records.facts(), [])


@pytest.mark.slow
def test_through_a_server_the_same_calls_do_the_same_and_mlflow_says_nothing(
    settings: Settings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trials = [records.with_model(records.complete(0), settings.artifacts), *records.study(3)[1:]]
    with serving(settings, free_port()) as server:
        client_side = Settings(REGTUNE_HOME=settings.home, MLFLOW_TRACKING_URI=server.url)
        assert catch_up(client_side, records.facts(), trials, "FINISHED", 0) == 3
        assert catch_up(client_side, records.facts(), trials, "FINISHED", 0) == 0
        assert capfd.readouterr().out == ""
        client = MlflowClient(server.url)
        (run,) = client.search_runs(["1"], f"tags.`{names.NUMBER}` = '0'")
        copy = Path(client.download_artifacts(run.info.run_id, "model.keras", str(tmp_path)))
        assert copy.read_bytes() == b"weights"
        gone = replace(trials[0][2], artifacts={})
        assert catch_up(client_side, records.facts(), [(0, "COMPLETE", gone)]) == 1
        assert [entry.path for entry in client.list_artifacts(run.info.run_id)] == ["config.yaml"]
        assert delete_study(client_side, "study-1") == 4
        assert not client.search_runs(["1"])
