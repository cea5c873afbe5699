"""The coordinator of a sweep: asks Optuna for trials, hands them to workers, decides pruning, tells results, tracks.

It is the only part of regtune that writes to a study. Workers train; they never see a database. What has happened is
read from the study whenever it is needed, so a coordinator that takes over after a death knows as much as the dead one.
"""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
from optuna.trial import TrialState
from threadpoolctl import threadpool_limits

from regtune.config.sweepfile import SweepSpec
from regtune.config.trial import DataConfig
from regtune.errors import COMMAND, StorageError, StudyBusy, TooManyFailures
from regtune.executors import (
    EpochEnded,
    Event,
    Executor,
    NoRoom,
    Task,
    TrialEnded,
    TrialFailed,
    TrialStarted,
    WorkerDied,
)
from regtune.search.samplers import make_pruner
from regtune.storage import DISK_FULL
from regtune.study.progress import FinishedTrial, Observer, Progress, RunningTrial, remaining_seconds
from regtune.study.record import EndReason, Kept, TrialRecord, Value
from regtune.study.study import Study, now_ms, record_of
from regtune.sweep.models import KeptModels
from regtune.sweep.outcome import SweepOutcome, best_trial, reason_of_end
from regtune.sweep.proposals import Proposals
from regtune.sweep.standing import Standing, shown_end, spent_seconds
from regtune.tracking import ParentState, TrackingWriter

TICK_SECONDS = 0.25
REQUESTS_SECONDS = 1.0


