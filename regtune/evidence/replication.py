"""The replication of a study's candidates: trains what the next look needs, concludes, and goes on while it is open.

Replicates go through the loop that trains trials, and are attributes of their study. One that was interrupted starts
again from its seed and repeats itself; one that has ended is never trained again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from regtune.escaping import shell_word
from regtune.evidence.conclusion import (
    Conclusion,
    Question,
    conclude,
    gains_little,
    has_ended,
)
from regtune.evidence.statistics import LOOKS
from regtune.executors import Task
from regtune.study.decision import Candidate, Decision, End, Replicate, replicate_uid
from regtune.study.decision_text import PRACTICAL_ACCURACY
from regtune.study.progress import Deciding, Progress, Row
from regtune.study.record import TrialRecord
from regtune.study.study import derive_seed, now_ms, record_of
from regtune.sweep.coordinator import REQUESTS_SECONDS
from regtune.sweep.held import Held
from regtune.sweep.loop import Loop, Running
from regtune.training.result import Verdict

ENOUGH = 4
"""Candidates with which a second look is better than more candidates."""
_Key = tuple[str, int]
"""A candidate's key and the index of a replicate."""


@dataclass(frozen=True)
class Budget:
    """What a decision may cost at most; None is no limit.

    replicates: of each candidate, earlier ones among them; of a number between two looks, the smaller look counts.
    seconds: of this run. epochs: of all replicates together, earlier ones among them.
    """

    replicates: int | None = None
    seconds: float | None = None
    epochs: int | None = None


