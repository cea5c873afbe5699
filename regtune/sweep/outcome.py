"""How a sweep ended, with its best trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from regtune.config.sweepfile import SweepSpec
from regtune.config.trial import TrialConfig
from regtune.errors import COMMAND
from regtune.study.record import Value
from regtune.study.study import Study, record_of
from regtune.sweep.standing import Standing, Tally


@dataclass(frozen=True)
class BestTrial:
    """The best trial of a study. `value`: of the sweep's metric; `parameters`: what was searched; `config`: all of it,
    which `train` trains again.
    """

    number: int
    value: float
    parameters: Mapping[str, Value]
    config: TrialConfig


@dataclass(frozen=True)
class SweepOutcome:
    """How a sweep ended. `stopped`: by a person, and it can go on. `best`: None where no trial is complete.
    `unwritten`: runs that MLflow has not got yet. `interrupted`: trials that start again from epoch 0 when it goes on.
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
    """The best trial of a study, None where no trial is complete."""
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
        said += (
            f"; {tally.waiting} queued: train them with: {COMMAND.get()} --set run_cap={cap + tally.waiting}"
        )
    return said
