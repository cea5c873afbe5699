"""The coordinator of a sweep: asks Optuna for trials, hands them to workers, decides pruning, tells results, tracks.

It is the only part of regtune that writes to a study. Workers train; they never see a database. What has happened is
read from the study whenever it is needed, so a coordinator that takes over after a death knows as much as the dead one.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from regtune.config import DataConfig, TrialConfig, higher_is_better
from regtune.data import load_arrays
from regtune.errors import InputError, ParameterError, TooManyFailures
from regtune.executors import EpochEnded, Event, Executor, Task, TrialEnded, TrialFailed, TrialStarted, WorkerDied, WorkerReady
from regtune.executors.local import LocalExecutor, default_workers
from regtune.progress import FinishedTrial, Observer, Progress, RunningTrial
from regtune.record import DATA, EndReason, Kept, TrialRecord, Value
from regtune.samplers import make_pruner, make_sampler
from regtune.settings import Settings, load_settings
from regtune.space import Space, controls
from regtune.spec import SweepSpec
from regtune.storage import database_path, understood, writable_folder
from regtune.study import Origin, Study, derive_seed, hold, now_ms, origin_of, record_of
from regtune.tracking import StudyFacts, TrackingWriter

TICK_SECONDS = 0.25
REQUESTS_SECONDS = 1.0
ATTEMPTS = 2
EARLIER_BEST = 5
DRAIN_SECONDS = 60.0


@dataclass(frozen=True)
class SweepOutcome:
    """How a sweep ended. `stopped`: by a person, and it can go on. `unwritten`: trials that MLflow has not got yet."""

    study: str
    complete: int
    pruned: int
    failed: int
    stopped: bool
    reason: str
    best: int | None
    seconds: float
    trial_epochs: int
    unwritten: int


@dataclass
class _Running:
    """A trial in a worker's hands. `reported`: the last step Optuna knew when the trial was handed out."""

    trial: optuna.Trial
    record: TrialRecord
    reported: int
    prunable: bool
    epoch: int = 0


class _Silent:
    def progress(self, progress: Progress) -> None: ...
    def finished(self, trial: FinishedTrial, progress: Progress) -> None: ...
    def note(self, message: str) -> None: ...


def run_sweep(
    spec: SweepSpec,
    *,
    settings: Settings | None = None,
    workers: int | None = None,
    observer: Observer | None = None,
    fresh: bool = False,
    from_study: str | None = None,
    stop: threading.Event | None = None,
    executor: Executor | None = None,
) -> SweepOutcome:
    """Run the study of `spec`, or go on with it, until its budget is used.

    Args:
        spec: the sweep file.
        settings: where databases, artifacts and data lie; by default from the environment.
        workers: worker processes; one per core by default.
        observer: told of everything that happens, from this thread.
        fresh: set an earlier study of the same name aside and begin anew.
        from_study: enqueue the best configurations of this study first.
        stop: when set, every running trial ends at its epoch's end and goes back into the queue.
        executor: where to train; by default `workers` processes that end with the sweep. One that is given is left
            running, idle, unless the sweep breaks off.

    Returns:
        How it ended; `outcome.best` is the best trial's number.

    Raises:
        StudyBusy, SpecChanged, DataError, StorageError, WorkerError, TooManyFailures.
    """
    settings = settings or load_settings()
    count = workers or settings.workers or default_workers()
    writable_folder(settings.home.resolve())
    path = database_path(settings.storage_url)
    writable_folder(path.parent)
    with hold(settings, spec.name), understood(path):
        data = DataConfig(name=spec.dataset, validation=spec.split.validation, split_seed=spec.split.seed)
        arrays = load_arrays(data.name, settings.data_dir)
        held_out = math.ceil(len(arrays.x_train) * data.validation)
        facts = {
            "name": arrays.name,
            "source": arrays.source,
            "digest": arrays.digest,
            "features": int(arrays.x_train.shape[1]),
            "classes": int(arrays.y_train.max()) + 1,
            "train": len(arrays.x_train) - held_out,
            "validation": held_out,
            "split_seed": data.split_seed,
        }
        study = Study.open(settings, spec, fresh=fresh)
        study.check_data(facts)
        trainer = executor or LocalExecutor(count, settings.data_dir)
        tracker = None
        try:
            tracker = TrackingWriter(settings.mlflow_uri, settings.artifacts, StudyFacts.of(study.name, study.attributes))
            coordinator = Coordinator(
                spec,
                study,
                trainer,
                tracker,
                observer or _Silent(),
                stop or threading.Event(),
                data.model_copy(update={"digest": arrays.digest}),
                settings.artifacts / "trials",
            )
            coordinator.prepare(_earlier(settings, from_study))
            return coordinator.run()
        finally:
            if executor is None:
                trainer.close()
            if tracker is not None:
                tracker.close(timeout_seconds=2.0)


