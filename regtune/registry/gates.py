"""The gates that a version passes before an alias moves to it, and their limits, as `gates.yaml` sets them.

Those without the test set come first; where one of them refuses, the test set stays closed. Gates see a network as a
function of pixels, so that each door to it can be asked the same.

Two networks are compared on the same test images: McNemar's exact test says whether one has more of them right, the
interval of the difference by how much. Class by class it is McNemar's test again, at a level divided by the classes
(Bonferroni), because the worst of ten classes is worse by luck alone: on 100 images a class two trainings that differ
by their seed are five points apart there.

McNemar, Note on the sampling error of the difference between correlated proportions or percentages, Psychometrika 12,
1947. Newcombe, Improved confidence intervals for the difference between binomial proportions based on paired data,
Statistics in Medicine 17, 1998, method 10. Wilson, Probable inference, the law of succession, and statistical
inference, Journal of the American Statistical Association 22, 1927. Hendrycks and Dietterich, Benchmarking neural
network robustness to common corruptions and perturbations, ICLR 2019. ECE: `regtune.training.measure`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from regtune.config.mistakes import Keys, explain
from regtune.config.source import read
from regtune.config.trial import Frozen
from regtune.data.arrays import Images, Labels
from regtune.errors import GatesError
from regtune.registry.version import Gate

Predict = Callable[[Images], NDArray[Any]]
"""From images `(n, 784) uint8` to probabilities `(n, classes)`."""

ALPHA = 0.05
SIDE = 28
NOISE = 0.1
"""Standard deviation of the noise, as a share of white."""
TIMED = 31
"""Digits that are timed, one at a time."""
CLOSED = "needs the test set"


class Gates(Frozen):
    """A file of gates, read and validated. A limit of null switches its gate off, which is recorded; not `champion`."""

    max_ece: float | None = Field(default=0.03, gt=0.0, le=1.0)
    """Expected calibration error over the validation images."""
    min_accuracy_shifted: float | None = Field(default=0.75, ge=0.0, le=1.0)
    """Accuracy over the validation images moved by one pixel: left, right, up and down."""
    min_accuracy_noisy: float | None = Field(default=0.75, ge=0.0, le=1.0)
    """Accuracy over the validation images with Gaussian noise of a tenth of white."""
    max_megabytes: float | None = Field(default=10.0, gt=0.0, le=1e6)
    """Size of the model's file, in millions of bytes."""
    max_milliseconds: float | None = Field(default=50.0, gt=0.0, le=1e6)
    """Time that one image takes through Keras, in the median."""
    max_accuracy_loss: float | None = Field(default=0.02, ge=0.0, le=1.0)
    """How far below the champion's a tied network's test accuracy may be, by the lower end of the interval."""
    max_recall_loss: float | None = Field(default=0.02, ge=0.0, le=1.0)
    """How much less of any class than the champion a network may recognize, beyond what luck explains."""


KEYS = Keys(Gates)


