"""Openings of test sets: each is stored in its study before a prediction is made, and none is ever taken back."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from pydantic import TypeAdapter, ValidationError

from regtune.errors import StorageError, StudyBusy
from regtune.escaping import printable
from regtune.registry.version import Opening
from regtune.settings import Settings
from regtune.storage import open_storage, place, understood
from regtune.study.ownership import Ownership, hold, session
from regtune.study.record import TEST_OPENINGS
from regtune.study.study import load

PATIENCE_SECONDS = 10.0
"""How long another promotion is waited for that holds the study for a moment."""
_Openings = TypeAdapter(tuple[Opening, ...])


def open_test_set(settings: Settings, opening: Opening) -> tuple[Opening, ...]:
    """Store an opening, and return those of its data by its study so far, this one the last.

    Raises StudyNotFound, StudyBusy while the study is being run, StorageError.
    """
    with understood(place(settings.storage_url)), _held(settings, opening.study) as ownership:
        study = load(open_storage(settings, ownership.check, session(opening.study)), opening.study)
        openings = (*openings_of(study.user_attrs, opening.study), opening)
        study.set_user_attr(TEST_OPENINGS, [one.model_dump(mode="json") for one in openings])
    return tuple(one for one in openings if one.data == opening.data)


def openings_of(attributes: Mapping[str, Any], study: str) -> tuple[Opening, ...]:
    """The openings in a study's attributes, the oldest first. Raises StorageError."""
    try:
        return _Openings.validate_python(attributes.get(TEST_OPENINGS, ()))
    except ValidationError as error:
        why = f"its openings of test sets cannot be read ({error.errors()[0]['msg']})"
        raise StorageError(
            f'study "{printable(study)}": {why}; were they written by another version?'
        ) from None


@contextmanager
def _held(settings: Settings, study: str) -> Iterator[Ownership]:
    """Hold the study; for a while another holder is waited for. Raises StudyBusy."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    with ExitStack() as stack:
        while True:
            try:
                ownership = stack.enter_context(hold(settings, study))
                break
            except StudyBusy:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield ownership
