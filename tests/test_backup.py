"""`regtune db backup` and `restore`: real databases, artifacts and a model registry, damaged and busy ones too."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
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
from regtune.storage import open_engine, sqlite
from regtune.storage.mlflow import connect
from regtune.study.board import read_board
from regtune.study.ownership import hold
from regtune.upkeep.backup import make_backup
from regtune.upkeep.restore import plan_restore, restore

STUDY = "mnist-regularization"
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
    return make_backup(original, tmp_path_factory.mktemp("made") / "copy").folder


@pytest.fixture
def settings(original: Settings, tmp_path: Path) -> Settings:
    """A copy of the folder that nobody has open."""
    home = tmp_path / "home"
    shutil.copytree(original.artifacts, home / "artifacts")
    for name in ("studies.db", "mlflow.db"):
        sqlite.copy(original.home / name, home / name)
    return Settings(REGTUNE_HOME=home)


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def fill_store(settings: Settings, folder: Path) -> None:
    """Two runs with curves and files, a logged model, and a registered model made of the second."""
    client = connect(settings.mlflow_uri, settings.artifacts)
    experiment = client.create_experiment("sweep", artifact_location=(settings.artifacts / "runs").as_uri())
    for number in range(2):
        run = client.create_run(experiment, tags={"number": str(number)}, run_name=f"#{number}")
        client.log_param(run.info.run_id, "dropout", number / 10)
        for step in range(3):
            client.log_metric(run.info.run_id, "loss", 1 / (1 + step), step=step)
        file = folder / "model.keras"
        file.write_bytes(WEIGHTS + bytes([number]))
        client.log_artifact(run.info.run_id, str(file))
        client.set_terminated(run.info.run_id)
    client.create_logged_model(experiment, name="kept")
    client.create_registered_model("digits")
    client.create_model_version("digits", f"{run.info.artifact_uri}/model.keras", run.info.run_id)
    client.set_registered_model_alias("digits", "champion", "1")
    trial = settings.artifacts / "trials" / "0-1"
    trial.mkdir(parents=True)
    (trial / "model.keras").write_bytes(WEIGHTS)


def runs(settings: Settings, folder: Path) -> list[dict[str, Any]]:
    """Every run with its curve and the digest of its file, downloaded through MLflow."""
    client = connect(settings.mlflow_uri, settings.artifacts)
    (experiment,) = client.search_experiments(filter_string="name = 'sweep'")
    assert experiment.artifact_location.startswith(settings.artifacts.as_uri())
    found = []
    for run in client.search_runs([experiment.experiment_id], order_by=["tags.number"]):
        run_id = run.info.run_id
        assert run.info.artifact_uri.startswith(settings.artifacts.as_uri())
        (file,) = client.list_artifacts(run_id)
        copy = Path(client.download_artifacts(run_id, file.path, str(folder)))
        curve = [(one.step, one.value, one.timestamp) for one in client.get_metric_history(run_id, "loss")]
        digest = hashlib.sha256(copy.read_bytes()).hexdigest()
        info = (run_id, run.info.status, run.info.start_time, run.info.end_time)
        found.append({"info": info, "data": run.data.to_dictionary(), "curve": curve, "file": digest})
    return found


def board(url: str) -> list[Any]:
    engine = open_engine(url)
    try:
        return list(read_board(engine, STUDY).rows)
    finally:
        engine.dispose()


def everything(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder, locks and SQLite's own helpers left out."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "locks" not in path.parts and not path.name.endswith(("-wal", "-shm"))
    }


def typed(*words: str) -> Result:
    return CliRunner().invoke(app, ["db", *words])


# -- there and back


def test_a_restored_backup_has_the_board_runs_files_and_models(original: Settings, tmp_path: Path) -> None:
    made = typed("backup", "copy", "--home", str(original.home))
    assert (made.exit_code, made.stdout) == (0, "")
    assert made.stderr.splitlines()[-1].startswith(f"{tmp_path / 'copy'}: 5 files, ")
    assert typed("restore", "copy", "--home", "a new home").exit_code == 0
    new = Settings(REGTUNE_HOME=tmp_path / "a new home")
    copied = everything(tmp_path / "copy")
    restored = everything(new.home)
    assert {path: copied[path] for path in restored} == restored  # nothing is rewritten
    assert runs(new, tmp_path) == runs(original, tmp_path)
    assert board(new.storage_url) == board(original.storage_url)
    client = connect(new.mlflow_uri, new.artifacts)
    champion = client.get_model_version_by_alias("digits", "champion")
    source = client.get_model_version_download_uri("digits", "1").removeprefix("file://")
    assert champion.run_id == runs(new, tmp_path)[1]["info"][0]
    assert Path(source.replace("%20", " ")).read_bytes() == WEIGHTS + b"\1"
    (model,) = client.search_logged_models([client.get_experiment_by_name("sweep").experiment_id])
    assert model.artifact_location.startswith(new.artifacts.as_uri())
    assert (new.artifacts / "trials" / "0-1" / "model.keras").read_bytes() == WEIGHTS
    with closing(sqlite3.connect(new.home / "mlflow.db")) as database:
        assert str(original.home) + "/" not in "\n".join(database.iterdump())
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_what_was_there_is_set_aside_after_a_yes(settings: Settings, copy: Path, original: Settings) -> None:
    optuna.delete_study(study_name=STUDY, storage=settings.storage_url)
    (settings.artifacts / "trials" / "0-1" / "model.keras").write_bytes(b"another")
    asked = typed("restore", "copy", "--home", "home")
    assert isinstance(asked.exception, InputError)
    assert "studies.db" in str(asked.exception)
    assert "add --yes" in str(asked.exception)
    done = typed("restore", "copy", "--home", "home", "--yes")
    assert done.exit_code == 0
    assert done.stderr.count("set aside: ") == 3
    assert board(settings.storage_url) == board(original.storage_url)
    aside = {path.name.partition(".until-")[0]: path for path in settings.home.glob("*.until-*")}
    assert aside.keys() >= {"studies.db", "mlflow.db", "artifacts"}
    assert (aside["artifacts"] / "trials" / "0-1" / "model.keras").read_bytes() == b"another"
    with closing(sqlite3.connect(aside["studies.db"])) as database:
        assert database.execute("SELECT count(*) FROM studies").fetchone() == (0,)


def test_a_backup_of_the_version_before_is_restored(copy: Path, tmp_path: Path) -> None:
    (copy / "manifest.json").unlink()
    files = {name: (copy / name).read_bytes() for name in everything(copy)}
    as_written_by_0_1_0 = {
        "format": 1,
        "made": "2026-11-28T18:32:54+0000",
        "versions": {"python": "3.11.7", "regtune": "0.1.0", "optuna": "5.0.0", "sqlite": "3.45.1"},
        "revisions": {"studies": "v3.2.0.a", "mlflow": None},
        "artifacts": "file:///home/user/project/mlruns/artifacts",
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for name, content in files.items()
        },
    }
    (copy / "manifest.json").write_text(json.dumps(as_written_by_0_1_0, indent=1))
    restore(Settings(REGTUNE_HOME=tmp_path / "new"), copy)
    assert everything(tmp_path / "new").items() <= everything(copy).items()


def test_accounts_come_along_unreadable_by_others(settings: Settings, tmp_path: Path) -> None:
    accounts = settings.home / "auth.db"
    accounts.touch(mode=0o600)
    with closing(sqlite3.connect(accounts)) as database, database:
        database.execute("CREATE TABLE users (name TEXT)")
        database.execute("INSERT INTO users VALUES ('admin')")
    make_backup(settings, tmp_path / "copy")
    restore(Settings(REGTUNE_HOME=tmp_path / "new"), tmp_path / "copy")
    for path in (tmp_path / "copy" / "auth.db", tmp_path / "new" / "auth.db"):
        assert path.stat().st_mode & 0o777 == 0o600
        with closing(sqlite3.connect(path)) as database:
            assert database.execute("SELECT name FROM users").fetchall() == [("admin",)]


# -- while others write

WRITER = """
import sys, time, sqlite3
from pathlib import Path
home = Path(sys.argv[1])
studies = sqlite3.connect(home / "studies.db", timeout=30, isolation_level=None)
mlflow = sqlite3.connect(home / "mlflow.db", timeout=30, isolation_level=None)
study, = studies.execute("SELECT study_id FROM studies").fetchone()
first, = studies.execute("SELECT max(number) + 1 FROM trials").fetchone()
for number in range(first, first + 100_000):
    name = f"{number}.model.keras"
    (home / "artifacts" / "trials" / ".0.partial").write_text(name)
    (home / "artifacts" / "trials" / ".0.partial").rename(home / "artifacts" / "trials" / name)
    studies.execute("INSERT INTO trials (number, study_id, state) VALUES (?, ?, 'RUNNING')", (number, study))
    mlflow.execute("INSERT INTO runs (run_uuid, name, experiment_id, status, lifecycle_stage) "
                   "VALUES (?, ?, 1, 'RUNNING', 'active')", (str(number), str(number)))
    if number == first:
        (home / "ready").touch()
