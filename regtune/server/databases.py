"""Both databases of a project, Optuna's and MLflow's: creation, upgrade and state."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from regtune.errors import SettingsError, StorageError
from regtune.settings import Settings
from regtune.storage import database_path, full_url, is_sqlite, place, writable_folder
from regtune.storage.locks import Holder, advisory_holders, file_holders
from regtune.storage.mlflow import make_store, store_url, tracking_schema, upgrade_store
from regtune.storage.optuna import make_studies, upgrade_studies
from regtune.storage.schema import STUDIES, Schema, schema_of


@dataclass(frozen=True)
class Database:
    """One of the two. name: `studies` or `mlflow`. schema: None for a tracking server. done: `made` or `upgraded`."""

    name: str
    where: str
    schema: Schema | None
    done: str = ""

    @property
    def current(self) -> bool:
        return self.schema is None or self.schema.state == "current"

    def to_json(self) -> dict[str, Any]:
        schema = self.schema
        return {
            "database": self.name,
            "place": self.where,
            "state": schema.state if schema else "server",
            "revision": schema.revision if schema else None,
            "wanted": schema.tables.migrations.head if schema else None,
        }

    def __str__(self) -> str:
        if self.schema is None:
            return f"{self.name}: {self.where} is a server; its database is set up where it runs"
        done = f"tables {self.done}" if self.done else f"{self.schema.state} already"
        return f"{self.name}: {self.where}: {done} (revision {self.schema.revision})"


def check_databases(settings: Settings) -> list[Database]:
    """Return how both stand; change nothing. Raises StorageError, TrackingError, SettingsError."""
    if full_url(settings.storage_url) == store_url(settings.mlflow_uri):  # revisions would clash
        both = f"OPTUNA_STORAGE and MLFLOW_TRACKING_URI both name {place(settings.storage_url)}"
        raise SettingsError(f"{both}; give each a database of its own")
    studies, tracking = schema_of(settings.storage_url, STUDIES), tracking_schema(settings.mlflow_uri)
    where = tracking.where if tracking else settings.mlflow_uri
    return [Database("studies", studies.where, studies), Database("mlflow", where, tracking)]


def init_databases(settings: Settings) -> list[Database]:
    """Create the tables of both, unless they exist; any number of processes may do so at once.

    Raises StorageError for tables that are another program's or of another version, TrackingError, SettingsError.
    """
    studies, mlflow = before = check_databases(settings)
    _refuse([one for one in before if one.schema and not one.schema.blank and not one.current])
    if is_sqlite(settings.storage_url) or is_sqlite(settings.mlflow_uri):
        writable_folder(settings.home.resolve())
    made = set()
    if not studies.current and make_studies(settings.storage_url):
        made.add("studies")
    if not mlflow.current and make_store(settings.mlflow_uri, settings.artifacts):
        made.add("mlflow")
    return _done(settings, made, "made")


def upgrade_databases(settings: Settings) -> list[Database]:
    """Migrate the tables of both to the versions installed here; refused while a sweep runs. Raises StorageError."""
    before = check_databases(settings)
    older = {one.name for one in before if one.schema and one.schema.state == "older"}
    _refuse([one for one in before if not one.current and one.name not in older])
    if older and (sweeps := running_sweeps(settings.storage_url)):
        who = " and by ".join(map(str, sweeps))
        raise StorageError(f"a sweep is run by {who}; stop it first with Ctrl-C, then upgrade the tables")
    if "studies" in older:
        upgrade_studies(settings.storage_url)
    if "mlflow" in older:
        upgrade_store(settings.mlflow_uri)
    return _done(settings, older, "upgraded")


def running_sweeps(url: str) -> list[Holder]:
    """List who writes to the studies of this database, whatever its tables look like. Raises StorageError."""
    if is_sqlite(url):
        return file_holders(database_path(url).parent)
    with STUDIES.opened(url) as engine:
        return advisory_holders(engine)


def _done(settings: Settings, names: set[str], done: str) -> list[Database]:
    after = check_databases(settings)
    _refuse([one for one in after if not one.current])
    return [replace(one, done=done if one.name in names else "") for one in after]


def _refuse(databases: list[Database]) -> None:
    problems = [one.schema.problem for one in databases if one.schema]
    if problems:
        raise StorageError("\n".join(problems))
