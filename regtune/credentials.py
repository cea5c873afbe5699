"""Passwords: allowed sources, and places where they must not appear.

A secret comes from an environment variable, from the file that `NAME_FILE` names (Docker's convention), or from
`.env`. Files must be readable by their owner alone, as for ssh and libpq; files under `/run/secrets` are mounted by a
container engine, which decides about their mode. A secret is never part of a URL, an argument or a message.
"""

from __future__ import annotations

import base64
import errno
import io
import os
import re
import shlex
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from urllib.parse import unquote

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
OF_TRACKING = (TRACKING_USERNAME, TRACKING_PASSWORD, TRACKING_TOKEN, DATABASE_PASSWORD, "PGPASSFILE")
"""What a client of MLflow's store or server may need."""
MOUNTED = Path("/run/secrets")
DOTENV = Path(".env")
_OPTION = re.compile(r"[?&;][^=&;]*(password|passwd|pwd|secret|token|api_?key)[^=&;]*=", re.IGNORECASE)
_LINE = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
"""No control characters, no ends of lines and paragraphs, no halves of characters."""


def secret(name: str) -> str | None:
    """Return the secret `name`, or None when nobody has given it; an empty one is none.

    From the environment, from the file that `NAME_FILE` names, or from `.env`, in this order. A line end at the end of
    a file does not belong to the secret. Raises SettingsError for a file that is not there, that others may read, and
    for what is not one line of text: a line end inside would end up in an HTTP library's message.
    """
    for given in (os.environ, _dotenv(name)):
        if value := given.get(name):
            return _one_line(value, name)
        if path := given.get(f"{name}_FILE"):
            return _one_line(_read(Path(path).expanduser(), f"{name}_FILE"), f"{name}_FILE: {path}")
    return None


def authorization() -> dict[str, str]:
    """Return the header of a request with the tracking server's credentials; empty without any."""
    name, password = secret(TRACKING_USERNAME), secret(TRACKING_PASSWORD)
    if name and password:
        return basic(name, password)
    token = secret(TRACKING_TOKEN)
    return {"Authorization": f"Bearer {token}"} if token else {}


def basic(name: str, password: str) -> dict[str, str]:
    """Return the header of a request by an account (RFC 7617)."""
    return {"Authorization": f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"}


def without_secrets(environment: Mapping[str, str], but: Collection[str] = ()) -> dict[str, str]:
    """Return the environment for a child that needs no secret, such as a worker, or none `but` these."""
    hidden = {*SECRETS, "PGPASSFILE"} - {*but}
    hidden |= {f"{name}_FILE" for name in hidden}
    return {name: value for name, value in environment.items() if name not in hidden}


def in_url(url: str) -> bool:
    """Return whether a database's or a server's URL has a secret: userinfo with a password, or one among its options.

    Read more strictly than by `urlsplit`, which takes a password with a slash, `?` or `#` in it for a path, while
    SQLAlchemy takes it for a password. A server's URL has no userinfo at all: a token may stand there alone.
    """
    scheme, colon, rest = url.partition("://")
    if not colon:
        return "@" in url and ":" in url
    if scheme.lower().startswith("sqlite"):
        rest = "".join(rest.partition("?")[1:])  # a path is not an option, whatever characters it has
    else:
        user, at, _ = rest.partition("@")
        if at and (":" in user or scheme.lower() in ("http", "https")):
            return True
    return _OPTION.search(unquote(rest)) is not None


def _dotenv(name: str) -> Mapping[str, str | None]:
    """What `.env` says. Raises SettingsError when it holds the secret `name` and others may read it."""
    try:
        content, mode = _content(DOTENV)
        values = dotenv_values(stream=io.StringIO(content.decode("utf-8-sig")), interpolate=False)
    except (OSError, UnicodeDecodeError):  # there is none, or the settings say what is wrong with it
        return {}
    if values.get(name) and name != TRACKING_USERNAME:
        _check_mode(DOTENV, mode, name)
    return values


def _read(path: Path, variable: str) -> str:
    try:
        content, mode = _content(path)
    except OSError as error:
        raise SettingsError(f"{variable}: {path} cannot be read ({error.strerror})") from None
    _check_mode(path, mode, variable)
    return content.decode("utf-8-sig", "surrogateescape").rstrip("\r\n")


def _content(path: Path) -> tuple[bytes, int]:
    """An ordinary file's content, and the mode of what was opened: a link may point elsewhere a moment later.

    Raises OSError for anything else: a pipe would be waited for without end.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not an ordinary file")
        return file.read(), mode


def _check_mode(path: Path, mode: int, variable: str) -> None:
    if mode & 0o077 and MOUNTED.resolve() not in path.resolve().parents:
        raise SettingsError(
            f"{variable}: {path} holds a secret and others may read it (mode {mode & 0o777:04o}); "
            f"try: chmod 600 {shlex.quote(str(path))}"
        )


def _one_line(value: str, where: str) -> str:
    if not _LINE.fullmatch(value):
        raise SettingsError(f"{where}: expected one line of text, the secret")
    return value
