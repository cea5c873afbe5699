"""What replicates measure on the weights that a training keeps, over the validation images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from regtune.training.model import hidden_kernels

BINS = 15
BATCH = 4000
"""Images at once, which bounds the memory that a wide network takes."""


class KeptWeights(keras.callbacks.Callback):  # type: ignore[misc]
    """Predicts, and measures where `tolerance` is given, with the weights that EarlyStopping has restored.

    predictions: `(images, classes) float32`. extra: `ece`, `brier` and `prunable`. Both are empty where a weight is not
    finite.
    """

    def __init__(
        self, images: NDArray[np.float32], labels: NDArray[np.int32], tolerance: float | None
    ) -> None:
        super().__init__()
        self.predictions: NDArray[np.float32] | None = None
        self.extra: Mapping[str, float] = {}
        self._images, self._labels, self._tolerance = images, labels, tolerance

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        predictions = predict(self.model, batches_of(self._images))
        if not np.isfinite(predictions).all():
            return
        self.predictions = predictions
        if self._tolerance is not None:
            self.extra = {
                "ece": calibration_error(predictions, self._labels),
                "brier": brier_score(predictions, self._labels),
                "prunable": prunable_share(self.model, self._images, self._labels, self._tolerance),
            }


def calibration_error(predictions: NDArray[Any], labels: NDArray[Any]) -> float:
    """Return the expected calibration error, from 0 to 1: mean distance of accuracy from confidence.

    Confidence is the largest probability, in 15 bins of equal width, each weighted by its images (Guo et al., On
    calibration of modern neural networks, ICML 2017, equation 3).

    Args:
        predictions: Class probabilities `(images, classes)`.
        labels: Right classes `(images,)`.
    """
    confidence = predictions.max(axis=1).astype(np.float64)
    bins = np.ceil(confidence * BINS).astype(int)  # (0, 1/15], (1/15, 2/15], ...
    apart = np.bincount(bins, weights=(predictions.argmax(axis=1) == labels) - confidence)
    return float(np.abs(apart).sum() / len(labels))


def brier_score(predictions: NDArray[Any], labels: NDArray[Any]) -> float:
    """Return the Brier score, from 0 to 2: squared distance from the label's probabilities, summed over the classes.

    Brier, Verification of forecasts expressed in terms of probability, Monthly Weather Review 78, 1950, equation 2.

    Args:
        predictions: Class probabilities `(images, classes)`.
        labels: Right classes `(images,)`.
    """
    right = np.eye(predictions.shape[1])[labels]
    return float(np.square(predictions - right).sum(axis=1).mean())


def prunable_share(network: Any, images: NDArray[Any], labels: NDArray[Any], tolerance: float) -> float:
    """Return the share of the hidden kernels' entries that can be set to zero, from 0 to 1 in steps of 0.01.

    The smallest absolute values of all hidden kernels together go first (Han et al., Learning both weights and
    connections for efficient neural networks, NeurIPS 2015, without training again). The largest share is found by
    bisection, as though accuracy only fell. The network is left as it was.

    Args:
        network: A Keras network of regtune's layers.
        images: `(n, 784) float32 in [0, 1]`.
        labels: Right classes `(n,)`.
        tolerance: By how much accuracy over these images may fall, from 0 to 1.
    """
    kernels = hidden_kernels(network)
    weights = [kernel.numpy() for kernel in kernels]
    ends = np.cumsum([weight.size for weight in weights])
    entries = np.concatenate([weight.ravel() for weight in weights])
    smallest = np.argsort(np.abs(entries), kind="stable")
    batches = batches_of(images)

    def correct(percent: int) -> int:
        pruned = entries.copy()
        pruned[smallest[: len(entries) * percent // 100]] = 0
        for kernel, part in zip(kernels, np.split(pruned, ends[:-1]), strict=True):
            kernel.assign(part.reshape(kernel.shape))
        return int((predict(network, batches).argmax(axis=1) == labels).sum())

    enough = correct(0) - tolerance * len(labels) - 1e-6  # of an image, for what rounding does to the product
    good, bad = 0, 101
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if correct(middle) >= enough else (good, middle)
    for kernel, weight in zip(kernels, weights, strict=True):
        kernel.assign(weight)
    return good / 100


def batches_of(images: NDArray[Any]) -> list[Any]:
    """Images as tensors that `predict` takes one after another."""
    starts = range(0, len(images), BATCH)
    return [keras.ops.convert_to_tensor(images[begin : begin + BATCH]) for begin in starts]


def predict(network: Any, batches: Sequence[Any]) -> NDArray[np.float32]:
    """Return class probabilities `(images, classes)`; Keras' own `predict` would trace a graph for it."""
    return np.concatenate([network(batch, training=False).numpy() for batch in batches])