def _earlier(settings: Settings, name: str | None) -> list[tuple[str, Mapping[str, Value]]]:
    """Key and parameters of the best trials of study `name`."""
    if name is None:
        return []
    from regtune.leaderboard import read_board
    from regtune.storage import open_engine

    rows = read_board(open_engine(settings.storage_url), name, limit=EARLIER_BEST)
    return [
        (f"earlier {row.record.uid}", row.record.parameters)
        for row in rows
        if row.state == "COMPLETE" and row.record is not None and row.record.parameters
    ]


class Coordinator:
    """One sweep of one study. `prepare` once, then `run` once."""

    def __init__(
        self,
        spec: SweepSpec,
        study: Study,
        executor: Executor,
        tracker: TrackingWriter,
        observer: Observer,
        stop: threading.Event,
        data: DataConfig,
        folder: Path,
    ) -> None:
        self._spec = spec
        self._study = study
        self._executor = executor
        self._tracker = tracker
        self._observer = observer
        self._stop = stop
        self._data = data
        self._folder = folder
        self._space = Space(spec)
        self._running: dict[str, _Running] = {}
        self._began = time.monotonic()
        self._requests_read = 0.0
        self._spent_before = 0.0
        self._finished_before = 0
        self._exhausted = False
        self._why_stop = ""
        self._study.optuna.pruner = make_pruner(spec, spec.training.max_epochs) or optuna.pruners.NopPruner()

    def prepare(self, earlier: list[tuple[str, Mapping[str, Value]]]) -> None:
        """Settle what a dead coordinator left, queue controls, retries and earlier configurations, catch MLflow up."""
        self._study.settle()
        if self._spec.controls:
            for control in controls(self._spec, self._data):
                origin = Origin("control", f"control {control.name}", control.config, control.parameters)
                self._study.queue(origin, self._space.to_optuna(control.parameters) if control.parameters else {})
        for key, parameters in earlier:
            try:
                self._study.queue(Origin("earlier", key), self._space.to_optuna(parameters))
            except ParameterError as error:
                self._observer.note(f"passed over a configuration of the earlier study: {error}")
        for trial in self._study.trials(TrialState.FAIL):
            self._retry(trial)
        for trial in self._study.trials():
            record = record_of(trial)
            if record is not None:
                self._tracker.put(trial.number, trial.state.name, record)
        self._spent_before = spent_seconds(self._study.trials()) if self._spec.timeout else 0.0
        self._finished_before = self._tally()[0]
        self._tracker.finish("RUNNING", None)

    def run(self) -> SweepOutcome:
        """Train until the budget is used, the space is exhausted, too much fails, or somebody says stop."""
        try:
            while True:
                self._take_requests()
                while self._executor.idle and self._may_start():
                    self._start_next()
                    if self._exhausted:
                        break
                if not self._running:
                    break
                for event in self._executor.events(TICK_SECONDS):
                    self._handle(event)
                self._observer.progress(self.progress())
        except BaseException:
            self._executor.close()
            self._requeue_all()
            self._tracker.finish("KILLED", None)
            raise
        return self._end()

    # -- starting trials

    def _may_start(self) -> bool:
        if self._stop.is_set() or self._exhausted:
            return False
        complete, pruned, _ = self._tally_all()
        if self._spec.run_cap is not None and complete + pruned + len(self._running) >= self._spec.run_cap:
            return False
        if self._spec.timeout is not None and self._elapsed() >= self._spec.timeout:
            self._why_stop = f"the timeout of {self._spec.timeout:g} s is used"
            return False
        return True

    def _start_next(self) -> None:
        """Ask for the next trial, record it, and hand it to a worker."""
        waiting = self._study.trials(TrialState.WAITING)
        if not waiting and self._spec.method == "grid" and not self._queue_from_grid():
            self._exhausted = True
            return
        waiting = waiting or self._study.trials(TrialState.WAITING)
        number = waiting[0].number if waiting else len(self._study.trials())
        previous = record_of(waiting[0]) if waiting else None
        origin = origin_of(waiting[0]) if waiting else None
        self._study.optuna.sampler = self._sampler(number, decided=previous is not None or origin is not None)
        trial = self._study.optuna.ask()
        record = previous or self._new_record(trial, origin)
        if previous is None:
            self._study.write(trial, record)
        reported = max(trial.storage.get_trial(trial._trial_id).intermediate_values, default=0)
        self._running[record.uid] = _Running(trial, record, reported, prunable=record.control is None)
        self._executor.submit(
            Task(
                uid=record.uid,
                config=record.config,
                metric=self._spec.metric.name,
                folder=self._folder / record.uid,
                threshold=self._threshold(),
                timeout_seconds=self._spec.trial_timeout,
                memory_bytes=self._spec.trial_memory_mb and self._spec.trial_memory_mb * 2**20,
            )
        )
        self._tracker.put(trial.number, "RUNNING", record)

    def _sampler(self, number: int, *, decided: bool) -> optuna.samplers.BaseSampler:
        seed = derive_seed(self._spec.seed, number, "sampler")
        if decided or self._spec.method == "grid":
            return optuna.samplers.RandomSampler(seed=seed)
        return make_sampler(self._spec, self._space, seed)

    def _new_record(self, trial: optuna.Trial, origin: Origin | None) -> TrialRecord:
        seed = derive_seed(self._spec.seed, trial.number, "training")
        if origin is not None and origin.config is not None:
            if origin.parameters:
                self._space.suggest(trial)
            parameters = dict(origin.parameters or {})
            config = origin.config if origin.kind == "retry" else origin.config.model_copy(update={"seed": seed})
        else:
            parameters = dict(self._space.suggest(trial))
            config = self._space.config(parameters, seed=seed, data=self._data)
        control = origin.key.removeprefix("control ") if origin and origin.key.startswith("control ") else None
        if origin is not None and origin.retry_of is not None:
            control = self._control_of(origin.retry_of)
        return TrialRecord(
            uid=f"{self._study.uid}-{trial.number}",
            config=config,
            parameters=parameters,
            control=control,
            requested=origin is not None and origin.kind == "request",
            attempt=origin.attempt if origin else 1,
            retry_of=origin.retry_of if origin else None,
            started_ms=now_ms(),
        )

    def _control_of(self, number: int) -> str | None:
        record = record_of(self._study.trials()[number])
        return record.control if record else None

    def _queue_from_grid(self) -> bool:
        known = self._study.origins()
        for index, parameters in enumerate(self._space.grid()):
            if f"grid {index}" not in known:
                self._study.queue(Origin("grid", f"grid {index}"), self._space.to_optuna(parameters))
                return True
        return False

    def _threshold(self) -> float | None:
        """The value a trial must beat to be among the best `keep_models` so far."""
        values = sorted(
            (trial.value for trial in self._study.trials(TrialState.COMPLETE) if trial.value is not None),
            reverse=higher_is_better(self._spec.metric.name),
        )
        kept = self._spec.keep_models
        return values[kept - 1] if len(values) >= kept else None

    # -- events

    def _handle(self, event: Event) -> None:
        match event:
            case EpochEnded():
                self._epoch_ended(event)
            case TrialEnded():
                self._trial_ended(event)
            case TrialFailed():
                running = self._running.pop(event.uid)
                self._finish(running, event.reason, event.message)
            case TrialStarted():
                running = self._running[event.uid]
                running.record = replace(running.record, worker=event.worker)
            case WorkerDied():
                self._observer.note(f"{event.message}; another takes its place")
            case WorkerReady():
                pass

    def _epoch_ended(self, event: EpochEnded) -> None:
        """Decide first and answer the worker, then write: the worker trains on while databases are written."""
        running = self._running[event.uid]
        running.epoch = event.epoch
        finite = all(math.isfinite(value) for value in event.figures.values())
        prune = False
        if finite and event.epoch > running.reported:
            running.trial.report(event.figures[self._spec.metric.name], event.epoch)
        if finite and running.prunable and event.epoch >= running.reported:
            prune = running.trial.should_prune()
        self._executor.decide(event.uid, "stop" if self._stop.is_set() else "prune" if prune else "continue")
        if finite and not _repeats(running.record, event):
            shorter = truncated(running.record, event.epoch - 1)
            running.record = shorter.with_epoch(event.figures, event.seconds, now_ms())
            self._study.write(running.trial, running.record)
            self._tracker.put(running.trial.number, "RUNNING", running.record)

    def _trial_ended(self, event: TrialEnded) -> None:
        running = self._running.pop(event.uid)
        result = event.result
        if result.end == "stopped":
            self._study.requeue(running.trial.number)
            self._tracker.put(running.trial.number, "WAITING", running.record)
            return
        if result.end in ("max_epochs", "early_stopping"):
            assert result.train_cross_entropy is not None and result.train_accuracy is not None
            assert result.generalization_gap is not None
            assert result.sparsity is not None and result.l2_norm is not None
            kept = Kept(
                epoch=result.kept_epoch,
                figures=dict(result.figures),
                train_cross_entropy=result.train_cross_entropy,
                train_accuracy=result.train_accuracy,
                generalization_gap=result.generalization_gap,
                sparsity=result.sparsity,
                l2_norm=result.l2_norm,
            )
            running.record = replace(running.record, kept=kept, artifacts=dict(event.artifacts))
        message = f"the loss became non-finite in epoch {running.epoch + 1}" if result.end == "non_finite" else None
        self._finish(running, result.end, message)

    def _finish(self, running: _Running, reason: EndReason, message: str | None) -> None:
        number = running.trial.number
        record = replace(running.record, ended_ms=now_ms(), end_reason=reason, message=message)
        self._study.write(running.trial, record)
        state = self._study.tell(number, record)
        self._tracker.put(number, state.name, record)
        self._observer.finished(finished_trial(self._study.trials()[number]), self.progress())
        if state is TrialState.FAIL:
            self._retry(self._study.trials()[number])
            self._count_failures(message or reason)

    def _retry(self, trial: FrozenTrial) -> None:
        """Queue a trial whose worker died again, once, with its parameters and its seed."""
        record = record_of(trial)
        if record is None or record.end_reason != "worker_died" or record.attempt >= ATTEMPTS:
            return
        in_space = dict(record.parameters) if trial.params else None
        origin = Origin(
            "retry", f"retry {trial.number}", record.config, in_space, attempt=record.attempt + 1, retry_of=trial.number
        )
        self._study.queue(origin, trial.params)

    def _count_failures(self, last: str) -> None:
        failed = self._tally_all()[2]
        if failed > self._spec.max_failures and not self._stop.is_set():
            self._why_stop = f"{failed} trials failed, more than max_failures, {self._spec.max_failures}; the last: {last}"
            self._stop.set()

    # -- requests from other terminals

    def _take_requests(self) -> None:
        if time.monotonic() - self._requests_read < REQUESTS_SECONDS:
            return
        self._requests_read = time.monotonic()
        for request in self._study.requests():
            if request.verb == "stop":
                self._why_stop = "stopped from another terminal"
                self._stop.set()
            elif request.verb == "enqueue":
                try:
                    self._study.queue(Origin("request", request.key), self._space.to_optuna(request.parameters))
                    self._observer.note("took up a requested configuration")
                except InputError as error:
                    self._observer.note(f"passed over a request: {error}")
            self._study.take(request)

    # -- what is known

    def _tally_all(self) -> tuple[int, int, int]:
        """Complete, pruned, and failed trials; one that was tried again does not count as failed."""
        return tally(self._study.trials())

    def _tally(self) -> tuple[int, int]:
        complete, pruned, failed = self._tally_all()
        return complete + pruned, failed

    def _elapsed(self) -> float:
        return self._spent_before + time.monotonic() - self._began

    def _best(self) -> FrozenTrial | None:
        found = [trial for trial in self._study.trials(TrialState.COMPLETE) if trial.value is not None]
        sign = -1 if higher_is_better(self._spec.metric.name) else 1
        return min(found, key=lambda trial: sign * (trial.value or 0.0), default=None)

    def _remaining(self, finished: int) -> float | None:
        elapsed = time.monotonic() - self._began
        candidates = []
        if self._spec.timeout is not None:
            candidates.append(max(0.0, self._spec.timeout - self._elapsed()))
        if self._spec.run_cap is not None and finished > self._finished_before:
            each = elapsed / (finished - self._finished_before)
            candidates.append(each * max(0, self._spec.run_cap - finished))
        return min(candidates, default=None)

    def progress(self) -> Progress:
        """The sweep at this moment."""
        complete, pruned, failed = self._tally_all()
        best = self._best()
        trials = self._study.trials()
        return Progress(
            study=self._study.name,
            metric=self._spec.metric.name,
            goal=self._spec.metric.goal,
            run_cap=self._spec.run_cap,
            timeout_seconds=self._spec.timeout,
            complete=complete,
            pruned=pruned,
            failed=failed,
            waiting=sum(trial.state is TrialState.WAITING for trial in trials),
            elapsed_seconds=time.monotonic() - self._began,
            remaining_seconds=self._remaining(complete + pruned),
            trial_epochs=sum(len(trial.intermediate_values) for trial in trials),
            best=finished_trial(best) if best else None,
            running=tuple(self._running_trial(running) for running in self._running.values()),
            tracking=self._tracker.status,
        )

    def _running_trial(self, running: _Running) -> RunningTrial:
        record = running.record
        return RunningTrial(
            number=running.trial.number,
            control=record.control,
            mix=record.config.mix,
            parameters=record.parameters,
            worker=-1 if record.worker is None else record.worker,
            epoch=running.epoch,
            max_epochs=record.config.training.max_epochs,
            curve=tuple(record.history.get(self._spec.metric.name, ())),
        )

    # -- the end

    def _requeue_all(self) -> None:
        for running in self._running.values():
            self._study.requeue(running.trial.number)
            self._tracker.put(running.trial.number, "WAITING", running.record)

    def _end(self) -> SweepOutcome:
        complete, pruned, failed = self._tally_all()
        best = self._best()
        stopped = self._stop.is_set()
        too_many = failed > self._spec.max_failures and stopped
        self._tracker.finish("FAILED" if too_many else "KILLED" if stopped else "FINISHED", best.number if best else None)
        self._observer.progress(self.progress())
        unwritten = self._tracker.close(timeout_seconds=DRAIN_SECONDS)
        if too_many:
            raise TooManyFailures(f"{self._why_stop}; go on with: --set max_failures={failed + 5}")
        reason = self._why_stop or ("every configuration of the grid is tried" if self._exhausted else "the budget is used")
        return SweepOutcome(
            study=self._study.name,
            complete=complete,
            pruned=pruned,
            failed=failed,
            stopped=stopped,
            reason="stopped" if stopped and not self._why_stop else reason,
            best=best.number if best else None,
            seconds=time.monotonic() - self._began,
            trial_epochs=sum(len(trial.intermediate_values) for trial in self._study.trials()),
            unwritten=unwritten,
        )


