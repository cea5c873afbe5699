"""The owner of a study: the one process that runs it, on any machine, and its name for readers."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import optuna
from sqlalchemy import text

from regtune.errors import StudyBusy
from regtune.escaping import printable, shell_word
from regtune.settings import Settings
from regtune.storage import database_path, is_sqlite, lock_path, locks, place, understood
from regtune.storage.locks import Holder
from regtune.storage.schema import STUDIES
from regtune.study.record import COORDINATOR

_SIGNATURE = text(
    "SELECT value_json FROM study_user_attributes JOIN studies USING (study_id) WHERE study_name = :name AND key = :key"
)


def holder(settings: Settings, name: str) -> Holder | None:
    """Who runs the study `name`, or None. Raises StorageError."""
    url = settings.storage_url
    if is_sqlite(url):
        return locks.file_holder(_lock_file(url, name))
    with STUDIES.opened(url) as engine:
        return locks.advisory_holder(engine, _lock_name(name))


def was_held(settings: Settings, name: str) -> bool:
    """Whether a study of this `name` was ever run on the SQLite database here: the file of its lock stays."""
    return _lock_file(settings.storage_url, name).exists()


class Ownership:
    """The right to write to a study: its lock, and proof after an outage that nobody else has run the study meanwhile.

    `check` is what a storage asks before it makes a call again, or any on a new connection.
    """

    def __init__(self, name: str, held: locks.AdvisoryHold | None) -> None:
        self._name = name
        self._held = held
        self._signature = uuid.uuid4().hex
        self._signed = False
        self._doubtful = False

    def sign(self, study: optuna.Study) -> None:
        """Sign the study; another coordinator that runs it later signs with another signature."""
        study.set_user_attr(COORDINATOR, self._signature)
        self._signed = True

    def check(self) -> None:
        """Require that nobody else has run the study since. Raises StudyBusy, or what an absent database raises."""
        if self._held is None:  # a file's lock is not lost while its process lives
            return
        try:
            self._doubtful |= self._held.check()
        except locks.Taken as taken:
            raise _busy(self._name, taken) from None
        if not self._doubtful:
            return
        study = f'study "{printable(self._name)}"'
        if not self._signed:
            raise StudyBusy(f"{study}: its database was away; run the same command again")
        signature = self._held.connection.scalar(_SIGNATURE, {"name": self._name, "key": COORDINATOR})
        if signature != json.dumps(self._signature):
            taken_over = f"{study} was run by another process while its database was away, or deleted"
            raise StudyBusy(f"{taken_over}; look at it with: regtune watch {shell_word(self._name)}")
        self._doubtful = False


@contextmanager
def hold(settings: Settings, name: str, *, take_over: bool = True) -> Iterator[Ownership]:
    """Hold the study `name`: on SQLite by a file beside it, on PostgreSQL by an advisory lock of its database.

    take_over: end the connections of whoever ran it before, to write to it oneself. Raises StudyBusy naming the process
    that has it, StorageError.
    """
    url = settings.storage_url
    with ExitStack() as stack:
        held = None
        try:
            if is_sqlite(url):
                stack.enter_context(locks.hold_file(_lock_file(url, name)))
            else:
                with understood(place(url)):
                    ours = locks.hold_advisory(STUDIES.engine(url), _lock_name(name), take_over)
                    held = stack.enter_context(ours)
        except locks.Taken as taken:
            raise _busy(name, taken) from None
        yield Ownership(name, held)


def _busy(name: str, taken: locks.Taken) -> StudyBusy:
    return StudyBusy(
        f'study "{printable(name)}" is being run by {taken}; '
        f"look at it with: regtune watch {shell_word(name)}"
    )


def session(name: str) -> str:
    """What PostgreSQL calls the connections on which the holder of the study `name` writes."""
    return locks.session_name(_lock_name(name))


def _lock_name(name: str) -> str:
    return f"study {name}"


def _lock_file(url: str, name: str) -> Path:
    return lock_path(database_path(url).parent, _lock_name(name))
