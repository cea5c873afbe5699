"""Schemas: which revision a database has, and whether this version can use it."""

from __future__ import annotations

import sqlalchemy
from sqlalchemy import Engine, text

from regtune.errors import StorageError

STUDIES_REVISION = "v3.2.0.a"
"""Revision of Optuna's tables that this version reads and writes: the head of Optuna's own migrations."""


def studies_revision(engine: Engine) -> str | None:
    """Revision of Optuna's tables; None in an empty database. Raises StorageError when the tables are not Optuna's."""
    tables = sqlalchemy.inspect(engine).get_table_names()
    if not tables:
        return None
    if "version_info" not in tables:
        name = engine.url.database
        raise StorageError(f"{name}: not a database of Optuna studies; set OPTUNA_STORAGE to another one")
    if "alembic_version" not in tables:
        return "before v1.2.0"
    with engine.connect() as connection:
        return str(connection.scalar(text("SELECT version_num FROM alembic_version")))


def check_studies(engine: Engine, where: str) -> bool:
    """Whether Optuna's tables are there. Raises StorageError when they are of another version, or another's."""
    revision = studies_revision(engine)
    if revision is None and engine.dialect.name != "sqlite":
        raise StorageError(f"{where}: has no tables yet; make them with: regtune db init")
    if revision in (None, STUDIES_REVISION):
        return revision is not None
    if revision.startswith("v") and _order(revision) > _order(STUDIES_REVISION):
        raise StorageError(f"{where}: its tables are of a newer Optuna ({revision}); use a newer regtune")
    raise StorageError(f"{where}: its tables are of an older Optuna ({revision}); try: regtune db upgrade")


def _order(revision: str) -> list[int]:
    return [int(part) for part in revision.lstrip("v").split(".") if part.isdigit()]
