"""The diagnosis of a study's choice, or of a configuration: what is trained for it, and what is read from the study."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Engine

from regtune.config.sweepfile import SweepSpec
from regtune.config.trial import higher_is_better
from regtune.data.datasets import Data, load_arrays, load_data, split_of
from regtune.errors import InputError, RegtuneError
from regtune.escaping import printable, shell_word
from regtune.evidence.diagnosis import (
    ALONG,
    Along,
    Diagnosis,
    ParameterEffect,
    Subject,
)
from regtune.evidence.fit import errors_of, fit_of, point_of
from regtune.evidence.parameters import complete, effects, most_important, replicate_noise
from regtune.evidence.strengths import curve_of, jobs_of, strengths_of
from regtune.evidence.textbook import sentences
from regtune.evidence.trainings import Job, Trained, train_all
from regtune.executors import Executor, Sample
from regtune.executors.local import LocalExecutor, default_workers
from regtune.search import Space
from regtune.settings import Settings, load_settings
from regtune.storage import open_engine, open_storage, place, understood
from regtune.study.best import load_best
from regtune.study.board import read_best, read_board, read_trial
from regtune.study.decision import Decision, read_decision, read_replicates
from regtune.study.ownership import hold, session
from regtune.study.progress import Row
from regtune.study.record import DIAGNOSIS, STUDY_UID
from regtune.study.study import derive_seed, load

QUICK_SECONDS = 100.0
"""For each part with --quick: two minutes, less what the last epochs and the end take."""
FEWEST_IMAGES = 500
FRACTIONS = 16, 8, 4, 2


@dataclass(frozen=True)
class Extent:
    """How much is trained. rounds: bootstrap trainings a strength; seeds: trainings a size."""

    strengths: int
    rounds: int
    seeds: int
    seconds: float | None


QUICK = Extent(strengths=5, rounds=4, seeds=2, seconds=QUICK_SECONDS)
WHOLE = Extent(strengths=7, rounds=10, seeds=4, seconds=None)


@dataclass(frozen=True)
class _Case:
    """What is diagnosed and what is known of it. rows: all trials; space: None where there is no study."""

    subject: Subject
    metric: str
    study: str | None = None
    uid: str | None = None
    rows: Sequence[Row] = ()
    space: Space | None = None
    decision: Decision | None = None
    noise: float | None = None

    @property
    def goal(self) -> Literal["minimize", "maximize"]:
        return "maximize" if higher_is_better(self.metric) else "minimize"

    @property
    def command(self) -> str:
        """Of the same diagnosis without --quick."""
        return f"regtune diagnose {shell_word(self.study or self.subject.name)}"


def diagnose(
    target: str,
    *,
    settings: Settings | None = None,
    along: str | None = None,
    quick: bool = False,
    workers: int | None = None,
    executor: Executor | None = None,
    on_progress: Callable[[str], object] = lambda line: None,
) -> Diagnosis:
    """Measure why a study's choice does what it does, or a configuration.

    Args:
        target: Name of a study, or the path of a file such as `best.yaml`, which ends in .yaml or .yml.
        settings: Where databases and data sets are; by default read from the environment.
        along: The strength along which bias and variance are measured: `dropout`, `l1`, `l2` or `epochs`; by default
            the technique that matters most among those that the study searches, else epochs.
        quick: Keep each part within two minutes on two cores; `notes` say what was shortened.
        workers: Number of worker processes; by default `REGTUNE_WORKERS`, else one per core.
        executor: Where it is trained; by default `workers` processes that end with the diagnosis.
        on_progress: Called with a line of progress.

    Returns:
        The diagnosis. That of a study is stored with it; where it cannot be, as while it runs, `notes` say so.

    Raises:
        InputError: `along` means nothing here.
        ConfigError: The file is not a configuration.
        StudyNotFound: There is no such study, or it has no complete trial.
        DataError: The data set is missing, damaged, or another than the study's.
        StorageError: A database cannot be opened, read or written.
        WorkerError: Workers cannot be started.
    """
    settings, begun = settings or load_settings(), time.monotonic()
    if along is not None and along not in ALONG:
        raise InputError(f"--along {printable(along)}: expected {', '.join(ALONG[:-1])} or {ALONG[-1]}")
    case = _case_of(target, settings)
    most = case.subject.config.training.max_epochs
    if along == "epochs" and most < 3:
        raise InputError(f"--along epochs: the configuration trains for {most}; expected 3 at least")
    data = load_data(case.subject.config.data, settings.data_dir)
    count = workers or settings.workers or default_workers()
    extent = QUICK if quick else WHOLE
    found = _Findings(case, extent, data, count, on_progress)
    found.read_parameters()
    if executor is None:
        with closing(LocalExecutor(count, settings.data_dir)) as own:
            found.train(own, along, settings)
    else:
        found.train(executor, along, settings)
    diagnosis = found.diagnosis(quick, time.monotonic() - begun)
    return diagnosis if case.study is None else _store(settings, case.study, diagnosis)


def _case_of(target: str, settings: Settings) -> _Case:
    if target.endswith((".yaml", ".yml")):
        best = load_best(Path(target))
        metric = best.provenance.metric if best.provenance else "val_cross_entropy"
        subject = Subject(name=target, mix=best.config.mix, why="the file's", config=best.config)
        return _Case(subject, metric)
    engine = open_engine(settings.storage_url)
    try:
        decision = read_decision(engine, target)
        subject = _subject(engine, target, decision)
        board = read_board(engine, target)
        replicates = read_replicates(engine, target)
    finally:
        engine.dispose()
    info = board.info
    try:
        space = Space(SweepSpec.from_dict({**info.spec, **info.budget}))
    except RegtuneError:  # another version wrote it
        space = None
    noise = replicate_noise(replicates, info.metric)
    return _Case(subject, info.metric, info.name, info.uid, board.rows, space, decision, noise)


def _subject(engine: Engine, study: str, decision: Decision | None) -> Subject:
    """What the decision chose, else the best trial. Raises StudyNotFound when none is complete."""
    chosen = decision.judged(decision.chosen) if decision else None
    if chosen is not None:
        candidate, config = chosen.candidate, chosen.candidate.config
        if candidate.trial is not None:
            record = read_trial(engine, study, candidate.trial).record
            config = record.config if record else config
        return Subject(name=candidate.name, mix=config.mix, why="the decision's choice", config=config)
    row = read_best(engine, study)
    assert row.record is not None
    why = f"the best of single runs; a choice by replicates: regtune decide {shell_word(study)}"
    return Subject(name=f"trial {row.number}", mix=row.mix, why=why, config=row.record.config)


class _Findings:
    """The parts of a diagnosis, one after another."""

    def __init__(
        self, case: _Case, extent: Extent, data: Data, workers: int, on_progress: Callable[[str], object]
    ) -> None:
        self._case, self._extent, self._data, self._workers = case, extent, data, workers
        self._tell = on_progress
        self._trained: list[Trained] = []
        self._notes = list[str]()
        self._missing = dict[str, str]()
        self._parts = dict[str, Any]()
        self._effects: tuple[ParameterEffect, ...] = ()

    def read_parameters(self) -> None:
        case = self._case
        if case.space is None:
            needs = "its sweep file cannot be read" if case.study else "needs a study: regtune diagnose STUDY"
            self._missing["parameters"] = needs
            return
        self._tell("reading what the search tells about its parameters")
        self._effects = effects(case.space, case.rows, case.goal, case.noise)
        if case.noise is None:
            self._notes.append(
                f"the noise of a training is not measured: regtune decide {shell_word(case.study or 'STUDY')}"
            )

    def train(self, executor: Executor, along: str | None, settings: Settings) -> None:
        """Train for errors, for fit, and for bias and variance, each within the time of a part."""
        every = len(self._data.x_train)
        trained = self._at_sizes(executor, [every], "all images")
        self._read_errors(trained.get((every, 0)), settings)
        smaller = sorted({max(1, every // part) for part in FRACTIONS} - {every})
        trained |= self._at_sizes(executor, smaller, "learning curve")
        points = [
            point
            for size in sorted({size for size, _ in trained})
            if (point := point_of(size, [one for key, one in trained.items() if key[0] == size]))
        ]
        if not points:
            needs = "no training of it kept weights within its time"
            self._missing |= dict.fromkeys(("fit", "bias_variance"), f"{needs}; try: {self._case.command}")
            return
        if points[-1].images < every:
            self._notes.append(f"the learning curve ends at {points[-1].images:,} of {every:,} images")
        none = self._case.decision.none if self._case.decision else None
        whole = none is not None and points[-1].images == every  # as that was trained
        without = none.figures.get("val_cross_entropy") if none and whole else None
        self._parts["fit"] = fit_of(points, self._data.classes, without.mean if without else None)
        self._bias_variance(executor, along, _pace(trained, points[-1].images, every))

    def _at_sizes(self, executor: Executor, sizes: Sequence[int], what: str) -> dict[Any, Trained]:
        """Train the choice on so many images, several times each: with its own seed, then with others."""
        config, every = self._case.subject.config, len(self._data.x_train)
        seeds = [config.seed]
        seeds += [derive_seed(config.seed, turn, "replicate") for turn in range(1, self._extent.seeds)]
        jobs = [
            Job(
                key=(size, turn),
                config=config.model_copy(update={"seed": seed}),
                sample=None if size == every else Sample(images=size),
                predictions=(size, turn) == (every, 0),
            )
            for size in sizes
            for turn, seed in enumerate(seeds)
        ]
        return self._train(executor, jobs, what)

    def _read_errors(self, trained: Trained | None, settings: Settings) -> None:
        if trained is None or trained.predictions is None:
            self._missing["errors"] = (
                f"its training did not end: {_end_of(trained)}; try: {self._case.command}"
            )
            return
        data = self._case.subject.config.data
        arrays = load_arrays(data.name, settings.data_dir)
        held = split_of(arrays, data).validation
        self._parts["errors"] = errors_of(trained.predictions, self._data.y_val, held, arrays.x_train)

    def _bias_variance(self, executor: Executor, along: str | None, pace: _Pace) -> None:
        case, extent, every = self._case, self._extent, len(self._data.x_train)
        config = case.subject.config
        strength, why = self._along(along)
        command = f"{case.command} --along {along}" if along else case.command
        searched = case.space.spec.searched.get(strength) if case.space else None
        strengths = strengths_of(strength, config, searched, extent.strengths, pace.kept_epoch)
        a_round = len(strengths.values) * pace.epochs * pace.epoch_seconds
        if strength == "epochs":
            a_round = sum(strengths.values) * pace.epoch_seconds
        images = every
        if extent.seconds is not None:
            share = 0.8 * extent.seconds * self._workers / (a_round * extent.rounds)
            while images > FEWEST_IMAGES and images > share * every:
                images = max(FEWEST_IMAGES, images // 2)
        jobs = jobs_of(strengths, config, images, extent.rounds)
        trained = self._train(executor, jobs, f"bias and variance along {strength}")
        curve = curve_of(strengths, trained, self._data.y_val, images=images, of=every, why=why)
        if curve is None:
            self._missing["bias_variance"] = f"too few trainings ended; try: {command}"
        else:
            self._parts["bias_variance"] = curve
        if extent.seconds is not None:
            rounds = curve.points[0].trainings if curve else 0
            more = WHOLE.rounds * a_round * WHOLE.strengths / len(strengths.values)
            more += 2 * WHOLE.seeds * pace.epochs * pace.epoch_seconds
            minutes = max(1, round(more / self._workers / 60))
            part = f"all {every:,}" if images == every else f"{images:,} of {every:,}"
            self._notes.append(
                f"--quick: {rounds} trainings at each of {len(strengths.values)} strengths, on {part} images; "
                f"{WHOLE.rounds} at each of {WHOLE.strengths} on all take about {minutes} min: {command}"
            )

    def _along(self, along: str | None) -> tuple[Along, str]:
        if along is not None:
            return along, "as asked for"  # type: ignore[return-value]
        found = most_important(self._effects, ALONG[:3])
        if found is None:
            return "epochs", "no dropout, L1 or L2 is searched"
        name, share = found
        return name, f"it matters most of the searched strengths, importance {share:.2f}"  # type: ignore[return-value]

    def _train(self, executor: Executor, jobs: Sequence[Job], what: str) -> dict[Any, Trained]:
        def tell(count: int) -> None:
            self._tell(f"{what}: {count} of {len(jobs)} trainings")

        tell(0)
        trained = train_all(executor, jobs, self._extent.seconds, tell)
        self._trained += trained.values()
        if (kept := sum(one.complete for one in trained.values())) < len(jobs):
            self._notes.append(f"{what}: {kept} of {len(jobs)} trainings came to their end")
        return trained

    def diagnosis(self, quick: bool, seconds: float) -> Diagnosis:
        case = self._case
        return Diagnosis(
            study=case.study,
            uid=case.uid,
            metric=case.metric,
            goal=case.goal,
            subject=case.subject,
            quick=quick,
            parameters=self._effects,
            sentences=sentences(case.study, case.decision, self._parts.get("bias_variance")),
            missing=self._missing,
            noise=case.noise,
            complete=len(complete(case.space, case.rows)) if case.space else 0,
            trainings=len(self._trained),
            epochs=sum(one.record.epochs for one in self._trained),
            seconds=round(seconds, 1),
            notes=tuple(self._notes),
            measured=datetime.now(UTC).isoformat(timespec="seconds"),
            **self._parts,
        )


@dataclass(frozen=True)
class _Pace:
    """What a training of the choice takes. epochs: in all; kept_epoch: whose weights it keeps."""

    epoch_seconds: float
    epochs: float
    kept_epoch: int


def _pace(trained: Mapping[Any, Trained], images: int, every: int) -> _Pace:
    """The pace on all images, also of trainings that were ended; the epochs of those on `images`, which were not."""
    timed = [one.record for (size, _), one in trained.items() if size == every and one.record.epochs]
    ended = [one.record for (size, _), one in trained.items() if size == images and one.record.kept]
    scale = 1.0 if timed else every / images
    return _Pace(
        epoch_seconds=scale * statistics.fmean(one.seconds / one.epochs for one in timed or ended),
        epochs=statistics.fmean(one.epochs for one in ended),
        kept_epoch=round(statistics.fmean(one.kept.epoch for one in ended if one.kept)),
    )


def _end_of(trained: Trained | None) -> str:
    if trained is None or trained.record.end_reason == "stopped":
        return "it takes longer than its part of --quick"
    return trained.record.message or str(trained.record.end_reason)


def _store(settings: Settings, study: str, diagnosis: Diagnosis) -> Diagnosis:
    """Write the diagnosis to its study; where that cannot be, a note says why."""
    try:
        with hold(settings, study) as ownership, understood(place(settings.storage_url)):
            stored = load(open_storage(settings, ownership.check, session(study)), study)
            if stored.user_attrs.get(STUDY_UID) == diagnosis.uid:
                stored.set_user_attr(DIAGNOSIS, diagnosis.to_json())
                return diagnosis
            why = "another study has its name now"
    except RegtuneError as error:  # what took minutes to measure is shown all the same
        why = str(error)
    return diagnosis.model_copy(update={"notes": (*diagnosis.notes, f"not stored: {why}")})
