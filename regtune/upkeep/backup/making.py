"""A backup made, also while a sweep writes. Its parts are then of different moments, and the order makes them fit:

1. MLflow's database. Runs follow the studies, so none of them is ahead of what is copied next, and what they lack is
   written again from the studies. The model registry in it has no other source.
2. Optuna's database, which is the truth.
3. The artifacts. A file is there before a database refers to it, so what both copies refer to is copied, unless it was
   deleted meanwhile: a trial that is among the best no longer loses its model.

Each database is copied as of one moment (SQLite's online backup) and then read in full. A trial's own files are
written whole; one that MLflow is writing, or that changes while it is copied, is copied again. The backup is written
beside its place and renamed, so half a one is never taken for one.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from regtune import __version__
from regtune.errors import InputError, StorageError
from regtune.server.databases import check_databases
from regtune.settings import Settings
from regtune.storage import is_sqlite, lock, sqlite, understood
from regtune.storage.mlflow import is_server
from regtune.study.study import versions
from regtune.upkeep.backup.dumps import dump_lines
from regtune.upkeep.backup.manifest import (
    ARTIFACTS,
    MANIFEST,
    MLFLOW,
    STUDIES,
    Entry,
    Manifest,
    copy_file,
    databases,
    digest,
    read_manifest,
    sync,
)

ATTEMPTS = 5
LOCK_SECONDS = 2
"""Another backup of the same folder is not waited for."""
Tell = Callable[[int, int], None]
"""Told how many bytes of how many are copied."""
_PARTIAL = re.compile(r"^\.\d+\.")
"""A trial's file while it is being written."""


@dataclass(frozen=True)
class Backup:
    """A backup that was made. notes: what is not in it, or not as it should be."""

    folder: Path
    manifest: Manifest
    notes: tuple[str, ...]


def make_backup(settings: Settings, folder: Path, tell: Tell = lambda _, __: None) -> Backup:
    """Copy both databases, the accounts and all artifacts into `folder`: new, empty, or an earlier backup's.

    Raises InputError for another folder, and for PostgreSQL, whose own programs do it: the message says how.
    StorageError for a database that is missing, damaged or another's, and when the disk is full.
    """
    if not all(is_sqlite(url) or is_server(url) for url in (settings.storage_url, settings.mlflow_uri)):
        raise InputError("\n".join(dump_lines(settings, folder)))
    folder = folder.expanduser().absolute()
    _check_place(settings, folder)
    sources = _sources(settings)
    draft = folder.with_name(f"{folder.name}.new")
    with understood(folder), lock(settings.home.resolve(), "backup", LOCK_SECONDS):
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        try:
            return _make(settings, sources, draft, folder, tell)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _check_place(settings: Settings, folder: Path) -> None:
    """Raises InputError for a folder whose content would be lost, or that would be copied into itself."""
    if folder.is_relative_to(settings.artifacts) or settings.artifacts.is_relative_to(folder):
        raise InputError(f"{folder}: a backup cannot lie in what it copies; name another folder")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"{folder}: expected a folder")
    if folder.is_dir() and any(folder.iterdir()):
        try:
            read_manifest(folder)
        except InputError:
            raise InputError(
                f"{folder}: is not empty and not an earlier backup; name another folder"
            ) from None


def _sources(settings: Settings) -> dict[str, Path]:
    """The databases that are there. Raises StorageError for none, and for one that is another's."""
    for one in check_databases(settings):
        if one.schema and one.schema.state == "foreign":
            raise StorageError(one.schema.problem)
    found = {
        name: path for name, path in databases(settings).items() if path.exists() and path.stat().st_size
    }
    if not {STUDIES, MLFLOW} & found.keys():
        raise StorageError(f"{settings.home.resolve()}: there is nothing to back up yet")
    return found


