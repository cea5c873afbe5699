"""The MLflow store in use: its client, its schema, and whether its server answers.

MLflow reads its settings from the environment when it is imported; so it is imported only in here, once
they are settled. It makes and judges tables wherever it is pointed at; so a database is looked at first, by plain SQL.
"""

from __future__ import annotations

import json
import logging
import os
import re
import ssl
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import text

from regtune.credentials import TRACKING_PASSWORD, TRACKING_TOKEN, TRACKING_USERNAME, authorization, secret
from regtune.errors import SettingsError, StorageError, TrackingError
from regtune.processes import bypass_proxies
from regtune.storage.artifacts import rebase
from regtune.storage.engines import full_url, give_password, is_sqlite, redact
from regtune.storage.locks import schema_lock
from regtune.storage.schema import TRACKING, Schema, make_tables, schema_of, upgrade
from regtune.storage.troubles import away

SECONDS = 5.0
LONGEST_ANSWER = 2**20
LONGEST_REASON = 100
OWN_SIGNATURES = ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_TRACKING_CLIENT_CERT_PATH")
"""Ways to sign in that only MLflow's client has; where one is set, the client alone can tell who answers."""
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
    bypass_proxies()
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
        raise TrackingError(f"{TRACKING.variable}: expected {expected}, found {found}")


def is_server(uri: str) -> bool:
    return urlsplit(uri).scheme in ("http", "https")


def check_server(uri: str) -> None:
    """See that MLflow answers where `uri` is a server's: its own client would try for long. Raises TrackingError."""
    if is_server(uri) and (wrong := trouble(uri, float(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]))):
        raise TrackingError(f"MLflow at {redact(uri)} {wrong}")


def search(url: str, what: str, asked: dict[str, Any], seconds: float) -> list[dict[str, Any]]:
    """Ask the server at `url` for its `experiments` or `runs`, without MLflow's own client.

    Raises OSError, ValueError and HTTPException, HTTPError among them, when it does not answer as MLflow does.
    """
    request = urllib.request.Request(  # noqa: S310
        f"{url.rstrip('/')}/api/2.0/mlflow/{what}/search",
        json.dumps(asked).encode(),
        {"Content-Type": "application/json", **authorization()},
    )
    with urllib.request.urlopen(request, timeout=seconds) as response:  # noqa: S310
        answer = json.loads(response.read(LONGEST_ANSWER))
    if not isinstance(answer, dict) or not answer.keys() <= {what, "next_page_token"}:
        raise ValueError("not MLflow's answer")
    found: list[dict[str, Any]] = answer.get(what, [])
    return found


def trouble(url: str, seconds: float = SECONDS) -> str:
    """What is wrong with who answers at `url`, as the predicate of a sentence; empty where it can be MLflow."""
    if any(os.environ.get(name) for name in OWN_SIGNATURES):
        return ""
    bypass_proxies()
    try:
        search(url, "experiments", {"max_results": 1}, seconds)
        return ""
    except urllib.error.HTTPError as error:
        return _refusal(error)
    except urllib.error.URLError as error:
        reason = error.reason
        if not isinstance(reason, TimeoutError | ssl.SSLError):
            return f"cannot be reached ({getattr(reason, 'strerror', None) or reason})"
    except (OSError, ValueError, HTTPException) as error:
        reason = error
    if isinstance(reason, ssl.SSLCertVerificationError):  # MLflow's client may know the authority
        return ""
    timed_out = isinstance(reason, TimeoutError)
    return f"does not answer within {seconds:.0f} s" if timed_out else "does not answer as MLflow does"


def _refusal(error: urllib.error.HTTPError) -> str:
    """MLflow's own errors are JSON with a code; what asks for an account may be MLflow."""
    try:
        said = error.read(LONGEST_ANSWER).decode(errors="replace")
    except (OSError, HTTPException):
        said = ""
    if error.code == 401 or '"error_code"' in said:
        return ""
    plain = error.headers.get_content_type() == "text/plain" and " ".join(said.split())[:LONGEST_REASON]
    return f"does not answer as MLflow does (HTTP {error.code}{f': {plain}' if plain else ''})"


def store_url(uri: str) -> str:
    """A store's URI as MLflow takes it: a file's path in full, the driver named. Raises SettingsError."""
    return uri if is_server(uri) else full_url(uri, TRACKING.variable)


def tracking_schema(uri: str) -> Schema:
    """How MLflow's database stands. Raises TrackingError, StorageError."""
    check_uri(uri)
    if is_server(uri):
        return Schema(TRACKING, uri, "server")
    return schema_of(uri, TRACKING)


