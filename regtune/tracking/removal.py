"""Deletion of a study's runs, and the studies that MLflow's database has runs of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import text

from regtune.settings import Settings
from regtune.storage.artifacts import inside, local_path, remove
from regtune.storage.mlflow import erase_experiment, erase_run, is_server, open_sql, prepare
from regtune.tracking import names
from regtune.tracking.runs import SqlReader, search
from regtune.tracking.store import open_client, open_reader, understood

_TRACKED = """
    SELECT tags.value, runs.run_uuid, runs.start_time, runs.artifact_uri, named.value
    FROM tags JOIN runs ON runs.run_uuid = tags.run_uuid
    LEFT JOIN experiment_tags AS named ON named.experiment_id = runs.experiment_id AND named.key = :sweep
    WHERE tags.key = :uid
"""


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
    """Every study that has runs in MLflow's database, deleted ones among them, by its uid. Raises TrackingError."""
    with understood(settings):
        prepare(settings.mlflow_uri, settings.artifacts)
        reader = open_reader(settings)
        if not isinstance(reader, SqlReader):
            return {}
        with reader.engine.connect() as connection:
            given = {"uid": names.STUDY_TAG, "sweep": names.SWEEP}
            rows = connection.execute(text(_TRACKED), given).all()
    of_study = defaultdict(list)
    for uid, *row in rows:
        of_study[uid].append(row)
    return {uid: _tracked(of_one, settings.artifacts) for uid, of_one in of_study.items()}


def _tracked(rows: Sequence[Any], artifacts: Path) -> Tracked:
    inner = {uri: inside(uri, artifacts) for _, _, uri, _ in rows}
    places = [folder for uri, own in inner.items() if own and (folder := local_path(uri)) is not None]
    folders = tuple(folder for folder in places if folder.is_dir())
    starts = [start for _, start, _, _ in rows if start]
    return Tracked(
        sweep=rows[0][3] or "",
        runs=len(rows),
        last=datetime.fromtimestamp(max(starts) / 1000, UTC) if starts else None,
        folders=folders,
        here=bool(folders) and len(places) == len(inner),
    )


def delete_study(settings: Settings, uid: str) -> int:
    """Delete the runs of one study and their artifacts, and its experiment when nothing is left in it.

    In a database they are gone for good. A tracking server offers no such thing: there the artifacts are
    deleted and the runs put into its bin, which `mlflow gc`, given on the server, empties. Artifacts on this machine
    outside the project's are left. Returns how many runs. Raises TrackingError.
    """
    with understood(settings):
        client, _ = open_client(settings)
        from mlflow.entities import ViewType

        experiments = [found.experiment_id for found in client.search_experiments(ViewType.ALL)]
        runs = [run for page in search(client, experiments, {names.STUDY_TAG: uid}) for run in page]
        store = None if is_server(settings.mlflow_uri) else open_sql(settings.mlflow_uri, settings.artifacts)
        for run in runs:
            if inside(run.info.artifact_uri, settings.artifacts):
                remove(run.info.artifact_uri, client.tracking_uri)
            if run.info.lifecycle_stage != "deleted":
                client.delete_run(run.info.run_id)
            if store is not None:
                erase_run(store, run.info.run_id)
        for experiment_id in {run.info.experiment_id for run in runs}:
            _delete_empty(client, store, experiment_id)
        return len(runs)


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
        erase_experiment(store, experiment_id)
