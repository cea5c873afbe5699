"""Whether a configuration over- or underfits, and where it errs: from figures and predictions to what they say."""

from __future__ import annotations

import base64
import math
import statistics
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from regtune.evidence.diagnosis import Confusion, Errors, Fit, Fitting, Mistake, ReliabilityBin, SizePoint
from regtune.evidence.trainings import Trained

LARGE_GAP, SMALL_GAP = 0.5, 0.2
"""Shares of the validation cross-entropy that is gap: from the first on it overfits, up to the second it does not."""
BINS = 15
CONFUSIONS, MISTAKES, INDICES = 10, 24, 1000
"""How many are kept in a diagnosis at most."""


def point_of(images: int, trained: Sequence[Trained]) -> SizePoint | None:
    """The mean of the trainings that kept weights; None without one."""
    kept = [one.record.kept for one in trained if one.record.kept]
    if not kept:
        return None
    values = [one.figures["val_cross_entropy"] for one in kept]
    return SizePoint(
        images=images,
        trainings=len(kept),
        train_cross_entropy=statistics.fmean(one.train_cross_entropy for one in kept),
        val_cross_entropy=statistics.fmean(values),
        train_accuracy=statistics.fmean(one.train_accuracy for one in kept),
        val_accuracy=statistics.fmean(one.figures["val_accuracy"] for one in kept),
        error=statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None,
    )


def fit_of(points: Sequence[SizePoint], classes: int, without: float | None = None) -> Fit:
    """Judge a learning curve, from few images to all.

    It overfits where at least half of the validation cross-entropy is gap. It underfits where it learns next to
    nothing, or where there is hardly a gap and yet one image in a hundred of those that it trained on is wrong, or
    validation is worse than without any technique. without: validation cross-entropy of no technique, where known.
    """
    last = points[-1]
    train, validation = last.train_cross_entropy, last.val_cross_entropy
    share = (validation - train) / validation if validation > 0 else 0.0
    levels = f"cross-entropy is {train:.4f} in training and {validation:.4f} in validation"
    images = _more_images(points)
    verdict: Fitting = "neither"
    if validation > 0.9 * math.log(classes):
        verdict, reason = (
            "underfitting",
            f"{levels}, and guessing among {classes} classes has {math.log(classes):.4f}",
        )
    elif share >= LARGE_GAP:
        verdict, reason = "overfitting", f"{levels}: {100 * share:.0f} % of it is gap; {images}"
    elif share > SMALL_GAP:
        reason = f"{levels}: {100 * share:.0f} % of it is gap; {images}"
    elif without is not None and validation > without:
        verdict = "underfitting"
        without_any = f"and {without:.4f} without any technique: they are too strong"
        reason = f"{levels}, without a gap to speak of, {without_any}"
    elif last.train_accuracy < 0.99:
        verdict = "underfitting"
        wrong = f"{100 * (1 - last.train_accuracy):.1f} % of the training images are wrong"
        reason = f"{levels}, without a gap to speak of, and {wrong}; {images}"
    else:
        reason = f"{levels}, without a gap to speak of; {images}"
    return Fit(verdict=verdict, reason=reason, points=tuple(points))


def _more_images(points: Sequence[SizePoint]) -> str:
    """What the last enlargement of the training set brought."""
    if len(points) < 2:
        return "what more images bring was not measured"
    before, last = points[-2:]
    gain = before.val_cross_entropy - last.val_cross_entropy
    error = math.hypot(before.error or 0.0, last.error or 0.0)
    times = last.images / before.images
    enlarged = "twice the images" if round(times, 1) == 2 else f"{times:.3g} times the images"
    if gain > max(2 * error, 0.01 * last.val_cross_entropy):
        return f"{enlarged} lowered validation by {gain:.4f}, so more would help"
    return f"{enlarged} did not lower validation"


def errors_of(
    probabilities: NDArray[np.float32],
    labels: NDArray[np.int32],
    indices: NDArray[np.int64],
    images: NDArray[np.uint8],
) -> Errors:
    """Where a network errs.

    probabilities: `(n, classes)` of the validation images. labels: theirs. indices: theirs in the data set's training
    part, whose images are `images`, `(m, 784)` or `(m, 28, 28)`.
    """
    predicted = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = predicted == labels
    wrong = np.flatnonzero(~correct)
    confused = Counter(zip(labels[wrong].tolist(), predicted[wrong].tolist(), strict=True)).most_common()
    ordered = wrong[np.argsort(-confidence[wrong], kind="stable")]
    bins = reliability(confidence, correct)
    ece = sum(one.count * abs(one.accuracy - one.confidence) for one in bins) / len(labels)
    squared = np.square(probabilities.astype(np.float64) - np.eye(probabilities.shape[1])[labels])
    return Errors(
        images=len(labels),
        wrong=len(wrong),
        accuracy=float(correct.mean()),
        confusions=tuple(Confusion(true=a, predicted=b, count=n) for (a, b), n in confused[:CONFUSIONS]),
        mistakes=tuple(
            Mistake(
                index=int(at),
                image=int(indices[at]),
                true=int(labels[at]),
                predicted=int(predicted[at]),
                probability=round(float(confidence[at]), 6),
                pixels=base64.b64encode(images[indices[at]].tobytes()).decode(),
            )
            for at in ordered[:MISTAKES]
        ),
        indices=tuple(wrong[:INDICES].tolist()),
        reliability=tuple(bins),
        ece=float(ece),
        brier=float(squared.sum(axis=1).mean()),
        reading=_calibration(float(confidence.mean()), float(correct.mean())),
    )


def reliability(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> list[ReliabilityBin]:
    """Bins of equal width over the highest probability, without empty ones (Guo et al. 2017)."""
    places = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    return [
        ReliabilityBin(
            count=int(inside.sum()),
            confidence=float(confidence[inside].mean()),
            accuracy=float(correct[inside].mean()),
        )
        for place in range(BINS)
        if (inside := places == place).any()
    ]


def _calibration(confidence: float, accuracy: float) -> str:
    """Whether it is as sure as it is right."""
    levels = f"its mean confidence is {100 * confidence:.1f} %, its accuracy {100 * accuracy:.1f} %"
    if abs(confidence - accuracy) < 0.005:
        return f"well calibrated on the whole: {levels}"
    return f"{'over' if confidence > accuracy else 'under'}confident: {levels}"