def check_store(uri: str) -> None:
    """See that the schema is right; a store that is away passes. Raises TrackingError, SettingsError."""
    check_patience()
    try:
        _usable(uri)
    except StorageError as error:
        if error.__cause__ is None or not away(error.__cause__):
            raise TrackingError(str(error)) from error


def _usable(uri: str) -> Schema:
    schema = tracking_schema(uri)
    if schema.problem and not (schema.blank and is_sqlite(uri)):
        raise TrackingError(schema.problem)
    return schema


def connect(uri: str, artifacts: Path) -> Any:
    """A `MlflowClient` on the store, prepared. Raises TrackingError and what MLflow and the file system raise."""
    prepare(uri, artifacts)
    from mlflow import MlflowClient

    return MlflowClient(store_url(uri), store_url(uri))


def prepare(uri: str, artifacts: Path) -> None:
    """Settle the environment and see that a store can be used: made, and where its folder is. Raises TrackingError."""
    check_uri(uri)
    uri = store_url(uri)
    settle_environment(uri)
    check_server(uri)
    try:
        schema = _usable(uri)
        if schema.blank:
            make_store(uri, artifacts)
        elif schema.state != "server":
            _settle(uri, artifacts)
    except StorageError as error:
        raise TrackingError(str(error)) from error


def make_store(uri: str, artifacts: Path) -> bool:
    """Create MLflow's tables unless they exist; return whether it did. Raises StorageError.

    In PostgreSQL MLflow's default experiment is left to whoever uses the database first and decides where its
    artifacts lie.
    """
    uri = store_url(uri)
    settle_environment(uri)

    def create(url: str) -> None:
        if not is_sqlite(url):
            _create_tables(url)
            return
        _drop_connections(uri)
        open_sql(url, artifacts).engine.dispose()

    return make_tables(uri, TRACKING, create)


def upgrade_store(uri: str) -> None:
    """Migrate MLflow's tables to the installed version's. Raises StorageError."""
    uri = store_url(uri)
    settle_environment(uri)
    upgrade(uri, TRACKING, _upgrade_tables)


def _settle(uri: str, artifacts: Path) -> None:
    """Re-base a store whose folder was moved or copied, and create MLflow's default experiment under a lock."""
    with TRACKING.opened(uri) as engine:
        rebase(engine, uri, artifacts)
        with engine.connect() as connection:
            if connection.scalar(text("SELECT 1 FROM experiments WHERE experiment_id = 0")) is not None:
                return
        with schema_lock(engine):
            open_sql(uri, artifacts)


def open_sql(uri: str, artifacts: Path) -> Any:
    """MLflow's own `SqlAlchemyStore` on a database whose schema is there, or one that `make_store` is making."""
    uri = store_url(uri)
    settle_environment(uri)
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    return SqlAlchemyStore(uri, (artifacts / "runs").as_uri())


# Where MLflow has no public name. tests/test_tracking_store.py says what is relied upon.


def _create_tables(uri: str) -> None:
    """Make MLflow's tables without the default experiment, which `SqlAlchemyStore` adds."""
    from mlflow.store.db.utils import _initialize_tables

    with TRACKING.opened(uri) as engine:
        _initialize_tables(engine)


def _upgrade_tables(uri: str) -> None:
    """What `mlflow db upgrade URL` does, whose arguments every account of the machine sees, the password among them."""
    from mlflow.store.db.utils import _upgrade_db

    with TRACKING.opened(uri) as engine:
        _upgrade_db(engine)


def _drop_connections(uri: str) -> None:
    """Close the connections that MLflow keeps for good, also to a SQLite file that has been deleted."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore._get_or_create_engine(uri).dispose()


def erase_run(store: Any, run_id: str) -> None:
    """Delete a run's rows as `mlflow gc` does, and its inputs, which that leaves. store: of `open_sql`."""
    with store.engine.begin() as connection:
        of_run = "FROM inputs WHERE destination_type = 'RUN' AND destination_id = :run"
        tags = f"DELETE FROM input_tags WHERE input_uuid IN (SELECT input_uuid {of_run})"  # noqa: S608
        for statement in (tags, f"DELETE {of_run}"):
            connection.execute(text(statement), {"run": run_id})
    store._hard_delete_run(run_id)


def erase_experiment(store: Any, experiment_id: str) -> None:
    """Delete an experiment's rows, as `mlflow gc` does. store: of `open_sql`."""
    store._hard_delete_experiment(experiment_id)
