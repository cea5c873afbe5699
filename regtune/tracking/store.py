"""The MLflow store of a folder: where runs go, what reads them, and the deletion of a study's."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import Timeout
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from regtune.credentials import authorization
from regtune.errors import TrackingError
from regtune.server.service import running
from regtune.settings import Settings
from regtune.storage import database_path, explain, is_sqlite
from regtune.storage import place as place_of
from regtune.storage.artifacts import Stray, find_strays, inside, is_own, local_path, remove
from regtune.storage.mlflow import (
    check_server,
    connect,
    erase_experiment,
    erase_run,
    is_server,
    open_sql,
    prepare,
    settle_environment,
    tracking_schema,
)
from regtune.storage.schema import TRACKING
from regtune.tracking import names
from regtune.tracking.runs import ClientReader, Reader, SqlReader, runs_with

_TRACKED = """
    SELECT tags.value, runs.start_time, runs.artifact_uri, named.value
    FROM tags JOIN runs ON runs.run_uuid = tags.run_uuid
    LEFT JOIN experiment_tags AS named ON named.experiment_id = runs.experiment_id AND named.key = :sweep
    WHERE tags.key = :uid
"""


def target_of(settings: Settings) -> str:
    """Where runs go: MLFLOW_TRACKING_URI where it is set, else this folder's server while it runs, else its store.

    A server that asks for an account is passed by when no credentials are given. Raises SettingsError.
    """
    found = None if settings.tracking_uri else running(settings)
    if found is not None and (not found.auth or authorization()):
        return found.url
    return settings.mlflow_uri


def open_client(settings: Settings) -> Any:
    """Return a `MlflowClient` on where runs go; a SQLite store is made first where there is none.

    Raises TrackingError, also when the file behind this folder's own server is gone, and what MLflow raises.
    """
    target, own = target_of(settings), settings.mlflow_uri
    if target != own:
        if is_sqlite(own) and not database_path(own).exists():
            raise TrackingError(
                f"{database_path(own)}: gone, and its server still runs; try: regtune down, regtune up"
            )
        prepare(own, settings.artifacts)  # the folder may have been moved since its server started
    return connect(target, settings.artifacts)


def open_reader(settings: Settings) -> Reader | None:
    """Return what reads the store without a trace; None when there is no store. Raises TrackingError, StorageError."""
    uri = settings.mlflow_uri
    settle_environment(uri)
    if is_server(uri):
        check_server(uri)
        from mlflow import MlflowClient

        return ClientReader(MlflowClient(uri, uri))
    found = tracking_schema(uri)
    if found.blank:
        return None
    if found.problem:
        raise TrackingError(found.problem)
    return SqlReader(TRACKING.engine(uri))


def strays(settings: Settings) -> list[Stray]:
    """Where else than in the project's artifacts its own store keeps some. Raises TrackingError, StorageError."""
    if not is_own(settings.mlflow_uri, settings.artifacts):
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
        raise TrackingError(f"MLflow at {where}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


@dataclass(frozen=True)
class Tracked:
    """What a database of MLflow has of a study.

    last: when one of its runs began last. folders: of its runs' artifacts, those in the project's folder. here: whether
    there are some, and none lies elsewhere.
    """

    sweep: str
    runs: int
    last: datetime | None
    folders: tuple[Path, ...]
    here: bool


def tracked_studies(settings: Settings) -> dict[str, Tracked]:
    """Studies that have runs in the folder's own store, deleted ones among them, by uid. Raises TrackingError."""
    with understood(settings):
        prepare(settings.mlflow_uri, settings.artifacts)
        with TRACKING.engine(settings.mlflow_uri).connect() as connection:
            given = {"uid": names.STUDY_TAG, "sweep": names.SWEEP}
            rows = connection.execute(text(_TRACKED), given).all()
    of_study = defaultdict(list)
    for uid, *row in rows:
        of_study[uid].append(row)
    return {uid: _tracked(of_one, settings.artifacts) for uid, of_one in of_study.items()}


def _tracked(rows: Sequence[Any], artifacts: Path) -> Tracked:
    starts, uris, sweeps = zip(*rows, strict=True)
    last = max(filter(None, starts), default=None)
    inner = (local_path(uri) for uri in uris if inside(uri, artifacts))
    places = [folder for folder in inner if folder is not None]
    folders = tuple(filter(Path.is_dir, places))
    return Tracked(
        sweep=sweeps[0] or "",
        runs=len(rows),
        last=None if last is None else datetime.fromtimestamp(last / 1000, UTC),
        folders=folders,
        here=bool(folders) and len(places) == len(rows),
    )


def delete_study(settings: Settings, uid: str) -> int:
    """Delete the runs of one study and their artifacts, and its experiment when nothing is left in it.

    In a database they are gone for good. A tracking server offers no such thing: there the artifacts are
    deleted and the runs put into its bin, which `mlflow gc`, given on the server, empties. Artifacts on this machine
    outside the project's are left. Returns how many runs. Raises TrackingError.
    """
    with understood(settings):
        client = open_client(settings)
        from mlflow.entities import ViewType

        store = None if is_server(settings.mlflow_uri) else open_sql(settings.mlflow_uri, settings.artifacts)
        reader, count = ClientReader(client), 0
        for experiment in client.search_experiments(ViewType.ALL):
            runs = runs_with(reader, experiment.experiment_id, {names.STUDY_TAG: uid})
            for run in runs:
                if inside(run.artifact_uri, settings.artifacts):
                    remove(run.artifact_uri, client.tracking_uri)
                if not run.deleted:
                    client.delete_run(run.run_id)
                if store is not None:
                    erase_run(store, run.run_id)
            if runs:
                _delete_empty(client, store, experiment)
            count += len(runs)
        return count


def _delete_empty(client: Any, store: Any, experiment: Any) -> None:
    """Delete an experiment of a sweep when no run is left in it."""
    from mlflow.entities import ViewType

    view = ViewType.ALL if store is not None else ViewType.ACTIVE_ONLY
    if names.SWEEP not in experiment.tags or client.search_runs([experiment.experiment_id], "", view, 1):
        return
    if experiment.lifecycle_stage != "deleted":
        client.delete_experiment(experiment.experiment_id)
    if store is not None:
        erase_experiment(store, experiment.experiment_id)
