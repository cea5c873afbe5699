"""`regtune db init`, `upgrade`, `check`: real schemas of every age, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
import studies
from alembic import command
from alembic.script import ScriptDirectory
from mlflow import MlflowClient
from mlflow.store.db.utils import _get_alembic_config
from mlflow.store.tracking.dbmodels.initial_models import Base as FirstTables
from optuna.storages import RDBStorage
from specs import spec_of
from stores import Postgres
from terminals import regtune

from regtune.errors import NoStudies, RegtuneError, SettingsError, StorageError, TrackingError
from regtune.server.databases import check_databases, init_databases, upgrade_databases
from regtune.settings import Settings, load_settings
from regtune.storage import migration, open_engine, open_storage, studies_engine
from regtune.storage.mlflow import (
    check_store,
    connect,
    make_store,
    tracking_engine,
    tracking_revision,
    tracking_schema,
)
from regtune.storage.schema import STUDIES, TRACKING, studies_revision
from regtune.study.board import list_studies, read_board
from regtune.study.ownership import hold
from regtune.sweep import run_sweep

STUDY = "mnist-regularization"
EARLIER_STUDIES = "v3.0.0.d"
EARLIER_MLFLOW = "6953534de441"  # MLflow 2.21
FUTURE = "f0f0f0f0f0f0"
Fresh = Callable[[str, str], Settings]


@pytest.fixture(scope="module")
def templates(postgres_server: Postgres) -> tuple[str, str]:
    """Databases with current tables, to be copied."""
    studies_url, mlflow_url = postgres_server.fresh("studies_model"), postgres_server.fresh("mlflow_model")
    migration.make_studies(studies_url)
    make_store(mlflow_url, Path("artifacts").absolute())
    return "studies_model", "mlflow_model"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with current SQLite databases, to be copied."""
    home = tmp_path_factory.mktemp("made") / "home"
    init_databases(Settings(REGTUNE_HOME=home))
    return home


@pytest.fixture(params=["sqlite", "postgres"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """A folder with nothing in it, or two empty databases."""
    if request.param == "sqlite":
        return Settings(REGTUNE_HOME=tmp_path / "home")
    server: Postgres = request.getfixturevalue("postgres_server")
    return Settings(
        REGTUNE_HOME=tmp_path / "home",
        OPTUNA_STORAGE=server.fresh("studies_db"),
        MLFLOW_TRACKING_URI=server.fresh("mlflow_db"),
    )


@pytest.fixture
def current(empty: Settings, request: pytest.FixtureRequest) -> Settings:
    """The same with current tables."""
    if empty.storage:
        server: Postgres = request.getfixturevalue("postgres_server")
        for name, template in zip(
            ("studies_db", "mlflow_db"), request.getfixturevalue("templates"), strict=True
        ):
            server.fresh(name, template)
    else:
        shutil.copytree(request.getfixturevalue("made"), empty.home)
    return empty


@pytest.fixture
def postgres(postgres_server: Postgres, tmp_path: Path, templates: tuple[str, str]) -> Settings:
    """PostgreSQL with current tables."""
    return Settings(
        REGTUNE_HOME=tmp_path / "home",
        OPTUNA_STORAGE=postgres_server.fresh("studies_db", templates[0]),
        MLFLOW_TRACKING_URI=postgres_server.fresh("mlflow_db", templates[1]),
    )


def contents(engine: sqlalchemy.Engine) -> dict[str, list[str]]:
    """Tables, columns and indexes of a database."""
    seen = sqlalchemy.inspect(engine)
    found = {
        table: sorted(
            [
                *(f"{column['name']} {column['type']}" for column in seen.get_columns(table)),
                *(str(index["name"]) for index in seen.get_indexes(table)),
            ]
        )
        for table in seen.get_table_names()
    }
    engine.dispose()
    return found


def both(settings: Settings) -> tuple[Any, Any]:
    """What is in the two databases."""
    return contents(studies_engine(settings.storage_url)), contents(tracking_engine(settings.mlflow_uri))


def execute(engine: sqlalchemy.Engine, *statements: str) -> None:
    """Run statements in one transaction."""
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(sqlalchemy.text(statement))
    engine.dispose()


def states(settings: Settings) -> list[str]:
    """How both stand."""
    return [one.schema.state if one.schema else "server" for one in check_databases(settings)]


def age_studies(url: str) -> None:
    """Take Optuna's tables one revision back: what that one added is the index."""
    engine = studies_engine(url)
    (index,) = (found["name"] for found in sqlalchemy.inspect(engine).get_indexes("trials"))
    execute(engine, f"DROP INDEX {index}", f"UPDATE alembic_version SET version_num = '{EARLIER_STUDIES}'")


def make_old_mlflow(uri: str, revision: str = EARLIER_MLFLOW) -> None:
    """MLflow's tables as an earlier version made them, by its own migrations, with a run in them."""
    engine = tracking_engine(uri)
    FirstTables.metadata.create_all(engine)
    config = _get_alembic_config(uri)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    execute(
        engine,
        "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage) "
        "VALUES (7, 'of old', 'file:///old/7', 'active')",
        "INSERT INTO runs (run_uuid, name, experiment_id, status, lifecycle_stage, artifact_uri, user_id, start_time) "
        "VALUES ('0123456789abcdef', 'first', 7, 'FINISHED', 'active', 'file:///old/7', 'me', 9)",
        "INSERT INTO params (run_uuid, key, value) VALUES ('0123456789abcdef', 'dropout', '0.2')",
    )


# -- what is wanted


def test_the_revisions_wanted_are_those_of_the_installed_libraries() -> None:
    assert (
        RDBStorage("sqlite://", skip_compatibility_check=True).get_head_version() == STUDIES.migrations.head
    )
    scripts = ScriptDirectory.from_config(_get_alembic_config(""))
    assert scripts.get_current_head() == TRACKING.migrations.head
    assert {script.revision for script in scripts.walk_revisions()} == TRACKING.migrations.known


def test_looking_at_a_store_imports_no_mlflow(tmp_path: Path) -> None:
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from regtune.settings import load_settings; "
            "from regtune.server.databases import check_databases; check_databases(load_settings()); "
            "sys.exit(bool({'mlflow', 'tensorflow', 'optuna'} & sys.modules.keys()))",
        ],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        check=False,
    )
    assert found.returncode == 0


