"""The plan of a sweep: what it would try, how long it would take and what it would write."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from regtune.config.sweepfile import SweepSpec
from regtune.config.sweepfile.checks import most_epochs
from regtune.config.trial import DataConfig
from regtune.data.datasets import Arrays, load_arrays, split_of
from regtune.errors import COMMAND, DataError, NoStudies, SpecChanged, StudyNotFound
from regtune.executors.local import default_workers
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
IMAGES = {"mnist": 48_000, "fashion-mnist": 48_000, "mnist-5k": 3_200}
"""To train on by default; for a guess where the data is not here yet."""
BYTES_AT_FIRST, BYTES_A_TRIAL, BYTES_AN_EPOCH = 1_070_000, 15_000, 1_600
"""Both databases together: empty, and as they grew over two sweeps (32 trials of 296 epochs, 30 trials of 332)."""


@dataclass(frozen=True)
class Duration:
    """How long a sweep takes, in seconds. epochs_measured: how many epochs here this rests on; 0 marks a guess."""

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
    out. standing: whether the study exists, and how far it is; ended: whether its budget is used.
    differences: why it cannot go on, one line a key. refusal: why a sweep would be refused, in its own words, or empty.
    disk_bytes: what it writes, about.
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
    max_epochs: int
    workers: int
    duration: Duration | None
    data: str
    data_notes: tuple[str, ...]
    data_problem: str
    standing: str
    ended: bool
    differences: tuple[str, ...]
    refusal: str
    disk_bytes: int | None
    writes: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def make_plan(spec: SweepSpec, settings: Settings, *, fresh: bool = False) -> Plan:
    """The plan of `spec`. Raises StorageError for a database that cannot be read.

    fresh: as if there were no study of this name.
    """
    space = Space(spec)
    data = DataConfig(name=spec.dataset, validation=spec.split.validation, split_seed=spec.split.seed)
    found, split, problem = None, None, ""
    try:
        found = load_arrays(data.name, settings.data_dir)
        split = split_of(found, data)
    except DataError as error:
        problem = str(error)
    first = controls(spec, data) if spec.controls else []
    images = len(split.train) if split else IMAGES.get(spec.dataset)
    beside = sum(control.parameters is None for control in first) if spec.method == "grid" else 0
    points = space.size if spec.method == "grid" else None
    rows, standing = _earlier(spec, settings, found, points)
    if fresh:
        standing = _Standing()
    left = _left(spec, points, standing)
    if left is not None:
        left += beside - standing.beside
    workers = settings.workers or default_workers()
    shape = f": {len(split.train):,} train, {len(split.validation):,} validation" if split else ""
    duration = None
    if images is not None and not standing.ended:
        duration = _duration(spec, rows, images, left, workers, standing.spent_seconds)
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
        controls_fit=not first or spec.run_cap is None or spec.run_cap > len(first) or spec.method == "grid",
        beside=beside,
        untried=max(0, points - spec.run_cap) if points is not None and spec.run_cap is not None else 0,
        max_epochs=most_epochs(spec),
        workers=workers,
        duration=duration,
        data=spec.dataset + shape,
        data_notes=(*found.notes, *split.notes) if found and split else (),
        data_problem=problem,
        standing=standing.text,
        ended=standing.ended,
        differences=tuple(line.strip() for line in standing.refused.differences) if standing.refused else (),
        refusal=problem or (str(standing.refused) if standing.refused else ""),
        disk_bytes=_disk(spec, left, duration) if left is not None and not standing.ended else None,
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


@dataclass(frozen=True)
class _Standing:
    """How the study of this name stands.

    finished: trials that count in the budget. tried: points of a grid. beside: controls beside it that are
    complete. refused: why it cannot go on.
    """

    text: str = "new"
    finished: int = 0
    spent_seconds: float = 0.0
    ended: bool = False
    refused: SpecChanged | None = None
    tried: int = 0
    beside: int = 0


def _earlier(
    spec: SweepSpec, settings: Settings, data: Arrays | None, points: int | None
) -> tuple[list[Row], _Standing]:
    """Complete trials on the same data in this folder, and how the study of this name stands."""
    try:
        engine = open_engine(settings.storage_url)
    except NoStudies:
        return [], _Standing()
    known = {spec.dataset, data.digest if data else None}
    try:
        infos = [summary.info for summary in list_studies(engine)]
        similar = [info for info in infos if known & {info.data.get("name", ""), info.data.get("digest", "")}]
        boards = [read_board(engine, info.name, limit=TRIALS_READ) for info in similar[:STUDIES_READ]]
        rows = [row for board in boards for row in board.rows if row.state == "COMPLETE"]
        return rows, _standing(spec, engine, data, points)
    finally:
        engine.dispose()


def _standing(spec: SweepSpec, engine: Engine, data: Arrays | None, points: int | None) -> _Standing:
    try:
        info, spent = read_study(engine, spec.name), read_progress(engine, spec.name).elapsed_seconds
        facts = None if data is None else {"name": data.name, "digest": data.digest}
        require_same(spec, info.spec, info.data, facts)
    except StudyNotFound:
        return _Standing()
    except SpecChanged as error:
        return _Standing("exists, with another sweep file or other data", refused=error)
    tried, said = 0, f"finished trials: {info.finished}"
    if points is not None:
        rows = read_board(engine, spec.name).rows if info.trials else []
        ended = [row for row in rows if row.state in ("COMPLETE", "PRUNED", "FAIL")]
        tried = len({tuple(sorted(row.parameters.items())) for row in ended if row.parameters})
        said = f"{tried} of {points} points of the grid are tried"
    found = _Standing(f"resumes; {said}", info.finished, spent, tried=tried, beside=info.beside)
    if spec.timeout is not None and spent >= spec.timeout:
        why = f"the timeout is used; resume with: {COMMAND.get()} --set timeout={2 * spec.timeout:g}"
    elif _left(spec, points, found) != 0:
        return found
    elif points is None:
        more = info.finished + 1
        why = f"{info.finished} of {spec.run_cap} trials; resume with: {COMMAND.get()} --set run_cap={more}"
    elif found.tried < points:
        more = info.finished + points - found.tried
        why = f"{said}; resume with: {COMMAND.get()} --set run_cap={more}"
    else:
        why = f"all {points} points of the grid are tried"
    return replace(found, text=f"finished: {why}", ended=True)


def _duration(
    spec: SweepSpec, rows: Sequence[Row], images: int, trials: int | None, workers: int, spent: float
) -> Duration | None:
    structure = (spec.model.hidden, spec.training.batch_size)
    same = [
        row.record
        for row in rows
        if row.record and (row.record.config.model.hidden, row.record.config.training.batch_size) == structure
    ]
    measured = [seconds for record in same for seconds in record.epoch_seconds[1:]]
    if measured:
        epoch_seconds = sum(measured) / len(measured)
    else:
        share = 0.5 + 0.5 * GUESS_BATCH / spec.training.batch_size  # half of an epoch's cost is per batch
        epoch_seconds = SECONDS_AN_EPOCH * images / GUESS_IMAGES * _weights(spec) / GUESS_WEIGHTS * share
    longest = most_epochs(spec)
    alike = [record.epochs for record in same if record.config.training.max_epochs == longest]
    if alike:
        epochs = sum(alike) / len(alike)
    else:
        shortened = spec.early_stopping is not None or spec.early_terminate is not None
        epochs = longest * (0.5 if shortened else 1.0)
    if trials is None:
        assert spec.timeout is not None
        left = spec.timeout - spent
        return Duration(left, left, epoch_seconds, epochs, len(measured))
    rounds = trials / min(workers, trials)
    most = START_SECONDS + rounds * longest * epoch_seconds
    about = START_SECONDS + rounds * epochs * epoch_seconds
    limit = spec.timeout - spent if spec.timeout else math.inf
    return Duration(min(about, limit), min(most, limit), epoch_seconds, epochs, len(measured))


def _weights(spec: SweepSpec) -> int:
    sizes = (FEATURES, *spec.model.hidden, CLASSES)
    return sum((before + 1) * after for before, after in pairwise(sizes))


def _disk(spec: SweepSpec, trials: int, duration: Duration | None) -> int:
    """Databases, and the kept models twice: the trial's own and MLflow's."""
    epochs = duration.epochs_a_trial if duration else most_epochs(spec)
    models = min(spec.keep_models, trials) * 2 * (4 * _weights(spec) + 20_000)
    return int(BYTES_AT_FIRST + trials * (BYTES_A_TRIAL + epochs * BYTES_AN_EPOCH) + models)


def free_bytes(folder: Path) -> int:
    """Free space on the file system of `folder`, which need not exist yet."""
    existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    return shutil.disk_usage(existing).free
