"""Which databases a folder uses: its SQLite files, its own PostgreSQL, or those of a server elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from regtune.credentials import STORAGE_PASSWORD, secret
from regtune.errors import InputError, StorageError
from regtune.settings import Settings, read_stores, sqlite_url, write_stores
from regtune.storage import explain, parse_url, place, redact
from regtune.storage.postgres import Embedded, make_database

DEFAULT_NAME = "regtune"
"""Of the two databases on a server: NAME_studies and NAME_mlflow."""
VARIABLES = {"OPTUNA_STORAGE": "storage", "MLFLOW_TRACKING_URI": "tracking_uri"}


def choose(settings: Settings, store: str | None, tell: Callable[[str], None] = print) -> None:
    """Have a folder use `store`: `sqlite`, `postgres` (its own), a server's URL, or None for what it has.

    The folder's own PostgreSQL is then running. Raises InputError when the environment names others, StorageError.
    """
    home = settings.home.resolve()
    embedded = Embedded(home)
    known = read_stores(home)
    if store is not None:
        _see_free(settings)
    own = bool(known) and embedded.owns(known["studies"])
    if store == "sqlite":
        embedded.stop()
        if known:
            _tell_unseen(place(known["studies"]), "--postgres" if own else "--postgres URL", tell)
        write_stores(home, {})
    elif store == "postgres" or (store is None and own):
        if store is None and not embedded.made:
            raise StorageError(
                f"{embedded.data}: the data of this folder's PostgreSQL are gone; restore them from a backup, or begin "
                f"anew: regtune up --postgres, or: regtune up --sqlite"
            )
        embedded.start()
        if known != embedded.stores:
            _tell_of_files(home, known, tell)
            write_stores(home, embedded.stores)
    elif store is not None:
        chosen = _on_server(home, store)
        _tell_of_files(home, known, tell)
        write_stores(home, chosen)


def _see_free(settings: Settings) -> None:
    """Raises InputError when an environment variable or `.env` names a database: it comes before a folder's choice."""
    for variable, field in VARIABLES.items():
        value = getattr(settings, field)
        if value:
            where = "the environment" if os.environ.get(variable) else ".env"
            raise InputError(
                f"{variable} in {where} names {place(value)}, which comes before a folder's choice; unset it"
            )


def _tell_of_files(home: Path, known: Mapping[str, str], tell: Callable[[str], None]) -> None:
    if not known and (home / "studies.db").exists():
        _tell_unseen(str(home / "studies.db"), "--sqlite", tell)


def _tell_unseen(where: str, option: str, tell: Callable[[str], None]) -> None:
    tell(f"{where}: what is there stays, unseen from here; back to it: regtune down, regtune up {option}")


def named(home: Path, store: str) -> dict[str, str]:
    """URLs of both databases for a choice, as `choose` takes it. Raises SettingsError for a URL that is none."""
    if store == "postgres":
        return Embedded(home).stores
    if store == "sqlite":
        return {name: sqlite_url(home.resolve() / f"{name}.db") for name in ("studies", "mlflow")}
    scheme, _, rest = store.partition("://")
    authority, _, path = rest.partition("?")[0].partition("/")
    query = rest.partition("?")[2]
    whole = f"{scheme}://{authority}/{path or DEFAULT_NAME}" + (f"?{query}" if query else "")
    found = parse_url(whole, "--postgres")
    if found.get_backend_name() != "postgresql":
        raise InputError(f"--postgres: expected postgresql+psycopg://USER@HOST/NAME, found {redact(store)}")
    return {
        name: found.set(database=f"{found.database}_{name}").render_as_string()
        for name in ("studies", "mlflow")
    }


def _on_server(home: Path, url: str) -> dict[str, str]:
    """URLs of the two databases of the server `url`, made there if the role may. Raises StorageError, InputError."""
    chosen = named(home, url)
    missing = [there for there in map(make_url, chosen.values()) if not _make(there)]
    if missing:
        owner = missing[0].username or "the role that regtune uses"
        lines = "\n".join(f'  CREATE DATABASE "{there.database}" OWNER "{owner}";' for there in missing)
        raise StorageError(
            f"{place(chosen['studies'])}: the role may not make databases there; let an "
            f"administrator run:\n{lines}"
        )
    return chosen


def _make(wanted: URL) -> bool:
    """Whether the database `wanted` is there now. Raises StorageError when the server cannot be asked."""
    server = wanted.set(database="postgres").render_as_string()
    try:
        make_database(server, str(wanted.database), secret(STORAGE_PASSWORD))
    except SQLAlchemyError as error:
        if getattr(getattr(error, "orig", None), "sqlstate", None) == "42501":  # insufficient_privilege
            return False
        raise StorageError(explain(error, place(server))) from error
    return True
