"""How PostgreSQL backs up and brings back: its own programs, as lines that a person can run.

Passwords come from PGPASSWORD, PGPASSFILE or ~/.pgpass and stand in none of them. The order is that of a backup of
SQLite: MLflow's database, Optuna's, the artifacts.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from regtune.settings import Settings
from regtune.storage import database_path, is_sqlite, parse_url, redact
from regtune.storage.mlflow import is_server
from regtune.storage.postgres import Embedded


def dump_lines(settings: Settings, folder: Path) -> list[str]:
    """What to run for a backup of this project into `folder`, the first line saying why."""
    found = [
        "PostgreSQL is backed up by its own programs; run, with its passwords in PGPASSWORD or ~/.pgpass:"
    ]
    found.append(f"  mkdir -p {shlex.quote(str(folder))}")
    for name, url in _urls(settings).items():
        file = shlex.quote(str(folder / f"{name}.dump"))
        if is_server(url):
            found.append(f"  # the runs of {redact(url)}: back them up where that server runs")
        elif is_sqlite(url):
            found.append(_sqlite3(url, "backup", folder / f"{name}.db"))
        else:
            found.append(
                f"  {_program(settings, url, 'pg_dump')} --format=custom --file={file} {_connection(url)}"
            )
    home, artifacts = shlex.quote(str(settings.home)), shlex.quote(str(folder / "artifacts.tar"))
    return [*found, f"  tar -C {home} -cf {artifacts} artifacts"]


def load_lines(settings: Settings, folder: Path) -> list[str]:
    """What to run to bring such a backup back into databases that are there, whatever is in them."""
    found = ["PostgreSQL is brought back by its own programs; run, with nothing else connected to it:"]
    for name, url in _urls(settings).items():
        file = shlex.quote(str(folder / f"{name}.dump"))
        if is_server(url):
            found.append(f"  # the runs of {redact(url)}: bring them back where that server runs")
        elif is_sqlite(url):
            found.append(_sqlite3(url, "restore", folder / f"{name}.db"))
        else:
            program = _program(settings, url, "pg_restore")
            options = "--clean --if-exists --no-owner --exit-on-error --single-transaction"
            found.append(f"  {program} {options} --dbname={_connection(url)} {file}")
    home, artifacts = shlex.quote(str(settings.home)), shlex.quote(str(folder / "artifacts.tar"))
    return [*found, f"  tar -C {home} -xf {artifacts}"]


def _urls(settings: Settings) -> dict[str, str]:
    return {"mlflow": settings.mlflow_uri, "studies": settings.storage_url}


def _sqlite3(url: str, command: str, file: Path) -> str:
    """A command of SQLite's shell, which takes what is in double quotes as C does."""
    quoted = str(file).replace("\\", "\\\\").replace('"', '\\"')
    said = shlex.quote(f'.{command} "{quoted}"')
    return f"  sqlite3 {shlex.quote(str(database_path(url)))} {said}"


def _connection(url: str) -> str:
    """The database as libpq's programs take it: the URL without SQLAlchemy's driver."""
    return shlex.quote(parse_url(url).set(drivername="postgresql").render_as_string())


def _program(settings: Settings, url: str, name: str) -> str:
    """The program's path where the server is this folder's own: an older one on the PATH would not read it."""
    embedded = Embedded(settings.home)
    return shlex.quote(str(embedded.program(name))) if embedded.owns(url) else name