def _make(settings: Settings, sources: dict[str, Path], draft: Path, folder: Path, tell: Tell) -> Backup:
    files: dict[str, Entry] = {}
    for name, source in sources.items():
        sqlite.copy(source, draft / name)
        sqlite.check(draft / name)
        shutil.copymode(source, draft / name)
        files[name] = digest(draft / name)
    copied, links = _copy_tree(settings.artifacts, draft / ARTIFACTS, tell)
    files |= {f"{ARTIFACTS}/{name}": entry for name, entry in copied.items()}
    manifest = Manifest(
        made=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        versions={**versions(), "regtune": __version__, "sqlite": sqlite3.sqlite_version},
        revisions={"studies": _revision(draft / STUDIES), "mlflow": _revision(draft / MLFLOW)},
        artifacts=settings.artifacts.as_uri(),
        files=dict(sorted(files.items())),
    )
    (draft / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    notes = tuple(_notes(settings, draft / MLFLOW, links))
    for path in (*(draft / name for name in sources), draft / MANIFEST, draft):
        sync(path)
    _put(draft, folder)
    return Backup(folder, manifest, notes)


def _put(draft: Path, folder: Path) -> None:
    """Rename `draft` to `folder`; an earlier backup is gone only when the new one is in its place."""
    earlier = folder.with_name(f"{folder.name}.old")
    if folder.exists():
        shutil.rmtree(earlier, ignore_errors=True)
        folder.rename(earlier)
    draft.rename(folder)
    sync(folder.parent)
    shutil.rmtree(earlier, ignore_errors=True)


def _copy_tree(source: Path, target: Path, tell: Tell) -> tuple[dict[str, Entry], int]:
    """Copy every ordinary file below `source`; by path relative to it, and how many others there were."""
    others = 0
    found: list[tuple[str, os.stat_result]] = []
    for path, ordinary in _walk(source):
        if not ordinary:
            others += 1
        elif not _PARTIAL.match(path.name):
            try:
                found.append((path.relative_to(source).as_posix(), path.lstat()))
            except FileNotFoundError:  # deleted meanwhile
                continue
    total, done = sum(status.st_size for _, status in found), 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        tell(min(done, total), total)

    target.mkdir()
    copied: dict[str, Entry] = {}
    waiting = [name for name, _ in found]
    for _ in range(ATTEMPTS):
        for name in waiting:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                copied[name] = copy_file(source / name, target / name, count)
            except FileNotFoundError:
                copied.pop(name, None)
                (target / name).unlink(missing_ok=True)
        waiting = [name for name in copied if _changed(source / name, target / name)]
        if not waiting:
            return copied, others
    raise StorageError(f"{source / waiting[0]}: changes again and again while it is copied; try again later")


def _changed(source: Path, copy: Path) -> bool:
    """Whether a file was written to since it was copied; one that was deleted was not."""
    try:
        now, then = source.lstat(), copy.lstat()
    except FileNotFoundError:
        return False
    return (now.st_size, now.st_mtime_ns) != (then.st_size, then.st_mtime_ns)


def _walk(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Everything below `folder` but folders, and whether it is an ordinary file; links are not followed."""
    for at, folders, names in os.walk(folder):
        for name in (*names, *(name for name in folders if Path(at, name).is_symlink())):
            path = Path(at, name)
            yield path, path.is_file() and not path.is_symlink()


def _revision(path: Path) -> str | None:
    if not path.exists():
        return None
    with closing(sqlite3.connect(path)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone():
            return None
        found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return str(found[0]) if found else None


def _notes(settings: Settings, mlflow: Path, links: int) -> Iterator[str]:
    """What a person should know is not in the backup, or not as it should be."""
    for name in (STUDIES, MLFLOW):
        path = mlflow.with_name(name)
        if path.exists() and (found := sqlite.orphans(path)):
            yield f"copied as it is: {name} has rows that refer to missing ones ({', '.join(found)})"
    if is_server(settings.mlflow_uri):
        yield f"left out: runs and registered models of {settings.mlflow_uri}; back them up where that server runs"
    if links:
        yield f"left out: {links} links or special files among the artifacts"
    if _revision(mlflow) is not None:
        inside = settings.artifacts.as_uri() + "/"
        with closing(sqlite3.connect(mlflow)) as connection:
            count = connection.execute(
                "SELECT count(*) FROM runs WHERE artifact_uri IS NOT NULL "
                "AND artifact_uri NOT LIKE 'mlflow-artifacts:%' AND substr(artifact_uri, 1, ?) <> ?",
                (len(inside), inside),
            ).fetchone()[0]
        if count:
            yield f"left out: the artifacts of {count} runs, which do not lie in {settings.artifacts}"
