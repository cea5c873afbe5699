"""Both databases of a project, Optuna's and MLflow's: made, migrated and looked at, by whoever sets a project up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from regtune.errors import SettingsError, StorageError
from regtune.settings import Settings
from regtune.storage import database_path, is_sqlite, studies_engine, studies_url, understood, writable_folder
from regtune.storage.locks import Holder, advisory_holders, file_holders
from regtune.storage.migration import make_studies, studies_schema, upgrade_studies
from regtune.storage.mlflow import make_store, store_url, tracking_schema, upgrade_store
from regtune.storage.schema import Schema
from regtune.storage.urls import place


@dataclass(frozen=True)
class Database:
    """One of the two. name: `studies` or `mlflow`. schema: None for a tracking server. done: `made` or `upgraded`."""

    name: str
    where: str
    schema: Schema | None
    done: str = ""

    @property
    def current(self) -> bool:
        """Whether it can be used as far as is known from here."""
        return self.schema is None or self.schema.state == "current"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        found: dict[str, Any] = {"database": self.name, "place": self.where}
        if self.schema is None:
            return {**found, "state": "server", "revision": None, "wanted": None}
        wanted = self.schema.tables.migrations.head
        return {**found, "state": self.schema.state, "revision": self.schema.revision, "wanted": wanted}

    def __str__(self) -> str:
        if self.schema is None:
            return f"{self.name}: {self.where} is a server; its database is set up where it runs"
        done = {"made": "tables made", "upgraded": "tables upgraded"}.get(
            self.done, f"{self.schema.state} already"
        )
        return f"{self.name}: {self.where}: {done} (revision {self.schema.revision})"


def check_databases(settings: Settings) -> list[Database]:
    """How both stand; nothing is changed. Raises StorageError, TrackingError, SettingsError."""
    _see_two(settings)
    studies = studies_schema(settings.storage_url)
    tracking = tracking_schema(settings.mlflow_uri)
    return [
        Database("studies", studies.where, studies),
        Database("mlflow", tracking.where if tracking else settings.mlflow_uri, tracking),
    ]


def init_databases(settings: Settings) -> list[Database]:
    """Make the tables of both, unless they are there; any number of processes may do so at once.

    With a tracking server as the store only Optuna's are made. Raises StorageError for tables that are another's or of
    another version, TrackingError, SettingsError.
    """
    found = check_databases(settings)
    _refuse([one for one in found if one.schema and not one.schema.blank and not one.current])
    if any(one.schema and is_sqlite(url) for one, url in zip(found, _urls(settings), strict=True)):
        writable_folder(settings.home.resolve())
    made = (
        make_studies(settings.storage_url) if not found[0].current else False,
        make_store(settings.mlflow_uri, settings.artifacts) if not found[1].current else False,
    )
    found = check_databases(settings)
    _refuse([one for one in found if not one.current])
    return [_with(one, "made" if done else "") for one, done in zip(found, made, strict=True)]


def upgrade_databases(settings: Settings) -> list[Database]:
    """Migrate the tables of both to what is installed here.

    Raises StorageError for tables that are missing, newer or another's, and while a sweep writes to the studies.
    """
    found = check_databases(settings)
    older = [one for one in found if one.schema and one.schema.state == "older"]
    _refuse([one for one in found if not one.current and one not in older])
    if older:
        running = running_sweeps(settings.storage_url)
        if running:
            raise StorageError(
                f"a sweep is run by {' and by '.join(map(str, running))}; the tables cannot be upgraded under it: "
                f"stop it first with Ctrl-C"
            )
    for one in older:
        if one.name == "studies":
            upgrade_studies(settings.storage_url)
        else:
            upgrade_store(settings.mlflow_uri)
    names = {one.name for one in older}
    found = check_databases(settings)
    _refuse([one for one in found if not one.current])
    return [_with(one, "upgraded" if one.name in names else "") for one in found]


def running_sweeps(url: str) -> list[Holder]:
    """Who writes to the studies of this database, whatever its tables look like. Raises StorageError."""
    if is_sqlite(url):
        return file_holders(database_path(url).parent)
    engine = studies_engine(url)
    try:
        with understood(place(url)):
            return advisory_holders(engine)
    finally:
        engine.dispose()


def _urls(settings: Settings) -> tuple[str, str]:
    return studies_url(settings.storage_url), store_url(settings.mlflow_uri)


def _see_two(settings: Settings) -> None:
    """Raises SettingsError where both are the same: each library would take the other's revision for its own."""
    studies, tracking = _urls(settings)
    if studies == tracking:
        raise SettingsError(
            f"OPTUNA_STORAGE and MLFLOW_TRACKING_URI both name {place(studies)}; give each a database of its own"
        )


def _refuse(found: list[Database]) -> None:
    problems = [one.schema.problem for one in found if one.schema]
    if problems:
        raise StorageError("\n".join(problems))


def _with(one: Database, done: str) -> Database:
    return Database(one.name, one.where, one.schema, done)
