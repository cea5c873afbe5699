"""Databases: their URLs, the engines made from them, and the passwords of their connections.

Optuna and MLflow take a password in a URL or from the environment alone, and a process that uses two databases has only
one PGPASSWORD. So a password is handed over at the moment of connecting, to the database that it belongs to: it is
in no URL, and no child inherits it (SQLAlchemy, "Generating dynamic authentication tokens").
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import NullPool

from regtune.credentials import in_url
from regtune.errors import SettingsError
from regtune.settings import IN_NO_URL, sqlite_url
from regtune.storage.sqlite import connect_to_read, may_write
from regtune.storage.troubles import BUSY_SECONDS

POSTGRES = "postgresql+psycopg"
SQLITE = "sqlite+pysqlite"
SILENT_SECONDS = 25
LIMITS = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": SILENT_SECONDS * 1000,
}
"""How a client notices that the server's machine has vanished, unless the URL says otherwise."""
KEEPALIVE = (
    "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3 "
    f"-c tcp_user_timeout={SILENT_SECONDS * 1000}"
)
"""How the server notices that a client has vanished: the probes where it waits, the timeout where it was answering."""
_Place = tuple[str, ...]
_passwords: dict[_Place, str | None] = {}


def redact(url: str) -> str:
    """Return the URL with its password, if it has one, replaced by three stars."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return re.sub(r"://[^@/]*@", "://***@", url)


def parse_url(url: str, variable: str = "OPTUNA_STORAGE") -> URL:
    """Parse the URL of a SQLite or PostgreSQL database; `variable` leads a message. Raises SettingsError."""
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
        return parsed.set(drivername=POSTGRES)
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


def engine_options(url: str, session: str = "regtune") -> dict[str, Any]:
    """What `create_engine` needs beside the URL. session: what PostgreSQL calls the connections."""
    if is_sqlite(url):
        path = database_path(url)
        if path.exists() and not may_write(path):
            return {"creator": partial(connect_to_read, path), "poolclass": NullPool}
        return {"connect_args": {"timeout": BUSY_SECONDS}}
    defaults = {name: value for name, value in LIMITS.items() if name not in make_url(url).query}
    arguments = {**defaults, "application_name": session, "options": KEEPALIVE}
    return {"connect_args": arguments, "pool_pre_ping": True}


def give_password(url: str, password: str | None) -> None:
    """Use `password` for every connection of this process to the PostgreSQL database `url`; None: libpq's own ways."""
    parsed = parse_url(url)
    _, arguments = parsed.get_dialect()().create_connect_args(parsed)
    _passwords[_place(arguments)] = password
    if not event.contains(Engine, "do_connect", _connecting):
        event.listen(Engine, "do_connect", _connecting)


def _connecting(dialect: Any, _: Any, __: Any, arguments: dict[str, Any]) -> None:
    if dialect.name == "postgresql" and (password := _passwords.get(_place(arguments))) is not None:
        arguments.setdefault("password", password)


def _place(arguments: Mapping[str, Any]) -> _Place:
    return tuple(str(arguments.get(name, "")) for name in ("host", "port", "user", "dbname"))
