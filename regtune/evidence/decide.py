"""The decision of a study: its best candidates and its controls, trained again until they are told apart.

Replicate i of every candidate has the same seed and the same split. After 4, 8, 16, ... replicates of each open
candidate there is a look at them; what is beaten then is trained no further. Everything is derived from the replicates
that the study has, so an interrupted decision resumes where it was, and ends as an undisturbed one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from optuna.trial import TrialState
from threadpoolctl import threadpool_limits

from regtune.config.sweepfile import SweepSpec
from regtune.data.datasets import load_arrays
from regtune.errors import DataError, StudyNotFound
from regtune.escaping import printable, shell_word
from regtune.evidence.candidates import TOP, candidates_of, complete_rows
from regtune.evidence.conclusion import Question
from regtune.evidence.replication import Budget, Replication
from regtune.executors import Executor
from regtune.settings import Settings, load_settings
from regtune.storage import open_engine
from regtune.study.board import read_study
from regtune.study.decision import Decision, Vary
from regtune.study.progress import Observer, Progress
from regtune.study.record import ENDED
from regtune.study.study import record_of
from regtune.sweep.held import Held, MakeTracker, holding
from regtune.sweep.run import coordinate
from regtune.tracking.live import Tracker

__all__ = ["Budget", "decide", "replicate"]


def decide(
    study: str,
    *,
    settings: Settings | None = None,
    top: int = TOP,
    budget: Budget | None = None,
    practical: float | None = None,
    vary: Vary = "both",
    workers: int | None = None,
    observer: Observer | None = None,
    stop: threading.Event | None = None,
    executor: Executor | None = None,
    tracker: MakeTracker = Tracker,
) -> Decision:
    """Train the best configurations of a study and its controls again, until they are told apart.

    Args:
        study: Name of the study.
        settings: Where databases, artifacts and data sets are; by default read from the environment.
        top: How many configurations of the search are replicated, beside the controls.
        budget: What it may cost; by default it goes on until the candidates are told apart, or more replicates would
            hardly narrow the intervals.
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
        StudyNotFound: There is no such study, or it has no complete trial.
        SettingsError: A setting or `workers` is not valid.
        StudyBusy: Another process runs the study.
        DataError: The data set is missing, damaged, or another than the study's.
        StorageError: A database cannot be opened, read or written.
        TrackingError: MLflow's store cannot be used.
        WorkerError: Workers cannot be started.
    """
    settings = settings or load_settings()
    info = read_study(open_engine(settings.storage_url), study)
    spec = SweepSpec.from_dict({**info.spec, **info.budget})
    digest, known = load_arrays(spec.dataset, settings.data_dir).digest, info.data.get("digest", "")
    if known and digest != known:
        raise DataError(
            f'{printable(spec.dataset)}: has digest {digest[:12]}..., study "{printable(study)}" was run on '
            f"{known[:12]}...; expected the same data"
        )
    with (
        holding(
            spec,
            settings,
            workers=workers,
            observer=observer,
            stop=stop,
            executor=executor,
            tracker=tracker,
        ) as held,
        threadpool_limits(limits=1, user_api="blas"),
    ):
        _require_complete(held)
        _settle(held)
        try:
            progress = coordinate(held).progress
            decision = replicate(
                held,
                progress,
                top=top,
                budget=budget or Budget(),
                practical=practical,
                vary=vary,
                all_controls=True,
            )
        except BaseException:
            held.executor.close()
            raise
        behind = held.tracker.close()
        for message in held.tracker.news():
            held.observer.note(message)
        if behind:
            again = f"regtune sync {shell_word(study)}"
            held.observer.note(f"MLflow is behind; bring it up to date with: {again}")
    return decision


def replicate(
    held: Held,
    progress: Callable[[], Progress],
    *,
    top: int = TOP,
    budget: Budget,
    practical: float | None = None,
    vary: Vary = "both",
    all_controls: bool = False,
) -> Decision:
    """Decide a study that this process holds, in its workers.

    A candidate that was replicated once stays one, under its key: a later trial of the same configuration is no other.
    progress: how its sweep stands, for a display. all_controls: also
    those that the search has not trained.
    """
    study, spec = held.study, held.spec
    candidates = candidates_of(complete_rows(study), spec, held.data, top=top, all_controls=all_controls)
    before = study.decision
    judged = before.candidates if before is not None and before.vary == vary else ()
    earlier = {one.candidate.config: one.candidate for one in judged if one.replicates}
    candidates = [one if one.control else earlier.get(one.config, one) for one in candidates]
    keys = {one.key for one in candidates}
    candidates += [one for one in earlier.values() if one.key not in keys]
    parts = len(held.split.validation) / len(held.split.train)
    question = Question(
        study=study.name,
        uid=study.uid,
        metric=spec.metric.name,
        vary=vary,
        overlap=0.0 if vary == "seed" else parts,
        practical=practical,
        features=int(held.arrays.x_train.shape[1]),
    )
    return Replication(held, candidates, question, budget, progress).run()


def _require_complete(held: Held) -> None:
    """Raise StudyNotFound for a study without a complete trial."""
    study = held.study
    if study.trials(TrialState.COMPLETE):
        return
    failed = [record for trial in study.trials(TrialState.FAIL) if (record := record_of(trial))]
    why = f": {len(failed)} failed, the last: {failed[-1].message or failed[-1].end_reason}" if failed else ""
    board = f"regtune board {shell_word(study.name)}"
    raise StudyNotFound(f'study "{printable(study.name)}" has no complete trial yet{why}; try: {board}')


def _settle(held: Held) -> None:
    """Put back what a dead coordinator left running, and record that its sweep is over if it could not."""
    study, cap = held.study, held.spec.run_cap
    study.settle()
    if study.attributes.get(ENDED) is None:
        used = cap is not None and coordinate(held).progress().finished >= cap
        study.set_end("FINISHED" if used else "KILLED")
