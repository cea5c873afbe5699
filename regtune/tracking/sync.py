"""Synchronization of MLflow with the studies of a folder: compare, catch up, rebuild.

A study that somebody runs is left alone: its sweep writes it. While one is brought up to date it is held, as a
sweep holds it, so that nothing is written twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from regtune.errors import NoStudies, StudyBusy, TrackingError
from regtune.escaping import shell_word
from regtune.settings import Settings
from regtune.storage import open_engine
from regtune.study.ownership import hold, holder
from regtune.study.tables import reading, studies_of_regtune
from regtune.tracking.missing import Missing, counted
from regtune.tracking.projection import Projection, project
from regtune.tracking.store import open_reader, strays, understood
from regtune.tracking.studies import StudyTrials, Trials

Tell = Callable[[str, int, int], None]
"""Told of the progress: the study, how many of its runs have been seen to, and how many there are."""


@dataclass(frozen=True)
class Synced:
    """How MLflow stands for a study.

    running: who runs it; then nothing was looked at. lacks: what a look found; wrote: what was written. problem:
    why it could not be.
    """

    study: str
    trials: int = 0
    running: str | None = None
    lacks: Missing | None = None
    wrote: Missing | None = None
    problem: str | None = None

    @property
    def fine(self) -> bool:
        """Whether MLflow says what the study says, or its sweep sees to it."""
        return not self.problem and not self.lacks

    def to_json(self) -> dict[str, Any]:
        wrote, kinds = self.wrote, ("trials", "replicates", "own", "decision")
        return asdict(self) | {
            "wrote": None if wrote is None else {kind: getattr(wrote, kind) for kind in kinds}
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
            known = studies_of_regtune(connection)
        for name in sorted(known) if studies is None else studies:
            yield _one(settings, engine, name, check, tell)
    finally:
        engine.dispose()


def _one(settings: Settings, engine: Engine, name: str, check: bool, tell: Tell) -> Synced:
    StudyTrials(engine, name, at_rest=True)  # a name that is none is said first
    try:
        if check and (who := holder(settings, name)):
            return Synced(name, running=str(who))
        with nullcontext() if check else hold(settings, name, take_over=False):
            trials = StudyTrials(engine, name, at_rest=True)
            if not trials.begun:
                return Synced(name)
            found = catch_up(settings, trials, check, lambda done: tell(name, done, len(trials)))
            lacks, wrote = (found, None) if check else (None, found)
            count = sum(isinstance(key, int) for key in trials.numbers.values())
            return Synced(name, count, lacks=lacks, wrote=wrote)
    except StudyBusy:
        return Synced(name, running=str(holder(settings, name) or "another process"))
    except TrackingError as error:
        return Synced(name, problem=str(error))


def catch_up(
    settings: Settings, trials: Trials, check: bool = False, tell: Callable[[int], None] = lambda done: None
) -> Missing:
    """Write everything of a study at rest that MLflow lacks, and return what that was.

    Args:
        settings: where the store and the artifacts are.
        trials: its trials.
        check: only look: nothing is written, neither there nor anywhere else.
        tell: told how many trials and replicates have been seen to.

    Raises:
        TrackingError: the store cannot be used, or refuses a run.
    """
    facts = trials.facts
    with understood(settings):
        if check:
            reader = open_reader(settings)
            if reader is None or reader.experiment(facts.sweep) is None:
                missing = Missing(own=True, decision=facts.deciding is not None)
                for number, *_ in trials.read(trials.numbers.values()):
                    missing.add(not isinstance(number, int))
                return missing
            projection = Projection(facts, settings.artifacts, reader)
            former = (stray.folder for stray in strays(settings) if stray.former)
            projection.missing.place = next(former, None)
        else:
            projection = project(settings, facts)
        for done in projection.bring(trials):
            tell(done)
    if projection.refusals:
        refused = [*projection.refusals.values()]
        raise TrackingError(f"MLflow refuses {counted(len(refused), 'run')}; {refused[0]}")
    return projection.missing


def log_report(settings: Settings, study: str, path: Path) -> None:
    """Log a file as an artifact of a study's own run, under its own name: MLflow's page opens it there.

    `sync` leaves it as it is. Raises StudyNotFound, StorageError; TrackingError when MLflow is away or lacks the study.
    """
    engine = open_engine(settings.storage_url)
    try:
        facts = StudyTrials(engine, study, at_rest=False).facts
    finally:
        engine.dispose()
    with understood(settings):
        if open_reader(settings) is None:  # a store is made where runs are written, not for a page
            raise TrackingError(f"MLflow has nothing yet; try: regtune sync {shell_word(study)}")
        project(settings, facts).attach(path)
