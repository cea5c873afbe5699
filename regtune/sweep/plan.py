"""The plan of a sweep: what it would try, how long it would take and where it would write."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean

from sqlalchemy import Engine

from regtune.config.sweepfile import SweepSpec
from regtune.config.sweepfile.checks import most_epochs
from regtune.config.trial import DataConfig
from regtune.data.datasets import Arrays, load_arrays, split_of
from regtune.errors import COMMAND, NoStudies, SpecChanged, StudyNotFound
from regtune.executors.local import default_workers
from regtune.executors.ray_driver import RayCluster
from regtune.search import Searched, Space, controls
from regtune.settings import Settings
from regtune.storage import open_engine, place
from regtune.study.board import list_studies, read_board, read_progress, read_study
from regtune.study.progress import Row
from regtune.study.study import require_same

SECONDS_AN_EPOCH = 0.85
"""Guess where nothing was measured: 48,000 images, 784-128-64-10, batches of 32, on one core of an AVX2 machine."""
GUESS_IMAGES, GUESS_WEIGHTS, GUESS_BATCH = 48_000, 109_386, 32
START_SECONDS = 8.0  # starting workers: importing TensorFlow
STUDIES_READ, TRIALS_READ = 5, 40
FEATURES, CLASSES = 784, 10


@dataclass(frozen=True)
class Duration:
    """How long a sweep takes, in seconds, its decision included where that uses all its epochs.

    epochs_measured: how many epochs here this rests on; 0 marks a guess.
    """

    seconds: float
    at_most_seconds: float
    epoch_seconds: float
    epochs_a_trial: float
    epochs_measured: int


@dataclass(frozen=True)
class Plan:
    """What a sweep would do.

    size: how many distinct configurations there are; None where a parameter is continuous. controls: what comes
    first; controls_fit: whether the budget has room for a searched trial beside them; beside: how many of them come
    beside a grid, of which the budget counts the points alone. untried: how many points of a grid the budget leaves
    out. decision_share: epochs of the decision at most, as a share of the search's; 0 for none. workers: None for as
    many as a cluster has room for; the duration is then of one. duration: None where the budget is used. standing:
    whether the study exists, and how far it is. refusal: why a sweep would be refused, in its own words, or empty.
    """

    study: str
    method: str
    metric: str
    goal: str
    parameters: tuple[Searched, ...]
    size: int | None
    run_cap: int | None
    timeout_seconds: float | None
    controls: tuple[str, ...]
    controls_fit: bool
    beside: int
    untried: int
    decision_share: float
    max_epochs: int
    workers: int | None
    duration: Duration | None
    data: str
    data_notes: tuple[str, ...]
    standing: str
    refusal: str
    writes: Mapping[str, str]


@dataclass(frozen=True)
class _Standing:
    """How the study of this name stands.

    finished: trials that count in the budget. tried: points of a grid. beside: controls beside it that have ended.
    refusal: why it cannot go on.
    """

    text: str = "new"
    finished: int = 0
    spent_seconds: float = 0.0
    tried: int = 0
    beside: int = 0
    ended: bool = False
    refusal: str = ""


def make_plan(
    spec: SweepSpec, settings: Settings, *, fresh: bool = False, on: RayCluster | None = None
) -> Plan:
    """The plan of `spec`. Raises DataError, and StorageError for a database that cannot be read.

    fresh: as if there were no study of this name. on: where it would train, in place of this machine.
    """
    space = Space(spec)
    data = DataConfig(name=spec.dataset, validation=spec.split.validation, split_seed=spec.split.seed)
    arrays = load_arrays(data.name, settings.data_dir)
    split = split_of(arrays, data)
    first = controls(spec, data) if spec.controls else []
    points = space.size if spec.method == "grid" else None
    beside = sum(control.parameters is None for control in first) if points is not None else 0
    rows, standing = _earlier(spec, settings, arrays, points)
    if fresh:
        standing = _Standing()
    left = _left(spec, points, standing)
    if left is not None:
        left += max(0, beside - standing.beside)  # one of a version before may have more
    workers = settings.workers or (None if on and on.address else default_workers())
    duration = None
    if not standing.ended:
        duration = _duration(spec, rows, len(split.train), left, workers or 1, standing.spent_seconds)
    return Plan(
        study=spec.name,
        method=spec.method,
        metric=spec.metric.name,
        goal=spec.metric.goal,
        parameters=space.rows,
        size=space.size,
        run_cap=spec.run_cap,
        timeout_seconds=spec.timeout,
        controls=tuple(control.name for control in first),
        controls_fit=not first or spec.run_cap is None or spec.run_cap > len(first) or points is not None,
        beside=beside,
        untried=max(0, points - spec.run_cap) if points is not None and spec.run_cap is not None else 0,
        decision_share=spec.decision_share,
        max_epochs=most_epochs(spec),
        workers=workers,
        duration=duration,
        data=f"{spec.dataset}: {len(split.train):,} train, {len(split.validation):,} validation",
        data_notes=(*arrays.notes, *split.notes),
        standing=standing.text,
        refusal=standing.refusal,
        writes={
            "studies": place(settings.storage_url),
            "MLflow": place(settings.mlflow_uri),
            "artifacts": str(settings.artifacts),
        },
    )


def _left(spec: SweepSpec, points: int | None, standing: _Standing) -> int | None:
    """Trials that would be run, of a grid its points; None when only the timeout decides."""
    limits = [] if spec.run_cap is None else [spec.run_cap - standing.finished]
    if points is not None:
        limits.append(points - standing.tried)
    return max(0, min(limits)) if limits else None


def _earlier(
    spec: SweepSpec, settings: Settings, arrays: Arrays, points: int | None
) -> tuple[list[Row], _Standing]:
    """Complete trials on the same data in this folder, and how the study of this name stands."""
    try:
        engine = open_engine(settings.storage_url)
    except NoStudies:
        return [], _Standing()
    known = {spec.dataset, arrays.digest}
    try:
        infos = [summary.info for summary in list_studies(engine)]
        similar = [info for info in infos if known & {info.data.get("name", ""), info.data.get("digest", "")}]
        boards = [read_board(engine, info.name, limit=TRIALS_READ) for info in similar[:STUDIES_READ]]
        rows = [row for board in boards for row in board.rows if row.state == "COMPLETE"]
        return rows, _standing(spec, engine, arrays, points)
    finally:
        engine.dispose()


def _standing(spec: SweepSpec, engine: Engine, arrays: Arrays, points: int | None) -> _Standing:
    try:
        info, spent = read_study(engine, spec.name), read_progress(engine, spec.name).elapsed_seconds
        require_same(spec, info.spec, info.data, {"name": arrays.name, "digest": arrays.digest})
    except StudyNotFound:
        return _Standing()
    except SpecChanged as error:
        return _Standing("exists, with another sweep file or other data", refusal=str(error))
    tried, said, remedy = 0, f"finished trials: {info.finished}", ""
    if points is not None:
        rows = read_board(engine, spec.name).rows if info.trials else []
        ended = [row for row in rows if row.state in ("COMPLETE", "PRUNED", "FAIL")]
        tried = len({tuple(sorted(row.parameters.items())) for row in ended if row.parameters})
        said = f"{tried} of {points} points of the grid are tried"
    standing = _Standing(f"resumes; {said}", info.finished, spent, tried, info.beside)
    if spec.timeout is not None and spent >= spec.timeout:
        remedy = f"timeout={2 * spec.timeout:g}"
    elif _left(spec, points, standing) != 0:
        return standing
    elif points is None or tried < points:
        remedy = f"run_cap={info.finished + (1 if points is None else points - tried)}"
    more = f"; resume with: {COMMAND.get()} --set {remedy}" if remedy else ""
    return replace(standing, text=f"complete; {said}{more}", ended=True)


def _duration(
    spec: SweepSpec, rows: Sequence[Row], images: int, trials: int | None, workers: int, spent: float
) -> Duration:
    structure = (spec.model.hidden, spec.training.batch_size)
    records = [row.record for row in rows if row.record]
    same = [one for one in records if (one.config.model.hidden, one.config.training.batch_size) == structure]
    measured = [seconds for record in same for seconds in record.epoch_seconds[1:]]
    if measured:
        epoch_seconds = fmean(measured)
    else:
        sizes = (FEATURES, *spec.model.hidden, CLASSES)
        weights = sum((before + 1) * after for before, after in pairwise(sizes))
        share = 0.5 + 0.5 * GUESS_BATCH / spec.training.batch_size  # half of an epoch's cost is per batch
        epoch_seconds = SECONDS_AN_EPOCH * images / GUESS_IMAGES * weights / GUESS_WEIGHTS * share
    longest = most_epochs(spec)
    alike = [record.epochs for record in same if record.config.training.max_epochs == longest]
    shortened = spec.early_stopping is not None or spec.early_terminate is not None
    epochs = fmean(alike) if alike else longest * (0.5 if shortened else 1.0)
    rounds = math.inf if trials is None else trials / min(workers, trials)
    limit = math.inf if spec.timeout is None else spec.timeout - spent
    turns = rounds if math.isinf(rounds) else math.ceil(rounds)  # the last round may have one trial
    each = (rounds * epochs, turns * longest)
    search = [min(START_SECONDS + trained * epoch_seconds, limit) for trained in each]
    about, most = (seconds + spec.decision_share * (spent + seconds) for seconds in search)
    return Duration(about, most, epoch_seconds, epochs, len(measured))
