"""The state of a project folder: its server, its databases, disk, and who runs a sweep."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from regtune.errors import RegtuneError
from regtune.server.databases import running_sweeps
from regtune.server.service import processes, running
from regtune.settings import Settings
from regtune.storage import is_sqlite, open_engine, redact
from regtune.storage.artifacts import Stray
from regtune.storage.mlflow import SECONDS, is_server, tracking_schema, trouble
from regtune.storage.schema import STUDIES, Schema, schema_of
from regtune.study.ownership import holder
from regtune.study.tables import reading, studies_of_regtune
from regtune.tracking.page import trials_page
from regtune.tracking.store import strays


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

    state: that of its `Schema`, or `away` where it cannot be reached. problem: what is wrong and what to do; else
    empty.
    """

    name: str
    place: str
    state: str
    revision: str | None = None
    problem: str = ""


@dataclass(frozen=True)
class Status:
    """The state of a folder.

    strays: where else than in it its own store keeps artifacts. running: study -> who runs it. free_bytes: on the
    folder's file system.
    """

    home: str
    server: ServerStatus
    databases: tuple[DatabaseStatus, ...]
    strays: tuple[Stray, ...]
    running: dict[str, str]
    free_bytes: int


def look(settings: Settings) -> Status:
    """Look at everything; change nothing, and raise nothing for what cannot be reached."""
    elsewhere: list[Stray] = []
    sweeps: dict[str, str] = {}
    with suppress(RegtuneError):  # the database concerned has a line of its own
        elsewhere = strays(settings)
    with suppress(RegtuneError):
        sweeps = _running(settings)
    home = settings.home.resolve()
    existing = next(path for path in (home, *home.parents) if path.exists())
    return Status(
        home=str(home),
        server=_server(settings),
        databases=(
            _database("studies", settings.storage_url, lambda url: schema_of(url, STUDIES)),
            _database("mlflow", settings.mlflow_uri, tracking_schema),
        ),
        strays=tuple(elsewhere),
        running=sweeps,
        free_bytes=shutil.disk_usage(existing).free,
    )


def _server(settings: Settings) -> ServerStatus:
    if is_server(settings.tracking_uri):
        status = ServerStatus("running", settings.tracking_uri, foreign=True)
    elif service := running(settings):
        status = ServerStatus("running", service.url, since=service.since, auth=service.auth)
    else:
        return ServerStatus("parts" if processes(settings.home) else "none")
    url = str(status.url)
    if problem := trouble(url):
        return replace(status, state="silent", problem=problem)
    return replace(status, page=trials_page(url, seconds=SECONDS))


def _database(name: str, url: str, schema_of: Callable[[str], Schema]) -> DatabaseStatus:
    try:
        schema = schema_of(url)
    except RegtuneError as error:
        return DatabaseStatus(name, redact(url), "away", problem=str(error).splitlines()[0])
    problem = "" if schema.blank and is_sqlite(url) else schema.problem  # the first sweep creates it
    return DatabaseStatus(name, schema.where, schema.state, schema.revision, problem)


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
