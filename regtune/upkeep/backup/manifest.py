"""What a backup says of itself: which files it holds, their digests, and what made it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from regtune.errors import InputError, StorageError
from regtune.settings import Settings
from regtune.storage import database_path
from regtune.storage.mlflow import sqlite_path

MANIFEST = "manifest.json"
STUDIES, MLFLOW, ACCOUNTS, ARTIFACTS = "studies.db", "mlflow.db", "auth.db", "artifacts"
CHUNK_BYTES = 2**20


class Entry(BaseModel):
    """A file of a backup."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Manifest(BaseModel):
    """What a backup holds.

    made: local time, ISO 8601. versions: of what made it. revisions: of the tables of `studies` and `mlflow`, None for
    one that is not in it. artifacts: URI of the folder that the databases' artifacts lay in. files: by their paths.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

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
        """Bytes of all its files."""
        return sum(entry.bytes for entry in self.files.values())


def databases(settings: Settings) -> dict[str, Path]:
    """The SQLite files of a folder by their names in a backup, in the order in which they are copied."""
    mlflow = sqlite_path(settings.mlflow_uri)
    return {
        **({MLFLOW: mlflow} if mlflow else {}),
        STUDIES: database_path(settings.storage_url),
        ACCOUNTS: settings.home.resolve() / ACCOUNTS,
    }


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the backup in `folder`. Raises InputError when there is none, StorageError when it is damaged."""
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        earlier = next((near for end in (".old", ".new") if (near := _beside(folder, end))), None)
        hint = f"; {earlier} is one: a backup that replaced it was cut off" if earlier else ""
        raise InputError(f"{folder}: not a backup, there is no {MANIFEST} in it{hint}") from None
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        found = error.errors()[0]
        key = ".".join(str(part) for part in found["loc"]) or "JSON"
        message = found["msg"].removeprefix("Value error, ")
        raise StorageError(
            f"{path}: not a manifest that this version understands: {key}: {message}"
        ) from None


def _beside(folder: Path, end: str) -> Path | None:
    near = folder.with_name(folder.name + end)
    return near if (near / MANIFEST).exists() else None


def copy_file(source: Path, target: Path, tell: Callable[[int], None] = lambda _: None) -> Entry:
    """Copy an ordinary file, its times included; never what a link points to. Raises OSError.

    tell: told the bytes of each chunk.
    """
    found, size = hashlib.sha256(), 0
    descriptor = os.open(source, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0))
    with os.fdopen(descriptor, "rb") as reading, target.open("wb") as writing:
        while chunk := reading.read(CHUNK_BYTES):
            writing.write(chunk)
            found.update(chunk)
            size += len(chunk)
            tell(len(chunk))
        status = os.fstat(reading.fileno())
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    return Entry(sha256=found.hexdigest(), bytes=size)


def digest(path: Path) -> Entry:
    """Size and digest of a file. Raises OSError."""
    with path.open("rb") as file:
        return Entry(sha256=hashlib.file_digest(file, "sha256").hexdigest(), bytes=path.stat().st_size)


def sync(path: Path) -> None:
    """See that a file, or what a folder lists, is on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