# -- init


def test_init_makes_both_and_says_so_once(empty: Settings) -> None:
    assert set(states(empty)) <= {"missing", "empty"}
    assert [one.done for one in init_databases(empty)] == ["made", "made"]
    made = both(empty)
    assert [one.done for one in init_databases(empty)] == ["", ""]
    assert both(empty) == made
    assert states(empty) == ["current", "current"]
    engine = studies_engine(empty.storage_url)
    assert studies_revision(engine) == STUDIES.migrations.head
    engine.dispose()
    assert tracking_revision(empty.mlflow_uri) == TRACKING.migrations.head
    client = connect(empty.mlflow_uri, empty.artifacts)
    run = client.create_run(client.create_experiment("first"))
    assert client.get_run(run.info.run_id).info.status == "RUNNING"
    assert optuna.create_study(storage=open_storage(empty)).trials == []


def test_check_changes_nothing_and_exits_1_until_both_are_current(tmp_path: Path) -> None:
    before = regtune("db", "check")
    assert before.returncode == 1
    assert before.stderr.count("make them with: regtune db init") == 2
    assert list(tmp_path.iterdir()) == []
    made = regtune("db", "init")
    assert (made.returncode, made.stdout) == (0, "")
    assert made.stderr.count("tables made") == 2
    assert regtune("db", "init").stderr.count("current already") == 2
    after = regtune("db", "check", "--json")
    assert after.returncode == 0
    assert after.stdout.count('"state": "current"') == 2


def test_with_a_server_only_the_studies_are_made(tmp_path: Path) -> None:
    settings = Settings(REGTUNE_HOME=tmp_path, MLFLOW_TRACKING_URI="http://127.0.0.1:1")
    studies_made, server = init_databases(settings)
    assert studies_made.done == "made"
    assert str(server) == "mlflow: http://127.0.0.1:1 is a server; its database is set up where it runs"
    assert not (tmp_path / "mlflow.db").exists()


def test_one_database_for_both_is_refused(postgres_server: Postgres, tmp_path: Path) -> None:
    url = postgres_server.fresh("both")
    for pair in (
        (url, url.replace("+psycopg", "")),
        (f"sqlite:///{tmp_path}/a.db", f"sqlite:///{tmp_path}/./a.db"),
    ):
        settings = Settings(REGTUNE_HOME=tmp_path, OPTUNA_STORAGE=pair[0], MLFLOW_TRACKING_URI=pair[1])
        with pytest.raises(SettingsError, match="both name"):
            init_databases(settings)


