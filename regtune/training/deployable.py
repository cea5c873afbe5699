"""The network that leaves regtune: it takes pixels as a camera or a data set has them."""

from __future__ import annotations

from typing import Any

import keras

from regtune.config.trial import TrialConfig
from regtune.data.arrays import FEATURES
from regtune.training.archive import load_weights
from regtune.training.model import build_model, plain_keras

SIDE = 28


@plain_keras()
def deployable(network: Any) -> keras.Sequential:
    """Return `network` behind stock layers that reshape and scale: `(n, 28, 28) uint8` to `(n, classes) float32`.

    It shares the layers and weights of `network`, which `build_model` made.
    """
    pixels = keras.Input((SIDE, SIDE), dtype="uint8", name="pixels")
    flat = keras.layers.Reshape((FEATURES,), name="flat")
    scaled = keras.layers.Rescaling(1 / 255, name="scaled")
    return keras.Sequential([pixels, flat, scaled, *network.layers], name="regtune")


def load_deployable(config: TrialConfig, classes: int, content: bytes) -> keras.Sequential:
    """The same of the `model.keras` that a worker has kept, of which weights alone are read. Raises ValueError."""
    network = build_model(config, FEATURES, classes)
    load_weights(network, content)
    return deployable(network)