def tally(trials: Any) -> tuple[int, int, int]:
    """Complete, pruned and failed trials. A failed one that was queued again does not count: its retry does."""
    states = [trial.state for trial in trials]
    retried = sum(1 for trial in trials if (origin := trial.user_attrs.get("regtune.origin")) and origin["kind"] == "retry")
    failed = states.count(TrialState.FAIL) - retried
    return states.count(TrialState.COMPLETE), states.count(TrialState.PRUNED), failed


def spent_seconds(trials: Any) -> float:
    """For how long at least one of `trials` was in an epoch: the length of the union of their epochs."""
    spans = []
    for trial in trials:
        record = record_of(trial)
        if record is not None:
            ends = [ended / 1000 for ended in record.epoch_ended_ms]
            spans += [(end - length, end) for end, length in zip(ends, record.epoch_seconds, strict=True)]
    total, until = 0.0, -math.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def truncated(record: TrialRecord, epochs: int) -> TrialRecord:
    """The record as it was after `epochs` epochs."""
    if record.epochs <= epochs:
        return record
    return replace(
        record,
        history={name: values[:epochs] for name, values in record.history.items()},
        epoch_ended_ms=record.epoch_ended_ms[:epochs],
        epoch_seconds=record.epoch_seconds[:epochs],
    )


def _repeats(record: TrialRecord, event: EpochEnded) -> bool:
    """Whether an interrupted trial that runs again has just repeated an epoch that is recorded."""
    if event.epoch > record.epochs:
        return False
    return all(record.history[name][event.epoch - 1] == value for name, value in event.figures.items())


def finished_trial(trial: FrozenTrial) -> FinishedTrial:
    """A finished trial as it is shown."""
    record = record_of(trial)
    if record is None:
        return FinishedTrial(trial.number, trial.state.name, trial.value, None, 0, 0.0, "", {}, None, None)
    accuracies = record.history.get("val_accuracy", ())
    accuracy = record.kept.figures["val_accuracy"] if record.kept else accuracies[-1] if accuracies else None
    return FinishedTrial(
        number=trial.number,
        state=trial.state.name,
        value=trial.value,
        accuracy=accuracy,
        epochs=record.epochs,
        seconds=record.seconds,
        mix=record.config.mix,
        parameters=record.parameters,
        control=record.control,
        end_reason=record.end_reason,
        message=record.message,
    )
