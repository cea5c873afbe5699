"""URLs of databases: which are valid, and how they are shown."""

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
    """Return the URL with its password, if it has one, replaced by three stars."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return re.sub(r"://[^@/]*@", "://***@", url)


def parse_url(url: str, variable: str = "OPTUNA_STORAGE") -> URL:
    """Parse the URL of a SQLite or PostgreSQL database; `variable` leads an error's message.

    Raises SettingsError for a URL that cannot be used.
    """
    if in_url(url):
        raise SettingsError(f"{variable}: {IN_NO_URL}")
    wanted = f"{variable}: expected sqlite:///PATH or postgresql+psycopg://USER@HOST/DATABASE"
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise SettingsError(f"{wanted}, found {redact(url)}") from None
    if parsed.get_backend_name() == "postgresql":
        if parsed.drivername not in (POSTGRES, "postgresql"):
            raise SettingsError(f"{wanted}, found {redact(url)}: regtune uses the driver psycopg")
        if not parsed.database:
            raise SettingsError(f"{wanted}, found {redact(url)}: name the database")
        host, port, database = parsed.host, parsed.port, parsed.database
        return URL.create(POSTGRES, parsed.username, None, host, port, database, parsed.query)
    if parsed.get_backend_name() != "sqlite":
        raise SettingsError(f"{wanted}, found {redact(url)}")
    if not parsed.database or parsed.database == ":memory:":
        raise SettingsError(f"{variable}: expected sqlite:///PATH; a database in memory would be lost")
    return parsed


def is_sqlite(url: str) -> bool:
    return url.startswith("sqlite")


def database_path(url: str) -> Path:
    return Path(parse_url(url).database or "").expanduser().resolve()


def full_url(url: str, variable: str = "OPTUNA_STORAGE") -> str:
    """Return the URL as Optuna and MLflow take it: a file's path in full, the driver named. Raises SettingsError.

    Of `sqlite:///PATH` without its driver MLflow makes the folders of PATH as it stands there, still quoted.
    """
    if is_sqlite(url):
        return sqlite_url(database_path(url)).replace("sqlite", SQLITE, 1)
    return parse_url(url, variable).render_as_string()


def place(url: str) -> str:
    """Name the database for a message: a file's path, `PostgreSQL DATABASE at HOST:PORT`, or a server's URL."""
    if url.startswith(("http://", "https://")):
        return redact(url)
    parsed = parse_url(url)
    if is_sqlite(url):
        return str(database_path(url))
    host = parsed.host or parsed.query.get("host", "localhost")
    port = f":{parsed.port}" if parsed.port else ""
    return f"PostgreSQL {parsed.database} at {host}{port}"
