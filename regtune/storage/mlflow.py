"""The MLflow store in use: its client, its schema, and the client's patience.

MLflow reads its settings from the environment when it is imported; so it is imported only in here, once
they are settled. It makes and judges tables wherever it is pointed at; so a database is looked at first, by plain SQL.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy
from sqlalchemy import Engine, text

from regtune.credentials import TRACKING_PASSWORD, TRACKING_TOKEN, TRACKING_USERNAME, secret
from regtune.errors import SettingsError, StorageError, TrackingError
from regtune.processes import bypass_proxies
from regtune.settings import sqlite_url
from regtune.storage import database_path, engine_options, is_sqlite, migration, place, schema_lock
from regtune.storage.artifacts import rebase
from regtune.storage.health import trouble
from regtune.storage.passwords import give_password
from regtune.storage.schema import TRACKING, Schema, look
from regtune.storage.sqlite import beside
from regtune.storage.troubles import away, understood
from regtune.storage.urls import full_url, redact

VARIABLE = "MLFLOW_TRACKING_URI"
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
"""MLflow's own defaults keep a call to a server that is away for about four minutes."""
SILENCE = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # what fails is raised, and said once
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def settle_environment(uri: str = "") -> None:
    """Set what MLflow reads from the environment; what a person has set stays, telemetry excepted.

    uri: the store to be used, whose secrets MLflow is given. Raises SettingsError.
    """
    check_patience()
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    os.environ.update(SILENCE)
    bypass_proxies(uri)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if is_server(uri):
        for name in (TRACKING_USERNAME, TRACKING_PASSWORD, TRACKING_TOKEN):
            if found := secret(name):
                os.environ[name] = found
    elif uri:
        os.environ["MLFLOW_ENABLE_WORKSPACES"] = "false"  # a server has them, never a database of regtune's
        if not is_sqlite(uri):
            give_password(uri, secret(TRACKING_PASSWORD))


def check_patience() -> None:
    """Raises SettingsError for a variable of PATIENCE that is no number: MLflow would find out at every request."""
    for name in PATIENCE:
        value = os.environ.get(name, "1").strip()
        smallest = int(name.endswith("TIMEOUT"))
        if not value.isdecimal() or int(value) < smallest:
            raise SettingsError(f"{name}: expected a whole number of {smallest} or more, found {value}")


def bad_variable(error: ValueError) -> SettingsError | None:
    """What MLflow says of an environment variable whose value it cannot read, in words of ours; None for any other."""
    named = next((name for name in re.findall(r"\bMLFLOW_\w+", str(error)) if name in os.environ), None)
    return named and SettingsError(f"{named}: MLflow cannot read {os.environ[named]!r}; unset it")


def check_uri(uri: str) -> None:
    """Raises TrackingError for what is neither a database nor a tracking server."""
    scheme = urlsplit(uri).scheme
    if scheme not in ("http", "https") and not scheme.startswith(("sqlite", "postgresql")):
        found = f"{scheme}:" if scheme else "a path"
        expected = "sqlite:///PATH, postgresql://... or http://..."
        raise TrackingError(f"{VARIABLE}: expected {expected}, found {found}")


def is_server(uri: str) -> bool:
    return urlsplit(uri).scheme in ("http", "https")


def check_server(uri: str) -> None:
    """See that MLflow answers where `uri` is a server's: its own client would try for long. Raises TrackingError."""
    if is_server(uri) and (wrong := trouble(uri, float(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]))):
        raise TrackingError(f"MLflow at {redact(uri)} {wrong}")


def store_url(uri: str) -> str:
    """A store's URI as MLflow takes it: a file's path in full, the driver named. Raises SettingsError."""
    return uri if is_server(uri) else full_url(uri, VARIABLE)


def sqlite_path(uri: str) -> Path | None:
    return database_path(uri) if is_sqlite(uri) else None


def tracking_engine(uri: str) -> Engine:
    found = store_url(uri)
    return sqlalchemy.create_engine(found, **engine_options(found, secret(TRACKING_PASSWORD)))


def tracking_schema(uri: str) -> Schema | None:
    """How MLflow's database stands, None for a server. Raises TrackingError, StorageError."""
    check_uri(uri)
    return None if is_server(uri) else migration.schema_of(uri, TRACKING, tracking_engine)


def tracking_revision(uri: str) -> str | None:
    """Revision of MLflow's tables; None where there are none, and for a server. Raises TrackingError, StorageError."""
    found = tracking_schema(uri)
    return found.revision if found else None


def check_store(uri: str) -> None:
    """See that the schema is right; a store that is away passes. Raises TrackingError, SettingsError."""
    check_patience()
    try:
        found = tracking_schema(uri)
    except StorageError as error:
        if error.__cause__ is not None and away(error.__cause__):
            return
        raise TrackingError(str(error)) from error
    if found and found.problem and not (found.blank and is_sqlite(uri)):
        raise TrackingError(found.problem)


