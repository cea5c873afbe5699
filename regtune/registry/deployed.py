"""The network of a registered version: its weights, what it answers, and its figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from regtune.data.arrays import Images, Labels
from regtune.errors import VersionDamaged
from regtune.registry.version import MODEL, Figures, Record
from regtune.training.archive import load_weights
from regtune.training.deployable import SIDE, deployable
from regtune.training.measure import batches_of, brier_score, calibration_error, predict
from regtune.training.model import build_model

SMALLEST = np.finfo(np.float32).tiny
"""What a probability of 0 counts as in a cross-entropy."""


def predict_pixels(network: Any, images: Images) -> NDArray[np.float32]:
    """Return the probabilities `(n, classes)` of a deployable network for images `(n, 784) uint8`."""
    return predict(network, batches_of(images.reshape(-1, SIDE, SIDE)))


def figures_of(probabilities: NDArray[np.float32], labels: Labels) -> Figures:
    """Return the figures of probabilities `(n, classes)`; the recall of a class without images is 0."""
    right = probabilities.argmax(axis=1) == labels
    classes = probabilities.shape[1]
    images = np.bincount(labels, minlength=classes)
    recognized = np.bincount(labels[right], minlength=classes)
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return Figures(
        images=len(labels),
        accuracy=float(right.mean()),
        cross_entropy=float(-np.log(np.maximum(chosen, SMALLEST)).mean()),
        ece=calibration_error(probabilities, labels),
        brier=brier_score(probabilities, labels),
        recall=tuple((recognized / np.maximum(images, 1)).tolist()),
    )


def load_network(folder: Path, record: Record) -> keras.Sequential:
    """Build the network of a version from its configuration, and read its weights. `check_folder` comes first.

    Raises VersionDamaged.
    """
    network = deployable(build_model(record.config, record.data.features, record.data.classes))
    try:
        load_weights(network, (folder / MODEL).read_bytes())
    except (OSError, ValueError) as error:
        raise VersionDamaged([f"{MODEL}: {error}"]) from None
    return network
