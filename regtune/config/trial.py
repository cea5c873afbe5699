"""The configuration of a trial: everything that training depends on and nothing else.

A configuration is frozen and has one canonical form (JSON with sorted keys, one value per hidden layer) and one digest.
It goes to YAML and back without loss: `best.yaml` and every run's `config.yaml` contain one (`best.yaml` adds a
`provenance` block, which training does not read).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from itertools import starmap
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from regtune.config.mistakes import Keys, describe, explain, refused
from regtune.config.source import Source, parse_mapping, read, text_of
from regtune.errors import ConfigError

BatchNorm = Literal["none", "before_activation", "after_activation"]
Activation = Literal["relu", "elu", "gelu", "leaky_relu", "selu", "sigmoid", "silu", "tanh"]
Optimizer = Literal["adam", "adamw", "sgd"]
Metric = Literal["loss", "accuracy", "cross_entropy", "val_loss", "val_accuracy", "val_cross_entropy"]

DATASETS = ("mnist", "mnist-5k", "fashion-mnist")
METRICS: tuple[Metric, ...] = get_args(Metric)
"""The figures of one epoch, in the order in which they are shown everywhere."""

MAX_LAYERS = 8
MAX_WIDTH = 4096
MAX_SEED = 2**31 - 1

Rate = Annotated[float, Field(ge=0.0, le=0.95)]
Strength = Annotated[float, Field(ge=0.0, le=100.0)]
Width = Annotated[int, Field(ge=1, le=MAX_WIDTH)]


def higher_is_better(metric: str) -> bool:
    """Whether `metric` grows as a network gets better: accuracies do, losses do not."""
    return metric.endswith("accuracy")


class Frozen(BaseModel):
    """A value: immutable, without unknown keys, without non-finite numbers, compared by its contents."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, strict=True, use_attribute_docstrings=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _canonical(cls, value: Any) -> Any:
        """Lists as tuples and -0.0 as 0.0: equal values have one digest."""
        if isinstance(value, list | tuple):
            return tuple(map(cls._canonical, value))
        return value + 0.0 if type(value) is float else value


class ModelConfig(Frozen):
    """The network before any regularization: widths of the hidden layers and their activation."""

    hidden: tuple[Width, ...] = Field(default=(128, 64), min_length=1, max_length=MAX_LAYERS)
    """Widths of the hidden layers, from the input on."""
    activation: Activation = "relu"
    """Activation of the hidden layers."""


class RegularizationConfig(Frozen):
    """Dropout rate, L1 and L2 coefficient and batch-norm placement, one value a hidden layer; one alone means all."""

    dropout: tuple[Rate, ...] = (0.0,)
    """Share of a hidden layer's outputs that is dropped while training."""
    l1: tuple[Strength, ...] = (0.0,)
    """L1 coefficient on the kernels of the hidden layers."""
    l2: tuple[Strength, ...] = (0.0,)
    """L2 coefficient on the kernels of the hidden layers, times the sum of squares."""
    batchnorm: tuple[BatchNorm, ...] = ("none",)
    """Where batch normalization stands in a hidden layer."""

    @field_validator("dropout", "l1", "l2", "batchnorm", mode="before")
    @classmethod
    def _one_for_all_layers(cls, value: Any) -> Any:
        return value if isinstance(value, list | tuple) else (value,)

    def spread(self, layers: int) -> RegularizationConfig:
        """The same with `layers` values each. Raises ValueError when a list has another length."""
        wide = {}
        for key, values in self:
            if len(values) not in (1, layers):
                what = f"expected 1 or {layers} values (one a hidden layer), found {len(values)}"
                raise refused((("regularization", key), what))
            wide[key] = values * layers if len(values) == 1 else values
        return RegularizationConfig(**wide)


class TrainingConfig(Frozen):
    """How weights are fitted."""

    optimizer: Optimizer = "adam"
    """Keras' optimizer."""
    learning_rate: float = Field(default=0.001, gt=0.0, le=10.0)
    """Step of the optimizer."""
    momentum: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Momentum of sgd."""
    weight_decay: float = Field(default=0.004, ge=0.0, le=1.0)
    """Weight decay of adamw."""
    batch_size: int = Field(default=32, ge=1, le=65536)
    """Images in one step of the optimizer."""
    max_epochs: int = Field(default=30, ge=1, le=10_000)
    """Passes over the training images, at most."""
    fused: bool = True
    """TensorFlow's one-pass Adam; false takes Keras' own, bit for bit."""


class EarlyStoppingConfig(Frozen):
    """Keras' EarlyStopping with restored best weights: its words and its meaning."""

    monitor: Metric = "val_cross_entropy"
    """The figure that has to get better."""
    patience: int = Field(default=4, ge=0, le=10_000)
    """Epochs without getting better after which training stops."""
    min_delta: float = Field(default=0.0, ge=0.0, le=1000.0)
    """The least change that counts as better."""


