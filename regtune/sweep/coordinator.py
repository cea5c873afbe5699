"""The coordinator of a sweep: asks Optuna for trials, hands them to workers, decides pruning, tells results.

It is the only part of regtune that writes to a study. Workers train; they never see a database. What has happened is
read from the study whenever it is needed, so a coordinator that takes over after a death knows as much as the dead one.
"""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import TrialState
from threadpoolctl import threadpool_limits

from regtune.config.sweepfile import SweepSpec
from regtune.config.trial import DataConfig, TrialConfig
from regtune.errors import COMMAND, StudyBusy, TooManyFailures
from regtune.executors import Executor, Task
from regtune.executors.worker import MODEL_FILE
from regtune.search import Space
from regtune.search.samplers import make_pruner
from regtune.study.decision import Decision
from regtune.study.progress import Observer, Progress, Row, Tally
from regtune.study.record import TrialRecord, Value, trial_uid
from regtune.study.study import Study, record_of
from regtune.sweep.loop import Loop, Running
from regtune.sweep.proposals import Proposals
from regtune.sweep.standing import Standing, spent_seconds
from regtune.tracking.live import Tracker
from regtune.training.result import Verdict

REQUESTS_SECONDS = 1.0


@dataclass(frozen=True)
class BestTrial:
    """The best trial of a study.

    Attributes:
        number: The trial's number.
        value: The sweep's metric.
        parameters: The searched parameters.
        config: The whole configuration, which `train` trains again.
    """

    number: int
    value: float
    parameters: Mapping[str, Value]
    config: TrialConfig


@dataclass(frozen=True, kw_only=True)
class SweepOutcome(Tally):
    """The outcome of a sweep.

    Attributes:
        study: The study's name.
        complete: Number of complete trials; `pruned`, `failed` and `waiting` likewise.
        trial_epochs: Epochs of all trials together.
        stopped: Whether a person stopped it, so that it can resume.
        reason: Why it ended.
        best: The best trial; None where no trial is complete.
        seconds: Duration of this run of the sweep.
        unwritten: Number of runs that MLflow does not have yet.
        interrupted: Number of trials that restart from epoch 0 when the sweep resumes.
        decision: What the replicates at its end decide; None where nothing was replicated.
    """

    study: str
    stopped: bool
    reason: str
    best: BestTrial | None
    seconds: float
    unwritten: int
    interrupted: int
    decision: Decision | None = None


