"""`regtune db init`, `upgrade`, `check`: real schemas of every age, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import optuna
import psycopg
import pytest
import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from mlflow import MlflowClient
from mlflow.store.tracking.dbmodels.initial_models import Base as FirstTables
from specs import spec_of
from stores import Postgres
from terminals import environment
from typer.testing import CliRunner

from regtune.cli import app
from regtune.errors import NoStudies, RegtuneError, SettingsError, StorageError
from regtune.server.databases import check_databases, init_databases, upgrade_databases
from regtune.server.service import Service
from regtune.settings import Settings
from regtune.storage import open_engine, open_storage
from regtune.storage.mlflow import check_store, connect, make_store
from regtune.storage.optuna import make_studies
from regtune.storage.schema import STUDIES, TRACKING, schema_of, upgrade
from regtune.storage.troubles import away
from regtune.study.ownership import hold
from regtune.sweep import run_sweep

STUDY = "mnist-regularization"
EARLIER_STUDIES = "v3.0.0.d"
EARLIER_MLFLOW = "6953534de441"  # MLflow 2.21
FUTURE = "f0f0f0f0f0f0"
MIGRATIONS = Path(mlflow.__file__).parent / "store" / "db_migrations"
Made = Callable[[str], Settings]


def settings_on(kind: str, home: Path, request: pytest.FixtureRequest, *models: str) -> Settings:
    """A folder on `sqlite`, or on two new databases of `postgres`, which are copies of `models`."""
    if kind == "sqlite":
        return Settings(REGTUNE_HOME=home)
    server: Postgres = request.getfixturevalue("postgres_server")
    names = {"OPTUNA_STORAGE": "studies_db", "MLFLOW_TRACKING_URI": "mlflow_db"}
    urls = map(server.fresh, names.values(), models or ("template1", "template1"))
    return Settings(REGTUNE_HOME=home, **dict(zip(names, urls, strict=True)))


@pytest.fixture
def empty(tmp_path: Path, request: pytest.FixtureRequest) -> Made:
    """A folder with nothing in it, or two empty databases."""
    return lambda kind: settings_on(kind, tmp_path / "home", request)


@pytest.fixture(scope="module")
def models(postgres_server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Databases with current tables, to be copied."""
    home = tmp_path_factory.mktemp("made") / "home"
    init_databases(Settings(REGTUNE_HOME=home))
    make_studies(postgres_server.fresh("studies_model"))
    make_store(postgres_server.fresh("mlflow_model"), home / "artifacts")
    return home


