"""Bias and variance of a learner, from the predictions of its trainings on bootstrap samples.

The labels are taken as they are: noise is 0. What is decomposed is the expected loss on an image over the training
sets, and then the mean over the images.

- 0/1 loss (Domingos 2000): the main prediction of an image is what most trainings answer. Bias is 1 where it is wrong,
  variance the probability of another answer. Variance costs where the main prediction is right, and where it is wrong
  it helps, in as far as the other answers are right: expected loss = bias + net variance, net variance = unbiased
  variance - P(right | another answer) x biased variance, image by image. With two classes the other answer is right.
- Brier score (Brier 1950): squared distance of the probabilities from the label's, summed over the classes, 0 to 2.
  Expected score = squared distance of the mean probabilities + their variance. From R trainings the variance is
  estimated with R - 1, so that neither part depends on R, and squared bias is what remains: their sum is exact.

The parts of the 0/1 loss do depend on R a little: the main prediction of few trainings is nearer to each of them than
that of all would be, so variance comes out too small. Compare them at equal R.

Domingos, A unified bias-variance decomposition and its applications, ICML 2000. Brier, Verification of forecasts
expressed in terms of probability, Monthly Weather Review 78, 1950. Standard errors over trainings are the jackknife's:
Tukey, Bias and confidence in not-quite large samples, Annals of Mathematical Statistics 29, 1958.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Mean:
    """A mean over the images, and its standard errors.

    over_images: from image to image, these trainings given; None for one image. over_trainings: from training to
    training, these images given; None for fewer than three trainings.
    """

    value: float
    over_images: float | None
    over_trainings: float | None


@dataclass(frozen=True)
class ZeroOne:
    """The expected 0/1 loss and its parts: loss = bias + net_variance.

    unbiased_variance: probability of another answer than the main prediction, where that is right. biased_variance:
    where it is wrong. net_variance: what variance adds to the loss; below 0 where it helps more than it costs.
    """

    loss: Mean
    bias: Mean
    unbiased_variance: Mean
    biased_variance: Mean
    net_variance: Mean


@dataclass(frozen=True)
class Brier:
    """The expected Brier score, from 0 to 2, and its parts: loss = bias + variance. `bias` is the squared bias."""

    loss: Mean
    bias: Mean
    variance: Mean


def decompose_zero_one(predictions: NDArray[Any], labels: NDArray[Any]) -> ZeroOne:
    """Decompose the 0/1 loss (Domingos 2000).

    A training's answer is its most probable class, the first of several. Where several classes have the most votes,
    the main prediction is the one with the largest mean probability, then the first.

    Args:
        predictions: Class probabilities of each training, `(trainings, images, classes)`, two trainings at least.
        labels: Right classes, `(images,)` whole numbers from 0.

    Raises:
        ValueError: The shapes do not fit.
    """
    trainings, images, classes = _checked(predictions, labels)
    answers = np.eye(classes)[predictions.argmax(axis=2)]
    votes, probabilities = answers.sum(axis=0), predictions.sum(axis=0, dtype=np.float64)

    def parts(votes: Floats, probabilities: Floats, trainings: int) -> Floats:
        main = (votes + probabilities / (2 * trainings)).argmax(axis=1)  # a vote outweighs any probability
        rows = np.arange(images)
        right, other = votes[rows, labels] / trainings, 1 - votes[rows, main] / trainings
        bias = main != labels
        net = np.where(bias, -right, other)
        return np.stack([1 - right, bias, np.where(bias, 0, other), np.where(bias, other, 0), net])

    without = (
        parts(votes - answer, probabilities - prediction, trainings - 1)
        for answer, prediction in zip(answers, predictions, strict=True)
    )
    return ZeroOne(*_means(parts(votes, probabilities, trainings), without, trainings))


def decompose_brier(predictions: NDArray[Any], labels: NDArray[Any]) -> Brier:
    """Decompose the Brier score into squared bias and variance.

    Args:
        predictions: Class probabilities of each training, `(trainings, images, classes)`, two trainings at least.
        labels: Right classes, `(images,)` whole numbers from 0.

    Raises:
        ValueError: The shapes do not fit.
    """
    trainings, images, _ = _checked(predictions, labels)
    squares = np.square(predictions, dtype=np.float64).sum(axis=2)
    total, square = predictions.sum(axis=0, dtype=np.float64), squares.sum(axis=0)

    def parts(total: Floats, square: Floats, trainings: int) -> Floats:
        loss = 1 + (square - 2 * total[np.arange(images), labels]) / trainings
        variance = (square - np.square(total).sum(axis=1) / trainings) / (trainings - 1)
        return np.stack([loss, loss - variance, variance])

    without = (
        parts(total - prediction, square - its, trainings - 1)
        for prediction, its in zip(predictions, squares, strict=True)
    )
    return Brier(*_means(parts(total, square, trainings), without, trainings))


def _checked(predictions: NDArray[Any], labels: NDArray[Any]) -> Sequence[int]:
    if predictions.ndim != 3 or len(predictions) < 2 or predictions.shape[1:2] != labels.shape:
        shapes = f"{predictions.shape} and {labels.shape}"
        raise ValueError(
            f"expected (trainings, images, classes) of two trainings or more and (images,), got {shapes}"
        )
    return predictions.shape


def _means(parts: Floats, without: Iterator[Floats], trainings: int) -> Iterator[Mean]:
    """Each part's mean over the images. parts: `(parts, images)`; without: the same, each training left out in turn."""
    images = parts.shape[1]
    apart = np.array([part.mean(axis=1) for part in without]) if trainings > 2 else None
    for place, part in enumerate(parts):
        over_images = float(part.std(ddof=1)) / math.sqrt(images) if images > 1 else None
        over_trainings = None if apart is None else float(apart[:, place].std()) * math.sqrt(trainings - 1)
        yield Mean(float(part.mean()), over_images, over_trainings)
