"""What a sweep would try, how long it would take and what it would write; nothing is written, nothing is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from regtune.config import DataConfig
from regtune.data import Split, load_arrays, split_of
from regtune.errors import DataError, NoStudies, StudyNotFound
from regtune.executors.local import default_workers
from regtune.leaderboard import Row, StudyInfo, list_studies, read_board, read_study
from regtune.settings import Settings
from regtune.space import Space, controls
from regtune.spec import SweepSpec
from regtune.spec.checks import most_epochs
from regtune.storage import open_engine, place, redact

SECONDS_AN_EPOCH = 0.85
"""Guess where nothing was measured: 48,000 images, 784-128-64-10, batches of 32, on one core of an AVX2 machine."""
GUESS_IMAGES, GUESS_WEIGHTS, GUESS_BATCH = 48_000, 109_386, 32
START_SECONDS = 8.0
"""Starting workers: importing TensorFlow."""
STUDIES_READ, TRIALS_READ = 5, 40
FEATURES, CLASSES = 784, 10
IMAGES = {"mnist": 48_000, "fashion-mnist": 48_000, "mnist-5k": 3_200}
"""To train on by default; for a guess where the data is not here yet."""
BYTES_AT_FIRST, BYTES_A_TRIAL, BYTES_AN_EPOCH = 1_070_000, 15_000, 1_600
"""Both databases together: empty, and as they grew over two sweeps (32 trials of 296 epochs, 30 trials of 332)."""


@dataclass(frozen=True)
class Searched:
    """One searched parameter, for people. count: its values, where they can be counted."""

    name: str
    kind: str
    range: str
    condition: str
    count: int | None


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

    size: how many distinct configurations there are; None where a parameter is continuous. trials: how many would
    be run, of which `controls` come first; controls_fit: whether the budget has room for a searched trial beside
    them; untried: how many configurations of a grid the budget leaves out. standing: whether the study exists, and
    how far it is; differences: why it cannot go on, one line a key. disk_bytes: what it writes, about.
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
    untried: int
    max_epochs: int
    workers: int
    duration: Duration | None
    data: str
    data_notes: tuple[str, ...]
    data_problem: str
    standing: str
    differences: tuple[str, ...]
    disk_bytes: int | None
    writes: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def make_plan(spec: SweepSpec, settings: Settings) -> Plan:
    """The plan of `spec`. Raises StorageError for a database that cannot be read."""
    space = Space(spec)
    data = DataConfig(name=spec.dataset, validation=spec.split.validation, split_seed=spec.split.seed)
    split, notes, problem = _data(data, settings)
    first = controls(spec, data) if spec.controls else []
    images = len(split.train) if split else IMAGES.get(spec.dataset)
    trials = _trials(spec, space.size, len(first))
    rows, standing, differences = _earlier(spec, settings)
    workers = settings.workers or default_workers()
    duration = None if images is None else _duration(spec, rows, images, trials, workers)
    return Plan(
        study=spec.name,
        method=spec.method,
        metric=spec.metric.name,
        goal=spec.metric.goal,
        parameters=tuple(Searched(r.name, r.kind, r.range, r.condition, r.count) for r in space.rows),
        size=space.size,
        run_cap=spec.run_cap,
        timeout_seconds=spec.timeout,
        controls=tuple(control.name for control in first),
        controls_fit=not first or spec.run_cap is None or spec.run_cap > len(first),
        untried=_untried(spec, space.size, len(first)),
        max_epochs=most_epochs(spec),
        workers=workers,
        duration=duration,
        data=_data_text(spec, split),
        data_notes=notes,
        data_problem=problem,
        standing=standing,
        differences=differences,
        disk_bytes=_disk(spec, trials, duration) if trials is not None else None,
        writes={
            "studies": place(settings.storage_url),
            "MLflow": redact(settings.mlflow_uri),
            "artifacts": str(settings.artifacts),
        },
    )


def _data(data: DataConfig, settings: Settings) -> tuple[Split | None, tuple[str, ...], str]:
    """How the images are divided, what to know of them, and why a sweep would refuse them."""
    try:
        found = load_arrays(data.name, settings.data_dir)
        split = split_of(found, data)
    except DataError as error:
        return None, (), str(error)
    return split, (*found.notes, *split.notes), ""


def _data_text(spec: SweepSpec, split: Split | None) -> str:
    if split is None:
        return spec.dataset
    return f"{spec.dataset}: {len(split.train):,} train, {len(split.validation):,} validation"


def _trials(spec: SweepSpec, size: int | None, first: int) -> int | None:
    """Trials that would be run, None when only the timeout decides."""
    limits = [] if spec.run_cap is None else [spec.run_cap]
    if spec.method == "grid" and size is not None:
        limits.append(size + first)
    return min(limits, default=None)


def _untried(spec: SweepSpec, size: int | None, first: int) -> int:
    if spec.method != "grid" or size is None or spec.run_cap is None:
        return 0
    return max(0, size + first - spec.run_cap)


def _earlier(spec: SweepSpec, settings: Settings) -> tuple[list[Row], str, tuple[str, ...]]:
    """Complete trials on the same data in this folder, and how the study of this name stands."""
    try:
        engine = open_engine(settings.storage_url)
    except NoStudies:
        return [], "new", ()
    try:
        similar = [s.info for s in list_studies(engine) if s.info.data.get("name") == spec.dataset]
        rows = [
            row for info in similar[:STUDIES_READ] for row in read_board(engine, info.name, limit=TRIALS_READ)
        ]
        try:
            standing, differences = _standing(spec, read_study(engine, spec.name))
        except StudyNotFound:
            standing, differences = "new", ()
        return [row for row in rows if row.state == "COMPLETE"], standing, differences
    finally:
        engine.dispose()


def _standing(spec: SweepSpec, info: StudyInfo) -> tuple[str, tuple[str, ...]]:
    differences = spec.differences(info.spec)
    if differences:
        return "exists with another sweep file; take --name, or --fresh", tuple(differences)
    return f"goes on; finished trials: {info.finished}", ()


def _duration(
    spec: SweepSpec, rows: Sequence[Row], images: int, trials: int | None, workers: int
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
        return Duration(spec.timeout, spec.timeout, epoch_seconds, epochs, len(measured))
    rounds = trials / min(workers, trials)
    most = START_SECONDS + rounds * longest * epoch_seconds
    about = START_SECONDS + rounds * epochs * epoch_seconds
    limit = spec.timeout or math.inf
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
    """Free space where `folder` is, or would be made."""
    import shutil

    place = folder.resolve()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
