"""A backup brought back: everything is copied beside its place and verified first, then put there by renaming.

What was there is renamed, not deleted. MLflow keeps where a run's artifacts lie as an absolute URI, in several tables;
in another folder than the one that was backed up, every text in its database that begins with the old folder's URI is
made to begin with the new one's.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from regtune.errors import InputError, StorageError
from regtune.server.databases import check_databases, running_sweeps
from regtune.server.service import running
from regtune.settings import Settings, sqlite_url
from regtune.storage import is_sqlite, lock, sqlite, understood
from regtune.storage.artifacts import relocate
from regtune.storage.mlflow import is_server, tracking_engine
from regtune.storage.schema import STUDIES, TRACKING
from regtune.upkeep.backup.dumps import load_lines
from regtune.upkeep.backup.making import Tell
from regtune.upkeep.backup.manifest import ARTIFACTS, MLFLOW, Manifest, copy_file, databases, read_manifest

LOCK_SECONDS = 30


@dataclass(frozen=True)
class Plan:
    """What a restore would do. replaced: what is there and would be set aside."""

    manifest: Manifest
    replaced: tuple[Path, ...]


@dataclass(frozen=True)
class Restored:
    """What a restore did. aside: where the replaced files are now. notes: what a person should know."""

    aside: tuple[Path, ...]
    notes: tuple[str, ...]


def plan_restore(settings: Settings, folder: Path) -> Plan:
    """See whether the backup in `folder` can be restored into the folder of `settings`; nothing is changed.

    Raises InputError for no backup and for PostgreSQL (the message says how), StorageError for a damaged one, one that
    a newer version made, and while somebody uses the databases.
    """
    if not all(is_sqlite(url) or is_server(url) for url in (settings.storage_url, settings.mlflow_uri)):
        raise InputError("\n".join(load_lines(settings, folder)))
    manifest = read_manifest(folder)
    for name in manifest.files:
        _check_file(folder, name, manifest.files[name].bytes)
    for tables in (STUDIES, TRACKING):
        revision = manifest.revisions.get(tables.name)
        if revision is not None and revision not in tables.migrations.known:
            raise StorageError(
                f"{folder}: made with a newer {tables.owner} ({revision}, here {tables.migrations.head}); "
                f"restore it with a newer regtune"
            )
    targets = _targets(settings, manifest)
    _see_unused(settings, targets)
    return Plan(manifest, tuple(path for path in targets.values() if _filled(path)))


def restore(settings: Settings, folder: Path, tell: Tell = lambda _, __: None) -> Restored:
    """Put the backup in `folder` into the folder of `settings`; what was there is set aside.

    Nothing is replaced before every file has been copied and has the digest that the backup's manifest says. Raises as
    `plan_restore` does, and StorageError for a damaged file or a full disk.
    """
    manifest = plan_restore(settings, folder).manifest
    targets = _targets(settings, manifest)
    with understood(settings.home.resolve()), ExitStack() as stack:
        drafts = stack.enter_context(_drafts(targets))
        _copy(manifest, folder, drafts, tell)
        for name in drafts.keys() - {ARTIFACTS}:
            sqlite.check(drafts[name])
        if MLFLOW in drafts:
            _relocate(drafts[MLFLOW], manifest.artifacts, settings.artifacts.as_uri())
        for place in sorted(
            {path.parent for path in targets.values()}
        ):  # from here on nobody opens or makes one
            stack.enter_context(lock(place, "schema", LOCK_SECONDS))
        _see_unused(settings, targets)
        aside = _swap(drafts, targets)
    return Restored(aside, tuple(_notes(manifest, settings)))


def _targets(settings: Settings, manifest: Manifest) -> dict[str, Path]:
    """Where the parts of a backup go, by their names in it."""
    found = {name: path for name, path in databases(settings).items() if name in manifest.files}
    return {**found, ARTIFACTS: settings.artifacts}


def _filled(path: Path) -> bool:
    """Whether there is something that a person may miss."""
    if path.is_dir():
        return any(path.iterdir())
    return path.exists() and path.stat().st_size > 0


def _check_file(folder: Path, name: str, size: int) -> None:
    """Raises StorageError where a file of the manifest is missing, of another size, a link or behind one."""
    path = folder
    for part in name.split("/"):
        path = path / part
        if path.is_symlink():
            raise StorageError(f"{path}: is a link; a backup holds files alone")
    if not path.is_file():
        raise StorageError(f"{path}: is missing from the backup")
    if path.stat().st_size != size:
        raise StorageError(f"{path}: damaged: has {path.stat().st_size} bytes, the manifest says {size}")


def _see_unused(settings: Settings, targets: dict[str, Path]) -> None:
    """Raises StorageError while a sweep, the folder's server or another process uses what would be replaced."""
    if sweeps := running_sweeps(settings.storage_url):
        raise StorageError(
            f"a sweep is run by {' and by '.join(map(str, sweeps))}; stop it first with Ctrl-C"
        )
    if server := running(settings):
        raise StorageError(f"{server.url}: this folder's server runs; end it first with: regtune down")
    paths = {str(path) for name, path in targets.items() if name != ARTIFACTS}
    for process in psutil.process_iter():
        try:
            opened = (
                paths & {file.path for file in process.open_files()} if process.pid != os.getpid() else set()
            )
            if opened:
                raise StorageError(
                    f"{opened.pop()}: process {process.pid} ({process.name()}) has it open; end it first"
                )
        except (psutil.Error, OSError):  # another user's, or gone in this moment
            continue


