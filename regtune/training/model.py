"""The network of a configuration, as a plain `keras.Sequential` that every Keras can load.

For each hidden layer: Dense, [batch norm], activation, [batch norm], [Dropout]; then Dense with softmax.
Everything random is seeded by `config.seed`: the initial weights (Glorot and Bengio 2010, uniform; biases 0)
and the dropout masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from regtune.config.trial import MAX_SEED, TrialConfig
from regtune.errors import WorkerError

ARITHMETIC = {"floatx": "float32", "dtype_policy": "float32", "epsilon": 1e-7}
LIMITS = {"max_epochs": None, "max_steps_per_epoch": None}


@dataclass(frozen=True)
class Seeds:
    """The seeds of a configuration: one per kernel (the output layer's last), one per dropout layer, one for the order.

    Each lies in [0, 2**31 - 2), so that TensorFlow's random ops take it as it is.
    """

    kernels: tuple[int, ...]
    dropouts: tuple[int, ...]
    order: int

    @classmethod
    def of(cls, config: TrialConfig) -> Seeds:
        """Derive independent seeds from one (NumPy's SeedSequence); a deeper network keeps those of its layers."""
        layers = len(config.model.hidden)

        def draw(stream: int, count: int) -> tuple[int, ...]:
            words = np.random.SeedSequence(config.seed, spawn_key=(stream,)).generate_state(count)
            return tuple(int(word) % (MAX_SEED - 1) for word in words)

        return cls(kernels=draw(0, layers + 1), dropouts=draw(1, layers), order=draw(2, 1)[0])


@contextmanager
def plain_keras() -> Iterator[None]:
    """Set Keras to 32-bit numbers and no limit of epochs within the block, whatever is set for other programs.

    Raises WorkerError where Keras does not run on TensorFlow.
    """
    if keras.config.backend() != "tensorflow":
        raise WorkerError(
            f"Keras runs on {keras.config.backend()} here, and regtune trains with TensorFlow; "
            "set KERAS_BACKEND=tensorflow before keras is imported"
        )
    plain = {**ARITHMETIC, **LIMITS}
    before = {name: getattr(keras.config, name)() for name in plain}
    try:
        _configure(plain)
        yield
    finally:
        _configure(before)


def _configure(settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        getattr(keras.config, f"set_{name}")(value)


@plain_keras()
def build_model(
    config: TrialConfig | Mapping[str, Any] | str | Path, features: int = 784, classes: int = 10
) -> keras.Sequential:
    """Build the network of a configuration with its initial weights, not compiled.

    Keras computes the cross-entropy of a softmax output from its logits, so nothing is lost to rounding.

    Args:
        config: The configuration, its keys and values, or the path of its file, such as `best.yaml`.
        features: Pixels per image.
        classes: Number of classes.

    Returns:
        A network from images `(n, features) float32 in [0, 1]` to probabilities `(n, classes) float32`.

    Raises:
        ConfigError: The configuration is not valid.
        WorkerError: Keras does not run on TensorFlow.

    Example:
        >>> model = build_model(TrialConfig())
        >>> [layer.name for layer in model.layers]
        ['dense_1', 'activation_1', 'dense_2', 'activation_2', 'probabilities']
    """
    layers = layers_of(TrialConfig.of(config), classes)
    return keras.Sequential([keras.Input((features,), name="pixels"), *layers], name="regtune")


def layers_of(
    config: TrialConfig,
    classes: int,
    dropout: Callable[..., keras.layers.Layer] = keras.layers.Dropout,
    regularizer: Callable[..., Any] = keras.regularizers.L1L2,
) -> Iterator[keras.layers.Layer]:
    """Create the layers of a configuration; training passes dropout and regularizers whose amounts are variables."""
    regularization, seeds = config.regularization, Seeds.of(config)
    for layer, width in enumerate(config.model.hidden):
        number, placement = layer + 1, regularization.batchnorm[layer]
        l1, l2, rate = regularization.l1[layer], regularization.l2[layer], regularization.dropout[layer]
        yield keras.layers.Dense(
            width,
            kernel_initializer=keras.initializers.GlorotUniform(seed=seeds.kernels[layer]),
            kernel_regularizer=regularizer(l1=l1, l2=l2) if l1 or l2 else None,
            name=f"dense_{number}",
        )
        if placement == "before_activation":
            yield keras.layers.BatchNormalization(name=f"batchnorm_{number}")
        yield keras.layers.Activation(config.model.activation, name=f"activation_{number}")
        if placement == "after_activation":
            yield keras.layers.BatchNormalization(name=f"batchnorm_{number}")
        if rate:
            yield dropout(rate, seed=seeds.dropouts[layer], name=f"dropout_{number}")
    yield keras.layers.Dense(
        classes,
        activation="softmax",
        kernel_initializer=keras.initializers.GlorotUniform(seed=seeds.kernels[-1]),
        name="probabilities",
    )


def hidden_kernels(network: Any) -> list[Any]:
    """Return the kernels that L1 and L2 act on, as variables, from the input on."""
    return [layer.kernel for layer in network.layers[:-1] if isinstance(layer, keras.layers.Dense)]
