"""What the tests of faults end with: `assert_consistent`.

Every trial of the budget exists once, and Optuna's database, MLflow's store, the artifacts and the processes of the
machine say the same. Optuna and MLflow are read with their own clients, never through regtune.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from optuna.trial import FrozenTrial, TrialState
from places import Place
from stores import Postgres, until

from regtune.config.trial import METRICS
from regtune.storage import is_sqlite
from regtune.study.decision import replicates_of
from regtune.study.record import TrialRecord
from regtune.study.study import record_of
from regtune.tracking import names
from regtune.tracking.sync import sync

os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
STATES = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Keep both SQLite files to this process alone."""
    with ExitStack() as locks:
        for name in ("studies.db", "mlflow.db"):
            connection = locks.enter_context(closing(sqlite3.connect(home / name, timeout=120)))
            connection.execute("BEGIN EXCLUSIVE")
        yield


@contextmanager
def away(server: Postgres, mode: str) -> Iterator[None]:
    """Stop a PostgreSQL server, and start it again."""
    server.control("stop", "-m", mode)
    yield
    server.control("start")


def assert_consistent(place: Place, *, run_cap: int = 6, failed: int = 0, keep_models: int = 2) -> None:
    """Nothing of the study is lost, nothing doubled, nothing half done, and both stores say the same.

    run_cap: trials that are complete or pruned. failed: trials that failed, those that were tried again among them.
    """
    until(lambda: not place.processes())
    study = place.study()
    trials, goal = study.trials, study.user_attrs["regtune.spec"]["metric"]["name"]
    states = Counter(trial.state.name for trial in trials)
    assert (states["COMPLETE"] + states["PRUNED"], states["FAIL"]) == (run_cap, failed)
    assert states.total() == run_cap + failed
    assert [trial.number for trial in trials] == list(range(len(trials)))
    records = [record for trial in trials if (record := record_of(trial)) is not None]
    assert len({record.uid for record in records}) == len(trials)
    for trial, record in zip(trials, records, strict=True):
        _assert_whole(trial, record, goal)
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    ranked = [trial.number for trial in sorted(complete, key=lambda trial: (trial.value, trial.number))]
    _assert_files(place, [records[number] for number in ranked[:keep_models]], records)
    _assert_mlflow(place.client(), study, list(zip(trials, records, strict=True)), ranked, keep_models)
    _assert_databases(place)
    (lacks,) = sync(place.settings, [place.name], check=True, tell=lambda *_: None)
    assert lacks.fine, lacks


def _assert_whole(trial: FrozenTrial, record: TrialRecord, goal: str) -> None:
    history = record.history.get(goal, ())
    assert dict(enumerate(history, start=1)) == trial.intermediate_values, f"trial {trial.number}"
    assert {len(points) for points in record.history.values()} <= {record.epochs}
    assert record.end_state == trial.state.name
    if trial.state is TrialState.COMPLETE:
        assert record.kept is not None
        assert trial.value == record.kept.figures[goal] == history[record.kept.epoch - 1]


def _assert_files(place: Place, best: list[TrialRecord], records: list[TrialRecord]) -> None:
    """The best trials' models are there, whole, and no others; no file is half written."""
    folder = place.home / "artifacts" / "trials"
    models = {path.parent.name: _sha256(path) for path in folder.glob("*/model.keras")}
    ours = {record.uid for record in records}
    kept = {record.uid: record.artifacts["model.keras"] for record in best}
    assert {uid: sha for uid, sha in models.items() if uid in ours} == kept
    files = [path for path in place.home.rglob("*") if path.is_file()]
    assert not [path for path in files if path.name.startswith(".") or path.suffix in (".new", ".tmp")]
    for path in place.home.glob("*.json"):
        json.loads(path.read_text())


