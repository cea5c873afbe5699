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
from mlflow import MlflowClient
from stores import Postgres, free_port, until
from terminals import regtune

from regtune.errors import InputError, StorageError
from regtune.server.databases import init_databases
from regtune.settings import Settings
from regtune.storage.mlflow import connect, make_store
from regtune.study.ownership import hold
from regtune.upkeep.backup import make_backup
from regtune.upkeep.restore import plan_restore, restore

STUDY = "mnist-regularization"
WEIGHTS = b"weights" * 1000


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with nothing in it, to be copied."""
    home = tmp_path_factory.mktemp("blank")
    make_store(f"sqlite:///{home / 'mlflow.db'}", home / "artifacts")
    return home / "mlflow.db"


@pytest.fixture
def settings(tmp_path: Path, blank: Path) -> Settings:
    """A folder with a study, its runs with artifacts, and a registered model."""
    home = tmp_path / "home"
    studies.fill(studies.create(home / "studies.db"))
    shutil.copy(blank, home)
    found = Settings(REGTUNE_HOME=home)
    fill_store(found, tmp_path)
    return found


def fill_store(settings: Settings, folder: Path) -> None:
    """Two runs with curves and files, a logged model, and a registered model made of the first."""
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
    client: MlflowClient = connect(settings.mlflow_uri, settings.artifacts)
    (experiment,) = client.search_experiments(filter_string="name = 'sweep'")
    assert experiment.artifact_location.startswith(settings.artifacts.as_uri())
    found = []
    for run in client.search_runs([experiment.experiment_id], order_by=["tags.number"]):
        assert run.info.artifact_uri.startswith(settings.artifacts.as_uri())
        (file,) = client.list_artifacts(run.info.run_id)
        target = folder / f"download-{settings.home.name}"
        target.mkdir(exist_ok=True)
        copy = Path(client.download_artifacts(run.info.run_id, file.path, str(target)))
        found.append(
            {
                "id": run.info.run_id,
                "params": run.data.params,
                "tags": run.data.tags,
                "status": run.info.status,
                "times": (run.info.start_time, run.info.end_time),
                "curve": [
                    (m.step, m.value, m.timestamp) for m in client.get_metric_history(run.info.run_id, "loss")
                ],
                "file": hashlib.sha256(copy.read_bytes()).hexdigest(),
            }
        )
    return found


def board(home: Path) -> Any:
    """What `regtune board --json` prints."""
    found = regtune("board", STUDY, "--json", "--home", str(home))
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def everything(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder, locks and SQLite's own helpers left out."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "locks" not in path.parts and not path.name.endswith(("-wal", "-shm"))
    }


# -- there and back


def test_a_backup_restored_elsewhere_has_the_same_board_runs_files_and_models(
    settings: Settings, tmp_path: Path
) -> None:
    before, boards = runs(settings, tmp_path), board(settings.home)
    made = regtune("db", "backup", "copy", "--home", str(settings.home))
    assert (made.returncode, made.stdout) == (0, "")
    assert made.stderr.splitlines()[-1].startswith(f"{tmp_path / 'copy'}: 5 files, ")
    shutil.move(settings.home, tmp_path / "lost")
    back = regtune("db", "restore", "copy", "--home", "a new home")
    assert back.returncode == 0, back.stderr
    found = Settings(REGTUNE_HOME=tmp_path / "a new home")
    assert runs(found, tmp_path) == before
    assert board(found.home) == boards
    client = connect(found.mlflow_uri, found.artifacts)
    champion = client.get_model_version_by_alias("digits", "champion")
    source = Path(
        client.get_model_version_download_uri("digits", "1").removeprefix("file://").replace("%20", " ")
    )
    assert champion.run_id == before[1]["id"]
    assert source.read_bytes() == WEIGHTS + b"\1"
    (model,) = client.search_logged_models([client.get_experiment_by_name("sweep").experiment_id])
    assert model.artifact_location.startswith(found.artifacts.as_uri())
    assert (found.artifacts / "trials" / "0-1" / "model.keras").read_bytes() == WEIGHTS
    with closing(sqlite3.connect(found.home / "mlflow.db")) as database:
        assert str(settings.home) + "/" not in "\n".join(database.iterdump())
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_what_was_there_is_set_aside_whole_after_a_yes(settings: Settings, tmp_path: Path) -> None:
    make_backup(settings, tmp_path / "copy")
    boards = board(settings.home)
    optuna.delete_study(study_name=STUDY, storage=settings.storage_url)
    (settings.artifacts / "trials" / "0-1" / "model.keras").write_bytes(b"another")
    close_engines()
    asked = regtune("db", "restore", "copy", "--home", "home")
    assert asked.returncode == 2
    assert "studies.db" in asked.stderr
    assert "add --yes" in asked.stderr
    assert regtune("board", STUDY, "--home", "home").returncode == 2
    done = regtune("db", "restore", "copy", "--home", "home", "--yes")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("set aside: ") == 3
    assert board(settings.home) == boards
    aside = {path.name.partition(".until-")[0]: path for path in settings.home.glob("*.until-*")}
    assert aside.keys() >= {"studies.db", "mlflow.db", "artifacts"}
    assert (aside["artifacts"] / "trials" / "0-1" / "model.keras").read_bytes() == b"another"
    with closing(sqlite3.connect(aside["studies.db"])) as database:
        assert database.execute("SELECT count(*) FROM studies").fetchone() == (0,)


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


def test_a_backup_under_a_writer_is_whole_and_no_run_is_ahead_of_its_study(
    settings: Settings, tmp_path: Path
) -> None:
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
                written = {
                    row[0] for row in database.execute("SELECT name FROM runs") if not row[0].startswith("#")
                }
            files = {
                path.name.split(".")[0]
                for path in (tmp_path / "copy" / "artifacts" / "trials").glob("*.keras")
            }
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
        if not changed:
            with file.open("ab") as writing:
                writing.write(b"more")
            changed.append(1)

    made = make_backup(settings, tmp_path / "copy", change)
    assert (
        tmp_path / "copy" / "artifacts" / "trials" / "0-1" / "model.keras"
    ).read_bytes() == WEIGHTS + b"more"
    entry = made.manifest.files["artifacts/trials/0-1/model.keras"]
    assert entry.sha256 == hashlib.sha256(WEIGHTS + b"more").hexdigest()


def test_links_and_half_written_files_are_left_out_and_the_former_named(
    settings: Settings, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("canary")
    (settings.artifacts / "trials" / "link").symlink_to(secret)
    (settings.artifacts / "trials" / "folder").symlink_to(tmp_path)
    (settings.artifacts / "trials" / "0-1" / ".77.model.keras").write_text("half")
    made = make_backup(settings, tmp_path / "copy")
    assert made.notes == ("left out: 2 links or special files among the artifacts",)
    assert len(made.manifest.files) == 5


# -- where to


def test_only_an_earlier_backup_is_replaced(settings: Settings, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("x")
    for folder, reason in (
        (precious, "not empty and not an earlier backup"),
        (settings.home, "cannot lie in what it copies"),
        (settings.artifacts / "deep", "cannot lie in what it copies"),
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
    killed = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os; from pathlib import Path; from regtune.upkeep.backup import make_backup; "
            "from regtune.settings import load_settings; "
            "make_backup(load_settings(home=Path('home')), Path('copy'), lambda *_: os.kill(os.getpid(), 9))",
        ],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "copy").exists()
    for folder in ("copy", "copy.new"):
        with pytest.raises(InputError, match="not a backup"):
            restore(Settings(REGTUNE_HOME=tmp_path / "new"), tmp_path / folder)
    make_backup(settings, tmp_path / "copy")
    assert not (tmp_path / "copy.new").exists()


def test_a_damaged_database_is_no_backup_and_an_earlier_one_stays(settings: Settings, tmp_path: Path) -> None:
    make_backup(settings, tmp_path / "copy")
    before = everything(tmp_path / "copy")
    close_engines()
    with (settings.home / "mlflow.db").open("r+b") as file:
        file.seek(4096 * 3)
        file.write(os.urandom(4096 * 20))
    with pytest.raises(StorageError, match=r"mlflow\.db.*damaged"):
        make_backup(settings, tmp_path / "copy")
    assert everything(tmp_path / "copy") == before
    assert not (tmp_path / "copy.new").exists()


def test_an_empty_folder_has_nothing_to_back_up(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nothing to back up yet"):
        make_backup(Settings(REGTUNE_HOME=tmp_path / "home"), tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_with_a_server_its_runs_are_said_to_be_left_out(settings: Settings, tmp_path: Path) -> None:
    found = Settings(REGTUNE_HOME=settings.home, MLFLOW_TRACKING_URI="http://127.0.0.1:1")
    made = make_backup(found, tmp_path / "copy")
    assert "left out: runs and registered models of http://127.0.0.1:1" in made.notes[0]
    assert "mlflow.db" not in made.manifest.files


# -- what is refused


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def to_link(path: Path) -> None:
    """Put a link in a file's place, to a copy of it."""
    path.rename(path.with_name("moved"))
    path.symlink_to(path.with_name("moved"))


