"""The restoration of a backup: copied beside its place, verified, and renamed into it.

What was there is renamed, not deleted. Nothing is rewritten: in another folder than the one that was backed up,
MLflow's store is re-based when it is opened next, as after moving a folder.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil

from regtune.errors import StorageError
from regtune.server.databases import check_databases, running_sweeps
from regtune.server.service import running
from regtune.settings import Settings
from regtune.storage import lock, sqlite, understood
from regtune.storage.mlflow import is_server
from regtune.storage.schema import STUDIES, TRACKING
from regtune.upkeep.backup import (
    ARTIFACTS,
    MLFLOW,
    Manifest,
    Tell,
    copy_file,
    databases,
    read_manifest,
    require_sqlite,
)

LOCK_SECONDS = 30


@dataclass(frozen=True)
class Plan:
    """What a restore would do. replaced: what exists and would be set aside."""

    manifest: Manifest
    replaced: tuple[Path, ...]


@dataclass(frozen=True)
class Restored:
    """What a restore did. aside: where the replaced files are now. notes: what a person should know."""

    aside: tuple[Path, ...]
    notes: tuple[str, ...]


def plan_restore(settings: Settings, folder: Path) -> Plan:
    """Check whether the backup in `folder` can be restored into the folder of `settings`; change nothing.

    Raises:
        InputError: `folder` is no backup, or the databases are PostgreSQL's: the message says what to run.
        StorageError: the backup is damaged or a newer version's, or somebody uses the databases.
    """
    require_sqlite(settings, folder, "restore")
    manifest = read_manifest(folder)
    for name, entry in manifest.files.items():
        _check_file(folder, name, entry.bytes)
    for name, tables in {"studies": STUDIES, "mlflow": TRACKING}.items():
        revision = manifest.revisions.get(name)
        if revision is not None and revision not in tables.migrations.known:
            newer = f"of a newer {tables.owner} ({revision}, here {tables.migrations.head})"
            raise StorageError(f"{folder}: {newer}; restore it with a newer regtune")
    targets = _targets(settings, manifest)
    _require_unused(settings, targets)
    return Plan(manifest, tuple(path for path in targets.values() if _filled(path)))


def restore(settings: Settings, folder: Path, tell: Tell = lambda _, __: None) -> Restored:
    """Put the backup in `folder` into the folder of `settings`; what is there is set aside.

    Nothing is replaced before every file is copied and has its digest of the manifest. Raises as `plan_restore` does,
    and StorageError for a damaged file or a full disk.
    """
    manifest = plan_restore(settings, folder).manifest
    targets = _targets(settings, manifest)
    drafts = {name: path.with_name(f"{path.name}.restore") for name, path in targets.items()}
    with understood(settings.home.resolve()), ExitStack() as stack:
        stack.callback(_clear, drafts)
        _clear(drafts)
        for path in drafts.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        drafts[ARTIFACTS].mkdir()
        _copy(manifest, folder, drafts, tell)
        for name in drafts.keys() - {ARTIFACTS}:
            sqlite.check(drafts[name])
        for place in sorted({path.parent for path in targets.values()}):  # nobody opens or makes one now
            stack.enter_context(lock(place, "schema", LOCK_SECONDS))
        _require_unused(settings, targets)
        aside = _swap(drafts, targets)
    schemas = [one.schema for one in check_databases(settings) if one.schema]
    notes = [schema.problem for schema in schemas if schema.state == "older"]
    if MLFLOW in manifest.files and is_server(settings.mlflow_uri):
        own = f"{settings.mlflow_uri} keeps its own"
        notes.insert(0, f"left out: the backup's runs and registered models; {own}")
    return Restored(aside, tuple(notes))


def _targets(settings: Settings, manifest: Manifest) -> dict[str, Path]:
    """Where the parts of a backup go, by their names in it."""
    files = {name: path for name, path in databases(settings).items() if name in manifest.files}
    return {**files, ARTIFACTS: settings.artifacts}


def _filled(path: Path) -> bool:
    if path.is_dir():
        return any(path.iterdir())
    return path.exists() and path.stat().st_size > 0


def _check_file(folder: Path, name: str, size: int) -> None:
    """Raise StorageError where a file of the manifest is missing, of another size, a link or behind one."""
    path = folder
    for part in name.split("/"):
        path = path / part
        if path.is_symlink():
            raise StorageError(f"{path}: is a link; a backup holds files alone")
    if not path.is_file():
        raise StorageError(f"{path}: is missing from the backup")
    if path.stat().st_size != size:
        raise StorageError(f"{path}: damaged: has {path.stat().st_size} bytes, the manifest says {size}")


def _require_unused(settings: Settings, targets: dict[str, Path]) -> None:
    """Raise StorageError while a sweep, the folder's server or another process uses what would be replaced."""
    if sweeps := " and by ".join(map(str, running_sweeps(settings.storage_url))):
        raise StorageError(f"a sweep is run by {sweeps}; stop it first with Ctrl-C")
    if server := running(settings):
        raise StorageError(f"{server.url}: this folder's server is running; stop it first with: regtune down")
    paths = {str(path) for name, path in targets.items() if name != ARTIFACTS}
    for process in psutil.process_iter():
        try:
            opened = paths & {file.path for file in process.open_files()}
        except (psutil.Error, OSError):  # another user's, or gone in this moment
            continue
        if opened and process.pid != os.getpid():
            who = f"process {process.pid} ({process.name()})"
            raise StorageError(f"{opened.pop()}: {who} has it open; stop it first")


def _clear(drafts: dict[str, Path]) -> None:
    for path in drafts.values():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            sqlite.discard(path)


def _copy(manifest: Manifest, folder: Path, drafts: dict[str, Path], tell: Tell) -> None:
    done = 0
    for name, entry in manifest.files.items():
        part, _, rest = name.partition("/")
        if part not in drafts:
            continue
        target = drafts[part] / rest
        target.parent.mkdir(parents=True, exist_ok=True)
        copied = copy_file(folder / name, target)
        if copied != entry:
            digests = f"its SHA-256 is {copied.sha256[:12]}..., the manifest says {entry.sha256[:12]}..."
            raise StorageError(f"{folder / name}: damaged: {digests}")
        if not rest:
            shutil.copymode(folder / name, target)
        done += entry.bytes
        tell(done, manifest.size_bytes)


def _swap(drafts: dict[str, Path], targets: dict[str, Path]) -> tuple[Path, ...]:
    """Rename what is there, then what was copied. Returns where the former is now."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    aside = []
    for path in targets.values():
        away = path.with_name(f"{path.name}.until-{stamp}")
        if _filled(path):
            aside.append(away)
        for suffix in ("",) if path.is_dir() else sqlite.BESIDE:
            former = path.with_name(path.name + suffix)
            if former.exists():
                former.rename(away.with_name(away.name + suffix))
    for name, path in targets.items():
        drafts[name].rename(path)
    return tuple(aside)
