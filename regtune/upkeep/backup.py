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
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, ValidationError, field_validator

from regtune import __version__
from regtune.errors import InputError, StorageError
from regtune.server.databases import check_databases
from regtune.settings import Settings, is_own_postgres, sqlite_url
from regtune.storage import database_path, is_sqlite, lock, parse_url, redact, schema, sqlite, understood
from regtune.storage.mlflow import is_server
from regtune.storage.postgres import Embedded
from regtune.study.study import versions

MANIFEST = "manifest.json"
STUDIES, MLFLOW, ACCOUNTS, ARTIFACTS = "studies.db", "mlflow.db", "auth.db", "artifacts"
ATTEMPTS = 5
LOCK_SECONDS = 2
"""Another backup of the same folder is not waited for."""
Tell = Callable[[int, int], None]
"""Told how many bytes of how many are copied."""
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

    folder: Path
    manifest: Manifest
    notes: tuple[str, ...]


def make_backup(settings: Settings, folder: Path, tell: Tell = lambda _, __: None) -> Backup:
    """Copy both databases, the accounts and all artifacts into `folder`: a new or empty one, or an earlier backup.

    Raises:
        InputError: `folder` is another one, or the databases are PostgreSQL's: the message says what to run.
        StorageError: a database is missing, damaged or another program's, or the disk is full.
    """
    require_sqlite(settings, folder, "backup")
    folder = folder.expanduser().absolute()
    _check_place(settings, folder)
    sources = _sources(settings)
    draft, earlier = (folder.with_name(f"{folder.name}.{end}") for end in ("new", "old"))
    with understood(folder), lock(settings.home.resolve(), "backup", LOCK_SECONDS):
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        try:
            backup = _copy(settings, sources, draft, folder, tell)
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
        beside = (folder.with_name(folder.name + end) for end in (".old", ".new"))
        earlier = next((near for near in beside if (near / MANIFEST).exists()), None)
        hint = f"; {earlier} is one: a backup that was to replace it was interrupted" if earlier else ""
        raise InputError(f"{folder}: not a backup, there is no {MANIFEST} in it{hint}") from None
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
    """Copy an ordinary file with its times; never what a link points to. Raises OSError."""
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as reading, target.open("wb") as writing:
        shutil.copyfileobj(reading, writing)
        status = os.fstat(reading.fileno())
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    return _entry(target)


def require_sqlite(settings: Settings, folder: Path, verb: Literal["backup", "restore"]) -> None:
    """Raise InputError for databases of PostgreSQL, with the lines to run instead.

    Passwords come from PGPASSWORD, PGPASSFILE or ~/.pgpass and stand in none of the lines.
    """
    urls = {"mlflow": settings.mlflow_uri, "studies": settings.storage_url}
    if all(is_sqlite(url) or is_server(url) for url in urls.values()):
        return
    backing_up = verb == "backup"
    lines = ["PostgreSQL is restored by its own programs; run, with nothing else connected to it:"]
    if backing_up:
        passwords = "with its passwords in PGPASSWORD or ~/.pgpass"
        lines = [f"PostgreSQL is backed up by its own programs; run, {passwords}:"]
        lines.append(f"  mkdir -p {shlex.quote(str(folder))}")
    for name, url in urls.items():
        dump = shlex.quote(str(folder / f"{name}.dump"))
        if is_server(url):
            lines.append(f"  # the runs of {redact(url)}: {verb} them where that server runs")
        elif is_sqlite(url):
            file = str(folder / f"{name}.db").replace("\\", "\\\\").replace('"', '\\"')  # as its shell quotes
            command = shlex.quote(f'.{verb} "{file}"')
            lines.append(f"  sqlite3 {shlex.quote(str(database_path(url)))} {command}")
        else:
            connection = shlex.quote(parse_url(url).set(drivername="postgresql").render_as_string())
            program = "pg_dump" if backing_up else "pg_restore"
            if is_own_postgres(url):  # an older one on the PATH would not read it
                program = shlex.quote(str(Embedded(settings.home).program(program)))
            options = "--clean --if-exists --no-owner --exit-on-error --single-transaction"
            restoring, dumping = f"{options} --dbname={connection} {dump}", f"--format=custom --file={dump}"
            lines.append(f"  {program} {f'{dumping} {connection}' if backing_up else restoring}")
    home, archive = shlex.quote(str(settings.home)), shlex.quote(str(folder / "artifacts.tar"))
    lines.append(f"  tar -C {home} {f'-cf {archive} artifacts' if backing_up else f'-xf {archive}'}")
    raise InputError("\n".join(lines))


