"""The backup of a folder, also while a sweep writes: both databases, accounts, artifacts and a manifest.

The parts of a backup are copied one after the other, in an order that makes them fit:

1. MLflow's database. Runs follow the studies, so no run is ahead of the study that is copied next, and what runs lack
   is written again from the studies. Its model registry has no other source.
2. Optuna's database, which is the truth.
3. The artifacts. A file is written before a database refers to it, so whatever both copies refer to is copied, unless
   it was deleted meanwhile: a trial that is no longer among the best loses its model.

Each database is copied as of one moment (SQLite's online backup) and then read in full. The backup is written beside
its place and renamed, so half a backup is never taken for one. PostgreSQL is left to its own programs.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, ValidationError, field_validator

from regtune.errors import InputError, StorageError
from regtune.escaping import printable
from regtune.server.databases import check_databases
from regtune.settings import Settings, is_own_postgres, sqlite_url
from regtune.storage import database_path, is_sqlite, lock, parse_url, redact, schema, sqlite, understood
from regtune.storage.artifacts import find_strays
from regtune.storage.mlflow import is_server
from regtune.storage.postgres import Embedded
from regtune.study.study import versions

MANIFEST = "manifest.json"
STUDIES, MLFLOW, ACCOUNTS, ARTIFACTS = "studies.db", "mlflow.db", "auth.db", "artifacts"
ATTEMPTS = 5
LOCK_SECONDS = 2
"""Another backup of the same folder is not waited for."""
_RESTORING = "--clean --if-exists --no-owner --exit-on-error --single-transaction"
_PARTIAL = re.compile(r"^\.\d+\.")
"""A trial's file while it is being written."""


class Entry(BaseModel, extra="forbid", frozen=True, strict=True):
    """A file of a backup."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Manifest(BaseModel, extra="forbid", frozen=True):
    """The contents of a backup.

    made: local time, ISO 8601. versions: of what made it. revisions: of the tables of `studies` and `mlflow`, None for
    one that is not in it. artifacts: URI of the folder of the artifacts. files: by their paths in the backup.
    """

    format: Literal[1] = 1
    made: str
    versions: dict[str, str]
    revisions: dict[str, str | None]
    artifacts: str = Field(pattern=r"^file:///")
    files: dict[str, Entry]

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, Entry]) -> dict[str, Entry]:
        for name in files:
            parts = name.split("/")
            known = name in (STUDIES, MLFLOW, ACCOUNTS) or (parts[0] == ARTIFACTS and len(parts) > 1)
            if not known or {"", ".", ".."} & {*parts} or "\0" in name:
                raise ValueError(f"{name!r} is not the path of a file in a backup")
        return files

    @property
    def size_bytes(self) -> int:
        return sum(entry.bytes for entry in self.files.values())


@dataclass(frozen=True)
class Backup:
    """A backup that was made. notes: what is not in it."""

    manifest: Manifest
    notes: tuple[str, ...]


def make_backup(settings: Settings, folder: Path) -> Backup:
    """Copy both databases, the accounts and all artifacts into `folder`: a new or empty one, or an earlier backup.

    Raises:
        InputError: `folder` is another one, or has what is not there now, or the databases are PostgreSQL's: the
            message says what to run.
        StorageError: there is no database, or one is damaged or another program's, or the disk is full.
    """
    require_sqlite(settings, folder, "backup")
    folder = folder.expanduser().absolute()
    before = _check_place(settings, folder)
    sources = _sources(settings)
    _require_all(settings, folder, before, sources)
    draft, earlier = (folder.with_name(f".{folder.name}.regtune-{end}") for end in ("new", "old"))
    with understood(folder), lock(settings.home.resolve(), "backup", LOCK_SECONDS):
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        try:
            backup = _copy(settings, sources, draft)
            if folder.exists():
                shutil.rmtree(earlier, ignore_errors=True)
                folder.rename(earlier)
            draft.rename(folder)
            _flush(folder.parent)
            shutil.rmtree(earlier, ignore_errors=True)
            return backup
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of the backup in `folder`. Raises InputError without one, StorageError for a damaged one."""
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder}: not a backup, there is no {MANIFEST} in it") from None
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "JSON"
        what = f"{key}: {first['msg'].removeprefix('Value error, ')}"
        raise StorageError(f"{path}: not a manifest that this version understands: {what}") from None


