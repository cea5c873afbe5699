"""The run of a sweep: its study is held and searched, and what comes at its end is done."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from regtune.config.sweepfile import SweepSpec
from regtune.executors import Executor
from regtune.executors.ray_driver import RayCluster
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
    on: RayCluster | None = None,
    tracker: MakeTracker = Tracker,
    at_end: AtEnd | None = None,
) -> SweepOutcome:
    """Start or resume the study of a sweep file and run it until its budget is used: the search alone.

    `regtune.evidence.run.run_sweep` ends it in a decision, and describes the other arguments and the errors. at_end:
    called once the budget is used, unless a person stopped the sweep; what it returns is `outcome.decision`.
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
        on=on,
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