def load_gates(path: Path | None) -> Gates:
    """Read a file of gates; None has every default. Raises GatesError, with one line for each mistake."""
    if path is None:
        return Gates()
    source = read(path, GatesError)
    try:
        gates = Gates.model_validate(source.values)
    except ValidationError as error:
        raise GatesError(source.lines(explain(error, KEYS))) from None
    if source.problems:
        raise GatesError(source.lines(()))
    return gates


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a file of gates."""
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return Gates.model_json_schema() | {"$schema": dialect, "title": "regtune gates"}


@dataclass(frozen=True)
class Tested:
    """A network on the test set. name: of its version. techniques, entries: how simple it is, as `Record` has them.

    data: digest of the data set. probabilities: of each test image, in their order.
    """

    name: str
    data: str
    techniques: int
    entries: int
    probabilities: NDArray[Any]


@dataclass(frozen=True)
class Comparison:
    """Two networks on the same images, the new one minus the old one.

    gained, lost: images that only the new one, or only the old one, has right. low, high: the 95 % interval of the
    difference of accuracies. p: of McNemar's exact test.
    """

    gained: int
    lost: int
    difference: float
    low: float
    high: float
    p: float


def closed_gates(
    limits: Gates,
    predict: Predict,
    images: Images,
    labels: Labels,
    *,
    trainings: Sequence[Mapping[str, float]],
    digests: Mapping[str, tuple[str, str]],
    size_bytes: int,
    seconds_a_digit: float,
) -> tuple[Gate, ...]:
    """Ask the gates that need no test set.

    Args:
        limits: The limits.
        predict: The network.
        images: The validation images.
        labels: Their labels.
        trainings: The figures of each training of the same configuration.
        digests: The digest expected and the one found, by what it is of.
        size_bytes: Of the model's file.
        seconds_a_digit: As `seconds_a_digit` measures it.
    """
    from regtune.training.measure import calibration_error

    ece = calibration_error(predict(images), labels)
    shifted = float(np.mean([_accuracy(predict(moved), labels) for moved in _moved(images)]))
    noisy = _accuracy(predict(_noisy(images)), labels)
    megabytes, milliseconds = size_bytes / 1e6, 1000 * seconds_a_digit
    over = f"{len(labels):,} validation images"
    return (
        _reproducible(trainings),
        _digests(digests),
        _at_most("calibration", ece, limits.max_ece, "{:.4f}", f"ECE over {over}"),
        _at_least("shift", shifted, limits.min_accuracy_shifted, f"accuracy over {over}, moved by one pixel"),
        _at_least("noise", noisy, limits.min_accuracy_noisy, f"accuracy over {over} with Gaussian noise"),
        _at_most("size", megabytes, limits.max_megabytes, "{:.3g} MB", "the model's file"),
        _at_most("latency", milliseconds, limits.max_milliseconds, "{:.2g} ms", "one digit through Keras"),
    )


def open_gates(
    limits: Gates, new: Tested | None, labels: Labels, champion: Tested | None
) -> tuple[Gate, ...]:
    """Ask the gates that need the test set. new: None where it stays closed. champion: None where there is none."""
    better, classes = "better, or tied and simpler", f"no class more than {limits.max_recall_loss} worse"
    if limits.max_recall_loss is None:
        classes = "none"
    if champion is None:
        first = "there is no champion yet"
        return Gate(name="champion", figure="–", limit=better, passed=True, note=first), Gate(
            name="classes", figure="–", limit=classes, passed=True, note=first
        )
    if new is None:
        return tuple(
            Gate(name=name, figure="–", limit=limit, passed=None, note=CLOSED)
            for name, limit in (("champion", better), ("classes", classes))
        )
    if champion.data != new.data or champion.probabilities.shape != new.probabilities.shape:
        other = f"{champion.name} was tested on other data ({champion.data[:12]}...): not comparable"
        return Gate(name="champion", figure="–", limit=better, passed=False, note=other), Gate(
            name="classes", figure="–", limit=classes, passed=None, note="not comparable"
        )
    right, before = (one.probabilities.argmax(axis=1) == labels for one in (new, champion))
    return (
        _against(limits, compare(right, before), new, champion, better),
        _classes(limits, right, before, labels, champion, classes),
    )


def refusals(gates: Sequence[Gate]) -> list[Gate]:
    """The gates that refuse."""
    return [gate for gate in gates if gate.passed is False]


def seconds_a_digit(predict: Predict, images: Images) -> float:
    """The median time of one image alone, after a few that warm up."""
    taken = []
    for index in range(TIMED + 3):
        begun = time.perf_counter()
        predict(images[index % len(images) :][:1])
        taken.append(time.perf_counter() - begun)
    return float(np.median(taken[3:]))


def wilson(right: int, images: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy (Wilson 1927)."""
    from scipy.stats import binomtest

    interval = binomtest(right, images).proportion_ci(1 - ALPHA, method="wilson")
    return float(interval.low), float(interval.high)


def compare(new: NDArray[np.bool_], old: NDArray[np.bool_]) -> Comparison:
    """Compare two networks by which of the same images each has right."""
    images, both = len(new), int((new & old).sum())
    gained, lost = int((new & ~old).sum()), int((old & ~new).sum())
    shares = (both + gained) / images, (both + lost) / images
    (new_low, new_high), (old_low, old_high) = wilson(both + gained, images), wilson(both + lost, images)
    neither = images - both - gained - lost
    covariance: float = both * neither - gained * lost
    if covariance > 0:
        covariance = max(covariance - images / 2, 0)
    product = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    correlation = covariance / sqrt(product) if product else 0.0

    def reach(one: float, other: float) -> float:
        return sqrt(max(one**2 - 2 * correlation * one * other + other**2, 0.0))

    difference = (gained - lost) / images
    return Comparison(
        gained=gained,
        lost=lost,
        difference=difference,
        low=difference - reach(shares[0] - new_low, old_high - shares[1]),
        high=difference + reach(new_high - shares[0], shares[1] - old_low),
        p=_mcnemar(gained, lost),
    )


