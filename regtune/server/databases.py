"""The two databases of a folder, Optuna's and MLflow's: which they are, their creation, upgrade and state."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from sqlalchemy.engine import make_url

from regtune.errors import InputError, SettingsError, StorageError
from regtune.settings import OWN_DATABASES, Settings, is_own_postgres, read_choice, sqlite_url, write_choice
from regtune.storage import database_path, full_url, is_sqlite, parse_url, place, redact, writable_folder
from regtune.storage.locks import Holder, advisory_holders, file_holders
from regtune.storage.mlflow import make_store, store_url, tracking_schema, upgrade_store
from regtune.storage.optuna import make_studies, upgrade_studies
from regtune.storage.postgres import Embedded, make_database
from regtune.storage.schema import STUDIES, Schema, schema_of


def choose(settings: Settings, wanted: str | None, tell: Callable[[str], None]) -> None:
    """Have a folder use other databases, and start its own PostgreSQL if it uses that.

    wanted: `sqlite`, `postgres` for the folder's own, a server's URL, or None for what it uses. Raises InputError where
    the environment names databases or the URL cannot be used, StorageError where the server cannot, with the lines to
    run if it may not create databases.
    """
    home = settings.home.resolve()
    embedded, chosen = Embedded(home), read_choice(home)
    own = bool(chosen) and is_own_postgres(chosen["studies"])
    named = {"OPTUNA_STORAGE": settings.storage, "MLFLOW_TRACKING_URI": settings.tracking_uri}
    for variable, url in named.items():
        if wanted and url:
            said = f"{variable} names {place(url)}, which comes before a folder's choice"
            raise InputError(f"{said}; unset it, also in .env")
    if not wanted and not own:
        return
    if not wanted and not embedded.initialized:
        raise StorageError(
            f"{embedded.data}: the data of this folder's PostgreSQL are gone; restore them from a backup, or begin "
            f"anew: regtune up --postgres, or: regtune up --sqlite"
        )
    urls = {} if wanted == "sqlite" else urls_of(home, wanted or "postgres")
    if wanted == "sqlite":
        embedded.stop()
    elif wanted in ("postgres", None):
        embedded.start()
    else:
        _create(urls)
    if urls == chosen:
        return
    left = place(chosen["studies"]) if chosen else str(home / "studies.db")
    if chosen or (home / "studies.db").exists():
        option = "--sqlite" if not chosen else "--postgres" if own else "--postgres URL"
        tell(f"{left} is kept, but no longer used here; to go back to it: regtune down, regtune up {option}")
    write_choice(home, urls)


def urls_of(home: Path, wanted: str) -> dict[str, str]:
    """Return the URLs of both databases for what `choose` takes. Raises SettingsError, InputError."""
    if wanted == "postgres":
        return Embedded(home).urls
    if wanted == "sqlite":
        return {name: sqlite_url(home.resolve() / f"{name}.db") for name in OWN_DATABASES}
    url = parse_url(wanted, "--postgres")
    if url.get_backend_name() != "postgresql":
        raise InputError(f"--postgres: expected postgresql+psycopg://USER@HOST/NAME, found {redact(wanted)}")
    return {name: url.set(database=f"{url.database}_{name}").render_as_string() for name in OWN_DATABASES}


def _create(urls: dict[str, str]) -> None:
    """Create databases on a server unless they exist. Raises StorageError."""
    refused = []
    for url in map(make_url, urls.values()):
        server = url.set(database="postgres").render_as_string()
        try:
            make_database(server, str(url.database))
        except StorageError as error:
            raised = getattr(error.__cause__, "orig", None)
            if getattr(raised, "sqlstate", None) != "42501":  # insufficient_privilege
                raise
            owner = url.username or "the role that regtune uses"
            refused.append(f'\n  CREATE DATABASE "{url.database}" OWNER "{owner}";')
    if refused:
        raise StorageError(
            f"{place(urls['studies'])}: the role may not create databases there; have an administrator run:"
            + "".join(refused)
        )


def check_databases(settings: Settings) -> list[Schema]:
    """Return how both stand; change nothing. Raises StorageError, TrackingError, SettingsError."""
    if full_url(settings.storage_url) == store_url(settings.mlflow_uri):  # revisions would clash
        both = f"OPTUNA_STORAGE and MLFLOW_TRACKING_URI both name {place(settings.storage_url)}"
        raise SettingsError(f"{both}; give each a database of its own")
    return [schema_of(settings.storage_url, STUDIES), tracking_schema(settings.mlflow_uri)]


def init_databases(settings: Settings) -> list[str]:
    """Create the tables of both, unless they exist; any number of processes may do so at once.

    Returns a line on each. Raises StorageError for tables that are another program's or of another version,
    TrackingError, SettingsError.
    """
    studies, mlflow = check_databases(settings)
    _refuse(one.problem for one in (studies, mlflow) if not one.blank)
    if is_sqlite(settings.storage_url) or is_sqlite(settings.mlflow_uri):
        writable_folder(settings.home.resolve())
    made = set()
    if studies.blank and make_studies(settings.storage_url):
        made.add("studies")
    if mlflow.blank and make_store(settings.mlflow_uri, settings.artifacts):
        made.add("mlflow")
    return _report(settings, made, "tables made")


def upgrade_databases(settings: Settings) -> list[str]:
    """Migrate the tables of both to the versions installed here, unless a sweep or a server uses them.

    Returns a line on each.

    Raises StorageError, TrackingError, SettingsError.
    """
    before = check_databases(settings)
    older = {one.tables.name for one in before if one.state == "older"}
    _refuse(one.problem for one in before if one.state != "older")
    if older:
        require_no_sweep(settings.storage_url)
        from regtune.server.service import require_no_server

        require_no_server(settings)  # what it writes meanwhile would be lost
    if "studies" in older:
        upgrade_studies(settings.storage_url)
    if "mlflow" in older:
        upgrade_store(settings.mlflow_uri)
    return _report(settings, older, "tables upgraded")


def running_sweeps(url: str) -> list[Holder]:
    """List who writes to the studies of this database, whatever its tables look like. Raises StorageError."""
    if is_sqlite(url):
        return file_holders(database_path(url).parent)
    with STUDIES.opened(url) as engine:
        return advisory_holders(engine)


def require_no_sweep(url: str) -> None:
    """Raise StorageError while a sweep writes to the studies of this database."""
    if who := " and by ".join(map(str, running_sweeps(url))):
        raise StorageError(f"a sweep is run by {who}; stop it first with Ctrl-C")


def _refuse(problems: Iterable[str]) -> None:
    if lines := "\n".join(filter(None, problems)):
        raise StorageError(lines)


def _report(settings: Settings, changed: set[str], how: str) -> list[str]:
    lines = []
    for one in check_databases(settings):
        done = how if one.tables.name in changed else f"{one.state} already"
        state = f"{done} (revision {one.revision})"
        if one.state == "server":
            state = "a server, which sets up its own database"
        lines.append(f"{one.tables.name}: {one.where}: {state}")
    return lines
