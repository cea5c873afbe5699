"""Databases: URLs, engines, schemas, locks and error messages."""

from regtune.storage.engines import database_path, full_url, is_sqlite, parse_url, place, redact
from regtune.storage.locks import lock, lock_path
from regtune.storage.optuna import open_engine, open_storage
from regtune.storage.troubles import DISK_FULL, explain, not_json, understood, writable_folder

__all__ = [
    "DISK_FULL",
    "database_path",
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
    "understood",
    "writable_folder",
]
