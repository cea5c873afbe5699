"""Deleting studies with everything they left, and finding what no study refers to any more.

What belongs to a study: its rows in Optuna's database, its runs in MLflow (found by the tag of its uid),
and the folders `artifacts/trials/UID-NUMBER`. On a tracking server runs are marked as deleted, as its own
`mlflow gc` expects; in a database of this machine they are removed for good.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from regtune.errors import TrackingError
from regtune.leaderboard import list_studies
from regtune.retrain import RETRAINED
from regtune.settings import Settings
from regtune.storage import database_path, open_engine
from regtune.study import delete
from regtune.tracking import names
from regtune.tracking.store import connect, is_server, open_sql, sqlite_path

PAGE = 1000


@dataclass(frozen=True)
class Garbage:
    """What no study refers to: MLflow run ids, trial folders, and how many bytes the folders have."""

    runs: tuple[str, ...]
    folders: tuple[Path, ...]
    size_bytes: int

    def __bool__(self) -> bool:
        return bool(self.runs or self.folders)

    def __str__(self) -> str:
        size = f"{self.size_bytes / 1e6:.1f} MB"
        return f"{len(self.runs)} MLflow runs and {len(self.folders)} trial folders ({size})"


def delete_study(settings: Settings, name: str) -> Garbage:
    """Delete a study, its runs and its artifacts; returns what it left beside its rows.

    Raises StudyNotFound, StudyBusy, StorageError; TrackingError when MLflow is away: then the study is
    gone, and `gc` removes its runs later.
    """
    uid = delete(settings, name)
    folders = [folder for folder in _trial_folders(settings) if _owner(folder) == uid]
    found = Garbage(_runs_of(settings, {uid}), tuple(folders), _size(folders))
    remove(settings, found)
    return found


def find_garbage(settings: Settings) -> Garbage:
    """What no study refers to, in this folder's own stores.

    Where OPTUNA_STORAGE or MLFLOW_TRACKING_URI name others, these may serve studies that cannot be seen
    from here: runs, or runs and folders, are then left alone.
    """
    if settings.storage:
        return Garbage((), (), 0)
    known = _known(settings)
    folders = [
        folder
        for folder in _trial_folders(settings)
        if _owner(folder) not in known and not _retrained(folder.name)
    ]
    runs = () if settings.tracking_uri else _runs_without(settings, known)
    return Garbage(runs, tuple(folders), _size(folders))


def remove(settings: Settings, found: Garbage) -> None:
    """Remove runs and folders for good; on a tracking server runs are marked as deleted. Raises TrackingError."""
    for folder in found.folders:
        shutil.rmtree(folder, ignore_errors=True)
    if not found.runs:
        return
    with _told(settings):
        client = connect(settings.mlflow_uri, settings.artifacts)
        store = None if is_server(settings.mlflow_uri) else open_sql(settings.mlflow_uri, settings.artifacts)
        experiments = set()
        for run_id in found.runs:
            info = client.get_run(run_id).info
            experiments.add(info.experiment_id)
            if info.lifecycle_stage != "deleted":
                client.delete_run(run_id)
            if store is not None:
                store._hard_delete_run(run_id)  # what `mlflow gc` calls; there is no public way
                _remove_artifacts(info.artifact_uri, settings.artifacts)
        for experiment in experiments:
            if not client.search_runs([experiment], run_view_type=_all_views(), max_results=1):
                client.delete_experiment(experiment)


class _told:  # noqa: N801 - used as a function
    """What MLflow raises, as a TrackingError."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from mlflow.exceptions import MlflowException

        if isinstance(error, MlflowException | OSError):
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise TrackingError(f"MLflow cannot be used: {first[:200]}; try later: regtune gc") from None


def _known(settings: Settings) -> set[str]:
    if not database_path(settings.storage_url).exists():
        return set()
    engine = open_engine(settings.storage_url)
    try:
        return {summary.info.uid for summary in list_studies(engine)}
    finally:
        engine.dispose()


def _trial_folders(settings: Settings) -> list[Path]:
    trials = settings.artifacts / "trials"
    return sorted(path for path in trials.iterdir() if path.is_dir()) if trials.is_dir() else []


def _owner(folder: Path) -> str:
    """The uid of the study whose trial's folder it is."""
    return folder.name.rpartition("-")[0]


def _retrained(uid: str) -> bool:
    return uid.startswith(RETRAINED)


def _size(folders: Iterable[Path]) -> int:
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def _has_store(settings: Settings) -> bool:
    path = sqlite_path(settings.mlflow_uri)
    return path is None or path.exists()


def _runs_of(settings: Settings, uids: set[str]) -> tuple[str, ...]:
    return tuple(run.info.run_id for uid, run in _tagged(settings) if uid in uids)


def _runs_without(settings: Settings, known: set[str]) -> tuple[str, ...]:
    return tuple(
        run.info.run_id for uid, run in _tagged(settings) if uid not in known and not _retrained(uid)
    )


def _tagged(settings: Settings) -> Iterator[tuple[str, Any]]:
    """Every run that regtune wrote, with the uid of its study."""
    if not _has_store(settings):
        return
    with _told(settings):
        client = connect(settings.mlflow_uri, settings.artifacts)
        experiments = [found.experiment_id for found in client.search_experiments(_all_views())]
        token = None
        while experiments:
            page = client.search_runs(
                experiments,
                f"tags.`{names.STUDY_UID}` != ''",
                run_view_type=_all_views(),
                max_results=PAGE,
                page_token=token,
            )
            for run in page:
                yield run.data.tags[names.STUDY_UID], run
            token = page.token
            if not token:
                return


def _all_views() -> Any:
    from mlflow.entities import ViewType

    return ViewType.ALL


def _remove_artifacts(uri: str, artifacts: Path) -> None:
    """Remove a run's artifact folder where it lies below regtune's own."""
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file"):
        return
    folder = Path(unquote(parts.path)).parent
    if folder.is_relative_to(artifacts / "runs") and folder != artifacts / "runs":
        shutil.rmtree(folder, ignore_errors=True)
