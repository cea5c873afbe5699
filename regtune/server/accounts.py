"""Accounts of the MLflow server: MLflow's basic authentication, without secrets in files or arguments.

The server's process gets its secrets through its environment: the password with which the administrator's account is
created once, and the key that signs the forms of its pages. MLflow keeps every account's password hashed, in the
database of the runs or, where that is a SQLite file, in `auth.db` beside it.
"""

from __future__ import annotations

import configparser
import ipaddress
import os
import secrets
import socket
from pathlib import Path

from regtune.credentials import ADMIN_PASSWORD, SERVER_SECRET, secret
from regtune.errors import InputError, SettingsError, TrackingError
from regtune.settings import Settings, sqlite_url
from regtune.storage import full_url

ADMIN_USERNAME = "MLFLOW_AUTH_ADMIN_USERNAME"
SHORTEST_PASSWORD = 12
"""MLflow refuses shorter ones."""
DEFAULT_PERMISSION = "READ"
"""What an account may do with experiments and models that nobody has given it rights on."""
PASSWORD_CACHE_SECONDS = 60
"""How long a password that was right is not hashed again; the server is one process and sees changes at once."""


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server that listens at `host`. Raises TrackingError for no host."""
    try:
        addresses = {address[0] for *_, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        raise TrackingError(f"host {host}: not an address of this machine; try 127.0.0.1") from None
    return all(ipaddress.ip_address(str(one).partition("%")[0]).is_loopback for one in addresses)


def wants_accounts(host: str, wanted: bool | None) -> bool:
    """Return whether a server at `host` has accounts; `wanted` is what was asked for, None for what is usual.

    Raises InputError for a server that any machine could reach without one, and as `is_loopback` and
    `administrators_password` do.
    """
    others = not is_loopback(host)
    if others and wanted is False:
        risk = "other machines can connect to this address, and could read and delete every run"
        raise InputError(f"--no-auth with --host {host}: {risk}; remove --no-auth")
    accounts = others or bool(wanted)
    if accounts:
        administrators_password()
    return accounts


def accounts_environment(settings: Settings) -> dict[str, str]:
    """Return what the server's environment needs for accounts; write their configuration into the home.

    Raises SettingsError as `administrators_password` does.
    """
    password = administrators_password()
    home = settings.home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(_write_configuration(home, settings.mlflow_uri)),
        ADMIN_USERNAME: administrator(),
        ADMIN_PASSWORD: password,
        SERVER_SECRET: secret(SERVER_SECRET) or secrets.token_urlsafe(32),
    }


def administrators_password() -> str:
    """Return the password of the administrator's new account. Raises SettingsError without a valid one."""
    password = secret(ADMIN_PASSWORD) or ""
    if len(password) < SHORTEST_PASSWORD:
        raise SettingsError(
            f"accounts need a password of at least {SHORTEST_PASSWORD} characters for the first one, the "
            f"administrator's: give it as {ADMIN_PASSWORD}, or in a file (mode 0600) that {ADMIN_PASSWORD}_FILE names"
        )
    return password


def administrator() -> str:
    return secret(ADMIN_USERNAME) or "admin"


def _write_configuration(home: Path, uri: str) -> Path:
    """Write MLflow's configuration of accounts: where their tables are, and what an account may do by default."""
    if uri.startswith("sqlite"):
        (home / "auth.db").touch(mode=0o600)
        uri = full_url(sqlite_url(home / "auth.db"))
    configuration = configparser.ConfigParser(interpolation=None)
    configuration["mlflow"] = {
        "default_permission": DEFAULT_PERMISSION,
        "database_uri": uri.replace("%", "%%"),
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
        "auth_cache_ttl_seconds": str(PASSWORD_CACHE_SECONDS),
    }
    path, fresh = home / "auth.ini", home / f"auth.ini.{os.getpid()}"
    with fresh.open("w", encoding="utf-8") as file:
        configuration.write(file)
    fresh.replace(path)
    return path