@pytest.fixture
def current(models: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Made:
    """Databases with current tables, on `sqlite` or `postgres`."""

    def make(kind: str) -> Settings:
        home = shutil.copytree(models, tmp_path / kind)
        return settings_on(kind, home, request, "studies_model", "mlflow_model")

    return make


on_both = pytest.mark.parametrize("kind", ["sqlite", "postgres"])


def contents(engine: sqlalchemy.Engine) -> list[str]:
    schema = sqlalchemy.MetaData()
    schema.reflect(engine)
    engine.dispose()
    columns = [column for table in schema.tables.values() for column in table.columns]
    return sorted(f"{column} {column.type}" for column in columns)


def both(settings: Settings) -> tuple[Any, Any]:
    return contents(STUDIES.engine(settings.storage_url)), contents(TRACKING.engine(settings.mlflow_uri))


def execute(engine: sqlalchemy.Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(sqlalchemy.text(statement))
    engine.dispose()


def client_of(settings: Settings) -> MlflowClient:
    return connect(settings.mlflow_uri, settings.artifacts)


def states(settings: Settings) -> list[str]:
    return [one.state for one in check_databases(settings)]


def done(lines: list[str]) -> list[str]:
    """What `db init` or `upgrade` says of each database, without its place."""
    return [line.rpartition(": ")[2].partition(" (")[0] for line in lines]


def migrations(url: str = "sqlite://", **attributes: Any) -> Config:
    config = Config(attributes=attributes)
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config


def age_studies(url: str) -> None:
    """Take Optuna's tables one revision back: what that one added is the index."""
    engine = STUDIES.engine(url)
    (index,) = (one["name"] for one in sqlalchemy.inspect(engine).get_indexes("trials"))
    execute(engine, f"DROP INDEX {index}", f"UPDATE alembic_version SET version_num = '{EARLIER_STUDIES}'")


def make_old_mlflow(uri: str) -> None:
    """MLflow's tables as an earlier version made them, by its own migrations, with a run in them."""
    engine = TRACKING.engine(uri)
    FirstTables.metadata.create_all(engine)
    with engine.begin() as connection:
        command.upgrade(migrations(uri, connection=connection), EARLIER_MLFLOW)
    execute(
        engine,
        "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage) "
        "VALUES (7, 'of old', 'file:///old/7', 'active')",
        "INSERT INTO runs (run_uuid, name, experiment_id, status, lifecycle_stage, artifact_uri, user_id, start_time) "
        "VALUES ('0123456789abcdef', 'first', 7, 'FINISHED', 'active', 'file:///old/7', 'me', 9)",
        "INSERT INTO params (run_uuid, key, value) VALUES ('0123456789abcdef', 'dropout', '0.2')",
    )


# -- what is wanted


def test_the_revisions_wanted_are_those_of_the_installed_library() -> None:
    scripts = ScriptDirectory.from_config(migrations())
    assert scripts.get_current_head() == TRACKING.migrations.head
    assert {script.revision for script in scripts.walk_revisions()} == TRACKING.migrations.known


# -- init


@on_both
def test_init_makes_both_and_says_so_once(empty: Made, kind: str) -> None:
    settings = empty(kind)
    assert set(states(settings)) <= {"missing", "empty"}
    assert done(init_databases(settings)) == ["tables made"] * 2
    made = both(settings)
    assert done(init_databases(settings)) == ["current already"] * 2
    assert both(settings) == made
    assert states(settings) == ["current", "current"]
    assert schema_of(settings.storage_url, STUDIES).revision == STUDIES.migrations.head
    assert schema_of(settings.mlflow_uri, TRACKING).revision == TRACKING.migrations.head
    client = client_of(settings)
    run = client.create_run(client.create_experiment("first"))
    assert client.get_run(run.info.run_id).info.status == "RUNNING"
    assert optuna.create_study(storage=open_storage(settings)).trials == []


def test_check_changes_nothing_and_exits_1_until_both_are_current(tmp_path: Path) -> None:
    def run(*words: str) -> tuple[int, str, str]:
        ended = CliRunner().invoke(app, ["db", *words])
        return ended.exit_code, ended.stdout, ended.stderr

    code, _, said = run("check")
    assert (code, said.count("create them with: regtune db init")) == (1, 2)
    assert list(tmp_path.iterdir()) == []
    code, printed, said = run("init")
    assert (code, printed, said.count("tables made")) == (0, "", 2)
    assert run("init")[2].count("current already") == 2
    code, printed, _ = run("check", "--json")
    assert (code, printed.count('"state": "current"')) == (0, 2)


def test_with_a_server_only_the_studies_are_made(tmp_path: Path) -> None:
    settings = Settings(REGTUNE_HOME=tmp_path, MLFLOW_TRACKING_URI="http://127.0.0.1:1")
    studies_made, server = init_databases(settings)
    assert "tables made" in studies_made
    assert server == "mlflow: http://127.0.0.1:1: a server, which sets up its own database"
    assert not (tmp_path / "mlflow.db").exists()


def test_one_database_for_both_is_refused(postgres_server: Postgres, tmp_path: Path) -> None:
    url = postgres_server.fresh("both")
    file = f"sqlite:///{tmp_path}/a.db"
    for one, same in ((url, url.replace("+psycopg", "")), (file, file.replace("/a.db", "/./a.db"))):
        settings = Settings(REGTUNE_HOME=tmp_path, OPTUNA_STORAGE=one, MLFLOW_TRACKING_URI=same)
        with pytest.raises(SettingsError, match="both name"):
            init_databases(settings)


@pytest.mark.slow
@pytest.mark.parametrize("on_postgres", ["OPTUNA_STORAGE", "MLFLOW_TRACKING_URI"])
def test_several_at_once_make_one(postgres_server: Postgres, tmp_path: Path, on_postgres: str) -> None:
    given = {"REGTUNE_HOME": str(tmp_path / "home"), on_postgres: postgres_server.fresh("at_once")}
    command, variables = [sys.executable, "-m", "regtune", "db", "init"], environment(**given)
    begun = [subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    said = [process.communicate(timeout=240)[1] for process in begun]
    assert [process.returncode for process in begun] == [0] * 4, said
    assert "".join(said).count("tables made") == 2
    assert "".join(said).count("current already") == 6
    assert states(Settings(**given)) == ["current", "current"]


@on_both
def test_a_creation_that_was_cut_off_is_finished_by_the_next_init(empty: Made, kind: str) -> None:
    settings = empty(kind)
    make_studies(settings.storage_url)
    execute(STUDIES.engine(settings.storage_url), "DROP TABLE alembic_version")
    engine = TRACKING.engine(settings.mlflow_uri)
    FirstTables.metadata.create_all(engine)
    engine.dispose()
    assert states(settings) == ["unfinished", "unfinished"]
    with pytest.raises(RegtuneError, match="regtune db init"):
        upgrade_databases(settings)
    init_databases(settings)
    assert states(settings) == ["current", "current"]


# -- everybody else


def test_nobody_else_makes_tables_in_postgresql(empty: Made) -> None:
    settings = empty("postgres")
    searched = spec_of({"dropout": {"min": 0.0, "max": 0.5}}, dataset="mnist-5k")
    a_sweeps = Settings(REGTUNE_HOME=settings.home, MLFLOW_TRACKING_URI=settings.mlflow_uri)
    uses: tuple[Callable[[], Any], ...] = (
        lambda: open_storage(settings),
        lambda: open_engine(settings.storage_url),
        lambda: client_of(settings),
        lambda: check_store(settings.mlflow_uri),
        lambda: upgrade_databases(settings),
        lambda: run_sweep(searched, settings=a_sweeps),  # before it trains
    )
    for use in uses:
        with pytest.raises(RegtuneError, match="has no tables yet; create them with: regtune db init"):
            use()
    assert both(settings) == ([], [])
    assert not (settings.home / "studies.db").exists()


def test_a_fresh_folder_is_made_ready_by_the_first_that_writes(empty: Made) -> None:
    settings = empty("sqlite")
    with pytest.raises(NoStudies):
        open_engine(settings.storage_url)
    assert not settings.home.exists()
    check_store(settings.mlflow_uri)
    open_storage(settings)
    client_of(settings)
    assert states(settings) == ["current", "current"]


def test_the_default_experiment_is_left_to_who_comes_first(current: Made) -> None:
    settings = current("postgres")
    with TRACKING.opened(settings.mlflow_uri) as engine, engine.connect() as connection:
        assert connection.scalar(sqlalchemy.text("SELECT count(*) FROM experiments")) == 0
    client = client_of(settings)
    assert client.get_experiment("0").artifact_location == f"{(settings.artifacts / 'runs').as_uri()}/0"


# -- older, newer, foreign


@on_both
def test_older_studies_are_named_and_upgraded_with_what_is_in_them(
    current: Made, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = current(kind)
    study = optuna.create_study(storage=open_storage(settings), study_name=STUDY)
    study.add_trial(optuna.trial.create_trial(value=0.5, user_attrs={"of": "x"}))
    age_studies(settings.storage_url)
    assert states(settings) == ["older", "current"]
    for use in (open_storage, lambda settings: open_engine(settings.storage_url), init_databases):
        with pytest.raises(StorageError, match=rf"older Optuna \({EARLIER_STUDIES}.*regtune db upgrade"):
            use(settings)
    wanted = rf"a sweep is run by process {os.getpid()} on .*stop it first"
    with hold(settings, STUDY), pytest.raises(StorageError, match=wanted):
        upgrade_databases(settings)
    server = Service("http://127.0.0.1:9", "127.0.0.1", 9, False, settings.mlflow_uri, 1, "")
    with monkeypatch.context() as patch:
        patch.setattr("regtune.server.service.running", lambda _: server)
        with pytest.raises(StorageError, match="server is running; stop it first with: regtune down"):
            upgrade_databases(settings)
    assert states(settings) == ["older", "current"]
    assert done(upgrade_databases(settings)) == ["tables upgraded", "current already"]
    assert done(upgrade_databases(settings)) == ["current already"] * 2
    (trial,) = optuna.load_study(storage=open_storage(settings), study_name=STUDY).trials
    assert (trial.value, trial.user_attrs) == (0.5, {"of": "x"})
    assert not list(settings.home.glob("studies.db.*"))


@on_both
def test_an_older_store_is_named_and_upgraded_with_its_runs(empty: Made, kind: str) -> None:
    settings = empty(kind)
    make_studies(settings.storage_url)
    make_old_mlflow(settings.mlflow_uri)
    assert states(settings) == ["current", "older"]
    wanted = rf"older MLflow \({EARLIER_MLFLOW}, here {TRACKING.migrations.head}\); try: regtune db upgrade"
    for use in (client_of, lambda settings: check_store(settings.mlflow_uri), init_databases):
        with pytest.raises(RegtuneError, match=wanted):
            use(settings)
    assert schema_of(settings.mlflow_uri, TRACKING).revision == EARLIER_MLFLOW
    assert done(upgrade_databases(settings)) == ["current already", "tables upgraded"]
    (run,) = client_of(settings).search_runs(["7"])
    assert (run.info.run_name, run.data.params) == ("first", {"dropout": "0.2"})


def test_an_upgrade_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    settings = Settings(REGTUNE_HOME=tmp_path)
    make_old_mlflow(settings.mlflow_uri)
    before = (tmp_path / "mlflow.db").read_bytes()

    def cut_off(url: str) -> None:
        execute(TRACKING.engine(url), "DROP TABLE params")
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="No space left"):
        upgrade(settings.mlflow_uri, TRACKING, cut_off)
    assert (tmp_path / "mlflow.db").read_bytes() == before
    assert sorted(path.name for path in tmp_path.glob("mlflow.db*")) == ["mlflow.db"]


def test_what_another_program_writes_during_an_upgrade_is_not_lost(tmp_path: Path) -> None:
    settings = Settings(REGTUNE_HOME=tmp_path)
    make_old_mlflow(settings.mlflow_uri)

    def overtaken(url: str) -> None:
        execute(TRACKING.engine(settings.mlflow_uri), "UPDATE experiments SET name = 'renamed meanwhile'")

    with pytest.raises(StorageError, match="was written to meanwhile; stop what uses it"):
        upgrade(settings.mlflow_uri, TRACKING, overtaken)
    with TRACKING.opened(settings.mlflow_uri) as engine, engine.connect() as connection:
        assert set(connection.scalars(sqlalchemy.text("SELECT name FROM experiments"))) == {
            "renamed meanwhile"
        }


def refused_by_all(settings: Settings, of: str, wanted: str) -> None:
    before = both(settings)
    use = {"studies": open_storage, "mlflow": client_of}[of]
    for refused in (use, init_databases, upgrade_databases):
        with pytest.raises(RegtuneError, match=wanted):
            refused(settings)
    assert both(settings) == before


def test_what_is_newer_is_refused_by_everyone(current: Made) -> None:
    newer = f"UPDATE alembic_version SET version_num = '{FUTURE}'"
    settings = current("sqlite")
    execute(STUDIES.engine(settings.storage_url), newer)
    refused_by_all(settings, "studies", rf"newer Optuna \({FUTURE}.*use a newer regtune")
    settings = current("postgres")
    execute(TRACKING.engine(settings.mlflow_uri), newer)
    refused_by_all(settings, "mlflow", rf"newer MLflow \({FUTURE}.*use a newer regtune")


def test_a_foreign_database_is_refused_and_nothing_is_written(empty: Made) -> None:
    settings = empty("postgres")
    execute(STUDIES.engine(settings.storage_url), "CREATE TABLE customers (name TEXT)")
    refused_by_all(settings, "studies", "not a database of Optuna studies; set OPTUNA_STORAGE to another one")
    settings = empty("sqlite")
    settings.home.mkdir()
    execute(TRACKING.engine(settings.mlflow_uri), "CREATE TABLE customers (name TEXT)")
    refused_by_all(
        settings, "mlflow", "not a database of MLflow runs; set MLFLOW_TRACKING_URI to another one"
    )


def test_accounts_in_an_otherwise_empty_database_are_no_stranger(empty: Made) -> None:
    uri = empty("postgres").mlflow_uri
    execute(TRACKING.engine(uri), "CREATE TABLE users (id INT)", "CREATE TABLE alembic_version_auth (v TEXT)")
    assert schema_of(uri, TRACKING).state == "empty"


@pytest.mark.parametrize(
    ("said", "is_away"),
    [
        ("Connection refused\n\tIs the server running on that host?", True),
        ("FATAL:  the database system is starting up", True),
        ("FATAL:  sorry, too many clients already", True),
        ('FATAL:  password authentication failed for user "mlflow"', False),
        ('FATAL:  no pg_hba.conf entry for host "127.0.0.1", user "mlflow"', False),
        ('FATAL:  database "mlflow" does not exist', False),
    ],
)
def test_a_server_that_answers_is_not_away(said: str, is_away: bool) -> None:
    """As psycopg says it, which gives no code of a connection that was refused."""
    text = f'connection failed: connection to server at "127.0.0.1", port 5432 failed: {said}'
    assert away(psycopg.OperationalError(text)) is is_away
