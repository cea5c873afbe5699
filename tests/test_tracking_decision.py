"""A decision in MLflow: its run beside the study's, a child run a replicate, marks on the candidates, the report."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections import defaultdict
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import tracking_records as records
from mlflow import MlflowClient
from stores import Postgres, free_port
from tracking_records import Sweeping

from regtune.errors import TrackingError
from regtune.server.process import serving
from regtune.settings import Settings
from regtune.study import tables
from regtune.study.decision import Decision
from regtune.study.decision_text import sentence
from regtune.tracking import names
from regtune.tracking.live import Follower
from regtune.tracking.missing import Missing
from regtune.tracking.store import tracked_studies
from regtune.tracking.sync import Synced, log_report, sync
from regtune.tracking.views import KEY, REPLICATES_KEY
from regtune.upkeep.cleanup import delete_study, find_garbage

_read_replicates = tables.read_replicates


@pytest.fixture
def settings(tmp_path: Path, empty_mlflow: bytes) -> Settings:
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "mlflow.db").write_bytes(empty_mlflow)
    return Settings(REGTUNE_HOME=tmp_path / "mlruns")


def synced(settings: Settings, check: bool = False) -> Synced:
    (found,) = sync(settings, [records.NAME], check=check, tell=lambda *_: None)
    assert found.problem is None
    return found


def key_of(tags: Mapping[str, str]) -> str:
    """What a run is called here: a trial by its number, a replicate `t7 3`, and `study` and `decision`."""
    kind, which = tags[names.KIND], " ".join(tags.get(names.TRIAL_UID, "").rsplit("-", 2)[1:])
    return {names.TRIAL: tags.get(names.NUMBER, ""), names.REPLICATE: which}.get(kind, kind)


def runs(settings: Settings) -> dict[str, Any]:
    """Every run by what it is called here."""
    found = MlflowClient(settings.mlflow_uri).search_runs(["1"], max_results=1000)
    keyed = {key_of(run.data.tags): run for run in found}
    assert len(keyed) == len(found), "a run was made twice"
    return keyed


def follow(follower: Follower) -> None:
    """Go on until nothing is left to be written."""
    follower.round()
    while not follower.finished:
        follower.round()
    assert (follower.report.waiting, follower.report.own, follower.report.trouble) == (0, False, "")


@pytest.fixture
def decided(settings: Settings) -> Sweeping:
    return decide(settings)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: bytes) -> Settings:
    """The same study in MLflow, only to be looked at."""
    settings = Settings(REGTUNE_HOME=tmp_path_factory.mktemp("shown") / "mlruns")
    settings.home.mkdir()
    (settings.home / "mlflow.db").write_bytes(empty_mlflow)
    decide(settings)
    synced(settings)
    return settings


def decide(settings: Settings) -> Sweeping:
    """A study of eight trials with a decision over three candidates of four replicates each; MLflow has nothing."""
    sweep = Sweeping(settings.storage_url)
    for trial in records.study(8):
        sweep.write(*trial)
    sweep.end("FINISHED")
    sweep.replicate(*(records.replicate(key, index) for key in records.CANDIDATES for index in range(4)))
    sweep.decide(records.decision(t7="tied", none="beaten", dropout="chosen"))
    return sweep


def everything(settings: Settings) -> Any:
    """All that MLflow's database says of runs, with names in the place of ids."""
    files = [path for path in (settings.artifacts / "runs").rglob("*") if path.is_file()]
    queries = (
        "SELECT run_uuid, name, status, start_time, end_time, lifecycle_stage FROM runs",
        "SELECT run_uuid, key, value FROM params",
        "SELECT run_uuid, key, value FROM tags WHERE key != 'mlflow.user'",
        "SELECT run_uuid, key, step, value, timestamp FROM metrics",
        "SELECT run_uuid, d.name, digest FROM datasets d JOIN inputs ON source_id = dataset_uuid "
        "JOIN runs ON run_uuid = destination_id",
        "SELECT key, value FROM experiment_tags",
    )
    tags: dict[str, dict[str, str]] = defaultdict(dict)
    with closing(sqlite3.connect(settings.home / "mlflow.db")) as database:
        for run_id, key, value in database.execute("SELECT run_uuid, key, value FROM tags"):
            tags[run_id][key] = value
        rows = [row for query in queries for row in database.execute(query)]
    keys = {run_id: key_of(found) for run_id, found in tags.items()}
    said = sorted((tuple(keys.get(value, value) for value in row) for row in rows), key=repr)
    return sorted((path.name, path.read_text()) for path in files), said


