"""A sweep that ends in a decision: `run_sweep` searches, then replicates the finalists and the controls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from regtune.config.sweepfile import SweepSpec
from regtune.evidence.decide import Budget, replicate
from regtune.executors import Executor
from regtune.executors.ray_driver import RayCluster
from regtune.settings import Settings
from regtune.study.decision import Decision
from regtune.study.progress import Observer, Progress
from regtune.sweep import SweepOutcome, run
from regtune.sweep.held import Held, MakeTracker
from regtune.tracking.live import Tracker


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
) -> SweepOutcome:
    """Start or resume the study of a sweep file, run it until its budget is used, and decide it by replicates.

    What decides, and for how many epochs, says the sweep file's key `decide`.

    Args:
        spec: The path of a sweep file, a `SweepSpec`, or a sweep file's keys and values.
        settings: Where databases, artifacts and data sets are; by default read from the environment.
        workers: Number of worker processes; by default `REGTUNE_WORKERS`, else one per core.
        observer: An object with the three methods of `regtune.study.progress.Observer`, called from this thread.
        fresh: Set an earlier study of the same name aside and start anew.
        from_study: Name of a study whose best configurations are tried first.
        stop: Once set, what is running ends with its epoch and restarts when the sweep resumes.
        executor: Where trials train; by default `workers` processes that end with the sweep. One that is given is left
            running, unless the sweep breaks off.
        on: A Ray cluster whose nodes train; by default this machine does. `workers` are then its actors, by default as
            many as it has room for.
        tracker: Makes what keeps MLflow up to date; called with the settings, the study's name and that of a study set
            aside for it.

    Returns:
        How the sweep ended; `outcome.decision` says what the replicates decide, `outcome.best` has the best single
        trial's number, value, parameters and configuration.

    Raises:
        SpecError: The sweep file is not valid.
        SettingsError: A setting or `workers` is not valid.
        StudyBusy: Another process runs the study.
        SpecChanged: The study exists with another sweep file.
        DataError: The data set is missing or damaged.
        StorageError: A database cannot be opened, read or written.
        TrackingError: MLflow's store cannot be used.
        WorkerError: Workers cannot be started, or the Ray cluster cannot be used or is gone.
        TooManyFailures: More trials failed than `max_failures` allows.

    Example:
        >>> outcome = run_sweep("sweeps/quickstart.yaml", workers=2)
        >>> chosen = outcome.decision.judged(outcome.decision.chosen)
        >>> result = train(chosen.candidate.config)
    """
    spec = SweepSpec.of(spec)
    return run.run_sweep(
        spec,
        settings=settings,
        workers=workers,
        observer=observer,
        fresh=fresh,
        from_study=from_study,
        stop=stop,
        executor=executor,
        on=on,
        tracker=tracker,
        at_end=_decide if spec.decision_share else None,
    )


def _decide(held: Held, progress: Callable[[], Progress]) -> Decision | None:
    """Decide a sweep whose search is over, for its share of the search's epochs."""
    study = held.study
    if not study.trials(TrialState.COMPLETE):
        held.observer.note("nothing is decided: no trial is complete")
        return None
    before = study.decision
    budget = Budget(epochs=round(held.spec.decision_share * progress().trial_epochs))
    decision = replicate(held, progress, budget=budget, vary=before.vary if before else "both")
    for note in decision.notes:
        held.observer.note(note)
    return decision
