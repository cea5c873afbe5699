"""The decision of a study: its best candidates and its controls, trained again until they are told apart.

Replicate i of every candidate has the same seed and the same split. After 4, 8, 16, ... replicates of each open
candidate there is a look at them; what is beaten then is trained no further. Everything is derived from the replicates
that the study has, so an interrupted decision goes on where it was, and ends as an undisturbed one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from regtune.executors import Executor
from regtune.settings import Settings
from regtune.study.decision import Decision, Vary
from regtune.study.progress import Observer
from regtune.tracking.live import Tracker


@dataclass(frozen=True)
class Budget:
    """What a decision may cost at most; None is no limit.

    replicates: of each candidate, earlier ones among them. seconds: of this run. epochs: of all replicates together,
    earlier ones among them.
    """

    replicates: int | None = None
    seconds: float | None = None
    epochs: int | None = None


def decide(
    study: str,
    *,
    settings: Settings | None = None,
    top: int = 5,
    budget: Budget | None = None,
    practical: float | None = None,
    vary: Vary = "both",
    workers: int | None = None,
    observer: Observer | None = None,
    stop: threading.Event | None = None,
    executor: Executor | None = None,
    tracker: Callable[[Settings, str, str | None], Tracker] = Tracker,
) -> Decision:
    """Train the best configurations of a study and its controls again, until they are told apart.

    Args:
        study: Name of the study.
        settings: Where databases, artifacts and data sets are; by default read from the environment.
        top: How many configurations of the search are replicated, beside the controls.
        budget: What it may cost; by default no limit.
        practical: Differences of the metric below this do not matter; by default 0.0005 for an accuracy and 1 % of the
            mean of the control `none` for a loss.
        vary: What differs between the replicates of a candidate: `seed`, `split`, or `both`.
        workers: Number of worker processes; by default `REGTUNE_WORKERS`, else one per core.
        observer: An object with the methods of `regtune.study.progress.Observer`, called from this thread.
        stop: Once set, running replicates end with their epoch; they are trained again when the decision resumes.
        executor: Where replicates train; by default `workers` processes that end with the decision.
        tracker: Makes what keeps MLflow up to date.

    Returns:
        The decision, which the study has from now on.

    Raises:
        StudyNotFound: There is no such study.
        SettingsError: A setting or `workers` is not valid.
        StudyBusy: Another process runs the study.
        DataError: The data set is missing, damaged, or another than the study's.
        StorageError: A database cannot be opened, read or written.
        TrackingError: MLflow's store cannot be used.
        WorkerError: Workers cannot be started.
    """
    raise NotImplementedError
