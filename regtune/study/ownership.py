"""Who runs a study: one coordinator, on whatever machine; readers ask for its name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from regtune.errors import StudyBusy
from regtune.escaping import printable, shell_word
from regtune.settings import Settings
from regtune.storage import database_path, is_sqlite, lock_path, locks, place, studies_engine, understood
from regtune.storage.locks import Holder


def holder(settings: Settings, name: str) -> Holder | None:
    """Who runs the study `name`, or None. Raises StorageError."""
    url = settings.storage_url
    if is_sqlite(url):
        return locks.file_holder(_lock_file(url, name))
    engine = studies_engine(url)
    try:
        with understood(place(url)):
            return locks.advisory_holder(engine, _lock_name(name))
    finally:
        engine.dispose()


def was_held(settings: Settings, name: str) -> bool:
    """Whether a study of this `name` was ever run on the SQLite database here: the file of its lock stays."""
    return _lock_file(settings.storage_url, name).exists()


@contextmanager
def hold(settings: Settings, name: str, *, take_over: bool = True) -> Iterator[locks.Hold]:
    """Hold the study `name`: on SQLite by a file beside it, on PostgreSQL by an advisory lock of its database.

    take_over: end the connections of whoever ran it before, to write to it oneself. Raises StudyBusy naming the process
    that has it, StorageError.
    """
    url = settings.storage_url
    with ExitStack() as stack:
        try:
            if is_sqlite(url):
                held = stack.enter_context(locks.hold_file(_lock_file(url, name)))
            else:
                with understood(place(url)):
                    held = stack.enter_context(
                        locks.hold_advisory(studies_engine(url), _lock_name(name), take_over)
                    )
        except locks.Taken as taken:
            raise busy(name, taken) from None
        yield held


def busy(name: str, taken: locks.Taken) -> StudyBusy:
    """Another process runs the study `name`."""
    return StudyBusy(
        f'study "{printable(name)}" is being run by {taken.holder}; '
        f"look at it with: regtune watch {shell_word(name)}"
    )


def untouched(held: locks.Hold, name: str) -> None:
    """See that the lock has never been lost, for a process that has not signed the study yet. Raises StudyBusy."""
    try:
        lost = held.check()
    except locks.Taken as taken:
        raise busy(name, taken) from None
    if lost:
        raise StudyBusy(f'study "{printable(name)}": its database was away; give the same command again')


def session(name: str) -> str:
    """What PostgreSQL calls the connections on which the holder of the study `name` writes."""
    return locks.session_name(_lock_name(name))


def _lock_name(name: str) -> str:
    return f"study {name}"


def _lock_file(url: str, name: str) -> Path:
    return lock_path(database_path(url).parent, _lock_name(name))