def test_a_decision_is_a_run_beside_the_study_s_with_a_child_run_a_replicate(shown: Settings) -> None:
    found = runs(shown)
    parent, decision = found["study"], found["decision"]
    assert len(found) == 2 + 8 + 12
    assert names.PARENT not in decision.data.tags
    for key in ("t7 0", "none 3", "dropout 2"):
        assert found[key].data.tags[names.PARENT] == decision.info.run_id
    assert found["7"].data.tags[names.PARENT] == parent.info.run_id
    assert {run.data.tags[names.STUDY_TAG] for run in found.values()} == {"study-1"}
    run, record = found["t7 2"], records.replicate("t7", 2).record
    assert run.info.run_name == "replicate 2 of trial 7: dropout 0.35"
    tags = {names.CANDIDATE: "trial 7: dropout 0.35", names.INDEX: "2", names.VARY: "both"}
    assert tags.items() <= run.data.tags.items()
    assert names.NUMBER not in run.data.tags
    assert found["dropout 2"].data.tags[names.CANDIDATE] == "control dropout"
    assert (run.info.status, run.info.start_time) == ("FINISHED", record.started_ms)
    assert {name: run.data.params[name] for name in ("dropout", "seed", "data.split_seed")} == {
        **{"dropout": "0.35", "seed": "502", "data.split_seed": "902"}
    }
    assert record.kept is not None
    assert run.data.metrics["best/val_cross_entropy"] == record.kept.figures["val_cross_entropy"]
    assert {name: run.data.metrics[f"evidence/{name}"] for name in ("ece", "brier", "prunable")} == {
        **{"ece": 0.021, "brier": 0.09, "prunable": 0.4}
    }
    curve = MlflowClient(shown.mlflow_uri).get_metric_history(run.info.run_id, "val_loss")
    assert len(curve) == record.epochs
    assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == {
        **{f"mnist-5k {part}, split 902": 0 for part in ("training", "validation")}
    }.keys()


def test_the_decision_s_run_has_the_answer_in_words_in_figures_and_whole_as_an_artifact(
    shown: Settings, tmp_path: Path
) -> None:
    found = runs(shown)
    run, decision = found["decision"], records.decision(t7="tied", none="beaten", dropout="chosen")
    said = sentence(decision)
    note = run.data.tags[names.NOTE].replace("\\", "")
    assert note.startswith(f"**{said}**")
    assert "| control dropout | dropout 0.2 | 0.1913 ± 0.0042 |" in note
    assert "**What a technique adds to no technique**:\n\n|  | dropout 0.2 |\n" in note
    assert "| cross-entropy | −0.0114 ± 0.0030 |" in note
    assert said in found["study"].data.tags[names.NOTE].replace("\\", "")
    expected = {
        **{"best/val_cross_entropy": 0.1913, "best/val_accuracy": 0.942, "evidence/ece": 0.021},
        **{"best/generalization_gap": 0.1, "decision/half_width": 0.0042, "decision/optimism": 0.0248},
        **{"decision/replicates": 4, "decision/trainings": 12, "decision/against_none_half_width": 0.003},
        "decision/against_none": pytest.approx(0.1913 - 0.2027),
    }
    assert run.data.metrics == expected
    tags = {
        names.CHOSEN: "control dropout",
        names.VARY: "both",
        names.PRACTICAL: "0.002",
        names.END: "settled",
    }
    assert tags.items() <= run.data.tags.items()
    assert run.info.status == "FINISHED"
    file = MlflowClient(shown.mlflow_uri).download_artifacts(
        run.info.run_id, names.DECISION_FILE, str(tmp_path)
    )
    assert Decision.model_validate_json(Path(file).read_text()) == decision


def test_projected_again_nothing_is_written_and_rebuilt_from_nothing_it_is_the_same(
    settings: Settings, decided: Sweeping
) -> None:
    decided.end("FINISHED")
    follow(Follower(settings, records.NAME))
    before = everything(settings)
    assert not synced(settings, check=True).lacks
    with closing(sqlite3.connect(settings.home / "mlflow.db")) as database:
        version = database.execute("PRAGMA data_version").fetchone()
        assert synced(settings).to_json()["wrote"] == {
            **{"trials": 0, "replicates": 0, "own": False, "decision": False}
        }
        assert database.execute("PRAGMA data_version").fetchone() == version
    for path in settings.home.glob("mlflow.db*"):
        path.unlink()
    shutil.rmtree(settings.artifacts / "runs")
    lacks = synced(settings, check=True).lacks
    assert lacks == Missing(absent=8, replicates_absent=12, own=True, decision=True)
    assert str(lacks).startswith("8 trials and 12 replicates without a run; ")
    synced(settings)
    assert everything(settings) == before