def databases(settings: Settings) -> dict[str, Path]:
    """List the SQLite files of a folder by their names in a backup, in the order in which they are copied."""
    uri = settings.mlflow_uri
    return {
        **({MLFLOW: database_path(uri)} if is_sqlite(uri) else {}),
        STUDIES: database_path(settings.storage_url),
        ACCOUNTS: settings.home.resolve() / ACCOUNTS,
    }


def copy_file(source: Path, target: Path) -> Entry:
    """Copy an ordinary file with the times that it has before; never what a link points to. Raises OSError."""
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as reading, target.open("wb") as writing:
        status = os.fstat(descriptor)
        shutil.copyfileobj(reading, writing)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    return _entry(target)


def require_sqlite(settings: Settings, folder: Path, verb: Literal["backup", "restore"]) -> None:
    """Raise InputError for databases of PostgreSQL, with the lines to run instead.

    Passwords come from PGPASSWORD, PGPASSFILE or ~/.pgpass and stand in none of the lines.
    """
    urls = {"mlflow": settings.mlflow_uri, "studies": settings.storage_url}
    if all(is_sqlite(url) or is_server(url) for url in urls.values()):
        return
    if verb == "backup":
        lines = [
            "PostgreSQL is backed up by its own programs; run, with its passwords in PGPASSWORD or ~/.pgpass:"
        ]
        lines.append(f"  mkdir -p {shlex.quote(str(folder))}")
        program, options, tar = (
            "pg_dump",
            "--format=custom --file={dump} {database}",
            "-cf {archive} artifacts",
        )
    else:
        lines = ["PostgreSQL is restored by its own programs; run, with nothing else connected to it:"]
        program, options, tar = "pg_restore", f"{_RESTORING} --dbname={{database}} {{dump}}", "-xf {archive}"
    for name, url in urls.items():
        if is_server(url):
            lines.append(f"  # the runs of {redact(url)}: {verb} them where that server runs")
        elif is_sqlite(url):
            file = str(folder / f"{name}.db").replace("\\", "\\\\").replace('"', '\\"')  # as its shell quotes
            command = shlex.quote(f'.{verb} "{file}"')
            lines.append(f"  sqlite3 {shlex.quote(str(database_path(url)))} {command}")
        else:
            database = shlex.quote(parse_url(url).set(drivername="postgresql").render_as_string())
            dump = shlex.quote(str(folder / f"{name}.dump"))
            own = is_own_postgres(url)  # an older program on the PATH would not read it
            path = shlex.quote(str(Embedded(settings.home).program(program))) if own else program
            lines.append(f"  {path} {options.format(dump=dump, database=database)}")
    archive = tar.format(archive=shlex.quote(str(folder / "artifacts.tar")))
    lines.append(f"  tar -C {shlex.quote(str(settings.home))} {archive}")
    raise InputError("\n".join(lines))


def _check_place(settings: Settings, folder: Path) -> Manifest | None:
    """The manifest of the backup that would be replaced.

    Raises InputError for a folder whose content would be lost, or that would be copied into itself.
    """
    another = "name another folder"
    if folder.is_relative_to(settings.artifacts) or settings.artifacts.is_relative_to(folder):
        raise InputError(f"{folder}: a backup cannot be inside the folder that it copies; {another}")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"{folder}: expected a folder")
    inside = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not inside:
        return None
    try:
        manifest = read_manifest(folder)
    except InputError:
        raise InputError(f"{folder}: is not empty and not an earlier backup; {another}") from None
    if manifest.artifacts != settings.artifacts.as_uri():
        raise InputError(f"{folder}: is a backup of {manifest.artifacts}; {another}")
    if others := inside - {MANIFEST, ARTIFACTS, *manifest.files}:
        raise InputError(
            f"{folder}: has something besides a backup in it: {printable(min(others))}; {another}"
        )
    return manifest


