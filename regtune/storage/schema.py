"""Tables of Optuna and of MLflow: their revisions, how they are made and migrated.

Both libraries migrate their tables with Alembic and both keep the revision in a table `alembic_version`, which is why
they never share a database. What this installation wants is read from the migrations that they carry, without importing
them. Tables are made and migrated once, under a lock: several processes that do so at once trip over each other.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import sqlalchemy
from sqlalchemy import Connection, Engine, text

from regtune.credentials import STORAGE_PASSWORD, TRACKING_PASSWORD, secret
from regtune.errors import StorageError
from regtune.settings import sqlite_url
from regtune.storage import sqlite
from regtune.storage.engines import database_path, engine_options, full_url, give_password, is_sqlite, place
from regtune.storage.locks import schema_lock
from regtune.storage.troubles import understood, writable_folder

State = Literal["missing", "empty", "unfinished", "current", "older", "newer", "foreign", "server"]
ACCOUNTS = "alembic_version_auth"
"""MLflow's accounts have a version table of their own and may lie in its database, before its other tables do."""
_LINE = re.compile(r"^(down_)?revision\s*(?::[^=]*)?=\s*[\"'](.+?)[\"']", re.MULTILINE)


class Migrations(NamedTuple):
    """What an installed library can migrate. head: the revision that it reads and writes. known: every one."""

    head: str
    known: frozenset[str]


@dataclass(frozen=True)
class Tables:
    """Whose tables a database holds.

    name: as `db check` calls it. records: what they hold. variable, password: the settings that name the database and
    its password. folder: of the library's migrations. mark: a table that only it has. content: a table without rows
    while nothing is recorded.
    """

    name: str
    owner: str
    records: str
    variable: str
    password: str
    folder: str
    mark: str
    content: str

    @cached_property
    def migrations(self) -> Migrations:
        spec = importlib.util.find_spec(self.owner.lower())
        assert spec is not None
        assert spec.submodule_search_locations
        files = Path(spec.submodule_search_locations[0], self.folder).glob("*.py")
        lines = [line for path in files for line in _LINE.findall(path.read_text(encoding="utf-8"))]
        known = {revision for down, revision in lines if not down}
        (head,) = known - {revision for down, revision in lines if down}
        return Migrations(head, frozenset(known))

    def engine(self, url: str) -> Engine:
        """Return an engine on the database `url`; from then on this process has its password."""
        url = full_url(url, self.variable)
        if not is_sqlite(url):
            give_password(url, secret(self.password))
        return sqlalchemy.create_engine(url, **engine_options(url))

    @contextmanager
    def opened(self, url: str) -> Iterator[Engine]:
        """An engine on the database `url` for a block. Raises StorageError for what a database raises in it."""
        engine = self.engine(url)
        try:
            with understood(place(url)):
                yield engine
        finally:
            engine.dispose()


STUDIES = Tables(
    "studies",
    "Optuna",
    "Optuna studies",
    "OPTUNA_STORAGE",
    STORAGE_PASSWORD,
    "storages/_rdb/alembic/versions",  # `RDBStorage.get_head_version` needs an open storage, and Optuna's import
    "version_info",
    "studies",
)
TRACKING = Tables(
    "mlflow",
    "MLflow",
    "MLflow runs",
    "MLFLOW_TRACKING_URI",
    TRACKING_PASSWORD,
    "store/db_migrations/versions",
    "experiments",
    "experiments",
)


@dataclass(frozen=True)
class Schema:
    """How a database stands.

    revision: of its tables; None where there are none, or none that says so. state: `missing` (no file), `empty`,
    `unfinished` (a creation that was cut off), `current`, `older`, `newer` than what is installed, `foreign`, or
    `server` where a tracking server keeps it.
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
        if self.state in ("current", "server"):
            return ""
        if self.blank:
            return f"{self.where}: has no tables yet; create them with: regtune db init"
        if self.state == "foreign":
            remedy = f"set {self.tables.variable} to another one"
            return f"{self.where}: not a database of {self.tables.records}; {remedy}"
        whose, remedy = "an older", "try: regtune db upgrade"
        if self.state == "newer":
            whose, remedy = "a newer", "use a newer regtune"
        revision = f"({self.revision or 'before all revisions'}, here {wanted})"
        return f"{self.where}: its tables are of {whose} {owner} {revision}; {remedy}"

    def to_json(self) -> dict[str, Any]:
        return {
            "database": self.tables.name,
            "place": self.where,
            "state": self.state,
            "revision": self.revision,
            "wanted": None if self.state == "server" else self.tables.migrations.head,
        }


def schema_of(url: str, tables: Tables) -> Schema:
    """How the database `url` stands; a SQLite file that is not there is not made. Raises StorageError."""
    if is_sqlite(url) and not database_path(url).exists():
        return Schema(tables, place(url), "missing")
    with tables.opened(url) as engine:
        return look(engine, tables)


def look(engine: Engine, tables: Tables) -> Schema:
    """How the database of `engine` stands; nothing is written. Raises what the database's driver raises."""
    where = place(engine.url.render_as_string())
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
        content = sqlalchemy.table(tables.content)
        rows = sqlalchemy.select(sqlalchemy.literal(1)).select_from(content).limit(1)
        return "older" if tables.content in names and connection.scalar(rows) else "unfinished"
    if revision == tables.migrations.head:
        return "current"
    return "older" if revision in tables.migrations.known else "newer"


def make_tables(url: str, tables: Tables, create: Callable[[str], None]) -> bool:
    """Create tables with `create`, which takes a URL, unless they exist; return whether it did. Raises StorageError.

    A SQLite database, in WAL mode, is there as a whole or not at all.
    """
    path = database_path(url) if is_sqlite(url) else None
    if path is not None:
        writable_folder(path.parent)
    with tables.opened(url) as engine, schema_lock(engine):
        if (path is None or path.exists()) and not look(engine, tables).blank:
            return False
        if path is None:
            create(full_url(url))
            return True
        engine.dispose()
        with sqlite.beside(path) as fresh:
            create(full_url(sqlite_url(fresh)))
        return True


def upgrade(url: str, tables: Tables, migrate: Callable[[str], None]) -> None:
    """Run `migrate` on the database `url` under its schema's lock, unless another process has just done it.

    In PostgreSQL a migration is one transaction. In SQLite it is not: there a copy is migrated, and its content put
    back in one transaction. Raises StorageError, and what `migrate` raises.
    """
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with tables.opened(url) as engine, schema_lock(engine):
        if look(engine, tables).state != "older":
            return
        if not is_sqlite(url):
            migrate(url)
            return
        engine.dispose()
        path = database_path(url)
        draft = path.with_name(f"{path.name}.upgrade")
        sqlite.discard(draft)
        try:
            with sqlite.unwritten(path) as still_so:
                sqlite.copy(path, draft)
                migrate(sqlite_url(draft))
                if not still_so():
                    written = "was written to meanwhile; stop what uses it, then run: regtune db upgrade"
                    raise StorageError(f"{path}: {written}")
                sqlite.copy(draft, path)
        finally:
            sqlite.discard(draft)
