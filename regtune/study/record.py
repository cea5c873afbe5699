"""The record of a trial: everything regtune knows about it, as stored in Optuna's database.

Optuna keeps one value a step; a trial's whole history, its seeds, digests and timings are one attribute of the trial,
written when the trial starts, at each epoch, and when it ends. From the study's attributes, this record and the trial's
artifact folder all that MLflow shows can be derived; MLflow is a projection.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from regtune.config.trial import METRICS, TrialConfig
from regtune.errors import StorageError
from regtune.training.result import TrialResult

# attributes of a trial
RECORD = "regtune.record"  # the record as JSON
ORIGIN = "regtune.origin"  # where a queued trial comes from: a control, a retry, a request, an earlier study
REFUSED = "regtune.refused"  # why a trial that another program has queued was not trained
# attributes of a study
STUDY_UID = "regtune.uid"  # a random identity; a study deleted and made again is another study
SPEC = "regtune.spec"  # the sweep file in canonical JSON, without its budget
BUDGET = "regtune.budget"  # what may differ when a study goes on: run_cap, timeout, keep_models, decide
CREATED = "regtune.created_ms"  # when the study began, in Unix milliseconds
DESCRIPTION = "regtune.description"  # the sweep file's
DATA = "regtune.data"  # the data set's digest, shape and counts
FILE = "regtune.file"  # the path of the sweep file, as it was given at the last start
VERSIONS = "regtune.versions"  # of regtune, TensorFlow, Keras, Optuna and Python at the last start
ENDED = "regtune.ended"  # the last sweep's end, None from its start on: `at_ms`, and `state` as MLflow has it
COORDINATOR = "regtune.coordinator"  # the signature of the process that runs the study, or ran it last
REQUEST = "regtune.request."  # prefix of what another terminal asks the coordinator for
REPLICATE = "regtune.replicate."  # prefix of a replicate: its vary, its candidate's key and its index follow
DECISION = "regtune.decision"  # the decision as it stands, as JSON
DIAGNOSIS = "regtune.diagnosis"  # what `diagnose` has measured last, as JSON
TEST_OPENINGS = (
    "regtune.test_openings"  # each opening of a test set for a promotion, as JSON, the oldest first
)

_UID = re.compile(r"[A-Za-z0-9_-]{1,64}")
Value = float | int | str | bool
State = Literal["COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING", "FOREIGN"]
"""As Optuna has it; FOREIGN is a trial in this study that regtune has not trained: it counts for nothing."""
STATES: tuple[State, ...] = get_args(State)
"""States in the order of a board."""

EndReason = Literal[
    "max_epochs",  # COMPLETE: every epoch was trained
    "early_stopping",  # COMPLETE: the monitored figure stopped getting better
    "pruned",  # PRUNED
    "stopped",  # FAIL: a person stopped this trial
    "non_finite",  # FAIL: the loss became NaN or infinite
    "timeout",  # FAIL: longer than trial_timeout
    "out_of_memory",  # FAIL
    "worker_died",  # FAIL
    "error",  # FAIL: an exception, in `message`
]


def uid_of(value: Any) -> str:
    """The uid of a study or trial, as a database has it. Raises StorageError for what is none: uids name folders."""
    if not isinstance(value, str) or _UID.fullmatch(value) is None:
        raise StorageError(f"{value!r:.80} is no uid of a study or trial; was it written by another program?")
    return value


def trial_uid(study: str, number: int) -> str:
    """The uid of a study's trial. Regtune's own trials have a record with it; one with another is copied."""
    return f"{study}-{number}"


@dataclass(frozen=True)
class Kept:
    """Figures of the weights that a trial keeps, those of the epoch that early stopping restores.

    epoch: counted from 1. figures: the six METRICS, training-time ones for train. train_cross_entropy: inference mode,
    without penalty. generalization_gap: validation minus training cross-entropy, both in inference mode.
    sparsity: share of hidden kernels' entries with absolute value below 1e-3. l2_norm: of all hidden kernels.
    extra: of a replicate, figures over the validation images besides: `ece`, `brier` and `prunable`.
    """

    epoch: int
    figures: Mapping[str, float]
    train_cross_entropy: float
    train_accuracy: float
    generalization_gap: float
    sparsity: float
    l2_norm: float
    extra: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, result: TrialResult) -> Kept | None:
        """The figures of a trial that came to its own end, None for one that was ended."""
        if result.end not in ("max_epochs", "early_stopping"):
            return None
        measured = {name: getattr(result, name) for name in MEASURED}
        wrong = {name: value for name, value in measured.items() if value is None or not math.isfinite(value)}
        if wrong:
            raise ValueError(f"figures of kept weights are finite, found {wrong}")
        return cls(
            epoch=result.kept_epoch, figures=dict(result.figures), extra=dict(result.extra), **measured
        )


MEASURED = ("train_cross_entropy", "train_accuracy", "generalization_gap", "sparsity", "l2_norm")
"""What is measured on the kept weights once training has ended."""


@dataclass(frozen=True)
class TrialRecord:
    """One attempt at one configuration. Times are Unix milliseconds; `history` has one entry an epoch a metric.

    again: while a trial that was interrupted repeats itself, how many epochs it has trained again; `history` keeps what
    it had before. None as soon as it is as far as that, and of all others. again_ms: when it began again last.
    """

    uid: str
    config: TrialConfig
    parameters: Mapping[str, Value]
    control: str | None = None
    requested: bool = False
    attempt: int = 1
    retry_of: int | None = None
    worker: int | None = None
    started_ms: int | None = None
    ended_ms: int | None = None
    history: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    epoch_ended_ms: tuple[int, ...] = ()
    epoch_seconds: tuple[float, ...] = ()
    again: int | None = None
    again_ms: int | None = None
    kept: Kept | None = None
    end_reason: EndReason | None = None
    message: str | None = None
    artifacts: Mapping[str, str] = field(default_factory=dict)
    """File name in the trial's artifact folder -> SHA-256."""

    @property
    def epochs(self) -> int:
        return len(self.epoch_ended_ms)

    @property
    def end_state(self) -> State | None:
        """The state that a trial with this end has; None without an end."""
        ends: dict[str, State] = {"max_epochs": "COMPLETE", "early_stopping": "COMPLETE", "pruned": "PRUNED"}
        return None if self.end_reason is None else ends.get(self.end_reason, "FAIL")

    @property
    def seconds(self) -> float:
        return sum(self.epoch_seconds)

    def figure(self, name: str) -> float | None:
        """One of METRICS of the kept weights, or of the last epoch where none are kept."""
        if self.kept:
            return self.kept.figures.get(name)
        points = self.history.get(name, ())
        return points[-1] if points else None

    def with_epoch(self, figures: Mapping[str, float], seconds: float, ended_ms: int) -> TrialRecord:
        return replace(
            self,
            history={name: (*self.history.get(name, ()), figures[name]) for name in METRICS},
            epoch_ended_ms=(*self.epoch_ended_ms, ended_ms),
            epoch_seconds=(*self.epoch_seconds, round(seconds, 6)),
            again=None,
        )

    def after_epoch(
        self, epoch: int, figures: Mapping[str, float], seconds: float, ended_ms: int
    ) -> TrialRecord:
        """The record after `epoch` (from 1), which an interrupted trial may have trained before: it repeats itself."""
        again = epoch <= self.epochs
        if again and all(self.history[name][epoch - 1] == value for name, value in figures.items()):
            return replace(self, again=epoch if epoch < self.epochs else None)
        return self.until(epoch - 1).with_epoch(figures, seconds, ended_ms)

    def begun_again(self, at_ms: int) -> TrialRecord:
        """The record of an interrupted trial as it starts again from epoch 0."""
        return replace(self, worker=None, again=0 if self.epochs else None, again_ms=at_ms)

    @property
    def now(self) -> TrialRecord:
        """The record of what runs now: of the attempt under way, without what an earlier one had."""
        return self if self.again is None else self.until(self.again)

    def until(self, epoch: int) -> TrialRecord:
        if self.epochs <= epoch:
            return self
        return replace(
            self,
            history={name: values[:epoch] for name, values in self.history.items()},
            epoch_ended_ms=self.epoch_ended_ms[:epoch],
            epoch_seconds=self.epoch_seconds[:epoch],
        )

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "config": self.config.to_dict(), "kept": self.kept and asdict(self.kept)}

    @classmethod
    def from_json(cls, values: Any, where: str = "trial") -> TrialRecord:
        """Read what `to_json` wrote, given as an object or as JSON text. Raises StorageError for anything else."""
        try:
            found = dict(json.loads(values) if isinstance(values, str) else values)
            uid_of(found["uid"])
            found["config"] = TrialConfig.from_dict(found["config"], where)
            found["kept"] = found["kept"] and Kept(**found["kept"])
            found["history"] = {name: tuple(points) for name, points in found["history"].items()}
            for name in ("epoch_ended_ms", "epoch_seconds"):
                found[name] = tuple(found[name])
            return cls(**found)
        except (ValueError, KeyError, TypeError) as error:
            unread = f"{where}: its record cannot be read ({error})"
            raise StorageError(f"{unread}; was it written by another version?") from None


@dataclass(frozen=True)
class Origin:
    """Why a queued trial exists, when the sampler did not propose it.

    kind: `control`, `grid`, `retry` of trial `retry_of` (of that control or request, if it was one), `request` from
    another terminal, or `earlier` (another study's best). key: unique; what is queued under it is queued once.
    config: the whole configuration where the search space does not hold it, or where the seed is another trial's.
    """

    kind: str
    key: str
    config: TrialConfig | None = None
    parameters: Mapping[str, Value] | None = None
    attempt: int = 1
    retry_of: int | None = None
    control: str | None = None
    requested: bool = False

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "config": self.config.to_dict() if self.config else None}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Origin:
        config = TrialConfig.from_dict(values["config"], "origin") if values["config"] else None
        return cls(**{**values, "config": config})
