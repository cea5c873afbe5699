"""Passwords for the connections that Optuna's and MLflow's own code opens.

Both libraries take a password in a URL or from the environment alone, and a process that uses two databases has only
one PGPASSWORD. So a password is handed over at the moment of connecting, to the database that it belongs to: it is
in no URL, and no child inherits it (SQLAlchemy, "Generating dynamic authentication tokens").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Engine, event

from regtune.storage.urls import parse_url

_Place = tuple[str, ...]
_given: dict[_Place, str] = {}


def give_password(url: str, password: str | None) -> None:
    """Use `password` for every connection of this process to the PostgreSQL database `url`; None: libpq's own ways."""
    parsed = parse_url(url)
    _, arguments = parsed.get_dialect()().create_connect_args(parsed)
    if password is None:
        _given.pop(_place(arguments), None)
        return
    _given[_place(arguments)] = password
    if not event.contains(Engine, "do_connect", _connecting):
        event.listen(Engine, "do_connect", _connecting)


def _connecting(dialect: Any, _: Any, __: Any, arguments: dict[str, Any]) -> None:
    if dialect.name == "postgresql" and "password" not in arguments:
        password = _given.get(_place(arguments))
        if password is not None:
            arguments["password"] = password


def _place(arguments: Mapping[str, Any]) -> _Place:
    return tuple(str(arguments.get(name, "")) for name in ("host", "port", "user", "dbname"))
