"""Databases: URLs, engines, schemas, locks and error messages.

`urls` says which databases there are, `engines` makes and opens Optuna's, `schema` knows revisions, `migration`
migrates tables, `sqlite` treats files as wholes, `passwords` gives a password to the connection it is for, `locks`
decides who runs a study, `optuna` holds what is relied on beside public interfaces,
`patience` waits for a PostgreSQL server that is away, `troubles` puts complaints into words.
"""

from regtune.storage.engines import engine_options, open_engine, open_storage, studies_engine
from regtune.storage.locks import lock, lock_path, schema_lock
from regtune.storage.troubles import BUSY_SECONDS, DISK_FULL, explain, not_json, understood, writable_folder
from regtune.storage.urls import database_path, full_url, is_sqlite, parse_url, place, redact

__all__ = [
    "BUSY_SECONDS",
    "DISK_FULL",
    "database_path",
    "engine_options",
    "explain",
    "full_url",
    "is_sqlite",
    "lock",
    "lock_path",
    "not_json",
    "open_engine",
    "open_storage",
    "parse_url",
    "place",
    "redact",
    "schema_lock",
    "studies_engine",
    "understood",
    "writable_folder",
]
