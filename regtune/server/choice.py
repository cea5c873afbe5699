"""The databases of a folder: its SQLite files, its own PostgreSQL, or those of another server."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from sqlalchemy.engine import make_url

from regtune.errors import InputError, StorageError
from regtune.settings import OWN_DATABASES, Settings, is_own_postgres, read_choice, sqlite_url, write_choice
from regtune.storage import parse_url, place, redact
from regtune.storage.postgres import Embedded, make_database

DEFAULT_NAME = "regtune"
"""Of the two databases on a server: NAME_studies and NAME_mlflow."""
VARIABLES = {"OPTUNA_STORAGE": "storage", "MLFLOW_TRACKING_URI": "tracking_uri"}


def choose(settings: Settings, wanted: str | None, tell: Callable[[str], None] = print) -> None:
    """Have a folder use other databases; start its own PostgreSQL if it uses that.

    Args:
        settings: the folder.
        wanted: `sqlite`, `postgres` for the folder's own, a server's URL, or None for what it uses.
        tell: told what is not seen any more from now on.

    Raises:
        InputError: the environment names databases, which comes first, or the URL cannot be used.
        StorageError: the server cannot be used, or may not create databases: then the message has the lines that do.
    """
    home = settings.home.resolve()
    embedded, chosen = Embedded(home), read_choice(home)
    own = bool(chosen) and is_own_postgres(chosen["studies"])
    if wanted is not None:
        _require_unset(settings)
    elif not own:
        return
    elif not embedded.initialized:
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
    address, mark, query = wanted.partition("?")
    scheme, _, rest = address.partition("://")
    authority, _, path = rest.partition("/")
    url = parse_url(f"{scheme}://{authority}/{path or DEFAULT_NAME}{mark}{query}", "--postgres")
    if url.get_backend_name() != "postgresql":
        raise InputError(f"--postgres: expected postgresql+psycopg://USER@HOST/NAME, found {redact(wanted)}")
    return {name: url.set(database=f"{url.database}_{name}").render_as_string() for name in OWN_DATABASES}


def _require_unset(settings: Settings) -> None:
    """Raise InputError when an environment variable or `.env` names a database: it comes before a folder's choice."""
    for variable, field in VARIABLES.items():
        if value := getattr(settings, field):
            where = "the environment" if os.environ.get(variable) else ".env"
            named = f"{variable} in {where} names {place(value)}"
            raise InputError(f"{named}, which comes before a folder's choice; unset it")


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
