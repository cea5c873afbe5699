"""The artifact locations that an MLflow store remembers, also after its folder was moved or copied.

A folder's own store is re-based on the folder that it lies in. Whatever else a store says, files are written and
deleted in the project's own artifacts alone: `inside` is asked before each.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import sqlalchemy
from sqlalchemy import Connection, Engine, make_url, text

from regtune.settings import is_own_postgres, socket_folder
from regtune.storage.engines import database_path, is_sqlite
from regtune.storage.locks import schema_lock

_BASE = re.compile(r"(file:///.*/artifacts)/runs(/\d+)?")
"""An experiment's place as regtune and its server make them; the first group is the folder of all artifacts."""


def inside(uri: str, artifacts: Path) -> bool:
    """Return whether a run's files may be written and deleted: a server's, and those in the project's own folder."""
    path = local_path(uri)
    return path is None or (artifacts / "runs").resolve() in path.resolve().parents


def local_path(uri: str) -> Path | None:
    """The path of a place on this machine, as MLflow reads it; None for one that a server or a service keeps."""
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file"):
        return None
    return Path(url2pathname(parts.path if parts.scheme else uri))


def remove(uri: str, tracking_uri: str, name: str = "") -> None:
    """Remove a run's artifact `name`, or without one all of them and their folder.

    What lies on this machine is removed here: MLflow reads its path as a URI twice, and where a folder's name has a
    `%41` in it, removes what lies in another folder. Raises OSError and what MLflow raises.
    """
    folder = local_path(uri)
    if folder is None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        get_artifact_repository(uri, tracking_uri).delete_artifacts(name or None)
    elif name:
        (folder / Path(name).name).unlink(missing_ok=True)
    elif folder.is_dir():
        shutil.rmtree(folder)
        with suppress(OSError):  # somebody has put something beside it
            folder.parent.rmdir()


def is_own(uri: str, artifacts: Path) -> bool:
    home = artifacts.parent
    if is_sqlite(uri):
        return database_path(uri).parent == home
    return is_own_postgres(uri) and make_url(uri).query["host"] == str(socket_folder(home))


def rebase(engine: Engine, uri: str, artifacts: Path) -> None:
    """Have a folder's own store keep its artifacts where the folder lies now. Raises StorageError, SQLAlchemyError."""
    if not is_own(uri, artifacts):
        return
    with engine.connect() as connection:
        if not former(connection, artifacts):
            return
    with schema_lock(engine), engine.begin() as connection:
        for old in former(connection, artifacts):
            _relocate(connection, old, artifacts.as_uri())


def former(connection: Connection, artifacts: Path) -> list[str]:
    """URIs of the folders of artifacts that this store's folder had before it was moved or copied.

    Another folder is taken for one of them when the store was made there (MLflow's own first experiment says so), or
    when artifacts of its runs lie here. Otherwise it is another project's, which writes to this store, too.
    """
    earlier: list[str] = []
    experiments = text("SELECT experiment_id, artifact_location FROM experiments ORDER BY experiment_id")
    runs_of = text("SELECT run_uuid FROM runs WHERE experiment_id = :experiment")
    for experiment, location in connection.execute(experiments).all():
        matched = _BASE.fullmatch(location or "")
        if matched is None or matched[1] in (artifacts.as_uri(), *earlier):
            continue
        folder = artifacts / "runs" / (matched[2] or "/").removeprefix("/")
        runs = connection.scalars(runs_of, {"experiment": experiment}).all()
        if experiment == 0 or any((folder / run).is_dir() for run in runs):
            earlier.append(matched[1])
    return earlier


@dataclass(frozen=True)
class Stray:
    """A folder elsewhere that a store uses, too. former: where the project's own lay before it was moved or copied."""

    folder: str
    experiments: int
    former: bool

    def __str__(self) -> str:
        where = "outside this folder: regtune writes and deletes nothing there"
        if self.former:
            where = "where this folder lay before"
        return f"{self.experiments} experiment{'s' * (self.experiments != 1)} in {self.folder}, {where}"


def find_strays(engine: Engine, artifacts: Path) -> list[Stray]:
    """Where else than in `artifacts` a store keeps some. Raises SQLAlchemyError."""
    with engine.connect() as connection:
        locations = connection.scalars(text("SELECT artifact_location FROM experiments")).all()
        earlier = {local_path(base) for base in former(connection, artifacts)}
    experiments: Counter[Path] = Counter()
    for location in filter(None, locations):
        matched = _BASE.fullmatch(location)
        folder = local_path(matched[1] if matched else location)
        if folder is not None and not {artifacts, artifacts / "runs"} & {folder, *folder.parents}:
            experiments[folder] += 1
    return [Stray(str(folder), count, folder in earlier) for folder, count in sorted(experiments.items())]


def _relocate(connection: Connection, old: str, new: str) -> None:
    """Have every place in MLflow's tables that begins with the URI or the path `old` begin with `new`."""
    pairs = [(old, new), (unquote(urlsplit(old).path), unquote(urlsplit(new).path))]
    inspector = sqlalchemy.inspect(connection)
    for name in inspector.get_table_names():
        for column in inspector.get_columns(name):
            kind = column["type"]
            is_text = isinstance(kind, sqlalchemy.String) and not isinstance(kind, sqlalchemy.Enum)
            if not is_text or column.get("computed"):
                continue
            table = sqlalchemy.table(name, sqlalchemy.column(column["name"]))
            (cell,) = table.columns
            for before, after in pairs:
                begins = sqlalchemy.func.substr(cell, 1, len(before) + 1) == f"{before}/"
                rest = sqlalchemy.func.substr(cell, len(before) + 1)
                changed = {cell: sqlalchemy.literal(after).concat(rest)}
                connection.execute(table.update().where((cell == before) | begins).values(changed))
