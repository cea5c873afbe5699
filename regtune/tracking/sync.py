"""Synchronization of MLflow with the studies of a folder: compare, catch up, rebuild.

A study that somebody runs is left alone: its sweep writes it. While one is brought up to date it is held, as a
sweep holds it, so that nothing is written twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import Engine

from regtune.errors import NoStudies, StudyBusy, TrackingError
from regtune.settings import Settings
from regtune.storage import open_engine
from regtune.study.ownership import hold, holder
from regtune.study.tables import reading, studies_of_regtune
from regtune.tracking import names
from regtune.tracking.contents import study_contents, trial_contents
from regtune.tracking.differences import experiment_lacks, lacking
from regtune.tracking.facts import ParentState, StudyFacts
from regtune.tracking.runs import Run
from regtune.tracking.store import open_reader, project, strays, understood
from regtune.tracking.trials import StudyTrials, Trials

Tell = Callable[[str, int, int], None]
"""Told of the progress: the study, how many of its trials have been seen to, and how many there are."""


@dataclass(frozen=True)
class Missing:
    """What MLflow lacks of a study.

    absent: trials without a run. wrong: trials whose run lacks something; of what kind, is counted in `kinds`. own:
    whether the study's own run or experiment lack something. place: where the artifacts of the folder lay before it
    was moved or copied, if MLflow says so still.
    """

    absent: int = 0
    wrong: int = 0
    own: bool = False
    kinds: Mapping[str, int] = field(default_factory=dict)
    place: str | None = None

    def __bool__(self) -> bool:
        return bool(self.absent or self.wrong or self.own or self.place)

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} of {count}" for kind, count in Counter(self.kinds).most_common())
        said = {
            f"{_trials(self.absent)} without a run": self.absent,
            f"{_trials(self.wrong)} whose run lacks something ({kinds})": self.wrong,
            "the study's own run or its experiment": self.own,
            f"the place of its artifacts, which is {self.place} no longer": self.place,
        }
        return "; ".join(words for words, true in said.items() if true)


class Caught(NamedTuple):
    """What had to be written: how many trials, and whether the study's own run or experiment."""

    trials: int
    own: bool


@dataclass(frozen=True)
class Synced:
    """How MLflow stands for a study.

    running: who runs it; then nothing was looked at. lacks: what a look found; wrote: what was written. problem:
    why it could not be.
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
        wrote = self.wrote and self.wrote._asdict()
        return asdict(self) | {
            "wrote": wrote,
            "running": self.running or None,
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
            return _bring(settings, engine, name, check, tell)
    except StudyBusy:
        return Synced(name, running=str(holder(settings, name) or "another process"))
    except TrackingError as error:
        return Synced(name, problem=str(error))


def _bring(settings: Settings, engine: Engine, name: str, check: bool, tell: Tell) -> Synced:
    trials = StudyTrials(engine, name, at_rest=True)
    if not trials.begun:
        return Synced(name)

    def done(count: int) -> None:
        tell(name, count, len(trials))

    if check:
        return Synced(name, len(trials), lacks=missing(settings, trials, done))
    done(0)
    end = trials.state, trials.winner, trials.ended_ms
    return Synced(name, len(trials), wrote=catch_up(settings, trials.facts, trials, *end, tell=done))


def catch_up(
    settings: Settings,
    facts: StudyFacts,
    trials: Trials,
    state: ParentState | None = None,
    winner: int | None = None,
    ended_ms: int | None = None,
    tell: Callable[[int], None] = lambda done: None,
) -> Caught:
    """Write everything of a study that MLflow lacks, and return what had to be made or changed.

    Args:
        settings: where the store and the artifacts are.
        facts: the study.
        trials: its trials.
        state: how the study stands; None leaves its own run as it is.
        winner: number of its best trial, if it has one.
        ended_ms: when it ended, in Unix milliseconds.
        tell: told how many trials have been seen to.

    Raises:
        TrackingError: the store cannot be used, or refuses a trial.
    """
    with understood(settings):
        projection, changed = project(settings, facts), 0
        projection.open()
        own = projection.writes > 0
        for done, written in projection.catch_up(trials):
            changed = written
            tell(done)
        if state is not None:
            own |= projection.study(state, winner, ended_ms)
        if projection.refusals:
            number, reason = next(iter(projection.refusals.items()))
            count = _trials(len(projection.refusals))
            raise TrackingError(f"MLflow refuses {count}; #{number:03d}: {reason}")
        return Caught(changed, own)


def missing(settings: Settings, trials: StudyTrials, tell: Callable[[int], None]) -> Missing:
    """What MLflow lacks of a study at rest. Nothing is written, neither there nor anywhere else.

    Raises TrackingError.
    """
    with understood(settings):
        reader, facts = open_reader(settings), trials.facts
        place = next((stray.folder for stray in strays(settings) if stray.former), None)
        experiment = reader.experiment(facts.sweep) if reader else None
        if reader is None or experiment is None:
            return Missing(absent=sum(1 for _ in trials.read(trials.numbers.values())), own=True)
        parents = reader.parents(experiment.experiment_id, facts.uid)
        kinds: Counter[str] = Counter()
        wrong, done, best = 0, 0, None
        seen: dict[str, bool] = {}
        for page in reader.trials(experiment.experiment_id, facts.uid):
            runs: dict[int, Run] = {}
            for run in page:
                uid = run.tags[names.TRIAL_UID]
                if seen.get(uid) and not run.deleted:
                    wrong, kinds["one run only"] = wrong + 1, kinds["one run only"] + 1
                elif uid in trials.numbers:
                    seen[uid] = seen.get(uid, False) or not run.deleted
                    if not run.deleted:
                        runs[trials.numbers[uid]] = run
            for number, state, record in trials.read(runs):
                wanted = trial_contents(facts, number, state, record)
                if lack := lacking(runs[number], wanted, reader, settings.artifacts):
                    wrong += 1
                    kinds.update(lack.kinds)
                if number == trials.winner:
                    best = runs[number]
            done += len(page)
            tell(done)
        absent = sum(1 for _ in trials.read([n for uid, n in trials.numbers.items() if uid not in seen]))
        own = experiment.deleted or [parent.deleted for parent in parents].count(False) != 1
        own = own or parents[0].deleted or bool(experiment_lacks(facts, experiment))
        if not own:
            own_run = study_contents(facts, trials.state, trials.winner, best, trials.ended_ms)
            own = bool(lacking(parents[0], own_run, reader, settings.artifacts))
        return Missing(absent, wrong, own, dict(kinds), place)


def _trials(count: int) -> str:
    return f"{count:,} trial{'' if count == 1 else 's'}"
