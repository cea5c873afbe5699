"""URLs of databases: which are understood, and how they are shown."""

from __future__ import annotations

import re
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from regtune.credentials import in_url
from regtune.errors import SettingsError
from regtune.settings import IN_NO_URL, sqlite_url

POSTGRES = "postgresql+psycopg"
SQLITE = "sqlite+pysqlite"


def redact(url: str) -> str:
    """The URL with its password, if it has one, replaced by three stars."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return re.sub(r"://[^@/]*@", "://***@", url)


def parse_url(url: str, variable: str = "OPTUNA_STORAGE") -> URL:
    """The parsed URL of a database of SQLite or PostgreSQL; `variable` leads an error's message.

    Raises SettingsError for a URL that cannot be used.
    """
    if in_url(url):
        raise SettingsError(f"{variable}: {IN_NO_URL}")
    wanted = f"{variable}: expected sqlite:///PATH or postgresql+psycopg://USER@HOST/DATABASE"
    try:
        found = make_url(url)
    except (ArgumentError, ValueError):
        raise SettingsError(f"{wanted}, found {redact(url)}") from None
    if found.get_backend_name() == "postgresql":
        if found.drivername not in (POSTGRES, "postgresql"):
            raise SettingsError(f"{wanted}, found {redact(url)}: regtune uses the driver psycopg")
        if not found.database:
            raise SettingsError(f"{wanted}, found {redact(url)}: name the database")
        return URL.create(POSTGRES, found.username, None, found.host, found.port, found.database, found.query)
    if found.get_backend_name() != "sqlite":
        raise SettingsError(f"{wanted}, found {redact(url)}")
    if not found.database or found.database == ":memory:":
        raise SettingsError(f"{variable}: expected sqlite:///PATH; a database in memory would be lost")
    return found


def is_sqlite(url: str) -> bool:
    """Whether the URL is a SQLite file's."""
    return url.startswith("sqlite")


def database_path(url: str) -> Path:
    """The file of a SQLite URL."""
    return Path(parse_url(url).database or "").expanduser().resolve()


def full_url(url: str, variable: str = "OPTUNA_STORAGE") -> str:
    """The URL as Optuna and MLflow take it: a file's path in full, the driver named. Raises SettingsError.

    Of `sqlite:///PATH` without its driver MLflow makes the folders of PATH as it stands there, still quoted.
    """
    if is_sqlite(url):
        return sqlite_url(database_path(url)).replace("sqlite", SQLITE, 1)
    return parse_url(url, variable).render_as_string()


def place(url: str) -> str:
    """The database as a message names it: a file's path, `PostgreSQL DATABASE at HOST:PORT`, or a server's URL."""
    if url.startswith(("http://", "https://")):
        return redact(url)
    found = parse_url(url)
    if is_sqlite(url):
        return str(database_path(url))
    host = found.host or found.query.get("host", "localhost")
    port = f":{found.port}" if found.port else ""
    return f"PostgreSQL {found.database} at {host}{port}"
