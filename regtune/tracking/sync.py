"""MLflow brought to what studies say, at once: catching up, rebuilding, and deleting a study's runs for
good.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import Timeout
from sqlalchemy.exc import SQLAlchemyError

from regtune.errors import TrackingError
from regtune.record import State, TrialRecord
from regtune.settings import Settings
from regtune.storage import redact
from regtune.tracking import names
from regtune.tracking.facts import ParentState, StudyFacts
from regtune.tracking.store import connect, is_server, open_sql

PAGE = 1000


def catch_up(
    settings: Settings,
    facts: StudyFacts,
    trials: Iterable[tuple[int, State, TrialRecord]],
    state: ParentState | None = None,
    winner: int | None = None,
) -> int:
    """Write everything of a study that MLflow lacks; from nothing, if it has nothing.

    Args:
        settings: where the store and the artifacts are.
        facts: the study.
        trials: number, state and record of every trial.
        state: how the study stands; None leaves its own run as it is.
        winner: number of its best trial, if it has one.

    Returns:
        How many trials' runs had to be made or changed.

    Raises:
        TrackingError: the store cannot be used.
    """
    with understood(settings):
        client = connect(settings.mlflow_uri, settings.artifacts)
        from regtune.tracking.projection import Projection

        projection = Projection(client, facts, settings.artifacts)
        projection.open()
        changed = sum(projection.trial(number, found, record) for number, found, record in trials)
        if state is not None:
            projection.study(state, winner)
        return changed


def tracked_studies(settings: Settings) -> dict[str, int]:
    """Every study that has runs in MLflow, deleted ones among them: its uid -> how many. Raises
    TrackingError.
    """
    with understood(settings):
        client = connect(settings.mlflow_uri, settings.artifacts)
        found: dict[str, int] = {}
        for run in _runs(client, f"tags.`{names.STUDY_UID}` LIKE '%'"):
            uid = run.data.tags[names.STUDY_UID]
            found[uid] = found.get(uid, 0) + 1
        return found


def delete_study(settings: Settings, uid: str) -> int:
    """Delete the runs of one study and their artifacts, and its experiment when nothing is left in it.

    In a database they are gone for good. A tracking server offers no such thing: there the artifacts are
    deleted and the runs put into its bin, which `mlflow gc`, given on the server, empties. Returns how many
    runs. Raises TrackingError.
    """
    with understood(settings):
        client = connect(settings.mlflow_uri, settings.artifacts)
        runs = list(_runs(client, f"tags.`{names.STUDY_UID}` = '{uid}'"))
        store = None if is_server(settings.mlflow_uri) else open_sql(settings.mlflow_uri, settings.artifacts)
        for run in runs:
            _delete_artifacts(client, run)
            if run.info.lifecycle_stage != "deleted":
                client.delete_run(run.info.run_id)
            if store is not None:
                _delete_row(store, run.info.run_id)
        for experiment_id in {run.info.experiment_id for run in runs}:
            _delete_empty(client, store, experiment_id)
        return len(runs)


def _runs(client: Any, text: str) -> Iterator[Any]:
    """Runs of every experiment, deleted ones too."""
    from mlflow.entities import ViewType

    experiments = [found.experiment_id for found in client.search_experiments(ViewType.ALL)]
    token = None
    while True:
        page = client.search_runs(experiments, text, ViewType.ALL, PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _delete_artifacts(client: Any, run: Any) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    get_artifact_repository(run.info.artifact_uri, client.tracking_uri).delete_artifacts()
    if run.info.artifact_uri.startswith("file:"):
        from mlflow.utils.file_utils import local_file_uri_to_path

        with suppress(OSError):  # somebody has put something beside it
            Path(local_file_uri_to_path(run.info.artifact_uri)).parent.rmdir()


def _delete_row(store: Any, run_id: str) -> None:
    """As `mlflow gc` does it, and the run's data set inputs, which that leaves behind."""
    from mlflow.store.tracking.dbmodels.models import SqlInput, SqlInputTag

    with store.ManagedSessionMaker(read_only=False) as session:
        inputs = session.query(SqlInput).filter(
            SqlInput.destination_type == "RUN", SqlInput.destination_id == run_id
        )
        uuids = [entry.input_uuid for entry in inputs]
        session.query(SqlInputTag).filter(SqlInputTag.input_uuid.in_(uuids)).delete(synchronize_session=False)
        inputs.delete(synchronize_session=False)
    store._hard_delete_run(run_id)


def _delete_empty(client: Any, store: Any, experiment_id: str) -> None:
    """Delete an experiment of a sweep when no run is left in it."""
    from mlflow.entities import ViewType

    experiment = client.get_experiment(experiment_id)
    view = ViewType.ALL if store is not None else ViewType.ACTIVE_ONLY
    if names.SWEEP not in experiment.tags or client.search_runs([experiment_id], "", view, 1):
        return
    if experiment.lifecycle_stage != "deleted":
        client.delete_experiment(experiment_id)
    if store is not None:
        store._hard_delete_experiment(experiment_id)


@contextmanager
def understood(settings: Settings) -> Iterator[None]:
    """Turn what MLflow throws into a TrackingError that says where and what."""
    from regtune.tracking.store import settle_environment

    settle_environment()
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, Timeout) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TrackingError(f"MLflow at {redact(settings.mlflow_uri)}: {reason}") from error
