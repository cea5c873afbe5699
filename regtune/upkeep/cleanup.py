"""Deletion of studies with all they left, and of what other deleted studies have left.

What belongs to a study: its rows in Optuna's database, its runs in MLflow (found by the tag of its uid),
and the folders `artifacts/trials/UID-NUMBER`. What was promoted belongs to MLflow's registry and stays.
On a tracking server runs are marked as deleted, as its own `mlflow gc` expects; in a database of this machine they
are removed for good.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from regtune.errors import NoStudies
from regtune.settings import Settings
from regtune.storage import database_path, is_sqlite, open_engine, understood
from regtune.study.ownership import was_held
from regtune.study.record import uid_of
from regtune.study.study import deleting
from regtune.study.tables import read_first_start, read_uids, reading
from regtune.tracking.names import PROMOTED, RETRAINED
from regtune.tracking.store import Tracked, tracked_studies
from regtune.tracking.store import delete_study as delete_runs

_UNTRACKED = Tracked("", 0, None, (), here=False)


@dataclass(frozen=True)
class Leftover:
    """What a study left.

    name: its sweep's, empty where nothing says it. last: when one of its runs began last. kept: why it is not shown
    to be a deleted study's, so that it stays.
    """

    uid: str
    name: str
    runs: int
    folders: tuple[Path, ...]
    size_bytes: int
    last: datetime | None = None
    kept: str = ""

    def __str__(self) -> str:
        size = f"{self.size_bytes / 1e6:.1f} MB"
        return f"{self.runs} MLflow runs and {len(self.folders)} trial folders ({size})"


def delete_study(settings: Settings, name: str) -> None:
    """Delete a study, its runs and its artifacts; its rows go last.

    Raises StudyNotFound, StudyBusy, StorageError; TrackingError when MLflow is away: then the study is still there.
    """
    with deleting(settings, name) as uid:
        remove(settings, uid)


def find_garbage(settings: Settings) -> list[Leftover]:
    """Find what lies in this folder's own stores and belongs to no study there, and why it stays if it does.

    A uid that no study and no trial carries any more is a deleted study's when its runs were written in this folder,
    which ran a sweep of that name, and its database is as old. Where OPTUNA_STORAGE or MLFLOW_TRACKING_URI name others,
    these may serve studies that cannot be seen from here. Raises StorageError, TrackingError.
    """
    if settings.storage:
        return []
    tracked = {} if settings.tracking_uri or not _has_runs(settings) else tracked_studies(settings)
    folders = _trial_folders(settings)
    known, first = _known(settings)  # last: a study that begins meanwhile is known
    garbage = []
    for uid in sorted((tracked.keys() | folders.keys()) - known):
        if uid.startswith((PROMOTED, RETRAINED)):
            continue
        runs, own = tracked.get(uid, _UNTRACKED), tuple(folders.get(uid, ()))
        size, why = _size((*own, *runs.folders)), _doubt(settings, runs, first)
        garbage.append(Leftover(uid, runs.sweep, runs.runs, own, size, runs.last, why))
    return garbage


def _doubt(settings: Settings, runs: Tracked, first: datetime | None) -> str:
    """Why runs may be of a study that was not deleted; empty where nothing speaks for that."""
    if not runs.runs:
        return "no run in MLflow says whose they are"
    if not runs.here:
        return "another folder wrote them"
    if is_sqlite(settings.storage_url) and not was_held(settings, runs.sweep):
        return "no sweep of that name was run on this folder's studies.db"
    if first is None or runs.last is None or first > runs.last:
        return "the studies here all started later, so it may be in another database"
    return ""


def remove(settings: Settings, uid: str) -> None:
    """Remove the runs and then the folders of a study. Raises TrackingError, StorageError for a folder that stays."""
    if settings.tracking_uri or _has_runs(settings):
        delete_runs(settings, uid)
    with understood(settings.artifacts):
        for folder in _trial_folders(settings)[uid]:
            with suppress(FileNotFoundError):
                shutil.rmtree(folder)


def _has_runs(settings: Settings) -> bool:
    return not is_sqlite(settings.mlflow_uri) or database_path(settings.mlflow_uri).exists()


def _known(settings: Settings) -> tuple[set[str], datetime | None]:
    """Uids that studies and trials carry, and when the first trial began.

    Raises StorageError for one that is none: what belongs to that study is not known.
    """
    try:
        engine = open_engine(settings.storage_url)
    except NoStudies:
        return set(), None
    try:
        with reading(engine) as connection:
            return {uid_of(uid) for uid in read_uids(connection)}, read_first_start(connection)
    finally:
        engine.dispose()


def _trial_folders(settings: Settings) -> dict[str, list[Path]]:
    """Folders of trials, by the uid of their study."""
    folders = defaultdict(list)
    for path in sorted((settings.artifacts / "trials").glob("*/")):
        folders[path.name.rpartition("-")[0]].append(path)
    return folders


def _size(folders: Iterable[Path]) -> int:
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
