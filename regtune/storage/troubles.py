"""Translation of database errors into actionable messages."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from regtune.errors import StorageError

BUSY_SECONDS = 60
DISK_FULL = "the disk is full; make room and run the same command again: nothing recorded is lost"
_AWAY = re.compile(
    r"connection (is )?(refused|lost|timeout|closed|failed|not available)|the connection is closed|timed? ?out|"
    r"failed to resolve host|"  # as a container is named only while it runs
    r"could not (connect|translate)|server closed the connection|terminating connection|shutting down|"
    r"starting up|not accepting connections|recovery mode|consuming input failed|no route to host|"
    r"network is (unreachable|down)|host is down|broken pipe|reset by peer|no such file or directory",
    re.IGNORECASE,
)
_REFUSED = re.compile(r"password|pg_hba|(database|role) .*does not exist", re.IGNORECASE)
"""What a server answers that is there."""
_WORDS = (
    (
        r"on socket .*/(postgres|regtune-[0-9a-f]{16})/\.s\.PGSQL\S* failed: (no such file|connection refused)",
        "the PostgreSQL of this folder is not running; try: regtune up",
    ),
    (r"disk (is )?full|no space left", DISK_FULL),
    (r"read-?only", "cannot be written; is the folder read-only?"),
    (r"unable to open database file", "cannot be opened; may this account read it, and what lies beside it?"),
    (
        r"(database|table)( \S+)? is locked",
        f"locked by another process for more than {BUSY_SECONDS} s; stop it and try again",
    ),
    (
        r"not a database|malformed",
        "damaged, or not a SQLite database ({text}); restore it from a backup or move it away",
    ),
    (
        r"password (authentication|retrieved)|no password|pg_hba",
        "refused ({reason}); the password is that of OPTUNA_STORAGE_PASSWORD or its _FILE, for MLflow's database that "
        "of MLFLOW_TRACKING_PASSWORD",
    ),
    (
        r"database .*does not exist",
        "there is no such database; create it with CREATE DATABASE, then: regtune db init",
    ),
)
"""Patterns of database errors, and what to say of each."""


@contextmanager
def understood(place: str | Path) -> Iterator[None]:
    """Translate database errors into a StorageError with a remedy. `place` names the database."""
    try:
        yield
    except (sqlite3.Error, SQLAlchemyError) as error:
        raise StorageError(explain(error, place)) from error
    except OSError as error:
        raise StorageError(f"{error.filename or place}: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        raise StorageError(not_json(error, place)) from error
    except Exception as error:
        if type(error).__name__ != "StorageInternalError":  # Optuna's; readers do without importing Optuna
            raise
        raise StorageError(explain(error, place)) from error


def cause(error: BaseException) -> BaseException:
    """Return what the database's driver raised, below SQLAlchemy's and Optuna's wrapping."""
    raised: BaseException | None = error
    while raised is not None:
        if isinstance(raised, DBAPIError) and raised.orig is not None:
            return raised.orig
        if isinstance(raised, sqlite3.Error):
            return raised
        # Optuna asks once more in the session that was cut off: the context has the first complaint
        raised = raised.__cause__ or raised.__context__
    return error


def away(error: BaseException) -> bool:
    """Return whether a PostgreSQL server was lost or cannot be reached, so that trying again later may help."""
    raised = cause(error)
    if type(raised).__module__.partition(".")[0] != "psycopg":
        return False
    state = getattr(raised, "sqlstate", None)  # class 08: connections, 57P: the operator's interventions
    if state is not None:
        return str(state).startswith(("08", "57P")) or state == "53300"
    operational = any(kind.__name__ == "OperationalError" for kind in type(raised).__mro__)
    return operational and _AWAY.search(str(raised)) is not None and _REFUSED.search(str(raised)) is None


def explain(error: BaseException, place: str | Path) -> str:
    text = " ".join(line.strip() for line in str(cause(error)).splitlines()[:2] if line.strip())
    said = next((words for pattern, words in _WORDS if re.search(pattern, text, re.IGNORECASE)), None)
    if said is None:
        said = "cannot be reached ({reason}); is it running?" if away(error) else "{text}"
    reason = text.rpartition("FATAL:")[2].rpartition("failed: ")[2].strip()  # without the addresses tried
    return f"{place}: {said.replace('{text}', text).replace('{reason}', reason or text)}"


def not_json(error: json.JSONDecodeError, place: str | Path) -> str:
    return f"{place}: an attribute in it is not JSON ({error}); restore it from a backup or move it away"


def writable_folder(folder: Path) -> None:
    """Create `folder` if need be, and require that files can be created in it. Raises StorageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        remedy = "choose another folder with REGTUNE_HOME"
        raise StorageError(f"{folder}: cannot be written ({error.strerror}); {remedy}") from None