def connect(uri: str, artifacts: Path) -> Any:
    """A `MlflowClient` on the store, prepared. Raises TrackingError and what MLflow and the file system raise."""
    prepare(uri, artifacts)
    from mlflow import MlflowClient

    return MlflowClient(store_url(uri), store_url(uri))


def prepare(uri: str, artifacts: Path) -> None:
    """Settle the environment and see that a store can be used; imports MLflow only if it has to make its tables.

    A folder's own store that was moved or copied with it is re-based. Raises TrackingError.
    """
    check_uri(uri)
    uri = store_url(uri)
    settle_environment(uri)
    check_server(uri)
    try:
        found = tracking_schema(uri)
        if found is None:
            return
        if found.blank and is_sqlite(uri):
            make_store(uri, artifacts)
        elif found.problem:
            raise TrackingError(found.problem)
        else:
            _settle(uri, artifacts)
    except StorageError as error:
        raise TrackingError(str(error)) from error


def make_store(uri: str, artifacts: Path) -> bool:
    """Make MLflow's tables unless they are there; says whether it did. Raises StorageError.

    A SQLite file is there as a whole or not at all. In PostgreSQL MLflow's default experiment is left to whoever uses
    the database first and decides where its artifacts lie.
    """
    uri = store_url(uri)
    settle_environment(uri)
    path = sqlite_path(uri)
    engine = tracking_engine(uri)
    try:
        with understood(place(uri)):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            with schema_lock(engine, path.parent if path else artifacts):
                if (path is None or path.exists()) and not look(engine, TRACKING, "").blank:
                    return False
                if path is None:
                    _create_tables(uri)
                    return True
                engine.dispose()
                _drop_connections(uri)
                with beside(path) as fresh:
                    open_sql(sqlite_url(fresh), artifacts).engine.dispose()
                return True
    finally:
        engine.dispose()


def upgrade_store(uri: str) -> None:
    """Migrate MLflow's tables to the installed version's. Raises StorageError."""
    uri = store_url(uri)
    settle_environment(uri)
    migration.upgrade(uri, TRACKING, tracking_engine, _upgrade_tables)


def _settle(uri: str, artifacts: Path) -> None:
    """Re-base a store whose folder was moved or copied, and create MLflow's default experiment under a lock."""
    engine = tracking_engine(uri)
    path = sqlite_path(uri)
    try:
        with understood(place(uri)):
            rebase(engine, uri, artifacts)
            with engine.connect() as connection:
                if connection.scalar(text("SELECT 1 FROM experiments WHERE experiment_id = 0")) is not None:
                    return
            with schema_lock(engine, path.parent if path else artifacts):
                open_sql(uri, artifacts)
    finally:
        engine.dispose()


def open_sql(uri: str, artifacts: Path) -> Any:
    """MLflow's own `SqlAlchemyStore` on a database whose schema is there, or one that `make_store` is making."""
    uri = store_url(uri)
    settle_environment(uri)
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    return SqlAlchemyStore(uri, (artifacts / "runs").as_uri())


# Where MLflow has no public name. tests/test_tracking_store.py says what is relied upon.


def _create_tables(uri: str) -> None:
    """Make MLflow's tables without the default experiment, which `SqlAlchemyStore` adds."""
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine

    engine = create_sqlalchemy_engine(uri)
    try:
        _initialize_tables(engine)
    finally:
        engine.dispose()


def _upgrade_tables(uri: str) -> None:
    """What `mlflow db upgrade URL` does, whose arguments every account of the machine sees, the password among them."""
    from mlflow.store.db.utils import _upgrade_db, create_sqlalchemy_engine

    engine = create_sqlalchemy_engine(uri)
    try:
        _upgrade_db(engine)
    finally:
        engine.dispose()


def _drop_connections(uri: str) -> None:
    """Close the connections that MLflow keeps for good, also to a SQLite file that has been deleted."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore._get_or_create_engine(uri).dispose()


def erase_run(store: Any, run_id: str) -> None:
    """Delete a run's rows as `mlflow gc` does, which takes run ids as arguments, and its inputs, which that leaves.

    store: of `open_sql`.
    """
    with store.engine.begin() as connection:
        of_run = "FROM inputs WHERE destination_type = 'RUN' AND destination_id = :run"
        tags = f"DELETE FROM input_tags WHERE input_uuid IN (SELECT input_uuid {of_run})"  # noqa: S608
        for statement in (tags, f"DELETE {of_run}"):
            connection.execute(text(statement), {"run": run_id})
    store._hard_delete_run(run_id)


def erase_experiment(store: Any, experiment_id: str) -> None:
    """Delete an experiment's rows, as `mlflow gc` does. store: of `open_sql`."""
    store._hard_delete_experiment(experiment_id)
