"""Deleting studies with everything they left, and finding what no study refers to any more.

What belongs to a study: its rows in Optuna's database, its runs in MLflow (found by the tag of its uid),
and the folders `artifacts/trials/UID-NUMBER`. On a tracking server runs are marked as deleted, as its own
`mlflow gc` expects; in a database of this machine they are removed for good.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from regtune.errors import NoStudies
from regtune.leaderboard import list_studies
from regtune.record import uid_of
from regtune.settings import Settings
from regtune.storage import database_path, is_sqlite, open_engine
from regtune.study import delete
from regtune.tracking.names import RETRAINED


@dataclass(frozen=True)
class Garbage:
    """What no study refers to: uids of studies with runs in MLflow, how many runs, trial folders and their bytes."""

    uids: tuple[str, ...]
    runs: int
    folders: tuple[Path, ...]
    size_bytes: int

    def __bool__(self) -> bool:
        return bool(self.uids or self.folders)

    def __str__(self) -> str:
        size = f"{self.size_bytes / 1e6:.1f} MB"
        return f"{self.runs} MLflow runs and {len(self.folders)} trial folders ({size})"


def delete_study(settings: Settings, name: str) -> Garbage:
    """Delete a study, its runs and its artifacts; returns what it left beside its rows.

    Raises StudyNotFound, StudyBusy, StorageError; TrackingError when MLflow is away: then the study is
    gone, and `gc` removes its runs later.
    """
    uid = delete(settings, name)
    folders = tuple(folder for folder in _trial_folders(settings) if _owner(folder) == uid)
    size = _size(folders)
    runs = remove(settings, Garbage((uid,), 0, folders, size))
    return Garbage((uid,), runs, folders, size)


def find_garbage(settings: Settings) -> Garbage:
    """What no study refers to, in this folder's own stores.

    Where OPTUNA_STORAGE or MLFLOW_TRACKING_URI name others, these may serve studies that cannot be seen
    from here: runs, or runs and folders, are then left alone.
    """
    if settings.storage:
        return Garbage((), 0, (), 0)
    tracked: dict[str, int] = {}
    if not settings.tracking_uri and _has_runs(settings):
        from regtune.tracking.sync import tracked_studies

        tracked = tracked_studies(settings)
    found = _trial_folders(settings)
    known = _known(settings)  # last: a study that begins meanwhile is known
    tracked = {uid: runs for uid, runs in tracked.items() if _foreign(uid, known)}
    folders = tuple(folder for folder in found if _foreign(_owner(folder), known))
    return Garbage(tuple(tracked), sum(tracked.values()), folders, _size(folders))


def remove(settings: Settings, found: Garbage) -> int:
    """Remove runs and folders; returns how many runs. On a tracking server runs are marked as deleted.

    Raises TrackingError.
    """
    for folder in found.folders:
        shutil.rmtree(folder, ignore_errors=True)
    if not found.uids or not (settings.tracking_uri or _has_runs(settings)):
        return 0
    from regtune.tracking.sync import delete_study as delete_runs

    return sum(delete_runs(settings, uid) for uid in found.uids)


def _has_runs(settings: Settings) -> bool:
    """Whether there is a store at all."""
    return not is_sqlite(settings.mlflow_uri) or database_path(settings.mlflow_uri).exists()


def _known(settings: Settings) -> set[str]:
    """Uids of all studies. Raises StorageError for one that is none: what belongs to that study is not known."""
    try:
        engine = open_engine(settings.storage_url)
    except NoStudies:
        return set()
    try:
        return {uid_of(summary.info.uid) for summary in list_studies(engine)}
    finally:
        engine.dispose()


def _trial_folders(settings: Settings) -> list[Path]:
    trials = settings.artifacts / "trials"
    return sorted(path for path in trials.iterdir() if path.is_dir()) if trials.is_dir() else []


def _owner(folder: Path) -> str:
    """The uid of the study whose trial's folder it is."""
    return folder.name.rpartition("-")[0]


def _foreign(uid: str, known: set[str]) -> bool:
    """Whether no study has this uid, and no training of a single configuration either."""
    return uid not in known and not uid.startswith(RETRAINED)


def _size(folders: Iterable[Path]) -> int:
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
