"""Bias and variance along a strength: which strengths, how they are trained, and what the curve says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regtune.config.sweepfile.parameters import Categorical, Range
from regtune.config.trial import TrialConfig, format_number
from regtune.evidence.bias_variance import decompose_brier, decompose_zero_one
from regtune.evidence.diagnosis import Along, BiasPoint, BiasVariance
from regtune.evidence.trainings import Job, Trained
from regtune.executors import Sample
from regtune.study.decision import Estimate
from regtune.study.study import derive_seed

HIGHEST_DROPOUT = 0.6
PENALTIES = 1e-7, 1e-3
"""Where the strengths lie that are measured of what is not searched."""


@dataclass(frozen=True)
class Strengths:
    """The strengths that are measured, in ascending order. choice: of the configuration, None where layers differ."""

    along: Along
    values: tuple[float, ...]
    choice: float | None

    @property
    def log(self) -> bool:
        return self.along != "dropout"

    def config(self, config: TrialConfig, value: float) -> TrialConfig:
        """The configuration with another strength in all layers, or with so many epochs and no early stopping."""
        if self.along == "epochs":
            training = config.training.model_copy(update={"max_epochs": int(value)})
            return config.model_copy(update={"training": training, "early_stopping": None})
        layers = (float(value),) * len(config.model.hidden)
        techniques = config.regularization.model_copy(update={self.along: layers})
        return config.model_copy(update={"regularization": techniques})


def strengths_of(
    along: Along, config: TrialConfig, parameter: Categorical | Range | None, count: int, kept_epoch: int
) -> Strengths:
    """Spread `count` strengths over what is searched, with the configuration's own in place of the nearest.

    Dropout is spread evenly; penalties by logarithms, and 0 besides; epochs by logarithms, up to the most.

    parameter: of the sweep file, None where it is not searched. kept_epoch: of the weights that the configuration
    keeps; its choice of epochs.
    """
    if along == "epochs":
        values = [*map(round, np.geomspace(1, config.training.max_epochs, count).tolist())]
        choice: float | None = kept_epoch
    else:
        layers = set(getattr(config.regularization, along))
        choice = layers.pop() if len(layers) == 1 else None
        low, high = _range_of(along, parameter)
        if along == "dropout":
            values = [round(value, 3) for value in np.linspace(0.0, high, count).tolist()]
        else:
            values = [0.0, *(float(f"{value:.2g}") for value in np.geomspace(low, high, count - 1).tolist())]
    spread = sorted(set(map(float, values)))
    if choice is not None and choice not in spread:
        inner = spread[1:-1] if spread[0] < choice < spread[-1] else []
        if inner:
            spread.remove(min(inner, key=lambda value: _distance(along, value, choice)))
        spread = sorted([*spread, float(choice)])
    return Strengths(along, tuple(spread), None if choice is None else float(choice))


def _range_of(along: Along, parameter: Categorical | Range | None) -> tuple[float, float]:
    least, most = (0.0, HIGHEST_DROPOUT) if along == "dropout" else PENALTIES
    if isinstance(parameter, Range):
        return float(parameter.min) or least, float(parameter.max)
    if isinstance(parameter, Categorical):
        given = [float(value) for value in parameter.values if value > 0]
        return (min(given), max(given)) if len(given) > 1 else (least, most)
    return least, most


def _distance(along: Along, value: float, choice: float) -> float:
    if along == "dropout" or not value or not choice:
        return abs(value - choice)
    return abs(math.log(value / choice))


def jobs_of(strengths: Strengths, config: TrialConfig, images: int, rounds: int) -> list[Job]:
    """The trainings, round by round: in one, every strength has the same bootstrap sample and the same seed."""
    return [
        Job(
            key=(turn, value),
            config=strengths.config(config, value).model_copy(
                update={"seed": derive_seed(config.seed, turn, "replicate")}
            ),
            sample=Sample(images=images, bootstrap=derive_seed(config.seed, turn, "split")),
            predictions=True,
        )
        for turn in range(rounds)
        for value in strengths.values
    ]


def curve_of(
    strengths: Strengths,
    trained: Mapping[Any, Trained],
    labels: NDArray[np.int32],
    *,
    images: int,
    of: int,
    why: str,
) -> BiasVariance | None:
    """Bias and variance at each strength, from the rounds that are complete; None with fewer than two.

    A round counts when every strength has ended in it; a strength that never ended with finite figures is left out.
    """
    values = [
        value
        for value in strengths.values
        if any(one.complete for (_, other), one in trained.items() if other == value)
    ]
    turns = sorted({turn for turn, _ in trained})
    whole = [
        turn
        for turn in turns
        if all((turn, value) in trained and trained[turn, value].predictions is not None for value in values)
    ]
    if len(whole) < 2 or len(values) < 2:
        return None
    stacks = {
        value: np.stack([one for turn in whole if (one := trained[turn, value].predictions) is not None])
        for value in values
    }
    points = tuple(
        _point(value, stacks[value], labels, [trained[turn, value] for turn in whole]) for value in values
    )
    least = min(points, key=lambda one: one.brier).value
    choice = strengths.choice if strengths.choice in values else None
    excess = None
    if choice is not None and choice != least:
        excess = _paired(_briers(stacks[choice], labels) - _briers(stacks[least], labels))
    return BiasVariance(
        along=strengths.along,
        why=why,
        log=strengths.log,
        images=images,
        of=of,
        points=points,
        minimum=min(points, key=lambda one: one.loss).value,
        brier_minimum=least,
        choice=choice,
        excess=excess,
        reading=_reading(strengths.along, points, least, choice, excess),
    )


def _point(
    value: float, predictions: NDArray[np.float32], labels: NDArray[np.int32], trained: Sequence[Trained]
) -> BiasPoint:
    zero_one, brier = decompose_zero_one(predictions, labels), decompose_brier(predictions, labels)
    kept = [one.record.kept.epoch for one in trained if one.record.kept]
    return BiasPoint(
        value=value,
        trainings=len(predictions),
        loss=zero_one.loss.value,
        bias=zero_one.bias.value,
        variance=zero_one.net_variance.value,
        loss_error=zero_one.loss.over_trainings,
        brier=brier.loss.value,
        brier_bias=brier.bias.value,
        brier_variance=brier.variance.value,
        brier_error=brier.loss.over_trainings,
        epochs=sum(kept) / len(kept),
    )


def _briers(predictions: NDArray[np.float32], labels: NDArray[np.int32]) -> NDArray[np.float64]:
    """The Brier score of each training."""
    squared = np.square(predictions.astype(np.float64) - np.eye(predictions.shape[2])[labels])
    scores: NDArray[np.float64] = squared.sum(axis=2).mean(axis=1)
    return scores


def _paired(differences: NDArray[np.float64]) -> Estimate:
    """Mean and 95 % interval of Student's t."""
    from scipy.special import stdtrit

    count = len(differences)
    error = float(differences.std(ddof=1)) / math.sqrt(count)
    return Estimate(mean=float(differences.mean()), half_width=float(stdtrit(count - 1, 0.975)) * error)


def _reading(
    along: Along, points: Sequence[BiasPoint], least: float, choice: float | None, excess: Estimate | None
) -> str:
    first, last = points[0], points[-1]

    def text(value: float) -> str:
        return "off" if value == 0 and along != "epochs" else format_number(value)

    ends = f"from {along} {text(first.value)} to {text(last.value)}"
    variance = f"variance goes from {first.brier_variance:.4f} to {last.brier_variance:.4f}"
    bias = f"squared bias from {first.brier_bias:.4f} to {last.brier_bias:.4f}"
    minimum = f"the Brier score is least at {text(least)}"
    if choice is None:
        where = "the layers of the choice differ"
    elif excess is None or excess.low is None:
        where = "which is the choice"
    else:
        apart = "" if excess.low > 0 else ", which cannot be told apart from it"
        more = f"{excess.mean:.4f} ± {excess.half_width:.4f} higher"
        where = f"at the choice, {text(choice)}, it is {more}{apart}"
    return f"{ends}, {variance} and {bias}; {minimum}; {where}"
