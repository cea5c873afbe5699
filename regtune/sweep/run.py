"""The run of a sweep: its study is held and searched, and what comes at its end is done."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from regtune.config.sweepfile import SweepSpec
from regtune.executors import Executor
from regtune.settings import Settings, load_settings
from regtune.storage import open_engine
from regtune.study.board import read_top
from regtune.study.decision import Decision
from regtune.study.progress import Observer, Progress
from regtune.study.record import FILE, Value
from regtune.sweep.coordinator import Coordinator, SweepOutcome
from regtune.sweep.held import Held, MakeTracker, holding
from regtune.tracking.live import Tracker

EARLIER_BEST = 5  # how many configurations of an earlier study are enqueued
MOST_CONTROLS = 7  # of a study; controls may be among the best, and have nothing to enqueue

AtEnd = Callable[[Held, Callable[[], Progress]], Decision | None]
"""What comes once the search's budget is used, in the same workers; it is given what tells the sweep's progress."""


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
    tracker: MakeTracker = Tracker,
    at_end: AtEnd | None = None,
) -> SweepOutcome:
    """Start or resume the study of a sweep file and run it until its budget is used.

    This is the search alone; `regtune.evidence.run_sweep` ends it in a decision.

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
        at_end: Called once the budget is used and nobody has stopped the sweep; what it returns is
            `outcome.decision`.

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
    spec, settings = SweepSpec.of(spec), settings or load_settings()
    earlier = _earlier(settings, from_study)
    with holding(
        spec,
        settings,
        workers=workers,
        observer=observer,
        stop=stop,
        executor=executor,
        tracker=tracker,
        fresh=fresh,
    ) as held:
        if spec.file:
            held.study.set_attribute(FILE, spec.file)
        coordinator = coordinate(held)
        coordinator.prepare(earlier)
        return coordinator.run(at_end and partial(at_end, held))


def coordinate(held: Held) -> Coordinator:
    """Return the coordinator of a study that this process holds."""
    return Coordinator(
        held.spec,
        held.study,
        held.executor,
        held.tracker,
        held.observer,
        held.stop,
        data=held.data,
        folder=held.settings.artifacts / "trials",
    )


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
