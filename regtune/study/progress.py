"""A study, its trials and the progress of its sweep, as boards and displays show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from regtune.config.trial import TrialConfig, higher_is_better
from regtune.study.record import State, TrialRecord, Value

if TYPE_CHECKING:
    from regtune.study.decision import Decision, Standing, Vary


@dataclass(frozen=True)
class StudyInfo:
    """A study: what it was started with, as plain JSON, and how many of its trials are in which state.

    id: in the database. foreign: ids in the database of the trials that regtune has not trained; they count for
    nothing. beside: how many of the complete and pruned ones are controls beside a grid. file: path of the sweep file
    as last given; empty where unknown. decided: the decision as it is stored, None where nothing was replicated.
    """

    id: int
    name: str
    uid: str
    spec: Mapping[str, Any]
    budget: Mapping[str, Any]
    data: Mapping[str, Any]
    versions: Mapping[str, Any]
    counts: Mapping[State, int]
    started: datetime | None
    last_active: datetime | None
    foreign: tuple[int, ...] = ()
    beside: int = 0
    file: str = ""
    decided: Any = None

    @cached_property
    def decision(self) -> Decision | None:
        """What the replicates decided last. Raises StorageError."""
        from regtune.study.decision import read_stored

        return read_stored(self.decided)

    @property
    def standings(self) -> Mapping[int, Standing]:
        """What the decision says of trials, by number."""
        judged = self.decision.candidates if self.decision else ()
        return {one.candidate.trial: one.standing for one in judged if one.candidate.trial is not None}

    @property
    def metric(self) -> str:
        return str(self.spec.get("metric", {}).get("name", "val_cross_entropy"))

    @property
    def goal(self) -> str:
        goal = self.spec.get("metric", {}).get("goal")
        return str(goal or ("maximize" if higher_is_better(self.metric) else "minimize"))

    @property
    def trials(self) -> int:
        return sum(self.counts.values())

    @property
    def finished(self) -> int:
        """Trials that count in the budget: complete or pruned, of a grid its points."""
        return self.counts["COMPLETE"] + self.counts["PRUNED"] - self.beside

    def to_json(self) -> dict[str, Any]:
        return {
            "study": self.name,
            "uid": self.uid,
            "metric": self.metric,
            "goal": self.goal,
            "counts": self.counts,
            "budget": self.budget,
            "decision": self.decision and self.decision.model_dump(mode="json"),
            "started": self.started and self.started.isoformat(),
            "last_active": self.last_active and self.last_active.isoformat(),
            "data": self.data,
            "versions": self.versions,
            "spec": self.spec,
        }


@dataclass(frozen=True)
class Row:
    """A trial of a study.

    value: the sweep's metric of the kept weights, for a pruned trial that of its last epoch. record: of a running
    trial that of the attempt under way. rank: of complete trials from the best on, from 1; None for all others.
    refused: why a foreign trial was not trained, if regtune was asked to. standing: what the decision says of it, None
    where it is no candidate. replicate: of a replicate, the name of its
    candidate and its index from 0; its `number` is that of its candidate's trial, -1 where it has none. vary: what is
    fresh in a replicate.
    """

    number: int
    state: State
    value: float | None
    record: TrialRecord | None
    rank: int | None = None
    refused: str | None = None
    replicate: tuple[str, int] | None = None
    vary: Vary | None = None
    standing: Standing | None = None

    @property
    def accuracy(self) -> float | None:
        """Validation accuracy of the kept weights, or of the last epoch where none are kept."""
        return self.record.figure("val_accuracy") if self.record else None

    @property
    def epochs(self) -> int:
        return self.record.epochs if self.record else 0

    @property
    def max_epochs(self) -> int:
        return self.record.config.training.max_epochs if self.record else 0

    @property
    def seconds(self) -> float:
        return self.record.seconds if self.record else 0.0

    @property
    def worker(self) -> int:
        """The worker that trains it; -1 where none has begun."""
        return -1 if self.record is None or self.record.worker is None else self.record.worker

    @property
    def control(self) -> str | None:
        return self.record.control if self.record else None

    @property
    def searched(self) -> bool:
        """Whether the search space contains it; a control outside it has no parameters."""
        return self.control is None or bool(self.parameters)

    @property
    def parameters(self) -> Mapping[str, Value]:
        """Searched parameters as displayed; an optional one that is off is 0."""
        return self.record.parameters if self.record else {}

    @property
    def mix(self) -> str:
        return self.record.config.mix if self.record else ""

    def curve(self, metric: str) -> Sequence[float]:
        """A figure at each epoch so far."""
        return self.record.history.get(metric, ()) if self.record else ()

    def parameter(self, name: str) -> Value | None:
        """A searched parameter; one that a control was not given is read from its configuration."""
        value = self.parameters.get(name)
        return flat(self.record.config).get(name) if value is None and self.record else value

    def cells(self, metric: str, names: Sequence[str]) -> dict[str, Any]:
        """The row as plain values in the order of a board's columns, then `names`; None where there is nothing.

        A waiting trial has no figures, also when it was begun before and begins anew; nor has one that does so now,
        until it is as far as it was, or a foreign one.
        """
        again = self.record is not None and self.record.again is not None
        waits = again or self.state in ("WAITING", "FOREIGN")
        shown = None if waits else self.record
        kept = shown.kept if shown else None
        return {
            "rank": self.rank,
            "trial": self.number,
            "state": self.state,
            "decision": self.standing,
            metric: None if waits else self.value,
            "val_accuracy": None if waits else self.accuracy,
            "gap": kept.generalization_gap if kept else None,
            "sparsity": kept.sparsity if kept else None,
            "l2_norm": kept.l2_norm if kept else None,
            "epochs": None if waits else self.epochs,
            "seconds": None if waits else round(self.seconds, 3),
            "control": self.control,
            **{name: self.parameter(name) for name in names},
        }

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "record": self.record and self.record.to_json()}


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Numbers of trials by their ends. failed: without those that were tried again. trial_epochs: of all of them.

    beside: how many of the complete and pruned ones are controls beside a grid.
    """

    complete: int
    pruned: int
    failed: int
    waiting: int
    trial_epochs: int
    beside: int = 0

    @property
    def finished(self) -> int:
        """Trials that count in the budget: complete or pruned, of a grid its points."""
        return self.complete + self.pruned - self.beside


