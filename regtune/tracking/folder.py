"""MLflow brought to what the studies of a folder say, one after the other: what `regtune sync` does.

A study that somebody runs is left alone: its sweep writes it. While one is brought up to date it is held, as a
sweep holds it, so that nothing is written twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine

from regtune.errors import NoStudies, StudyBusy, TrackingError
from regtune.settings import Settings
from regtune.storage import open_engine
from regtune.study.board.tables import reading, studies_of_regtune
from regtune.study.ownership import hold, holder
from regtune.tracking.sync import Caught, Missing, catch_up, missing
from regtune.tracking.trials import StudyTrials

Tell = Callable[[str, int, int], None]
"""Told of the progress: the study, how many of its trials have been seen to, and how many there are."""


@dataclass(frozen=True)
class Synced:
    """How MLflow stands for a study. running: who runs it; then nothing was looked at. lacks: what a look found;
    wrote: what was written. problem: why it could not be.
    """

    study: str
    trials: int = 0
    running: str = ""
    lacks: Missing | None = None
    wrote: Caught | None = None
    problem: str = ""

    @property
    def fine(self) -> bool:
        """Whether MLflow says what the study says, or its sweep sees to it."""
        return not self.problem and not self.lacks

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "study": self.study,
            "trials": self.trials,
            "running": self.running or None,
            "lacks": self.lacks.to_json() if self.lacks is not None else None,
            "wrote": self.wrote._asdict() if self.wrote is not None else None,
            "problem": self.problem or None,
        }


def sync(
    settings: Settings, studies: Collection[str] | None = None, *, check: bool = False, tell: Tell
) -> Iterator[Synced]:
    """Bring MLflow up to date for `studies`, all by default, and say of each how it went; check: only look.

    Whatever MLflow lacks is written, however much that is; a second time nothing is. Interrupted at any point, it
    goes on where it was. Raises StudyNotFound, StorageError.
    """
    try:
        engine = open_engine(settings.storage_url)
    except NoStudies:
        if studies is None:
            return
        raise
    try:
        with reading(engine) as connection:
            found = studies_of_regtune(connection)
        for name in sorted(found) if studies is None else studies:
            yield _one(settings, engine, name, check, tell)
    finally:
        engine.dispose()


def _one(settings: Settings, engine: Engine, name: str, check: bool, tell: Tell) -> Synced:
    StudyTrials(engine, name, at_rest=True)  # a name that is none is said first
    try:
        if check:
            who = holder(settings, name)
            return Synced(name, running=str(who)) if who else _look(settings, engine, name, tell)
        with hold(settings, name, take_over=False):
            return _write(settings, engine, name, tell)
    except StudyBusy:
        return Synced(name, running=str(holder(settings, name) or "another process"))
    except TrackingError as error:
        return Synced(name, problem=str(error))


def _look(settings: Settings, engine: Engine, name: str, tell: Tell) -> Synced:
    trials = StudyTrials(engine, name, at_rest=True)
    if not trials.begun:
        return Synced(name)
    found = missing(settings, trials, lambda done: tell(name, done, len(trials)))
    return Synced(name, len(trials), lacks=found)


def _write(settings: Settings, engine: Engine, name: str, tell: Tell) -> Synced:
    trials = StudyTrials(engine, name, at_rest=True)
    if not trials.begun:
        return Synced(name)
    tell(name, 0, len(trials))
    end = (trials.state, trials.winner, trials.ended_ms)
    caught = catch_up(settings, trials.facts, trials, *end, tell=lambda done: tell(name, done, len(trials)))
    return Synced(name, len(trials), wrote=caught)