class DataConfig(Frozen):
    """Which images: a data set, its split, and its digest."""

    name: str = Field(default="mnist", min_length=1, max_length=1024)
    validation: float = Field(default=0.2, gt=0.0, lt=1.0)
    split_seed: int = Field(default=42, ge=0, le=MAX_SEED)
    digest: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")

    @field_validator("name")
    @classmethod
    def _printable(cls, value: str) -> str:
        if not value.isprintable():
            raise ValueError("expected a name or path of printable characters")
        return value


PROVENANCE = "provenance"
"""The block of `best.yaml` that training does not read."""


class TrialConfig(Frozen):
    """A complete configuration of a trial, frozen.

    Attributes:
        model: Widths of the hidden layers and their activation.
        regularization: Dropout, L1, L2 and batch norm, one value per hidden layer; a single value means all layers.
        training: Optimizer, batch size and epochs.
        early_stopping: Keras' EarlyStopping with restored best weights; None for none.
        data: The data set, its split and its digest.
        seed: Seed of the initial weights, the order of the images and the dropout masks.

    Example:
        >>> config = TrialConfig(regularization=RegularizationConfig(dropout=0.2))
        >>> config.regularization.dropout
        (0.2, 0.2)
        >>> TrialConfig.from_yaml(config.to_yaml()) == config
        True
    """

    model: ModelConfig = ModelConfig()
    regularization: RegularizationConfig = RegularizationConfig()
    training: TrainingConfig = TrainingConfig()
    early_stopping: EarlyStoppingConfig | None = EarlyStoppingConfig()
    data: DataConfig = DataConfig()
    seed: int = Field(default=0, ge=0, le=MAX_SEED)

    @model_validator(mode="after")
    def _one_value_a_layer(self) -> Self:
        wide = self.regularization.spread(len(self.model.hidden))
        if wide != self.regularization:
            object.__setattr__(self, "regularization", wide)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, numbers and strings, as YAML and JSON have them."""
        return self.model_dump(mode="json")

    def canonical(self) -> str:
        """Return the canonical JSON text: sorted keys, no spaces, shortest exact numbers."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical form, in hexadecimal."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    @property
    def mix(self) -> str:
        """The techniques in use: ``dropout 0.2 + L2 1e-4 + batch norm before``, or ``none``."""
        techniques = self.regularization
        layers = {
            "dropout": map(format_number, techniques.dropout),
            "L1": map(format_number, techniques.l1),
            "L2": map(format_number, techniques.l2),
            "batch norm": (placement.partition("_")[0] for placement in techniques.batchnorm),
        }
        return " + ".join(filter(None, starmap(_mixed, layers.items()))) or "none"

    @classmethod
    def from_dict(cls, values: Any, source: str | Source = "configuration") -> TrialConfig:
        """Validate plain values.

        Args:
            values: The keys and values of a configuration.
            source: The beginning of each line of an error, or the file that the values are from.

        Returns:
            The validated configuration.

        Raises:
            ConfigError: A value is not valid; one line for each mistake.
        """
        if not isinstance(source, Source):
            source = Source(values, source)
        try:
            config = cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(source.lines(explain(error, KEYS))) from None
        if source.problems:
            raise ConfigError(source.lines(()))
        return config

    @classmethod
    def of(cls, given: TrialConfig | Mapping[str, Any] | str | Path) -> TrialConfig:
        """Return a configuration as it is, validate plain values, or read a file such as `best.yaml`.

        Raises ConfigError.
        """
        if isinstance(given, TrialConfig):
            return given
        if isinstance(given, Mapping):
            return cls.from_dict(given)
        if not isinstance(given, str | Path):
            raise ConfigError([f"expected a configuration or the path of its file, found {describe(given)}"])
        source = read(Path(given), ConfigError)
        source.values.pop(PROVENANCE, None)
        return cls.from_dict(source.values, source)

    def to_yaml(self) -> str:
        """Return complete, readable YAML."""
        return text_of(self.to_dict(), flow=None)

    @classmethod
    def from_yaml(cls, text: str, source: str = "configuration") -> TrialConfig:
        """Read what `to_yaml` wrote. Raises ConfigError."""
        parsed = parse_mapping(text, source, ConfigError)
        return cls.from_dict(parsed.values, parsed)


KEYS = Keys(TrialConfig)
"""The keys that a configuration may have."""


def _mixed(name: str, layers: Iterable[str]) -> str:
    """``dropout 0.2``, ``dropout 0.2/0`` for layers that differ, nothing where all are off."""
    shown = ["no" if value == "none" else value for value in layers]
    if set(shown) <= {"0", "no"}:
        return ""
    return f"{name} {shown[0] if len(set(shown)) == 1 else '/'.join(shown)}"


def format_number(value: float) -> str:
    """A number for people, three significant digits behind the point: ``0.2``, ``1e-4``, ``2.35e-6``, ``2048``."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if isinstance(value, int) or 999.5 <= abs(value) < 1e6:
        return f"{value:.0f}"
    if 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
