"""The record of a registered version: what it is, where it comes from, what it was compared with, and its figures."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from regtune.config.trial import Frozen, TrialConfig
from regtune.data.arrays import FEATURES, MAX_LABEL

FOLDER = "regtune"
"""Folder of a version's artifacts that regtune reads; what lies beside it is MLflow's."""
CONFIG = f"{FOLDER}/config.yaml"
RECORD = f"{FOLDER}/promotion.json"
PREDICTIONS = f"{FOLDER}/test_predictions.npz"
CARD = f"{FOLDER}/card.md"
MANIFEST = f"{FOLDER}/manifest.json"
MODEL = "data/model.keras"
"""Where MLflow's Keras flavor keeps the network."""


class Figures(Frozen):
    """What a network does on one part of the data.

    cross_entropy: in nats. ece, brier: as `regtune.training.measure` has them. recall: of each class, the share of its
    images that are recognized.
    """

    images: int
    accuracy: float
    cross_entropy: float
    ece: float
    brier: float
    recall: tuple[float, ...]


class Source(Frozen):
    """Where a version comes from.

    candidate: key of the decision's candidate; None where a trial was taken. chosen: by the decision, as the best
    single run of the search, or by a person who named a trial. replicates, mean, half_width: of a decision.
    """

    study: str
    uid: str
    trial: int | None = None
    trial_uid: str | None = None
    candidate: str | None = None
    chosen: Literal["decision", "search", "person"]
    metric: str
    replicates: int | None = None
    mean: float | None = None
    half_width: float | None = None
    sentence: str = ""
    """The decision in one sentence."""


class DataUsed(Frozen):
    """The data that a version was trained and measured on; digest: of the whole set, its test part included."""

    name: str
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    split_seed: int
    train: int = Field(ge=1)
    validation: int = Field(ge=1)
    test: int = Field(ge=1)
    features: int = Field(ge=FEATURES, le=FEATURES)
    classes: int = Field(ge=2, le=MAX_LABEL + 1)


class Opening(Frozen):
    """One opening of a test set. at: ISO 8601 in UTC. model: the registered model it was opened for."""

    data: str
    at: str
    study: str
    model: str
    config: str


class Gate(Frozen):
    """One gate and how it went.

    figure, limit: as a person reads them, ``0.9712`` and ``at least 0.97``. passed: None where it was not asked,
    for which `note` says why.
    """

    name: str
    figure: str
    limit: str
    passed: bool | None
    note: str = ""


class Record(Frozen):
    """Everything that is recorded of a version, as `promotion.json` in its artifacts.

    fingerprint: of the configuration, wherever its data lies (`study.best.fingerprint`). refit: whether the validation
    images were trained on, too; then `validation` are those figures all the same, of the registered weights. epochs:
    trained; kept_epoch: whose weights are kept. entries: of the hidden kernels that are not absent, and `techniques`
    in use: how simple it is. champion: the version that it was compared with. openings: of this test set by this
    study, this one the last. accuracy_low, accuracy_high: the 95 % interval of the test accuracy (Wilson 1927).
    seconds_a_digit: one image at a time. bytes: of the model's file. created: ISO 8601 in UTC.
    """

    format: Literal[1] = 1
    name: str
    source: Source
    config: TrialConfig
    fingerprint: str
    data: DataUsed
    refit: bool
    epochs: int
    kept_epoch: int
    techniques: int
    entries: int
    validation: Figures
    test: Figures
    accuracy_low: float
    accuracy_high: float
    champion: str | None
    gates: tuple[Gate, ...]
    forced: str | None = None
    openings: tuple[Opening, ...]
    decision: dict[str, Any] | None = None
    bytes: int
    seconds_a_digit: float
    versions: dict[str, str] = Field(default_factory=dict)
    created: str