def _mcnemar(gained: int, lost: int) -> float:
    """The p value of McNemar's exact test, two-sided; 1 where no image tells the networks apart."""
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def _against(limits: Gates, found: Comparison, new: Tested, champion: Tested, limit: str) -> Gate:
    simpler = (new.techniques, new.entries) < (champion.techniques, champion.entries)
    floor = limits.max_accuracy_loss
    shown = found.p < ALPHA
    images = f"{len(new.probabilities):,} images"
    counts = f"only this one has {found.gained} of {images} right, only {champion.name} {found.lost}"
    if shown and found.difference > 0:
        passed, verdict = True, "better"
    elif shown:
        passed, verdict = False, "worse"
    elif not simpler:
        passed, verdict = False, "tied, and not simpler"
    elif floor is not None and found.low < -floor:
        passed, verdict = False, f"tied, but perhaps worse by more than {floor}"
    else:
        passed, verdict = True, "tied and simpler"
    figure = f"{_signed(found.difference)} ({_signed(found.low)} to {_signed(found.high)}), p = {found.p:.2g}"
    return Gate(name="champion", figure=figure, limit=limit, passed=passed, note=f"{verdict}: {counts}")


def _classes(
    limits: Gates,
    right: NDArray[np.bool_],
    before: NDArray[np.bool_],
    labels: Labels,
    champion: Tested,
    limit: str,
) -> Gate:
    """The class that loses most; of those that lose more than the limit, and not by luck, if there is one."""
    level = ALPHA / len(np.unique(labels))
    losses = []
    for number in np.unique(labels):
        of = labels == number
        gained, lost = int((right & ~before)[of].sum()), int((before & ~right)[of].sum())
        p = _mcnemar(gained, lost)
        loss = (lost - gained) / int(of.sum())
        worse = limits.max_recall_loss is not None and loss > limits.max_recall_loss
        losses.append((worse and p < level, loss, worse, int(number), p))
    refused, loss, worse, number, p = max(losses)
    note = f"recall of the class that loses most against {champion.name}"
    if worse and not refused:
        note += f"; luck explains it (p = {p:.2g}, shown below {level:.2g})"
    passed = None if limits.max_recall_loss is None else not refused
    return Gate(
        name="classes", figure=f"class {number}: {_signed(-loss)}", limit=limit, passed=passed, note=note
    )


def _reproducible(trainings: Sequence[Mapping[str, float]]) -> Gate:
    first, *others = trainings
    every = {key for other in others for key in first.keys() | other.keys()}
    apart = sorted(key for key in every if any(other.get(key) != first.get(key) for other in others))
    figure = "different" if apart else "the same figures"
    return Gate(
        name="reproducible",
        figure=figure,
        limit="the same figures",
        passed=not apart,
        note=f"not the same: {', '.join(apart)}" if apart else f"trained {len(trainings)} times",
    )


def _digests(digests: Mapping[str, tuple[str, str]]) -> Gate:
    wrong = {name: pair for name, pair in digests.items() if pair[0] != pair[1]}
    found = "; ".join(f"{name}: {is_[:12]}..., expected {was[:12]}..." for name, (was, is_) in wrong.items())
    return Gate(
        name="digests",
        figure=f"{len(digests) - len(wrong)} of {len(digests)} right",
        limit="all right",
        passed=not wrong,
        note=found or ", ".join(digests),
    )


def _at_most(name: str, value: float, limit: float | None, form: str, note: str) -> Gate:
    said, passed = ("none", None) if limit is None else (f"at most {_limit(form, limit)}", value <= limit)
    return Gate(name=name, figure=form.format(value), limit=said, passed=passed, note=note)


def _at_least(name: str, value: float, limit: float | None, note: str) -> Gate:
    said, passed = ("none", None) if limit is None else (f"at least {limit:g}", value >= limit)
    return Gate(name=name, figure=f"{value:.4f}", limit=said, passed=passed, note=note)


def _limit(form: str, limit: float) -> str:
    return f"{limit:g}{form.partition('}')[2]}"


def _signed(value: float) -> str:
    return f"{'−' if value < 0 else '+'}{abs(value):.4f}"


def _accuracy(probabilities: NDArray[Any], labels: Labels) -> float:
    return float((probabilities.argmax(axis=1) == labels).mean())


def _moved(images: Images) -> list[Images]:
    """The images moved by one pixel to each side; what comes in is black."""
    framed = np.pad(images.reshape(-1, SIDE, SIDE), ((0, 0), (1, 1), (1, 1)))
    sides = ((0, 1), (2, 1), (1, 0), (1, 2))
    return [framed[:, y : y + SIDE, x : x + SIDE].reshape(images.shape) for y, x in sides]


def _noisy(images: Images) -> Images:
    """The images with Gaussian noise, the same at each call."""
    noise = np.random.default_rng(0).normal(0, NOISE * 255, images.shape)
    return np.clip(np.rint(images + noise), 0, 255).astype(np.uint8)