def rename_in_manifest(to: str) -> Callable[[Path], None]:
    """Have the manifest call a file otherwise."""

    def change(path: Path) -> None:
        found = json.loads(path.read_text())
        found["files"][to] = found["files"].pop("artifacts/trials/0-1/model.keras")
        path.write_text(json.dumps(found))

    return change


def in_manifest(before: str, after: str) -> Callable[[Path], None]:
    """Replace a piece of the manifest's text."""

    def change(path: Path) -> None:
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, after))

    return change


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("studies.db", flip, "damaged: its SHA-256 is"),
        ("artifacts/trials/0-1/model.keras", flip, "damaged: its SHA-256 is"),
        ("artifacts/trials/0-1/model.keras", Path.unlink, "is missing from the backup"),
        ("artifacts/trials/0-1/model.keras", lambda path: path.write_text("x"), "damaged: has 1 bytes"),
        ("artifacts/trials/0-1/model.keras", to_link, "is a link"),
        ("artifacts/trials", to_link, "is a link"),
        ("manifest.json", lambda path: path.write_text("{"), "not a manifest that this version understands"),
        ("manifest.json", in_manifest('"format": 1', '"format": 2'), "this version understands: format"),
        ("manifest.json", rename_in_manifest("../../escaped"), "not the path of a file in a backup"),
        (
            "manifest.json",
            rename_in_manifest("artifacts/../../escaped"),
            "not the path of a file in a backup",
        ),
        ("manifest.json", rename_in_manifest("/tmp/escaped"), "not the path of a file in a backup"),
        ("manifest.json", rename_in_manifest("service.json"), "not the path of a file in a backup"),
        ("manifest.json", in_manifest('"studies": "v', '"studies": "v9'), "made with a newer Optuna"),
    ],
)
def test_what_is_damaged_or_forged_is_refused_and_nothing_is_replaced(
    settings: Settings, tmp_path: Path, name: str, damage: Callable[[Path], None], reason: str
) -> None:
    make_backup(settings, tmp_path / "copy")
    close_engines()
    before = everything(settings.home)
    damage(tmp_path / "copy" / name)
    with pytest.raises(StorageError, match=reason):
        restore(settings, tmp_path / "copy")
    assert everything(settings.home) == before
    assert not (tmp_path / "escaped").exists()


