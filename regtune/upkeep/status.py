"""The state of a project folder: its server, its databases, what MLflow lacks, disk, and who runs a sweep."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

import sqlalchemy

from regtune.errors import RegtuneError
from regtune.server.databases import running_sweeps
from regtune.server.process import answers
from regtune.server.service import processes, running
from regtune.settings import Settings
from regtune.storage import database_path, is_sqlite, open_engine, place, redact
from regtune.storage.artifacts import Stray
from regtune.storage.mlflow import SECONDS, is_server, tracking_schema, trouble
from regtune.storage.schema import STUDIES, TRACKING, Tables, schema_of
from regtune.study.board.tables import reading, studies_of_regtune
from regtune.study.ownership import holder
from regtune.sweep.plan import free_bytes
from regtune.tracking.page import trials_page
from regtune.tracking.store import strays
from regtune.tracking.sync import Missing, sync

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class ServerStatus:
    """The tracking server.

    state: `running`, `silent` (MLflow does not answer), `parts` (of one that was killed) or `none`. foreign: named
    by MLFLOW_TRACKING_URI. since: ISO 8601, of this folder's own. auth: None where unknown. page: of the newest
    sweep's trials. problem: what is wrong with the answer; else empty.
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
    """One database.

    state: that of its `Schema`, `server` where a tracking server keeps it, `away` where it cannot be reached.
    size_bytes: None where unknown. problem: what is wrong and what to do; else empty.
    """

    name: str
    place: str
    state: str
    revision: str | None = None
    size_bytes: int | None = None
    problem: str = ""


@dataclass(frozen=True)
class Status:
    """The state of a folder.

    behind: study -> what MLflow lacks of it, as `regtune sync --check` finds it; None where nobody could look. strays:
    where else its own store keeps artifacts. running: study -> who runs it. free_bytes: on the folder's file system.
    """

    home: str
    server: ServerStatus
    databases: tuple[DatabaseStatus, ...]
    behind: dict[str, Missing] | None
    strays: tuple[Stray, ...]
    running: dict[str, str]
    free_bytes: int


def look(settings: Settings, compare: bool = True) -> Status:
    """Look at everything; change nothing, and raise nothing for what cannot be reached.

    compare: whether to look what MLflow lacks of the studies, which takes a second for 1,000 trials.
    """
    server = _server(settings)
    return Status(
        home=str(settings.home.resolve()),
        server=server,
        databases=(
            _database("studies", settings.storage_url, STUDIES),
            _database("mlflow", settings.mlflow_uri, TRACKING),
        ),
        behind=_reached(_behind, settings) if compare and not (server.foreign and server.problem) else None,
        strays=tuple(_reached(strays, settings) or ()),
        running=_reached(_running, settings) or {},
        free_bytes=free_bytes(settings.home),
    )


def _reached(read: Callable[[Settings], _Answer], settings: Settings) -> _Answer | None:
    """None for what cannot be reached: the database or server concerned has a line of its own."""
    with suppress(RegtuneError):
        return read(settings)
    return None


def _server(settings: Settings) -> ServerStatus:
    if is_server(settings.tracking_uri):
        url, problem = settings.tracking_uri, trouble(settings.tracking_uri)
        status = ServerStatus("silent" if problem else "running", url, foreign=True, problem=problem)
    elif service := running(settings):
        url, problem = service.url, "" if answers(service.url, SECONDS) else "does not answer"
        state = "silent" if problem else "running"
        status = ServerStatus(state, url, since=service.since, auth=service.auth, problem=problem)
    else:
        return ServerStatus("parts" if processes(settings.home) else "none")
    return status if problem else replace(status, page=trials_page(url, seconds=SECONDS))


def _database(name: str, url: str, tables: Tables) -> DatabaseStatus:
    where = redact(url)
    try:
        where = place(url)
        schema = tracking_schema(url) if tables is TRACKING else schema_of(url, tables)
        if schema is None:
            return DatabaseStatus(name, url, "server")
        size = None if schema.state == "missing" else _size(url, tables)
    except RegtuneError as error:
        return DatabaseStatus(name, where, "away", problem=str(error).splitlines()[0])
    problem = "" if schema.blank and is_sqlite(url) else schema.problem  # the first sweep creates it
    return DatabaseStatus(name, where, schema.state, schema.revision, size, problem)


def _size(url: str, tables: Tables) -> int:
    """Bytes on disk: of the file with its write-ahead log, or as PostgreSQL counts them."""
    if is_sqlite(url):
        path = database_path(url)
        files = (path, path.with_name(f"{path.name}-wal"))
        return sum(file.stat().st_size for file in files if file.exists())
    with tables.opened(url) as engine, engine.connect() as connection:
        return int(connection.scalar(sqlalchemy.text("SELECT pg_database_size(current_database())")) or 0)


def _behind(settings: Settings) -> dict[str, Missing] | None:
    entries = list(sync(settings, check=True, tell=lambda study, done, count: None))
    if any(entry.problem for entry in entries):
        return None
    return {entry.study: entry.lacks for entry in entries if entry.lacks}


def _running(settings: Settings) -> dict[str, str]:
    if not running_sweeps(settings.storage_url):
        return {}
    engine = open_engine(settings.storage_url)
    try:
        with reading(engine) as connection:
            names = studies_of_regtune(connection)
    finally:
        engine.dispose()
    return {name: str(who) for name in names if (who := holder(settings, name))}