def _require_all(
    settings: Settings, folder: Path, before: Manifest | None, sources: Mapping[str, Path]
) -> None:
    """Raise InputError where the backup that would be replaced has a database that is not there now."""
    for name in (STUDIES, MLFLOW, ACCOUNTS):
        if before is not None and name in before.files and name not in sources:
            place = databases(settings).get(name)
            now = f"there is none at {place}" if place else f"runs go to {settings.mlflow_uri}"
            raise InputError(f"{folder}: that backup has {name}, and now {now}; name another folder")


def _sources(settings: Settings) -> dict[str, Path]:
    """The databases that exist. Raises StorageError for none, and for one that is another program's."""
    for one in check_databases(settings):
        if one.state == "foreign":
            raise StorageError(one.problem)
    known = databases(settings).items()
    sources = {name: path for name, path in known if path.exists() and path.stat().st_size}
    if not {STUDIES, MLFLOW} & sources.keys():
        raise StorageError(f"{settings.home.resolve()}: there is nothing to back up yet")
    return sources


def _copy(settings: Settings, sources: dict[str, Path], draft: Path) -> Backup:
    files: dict[str, Entry] = {}
    for name, source in sources.items():
        sqlite.copy(source, draft / name)
        sqlite.check(draft / name)
        shutil.copymode(source, draft / name)
        files[name] = _entry(draft / name)
    copied, links = _copy_artifacts(settings.artifacts, draft / ARTIFACTS)
    manifest = Manifest(
        made=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        versions=versions(),
        revisions={
            tables.name: schema.schema_of(sqlite_url(draft / f"{tables.name}.db"), tables).revision
            for tables in (schema.STUDIES, schema.TRACKING)
        },
        artifacts=settings.artifacts.as_uri(),
        files=dict(sorted((files | copied).items())),
    )
    (draft / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    notes = tuple(_notes(settings, draft / MLFLOW, manifest, links))
    for path in (*(draft / name for name in sources), draft / MANIFEST, draft):
        _flush(path)
    return Backup(manifest, notes)


def _copy_artifacts(source: Path, target: Path) -> tuple[dict[str, Entry], int]:
    """Copy every ordinary file below `source`.

    Returns what was copied, by `artifacts/PATH`, and how many links and special files were left out.
    """
    others, copied = 0, {}
    target.mkdir()

    def fail(error: OSError) -> None:
        unmounted = source.is_symlink() and not source.exists()
        if unmounted or not isinstance(
            error, FileNotFoundError
        ):  # which was deleted meanwhile, or never made
            raise error

    for folder, folders, names in os.walk(source, onerror=fail):
        for path in (Path(folder, name) for name in (*names, *folders)):
            name = path.relative_to(source)
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                others += path.is_symlink() or path.exists()
            elif path.is_dir() or _PARTIAL.match(path.name):
                continue
            elif entry := _copy_artifact(path, target / name):
                copied[f"{ARTIFACTS}/{name.as_posix()}"] = entry
    return copied, others


def _copy_artifact(source: Path, target: Path) -> Entry | None:
    """Copy a file until nobody writes to it meanwhile; None for one that is deleted."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(ATTEMPTS):
        try:
            entry = copy_file(source, target)
            now, copied = source.lstat(), target.lstat()
        except FileNotFoundError:
            target.unlink(missing_ok=True)
            return None
        if (now.st_size, now.st_mtime_ns) == (copied.st_size, copied.st_mtime_ns):
            return entry
    raise StorageError(f"{source}: changes again and again while it is copied; try again later")


def _notes(settings: Settings, mlflow: Path, manifest: Manifest, links: int) -> Iterator[str]:
    if is_server(settings.mlflow_uri):
        yield f"left out: runs and registered models of {settings.mlflow_uri}; back them up where that server runs"
    for name in (STUDIES, MLFLOW):
        if (place := databases(settings).get(name)) and name not in manifest.files:
            yield f"left out: {name}, because there is no {place}"
    if links:
        yield f"left out: {links} links or special files among the artifacts"
    if manifest.revisions["mlflow"] is not None:
        with schema.TRACKING.opened(sqlite_url(mlflow)) as engine:
            strays = find_strays(engine, settings.artifacts)
        yield from (f"left out: the artifacts of {stray}" for stray in strays if not stray.former)


def _entry(path: Path) -> Entry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Entry(sha256=digest, bytes=path.stat().st_size)


def _flush(path: Path) -> None:
    """Have a file, or what a folder lists, on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