def test_what_replicates_and_the_decision_lack_is_named_and_mended(
    settings: Settings, decided: Sweeping
) -> None:
    synced(settings)
    before = everything(settings)
    ids = {key: run.info.run_id for key, run in runs(settings).items()}
    with closing(sqlite3.connect(settings.home / "mlflow.db")) as database, database:
        for table in ("latest_metrics", "metrics", "params", "inputs", "tags", "runs"):
            column = "destination_id" if table == "inputs" else "run_uuid"
            database.execute(f"DELETE FROM {table} WHERE {column} = ?", (ids["none 1"],))
        value = "UPDATE tags SET value = 'wrong' WHERE run_uuid = ? AND key = ?"
        database.execute(value, (ids["t7 0"], names.CANDIDATE))
        database.execute(value, (ids["decision"], names.CHOSEN))
        database.execute(value, (ids["7"], names.STANDING))
    shutil.rmtree(next((settings.artifacts / "runs").rglob(ids["none 1"])))
    lacks = synced(settings, check=True).lacks
    assert str(lacks) == (
        "1 replicate without a run; 1 trial and 1 replicate whose run lacks something (tags of 2); "
        "the run of its decision"
    )
    wrote = synced(settings).to_json()["wrote"]
    assert wrote == {"trials": 1, "replicates": 2, "own": False, "decision": True}
    assert everything(settings) == before


def test_the_search_s_trials_are_shown_as_before_with_marks_and_replicates_have_a_view_of_their_own(
    shown: Settings,
) -> None:
    client = MlflowClient(shown.mlflow_uri)
    tags = client.get_experiment("1").tags
    listed = {}
    for key in (KEY, REPLICATES_KEY):
        state = json.loads(json.loads(tags[f"mlflow.sharedViewState.{key}"])["state"])
        listed[key] = client.search_runs(["1"], state["searchFilter"], max_results=100)
    marks = {run.data.tags[names.NUMBER]: run.data.tags.get(names.STANDING) for run in listed[KEY]}
    assert marks == dict.fromkeys(map(str, range(8))) | {"0": "beaten", "2": "chosen", "7": "tied"}
    assert {run.data.tags[names.KIND] for run in listed[REPLICATES_KEY]} == {names.REPLICATE}
    assert len(listed[REPLICATES_KEY]) == 12
    groups = {f"tag.{names.CANDIDATE}.{run.data.tags[names.CANDIDATE]}" for run in listed[REPLICATES_KEY]}
    assert state["groupsExpanded"] == dict.fromkeys(groups, False)


def test_a_study_without_replicates_is_in_mlflow_as_it_was_before_there_were_any(settings: Settings) -> None:
    """The digests are those of the version before replicates."""
    sweep = Sweeping(settings.storage_url)
    for trial in records.study(8):
        sweep.write(*trial)
    synced(settings)
    tags = MlflowClient(settings.mlflow_uri).get_experiment("1").tags
    views = {name: value for name, value in tags.items() if name.startswith("mlflow.sharedViewState.")}
    digests = {name: hashlib.sha256(value.encode()).hexdigest()[:12] for name, value in views.items()}
    assert digests == {f"mlflow.sharedViewState.{KEY}": "63c8c4c62caf"}
    assert {run.data.tags[names.KIND] for run in runs(settings).values()} == {names.STUDY, names.TRIAL}


