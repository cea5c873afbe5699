"""The outcome of a sweep, with its best trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from regtune.config.sweepfile import SweepSpec
from regtune.config.trial import TrialConfig
from regtune.errors import COMMAND
from regtune.study.progress import Tally
from regtune.study.record import Value
from regtune.study.study import Study, record_of
from regtune.sweep.standing import Standing


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


@dataclass(frozen=True)
class SweepOutcome:
    """The outcome of a sweep.

    Attributes:
        study: The study's name.
        complete: Number of complete trials; `pruned` and `failed` likewise.
        stopped: Whether a person stopped it, so that it can resume.
        reason: Why it ended.
        best: The best trial; None where no trial is complete.
        seconds: Duration of this run of the sweep.
        trial_epochs: Epochs of all trials together.
        unwritten: Number of runs that MLflow does not have yet.
        interrupted: Number of trials that restart from epoch 0 when the sweep resumes.
    """

    study: str
    complete: int
    pruned: int
    failed: int
    stopped: bool
    reason: str
    best: BestTrial | None
    seconds: float
    trial_epochs: int
    unwritten: int
    interrupted: int = 0


def best_trial(study: Study, standing: Standing) -> BestTrial | None:
    for number in standing.best(1):
        trial = study.trials()[number]
        record = record_of(trial)
        if record is not None and trial.value is not None:
            return BestTrial(number, trial.value, record.parameters, record.config)
    return None


def reason_of_end(
    spec: SweepSpec, tally: Tally, points: tuple[int, int] | None, stopped: bool, reason: str, untried: bool
) -> str:
    """Why a sweep ended, and what would go on with it.

    points: of a grid, how many are tried, of how many. reason: what has stopped it, if anything has. untried: whether
    it ended with trials left that it would have tried.
    """
    said, cap = reason or ("stopped" if stopped else "the budget is used"), spec.run_cap
    if points is not None:
        tried, size = points
        said += f"; {tried} of {size} points of the grid are tried"
        if tried >= size and not stopped:
            said = f"all {size} points of the grid are tried"
        elif cap is not None and tally.finished >= cap:
            said += f", all with: {COMMAND.get()} --set run_cap={cap + size - tried}"
    if not stopped and untried and tally.waiting and cap is not None:
        more = f"{COMMAND.get()} --set run_cap={cap + tally.waiting}"
        said += f"; {tally.waiting} queued: train them with: {more}"
    return said
