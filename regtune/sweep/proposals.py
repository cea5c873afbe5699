"""The next trial of a study: the first in Optuna's queue, else the next point of the grid, else the sampler's proposal.

Whatever is decided in advance goes through Optuna's own queue: controls, interrupted trials, retries, requests, the
best of an earlier study, a grid's configurations. Each has a key, so that it is queued only once.

Each trial gets a new sampler, with a seed derived from the study's seed and the trial's number. A proposal therefore
depends on the study alone, and an interrupted study continues exactly as an undisturbed one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, Trial, TrialState

from regtune.config.sweepfile.checks import shown_value
from regtune.config.trial import DataConfig
from regtune.errors import InputError, ParameterError
from regtune.search import Space, controls
from regtune.search.samplers import History, make_sampler
from regtune.storage.optuna import FIXED_PARAMS
from regtune.study.record import ORIGIN, RECORD, Origin, TrialRecord, Value, trial_uid
from regtune.study.study import Request, Study, derive_seed, now_ms, origin_of, record_of
from regtune.sweep.standing import Standing

ATTEMPTS = 2  # a trial whose worker died is tried once more


class Proposals:
    """The trials to come of one study of `space`. `data` names the data set with its digest."""

    def __init__(self, study: Study, space: Space, standing: Standing, data: DataConfig) -> None:
        self._spec = space.spec
        self._study = study
        self._space = space
        self._standing = standing
        self._data = data
        self._history = History(space)
        self._grid = enumerate(space.grid()) if self._spec.method == "grid" else enumerate(())

    def queue_controls(self) -> None:
        for control in controls(self._spec, self._data):
            origin = Origin("control", f"control {control.name}", control.config, control.parameters)
            self._queue(origin, self._space.to_optuna(control.parameters) if control.parameters else {})

    def queue_earlier(self, earlier: Iterable[tuple[str, Mapping[str, Value]]]) -> list[str]:
        """Queue configurations of another study, given with its trials' uids. Returns why some are ignored."""
        refused = []
        for uid, parameters in earlier:
            try:
                self._queue(Origin("earlier", f"earlier {uid}"), self._space.to_optuna(parameters))
            except InputError as error:
                refused.append(f"ignored a configuration of the earlier study: {error}")
        return refused

    def queue_request(self, request: Request) -> str:
        """Queue what another terminal wants tried. Returns what to say about it."""
        try:
            self._queue(Origin("request", request.key), self._space.fix(request.parameters))
        except InputError as error:
            return f"refused your queued configuration: {'; '.join(str(error).splitlines())}"
        number = next(t.number for t in self._study.trials() if (o := origin_of(t)) and o.key == request.key)
        shown = ", ".join(f"{name}={shown_value(value)}" for name, value in request.parameters.items())
        return f"trial {number} runs your queued configuration: {shown}"

    def queue_foreign(self) -> list[str]:
        """Check what other programs have queued, as `enqueue` would. Returns why something is not trained."""
        self._study.read_queue()
        said = []
        for trial in self._study.trials(TrialState.WAITING):
            given = trial.system_attrs.get(FIXED_PARAMS) or {}
            if trial.user_attrs.keys() & {RECORD, ORIGIN} or not (given or trial.params):
                continue
            try:
                if trial.params:
                    raise ParameterError("its parameters are set already; queue it with study.enqueue_trial")
                self._study.adopt(trial.number, self._space.fix(given))
            except InputError as error:
                reason = "; ".join(str(error).splitlines())
                self._study.refuse(trial.number, reason)
                said.append(f"trial {trial.number}, queued by another program, is refused: {reason}")
        return said

    def queue_retry(self, trial: FrozenTrial) -> None:
        """Queue a trial whose worker died again, with its parameters and its seed, unless it was its last attempt."""
        record = record_of(trial)
        if record is None or record.end_reason != "worker_died" or record.attempt >= ATTEMPTS:
            return
        origin = Origin(
            kind="retry",
            key=f"retry {trial.number}",
            config=record.config,
            parameters=dict(record.parameters) if trial.params else None,
            attempt=record.attempt + 1,
            retry_of=trial.number,
            control=record.control,
            requested=record.requested,
        )
        self._queue(origin, trial.params)

    def next(self) -> tuple[int, TrialRecord] | None:
        """Start the next trial and return its number and its record; None when the grid has no more."""
        while True:
            waiting = self._study.trials(TrialState.WAITING)[:1]
            if not waiting and self._spec.method == "grid":
                if not self._queue_from_grid():
                    return None
                waiting = self._study.trials(TrialState.WAITING)[:1]
            interrupted = record_of(waiting[0]) if waiting else None
            if interrupted is None:
                trial, record = self._propose(waiting)
            else:
                trial, record = waiting[0], interrupted.begun_again(now_ms())
            config = record.config.model_copy(update={"data": self._data})  # where it lies now
            record = replace(record, config=config)
            if self._study.start(trial, record):
                return trial.number, record
            self.queue_foreign()  # another program was faster

    def _propose(self, waiting: Sequence[FrozenTrial]) -> tuple[FrozenTrial, TrialRecord]:
        """Give the trial that waits what it lacks, or else a new one all parameters."""
        trials = self._study.trials()
        origin = origin_of(waiting[0]) if waiting else None
        number = waiting[0].number if waiting else len(trials)
        seed = derive_seed(self._spec.seed, number, "sampler")
        if origin is not None and origin.kind != "request":  # all parameters are fixed
            draft = self._study.ask(RandomSampler(seed=seed), ())
        else:
            shown = self._history.shown(trials, self._study.optuna.direction)
            draft = self._study.ask(make_sampler(self._space, seed), shown)
        record = self._begin(draft.trial, origin)
        return draft.proposed, record

    def _begin(self, trial: Trial, origin: Origin | None) -> TrialRecord:
        seed = derive_seed(self._spec.seed, trial.number, "training")
        origin = origin or Origin("sampler", "")
        if origin.config is None:
            parameters = dict(self._space.suggest(trial))
            config = self._space.config(parameters, seed=seed, data=self._data)
        else:
            parameters = dict(origin.parameters or {})
            if parameters:
                self._space.suggest(trial)
            config = origin.config
            if origin.kind != "retry":
                config = config.model_copy(update={"seed": seed})
        return TrialRecord(
            uid=trial_uid(self._study.uid, trial.number),
            config=config,
            parameters=parameters,
            control=origin.key.removeprefix("control ") if origin.kind == "control" else origin.control,
            requested=origin.requested or origin.kind == "request",
            attempt=origin.attempt,
            retry_of=origin.retry_of,
            started_ms=now_ms(),
        )

    @property
    def beside_the_grid(self) -> bool:
        """Whether what comes next is a control that is no point of the grid: the budget is of the points."""
        waiting = self._study.trials(TrialState.WAITING) if self._spec.method == "grid" else ()
        origin = origin_of(waiting[0]) if waiting else None
        return origin is not None and origin.config is not None and origin.parameters is None

    def _queue(self, origin: Origin, parameters: Mapping[str, Any]) -> None:
        """Queue a trial with these Optuna parameters, unless one was queued before under the same key."""
        if not self._standing.has_queued(origin.key):
            self._study.queue(origin, parameters)

    def _queue_from_grid(self) -> bool:
        known = self._standing.known_points
        for index, parameters in self._grid:  # goes on where it was left
            origin = Origin("grid", f"grid {index}")
            if not self._standing.has_queued(origin.key) and tuple(parameters.values()) not in known:
                self._study.queue(origin, self._space.to_optuna(parameters))
                return True
        return False