class Replication:
    """The replication of `candidates`, the most important first, on a study that this process holds.

    progress: how its sweep stands, to which the replicates are added for a display.
    """

    def __init__(
        self,
        held: Held,
        candidates: Sequence[Candidate],
        question: Question,
        budget: Budget,
        progress: Callable[[], Progress],
    ) -> None:
        self._held = held
        self._question = question
        self._budget = budget
        self._sweep = progress
        self._loop = Loop(held.executor, self._epoch_ended, self._write, held.observer.note)
        self._running: dict[str, _Key] = {}
        known = (one for one in held.study.replicates() if one.vary == question.vary)
        self._records = {(one.candidate, one.index): one.record for one in known}
        self._workers = max(1, held.executor.idle)
        self._began = time.monotonic()
        self._requests_read = 0.0
        self._draining = False
        self._notes: list[str] = []
        self._named = {one.key: one for one in candidates}
        self._trials = {one.key: self._trial(one) for one in candidates}
        self._candidates = self._affordable(candidates)
        self._conclusion = self._conclude()
        self._block_began, self._block_epochs = self._began, 0

    def run(self) -> Decision:
        """Replicate until the question is settled, the budget is used, or somebody says stop."""
        while True:
            self._conclusion = conclusion = self._conclude()
            end = self._end(conclusion)
            decision = conclusion.decision.model_copy(update={"end": end or "stopped"})
            if end == "too_few":
                decision = decision.model_copy(update={"notes": (*decision.notes, self._too_few())})
            decision = self._kept(decision)
            if end == "stopped":
                self._held.stop.set()
            if end is not None:
                return decision
            self._train(conclusion)

    def _conclude(self) -> Conclusion:
        ended: dict[str, dict[int, TrialRecord]] = {}
        for (key, index), record in self._records.items():
            if has_ended(record):
                ended.setdefault(key, {})[index] = record
        return conclude(self._question, self._candidates, ended, self._notes)

    def _kept(self, decision: Decision) -> Decision:
        """Write a decision that rests on a look, unless the study has it. Returns what the study has then.

        Where new candidates have not come to a look, an earlier decision still stands.
        """
        known = self._held.study.decision
        if known is not None and known.model_copy(update={"decided": decision.decided}) == decision:
            return known
        if decision.replicates >= LOOKS[0]:
            self._held.study.write_decision(decision)
        elif known is not None and known.vary == decision.vary:
            return known.model_copy(update={"end": decision.end, "notes": decision.notes})
        return decision

    # -- the budget

    def _end(self, conclusion: Conclusion) -> End | None:
        """Why nothing more is trained; None where the next look can be had."""
        if len(self._candidates) < 2:
            return "too_few" if len(self._trials) > 1 else "one_candidate"
        if conclusion.over:
            return conclusion.decision.end
        most, replicates = self._budget.replicates, conclusion.decision.replicates
        if most is None and replicates and gains_little(self._question, replicates):
            return "overlap"
        if conclusion.look > min(most or LOOKS[-1], LOOKS[-1]) or not self._has_room(conclusion):
            return "budget" if replicates else "too_few"
        return "stopped" if self._stopping else None

    def _affordable(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """The first candidates for whose looks the budget has room, and all that were replicated before.

        Two looks at few candidates tell more than one look at many.
        """
        if len(candidates) == 1:  # which is not replicated
            return [*candidates]
        taken = self._first(candidates, LOOKS[1])
        if len(taken) < ENOUGH:  # rather more candidates than a second look
            taken = self._first(candidates, LOOKS[0])
        replicated = {key for key, _ in self._records}
        taken += [one for one in candidates if one not in taken and one.key in replicated]
        if len(taken) < 2:
            return []
        if out := [one.name for one in candidates if one not in taken]:
            again = f"replicate them too with: regtune decide {shell_word(self._held.study.name)}"
            self._notes.append(f"the budget has no room for {', '.join(out)}; {again}")
        return taken

    def _first(self, candidates: Sequence[Candidate], replicates: int) -> list[Candidate]:
        """The first candidates of which the budget has room for so many replicates."""
        taken: list[Candidate] = []
        for one in candidates:
            if not self._fits([other.key for other in (*taken, one) for _ in range(replicates)], 0, 0.0):
                break
            taken.append(one)
        return taken

    def _has_room(self, conclusion: Conclusion) -> bool:
        """Whether the budget has room for the replicates of the next look.

        Those of them that were trained before an interruption are not spent yet: it decides as if there had been none.
        """
        first, ahead = conclusion.judgement.replicates, conclusion.ahead
        spent = sum(record.epochs for key, record in self._records.items() if key not in ahead)
        if self._budget.seconds is not None:
            ahead = frozenset(conclusion.wanted)
        return self._fits([key for key, _ in ahead], spent, time.monotonic() - self._began, first)

    def _fits(self, keys: Sequence[str], spent_epochs: int, spent_seconds: float, known: int = 0) -> bool:
        """Whether one replicate for each of `keys` fits into the budget, besides what is spent.

        known: how many replicates of each a look has seen, from which their length is known.
        """
        epochs = sum(self._length(key, known) for key in keys)
        seconds = sum(self._length(key, known) * self._epoch_seconds(key) for key in keys) / self._workers
        most_epochs, most_seconds = self._budget.epochs, self._budget.seconds
        return (most_epochs is None or spent_epochs + epochs <= most_epochs) and (
            most_seconds is None or spent_seconds + seconds <= most_seconds
        )

    def _length(self, key: str, known: int) -> float:
        """Epochs of a replicate, from those before `known`, else as many as in the search."""
        seen = [self._records[key, index].epochs for index in range(known) if (key, index) in self._records]
        trial = self._trials[key]
        return fmean(seen) if seen else float(trial.epochs or trial.config.training.max_epochs)

    def _epoch_seconds(self, key: str) -> float:
        """Seconds an epoch of the search took, in the candidate's own trial or on average."""
        trial = self._trials[key]
        if trial.epochs:
            return trial.seconds / trial.epochs
        others = [one.seconds / one.epochs for one in self._trials.values() if one.epochs]
        return fmean(others) if others else 0.0

    def _trial(self, candidate: Candidate) -> TrialRecord:
        """The record of a candidate's trial in the search; an empty one where there was none."""
        trials = self._held.study.trials()
        found = None if candidate.trial is None else record_of(trials[candidate.trial])
        return found or TrialRecord(uid=candidate.key, config=candidate.config, parameters={})

    def _too_few(self) -> str:
        again = f"decide with: regtune decide {shell_word(self._held.study.name)}"
        first = f"the first look is after {LOOKS[0]} replicates of each of at least two candidates"
        if self._budget.replicates is not None and self._budget.replicates < LOOKS[0]:
            return f"{first}; {again} --budget {LOOKS[0]}"
        keys = [one for one in [*self._trials][:2] for _ in range(LOOKS[0])]
        epochs = sum(self._length(key, 0) for key in keys)
        return f"{first}, here about {epochs:.0f} epochs, for which the budget is too small; {again}"

    # -- training

    @property
    def _stopping(self) -> bool:
        return self._draining or self._held.stop.is_set()

    def _train(self, conclusion: Conclusion) -> None:
        """Train the replicates that the next look needs, until they have ended or somebody says stop."""
        waiting = deque(conclusion.wanted)
        self._block_began, self._block_epochs = time.monotonic(), 0
        while True:
            self._take_requests()
            while waiting and not self._stopping and self._held.executor.idle:
                self._start(*waiting.popleft())
            for uid in self._loop.withdraw() if self._stopping else ():
                del self._running[uid]
            if not self._running:
                return
            for record in self._loop.turn():
                key = self._running.pop(record.uid)
                if record.end_reason == "stopped":  # it has no end: it is trained again
                    continue
                self._store(key, record)
                if has_ended(record):
                    self._held.observer.finished(self._row(key, record), self.progress())
                else:
                    waiting.appendleft(key)
            for message in self._held.tracker.news():
                self._held.observer.note(message)
            self._held.observer.progress(self.progress())

    def _start(self, key: str, index: int) -> None:
        """Hand a replicate to a worker: a new one, one that was interrupted, or one whose worker died."""
        held, vary, trial = self._held, self._question.vary, self._trials[key]
        candidate = self._named[key]
        seed = derive_seed(held.spec.seed, 0 if vary == "split" else index, "replicate")
        data = held.data
        if vary != "seed":
            data = data.model_copy(update={"split_seed": derive_seed(held.spec.seed, index, "split")})
        config = candidate.config.model_copy(update={"seed": seed, "data": data})
        known = self._records.get((key, index))
        if known is not None and known.end_reason is None:
            record = replace(known.begun_again(now_ms()), config=config)
        else:
            record = TrialRecord(
                uid=replicate_uid(held.study.uid, vary, key, index),
                config=config,
                parameters=trial.parameters,
                control=candidate.control,
                attempt=1 if known is None else known.attempt + 1,
                started_ms=now_ms(),
            )
        memory = held.spec.trial_memory_mb
        task = Task(
            uid=record.uid,
            config=config,
            metric=self._question.metric,
            folder=None,
            timeout_seconds=held.spec.trial_timeout,
            memory_bytes=None if memory is None else memory * 2**20,
            tolerance=PRACTICAL_ACCURACY,
        )
        self._running[record.uid] = key, index
        self._store((key, index), record)
        self._loop.submit(task, record)

    def _epoch_ended(self, running: Running, figures: Mapping[str, float]) -> Verdict:
        self._block_epochs += 1
        return "stop" if self._held.stop.is_set() else "continue"

    def _write(self, record: TrialRecord) -> None:
        self._store(self._running[record.uid], record)

    def _store(self, key: _Key, record: TrialRecord) -> None:
        self._records[key] = record
        self._held.study.write_replicate(Replicate(key[0], self._question.vary, key[1], record))

    def _take_requests(self) -> None:
        """Stop if another terminal asks for it, looking once in REQUESTS_SECONDS."""
        if time.monotonic() - self._requests_read < REQUESTS_SECONDS:
            return
        self._requests_read = time.monotonic()
        study = self._held.study
        study.check(())
        for request in study.requests():
            if request.verb != "stop":  # a queued configuration waits until the sweep resumes
                continue
            if request.parameters.get("drain"):
                self._draining = True
                self._held.observer.note(
                    "stopped from another terminal: running replicates end, no new ones start"
                )
            else:
                self._held.stop.set()
            study.take(request)

    # -- what a display shows

    def _row(self, key: _Key, record: TrialRecord) -> Row:
        candidate = self._named[key[0]]
        number = -1 if candidate.trial is None else candidate.trial
        value = None if record.kept is None else record.figure(self._question.metric)
        state = record.end_state or "RUNNING"
        return Row(number, state, value, record.now, replicate=(candidate.name, key[1]))

    def progress(self) -> Progress:
        """How the sweep stands, with its replicates as what is running."""
        conclusion, judgement = self._conclusion, self._conclusion.judgement
        tied = [key for key in judgement.tied if key != judgement.leader]
        running = [one.record for one in self._loop.running.values()]
        left = [key for key in conclusion.wanted if not self._is_over(key)]
        deciding = Deciding(
            done=sum(map(has_ended, self._records.values())),
            planned=sum(map(has_ended, self._records.values())) + len(left),
            look=conclusion.look,
            candidates=len(self._candidates),
            open=tuple(self._named[key].name for key in tied),
            best=self._named[judgement.leader].name if judgement.leader else "",
            seconds=self._seconds_left(left),
        )
        return replace(
            self._sweep(),
            running=tuple(self._row(self._running[one.uid], one) for one in running),
            starting=sum(one.worker is None for one in running),
            deciding=deciding,
        )

    def _is_over(self, key: _Key) -> bool:
        return key in self._records and has_ended(self._records[key])

    def _seconds_left(self, left: Sequence[_Key]) -> float | None:
        """Seconds until the replicates that are left have ended, at the pace of this block."""
        if not self._block_epochs:
            return None
        known, pace = self._conclusion.judgement.replicates, time.monotonic() - self._block_began
        done = {key: self._loop.running[uid].epoch for uid, key in self._running.items()}
        epochs = sum(max(0.0, self._length(key[0], known) - done.get(key, 0)) for key in left)
        return pace / self._block_epochs * epochs
