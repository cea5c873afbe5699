"""`regtune db backup` and `restore`: real databases, artifacts and a model registry, damaged and busy ones too."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import optuna
import pytest
import studies
from stores import Postgres, until
from typer.testing import CliRunner, Result

from regtune.cli import app
from regtune.errors import InputError, StorageError
from regtune.server.databases import init_databases
from regtune.server.service import Service
from regtune.settings import Settings
from regtune.storage.mlflow import connect
from regtune.study.ownership import hold
from regtune.upkeep.backup import Manifest, make_backup
from regtune.upkeep.restore import plan_restore, restore

STUDY, MODEL = "mnist-regularization", "artifacts/trials/0-1/model.keras"
WEIGHTS = b"weights" * 1000


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A folder with a study, its runs with artifacts, and a registered model."""
    home = tmp_path_factory.mktemp("original") / "home"
    studies.fill(studies.create(home / "studies.db"))
    settings = Settings(REGTUNE_HOME=home)
    fill_store(settings, home.parent)
    return settings


@pytest.fixture(scope="module")
def made(original: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of it, to be copied before it is changed."""
    folder = tmp_path_factory.mktemp("made") / "copy"
    make_backup(original, folder)
    return folder


@pytest.fixture
def settings(made: Path, tmp_path: Path) -> Settings:
    """A folder like it that nobody has open."""
    ignored = shutil.ignore_patterns("*.json")
    return Settings(REGTUNE_HOME=shutil.copytree(made, tmp_path / "home", ignore=ignored))


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def fill_store(settings: Settings, folder: Path) -> None:
    """Two runs with curves and files, a logged model, and a registered model made of the second."""
    client = connect(settings.mlflow_uri, settings.artifacts)
    experiment = client.create_experiment("sweep", artifact_location=(settings.artifacts / "runs").as_uri())
    file = folder / "model.keras"
    for number in range(2):
        run = client.create_run(experiment, tags={"number": str(number)}, run_name=f"#{number}")
        client.log_metric(run.info.run_id, "loss", 0.5, step=number)
        file.write_bytes(WEIGHTS + bytes([number]))
        client.log_artifact(run.info.run_id, str(file))
    client.create_logged_model(experiment, name="kept")
    client.create_registered_model("digits")
    client.create_model_version("digits", f"{run.info.artifact_uri}/model.keras", run.info.run_id)
    client.set_registered_model_alias("digits", "champion", "1")
    trial = settings.artifacts / "trials" / "0-1"
    trial.mkdir(parents=True)
    (trial / "model.keras").write_bytes(WEIGHTS)


def runs(settings: Settings, folder: Path) -> list[dict[str, Any]]:
    """Every run with its figures and its file, downloaded through MLflow."""
    client = connect(settings.mlflow_uri, settings.artifacts)
    (experiment,) = client.search_experiments(filter_string="name = 'sweep'")
    found = []
    for run in client.search_runs([experiment.experiment_id], order_by=["tags.number"]):
        copy = client.download_artifacts(run.info.run_id, "model.keras", str(folder))
        found.append({"id": run.info.run_id, **run.data.to_dictionary(), "file": Path(copy).read_bytes()})
    return found


def everything(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder, the manifest, locks and SQLite's own helpers left out."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("-wal", "-shm", ".lock", ".json"))
    }


def typed(*words: str) -> Result:
    return CliRunner().invoke(app, ["db", *words])


# -- there and back


def test_a_restored_backup_has_the_studies_runs_files_and_models(original: Settings, tmp_path: Path) -> None:
    made = typed("backup", "copy", "--home", str(original.home))
    assert (made.exit_code, made.stdout) == (0, "")
    assert made.stderr.splitlines()[-1].startswith("copy: 5 files, ")
    assert typed("restore", "copy", "--home", "a new home").exit_code == 0
    new = Settings(REGTUNE_HOME=tmp_path / "a new home")
    assert everything(new.home) == everything(tmp_path / "copy")  # nothing is rewritten
    assert runs(new, tmp_path) == runs(original, tmp_path)
    client = connect(new.mlflow_uri, new.artifacts)
    champion = client.get_model_version_by_alias("digits", "champion")
    assert champion.run_id == runs(new, tmp_path)[1]["id"]
    with closing(sqlite3.connect(new.home / "mlflow.db")) as database:
        assert str(original.home) + "/" not in "\n".join(database.iterdump())  # of models, too


def test_what_was_there_is_set_aside_after_a_yes(settings: Settings, copy: Path) -> None:
    optuna.delete_study(study_name=STUDY, storage=settings.storage_url)
    (settings.artifacts / "trials" / "0-1" / "model.keras").write_bytes(b"another")
    asked = typed("restore", "copy", "--home", "home")
    assert isinstance(asked.exception, InputError)
    assert "add --yes" in str(asked.exception)
    done = typed("restore", "copy", "--home", "home", "--yes")
    assert (done.exit_code, done.stderr.count("set aside: ")) == (0, 3)
    assert everything(copy).items() <= everything(settings.home).items()
    aside = {path.name.partition(".until-")[0]: path for path in settings.home.glob("*.until-*")}
    assert (aside["artifacts"] / "trials" / "0-1" / "model.keras").read_bytes() == b"another"
    with closing(sqlite3.connect(aside["studies.db"])) as database:
        assert database.execute("SELECT count(*) FROM studies").fetchone() == (0,)


def test_the_manifest_of_the_version_before_is_read() -> None:
    as_written_by_0_1_0 = {
        **{"format": 1, "made": "2026-11-28T18:32:54+0000", "artifacts": "file:///home/mlruns/artifacts"},
        **{
            "versions": {"regtune": "0.1.0", "sqlite": "3.45.1"},
            "revisions": {"studies": "v3", "mlflow": None},
        },
        "files": {"studies.db": {"sha256": "ab" * 32, "bytes": 7}},
    }
    assert Manifest.model_validate_json(json.dumps(as_written_by_0_1_0)).size_bytes == 7


def test_accounts_come_along_unreadable_by_others(settings: Settings, tmp_path: Path) -> None:
    accounts = settings.home / "auth.db"
    accounts.touch(mode=0o600)
    with closing(sqlite3.connect(accounts)) as database, database:
        database.execute("CREATE TABLE users (name TEXT)")
    make_backup(settings, tmp_path / "copy")
    restore(Settings(REGTUNE_HOME=tmp_path / "new"), tmp_path / "copy")
    for path in (tmp_path / "copy" / "auth.db", tmp_path / "new" / "auth.db"):
        assert path.stat().st_mode & 0o777 == 0o600
        with closing(sqlite3.connect(path)) as database:
            assert database.execute("SELECT name FROM users").fetchall() == []


# -- while others write


def test_under_a_writer_no_run_is_ahead_of_its_study(settings: Settings, tmp_path: Path) -> None:
    trials, copy = settings.artifacts / "trials", tmp_path / "copy"

    def write() -> None:
        """As the coordinator does it: a trial's file, then the trial, then its run."""
        names = ("studies.db", "mlflow.db")
        study, mlflow = (sqlite3.connect(settings.home / name, 30, isolation_level=None) for name in names)
        for number in count(9):
            (trials / f"{number}.keras").touch()
            study.execute("INSERT INTO trials (number, study_id, state) VALUES (?, 1, 'RUNNING')", (number,))
            mlflow.execute(
                "INSERT INTO runs (run_uuid, name, experiment_id) VALUES (?1, ?1, 1)", (f"{number}",)
            )

    def copied(database: str, query: str) -> set[str]:
        with closing(sqlite3.connect(copy / database)) as connection:
            return {str(row[0]) for row in connection.execute(query)}

    writer = get_context("fork").Process(target=write)
    writer.start()
    sizes = []
    try:
        until((trials / "10.keras").exists)
        for _ in range(4):
            make_backup(settings, copy)
            assert writer.is_alive()
            written = copied("mlflow.db", "SELECT name FROM runs WHERE name NOT LIKE '#%'")
            models = {path.stem for path in (copy / "artifacts" / "trials").glob("*.keras")}
            assert written <= copied("studies.db", "SELECT number FROM trials WHERE number >= 9") <= models
            sizes.append(len(written))
    finally:
        writer.kill()
        writer.join()
    assert 0 < sizes[0] < sizes[-1]
    assert plan_restore(Settings(REGTUNE_HOME=tmp_path / "new"), copy).replaced == []


def test_a_file_that_changes_while_it_is_copied_is_copied_again(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, copy, contents = settings.home / MODEL, shutil.copyfileobj, [b"changed" * 1000]  # as long as before

    def copy_then_change(reading: Any, writing: Any) -> None:
        copy(reading, writing)
        if contents and os.path.samestat(os.fstat(reading.fileno()), file.stat()):
            file.write_bytes(contents.pop())

    monkeypatch.setattr(shutil, "copyfileobj", copy_then_change)
    made = make_backup(settings, tmp_path / "copy")
    assert (tmp_path / "copy" / MODEL).read_bytes() == file.read_bytes() != WEIGHTS
    assert made.manifest.files[MODEL].sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_what_is_left_out_is_named_but_for_half_written_files(settings: Settings, tmp_path: Path) -> None:
    (settings.artifacts / "trials" / "link").symlink_to(__file__)
    (settings.artifacts / "trials" / "folder").symlink_to(tmp_path)
    (settings.artifacts / "trials" / "0-1" / ".77.model.keras").write_text("half")
    made = make_backup(settings, tmp_path / "copy")
    assert made.notes == ("left out: 2 links or special files among the artifacts",)
    assert len(made.manifest.files) == 5
    with closing(sqlite3.connect(settings.home / "mlflow.db")) as database, database:
        database.execute("UPDATE experiments SET artifact_location = '/elsewhere' WHERE name = 'sweep'")
    said = make_backup(settings, tmp_path / "copy").notes[1]
    assert said.startswith("left out: the artifacts of 1 experiment in /elsewhere, ")
    served = Settings(REGTUNE_HOME=settings.home, MLFLOW_TRACKING_URI="http://127.0.0.1:1")
    with pytest.raises(InputError, match=r"that backup has mlflow\.db, and now runs go to http://127"):
        make_backup(served, tmp_path / "copy")
    made = make_backup(served, tmp_path / "of studies")
    assert "left out: runs and registered models of http://127.0.0.1:1" in made.notes[0]
    assert "mlflow.db" not in made.manifest.files


# -- where to


def test_only_an_earlier_backup_is_replaced(settings: Settings, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("x")
    for folder, reason in (
        (precious, "not empty and not an earlier backup"),
        (settings.home, "cannot be inside the folder that it copies"),
        (settings.artifacts / "deep", "cannot be inside the folder that it copies"),
        (precious / "thesis.tex", "expected a folder"),
    ):
        with pytest.raises(InputError, match=reason):
            make_backup(settings, folder)
    assert [path.name for path in precious.iterdir()] == ["thesis.tex"]
    copy = tmp_path / "deep" / "copy"
    make_backup(settings, copy)
    (settings.artifacts / "later").write_text("x")
    make_backup(settings, copy)
    assert (copy / "artifacts" / "later").exists()
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]
    for name in ("copy.old", "copy.new"):  # which a person has kept
        shutil.copytree(copy, copy.with_name(name))
    shutil.rmtree(copy)
    make_backup(settings, copy)
    assert {path.name for path in copy.parent.iterdir()} == {"copy", "copy.old", "copy.new"}
    other = Settings(REGTUNE_HOME=shutil.copytree(settings.home, tmp_path / "other"))
    with pytest.raises(InputError, match=f"is a backup of file://{settings.artifacts}; name another folder"):
        make_backup(other, copy)
    (copy / "notes.txt").write_text("the best so far")
    with pytest.raises(InputError, match=r"has something besides a backup in it: notes\.txt"):
        make_backup(settings, copy)
    assert (copy / "notes.txt").exists()


def test_a_backup_that_lacks_what_the_one_before_has_does_not_replace_it(
    settings: Settings, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    make_backup(settings, copy)
    before = everything(copy)
    (settings.home / "studies.db").unlink()
    with pytest.raises(
        InputError, match=r"that backup has studies\.db, and now there is none at .*/studies\.db"
    ):
        make_backup(settings, copy)
    assert everything(copy) == before
    note = f"left out: studies.db, because there is no {settings.home / 'studies.db'}"
    assert note in make_backup(settings, tmp_path / "another").notes


def test_artifacts_that_cannot_be_read_are_no_backup(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir

    def refuse(path: Path) -> Any:
        if str(path).endswith("trials"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    with monkeypatch.context() as patch:  # of another account; root may read everything
        patch.setattr(os, "scandir", refuse)
        with pytest.raises(StorageError, match="artifacts/trials: Permission denied"):
            make_backup(settings, tmp_path / "copy")
    shutil.rmtree(settings.artifacts)
    settings.artifacts.symlink_to(tmp_path / "unmounted")
    with pytest.raises(StorageError, match="artifacts: No such file"):
        make_backup(settings, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_backup_that_was_killed_is_none(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("regtune.upkeep.backup.copy_file", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        killed = get_context("fork").Process(target=make_backup, args=(settings, tmp_path / "copy"))
        killed.start()
        killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert not (tmp_path / "copy").exists()
    for folder in ("copy", ".copy.regtune-new"):
        with pytest.raises(InputError, match="not a backup"):
            restore(Settings(REGTUNE_HOME=tmp_path / "new"), tmp_path / folder)
    make_backup(settings, tmp_path / "copy")
    assert not list(tmp_path.glob(".copy*"))


def test_a_damaged_database_is_no_backup_and_an_earlier_one_stays(settings: Settings, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    make_backup(settings, copy)
    before = everything(copy)
    with (settings.home / "mlflow.db").open("r+b") as file:
        file.seek(4096 * 3)
        file.write(os.urandom(4096 * 20))
    with pytest.raises(StorageError, match=r"mlflow\.db.*damaged"):
        make_backup(settings, copy)
    assert everything(copy) == before
    assert not list(tmp_path.glob(".copy*"))


def test_an_empty_folder_has_nothing_to_back_up(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nothing to back up yet"):
        make_backup(Settings(REGTUNE_HOME=tmp_path / "home"), tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


# -- what is refused


def to_link(path: Path) -> None:
    """Put a link in a file's place, to a copy of it."""
    path.rename(path.with_name("moved"))
    path.symlink_to(path.with_name("moved"))


DAMAGES: list[tuple[str, Callable[[Path], Any], str]] = [
    (MODEL, lambda path: path.write_bytes(WEIGHTS[1:] + b"x"), "damaged: its SHA-256 is"),
    (MODEL, Path.unlink, "No such file"),
    ("artifacts/trials", to_link, "a link"),
]
FORGERIES = [
    ('"format": 1', '"format": 2', "this version understands: format"),
    ('"studies": "v', '"studies": "v9', "of a newer Optuna"),
    (f'"{MODEL}": {{', "{", "not a manifest that this version understands"),
    *(
        (MODEL, forged, "not the path of a file in a backup")
        for forged in ("../../escaped", "artifacts/../../escaped", "/tmp/escaped", "service.json")
    ),
]


def test_what_is_damaged_or_forged_replaces_nothing(settings: Settings, made: Path, tmp_path: Path) -> None:
    before = everything(settings.home)
    for number, (name, damage, reason) in enumerate(DAMAGES):
        copy = Path(shutil.copytree(made, tmp_path / f"copy {number}"))
        damage(copy / name)
        with pytest.raises(StorageError, match=reason):
            restore(settings, copy)
        assert everything(settings.home) == before, name
    manifest = (made / "manifest.json").read_text()
    for true, forged, reason in FORGERIES:
        assert true in manifest
        (copy / "manifest.json").write_text(manifest.replace(true, forged))
        with pytest.raises(StorageError, match=reason):
            restore(settings, copy)
        assert everything(settings.home) == before, forged
    assert not (tmp_path / "escaped").exists()


def test_nothing_is_restored_under_a_sweep_a_server_or_another_user_of_the_files(
    settings: Settings, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(settings.home)

    def refused(why: str) -> None:
        with pytest.raises(StorageError, match=why):
            restore(settings, copy)

    with hold(settings, STUDY):
        refused(rf"a sweep is run by process {os.getpid()}")
    server = Service("http://127.0.0.1:9", "127.0.0.1", 9, False, settings.mlflow_uri, 1, "")
    with monkeypatch.context() as patch:
        patch.setattr("regtune.server.service.running", lambda _: server)
        refused("stop it first with: regtune down")
    with (
        (settings.home / "mlflow.db").open() as file,
        subprocess.Popen(["sleep", "60"], stdin=file) as reader,
    ):
        refused(rf"mlflow\.db: process {reader.pid} .*has it open")
        reader.kill()
    assert everything(settings.home) == before
    restore(settings, copy)


def test_a_restore_that_fails_halfway_goes_back(
    settings: Settings, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rename = everything(settings.home), Path.rename
    for failing in range(6):
        left = [failing]

        def fail(path: Path, to: Path, left: list[int] = left) -> Path:
            left[0] -= 1
            if left[0] == -1:
                raise OSError(16, "Device or resource busy", str(path))
            return rename(path, to)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", fail)
            with pytest.raises(StorageError, match="Device or resource busy"):
                restore(settings, copy)
        assert everything(settings.home) == before
        assert not list(settings.home.glob("*.until-*"))
    restore(settings, copy)


def test_a_database_that_the_backup_lacks_does_not_stay_beside_other_artifacts(
    settings: Settings, tmp_path: Path
) -> None:
    served = Settings(REGTUNE_HOME=settings.home, MLFLOW_TRACKING_URI="http://127.0.0.1:1")
    make_backup(served, tmp_path / "of studies")
    lines = restore(settings, tmp_path / "of studies")
    assert sorted(line.partition(".until-")[0] for line in lines) == [
        f"set aside: {settings.home / name}" for name in ("artifacts", "mlflow.db", "studies.db")
    ]
    assert not (settings.home / "mlflow.db").exists()


# -- PostgreSQL


def test_the_lines_for_postgresql_bring_everything_back(
    original: Settings, postgres_server: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{postgres_server.programs}{os.pathsep}{os.environ['PATH']}")
    team = Settings(
        REGTUNE_HOME=tmp_path / "team home",
        OPTUNA_STORAGE=postgres_server.fresh("studies_backup"),
        MLFLOW_TRACKING_URI=postgres_server.fresh("mlflow_backup"),
    )
    init_databases(team)
    fill_store(team, tmp_path)
    optuna.copy_study(from_study_name=STUDY, from_storage=original.storage_url, to_storage=team.storage_url)
    before, study = runs(team, tmp_path), optuna.load_study(study_name=STUDY, storage=team.storage_url)
    trials, copy = study.trials, tmp_path / "team copy"

    for verb, done in ((make_backup, "backed up"), (restore, "restored")):
        with pytest.raises(InputError, match=f"^PostgreSQL is {done} by its own programs") as caught:
            verb(team, copy)
        lines = str(caught.value).splitlines()[1:]
        if verb is restore:
            postgres_server.fresh("studies_backup")
            postgres_server.fresh("mlflow_backup")
            shutil.rmtree(team.artifacts)
        subprocess.run(["sh", "-euc", "\n".join(lines)], check=True, cwd=tmp_path)
    assert optuna.load_study(study_name=STUDY, storage=team.storage_url).trials == trials
    assert runs(team, tmp_path) == before