@pytest.mark.slow
def test_twelve_at_once_make_each_table_once(empty: Settings) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "REGTUNE_HOME": str(empty.home),
        "OPTUNA_STORAGE": empty.storage,
        "MLFLOW_TRACKING_URI": empty.tracking_uri,
    }
    begun = [
        subprocess.Popen(
            [sys.executable, "-m", "regtune", "db", "init"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(12)
    ]
    said = [process.communicate(timeout=240)[1] for process in begun]
    assert [process.returncode for process in begun] == [0] * 12, said
    assert "".join(said).count("tables made") == 2
    assert "".join(said).count("current already") == 22
    assert states(empty) == ["current", "current"]


def test_a_creation_that_was_cut_off_is_finished_by_the_next_init(empty: Settings) -> None:
    empty.home.mkdir(exist_ok=True)
    engine = studies_engine(empty.storage_url)
    optuna.storages._rdb.models.BaseModel.metadata.create_all(engine)
    engine.dispose()
    engine = tracking_engine(empty.mlflow_uri)
    FirstTables.metadata.create_all(engine)
    engine.dispose()
    assert states(empty) == ["unfinished", "unfinished"]
    with pytest.raises(RegtuneError, match="regtune db init"):
        upgrade_databases(empty)
    init_databases(empty)
    assert states(empty) == ["current", "current"]


# -- everybody else


def test_nobody_else_makes_tables_in_postgresql(postgres_server: Postgres, tmp_path: Path) -> None:
    settings = Settings(
        REGTUNE_HOME=tmp_path,
        OPTUNA_STORAGE=postgres_server.fresh("studies_db"),
        MLFLOW_TRACKING_URI=postgres_server.fresh("mlflow_db"),
    )
    wanted = "has no tables yet; make them with: regtune db init"
    for use in (lambda: open_storage(settings), lambda: open_engine(settings.storage_url)):
        with pytest.raises(StorageError, match=wanted):
            use()
    for write in (
        lambda: connect(settings.mlflow_uri, settings.artifacts),
        lambda: check_store(settings.mlflow_uri),
    ):
        with pytest.raises(TrackingError, match=wanted):
            write()
    with pytest.raises(StorageError, match=wanted):
        upgrade_databases(settings)
    assert both(settings) == ({}, {})


def test_a_fresh_folder_is_made_ready_by_the_first_that_writes(tmp_path: Path) -> None:
    settings = Settings(REGTUNE_HOME=tmp_path / "home")
    with pytest.raises(NoStudies):
        open_engine(settings.storage_url)
    assert not settings.home.exists()
    check_store(settings.mlflow_uri)
    open_storage(settings)
    connect(settings.mlflow_uri, settings.artifacts)
    assert states(settings) == ["current", "current"]


def test_a_sweep_says_so_before_it_trains(postgres_server: Postgres, tmp_path: Path) -> None:
    settings = Settings(
        REGTUNE_HOME=tmp_path / "home", MLFLOW_TRACKING_URI=postgres_server.fresh("mlflow_db")
    )
    with pytest.raises(TrackingError, match="regtune db init"):
        run_sweep(spec_of({"dropout": {"min": 0.0, "max": 0.5}}, dataset="mnist-5k"), settings=settings)
    assert not (settings.home / "studies.db").exists()


def test_the_default_experiment_is_left_to_who_comes_first(postgres: Settings) -> None:
    engine = tracking_engine(postgres.mlflow_uri)
    with engine.connect() as connection:
        assert connection.scalar(sqlalchemy.text("SELECT count(*) FROM experiments")) == 0
    engine.dispose()
    client = connect(postgres.mlflow_uri, postgres.artifacts)
    assert client.get_experiment("0").artifact_location == f"{(postgres.artifacts / 'runs').as_uri()}/0"


# -- older, newer, foreign


def test_older_studies_are_named_and_upgraded_with_what_is_in_them(current: Settings) -> None:
    storage = open_storage(current)
    study = optuna.create_study(storage=storage, study_name=STUDY)
    for name, value in (("x", 0.5), ("y", 0.25)):
        study.add_trial(optuna.trial.create_trial(value=value, user_attrs={"of": name}))
    age_studies(current.storage_url)
    assert states(current) == ["older", "current"]
    for use in (lambda: open_storage(current), lambda: open_engine(current.storage_url)):
        with pytest.raises(StorageError, match=rf"older Optuna \({EARLIER_STUDIES}.*regtune db upgrade"):
            use()
    with pytest.raises(StorageError, match="regtune db upgrade"):
        init_databases(current)
    assert [one.done for one in upgrade_databases(current)] == ["upgraded", ""]
    assert [one.done for one in upgrade_databases(current)] == ["", ""]
    found = optuna.load_study(storage=open_storage(current), study_name=STUDY)
    assert [(trial.value, trial.user_attrs) for trial in found.trials] == [
        (0.5, {"of": "x"}),
        (0.25, {"of": "y"}),
    ]


def test_a_board_is_the_same_after_an_upgrade(tmp_path: Path) -> None:
    path = tmp_path / "mlruns" / "studies.db"
    studies.fill(studies.create(path))
    settings = load_settings()
    before = read_board(open_engine(settings.storage_url), STUDY)
    age_studies(settings.storage_url)
    init = regtune("db", "init")
    assert init.returncode == 1
    assert "try: regtune db upgrade" in init.stderr
    assert "before" not in init.stderr
    make_store(settings.mlflow_uri, settings.artifacts)
    upgraded = regtune("db", "upgrade")
    assert upgraded.returncode == 0, upgraded.stderr
    assert upgraded.stderr.splitlines() == [
        f"studies: {path}: tables upgraded (revision {STUDIES.migrations.head})",
        f"mlflow: {path.with_name('mlflow.db')}: current already (revision {TRACKING.migrations.head})",
    ]
    assert read_board(open_engine(settings.storage_url), STUDY) == before
    assert sorted(found.name for found in path.parent.glob("studies.db*")) == ["studies.db"]


def test_studies_of_years_ago_are_upgraded(tmp_path: Path) -> None:
    settings = Settings(REGTUNE_HOME=tmp_path)
    url = settings.storage_url
    config = RDBStorage("sqlite://", skip_compatibility_check=True)._version_manager._create_alembic_config()
    config.set_main_option("sqlalchemy.url", url)
    command.upgrade(config, "v2.6.0.a")
    execute(
        studies_engine(url),
        "INSERT INTO version_info VALUES (1, 12, '2.6.0')",
        "INSERT INTO studies (study_id, study_name) VALUES (1, 'of old')",
        "INSERT INTO study_directions (direction, study_id, objective) VALUES ('MINIMIZE', 1, 0)",
        "INSERT INTO trials (trial_id, number, study_id, state) VALUES (1, 0, 1, 'COMPLETE')",
        "INSERT INTO trial_values (trial_id, objective, value) VALUES (1, 0, 0.125)",
    )
    make_store(settings.mlflow_uri, settings.artifacts)
    upgrade_databases(settings)
    (trial,) = optuna.load_study(storage=open_storage(settings), study_name="of old").trials
    assert trial.value == 0.125
    assert [summary.info.name for summary in list_studies(open_engine(url))] == []


def test_an_older_store_is_named_and_upgraded_with_its_runs(empty: Settings) -> None:
    migration.make_studies(empty.storage_url)
    make_old_mlflow(empty.mlflow_uri)
    assert states(empty) == ["current", "older"]
    wanted = rf"older MLflow \({EARLIER_MLFLOW}, here {TRACKING.migrations.head}\); try: regtune db upgrade"
    for use in (lambda: connect(empty.mlflow_uri, empty.artifacts), lambda: check_store(empty.mlflow_uri)):
        with pytest.raises(TrackingError, match=wanted):
            use()
    with pytest.raises(StorageError, match=wanted):
        init_databases(empty)
    assert tracking_revision(empty.mlflow_uri) == EARLIER_MLFLOW
    assert [one.done for one in upgrade_databases(empty)] == ["", "upgraded"]
    (run,) = connect(empty.mlflow_uri, empty.artifacts).search_runs(["7"])
    assert (run.info.run_name, run.data.params) == ("first", {"dropout": "0.2"})


def test_an_upgrade_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(REGTUNE_HOME=tmp_path)
    make_old_mlflow(settings.mlflow_uri)
    before = (tmp_path / "mlflow.db").read_bytes()

    def cut_off(url: str) -> None:
        engine = tracking_engine(url)
        execute(engine, "DROP TABLE params")
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="No space left"):
        migration.upgrade(settings.mlflow_uri, TRACKING, tracking_engine, cut_off)
    assert (tmp_path / "mlflow.db").read_bytes() == before
    assert sorted(path.name for path in tmp_path.glob("mlflow.db*")) == ["mlflow.db"]


@pytest.mark.parametrize("which", [0, 1])
def test_what_is_newer_is_refused_by_everyone(current: Settings, which: int) -> None:
    engines = studies_engine(current.storage_url), tracking_engine(current.mlflow_uri)
    execute(engines[which], f"UPDATE alembic_version SET version_num = '{FUTURE}'")
    engines[1 - which].dispose()
    before = both(current)
    wanted = rf"newer {('Optuna', 'MLflow')[which]} \({FUTURE}.*use a newer regtune"
    use = (lambda: open_storage(current), lambda: connect(current.mlflow_uri, current.artifacts))[which]
    for refused in (use, lambda: init_databases(current), lambda: upgrade_databases(current)):
        with pytest.raises(RegtuneError, match=wanted):
            refused()
    assert both(current) == before


@pytest.mark.parametrize("which", [0, 1])
def test_a_foreign_database_is_refused_and_nothing_is_written(empty: Settings, which: int) -> None:
    empty.home.mkdir(exist_ok=True)
    engine = studies_engine(empty.storage_url) if which == 0 else tracking_engine(empty.mlflow_uri)
    execute(engine, "CREATE TABLE customers (name TEXT)")
    before = both(empty)
    what = ("Optuna studies; set OPTUNA_STORAGE", "MLflow runs; set MLFLOW_TRACKING_URI")[which]
    use = (lambda: open_storage(empty), lambda: connect(empty.mlflow_uri, empty.artifacts))[which]
    for refused in (use, lambda: init_databases(empty), lambda: upgrade_databases(empty)):
        with pytest.raises(RegtuneError, match=f"not a database of {what} to another one"):
            refused()
    assert both(empty) == before


def test_accounts_in_an_otherwise_empty_database_are_no_stranger(
    postgres_server: Postgres, tmp_path: Path
) -> None:
    uri = postgres_server.fresh("mlflow_db")
    execute(
        tracking_engine(uri),
        "CREATE TABLE users (id INTEGER)",
        "CREATE TABLE alembic_version_auth (version_num VARCHAR(32))",
    )
    found = tracking_schema(uri)
    assert found is not None
    assert found.state == "empty"
    assert make_store(uri, tmp_path / "artifacts")
    assert tracking_revision(uri) == TRACKING.migrations.head


def test_nothing_is_upgraded_under_a_sweep(current: Settings) -> None:
    age_studies(current.storage_url)
    with hold(current, STUDY):
        with pytest.raises(
            StorageError, match=rf"a sweep is run by process {os.getpid()} on .*stop it first"
        ):
            upgrade_databases(current)
        assert states(current) == ["older", "current"]
    upgrade_databases(current)
    assert states(current) == ["current", "current"]


# -- passwords


@pytest.fixture
def guarded(postgres_server: Postgres, tmp_path: Path) -> Iterator[Settings]:
    """Two databases, each of a role of its own that must give its password."""
    rules = postgres_server.socket / "pg_hba.conf"
    before = rules.read_text()
    postgres_server.run("DROP ROLE IF EXISTS sweeper")
    postgres_server.run("DROP ROLE IF EXISTS tracker")
    try:
        for role, database in (("sweeper", "studies_db"), ("tracker", "mlflow_db")):
            postgres_server.fresh(database)
            postgres_server.run(f"CREATE ROLE {role} LOGIN PASSWORD 'canary-{role}'")
            postgres_server.run(f"ALTER DATABASE {database} OWNER TO {role}")
        rules.write_text("local all sweeper,tracker scram-sha-256\n" + before)
        postgres_server.run("SELECT pg_reload_conf()")
        yield Settings(
            REGTUNE_HOME=tmp_path / "home",
            OPTUNA_STORAGE=postgres_server.url("studies_db").replace("postgres@", "sweeper@"),
            MLFLOW_TRACKING_URI=postgres_server.url("mlflow_db").replace("postgres@", "tracker@"),
        )
    finally:
        rules.write_text(before)
        postgres_server.run("SELECT pg_reload_conf()")
        for database in ("studies_db", "mlflow_db"):
            postgres_server.run(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")


def test_each_database_gets_its_own_password(
    guarded: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.touch(mode=0o600)
    file.write_text("canary-tracker\n")
    monkeypatch.setenv("OPTUNA_STORAGE_PASSWORD", "canary-sweeper")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD_FILE", str(file))
    init_databases(guarded)
    client: MlflowClient = connect(guarded.mlflow_uri, guarded.artifacts)
    assert client.search_experiments()[0].name == "Default"
    age_studies(guarded.storage_url)
    upgrade_databases(guarded)
    assert states(guarded) == ["current", "current"]
    assert not {"PGPASSWORD", "MLFLOW_TRACKING_PASSWORD"} & os.environ.keys()


def test_a_wrong_password_is_named_by_its_variable_and_never_shown(
    guarded: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTUNA_STORAGE_PASSWORD", "canary-sweeper")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "canary-wrong")
    for use in (lambda: init_databases(guarded), lambda: connect(guarded.mlflow_uri, guarded.artifacts)):
        with pytest.raises(RegtuneError, match="MLFLOW_TRACKING_PASSWORD") as caught:
            use()
        assert "canary" not in str(caught.value)
