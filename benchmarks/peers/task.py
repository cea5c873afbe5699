"""What every peer trains, written as Keras' documentation writes it: the images, the network, and how it is fitted.

The scripts beside this one search over it, each in the words of its own tool. Network, training, early stopping and
space are those of sweeps/mnist.yaml; a test compares them. Nothing here imports regtune.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

HIDDEN = (128, 64)
LEARNING_RATE = 0.001
BATCH_SIZE = 32
PATIENCE = 4
OBJECTIVE = "val_cross_entropy"
"""The loss of the data alone; `val_loss` contains the penalties of L1 and L2."""


seeded: dict[str, np.random.RandomState] = {}
"""What draws the order of the images; tools and their loggers use NumPy's own."""


def arguments() -> argparse.Namespace:
    """What bench_peers.py tells a script. pairs: train these configurations, each from its seed, and search nothing."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True, help="the images, split as regtune splits them")
    parser.add_argument("--folder", type=Path, required=True, help="for all that the tool writes")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--pairs", type=Path, help="a JSON list of configurations")
    given = parser.parse_args()
    given.pairs = json.loads(given.pairs.read_text()) if given.pairs else []
    return given


def load(path: Path) -> tuple[Any, Any, Any, Any]:
    """Training images and labels, validation images and labels."""
    found = np.load(path)
    x_train, x_val = (found[name].astype("float32") / 255 for name in ("x_train", "x_val"))
    return x_train, found["y_train"], x_val, found["y_val"]


def build(config: Mapping[str, Any]) -> keras.Sequential:
    """The compiled network of a configuration; one with a `seed` starts from it."""
    if "seed" in config:
        keras.utils.set_random_seed(config["seed"])
        seeded["order"] = np.random.RandomState(config["seed"])
    model = keras.Sequential([keras.Input((784,))], name=config.get("name"))
    for units in HIDDEN:
        penalty = keras.regularizers.L1L2(l1=config["l1"], l2=config["l2"])
        model.add(keras.layers.Dense(units, kernel_regularizer=penalty))
        if config["batchnorm"] == "before_activation":
            model.add(keras.layers.BatchNormalization())
        model.add(keras.layers.Activation("relu"))
        if config["batchnorm"] == "after_activation":
            model.add(keras.layers.BatchNormalization())
        model.add(keras.layers.Dropout(config["dropout"]))
    model.add(keras.layers.Dense(10, activation="softmax"))
    model.compile(
        optimizer=keras.optimizers.Adam(LEARNING_RATE),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy", keras.metrics.SparseCategoricalCrossentropy(name="cross_entropy")],
    )
    return model


def fitting(
    data: tuple[Any, Any, Any, Any], folder: Path, epochs: int, repeatable: bool = False
) -> dict[str, Any]:
    """The arguments of `fit`, in every tool. repeatable: the seed of `build` sets the order of the images as well."""
    x_train, y_train, x_val, y_val = data
    images = {"x": x_train, "y": y_train, "batch_size": BATCH_SIZE}
    if repeatable:
        images = {"x": in_seeded_order(x_train, y_train)}
    stopping = keras.callbacks.EarlyStopping(
        OBJECTIVE, patience=PATIENCE, mode="min", restore_best_weights=True
    )
    return {
        **images,
        "epochs": epochs,
        "validation_data": (x_val, y_val),
        "callbacks": [Epochs(folder / "epochs.jsonl"), stopping],
        "verbose": 0,
    }


def in_seeded_order(images: Any, labels: Any) -> tf.data.Dataset:
    """The batches of an epoch in an order that the seed of the last `build` gives, another for each.

    `fit` itself draws one for each epoch, too, but after `set_random_seed` it repeats that of the first.
    """

    def epoch() -> Iterator[tuple[Any, Any]]:
        order = seeded["order"].permutation(len(images))
        for start in range(0, len(order), BATCH_SIZE):
            rows = order[start : start + BATCH_SIZE]
            yield images[rows], labels[rows]

    form = tf.TensorSpec((None, images.shape[1]), images.dtype), tf.TensorSpec((None,), labels.dtype)
    batches = tf.data.experimental.assert_cardinality(math.ceil(len(images) / BATCH_SIZE))
    return tf.data.Dataset.from_generator(epoch, output_signature=form).apply(batches)


class Epochs(keras.callbacks.Callback):
    """Writes a line an epoch, so that all tools are read alike: the time, the training and its figures."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.training = ""

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        self.training = f"{os.getpid()}-{time.time_ns()}"

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float]) -> None:
        self._write(val_accuracy=logs["val_accuracy"], val_cross_entropy=logs["val_cross_entropy"])

    def on_train_end(self, logs: Mapping[str, float] | None = None) -> None:
        self._write(ended=True)

    def _write(self, **said: Any) -> None:
        line = {"time": time.time(), "training": self.training, "name": self.model.name, **said}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