@dataclass(frozen=True, kw_only=True)
class Deciding:
    """The replication of a study's candidates at one moment.

    done, planned: replicates that have ended, and how many there are at the next look. look: replicates of each open
    candidate then. candidates: how many there are. open: names of those that are neither told apart from the leader
    nor the leader. best: that leader; empty before the first look. seconds: until the next look, None where unknown.
    """

    done: int
    planned: int
    look: int
    candidates: int
    open: tuple[str, ...]
    best: str = ""
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Progress(Tally):
    """A sweep at one moment.

    deciding: how far its decision is, once the search is over; `running` then has replicates. finished_before,
    spent_before: trials and seconds that the budget has of earlier runs. starting: running trials
    whose workers still start, as the coordinator knows it. tracking: one phrase on how far MLflow is, or empty.
    """

    study: str
    metric: str
    goal: str
    run_cap: int | None
    timeout_seconds: float | None
    elapsed_seconds: float
    best: Row | None
    running: tuple[Row, ...]
    finished_before: int = 0
    spent_before: float = 0.0
    starting: int = 0
    tracking: str = ""
    deciding: Deciding | None = None

    @property
    def remaining_seconds(self) -> float | None:
        """Seconds until a budget is used, whichever of its limits comes first; None when nothing is known or runs.

        Of a decision, until its next look.
        """
        if self.deciding is not None:
            return self.deciding.seconds
        left, finished = list[float](), self.finished - self.finished_before
        if self.run_cap is not None and finished > 0:
            left.append(self.elapsed_seconds / finished * max(0, self.run_cap - self.finished))
        if self.timeout_seconds is not None:
            left.append(max(0.0, self.timeout_seconds - self.spent_before - self.elapsed_seconds))
        return min(left, default=None) if self.running else None

    def to_json(self) -> dict[str, Any]:
        figures = "value", "accuracy", "epochs", "max_epochs", "seconds"

        def shown(row: Row) -> dict[str, Any]:
            names = "number", "state", *figures, "worker", "mix", "parameters", "control", "replicate"
            facts = {name: getattr(row, name) for name in names}
            return {**facts, "epoch": row.epochs, "curve": row.curve(self.metric)}

        deciding = self.deciding and vars(self.deciding)
        shown_trials = {
            "best": self.best and shown(self.best),
            "running": map(shown, self.running),
            "deciding": deciding,
        }
        return {**vars(self), "remaining_seconds": self.remaining_seconds, **shown_trials}


class Observer(Protocol):
    """What watches a sweep. Its loop makes the calls, so each must return at once; those not defined show nothing."""

    def progress(self, progress: Progress) -> None:
        """Show that something changed."""
        return

    def finished(self, trial: Row, progress: Progress) -> None:
        """Show that a trial ended."""
        return

    def note(self, message: str) -> None:
        """Show one line."""
        return


def flat(config: TrialConfig) -> dict[str, Value]:
    """Return what `config` has for each parameter: `dropout.2` of one layer, `dropout` where all have the same."""
    blocks = (config.model, config.training, config.early_stopping)
    values: dict[str, Value] = {name: value for block in blocks if block for name, value in block}
    values["hidden"] = "-".join(map(str, config.model.hidden))
    for name, layers in config.regularization:
        values |= {f"{name}.{at}": value for at, value in enumerate(layers, start=1)}
        values |= {name: layers[0]} if len(set(layers)) == 1 else {}
    return values
