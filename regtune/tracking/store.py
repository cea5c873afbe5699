"""The MLflow store of a folder: where runs go, and how they are read and written there."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from filelock import Timeout
from sqlalchemy.exc import SQLAlchemyError

from regtune.credentials import authorization
from regtune.errors import TrackingError
from regtune.server.service import running
from regtune.settings import Settings
from regtune.storage import database_path, explain, is_sqlite
from regtune.storage import place as place_of
from regtune.storage.artifacts import Stray, find_strays, is_own
from regtune.storage.mlflow import (
    check_server,
    connect,
    is_server,
    prepare,
    settle_environment,
    tracking_schema,
)
from regtune.storage.schema import TRACKING
from regtune.tracking.facts import StudyFacts
from regtune.tracking.runs import ClientReader, Reader, SqlReader

REFUSALS = (
    "INVALID_PARAMETER_VALUE",
    "PERMISSION_DENIED",
    "BAD_REQUEST",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
    "INVALID_STATE",
)
"""Error codes of MLflow."""


class Target(NamedTuple):
    """Where runs go.

    uri: of a tracking server or a database. place: URI of the artifact folder that a new experiment gets; None leaves
    it to the server. This folder's own server and its store share one place, so that a run made through one is read
    through the other.
    """

    uri: str
    place: str | None


def target_of(settings: Settings) -> Target:
    """MLFLOW_TRACKING_URI where it is set, else this folder's server while it runs, else its store.

    A server that asks for an account is passed by when no credentials are given. Raises SettingsError.
    """
    place = (settings.artifacts / "runs").as_uri()
    if settings.tracking_uri:
        return Target(settings.tracking_uri, None if is_server(settings.tracking_uri) else place)
    found = running(settings)
    if found is not None and (not found.auth or authorization()):
        return Target(found.url, place)
    return Target(settings.mlflow_uri, place)


def open_client(settings: Settings) -> tuple[Any, Target]:
    """Return a `MlflowClient` on where runs go; a SQLite store is made first where there is none.

    Raises TrackingError, also when the file behind this folder's own server is gone, and what MLflow raises.
    """
    target, own = target_of(settings), settings.mlflow_uri
    if is_server(target.uri) and not is_server(own):
        if is_sqlite(own) and not database_path(own).exists():
            raise TrackingError(
                f"{database_path(own)}: gone, and its server still runs; try: regtune down, regtune up"
            )
        prepare(own, settings.artifacts)  # the folder may have been moved since its server started
    return connect(target.uri, settings.artifacts), target


def project(settings: Settings, facts: StudyFacts) -> Any:
    """Return a `Projection` of a study to where its runs go. Raises as `open_client`."""
    client, target = open_client(settings)
    from regtune.tracking.projection import Projection

    database = None if is_server(settings.mlflow_uri) else settings.mlflow_uri
    return Projection(client, facts, settings.artifacts, target.place, database)


def open_reader(settings: Settings) -> Reader | None:
    """Return what reads the store without a trace; None when there is no store. Raises TrackingError, StorageError."""
    uri = settings.mlflow_uri
    settle_environment(uri)
    if is_server(uri):
        check_server(uri)
        from mlflow import MlflowClient

        return ClientReader(MlflowClient(uri, uri))
    if is_sqlite(uri) and not database_path(uri).exists():
        return None
    found = tracking_schema(uri)
    if found.blank:
        return None
    if found.problem:
        raise TrackingError(found.problem)
    return SqlReader(TRACKING.engine(uri))


def strays(settings: Settings) -> list[Stray]:
    """Where else than in the project's artifacts its own store keeps some. Raises TrackingError, StorageError."""
    if is_server(settings.mlflow_uri) or not is_own(settings.mlflow_uri, settings.artifacts):
        return []
    with understood(settings):
        reader = open_reader(settings)
        return find_strays(reader.engine, settings.artifacts) if isinstance(reader, SqlReader) else []


@contextmanager
def understood(settings: Settings) -> Iterator[None]:
    """Turn what MLflow and its database raise into a TrackingError that says where and what."""
    settle_environment()
    try:
        yield
    except Exception as error:
        # MLflow is not imported only to recognize its exceptions.
        named = any(kind.__name__ == "MlflowException" for kind in type(error).__mro__)
        if not named and not isinstance(error, SQLAlchemyError | sqlite3.Error | OSError | Timeout):
            raise
        where = place_of(settings.mlflow_uri)
        if isinstance(error, SQLAlchemyError | sqlite3.Error) and not is_server(settings.mlflow_uri):
            raise TrackingError(explain(error, where)) from error
        raise TrackingError(f"MLflow at {where}: {_first_line(error)}") from error


def refusal(error: Exception) -> str:
    """Why MLflow understood a request and will not do it, so that trying again cannot help; empty for other errors."""
    return _first_line(error)[:120] if getattr(error, "error_code", None) in REFUSALS else ""


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
