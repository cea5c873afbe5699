"""Watching a study from another process, through its database alone."""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import Engine

from regtune.settings import Settings
from regtune.storage import open_storage, place, understood
from regtune.study.board import read_ended, read_progress, read_rows
from regtune.study.ownership import holder
from regtune.study.progress import Observer
from regtune.study.study import load

ANSWER_SECONDS = 5.0  # how long the coordinator of a running study is waited for; it looks once a second


def follow(
    settings: Settings, engine: Engine, study: str, observer: Observer, wait: Callable[[], object]
) -> None:
    """Tell `observer` what happens in `study` until no process runs it.

    `wait` is called between two readings; when it returns something true, watching ends. Trials that had ended before
    are not told. Raises StudyNotFound, StorageError.
    """
    known = read_ended(engine, study)
    while True:
        running = holder(settings, study) is not None
        progress = read_progress(engine, study)
        observer.progress(progress)
        now = read_ended(engine, study)
        for row in read_rows(engine, study, now - known):
            observer.finished(row, progress)
        known = now
        if not running or wait():
            return


def answer(settings: Settings, study: str, key: str) -> str:
    """What the coordinator has answered to a request; empty when it has not within ANSWER_SECONDS."""
    until = time.monotonic() + ANSWER_SECONDS
    with understood(place(settings.storage_url)):
        asked = load(open_storage(settings), study)
        while time.monotonic() < until:
            found: str = asked.user_attrs[key].get("answer", "")
            if found:
                return found
            time.sleep(0.2)
    return ""