def _assert_mlflow(
    client: MlflowClient,
    study: optuna.Study,
    trials: list[tuple[FrozenTrial, TrialRecord]],
    ranked: list[int],
    keep_models: int,
) -> None:
    """MLflow has one run a trial and one of the study, which say to the last digit what Optuna's database says."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments(ViewType.ALL)]
    of_study = f"tags.`{names.STUDY_TAG}` = '{study.user_attrs['regtune.uid']}'"
    runs = client.search_runs(experiments, of_study, ViewType.ACTIVE_ONLY, 10_000)
    (own,) = (run for run in runs if run.data.tags[names.KIND] == names.STUDY)
    of_trials = {run.data.tags[names.TRIAL_UID]: run for run in runs if run is not own}
    assert len(runs) == 1 + len(of_trials)
    started = [(trial, record) for trial, record in trials if record.started_ms is not None]
    assert set(of_trials) == {record.uid for _, record in started}
    goal = study.user_attrs["regtune.spec"]["metric"]["name"]
    for trial, record in started:
        run, where = of_trials[record.uid], f"the run of trial {trial.number}"
        assert run.data.tags[names.STATE] == trial.state.name, where
        assert run.info.status == STATES[trial.state.name], where
        assert run.data.tags[names.PARENT] == own.info.run_id, where
        _assert_curves(client, run, record)
        if trial.state is TrialState.COMPLETE:
            assert run.data.metrics[names.best(goal)] == trial.value, where
        model = ["model.keras"] if trial.number in ranked[:keep_models] else []
        _assert_artifacts(client, run, {"config.yaml", *model})
    assert own.info.status == own.data.tags[names.STATE] == "FINISHED"
    assert own.data.tags[names.BEST_NUMBER] == str(ranked[0])


def assert_replicates(place: Place) -> None:
    """MLflow has one run a replicate, under the decision's, which say to the last digit what Optuna's database says."""
    client, study = place.client(), place.study()
    experiments = [experiment.experiment_id for experiment in client.search_experiments(ViewType.ALL)]
    of_study = f"tags.`{names.STUDY_TAG}` = '{study.user_attrs['regtune.uid']}'"
    runs = client.search_runs(experiments, of_study, ViewType.ACTIVE_ONLY, 10_000)
    (decision,) = (run for run in runs if run.data.tags[names.KIND] == names.DECISION)
    assert decision.info.status == "FINISHED"
    found = [run for run in runs if run.data.tags.get(names.PARENT) == decision.info.run_id]
    records = {one.record.uid: one.record for one in replicates_of(study.user_attrs)}
    assert sorted(run.data.tags[names.TRIAL_UID] for run in found) == sorted(records)
    for run in found:
        assert run.info.status == "FINISHED", run.info.run_name
        _assert_curves(client, run, records[run.data.tags[names.TRIAL_UID]])
    (lacks,) = sync(place.settings, [place.name], check=True, tell=lambda *_: None)
    assert lacks.fine, lacks


def _assert_curves(client: MlflowClient, run: Run, record: TrialRecord) -> None:
    for metric in METRICS:
        points = client.get_metric_history(run.info.run_id, metric)
        curve = [(point.step, point.value, point.timestamp) for point in points]
        steps = range(1, record.epochs + 1)
        wanted = list(zip(steps, record.history.get(metric, ()), record.epoch_ended_ms, strict=False))
        assert sorted(curve) == wanted, f"{run.info.run_name}: {metric}"


def _assert_artifacts(client: MlflowClient, run: Run, wanted: set[str]) -> None:
    tags = {tag: sha for tag, sha in run.data.tags.items() if tag.startswith(names.ARTIFACT)}
    tagged = {tag.removeprefix(names.ARTIFACT): sha for tag, sha in tags.items()}
    assert set(tagged) == wanted, run.info.run_name
    assert {entry.path for entry in client.list_artifacts(run.info.run_id)} == wanted, run.info.run_name
    with tempfile.TemporaryDirectory() as folder:
        for name, sha in tagged.items():
            copy = Path(client.download_artifacts(run.info.run_id, name, folder))
            assert _sha256(copy) == sha, run.info.run_name


def _assert_databases(place: Place) -> None:
    """SQLite finds nothing wrong with its files; PostgreSQL's have no transaction left open by a dead client."""
    for path in place.home.glob("*.db"):
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)], path
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == [], path
    url = place.settings.storage_url
    if not is_sqlite(url):
        engine = sqlalchemy.create_engine(url)
        with engine.connect() as connection:
            left = "SELECT COUNT(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = "
            assert connection.scalar(sqlalchemy.text(f"{left} current_database()")) == 0
        engine.dispose()


def what_repeats(place: Place) -> list[tuple[Any, ...]]:
    """Everything of a study's trials but times and uids, for a comparison with an undisturbed sweep's."""
    repeats = []
    for trial in place.study().trials:
        record = record_of(trial)
        assert record is not None
        figures = (record.config.canonical(), record.history, record.kept)
        repeats.append((trial.number, trial.state, trial.value, trial.params, *figures))
    return repeats


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