@contextmanager
def _drafts(targets: dict[str, Path]) -> Iterator[dict[str, Path]]:
    """Places beside the targets; what is left there in the end is deleted."""
    drafts = {name: path.with_name(f"{path.name}.restore") for name, path in targets.items()}

    def clear() -> None:
        for name, path in drafts.items():
            if name == ARTIFACTS:
                shutil.rmtree(path, ignore_errors=True)
            else:
                sqlite.discard(path)

    clear()
    for path in drafts.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    drafts[ARTIFACTS].mkdir()
    try:
        yield drafts
    finally:
        clear()


def _copy(manifest: Manifest, folder: Path, drafts: dict[str, Path], tell: Tell) -> None:
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        tell(done, manifest.size_bytes)

    for name, entry in manifest.files.items():
        first, _, rest = name.partition("/")
        if first not in drafts:
            continue
        target = drafts[first] / rest if rest else drafts[first]
        target.parent.mkdir(parents=True, exist_ok=True)
        found = copy_file(folder / name, target, count)
        if found != entry:
            raise StorageError(
                f"{folder / name}: damaged: its SHA-256 is {found.sha256[:12]}..., "
                f"the manifest says {entry.sha256[:12]}..."
            )
        if not rest:
            shutil.copymode(folder / name, target)


def _relocate(database: Path, old: str, new: str) -> None:
    engine = tracking_engine(sqlite_url(database))
    try:
        with engine.begin() as connection:
            relocate(connection, old, new)
    finally:
        engine.dispose()


def _swap(drafts: dict[str, Path], targets: dict[str, Path]) -> tuple[Path, ...]:
    """Rename what is there, then what was copied. Returns where the former is now."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    aside = []
    for name, path in targets.items():
        away = path.with_name(f"{path.name}.until-{stamp}")
        if _filled(path):
            aside.append(away)
        for suffix in ("",) if name == ARTIFACTS else sqlite.BESIDE:
            found = path.with_name(path.name + suffix)
            if found.exists():
                found.rename(away.with_name(away.name + suffix))
    for name, path in targets.items():
        drafts[name].rename(path)
    return tuple(aside)


def _notes(manifest: Manifest, settings: Settings) -> Iterator[str]:
    if MLFLOW in manifest.files and is_server(settings.mlflow_uri):
        yield f"left out: the backup's runs and registered models; {settings.mlflow_uri} keeps its own"
    for one in check_databases(settings):
        if one.schema and one.schema.state == "older":
            yield one.schema.problem
