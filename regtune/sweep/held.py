"""A study that this process holds, with the workers and the tracking that it has while it is held."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from regtune.config.sweepfile import SweepSpec
from regtune.config.trial import DataConfig
from regtune.data.datasets import Arrays, Split, load_arrays, split_of
from regtune.errors import SettingsError, StudyBusy
from regtune.executors import Executor
from regtune.executors.local import LocalExecutor, default_workers
from regtune.executors.ray import RayExecutor
from regtune.executors.ray_driver import RayCluster
from regtune.settings import MAX_WORKERS, Settings
from regtune.storage import database_path, is_sqlite, place, understood, writable_folder
from regtune.storage.mlflow import check_store
from regtune.storage.optuna import Patience
from regtune.study.ownership import hold
from regtune.study.progress import Observer
from regtune.study.study import Study
from regtune.tracking.live import Tracker

BREAK_OFF_SECONDS = 2.0

MakeTracker = Callable[[Settings, str, str | None], Tracker]
"""Makes what keeps MLflow up to date, from the settings, the study's name and that of a study set aside for it."""


class Silent(Observer): ...


@dataclass(frozen=True)
class Held:
    """A study that this process holds. data: its data set, with the digest. split: how that is divided."""

    spec: SweepSpec
    study: Study
    settings: Settings
    data: DataConfig
    arrays: Arrays
    split: Split
    executor: Executor
    tracker: Tracker
    observer: Observer
    stop: threading.Event


@contextmanager
def holding(
    spec: SweepSpec,
    settings: Settings,
    *,
    workers: int | None = None,
    observer: Observer | None = None,
    stop: threading.Event | None = None,
    executor: Executor | None = None,
    on: RayCluster | None = None,
    tracker: MakeTracker = Tracker,
    fresh: bool = False,
) -> Iterator[Held]:
    """Hold the study of `spec`, which is started or resumed, until the block ends. Raises what `run_sweep` does."""
    if workers is not None and not (isinstance(workers, int) and 1 <= workers <= MAX_WORKERS):
        raise SettingsError(f"workers: expected a number from 1 to {MAX_WORKERS}, found {workers!r:.40}")
    where = place(settings.storage_url)
    observer, stop = observer or Silent(), stop or threading.Event()
    data = DataConfig(name=spec.dataset, validation=spec.split.validation, split_seed=spec.split.seed)
    arrays = load_arrays(data.name, settings.data_dir)  # before anything is written
    split = split_of(arrays, data)
    for note in (*arrays.notes, *split.notes):
        observer.note(note)
    with ExitStack() as begun:
        own = executor is None
        if executor is None:  # its workers' imports go on while the study is opened
            count = workers or settings.workers
            executor = (
                RayExecutor(on, arrays, count)
                if on
                else LocalExecutor(count or default_workers(), settings.data_dir)
            )
            begun.callback(executor.close)
        writable_folder(settings.home.resolve())
        if is_sqlite(settings.storage_url):
            writable_folder(database_path(settings.storage_url).parent)
        check_store(settings.mlflow_uri)
        with hold(settings, spec.name) as ownership, understood(where), ExitStack() as opened:
            patience = Patience(where, ownership.check, observer.note, stop)
            facts = data_facts(data, arrays, split)
            study = Study.open(settings, spec, data=facts, fresh=fresh, patience=patience)
            ownership.sign(study.optuna)
            if own:
                opened.callback(executor.close)  # before another process may hold the study
            tracking = tracker(settings, study.name, study.aside)
            opened.callback(tracking.close, timeout_seconds=BREAK_OFF_SECONDS)
            data = data.model_copy(update={"digest": arrays.digest})
            try:
                yield Held(spec, study, settings, data, arrays, split, executor, tracking, observer, stop)
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
