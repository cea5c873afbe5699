"""What `diagnose` has measured: bias and variance, fit, parameters, errors, and the textbook's sentences.

A diagnosis is an attribute of its study, as JSON of at most about 100 kB. A part that was not measured is None, and
`missing` says what it needs. Reading it imports neither SciPy nor TensorFlow.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field, ValidationError
from sqlalchemy import Engine

from regtune.config.trial import Frozen, TrialConfig
from regtune.errors import StorageError
from regtune.study import tables
from regtune.study.decision import Estimate

Along = Literal["dropout", "l1", "l2", "epochs"]
"""The strengths along which bias and variance are measured."""
ALONG: tuple[Along, ...] = ("dropout", "l1", "l2", "epochs")
Fitting = Literal["overfitting", "underfitting", "neither"]
Effect = Literal["matters", "flat", "not_measured"]
Holds = Literal["holds here", "does not hold here", "not measured"]


class Subject(Frozen):
    """The configuration that is diagnosed. name: `trial 16`, `control dropout` or the file. why: who chose it."""

    name: str
    mix: str
    why: str
    config: TrialConfig


class BiasPoint(Frozen):
    """One strength. All figures are means over the validation images, from `trainings` bootstrap trainings.

    loss: expected 0/1 loss = bias + variance; variance is the net one, unbiased minus biased (Domingos 2000).
    brier: expected Brier score = brier_bias + brier_variance. loss_error, brier_error: standard errors over trainings.
    epochs: mean epoch of the kept weights.
    """

    value: float
    trainings: int
    loss: float
    bias: float
    variance: float
    loss_error: float | None = None
    brier: float
    brier_bias: float
    brier_variance: float
    brier_error: float | None = None
    epochs: float


class BiasVariance(Frozen):
    """Bias and variance along a strength, in ascending order of it.

    log: whether the strength is drawn on a logarithmic axis; a value of 0 is then off, at its left end. images: drawn
    with replacement for each training, of `of` training images. minimum, brier_minimum: the strength with the least
    loss. choice: the strength of the configuration that is diagnosed; None where its layers differ. excess: Brier score
    at the choice minus that at the minimum, paired; None where they are one. reading: what the curve says, one line.
    """

    along: Along
    why: str
    log: bool
    images: int
    of: int
    points: tuple[BiasPoint, ...]
    minimum: float
    brier_minimum: float
    choice: float | None = None
    excess: Estimate | None = None
    reading: str

    def at(self, value: float) -> BiasPoint | None:
        """Return the point of a strength."""
        return next((point for point in self.points if point.value == value), None)


class SizePoint(Frozen):
    """Kept weights after training on the first `images` training images; means over `trainings`, which differ in seed.

    error: standard error of the validation cross-entropy.
    """

    images: int
    trainings: int
    train_cross_entropy: float
    val_cross_entropy: float
    train_accuracy: float
    val_accuracy: float
    error: float | None = None


class Fit(Frozen):
    """Whether the configuration over- or underfits, and the learning curve that says so, from few images to all."""

    verdict: Fitting
    reason: str
    points: tuple[SizePoint, ...]


class MetricPoint(Frozen):
    """A bin of a parameter. value: of its middle trial, or the word. count: its complete trials.

    metric: mean of the metric, adjusted for the other searched parameters.
    """

    value: float | str
    count: int
    metric: float


class ParameterEffect(Frozen):
    """What the search tells about one searched parameter.

    importance, low, high: PED-ANOVA's share, from 0 to 1, and its 95 % interval over bootstrap samples of the trials;
    None with too few trials. log: whether it was searched by logarithms; a value of 0 is off. level, noise: a curve
    within level ± noise cannot be told from a constant; None where no replicates were trained. best: the bin with
    the best metric. reading: one line.
    """

    name: str
    log: bool
    importance: float | None = None
    low: float | None = None
    high: float | None = None
    points: tuple[MetricPoint, ...] = ()
    level: float | None = None
    noise: float | None = None
    effect: Effect
    best: float | str | None = None
    reading: str


class Confusion(Frozen):
    """How many validation images of class `true` are taken for `predicted`."""

    true: int
    predicted: int
    count: int


class Mistake(Frozen):
    """A validation image that is classified wrongly.

    index: among the validation images; image: among the data set's training images. probability: that of the wrong
    class. pixels: base64 of the image's 784 bytes, row by row.
    """

    index: int
    image: int
    true: int
    predicted: int
    probability: float
    pixels: str = ""


class ReliabilityBin(Frozen):
    """Validation images whose highest probability lies in a range. confidence: its mean; accuracy: share of correct."""

    count: int
    confidence: float
    accuracy: float


class Errors(Frozen):
    """Where the configuration errs: one training of it on all training images, with the seed of its trial.

    images: of the validation part. wrong: how many are classified wrongly; indices: which, at most INDICES.
    confusions: the most frequent first. mistakes: the most confident first. reliability: bins of equal width in
    ascending order, without empty ones. ece: expected calibration error (Guo et al. 2017). reading: one line.
    """

    images: int
    wrong: int
    accuracy: float
    confusions: tuple[Confusion, ...]
    mistakes: tuple[Mistake, ...]
    indices: tuple[int, ...]
    reliability: tuple[ReliabilityBin, ...]
    ece: float
    brier: float
    reading: str


class Sentence(Frozen):
    """A sentence of the textbook, whether it holds in this study, and the figures that say so."""

    text: str
    holds: Holds
    figures: str


class Diagnosis(Frozen):
    """What was measured of one configuration.

    study, uid: None for a file. metric, goal: the study's. parts: `bias_variance`, `fit`, `parameters` and `errors`;
    missing: for each part that was not measured, what it needs. noise: sd of one training's metric, from replicates.
    complete: how many complete trials the parameters' figures rest on. notes: what was shortened, and what would cost
    more. measured: ISO 8601 in UTC.
    """

    study: str | None = None
    uid: str | None = None
    metric: str
    goal: Literal["minimize", "maximize"]
    subject: Subject
    quick: bool
    bias_variance: BiasVariance | None = None
    fit: Fit | None = None
    parameters: tuple[ParameterEffect, ...] = ()
    errors: Errors | None = None
    sentences: tuple[Sentence, ...] = ()
    missing: dict[str, str] = Field(default_factory=dict)
    noise: float | None = None
    complete: int = 0
    trainings: int = 0
    epochs: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    measured: str

    def to_json(self) -> dict[str, Any]:
        """Return plain lists, numbers and strings."""
        return self.model_dump(mode="json")


def read_diagnosis(engine: Engine, study: str) -> Diagnosis | None:
    """Read a study's last diagnosis; None where there is none. Raises StudyNotFound, StorageError."""
    with tables.reading(engine) as connection:
        value = tables.read_diagnosis(connection, tables.read_info(connection, study).id)
    if value is None:
        return None
    try:
        return Diagnosis.model_validate_json(value if isinstance(value, str) else json.dumps(value))
    except ValidationError as error:
        raise StorageError(
            f"its diagnosis cannot be read ({error.errors()[0]['msg']}); was it written by another version?"
        ) from None
