"""Schemas: the revision of a database's tables, and whether the installed packages can use them.

Optuna and MLflow both migrate their tables with Alembic and both keep the revision in a table `alembic_version`, which
is why they never share a database. What this installation wants is read from the migrations that they carry, without
importing them.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import sqlalchemy
from sqlalchemy import Connection, Engine, text

from regtune.errors import StorageError
from regtune.storage.optuna import MIGRATIONS

State = Literal["missing", "empty", "unfinished", "current", "older", "newer", "foreign"]
ACCOUNTS = "alembic_version_auth"
"""MLflow's accounts have a version table of their own and may lie in its database, before its other tables do."""
_LINE = re.compile(r"^(down_)?revision\s*(?::[^=]*)?=\s*[\"'](.+?)[\"']", re.MULTILINE)


@dataclass(frozen=True)
class Tables:
    """Whose tables a database holds.

    name: as `db check` calls it. owner: the library. variable: the setting that names the database. package, folder:
    where its migrations lie. mark: a table that only it has. content: a table without rows while nothing is recorded.
    """

    name: str
    owner: str
    variable: str
    package: str
    folder: str
    mark: str
    content: str

    @property
    def migrations(self) -> Migrations:
        return _migrations(self.package, self.folder)


STUDIES = Tables("studies", "Optuna", "OPTUNA_STORAGE", "optuna", MIGRATIONS, "version_info", "studies")
TRACKING = Tables(
    "mlflow",
    "MLflow",
    "MLFLOW_TRACKING_URI",
    "mlflow",
    "store/db_migrations/versions",
    "experiments",
    "experiments",
)


@dataclass(frozen=True)
class Migrations:
    """What an installed library can migrate. head: the revision that it reads and writes. known: every one."""

    head: str
    known: frozenset[str]


@dataclass(frozen=True)
class Schema:
    """How a database stands.

    revision: of its tables; None where there are none, or none that says so. state: `missing` (no file), `empty`,
    `unfinished` (a creation that was cut off), `current`, `older`, `newer` than what is installed, or `foreign`.
    """

    tables: Tables
    where: str
    state: State
    revision: str | None = None

    @property
    def blank(self) -> bool:
        """Whether tables can be made here without touching anything."""
        return self.state in ("missing", "empty", "unfinished")

    @property
    def problem(self) -> str:
        """What is wrong and what to do about it, in one line; empty for one that can be used."""
        owner, wanted = self.tables.owner, self.tables.migrations.head
        if self.state == "current":
            return ""
        if self.blank:
            return f"{self.where}: has no tables yet; create them with: regtune db init"
        if self.state == "foreign":
            what = "Optuna studies" if self.tables is STUDIES else "MLflow runs"
            return f"{self.where}: not a database of {what}; set {self.tables.variable} to another one"
        tables = f"{self.where}: its tables are of"
        if self.state == "newer":
            return f"{tables} a newer {owner} ({self.revision}, here {wanted}); use a newer regtune"
        revision = self.revision or "before all revisions"
        return f"{tables} an older {owner} ({revision}, here {wanted}); try: regtune db upgrade"


def look(engine: Engine, tables: Tables, where: str) -> Schema:
    """How the database of `engine` stands; nothing is written. Raises what the database's driver raises."""
    with engine.connect() as connection:
        names = set(sqlalchemy.inspect(connection).get_table_names())
        ours = {name for name in names if not name.startswith("alembic_")}
        if not ours or (tables is TRACKING and tables.mark not in names and ACCOUNTS in names):
            return Schema(tables, where, "empty")
        other = TRACKING if tables is STUDIES else STUDIES
        if tables.mark not in names or other.mark in names:
            return Schema(tables, where, "foreign")
        revision: str | None = None
        if "alembic_version" in names:
            revision = connection.scalar(text("SELECT version_num FROM alembic_version"))
        return Schema(tables, where, _state(connection, tables, names, revision), revision)


def _state(connection: Connection, tables: Tables, names: set[str], revision: str | None) -> State:
    if revision is None:
        filled = tables.content in names and connection.scalar(
            sqlalchemy.select(sqlalchemy.literal(1)).select_from(sqlalchemy.table(tables.content)).limit(1)
        )
        return "older" if filled else "unfinished"
    found = tables.migrations
    if revision == found.head:
        return "current"
    return "older" if revision in found.known else "newer"


def check_studies(engine: Engine, where: str) -> bool:
    """Whether Optuna's tables are there. Raises StorageError when they are of another version, or another's."""
    found = look(engine, STUDIES, where)
    if found.state != "current" and not (found.blank and engine.dialect.name == "sqlite"):
        raise StorageError(found.problem)
    return found.state == "current"


@lru_cache
def _migrations(package: str, folder: str) -> Migrations:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    files = Path(spec.submodule_search_locations[0], folder).glob("*.py")
    lines = [found for path in files for found in _LINE.findall(path.read_text(encoding="utf-8"))]
    known = {revision for down, revision in lines if not down}
    heads = known - {revision for down, revision in lines if down}
    assert len(heads) == 1, f"{package} {folder}: {sorted(heads)}"
    return Migrations(heads.pop(), frozenset(known))