def test_mlflow_follows_replicates_while_they_run_and_the_decision_to_its_end(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweeping(settings.storage_url)
    for trial in records.study(8):
        sweep.write(*trial)
    follower = Follower(settings, records.NAME)
    follow(follower)
    assert "decision" not in runs(settings)
    sweep.replicate(records.replicate("t7", 0), records.replicate("c-none", 0, epochs=2))
    follow(follower)
    found = runs(settings)
    statuses = {key: found[key].info.status for key in ("decision", "t7 0", "none 0")}
    assert statuses == {"decision": "RUNNING", "t7 0": "FINISHED", "none 0": "RUNNING"}
    assert "Nothing is decided before the first look" in found["decision"].data.tags[names.NOTE]
    read: list[str] = []
    monkeypatch.setattr(
        tables, "read_replicates", lambda c, i, keys: read.extend(keys) or _read_replicates(c, i, keys)
    )
    sweep.replicate(records.replicate("c-none", 0, epochs=5))
    follow(follower)
    assert set(read) == {records.replicate("c-none", 0).attribute}
    client = MlflowClient(settings.mlflow_uri)
    assert len(client.get_metric_history(found["none 0"].info.run_id, "val_loss")) == 5
    sweep.replicate(records.replicate("c-none", 0))
    between = records.decision(1, t7="chosen", none="tied")
    sweep.decide(between.model_copy(update={"end": "stopped"}))
    follow(follower)
    assert runs(settings)["decision"].info.status == "RUNNING"
    sweep.decide(between)
    follow(follower)
    first = runs(settings)
    assert first["decision"].info.status == "FINISHED"
    assert (first["7"].data.tags[names.STANDING], first["0"].data.tags[names.STANDING]) == ("chosen", "tied")
    sweep.replicate(records.replicate("c-dropout", 0), records.replicate("t7", 1, epochs=1))
    follow(follower)
    assert runs(settings)["decision"].info.status == "RUNNING"
    sweep.decide(records.decision(2, t7="tied", dropout="chosen"))
    sweep.replicate(records.replicate("t7", 1))
    sweep.end("FINISHED")
    follow(follower)
    found = runs(settings)
    assert found["decision"].info.status == "FINISHED"
    assert found["decision"].data.tags[names.CHOSEN] == "control dropout"
    assert found["decision"].data.metrics["decision/trainings"] == 4
    marks = {key: found[key].data.tags.get(names.STANDING) for key in ("0", "2", "7")}
    assert marks == {"0": None, "2": "chosen", "7": "tied"}
    assert not synced(settings, check=True).lacks


def test_a_decision_that_was_interrupted_says_so_and_goes_on_in_its_own_runs(settings: Settings) -> None:
    sweep = Sweeping(settings.storage_url)
    sweep.write(*records.complete(0))
    sweep.replicate(records.replicate("t7", 0, epochs=3))
    follower = Follower(settings, records.NAME)
    follow(follower)
    follower.close()
    follow(follower)
    interrupted = runs(settings)
    assert {key: interrupted[key].info.status for key in ("decision", "t7 0")} == {
        **{"decision": "KILLED", "t7 0": "KILLED"}
    }
    assert not synced(settings, check=True).lacks
    sweep.replicate(records.replicate("t7", 0))
    sweep.decide(records.decision(1, t7="chosen"))
    synced(settings)
    found = runs(settings)
    assert {key: run.info.run_id for key, run in found.items()} == {
        key: run.info.run_id for key, run in interrupted.items()
    }
    assert {found[key].info.status for key in ("decision", "t7 0")} == {"FINISHED"}


def test_a_deleted_study_takes_its_decision_along(settings: Settings, decided: Sweeping) -> None:
    synced(settings)
    assert {uid: found.runs for uid, found in tracked_studies(settings).items()} == {"study-1": 22}
    delete_study(settings, records.NAME)
    with closing(sqlite3.connect(settings.home / "mlflow.db")) as database:
        for table in ("runs", "tags", "metrics", "params", "inputs", "experiment_tags"):
            assert database.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    assert not [path for path in settings.artifacts.rglob("*") if path.is_file()]
    assert find_garbage(settings) == []


def test_a_report_is_an_artifact_of_the_study_s_run_that_sync_leaves_alone_also_in_a_moved_folder(
    settings: Settings, tmp_path: Path
) -> None:
    records.Sweeping(settings.storage_url).write(*records.complete(0))
    report = tmp_path / "report.html"
    report.write_text("<!doctype html>first")
    store, aside = settings.home / "mlflow.db", tmp_path / "aside.db"
    with pytest.raises(TrackingError, match="try: regtune sync mnist-regularization"):
        log_report(settings, records.NAME, report)
    store.rename(aside)
    with pytest.raises(TrackingError, match="MLflow has nothing yet; try: regtune sync mnist-regularization"):
        log_report(settings, records.NAME, report)
    assert not store.exists()
    aside.rename(store)
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


@pytest.mark.slow
def test_through_a_server_and_from_postgres_the_same_calls_do_the_same(
    settings: Settings, postgres_server: Postgres, tmp_path: Path
) -> None:
    report = tmp_path / "report.html"
    report.write_text("<!doctype html>")
    with serving(settings, free_port()) as server:
        url = postgres_server.fresh("decided", "template1")
        there = Settings(REGTUNE_HOME=settings.home, OPTUNA_STORAGE=url, MLFLOW_TRACKING_URI=server.url)
        sweep = decide(there)
        lacks = synced(there, check=True).lacks
        assert lacks == Missing(absent=8, replicates_absent=12, own=True, decision=True)
        assert not synced(there).lacks
        log_report(there, records.NAME, report)
        assert not synced(there, check=True).lacks
        sweep.decide(records.decision(t7="chosen", none="beaten"))
        wrote = synced(there).to_json()["wrote"]
        assert wrote == {"trials": 2, "replicates": 0, "own": True, "decision": True}
        found = runs(there)
        assert [found[key].data.tags.get(names.STANDING) for key in ("2", "7")] == [None, "chosen"]
        files = MlflowClient(server.url).list_artifacts(found["study"].info.run_id)
        assert [entry.path for entry in files] == ["report.html", "sweep.yaml"]
        delete_study(there, records.NAME)
        assert runs(there) == {}