@dataclass
class _Running:
    """A trial in a worker's hands. `reported`: the last epoch that Optuna knew when the trial was handed out."""

    trial: optuna.Trial
    record: TrialRecord
    reported: int
    mix: str
    epoch: int = 0


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
        *,
        data: DataConfig,
        folder: Path,
    ) -> None:
        self._spec = spec
        self._study = study
        self._executor = executor
        self._tracker = tracker
        self._observer = observer
        self._stop = stop
        self._folder = folder
        self._outages = 0
        self._proposals = Proposals(spec, study, data)
        self._standing = Standing(study, spec.metric.name)
        self._models = KeptModels(study, self._standing, folder, spec.keep_models)
        self._running: dict[str, _Running] = {}
        self._began = time.monotonic()
        self._spent_before = 0.0
        self._finished_before = 0
        self._requests_read = 0.0
        self._untried = True
        self._draining = False
        self._interrupted = 0
        self._reason = ""
        self._too_many = ""
        study.optuna.pruner = make_pruner(spec)

    def prepare(self, earlier: Iterable[tuple[str, Mapping[str, Value]]] = ()) -> None:
        """Settle what a dead coordinator left, queue what is decided beforehand, and catch MLflow up."""
        self._study.begin()
        self._study.settle()
        self._proposals.queue_controls()
        for refusal in self._proposals.queue_earlier(earlier):
            self._observer.note(refusal)
        for trial in self._study.trials(TrialState.FAIL):
            self._proposals.queue_retry(trial)
        trials = self._study.trials()
        self._tracker.catch_up(len(trials))
        self._models.take_up()
        self._drop_models()
        self._models.drop_remains()
        self._tracker.finish("RUNNING", None)
        for request in self._study.requests():  # a stop was meant for a sweep that is over
            if request.verb == "stop":
                self._study.take(request)
        self._finished_before = self._standing.tally.finished
        self._spent_before = spent_seconds(trials) if self._spec.timeout else 0.0
        self._count_failures()

    def run(self) -> SweepOutcome:
        """Train until the budget is used, the grid is exhausted, too much fails, or somebody says stop."""
        with threadpool_limits(limits=1, user_api="blas"):  # on small arrays others would only wait
            return self._run()

    def _run(self) -> SweepOutcome:
        try:
            while True:
                self._take_requests()
                while self._executor.idle and self._may_start() and self._start_next():
                    pass
                if not self._running:
                    if self._may_start() and self._asked_since():
                        continue
                    break
                for event in self._executor.events(TICK_SECONDS):
                    self._handle(event)
                for message in self._tracker.news():
                    self._observer.note(message)
                self._observer.progress(self.progress())
        except StudyBusy:  # it is another's now, and so are its trials
            self._executor.close()
            raise
        except BaseException:
            self._executor.close()
            with suppress(Exception):  # what cannot be written now is settled by the next coordinator
                for running in self._running.values():
                    self._put_back(running)
                self._ended("KILLED")
            raise
        return self._end()

    # -- starting trials

    def _may_start(self) -> bool:
        return not self._stop.is_set() and not self._draining and self._budget_left()

    def _budget_left(self) -> bool:
        cap, running = self._spec.run_cap, [running.record for running in self._running.values()]
        if self._spec.method == "grid":
            running = [record for record in running if record.parameters]
        used = cap is not None and self._standing.tally.finished + len(running) >= cap
        if used and not self._proposals.beside_the_grid:
            return False
        if self._spec.timeout is not None and self._spent() >= self._spec.timeout:
            self._reason = f"the timeout of {self._spec.timeout:g} s is used"
            return False
        return True

    def _start_next(self) -> bool:
        """Take the next trial and hand it to a worker; False when the grid has no more, for now."""
        for refusal in self._proposals.queue_foreign():
            self._observer.note(refusal)
        found = self._proposals.next()
        self._untried = found is not None
        if found is None:
            return False
        trial, record = found
        reported = max(self._study.trials()[trial.number].intermediate_values, default=0)
        self._running[record.uid] = _Running(trial, record, reported, record.config.mix)
        memory = self._spec.trial_memory_mb
        self._executor.submit(
            Task(
                uid=record.uid,
                config=record.config,
                metric=self._spec.metric.name,
                folder=self._folder / record.uid if self._spec.keep_models else None,
                threshold=self._threshold(),
                timeout_seconds=self._spec.trial_timeout,
                memory_bytes=None if memory is None else memory * 2**20,
            )
        )
        self._tracker.put(trial.number, "RUNNING", record)
        return True

    def _threshold(self) -> float | None:
        """The value a trial must beat to be among the best `keep_models` so far."""
        return self._standing.value(max(1, self._spec.keep_models))

    # -- events

    def _handle(self, event: Event) -> None:
        match event:
            case EpochEnded():
                with self._study.together():
                    self._epoch_ended(event)
            case TrialEnded():
                self._trial_ended(event)
            case NoRoom():  # the trial goes back into the queue, with all that run, and the sweep ends
                raise StorageError(f"{event.folder}: {DISK_FULL}")
            case TrialFailed():
                self._finish(self._running.pop(event.uid), event.reason, event.message)
            case TrialStarted():
                running = self._running[event.uid]
                running.record = replace(running.record, worker=event.worker)
            case WorkerDied():
                self._observer.note(f"{event.message}; another takes its place")
            case _:
                pass

    def _epoch_ended(self, event: EpochEnded) -> None:
        """Decide first and answer the worker, then write: the worker trains on while the database is written."""
        running = self._running[event.uid]
        running.epoch = event.epoch
        prune = False
        if event.epoch > running.reported:
            running.trial.report(event.figures[self._spec.metric.name], event.epoch)
        chosen = running.record.control is not None or running.record.requested
        if event.epoch >= running.reported and not chosen:  # what a person chose is trained to its end
            prune = running.trial.should_prune()
        self._executor.decide(event.uid, "stop" if self._stop.is_set() else "prune" if prune else "continue")
        if running.record.repeats(event.epoch, event.figures):
            running.record = running.record.repeated(event.epoch)
            self._study.write(running.trial, running.record)
            return
        running.record = running.record.until(event.epoch - 1).with_epoch(
            event.figures, event.seconds, now_ms()
        )
        self._study.write(running.trial, running.record)
        self._tracker.put(running.trial.number, "RUNNING", running.record)

    def _trial_ended(self, event: TrialEnded) -> None:
        running = self._running.pop(event.uid)
        end = event.result.end
        if end == "stopped":
            self._put_back(running)
            return
        try:
            kept = Kept.of(event.result)
        except ValueError as error:  # finite in every epoch, and yet not in the end
            self._finish(running, "error", str(error))
            return
        running.record = replace(running.record, kept=kept, artifacts=dict(event.artifacts))
        message = f"the loss became non-finite in epoch {running.epoch + 1}" if end == "non_finite" else None
        self._finish(running, end, message)

    def _finish(self, running: _Running, reason: EndReason, message: str | None) -> None:
        number = running.trial.number
        record = replace(running.record, again=None, ended_ms=now_ms(), end_reason=reason, message=message)
        with self._study.together():
            self._study.write(running.trial, record)
            state = self._study.tell(number, record)
        self._tracker.put(number, state.name, record)
        if state is TrialState.COMPLETE:
            self._models.add(number)
            self._drop_models()
        trial = self._study.trials()[number]
        if state is TrialState.FAIL:
            shutil.rmtree(self._folder / record.uid, ignore_errors=True)
            self._proposals.queue_retry(trial)
            self._count_failures()
        self._observer.finished(
            FinishedTrial.of(number, record.end_state or "FAIL", trial.value, record), self.progress()
        )

    def _drop_models(self) -> None:
        trials = self._study.trials()
        for number, record in self._models.drop():
            self._tracker.put(number, trials[number].state.name, record)

    def _count_failures(self) -> None:
        """Stop when more trials have failed than may."""
        if self._standing.tally.failed <= self._spec.max_failures or self._stop.is_set():
            return
        last = [record for trial in self._study.trials(TrialState.FAIL) if (record := record_of(trial))][-1]
        limit = f"more than max_failures, {self._spec.max_failures}"
        failed = self._standing.tally.failed
        self._too_many = f"{failed} trials failed, {limit}; the last: {last.message or last.end_reason}"
        self._stop.set()

    def _put_back(self, running: _Running) -> None:
        """Back into the queue: the trial will run again under its number, and repeat itself."""
        self._interrupted += 1
        self._study.requeue(running.trial.number)
        self._tracker.put(running.trial.number, "WAITING", running.record)

    def _take_requests(self) -> None:
        """Do what other terminals ask for, looking once in REQUESTS_SECONDS."""
        if time.monotonic() - self._requests_read < REQUESTS_SECONDS:
            return
        self._requests_read = time.monotonic()
        self._study.check_ownership()
        if self._study.outages != self._outages:  # a trial may have been made without our hearing of it
            self._outages = self._study.outages
            self._study.settle({running.trial.number for running in self._running.values()})
            self._tracker.finish("RUNNING", None)  # whoever looked at the study meanwhile saw nobody run it
        for request in self._study.requests():
            answer = ""
            if request.verb == "enqueue":
                said, answer = self._proposals.queue_request(request)
                self._observer.note(said)
            elif request.verb == "stop":
                self._reason = "stopped from another terminal"
                if request.parameters.get("drain"):
                    self._draining = True
                    self._observer.note(f"{self._reason}: running trials end, no new ones start")
                else:
                    self._stop.set()
            self._study.take(request, answer)

    def _asked_since(self) -> bool:
        """Whether a trial was asked for since the last look; a stop has nothing left to stop."""
        if all(request.verb != "enqueue" for request in self._study.requests()):
            return False
        self._requests_read = -math.inf
        return True

    # -- what is known, and the end

    def progress(self) -> Progress:
        """The sweep at this moment."""
        tally = self._standing.tally
        return Progress(
            study=self._study.name,
            metric=self._spec.metric.name,
            goal=self._spec.metric.goal,
            run_cap=self._spec.run_cap,
            timeout_seconds=self._spec.timeout,
            complete=tally.complete,
            pruned=tally.pruned,
            failed=tally.failed,
            waiting=tally.waiting,
            elapsed_seconds=time.monotonic() - self._began,
            remaining_seconds=self._remaining(tally.finished),
            trial_epochs=tally.epochs,
            best=self._standing.winner,
            running=tuple(self._running_trial(running) for running in self._running.values()),
            starting=sum(running.record.worker is None for running in self._running.values()),
            tracking=self._tracker.status,
            beside=tally.beside,
        )

    def _running_trial(self, running: _Running) -> RunningTrial:
        record = running.record
        return RunningTrial(
            number=running.trial.number,
            control=record.control,
            mix=running.mix,
            parameters=record.parameters,
            worker=-1 if record.worker is None else record.worker,
            epoch=running.epoch,
            max_epochs=record.config.training.max_epochs,
            curve=tuple(record.history.get(self._spec.metric.name, ()))[: running.epoch],
        )

    def _spent(self) -> float:
        return self._spent_before + time.monotonic() - self._began

    def _remaining(self, finished: int) -> float | None:
        """Seconds left by the timeout, or by the pace of this session, whichever comes first."""
        done = finished - self._finished_before
        return remaining_seconds(
            run_cap=self._spec.run_cap,
            timeout=self._spec.timeout,
            finished=finished,
            spent=self._spent(),
            pace=(time.monotonic() - self._began) / done if done else None,
        )

    def _ended(self, state: ParentState) -> None:
        """Record how the sweep ended, in the study and in MLflow."""
        best = self._standing.best(1)
        self._study.end(state, now_ms())
        self._tracker.finish(state, best[0] if best else None, shown_end(self._study))

    def _end(self) -> SweepOutcome:
        tally = self._standing.tally
        stopped = self._stop.is_set() or (self._draining and self._budget_left())
        self._ended("FAILED" if self._too_many else "KILLED" if stopped else "FINISHED")
        self._observer.progress(self.progress())
        unwritten = self._tracker.close()
        for message in self._tracker.news():
            self._observer.note(message)
        if self._too_many:
            raise TooManyFailures(
                f"{self._too_many}; go on with: {COMMAND.get()} --set max_failures={2 * tally.failed}"
            )
        points = self._proposals.tried if self._spec.method == "grid" else None
        return SweepOutcome(
            study=self._study.name,
            complete=tally.complete,
            pruned=tally.pruned,
            failed=tally.failed,
            stopped=stopped,
            reason=reason_of_end(self._spec, tally, points, stopped, self._reason, self._untried),
            best=best_trial(self._study, self._standing),
            seconds=time.monotonic() - self._began,
            trial_epochs=tally.epochs,
            unwritten=unwritten,
            interrupted=self._interrupted,
        )
