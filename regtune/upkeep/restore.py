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
from regtune.server.databases import require_no_sweep
from regtune.server.service import require_no_server
from regtune.settings import Settings
from regtune.storage import lock, sqlite, understood
from regtune.storage.mlflow import is_server
from regtune.storage.schema import STUDIES, TRACKING
from regtune.upkeep.backup import (
    ACCOUNTS,
    ARTIFACTS,
    MLFLOW,
    Manifest,
    copy_file,
    databases,
    read_manifest,
    require_sqlite,
)

LOCK_SECONDS = 30


@dataclass(frozen=True)
class Plan:
    """What a restore would do.

    targets: where the parts of a backup go, by their names in it. A database that this one lacks is set aside as well,
    because it would not fit the artifacts; accounts stay.
    """

    manifest: Manifest
    targets: dict[str, Path]

    @property
    def replaced(self) -> list[Path]:
        """What exists and would be set aside."""
        return [path for path in self.targets.values() if _filled(path)]


def plan_restore(settings: Settings, folder: Path) -> Plan:
    """Plan to restore the backup in `folder` into the folder of `settings`; change nothing.

    Raises:
        InputError: `folder` is no backup, or the databases are PostgreSQL's: the message says what to run.
        StorageError: the backup is a newer version's, or somebody uses the databases.
    """
    require_sqlite(settings, folder, "restore")
    manifest = read_manifest(folder)
    for tables in (STUDIES, TRACKING):
        revision = manifest.revisions.get(tables.name)
        if revision is not None and revision not in tables.migrations.known:
            newer = f"of a newer {tables.owner} ({revision}, here {tables.migrations.head})"
            raise StorageError(f"{folder}: {newer}; restore it with a newer regtune")
    known = databases(settings).items()
    files = {name: path for name, path in known if name in manifest.files or name != ACCOUNTS}
    plan = Plan(manifest, {ARTIFACTS: settings.artifacts, **files})  # a mounted folder cannot be renamed
    _require_unused(settings, plan)
    return plan


def restore(settings: Settings, folder: Path) -> list[str]:
    """Put the backup in `folder` into the folder of `settings`; return a line on each thing that was set aside.

    Nothing is replaced before every file is copied and has its digest of the manifest. Raises as `plan_restore` does,
    and StorageError for a damaged file or a full disk.
    """
    plan = plan_restore(settings, folder)
    drafts = {name: path.with_name(f".{path.name}.regtune-new") for name, path in plan.targets.items()}
    with understood(settings.home.resolve()), ExitStack() as stack:
        stack.callback(_clear, drafts)
        _clear(drafts)
        drafts[ARTIFACTS].mkdir(parents=True)
        _copy(plan.manifest, folder, drafts)
        for place in sorted({path.parent for path in drafts.values()}):  # nobody opens or makes one now
            stack.enter_context(lock(place, "schema", LOCK_SECONDS))
        _require_unused(settings, plan)
        lines = [f"set aside: {path}" for path in _swap(drafts, plan.targets)]
    if MLFLOW in plan.manifest.files and is_server(settings.mlflow_uri):
        own = f"{settings.mlflow_uri} keeps its own"
        lines.append(f"left out: the backup's runs and registered models; {own}")
    return lines


def _filled(path: Path) -> bool:
    if path.is_dir():
        return any(path.iterdir())
    return path.exists() and path.stat().st_size > 0


def _require_unused(settings: Settings, plan: Plan) -> None:
    """Raise StorageError while a sweep, the folder's server or another process uses what would be replaced."""
    require_no_sweep(settings.storage_url)
    require_no_server(settings)
    paths = {str(path) for name, path in plan.targets.items() if name != ARTIFACTS}
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


def _copy(manifest: Manifest, folder: Path, drafts: dict[str, Path]) -> None:
    """Copy the files of a backup, links excepted. Raises StorageError for a damaged one, OSError."""
    for name, entry in manifest.files.items():
        part, _, rest = name.partition("/")
        if part not in drafts:
            continue
        source, target = folder / name, drafts[part] / rest
        if source.resolve() != folder.resolve() / name:
            raise StorageError(f"{source}: is or lies behind a link; a backup holds files alone")
        target.parent.mkdir(parents=True, exist_ok=True)
        copied = copy_file(source, target)
        if copied != entry:
            digests = f"its SHA-256 is {copied.sha256[:12]}..., the manifest says {entry.sha256[:12]}..."
            raise StorageError(f"{source}: damaged: {digests}")
        if not rest:
            shutil.copymode(source, target)


def _swap(drafts: dict[str, Path], targets: dict[str, Path]) -> list[Path]:
    """Rename what is there, then what was copied; all or nothing. Returns where the former is now."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    aside = []
    with ExitStack() as undo:

        def rename(path: Path, to: Path) -> None:
            path.rename(to)
            undo.callback(to.rename, path)

        for path in targets.values():
            away = path.with_name(f"{path.name}.until-{stamp}")
            if _filled(path):
                aside.append(away)
            for suffix in ("",) if path.is_dir() else sqlite.BESIDE:
                former = path.with_name(path.name + suffix)
                if former.exists():
                    rename(former, away.with_name(away.name + suffix))
        for name, path in targets.items():
            if drafts[name].exists():
                rename(drafts[name], path)
        undo.pop_all()
    return aside
