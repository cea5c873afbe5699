"""A folder that was moved or copied keeps its artifacts in itself, and nothing outside of it is touched."""

from __future__ import annotations

import hashlib
import re
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import tracking_records as records
from mlflow import MlflowClient

from regtune.settings import Settings, read_choice, write_choice
from regtune.storage.artifacts import inside
from regtune.tracking.projection import project
from regtune.tracking.store import delete_study, strays
from regtune.tracking.studies import Recorded
from regtune.tracking.sync import catch_up
from regtune.upkeep.doctor import examine
from regtune.upkeep.status import look

MODEL = {"model.keras": hashlib.sha256(b"weights").hexdigest()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a study of two trials, the first with a model."""
    home = tmp_path_factory.mktemp("a project") / "mlruns"
    records.with_model(records.complete(0), home / "artifacts")
    write(Settings(REGTUNE_HOME=home), 0, 1)
    return home


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A copy of it, while the original is still there."""
    return Path(shutil.copytree(made, tmp_path / "its copy" / "mlruns"))


def write(settings: Settings, *numbers: int, models: bool = True) -> int:
    """Have MLflow say so much of the study, whose first trial may have a model."""
    trials = [records.complete(number) for number in numbers]
    if models:
        trials[0] = (0, "COMPLETE", replace(trials[0][2], artifacts=MODEL))
    return catch_up(settings, Recorded(records.facts(), trials, winner=0)).trials


def files(folder: Path) -> dict[str, bytes]:
    """What lies in the folder of MLflow's artifacts."""
    paths = (folder / "artifacts").rglob("*")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.is_file()}


def dump(home: Path) -> str:
    """All that MLflow's database says."""
    with closing(sqlite3.connect(home / "mlflow.db")) as database:
        return "\n".join(database.iterdump())


def test_a_copy_writes_and_deletes_in_itself_alone(made: Path, copy: Path) -> None:
    before, settings = files(made), Settings(REGTUNE_HOME=copy)
    assert write(settings, 0, 1, 2, models=False) == 2  # trial 2 is new, trial 0 has no model any more
    assert len(list((copy / "artifacts" / "runs").glob("*/artifacts/config.yaml"))) == 3
    assert not list((copy / "artifacts" / "runs").glob("*/artifacts/model.keras"))
    assert not {str(made), made.as_uri()} & set(re.findall(r"(?:file://)?/[^']*/mlruns", dump(copy)))
    assert delete_study(settings, "study-1") == 4
    assert not list((copy / "artifacts" / "runs").rglob("*.yaml"))
    assert files(made) == before


def test_a_moved_folder_has_its_artifacts(copy: Path, tmp_path: Path) -> None:
    home = copy.rename(tmp_path / "mlruns")
    write(Settings(REGTUNE_HOME=home), 0, 1)
    assert not copy.exists()
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    runs = client.search_runs([found.experiment_id for found in client.search_experiments()])
    listed = [file.path for run in runs for file in client.list_artifacts(run.info.run_id)]
    assert sorted(listed) == ["config.yaml", "config.yaml", "model.keras"]
    assert "/a%20project" not in dump(home)
    assert strays(Settings(REGTUNE_HOME=home)) == []


def test_status_and_doctor_say_where_a_store_points_until_something_is_written(
    made: Path, copy: Path
) -> None:
    settings = Settings(REGTUNE_HOME=copy)
    (stray,) = look(settings).strays
    assert (stray.folder, stray.former) == (str(made / "artifacts"), True)
    (check,) = [check for check in examine(settings) if check.name == "artifacts"]
    assert (check.status, check.mend) == ("mend", "regtune sync")
    assert str(made / "artifacts") in check.found
    write(settings, 0, 1)
    assert not look(settings).strays
    assert not [check for check in examine(settings) if check.name == "artifacts"]


def test_artifacts_of_another_project_are_neither_written_nor_deleted(made: Path, copy: Path) -> None:
    other = Settings(REGTUNE_HOME=copy, MLFLOW_TRACKING_URI=f"sqlite:///{made / 'mlflow.db'}")
    kept = shutil.copytree(made, made.with_name("kept"))
    try:
        before = files(made)
        write(other, 0, 1, 2, models=False)
        (projection := project(other, records.facts())).study("FINISHED", 0)
        assert projection.outside.startswith(f"{made.as_uri()}/artifacts/runs/")  # as the sweep says
        assert delete_study(other, "study-1") == 4
        assert files(made) == before
    finally:
        shutil.rmtree(made)
        kept.rename(made)


def test_another_project_s_experiment_in_this_store_stays_where_it_is(copy: Path, tmp_path: Path) -> None:
    settings, others = Settings(REGTUNE_HOME=copy), tmp_path / "others" / "mlruns"
    write(settings, 0, 1)
    other = Settings(REGTUNE_HOME=others, MLFLOW_TRACKING_URI=f"sqlite:///{copy / 'mlflow.db'}")
    trial = (0, "COMPLETE", replace(records.complete(0)[2], uid="study-2-0"))
    catch_up(other, Recorded(records.facts("other", "study-2"), [trial]))
    before = files(others)
    assert len(before) == 1
    write(settings, 0, 1, 2)
    (stray,) = strays(settings)
    assert (stray.folder, stray.former) == (str(others / "artifacts"), False)
    assert delete_study(settings, "study-2") == 2
    assert files(others) == before


def test_a_place_is_the_project_s_or_a_server_s_or_not_touched(tmp_path: Path) -> None:
    runs = tmp_path / "artifacts" / "runs"
    runs.mkdir(parents=True)
    (runs / "link").symlink_to(tmp_path)
    ours = (
        f"{runs.as_uri()}/1/artifacts",
        f"{runs}/1/artifacts",
        "mlflow-artifacts:/1/2/artifacts",
        "s3://a/1",
    )
    beside = ("", "/../trials/1", "/../../../1", "/%2e%2e/%2e%2e/1", "/link/artifacts")
    others = [
        *(runs.as_uri() + path for path in beside),
        "file:///elsewhere/artifacts/runs/1",
        "mlruns/1/artifacts",
    ]
    for uri in (*ours, *others):
        assert inside(uri, tmp_path / "artifacts") is (uri in ours), uri


def test_a_copied_folder_uses_the_postgresql_of_its_own(tmp_path: Path) -> None:
    url = "postgresql+psycopg://regtune@/{}?host={}"
    at = {name: url.format(name, "/first/mlruns/postgres") for name in ("studies", "mlflow")}
    write_choice(tmp_path, at)
    here = str(tmp_path / "postgres").replace("/", "%2F")
    assert read_choice(tmp_path) == {name: url.format(name, here) for name in at}
    servers = {name: url.format(f"team_{name}", "/run/postgresql") for name in at}
    write_choice(tmp_path, servers)
    assert read_choice(tmp_path) == servers
