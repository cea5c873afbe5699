"""The MLflow store in use: its client, the first creation of a database, and how patient the client is.

MLflow reads its settings from the environment when it is imported; so it is imported only in here, once
they are settled.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock

from regtune.errors import TrackingError

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
}
LOCK_SECONDS = 120


def settle_environment() -> None:
    """Set what MLflow reads from the environment; what a person has set stays, telemetry excepted."""
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    os.environ.update(SILENCE)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def check_uri(uri: str) -> None:
    """Raises TrackingError for what is neither a database nor a tracking server."""
    scheme = urlsplit(uri).scheme
    if scheme not in ("http", "https") and not scheme.startswith(("sqlite", "postgresql")):
        found = f"{scheme}:" if scheme else "a path"
        raise TrackingError(
            f"MLFLOW_TRACKING_URI: expected sqlite:///PATH, postgresql://... or http://..., found {found}"
        )


def is_server(uri: str) -> bool:
    """Whether the store is a tracking server rather than a database of its own."""
    return urlsplit(uri).scheme in ("http", "https")


def sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite store, None for any other."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def connect(uri: str, artifacts: Path) -> Any:
    """A `MlflowClient` on the store; a database is made first where there is none.

    artifacts: regtune's artifact folder, beside which the lock lies. Raises what MLflow, SQLite and the
    file system raise.
    """
    prepare(uri, artifacts)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def prepare(uri: str, artifacts: Path) -> None:
    """Settle the environment and see that a database has its schema; imports MLflow only if it has to make
    one.

    It is made under a lock: processes that open an empty database at the same moment trip over each other.
    """
    check_uri(uri)
    settle_environment()
    if is_server(uri):
        return
    path = sqlite_path(uri)
    locks = artifacts.parent / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / "mlflow.lock", timeout=LOCK_SECONDS):
        if path is not None and path.exists() and _has_schema(path):
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        SqlAlchemyStore._get_or_create_engine(
            uri
        ).dispose()  # kept for a process' life, also on a file that is gone
        if path is None or (path.exists() and path.stat().st_size > 0):
            open_sql(uri, artifacts).engine.dispose()
        else:
            _create(path, artifacts)


def _create(path: Path, artifacts: Path) -> None:
    """Make a SQLite store in WAL mode: beside its place, and then there as a whole, so that none is ever
    half made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    connection = sqlite3.connect(fresh)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    open_sql(f"sqlite:///{fresh}", artifacts).engine.dispose()
    fresh.replace(path)


def _has_schema(path: Path) -> bool:
    connection = sqlite3.connect(path, timeout=20)
    try:
        found = connection.execute(
            "SELECT count(*) FROM sqlite_master WHERE name IN ('experiments', 'alembic_version')"
        ).fetchone()
        return bool(found[0] == 2)
    finally:
        connection.close()


def open_sql(uri: str, artifacts: Path) -> Any:
    """MLflow's own `SqlAlchemyStore` on a database, its schema made if there is none."""
    settle_environment()
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    return SqlAlchemyStore(uri, (artifacts / "runs").as_uri())
