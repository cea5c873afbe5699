"""How a project folder stands: its server, its databases, what MLflow lacks, disk, and who runs a sweep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import sqlalchemy
from sqlalchemy import Engine

from regtune.errors import RegtuneError
from regtune.server.databases import running_sweeps
from regtune.server.service import processes, running
from regtune.settings import Settings
from regtune.storage import database_path, is_sqlite, open_engine, place, studies_engine, understood
from regtune.storage.artifacts import Stray
from regtune.storage.health import SECONDS, trouble
from regtune.storage.migration import studies_schema
from regtune.storage.mlflow import is_server, tracking_engine, tracking_schema
from regtune.storage.schema import Schema
from regtune.study.board.tables import reading, studies_of_regtune
from regtune.study.ownership import holder
from regtune.sweep.plan import free_bytes
from regtune.tracking.folder import sync
from regtune.tracking.page import trials_page
from regtune.tracking.sync import Missing, strays


@dataclass(frozen=True)
class ServerStatus:
    """The tracking server. state: `running`, `silent` (MLflow does not answer), `parts` (of one that was killed) or
    `none`. foreign: named by MLFLOW_TRACKING_URI. since: ISO 8601, of this folder's own. auth: None where unknown.
    page: of the newest sweep's trials. problem: what is wrong with the answer; empty where nothing is.
    """

    state: str
    url: str | None = None
    foreign: bool = False
    since: str | None = None
    auth: bool | None = None
    page: str | None = None
    problem: str = ""


@dataclass(frozen=True)
class DatabaseStatus:
    """One database. state: as `Schema` has it, `server` where a tracking server keeps it, `away` where it cannot be
    asked. size_bytes: None where unknown. problem: what is wrong, and what to do; empty for one that can be used.
    """

    name: str
    place: str
    state: str
    revision: str | None = None
    size_bytes: int | None = None
    problem: str = ""


@dataclass(frozen=True)
class Status:
    """How a folder stands.

    behind: study -> what MLflow lacks of it, as `regtune sync --check` finds it; None where MLflow or the studies
    cannot be asked. strays: where else its own store keeps artifacts. running: study -> who runs it. free_bytes: on the
    folder's file system.
    """

    home: str
    server: ServerStatus
    databases: tuple[DatabaseStatus, ...]
    behind: dict[str, Missing] | None
    strays: tuple[Stray, ...]
    running: dict[str, str]
    free_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        behind = {study: lacks.to_json() for study, lacks in (self.behind or {}).items()}
        return asdict(replace(self, behind=None)) | {"behind": None if self.behind is None else behind}


def look(settings: Settings) -> Status:
    """Look at everything; what is away is said, nothing is changed and nothing raised for it."""
    server = _server(settings)
    return Status(
        home=str(settings.home.resolve()),
        server=server,
        databases=(_studies(settings), _mlflow(settings)),
        behind=None if server.foreign and server.problem else _behind(settings),
        strays=_strays(settings),
        running=_running(settings),
        free_bytes=free_bytes(settings.home),
    )


def _server(settings: Settings) -> ServerStatus:
    found = _found_server(settings)
    if found.state != "running" or found.url is None:
        return found
    return replace(found, page=trials_page(found.url, seconds=SECONDS))


def _found_server(settings: Settings) -> ServerStatus:
    if is_server(settings.tracking_uri):
        wrong = trouble(settings.tracking_uri)
        return ServerStatus(
            "silent" if wrong else "running", settings.tracking_uri, foreign=True, problem=wrong
        )
    found = running(settings)
    if found is None:
        return ServerStatus("parts" if processes(settings.home) else "none")
    wrong = "" if found.answers() else "does not answer"
    state = "silent" if wrong else "running"
    return ServerStatus(state, found.url, since=found.since, auth=found.auth, problem=wrong)


def _studies(settings: Settings) -> DatabaseStatus:
    return _database("studies", settings.storage_url, studies_schema, studies_engine)


def _mlflow(settings: Settings) -> DatabaseStatus:
    if is_server(settings.mlflow_uri):
        return DatabaseStatus("mlflow", settings.mlflow_uri, "server")
    return _database("mlflow", settings.mlflow_uri, tracking_schema, tracking_engine)


def _database(
    name: str, url: str, schema_of: Callable[[str], Schema | None], engine_of: Callable[[str], Engine]
) -> DatabaseStatus:
    where = place(url)
    try:
        found = schema_of(url)
        assert found is not None
        size = None if found.state == "missing" else _size(url, engine_of)
    except RegtuneError as error:
        return DatabaseStatus(name, where, "away", problem=str(error).splitlines()[0])
    return DatabaseStatus(name, where, found.state, found.revision, size, _problem(found, url))


def _problem(found: Schema, url: str) -> str:
    """A SQLite file that is not there is no problem: the first sweep makes it."""
    return "" if found.blank and is_sqlite(url) else found.problem


def _size(url: str, engine_of: Callable[[str], Engine]) -> int:
    """Bytes on disk: of the file with its write-ahead log, or as PostgreSQL counts them."""
    if is_sqlite(url):
        path = database_path(url)
        files = (path, path.with_name(f"{path.name}-wal"))
        return sum(file.stat().st_size for file in files if file.exists())
    engine = engine_of(url)
    try:
        with understood(place(url)), engine.connect() as connection:
            return int(connection.scalar(sqlalchemy.text("SELECT pg_database_size(current_database())")) or 0)
    finally:
        engine.dispose()


def _behind(settings: Settings) -> dict[str, Missing] | None:
    found = {}
    try:
        for entry in sync(settings, check=True, tell=lambda study, done, count: None):
            if entry.problem:
                return None
            if entry.lacks:
                found[entry.study] = entry.lacks
    except RegtuneError:  # what is away has its own line
        return None
    return found


def _strays(settings: Settings) -> tuple[Stray, ...]:
    try:
        return tuple(strays(settings))
    except RegtuneError:  # the database's own line says so
        return ()


def _running(settings: Settings) -> dict[str, str]:
    try:
        if not running_sweeps(settings.storage_url):
            return {}
        engine = open_engine(settings.storage_url)
    except RegtuneError:  # the database's own line says so
        return {}
    try:
        with reading(engine) as connection:
            names = studies_of_regtune(connection)
        return {name: str(who) for name in names if (who := holder(settings, name))}
    except RegtuneError:
        return {}
    finally:
        engine.dispose()
