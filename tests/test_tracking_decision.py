"""A decision in MLflow: its run beside the study's, a child run a replicate, marks on the candidates, the report."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tracking_records as records
from mlflow import MlflowClient

from regtune.errors import TrackingError
from regtune.settings import Settings
from regtune.tracking import names
from regtune.tracking.sync import Synced, log_report, sync


@pytest.fixture
def settings(tmp_path: Path, empty_mlflow: bytes) -> Settings:
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "mlflow.db").write_bytes(empty_mlflow)
    return Settings(REGTUNE_HOME=tmp_path / "mlruns")


def synced(settings: Settings, check: bool = False) -> Synced:
    (found,) = sync(settings, [records.NAME], check=check, tell=lambda *_: None)
    assert found.problem is None
    return found


def test_a_report_is_an_artifact_of_the_study_s_run_that_sync_leaves_alone_also_in_a_moved_folder(
    settings: Settings, tmp_path: Path
) -> None:
    records.Sweeping(settings.storage_url).write(*records.complete(0))
    report = tmp_path / "report.html"
    report.write_text("<!doctype html>first")
    with pytest.raises(TrackingError, match="try: regtune sync mnist-regularization"):
        log_report(settings, records.NAME, report)
    synced(settings)
    log_report(settings, records.NAME, report)
    moved = Settings(REGTUNE_HOME=shutil.move(settings.home, tmp_path / "moved"))
    report.write_text("<!doctype html>second")
    log_report(moved, records.NAME, report)
    assert not synced(moved, check=True).lacks
    assert synced(moved).to_json()["wrote"]["trials"] == 0
    client = MlflowClient(moved.mlflow_uri)
    (run,) = client.search_runs(["1"], f"tags.`{names.KIND}` = 'study'")
    copy = Path(client.download_artifacts(run.info.run_id, report.name, str(tmp_path / "moved")))
    assert (copy.read_text(), copy.is_relative_to(moved.home)) == ("<!doctype html>second", True)
