"""Settings of databases, artifacts and data: flags, then the environment, then `.env`, then defaults."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, quote_plus, urlsplit

from pydantic import AfterValidator, BaseModel, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from regtune.credentials import in_url
from regtune.errors import SettingsError
from regtune.escaping import printable

IN_NO_URL = (
    "a URL with a password or token ends up in logs and process lists; give it as OPTUNA_STORAGE_PASSWORD, "
    "MLFLOW_TRACKING_PASSWORD (a server's user: MLFLOW_TRACKING_USERNAME) or MLFLOW_TRACKING_TOKEN, "
    "or in a file that ..._FILE names"
)

MAX_WORKERS = 256


def _checked(url: str) -> str:
    if not url.isprintable():
        raise ValueError("expected a URL of printable characters")
    if in_url(url):
        raise ValueError(IN_NO_URL)
    return url


_Url = Annotated[str, AfterValidator(_checked)]


class Settings(BaseSettings):
    """`MLFLOW_TRACKING_URI`, `OPTUNA_STORAGE` and `REGTUNE_*`.

    home: the folder of both databases and all artifacts. storage, tracking_uri: URLs of Optuna's database and of the
    MLflow store or server; SQLite files in `home` by default. data_dir: where .npz data sets lie. workers: how many
    worker processes train; one per core by default.
    """

    model_config = SettingsConfigDict(
        env_file=".env", env_file_encoding="utf-8-sig", extra="ignore", frozen=True, hide_input_in_errors=True
    )

    home: Path = Field(default=Path("mlruns"), validation_alias="REGTUNE_HOME")
    storage: _Url = Field(default="", validation_alias="OPTUNA_STORAGE")
    tracking_uri: _Url = Field(default="", validation_alias="MLFLOW_TRACKING_URI")
    data_dir: Path | None = Field(default=None, validation_alias="REGTUNE_DATA_DIR")
    workers: int | None = Field(default=None, ge=1, le=MAX_WORKERS, validation_alias="REGTUNE_WORKERS")

    @field_validator("tracking_uri")
    @classmethod
    def _names_a_server(cls, value: str) -> str:
        if value.lower().startswith(("http:", "https:")):
            try:
                parts = urlsplit(value)
                named = bool(parts.hostname) and parts.port != 0 and " " not in value
            except ValueError:  # of a port that is none, or half a pair of brackets
                named = False
            if not named:
                raise ValueError(f"expected http://HOST:PORT, found {value}")
        return value

    @property
    def storage_url(self) -> str:
        """SQLAlchemy URL of Optuna's database: as set, else what this folder has chosen, else a SQLite file in it."""
        return self.storage or self._chosen("studies")

    @property
    def mlflow_uri(self) -> str:
        """URI of the MLflow store or server, chosen likewise."""
        return self.tracking_uri or self._chosen("mlflow")

    def _chosen(self, database: str) -> str:
        return read_choice(self.home).get(database) or sqlite_url(self.home.resolve() / f"{database}.db")

    @property
    def artifacts(self) -> Path:
        """Folder of all artifacts: `runs/` is MLflow's, `trials/UID/` are the trials' own."""
        return self.home.resolve() / "artifacts"


def sqlite_url(path: Path) -> str:
    """Return the SQLAlchemy URL of a SQLite file, whatever characters its name and its folders' names have.

    Raises SettingsError for a name that is not UTF-8: no library reads it from a URL.
    """
    try:
        return f"sqlite:///{quote(str(path), safe=' +/')}"  # as SQLAlchemy itself renders it
    except UnicodeEncodeError:
        remedy = "rename it, or choose another folder with REGTUNE_HOME"
        raise SettingsError(f"{printable(str(path))}: its name is not UTF-8 text; {remedy}") from None


OWN_ROLE, OWN_DATABASES = "regtune", ("studies", "mlflow")
"""How the URL of a folder's own PostgreSQL is told from that of any other."""
_OWN = re.compile(rf"postgresql(\+psycopg)?://{OWN_ROLE}@/({'|'.join(OWN_DATABASES)})\?host=(/|%2F)[^&]*")
LONGEST_SOCKET = 103
"""Bytes of a Unix socket's path: 107 on Linux, 103 on macOS."""
CHOICE = "stores.json"
"""In a folder: which databases it uses when they are not its SQLite files."""


class _Choice(BaseModel, hide_input_in_errors=True):
    studies: _Url
    mlflow: _Url


def read_choice(home: Path) -> dict[str, str]:
    """Read the URLs of the databases that a folder uses: `studies` and `mlflow`; empty for its SQLite files.

    Those of its own PostgreSQL lead to where the folder lies now, also when it was moved or copied.
    Raises SettingsError for a file that is damaged.
    """
    path = home / CHOICE
    try:
        chosen = _Choice.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        raise SettingsError(f"{path}: {'; '.join(_lines(error))}; choose anew with: regtune up") from None
    here = f"?host={quote_plus(os.fsencode(socket_folder(home)))}"
    urls = chosen.model_dump().items()
    return {name: url.partition("?")[0] + here if is_own_postgres(url) else url for name, url in urls}


def socket_folder(home: Path) -> Path:
    """Return where a folder's own PostgreSQL listens: the folder of its data, or one with a shorter and plain name."""
    data = home.resolve() / "postgres"
    fits = len(os.fsencode(data / ".s.PGSQL.5432")) <= LONGEST_SOCKET
    if fits and not {",", "="} & {*str(data)}:  # libpq reads a list of hosts, we a password in the URL
        return data
    return Path(tempfile.gettempdir()) / f"regtune-{hashlib.sha256(os.fsencode(data)).hexdigest()[:16]}"


def is_own_postgres(url: str) -> bool:
    """Return whether `url` names a database of a folder's own PostgreSQL, wherever that folder lay."""
    return _OWN.fullmatch(url) is not None


def write_choice(home: Path, urls: Mapping[str, str]) -> None:
    """Write the URLs of the databases that a folder uses, `studies` and `mlflow`; none for its SQLite files."""
    path = home / CHOICE
    if not urls:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(dict(urls), indent=2) + "\n", encoding="utf-8")
    fresh.replace(path)


def load_settings(**flags: Any) -> Settings:
    """Load the settings, with `flags` (None means not given) on top. Raises SettingsError with one line a mistake."""
    names = {key: str(field.validation_alias) for key, field in Settings.model_fields.items()}
    given = {names[key]: value for key, value in flags.items() if value is not None}
    try:
        return Settings(**given)
    except UnicodeDecodeError as error:
        raise SettingsError(f".env: expected UTF-8 text ({error.reason} at byte {error.start})") from None
    except ValidationError as error:
        raise SettingsError("\n".join(_lines(error))) from None


def _lines(error: ValidationError) -> list[str]:
    """What is wrong, each with the name that it is about."""
    return [
        ": ".join([*map(str, one["loc"]), one["msg"].removeprefix("Value error, ")]) for one in error.errors()
    ]