def _check_place(settings: Settings, folder: Path) -> None:
    """Raise InputError for a folder whose content would be lost, or that would be copied into itself."""
    another = "name another folder"
    if folder.is_relative_to(settings.artifacts) or settings.artifacts.is_relative_to(folder):
        raise InputError(f"{folder}: a backup cannot be inside the folder that it copies; {another}")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"{folder}: expected a folder")
    if folder.is_dir() and any(folder.iterdir()):
        try:
            read_manifest(folder)
        except InputError:
            raise InputError(f"{folder}: is not empty and not an earlier backup; {another}") from None


def _sources(settings: Settings) -> dict[str, Path]:
    """The databases that exist. Raises StorageError for none, and for one that is another program's."""
    for one in check_databases(settings):
        if one.schema and one.schema.state == "foreign":
            raise StorageError(one.schema.problem)
    known = databases(settings).items()
    sources = {name: path for name, path in known if path.exists() and path.stat().st_size}
    if not {STUDIES, MLFLOW} & sources.keys():
        raise StorageError(f"{settings.home.resolve()}: there is nothing to back up yet")
    return sources


def _copy(settings: Settings, sources: dict[str, Path], draft: Path, folder: Path, tell: Tell) -> Backup:
    files: dict[str, Entry] = {}
    for name, source in sources.items():
        sqlite.copy(source, draft / name)
        sqlite.check(draft / name)
        shutil.copymode(source, draft / name)
        files[name] = _entry(draft / name)
    copied, links = _copy_artifacts(settings.artifacts, draft / ARTIFACTS, tell)
    manifest = Manifest(
        made=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        versions={**versions(), "regtune": __version__, "sqlite": sqlite3.sqlite_version},
        revisions={
            "studies": schema.schema_of(sqlite_url(draft / STUDIES), schema.STUDIES).revision,
            "mlflow": schema.schema_of(sqlite_url(draft / MLFLOW), schema.TRACKING).revision,
        },
        artifacts=settings.artifacts.as_uri(),
        files=dict(sorted((files | copied).items())),
    )
    (draft / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    notes = tuple(_notes(settings, draft / MLFLOW, manifest, links))
    for path in (*(draft / name for name in sources), draft / MANIFEST, draft):
        _flush(path)
    return Backup(folder, manifest, notes)


def _copy_artifacts(source: Path, target: Path, tell: Tell) -> tuple[dict[str, Entry], int]:
    """Copy every ordinary file below `source`, those that change meanwhile again.

    Returns what was copied, by `artifacts/PATH`, and how many links and special files were left out.
    """
    others, sizes = 0, {}
    for folder, folders, names in os.walk(source):
        for path in (Path(folder, name) for name in (*names, *folders)):
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                others += path.is_symlink() or path.exists()
            elif path.is_file() and not _PARTIAL.match(path.name):
                sizes[path.relative_to(source)] = path.stat().st_size
    target.mkdir()
    copied: dict[Path, Entry] = {}
    waiting, done = list(sizes), 0
    for _ in range(ATTEMPTS):
        for name in waiting:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                copied[name] = copy_file(source / name, target / name)
            except FileNotFoundError:  # deleted meanwhile
                copied.pop(name, None)
                (target / name).unlink(missing_ok=True)
            done += sizes[name]
            tell(min(done, sum(sizes.values())), sum(sizes.values()))
        waiting = [name for name in copied if _changed(source / name, target / name)]
        if not waiting:
            return {f"{ARTIFACTS}/{name.as_posix()}": entry for name, entry in copied.items()}, others
    raise StorageError(f"{source / waiting[0]}: changes again and again while it is copied; try again later")


def _changed(source: Path, copy: Path) -> bool:
    """Whether a file was written to since it was copied; one that was deleted was not."""
    try:
        now, then = source.lstat(), copy.lstat()
    except FileNotFoundError:
        return False
    return (now.st_size, now.st_mtime_ns) != (then.st_size, then.st_mtime_ns)


def _notes(settings: Settings, mlflow: Path, manifest: Manifest, links: int) -> Iterator[str]:
    if is_server(settings.mlflow_uri):
        yield f"left out: runs and registered models of {settings.mlflow_uri}; back them up where that server runs"
    if links:
        yield f"left out: {links} links or special files among the artifacts"
    if manifest.revisions["mlflow"] is not None:
        inside = settings.artifacts.as_uri() + "/"
        with closing(sqlite3.connect(mlflow)) as connection:
            count = connection.execute(
                "SELECT count(*) FROM runs WHERE artifact_uri IS NOT NULL "
                "AND artifact_uri NOT LIKE 'mlflow-artifacts:%' AND substr(artifact_uri, 1, ?) <> ?",
                (len(inside), inside),
            ).fetchone()[0]
        if count:
            yield f"left out: the artifacts of {count} runs, which are not in {settings.artifacts}"


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