"""
"""As the coordinator does it: a trial's file, then the trial, then its run."""


def test_under_a_writer_no_run_is_ahead_of_its_study(settings: Settings, tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(settings.home)])
    sizes = []
    try:
        until((settings.home / "ready").exists)
        for _ in range(4):
            make_backup(settings, tmp_path / "copy")
            assert writer.poll() is None
            with closing(sqlite3.connect(tmp_path / "copy" / "studies.db")) as database:
                trials = {str(row[0]) for row in database.execute("SELECT number FROM trials")}
            with closing(sqlite3.connect(tmp_path / "copy" / "mlflow.db")) as database:
                names = (row[0] for row in database.execute("SELECT name FROM runs"))
                written = {name for name in names if not name.startswith("#")}
            copied = (tmp_path / "copy" / "artifacts" / "trials").glob("*.keras")
            files = {path.name.split(".")[0] for path in copied}
            assert written <= trials
            assert written <= files
            assert {number for number in trials if int(number) >= 9} <= files
            sizes.append(len(written))
    finally:
        writer.kill()
        writer.wait()
    assert 0 < sizes[0] < sizes[-1]
    assert plan_restore(Settings(REGTUNE_HOME=tmp_path / "new"), tmp_path / "copy").replaced == ()


def test_a_file_that_changes_while_it_is_copied_is_copied_again(settings: Settings, tmp_path: Path) -> None:
    file = settings.artifacts / "trials" / "0-1" / "model.keras"
    changed: list[int] = []

    def change(_: int, __: int) -> None:
        copied = tmp_path / "copy.new" / "artifacts" / "trials" / "0-1" / "model.keras"
        if not changed and copied.exists():
            with file.open("ab") as writing:
                writing.write(b"more")
            changed.append(1)

    made = make_backup(settings, tmp_path / "copy", change)
    copied = tmp_path / "copy" / "artifacts" / "trials" / "0-1" / "model.keras"
    assert copied.read_bytes() == WEIGHTS + b"more"
    entry = made.manifest.files["artifacts/trials/0-1/model.keras"]
    assert entry.sha256 == hashlib.sha256(WEIGHTS + b"more").hexdigest()