class Coordinator:
    """One sweep of one study. `prepare` once, then `run` once."""

    def __init__(
        self,
        spec: SweepSpec,
        study: Study,
        executor: Executor,
        tracker: Tracker,
        observer: Observer,
        stop: threading.Event,
        *,
        data: DataConfig,
        folder: Path,
    ) -> None:
        self._spec = spec
        self._study = study
        self._executor = executor
        self._loop = Loop(executor, self._epoch_ended, self._write, observer.note)
        self._tracker = tracker
        self._observer = observer
        self._stop = stop
        self._folder = folder
        space = Space(spec)
        self._standing = Standing(study, space)
        self._proposals = Proposals(study, space, self._standing, data)
        self._numbers: dict[str, int] = {}
        """Numbers of the trials that are running, by uid."""
        self._rows: dict[str, Row] = {}
        """Those trials as they were shown last."""
        self._began = time.monotonic()
        self._spent_before = 0.0
        self._finished_before = 0
        self._requests_read = 0.0
        self._draining = False
        self._interrupted = 0
        self._reason = ""
        self._too_many = ""
        self._decides = False
        self._decision: Decision | None = None
        study.optuna.pruner = make_pruner(spec, study.mark)

    def prepare(self, earlier: Iterable[tuple[str, Mapping[str, Value]]] = ()) -> None:
        """Settle what a dead coordinator left, and queue what is decided beforehand."""
        self._study.set_end(None)
        self._study.settle()
        self._proposals.queue_controls()
        self._note(self._proposals.queue_earlier(earlier))
        for trial in self._study.trials(TrialState.FAIL):
            self._proposals.queue_retry(trial)
        self._drop_earlier_models()
        for request in self._study.requests():  # a stop was meant for a sweep that is over
            if request.verb == "stop":
                self._study.take(request)
        self._finished_before = self._standing.tally.finished
        self._spent_before = spent_seconds(self._study.trials()) if self._spec.timeout else 0.0
        self._count_failures()

    def run(self, at_end: Callable[[Callable[[], Progress]], Decision | None] | None = None) -> SweepOutcome:
        """Train until the budget is used, the grid is exhausted, too much fails, or somebody says stop.

        at_end: what comes then, unless it was stopped; it is given `progress`.
        """
        try:
            with threadpool_limits(limits=1, user_api="blas"):  # on small arrays others would only wait
                while self._turn():
                    self._observer.progress(self.progress())
                self._decides = at_end is not None
                if at_end is not None and not self._stop.is_set() and not self._draining:
                    self._decision = at_end(self.progress)
        except StudyBusy:  # it is another's now, and so are its trials
            self._executor.close()
            raise
        except BaseException:
            self._executor.close()
            with suppress(Exception):  # what cannot be written now is settled by the next coordinator
                for uid in list(self._numbers):
                    self._put_back(uid)
                self._study.set_end("KILLED")
            raise
        return self._end()

    def _turn(self) -> bool:
        self._take_requests()
        if self._stop.is_set() or self._draining:
            for uid in self._loop.withdraw():
                self._put_back(uid)
        started = self._executor.idle > 0 and self._may_start() and self._start_next()
        if not self._loop.running:
            return self._may_start() and self._asked_since()
        for record in self._loop.turn(
            wait=not started
        ):  # an epoch is answered sooner than the next trial is asked
            self._trial_ended(record)
        self._note(self._tracker.news())
        return True

    def _note(self, messages: Iterable[str]) -> None:
        for message in messages:
            self._observer.note(message)

    def _may_start(self) -> bool:
        return not self._stop.is_set() and not self._draining and self._budget_left()

    def _budget_left(self) -> bool:
        cap, running = self._spec.run_cap, [running.record for running in self._loop.running.values()]
        if self._spec.method == "grid":
            running = [record for record in running if record.parameters]
        used = cap is not None and self._standing.tally.finished + len(running) >= cap
        if used and not self._proposals.beside_the_grid:
            return False
        spent = self._spent_before + time.monotonic() - self._began
        if self._spec.timeout is not None and spent >= self._spec.timeout:
            self._reason = f"the timeout of {self._spec.timeout:g} s is used"
            return False
        return True

    def _start_next(self) -> bool:
        """Take the next trial and hand it to a worker; False when the grid has no more, for now."""
        self._note(self._proposals.queue_foreign())
        proposed = self._proposals.next()
        if proposed is None:
            return False
        number, record = proposed
        self._numbers[record.uid] = number
        memory = self._spec.trial_memory_mb
        task = Task(
            uid=record.uid,
            config=record.config,
            metric=self._spec.metric.name,
            folder=self._folder / record.uid if self._spec.keep_models else None,
            threshold=self._standing.value(max(1, self._spec.keep_models)),  # of the worst that is kept
            timeout_seconds=self._spec.trial_timeout,
            memory_bytes=None if memory is None else memory * 2**20,
        )
        self._loop.submit(task, record)
        return True

    def _epoch_ended(self, running: Running, figures: Mapping[str, float]) -> Verdict:
        """Report an epoch to Optuna and decide on it. One that repeats itself is known already, up to the last."""
        record, number = running.record, self._numbers[running.record.uid]
        known = self._study.trial(number).intermediate_values
        last = max(known, default=0)
        if running.epoch not in known:
            self._study.report(number, running.epoch, figures[self._spec.metric.name])
        if self._stop.is_set():
            return "stop"
        chosen = record.control is not None or record.requested  # what a person chose is trained to its end
        prune = running.epoch >= last and not chosen and self._study.should_prune(number)
        return "prune" if prune else "continue"

    def _write(self, record: TrialRecord) -> None:
        self._study.write(self._numbers[record.uid], record)

    def _trial_ended(self, record: TrialRecord) -> None:
        if record.end_reason == "stopped":
            self._put_back(record.uid)
            return
        number = self._numbers.pop(record.uid)
        self._rows.pop(record.uid, None)
        self._study.write(number, record)
        state = self._study.tell(number, record)
        ended = self._study.trial(number)
        best = self._standing.best(self._spec.keep_models + 1)
        kept = {*best[: self._spec.keep_models]}
        for other in {number, *best} - kept:
            shutil.rmtree(self._folder / trial_uid(self._study.uid, other), ignore_errors=True)
        if state is TrialState.FAIL:
            self._proposals.queue_retry(ended)
            self._count_failures()
        row = Row(number, record.end_state or "FAIL", ended.value, record)
        self._observer.finished(row, self.progress())

    def _drop_earlier_models(self) -> None:
        """Remove the models that an earlier sweep has left beside the best, and the halves that killed workers left."""
        best = self._standing.best(self._spec.keep_models)
        kept = {trial_uid(self._study.uid, number) for number in best}
        for folder in self._folder.glob(f"{self._study.uid}-*"):
            if folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)
            for file in folder.glob(f".*.{MODEL_FILE}"):
                file.unlink(missing_ok=True)

    def _count_failures(self) -> None:
        failed, most = self._standing.tally.failed, self._spec.max_failures
        if failed <= most or self._stop.is_set():
            return
        last = [record for trial in self._study.trials(TrialState.FAIL) if (record := record_of(trial))][-1]
        why = last.message or last.end_reason
        self._too_many = f"{failed} trials failed, more than max_failures, {most}; the last: {why}"
        self._stop.set()

    def _put_back(self, uid: str) -> None:
        """Back into the queue: the trial will run again under its number, and repeat itself."""
        self._interrupted += 1
        self._study.requeue(self._numbers.pop(uid))

    def _take_requests(self) -> None:
        """Do what other terminals ask for, looking once in REQUESTS_SECONDS."""
        if time.monotonic() - self._requests_read < REQUESTS_SECONDS:
            return
        self._requests_read = time.monotonic()
        self._study.check(self._numbers.values())
        for request in self._study.requests():
            if request.verb == "enqueue":
                self._observer.note(self._proposals.queue_request(request))
            elif request.verb == "stop":
                self._reason = "stopped from another terminal"
                if request.parameters.get("drain"):
                    self._draining = True
                    self._observer.note(f"{self._reason}: running trials end, no new ones start")
                else:
                    self._stop.set()
            self._study.take(request)

    def _asked_since(self) -> bool:
        """Whether a trial was asked for since the last look; a stop has nothing left to stop."""
        if all(request.verb != "enqueue" for request in self._study.requests()):
            return False
        self._requests_read = -math.inf
        return True

    def progress(self) -> Progress:
        tally, running = self._standing.tally, [one.record for one in self._loop.running.values()]
        return Progress(
            **vars(tally),
            study=self._study.name,
            metric=self._spec.metric.name,
            goal=self._spec.metric.goal,
            run_cap=self._spec.run_cap,
            timeout_seconds=self._spec.timeout,
            elapsed_seconds=time.monotonic() - self._began,
            finished_before=self._finished_before,
            spent_before=self._spent_before,
            best=self._standing.winner,
            running=tuple(map(self._row, running)),
            starting=sum(one.worker is None for one in running),
            tracking=self._tracker.status,
        )

    def _row(self, record: TrialRecord) -> Row:
        """A running trial; a new row only where it has changed, as there may be hundreds beside it that have not."""
        row = self._rows.get(record.uid)
        if row is None or row.record is not record:
            row = Row(self._numbers[record.uid], "RUNNING", None, record.now)
            self._rows[record.uid] = row
        return row

    def _end(self) -> SweepOutcome:
        tally = self._standing.tally
        stopped = self._stop.is_set() or (self._draining and (self._decides or self._budget_left()))
        if self._decides:
            self._interrupted += sum(one.record.end_reason is None for one in self._study.replicates())
        self._study.set_end("FAILED" if self._too_many else "KILLED" if stopped else "FINISHED")
        self._observer.progress(self.progress())
        unwritten = self._tracker.close()
        self._note(self._tracker.news())
        if self._too_many:
            remedy = f"{COMMAND.get()} --set max_failures={2 * tally.failed}"
            raise TooManyFailures(f"{self._too_many}; resume with: {remedy}")
        return SweepOutcome(
            study=self._study.name,
            stopped=stopped,
            reason=self._reason_of_end(stopped),
            best=self._best(),
            seconds=time.monotonic() - self._began,
            unwritten=unwritten,
            interrupted=self._interrupted,
            decision=self._decision,
            **vars(tally),
        )

    def _reason_of_end(self, stopped: bool) -> str:
        """Why the sweep ended, and what would go on with it."""
        if stopped or self._reason:
            return self._reason or "stopped"
        said, cap, more = "the budget is used", self._spec.run_cap, self._standing.tally.waiting
        if self._spec.method == "grid":
            tried, size = len(self._standing.ended_points), Space(self._spec).size or 0
            said, more = f"{tried} of {size} points of the grid are tried", max(more, size - tried)
        if more and cap is not None:
            said += f"; train {more} more with: {COMMAND.get()} --set run_cap={cap + more}"
        return said

    def _best(self) -> BestTrial | None:
        winner = self._standing.winner
        if winner is None or winner.value is None or winner.record is None:
            return None
        return BestTrial(winner.number, winner.value, winner.parameters, winner.record.config)
