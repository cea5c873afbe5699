"""The private names of Optuna that regtune relies on.

Reading Optuna's tables by plain SQL is a matter of `study/board/tables.py`, which checks their revision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import column, table, update

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

FIXED_PARAMS = "fixed_params"
"""Trial attribute under which `Study.enqueue_trial` stores what `Trial.suggest_*` must return.

Configurations that other programs queue are checked and completed, and Optuna cannot change a queued trial.
"""
MIGRATIONS = "storages/_rdb/alembic/versions"
"""The folder of Optuna's migrations, from which the newest revision is read.

`RDBStorage.get_head_version` needs an open storage, and the import of Optuna, which reading verbs do without.
"""
_STUDIES = table("studies", column("study_id"), column("study_name"))


def rename_study(storage: RDBStorage, study_id: int, name: str) -> None:
    """Rename a study; Optuna itself can only copy one, trial by trial."""
    with storage.engine.begin() as connection:
        connection.execute(update(_STUDIES).where(_STUDIES.c.study_id == study_id).values(study_name=name))
