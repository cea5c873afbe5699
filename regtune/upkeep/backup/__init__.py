"""Backups of a folder and their return: `making` and `restoring` for SQLite, `dumps` says how PostgreSQL does it.

`manifest` is what a backup says of itself.
"""

from regtune.upkeep.backup.making import Backup, make_backup
from regtune.upkeep.backup.manifest import Manifest, read_manifest
from regtune.upkeep.backup.restoring import Plan, Restored, plan_restore, restore

__all__ = [
    "Backup",
    "Manifest",
    "Plan",
    "Restored",
    "make_backup",
    "plan_restore",
    "read_manifest",
    "restore",
]