def test_what_is_left_out_is_named_but_for_half_written_files(settings: Settings, tmp_path: Path) -> None:
    connect(settings.mlflow_uri, settings.artifacts)  # re-based on this folder
    secret = tmp_path / "secret"
    secret.write_text("canary")
    (settings.artifacts / "trials" / "link").symlink_to(secret)
    (settings.artifacts / "trials" / "folder").symlink_to(tmp_path)
    (settings.artifacts / "trials" / "0-1" / ".77.model.keras").write_text("half")
    made = make_backup(settings, tmp_path / "copy")
    assert made.notes == ("left out: 2 links or special files among the artifacts",)
    assert len(made.manifest.files) == 5
    with closing(sqlite3.connect(settings.home / "mlflow.db")) as database, database:
        database.execute("UPDATE runs SET artifact_uri = 'file:///elsewhere'")
    assert "left out: the artifacts of 2 runs" in make_backup(settings, tmp_path / "copy").notes[1]
    served = Settings(REGTUNE_HOME=settings.home, MLFLOW_TRACKING_URI="http://127.0.0.1:1")
    made = make_backup(served, tmp_path / "copy")
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


def test_a_backup_that_was_killed_is_none(settings: Settings, tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path; from regtune.upkeep.backup import make_backup; "
        "from regtune.settings import load_settings; "
        "make_backup(load_settings(home=Path('home')), Path('copy'), lambda *_: os.kill(os.getpid(), 9))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    killed = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "copy").exists()
    for folder in ("copy", "copy.new"):
        with pytest.raises(InputError, match="not a backup"):
            restore(Settings(REGTUNE_HOME=tmp_path / "new"), tmp_path / folder)
    make_backup(settings, tmp_path / "copy")
    assert not (tmp_path / "copy.new").exists()


def test_a_damaged_database_is_no_backup_and_an_earlier_one_stays(settings: Settings, copy: Path) -> None:
    before = everything(copy)
    with (settings.home / "mlflow.db").open("r+b") as file:
        file.seek(4096 * 3)
        file.write(os.urandom(4096 * 20))
    with pytest.raises(StorageError, match=r"mlflow\.db.*damaged"):
        make_backup(settings, copy)
    assert everything(copy) == before
    assert not copy.with_name("copy.new").exists()


def test_an_empty_folder_has_nothing_to_back_up(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nothing to back up yet"):
        make_backup(Settings(REGTUNE_HOME=tmp_path / "home"), tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


# -- what is refused


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def to_link(path: Path) -> None:
    """Put a link in a file's place, to a copy of it."""
    path.rename(path.with_name("moved"))
    path.symlink_to(path.with_name("moved"))


def in_manifest(before: str, after: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, after))

    return change


MODEL, MANIFEST = "artifacts/trials/0-1/model.keras", "manifest.json"
DAMAGES: list[tuple[str, Callable[[Path], Any], str]] = [
    ("studies.db", flip, "damaged: its SHA-256 is"),
    (MODEL, flip, "damaged: its SHA-256 is"),
    (MODEL, Path.unlink, "is missing from the backup"),
    (MODEL, lambda path: path.write_text("x"), "damaged: has 1 bytes"),
    (MODEL, to_link, "is a link"),
    ("artifacts/trials", to_link, "is a link"),
    (MANIFEST, lambda path: path.write_text("{"), "not a manifest that this version understands"),
    (MANIFEST, in_manifest('"format": 1', '"format": 2'), "this version understands: format"),
    *(
        (MANIFEST, in_manifest(MODEL, forged), "not the path of a file in a backup")
        for forged in ("../../escaped", "artifacts/../../escaped", "/tmp/escaped", "service.json")
    ),
    (MANIFEST, in_manifest('"studies": "v', '"studies": "v9'), "of a newer Optuna"),
]


def test_what_is_damaged_or_forged_replaces_nothing(settings: Settings, made: Path, tmp_path: Path) -> None:
    before = everything(settings.home)
    for number, (name, damage, reason) in enumerate(DAMAGES):
        copy = Path(shutil.copytree(made, tmp_path / f"copy {number}"))
        damage(copy / name)
        with pytest.raises(StorageError, match=reason):
            restore(settings, copy)
        assert everything(settings.home) == before, name
    assert not (tmp_path / "escaped").exists()


def test_nothing_is_restored_under_a_sweep_a_server_or_another_user_of_the_files(
    settings: Settings, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(settings.home)
    with (
        hold(settings, STUDY),
        pytest.raises(StorageError, match=rf"a sweep is run by process {os.getpid()}"),
    ):
        restore(settings, copy)
    server = Service("http://127.0.0.1:9", "127.0.0.1", 9, False, settings.mlflow_uri, 1, "")
    with monkeypatch.context() as patch:
        patch.setattr("regtune.upkeep.restore.running", lambda _: server)
        with pytest.raises(StorageError, match="stop it first with: regtune down"):
            restore(settings, copy)
    code = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM runs').fetchall(); "
        "print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(settings.home / "mlflow.db")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        with pytest.raises(StorageError, match=rf"mlflow\.db: process {reader.pid} .*has it open"):
            restore(settings, copy)
        reader.kill()
    assert everything(settings.home) == before
    restore(settings, copy)


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
    before, boards = runs(team, tmp_path), board(team.storage_url)
    copy = tmp_path / "team copy"

    for verb, done in ((make_backup, "backed up"), (restore, "restored")):
        with pytest.raises(InputError, match=f"^PostgreSQL is {done} by its own programs") as caught:
            verb(team, copy)
        lines = str(caught.value).splitlines()[1:]
        if verb is restore:
            assert shlex.split(lines[0])[0] == "pg_restore"
            postgres_server.fresh("studies_backup")
            postgres_server.fresh("mlflow_backup")
            shutil.rmtree(team.artifacts)
        subprocess.run(["sh", "-euc", "\n".join(lines)], check=True, cwd=tmp_path)
    assert board(team.storage_url) == boards
    assert runs(team, tmp_path) == before
