"""The run of a sweep: a study, its workers and its tracking, put together and ended."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from regtune.config.sweepfile import SweepSpec
from regtune.config.trial import DataConfig
from regtune.data.datasets import Arrays, Split, load_arrays, split_of
from regtune.errors import SettingsError, StudyBusy
from regtune.executors import Executor
from regtune.executors.local import LocalExecutor, default_workers
from regtune.search import Space
from regtune.settings import MAX_WORKERS, Settings, load_settings
from regtune.storage import database_path, is_sqlite, open_engine, place, understood, writable_folder
from regtune.storage.mlflow import check_store
from regtune.storage.optuna import Patience
from regtune.study.board import read_top
from regtune.study.ownership import hold
from regtune.study.progress import Observer
from regtune.study.record import FILE, Value
from regtune.study.study import Study
from regtune.sweep.coordinator import Coordinator, SweepOutcome
from regtune.sweep.standing import Standing
from regtune.tracking.live import Tracker

EARLIER_BEST = 5  # how many configurations of an earlier study are enqueued
MOST_CONTROLS = 7  # of a study; controls may be among the best, and have nothing to enqueue
BREAK_OFF_SECONDS = 2.0


class _Silent(Observer): ...


def run_sweep(
    spec: SweepSpec | Mapping[str, Any] | str | Path,
    *,
    settings: Settings | None = None,
    workers: int | None = None,
    observer: Observer | None = None,
    fresh: bool = False,
    from_study: str | None = None,
    stop: threading.Event | None = None,
    executor: Executor | None = None,
    tracker: Callable[[Settings, str, str | None], Tracker] = Tracker,
) -> SweepOutcome:
    """Start or resume the study of a sweep file and run it until its budget is used.

    Args:
        spec: The path of a sweep file, a `SweepSpec`, or a sweep file's keys and values.
        settings: Where databases, artifacts and data sets are; by default read from the environment.
        workers: Number of worker processes; by default `REGTUNE_WORKERS`, else one per core.
        observer: An object with the three methods of `regtune.study.progress.Observer`, called from this thread.
        fresh: Set an earlier study of the same name aside and start anew.
        from_study: Name of a study whose best configurations are tried first.
        stop: Once set, every running trial ends with its epoch and goes back into the queue.
        executor: Where trials train; by default `workers` processes that end with the sweep. One that is given is left
            running, unless the sweep breaks off.
        tracker: Makes what keeps MLflow up to date; called with the settings, the study's name and that of a study set
            aside for it.

    Returns:
        How the sweep ended; `outcome.best` has the best trial's number, value, parameters and configuration.

    Raises:
        SpecError: The sweep file is not valid.
        SettingsError: A setting or `workers` is not valid.
        StudyBusy: Another process runs the study.
        SpecChanged: The study exists with another sweep file.
        DataError: The data set is missing or damaged.
        StorageError: A database cannot be opened, read or written.
        TrackingError: MLflow's store cannot be used.
        WorkerError: Workers cannot be started.
        TooManyFailures: More trials failed than `max_failures` allows.

    Example:
        >>> outcome = run_sweep("sweeps/quickstart.yaml", workers=2)
        >>> result = train(outcome.best.config)
    """
    spec = SweepSpec.of(spec)
    settings = settings or load_settings()
    if workers is not None and not (isinstance(workers, int) and 1 <= workers <= MAX_WORKERS):
        raise SettingsError(f"workers: expected a number from 1 to {MAX_WORKERS}, found {workers!r:.40}")
    where = place(settings.storage_url)
    observer, stop = observer or _Silent(), stop or threading.Event()
    data = DataConfig(name=spec.dataset, validation=spec.split.validation, split_seed=spec.split.seed)
    arrays = load_arrays(data.name, settings.data_dir)  # before anything is written
    split = split_of(arrays, data)
    for note in (*arrays.notes, *split.notes):
        observer.note(note)
    writable_folder(settings.home.resolve())
    if is_sqlite(settings.storage_url):
        writable_folder(database_path(settings.storage_url).parent)
    check_store(settings.mlflow_uri)
    with hold(settings, spec.name) as ownership, understood(where), ExitStack() as opened:
        earlier = _earlier(settings, from_study)
        patience = Patience(where, ownership.check, observer.note, stop)
        facts = data_facts(data, arrays, split)
        study = Study.open(settings, spec, data=facts, fresh=fresh, patience=patience)
        ownership.sign(study.optuna)
        if spec.file:
            study.set_attribute(FILE, spec.file)
        if executor is None:
            count = 0 if _used(spec, study) else workers or settings.workers or default_workers()
            executor = opened.enter_context(closing(LocalExecutor(count, settings.data_dir)))
        tracking = tracker(settings, study.name, study.aside)
        opened.callback(tracking.close, timeout_seconds=BREAK_OFF_SECONDS)
        coordinator = Coordinator(
            spec,
            study,
            executor,
            tracking,
            observer,
            stop,
            data=data.model_copy(update={"digest": arrays.digest}),
            folder=settings.artifacts / "trials",
        )
        try:
            coordinator.prepare(earlier)
            return coordinator.run()
        except StudyBusy:
            tracking.close(timeout_seconds=0)  # the study is another's to write
            raise


def data_facts(data: DataConfig, arrays: Arrays, split: Split) -> Mapping[str, Any]:
    """What is stored of a data set, in a study and in MLflow."""
    return {
        "name": arrays.name,
        "source": arrays.source,
        "digest": arrays.digest,
        "features": int(arrays.x_train.shape[1]),
        "classes": int(arrays.y_train.max()) + 1,
        "train": len(split.train),
        "validation": len(split.validation),
        "split_seed": data.split_seed,
    }


def _used(spec: SweepSpec, study: Study) -> bool:
    """Whether nothing is left to train, so that no worker need start."""
    tally = Standing(study, Space(spec)).tally
    beside = spec.method == "grid" and tally.waiting > 0  # maybe a control, which comes beside the points
    return spec.run_cap is not None and tally.finished >= spec.run_cap and not beside


def _earlier(settings: Settings, name: str | None) -> list[tuple[str, Mapping[str, Value]]]:
    """Uid and parameters of the best trials of study `name`. Raises StudyNotFound."""
    if name is None:
        return []
    rows = read_top(open_engine(settings.storage_url), name, EARLIER_BEST + MOST_CONTROLS).rows
    found = [
        (row.record.uid, row.record.parameters)
        for row in rows
        if row.state == "COMPLETE" and row.record is not None and row.record.parameters
    ]
    return found[:EARLIER_BEST]
