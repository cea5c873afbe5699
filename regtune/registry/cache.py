"""The cache of pulled versions on this machine: what is pulled while MLflow is away.

Each store has a folder, in it one for each version, named by the digest of its manifest, and a file for each
``NAME@alias`` that says which version it was last. Whoever takes a version checks it: nothing here is trusted.
"""

from __future__ import annotations

import hashlib
import shutil
from datetime import UTC, datetime
from pathlib import Path

from platformdirs import user_cache_path
from pydantic import Field, ValidationError

from regtune.config.trial import Frozen
from regtune.settings import Settings
from regtune.storage import is_sqlite
from regtune.storage.locks import lock

LOCK_SECONDS = 60.0


class Found(Frozen):
    """The version that ``NAME@alias`` named. digest: of its manifest. at: when MLflow said so, ISO 8601 in UTC."""

    name: str
    alias: str
    number: int
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    at: str


class Cache:
    """The cache of one store; a SQLite file has none, because it cannot be away, nor has an account without a home.

    `keep` raises OSError and StorageError.
    """

    def __init__(self, settings: Settings) -> None:
        key = hashlib.sha256(settings.mlflow_uri.encode()).hexdigest()[:16]
        home, has_one = user_cache_path("regtune"), not is_sqlite(settings.mlflow_uri)
        self._folder = home / "models" / key if has_one and home.is_absolute() else None

    def last(self, name: str, alias: str) -> Found | None:
        """What ``NAME@alias`` was when MLflow was asked last; None where that is not known."""
        if self._folder is None:
            return None
        try:
            return Found.model_validate_json((self._folder / _file(name, alias)).read_bytes())
        except (OSError, ValidationError):
            return None

    def take(self, digest: str, folder: Path) -> bool:
        """Copy a version into `folder`, which is made; return whether there is one. It is still to be checked."""
        if self._folder is None or not (self._folder / digest).is_dir():
            return False
        shutil.copytree(self._folder / digest, folder)
        return True

    def keep(self, found: Found, files: Path | None = None) -> None:
        """Remember which version an alias named, with its files where they are given; forget what none names.

        What MLflow said later stays, unless this machine's clock was set back since.
        """
        if self._folder is None:
            return
        with lock(self._folder, "cache", LOCK_SECONDS):
            known = self.last(found.name, found.alias)
            if known is not None and found.at < known.at <= datetime.now(UTC).isoformat():
                return
            fresh = self._folder / "new"
            if files is not None:
                shutil.rmtree(fresh, ignore_errors=True)
                shutil.rmtree(self._folder / found.digest, ignore_errors=True)
                shutil.copytree(files, fresh)
                fresh.rename(self._folder / found.digest)
            written = self._folder / "new.json"
            written.write_text(found.model_dump_json(), encoding="utf-8")
            written.replace(self._folder / _file(found.name, found.alias))
            self._forget(self._folder)

    def _forget(self, folder: Path) -> None:
        named = {"locks"}
        for file in folder.glob("*.json"):
            try:
                named.add(Found.model_validate_json(file.read_bytes()).digest)
            except ValidationError:
                file.unlink(missing_ok=True)
        for one in folder.iterdir():
            if one.is_dir() and one.name not in named:
                shutil.rmtree(one, ignore_errors=True)


def _file(name: str, alias: str) -> str:
    return f"{hashlib.sha256(f'{name}@{alias}'.encode()).hexdigest()}.json"
