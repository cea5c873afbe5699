"""Live tracking: it delays nobody, loses nothing, survives what happens to the stores, and ends when it is told to."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import tracking_records as records
from mlflow import MlflowClient
from stores import Postgres, free_port, until
from tracking_records import NAME, Sweeping

from regtune.server.process import serving
from regtune.settings import Settings
from regtune.study import tables
from regtune.study.record import COORDINATOR
from regtune.tracking import names
from regtune.tracking.live import Follower, Tracker


@pytest.fixture
def settings(tmp_path: Path, empty_mlflow: bytes) -> Settings:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "mlflow.db").write_bytes(empty_mlflow)
    return Settings(REGTUNE_HOME=tmp_path / "home")


@pytest.fixture
def sweep(settings: Settings) -> Sweeping:
    return Sweeping(settings.storage_url)


def runs(settings: Settings) -> dict[str | None, Any]:
    """Number (or None for the parent) -> run."""
    client = MlflowClient(settings.mlflow_uri)
    experiments = [found.experiment_id for found in client.search_experiments()]
    return {run.data.tags.get(names.NUMBER): run for run in client.search_runs(experiments)}


def follow(follower: Follower) -> Follower:
    """Go on until nothing is left to be written."""
    follower.round()
    while not follower.finished:
        follower.round()
    assert (follower.report.waiting, follower.report.own, follower.report.trouble) == (0, False, "")
    return follower


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_mlflow_follows_a_study_while_it_runs_and_to_its_end(
    settings: Settings, store: str, request: pytest.FixtureRequest
) -> None:
    if store == "postgres":
        server: Postgres = request.getfixturevalue("postgres_server")
        url = server.fresh("live", "template1")
        settings = Settings(REGTUNE_HOME=settings.home, OPTUNA_STORAGE=url)
    sweep = Sweeping(settings.storage_url)
    sweep.write(0, "RUNNING", records.after(records.started(0), 2))
    sweep.study.enqueue_trial({})
    follower = follow(Follower(settings, NAME))
    run = runs(settings)["0"]
    assert set(runs(settings)) == {None, "0"}
    assert run.info.status == "RUNNING"
    sweep.write(0, "RUNNING", records.after(records.started(0), 3))
    follow(follower)
    client = MlflowClient(settings.mlflow_uri)
    assert len(client.get_metric_history(run.info.run_id, "val_loss")) == 3
    sweep.write(*records.complete(0))
    sweep.write(*records.failed(1, "pruned"))
    sweep.write(*records.complete(2, dropout=0.1))
    sweep.end("FINISHED")
    follow(follower)
    found = runs(settings)
    statuses = {**dict.fromkeys((None, "0", "2"), "FINISHED"), "1": "KILLED"}
    assert {key: run.info.status for key, run in found.items()} == statuses
    best = min((0, 2), key=lambda number: sweep.study.trials[number].value)
    assert found[None].data.tags[names.BEST_NUMBER] == str(best)


def test_a_round_reads_only_what_may_have_changed_and_writes_only_what_has(
    settings: Settings, sweep: Sweeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        sweep.write(*records.complete(number))
    sweep.write(3, "RUNNING", records.after(records.started(3), 1))
    follower = follow(follow(Follower(settings, NAME)))
    with closing(sqlite3.connect(settings.home / "mlflow.db")) as database:
        before = database.execute("PRAGMA data_version").fetchone()
        asked: list[int] = []
        read = tables.read_records
        monkeypatch.setattr(tables, "read_records", lambda c, ids: asked.extend(ids) or read(c, ids))
        follow(follower)
        assert len(asked) == 1
        assert database.execute("PRAGMA data_version").fetchone() == before


def test_of_models_mlflow_has_those_of_the_best_trials_alone(settings: Settings) -> None:
    sweep = Sweeping(settings.storage_url, keep_models=1)
    trials = [records.complete(0), records.complete(1, dropout=0.5)]
    trials.sort(key=lambda trial: -trial[2].kept.figures["val_cross_entropy"])
    first, second = (
        records.with_model((number, state, replace(record, uid=f"study-1-{number}")), settings.artifacts)
        for number, (_, state, record) in enumerate(trials)
    )
    client = MlflowClient(settings.mlflow_uri)
    sweep.write(*first)
    follower = follow(Follower(settings, NAME))
    for trial, expected in ((None, {"0": 2}), (second, {"0": 1, "1": 2})):
        if trial is not None:
            sweep.write(*trial)
        follow(follower)
        found = {key: run.info.run_id for key, run in runs(settings).items() if key}
        assert {key: len(client.list_artifacts(run_id)) for key, run_id in found.items()} == expected


def test_a_database_that_is_deleted_under_it_is_made_again_with_everything(
    settings: Settings, sweep: Sweeping
) -> None:
    sweep.write(*records.complete(0))
    follower = follow(Follower(settings, NAME))
    for file in settings.home.glob("mlflow.db*"):
        file.unlink()
    sweep.write(*records.complete(1))
    follow(follower)
    with closing(sqlite3.connect(settings.home / "mlflow.db")) as database:
        kept = database.execute("SELECT value FROM tags WHERE key = ?", (names.NUMBER,))
        assert {number for (number,) in kept} == {"0", "1"}


def test_a_study_that_cannot_be_read_is_waited_for(settings: Settings, sweep: Sweeping) -> None:
    sweep.write(*records.complete(0))
    file = settings.home / "studies.db"
    file.rename(settings.home / "away.db")
    follower = Follower(settings, NAME)
    for _ in range(3):
        assert follower.round() > 0
    assert not follower.finished
    assert follower.report.trouble == ""
    (settings.home / "away.db").rename(file)
    follow(follower)
    assert set(runs(settings)) == {None, "0"}


def test_a_study_that_another_process_runs_by_now_is_left_to_its_writer(
    settings: Settings, sweep: Sweeping
) -> None:
    study = optuna.load_study(study_name=NAME, storage=settings.storage_url)
    study.set_user_attr(COORDINATOR, "first")
    sweep.write(*records.complete(0))
    follower = follow(Follower(settings, NAME))
    study.set_user_attr(COORDINATOR, "second")
    sweep.write(*records.complete(1))
    assert follower.round() > 0
    assert follower.finished
    assert set(runs(settings)) == {None, "0"}
    follow(Follower(settings, NAME))
    assert set(runs(settings)) == {None, "0", "1"}


def test_the_runs_of_a_study_that_was_set_aside_say_its_new_name(settings: Settings, sweep: Sweeping) -> None:
    sweep.write(*records.complete(0))
    follow(Follower(settings, NAME))
    with closing(sqlite3.connect(settings.home / "studies.db")) as database, database:
        database.execute("UPDATE studies SET study_name = 'earlier'")
    Sweeping(settings.storage_url, uid="study-2")
    follow(Follower(settings, NAME, aside="earlier"))
    assert "**earlier**" in runs(settings)["0"].data.tags[names.NOTE]


def test_what_is_refused_is_said_and_tried_once_more_at_the_end(settings: Settings, sweep: Sweeping) -> None:
    sweep.write(0, "RUNNING", records.after(records.started(0), 1))
    follower = follow(Follower(settings, NAME))
    run = runs(settings)["0"].info.run_id
    with closing(sqlite3.connect(settings.home / "mlflow.db", timeout=30)) as database, database:
        for table in ("runs", "tags"):
            database.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (run,))
    sweep.write(0, "RUNNING", records.after(records.started(0), 2))
    follower.round()
    assert follower.report.trouble.startswith("MLflow refuses #000 ")
    assert follower.report.waiting == 1
    follower.round()
    assert follower.report.waiting == 1
    follower.close()
    follow(follower)
    assert runs(settings)["0"].info.run_id != run


@pytest.mark.slow
def test_a_server_that_was_away_has_everything_when_it_is_back(settings: Settings, sweep: Sweeping) -> None:
    port = free_port()
    there = Settings(REGTUNE_HOME=settings.home, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{port}")
    follower = Follower(there, NAME)
    sweep.write(*records.complete(0))
    for number in (1, 2):
        follower.round()
        sweep.write(*records.complete(number))
    follower.round()
    assert follower.report.trouble.startswith("MLflow is away since ")
    assert (follower.report.away, follower.report.waiting) == (True, 3)
    with serving(settings, port):
        follower.close()
        follow(follower)
        assert set(runs(there)) == {None, "0", "1", "2"}
        artifacts = MlflowClient(there.mlflow_uri).list_artifacts(runs(there)["2"].info.run_id)
        assert [entry.path for entry in artifacts] == ["config.yaml"]


def test_a_process_that_is_killed_is_replaced_and_none_is_left(settings: Settings, sweep: Sweeping) -> None:
    sweep.write(*records.complete(0))
    tracker = Tracker(settings, NAME)
    first = tracker.pid
    os.kill(first, signal.SIGKILL)
    until(lambda: tracker.news() == [] and tracker.pid != first)
    process = psutil.Process(tracker.pid)
    process.suspend()
    sweep.write(*records.complete(1))
    threading.Timer(2.0, process.resume).start()
    assert tracker.close() == 0
    assert set(runs(settings)) == {None, "0", "1"}
    assert not process.is_running()


def test_what_cannot_be_written_is_counted_at_the_end(settings: Settings, sweep: Sweeping) -> None:
    away = Settings(REGTUNE_HOME=settings.home, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{free_port()}")
    sweep.write(*records.complete(0))
    sweep.write(*records.complete(1))
    tracker = Tracker(away, NAME)
    (said,) = tracker.news()
    assert said.endswith("MLflow is away; the sweep continues, and MLflow catches up later")
    until(lambda: tracker.status)
    assert tracker.status.endswith("; 2 runs wait")
    begin = time.monotonic()
    assert tracker.close() == 3
    assert time.monotonic() - begin < 60  # MLflow itself would try for minutes
