"""Passwords: where they may come from, and where they may not go.

A secret comes from an environment variable, from the file that `NAME_FILE` names (Docker's convention), or from
`.env`. Files must be readable by their owner alone, as for ssh and libpq; files under `/run/secrets` are mounted by a
container engine, which decides about their mode. A secret is never part of a URL, an argument or a message.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values

from regtune.errors import SettingsError

STORAGE_PASSWORD = "OPTUNA_STORAGE_PASSWORD"  # noqa: S105
TRACKING_USERNAME = "MLFLOW_TRACKING_USERNAME"
TRACKING_PASSWORD = "MLFLOW_TRACKING_PASSWORD"  # noqa: S105
TRACKING_TOKEN = "MLFLOW_TRACKING_TOKEN"  # noqa: S105
ADMIN_PASSWORD = "MLFLOW_AUTH_ADMIN_PASSWORD"  # noqa: S105
SERVER_SECRET = "MLFLOW_FLASK_SERVER_SECRET_KEY"  # noqa: S105
DATABASE_PASSWORD = "PGPASSWORD"  # noqa: S105

SECRETS = (
    *(STORAGE_PASSWORD, TRACKING_USERNAME, TRACKING_PASSWORD, TRACKING_TOKEN),
    *(ADMIN_PASSWORD, SERVER_SECRET, DATABASE_PASSWORD),
)
MOUNTED = Path("/run/secrets")
LONGEST = 64 * 1024


def secret(name: str) -> str | None:
    """The secret `name`, or None when nobody has given it.

    From the environment, from the file that `NAME_FILE` names, or from `.env`, in this order. A line end at the end of
    a file does not belong to the secret. Raises SettingsError for a file that is not there, that others may read, or
    that is not text.
    """
    if name in os.environ:
        return os.environ[name]
    if os.environ.get(f"{name}_FILE"):
        return _read(Path(os.environ[f"{name}_FILE"]).expanduser(), f"{name}_FILE")
    found = _dotenv()
    if found.get(name):
        _check_mode(Path(".env"), name)
        return found[name]
    if found.get(f"{name}_FILE"):
        return _read(Path(str(found[f"{name}_FILE"])).expanduser(), f"{name}_FILE")
    return None


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a child that needs no secret, such as a worker."""
    hidden = {*SECRETS, *(f"{name}_FILE" for name in SECRETS), "PGPASSFILE"}
    return {name: value for name, value in environment.items() if name not in hidden}


def _dotenv() -> Mapping[str, str | None]:
    try:
        return dotenv_values(".env", interpolate=False) if Path(".env").is_file() else {}
    except (OSError, UnicodeDecodeError):  # the settings say what is wrong with it
        return {}


def _read(path: Path, variable: str) -> str:
    _check_mode(path, variable)
    try:
        with path.open("rb") as file:
            found = file.read(LONGEST + 1)
        text = found.decode().rstrip("\r\n")
    except OSError as error:
        raise SettingsError(f"{variable}: {path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        text = ""
    if not text or len(found) > LONGEST or "\n" in text or "\0" in text:
        raise SettingsError(f"{variable}: {path}: expected one line of text, the secret")
    return text


def _check_mode(path: Path, variable: str) -> None:
    """Raises SettingsError for a file that others may read, as ssh and libpq refuse it."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise SettingsError(f"{variable}: {path} cannot be read ({error.strerror})") from None
    if mode & 0o077 and MOUNTED not in path.absolute().parents:
        raise SettingsError(
            f"{variable}: {path} holds a secret and others may read it (mode {mode & 0o777:04o}); "
            f"try: chmod 600 {path}"
        )