def test_nothing_is_restored_under_a_sweep_or_another_user_of_the_files(
    settings: Settings, tmp_path: Path
) -> None:
    make_backup(settings, tmp_path / "copy")
    before = everything(settings.home)
    with (
        hold(settings, STUDY),
        pytest.raises(StorageError, match=rf"a sweep is run by process {os.getpid()}"),
    ):
        restore(settings, tmp_path / "copy")
    reader = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM runs').fetchall(); "
            "print(flush=True); input()",
            str(settings.home / "mlflow.db"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert reader.stdout is not None
        reader.stdout.readline()
        with pytest.raises(StorageError, match=rf"mlflow\.db: process {reader.pid} .*has it open"):
            restore(settings, tmp_path / "copy")
    finally:
        reader.kill()
        reader.wait()
    assert everything(settings.home) == before
    restore(settings, tmp_path / "copy")


@pytest.mark.slow
def test_nothing_is_restored_under_the_folder_s_server(settings: Settings, tmp_path: Path) -> None:
    make_backup(settings, tmp_path / "copy")
    close_engines()
    home = ("--home", str(settings.home))
    up = regtune("up", "--port", str(free_port()), *home)
    assert up.returncode == 0, up.stderr
    try:
        refused = regtune("db", "restore", "copy", "--yes", *home)
        assert refused.returncode == 1
        assert "end it first with: regtune down" in refused.stderr
        assert regtune("db", "backup", "copy", *home).returncode == 0
    finally:
        assert regtune("down", *home).returncode == 0
    assert regtune("db", "restore", "copy", "--yes", *home).returncode == 0


# -- PostgreSQL


def test_the_lines_for_postgresql_bring_everything_back(
    settings: Settings, postgres_server: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{postgres_server.programs}{os.pathsep}{os.environ['PATH']}")
    home = tmp_path / "team home"
    monkeypatch.setenv("REGTUNE_HOME", str(home))
    monkeypatch.setenv("OPTUNA_STORAGE", postgres_server.fresh("studies_backup"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", postgres_server.fresh("mlflow_backup"))
    team = Settings()
    init_databases(team)
    fill_store(team, tmp_path)
    optuna.copy_study(from_study_name=STUDY, from_storage=settings.storage_url, to_storage=team.storage_url)
    before, boards = runs(team, tmp_path), board(home)
    close_engines()

    for verb in ("backup", "restore"):
        said = regtune("db", verb, "team copy")
        assert said.returncode == 2
        lines = said.stderr.splitlines()
        assert lines[0].startswith(
            f"error: PostgreSQL is {'backed up' if verb == 'backup' else 'restored'} by"
        )
        assert not (tmp_path / "team copy").exists() or verb == "restore"
        if verb == "restore":
            postgres_server.fresh("studies_backup")
            postgres_server.fresh("mlflow_backup")
            shutil.rmtree(home / "artifacts")
            assert regtune("db", "check").returncode == 1
        subprocess.run(["sh", "-euc", "\n".join(lines[1:])], check=True, cwd=tmp_path)
    assert board(home) == boards
    assert runs(team, tmp_path) == before
    assert shlex.split(lines[1])[0] == "pg_restore"
    assert regtune("db", "check").returncode == 0


def close_engines() -> None:
    """Close what MLflow and Optuna keep open in this process."""
    import gc

    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for engine in (*SqlAlchemyStore._engine_map.values(), *Registry._engine_map.values()):
        engine.dispose()
    gc.collect()
