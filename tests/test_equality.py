"""Training is stock Keras: bit for bit with `fused: false`, within rounding with `fused: true`.

The stock side knows nothing of regtune's training: `build_model` makes an ordinary network, `compile` and `fit` train it
on the batches that the trial's seed says. Everything runs on the embedded 5,000 real MNIST images.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from regtune.training.runtime import configure

configure()

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

from regtune.config import DataConfig, RegularizationConfig, TrainingConfig, TrialConfig  # noqa: E402
from regtune.data import Data, load_data  # noqa: E402
from regtune.model import Seeds, build_model  # noqa: E402
from regtune.training import train  # noqa: E402
from regtune.training.epoch import batch_order, make_optimizer  # noqa: E402

BATCHNORM = ("none", "before_activation", "after_activation")
PENALTIES = {"no_penalty": {}, "l1": {"l1": 1e-4}, "l2": {"l2": 1e-3}, "l1_l2": {"l1": 1e-4, "l2": 1e-3}}
OPTIMIZERS = {
    "adam": TrainingConfig(optimizer="adam", learning_rate=0.003),
    "sgd": TrainingConfig(optimizer="sgd", learning_rate=0.05),
    "momentum": TrainingConfig(optimizer="sgd", learning_rate=0.02, momentum=0.9),
    "adamw": TrainingConfig(optimizer="adamw", learning_rate=0.003, weight_decay=0.01),
}
EPOCHS = 2
COMBINATIONS = list(itertools.product(BATCHNORM, PENALTIES, (0.0, 0.3), OPTIMIZERS))


@pytest.fixture(scope="module")
def data() -> Data:
    """Few enough images that stock `fit` is quick; 24 divides neither part, so both end with a short batch."""
    found = load_data(DataConfig(name="mnist-5k"))
    return replace(
        found,
        x_train=found.x_train[:251],
        y_train=found.y_train[:251],
        x_val=found.x_val[:101],
        y_val=found.y_val[:101],
    )


def stock_fit(config: TrialConfig, data: Data) -> tuple[keras.Sequential, dict[str, list[float]]]:
    """What anybody writes with Keras alone, on the same batches in the same order."""
    model = build_model(config, data.features, data.classes)
    model.compile(
        optimizer=make_optimizer(config),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy", keras.metrics.SparseCategoricalCrossentropy(name="cross_entropy")],
    )
    seed, count, size = Seeds.of(config).order, len(data.x_train), config.training.batch_size
    orders = np.concatenate([batch_order(seed, epoch, count).numpy() for epoch in range(EPOCHS)])
    batches = [
        (data.x_train[rows], data.y_train[rows])
        for order in np.split(orders, EPOCHS)
        for rows in np.split(order, range(size, count, size))
    ]
    signature = (tf.TensorSpec((None, data.features), tf.float32), tf.TensorSpec((None,), tf.int32))
    history = model.fit(
        tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=signature),
        steps_per_epoch=len(batches) // EPOCHS,
        epochs=EPOCHS,
        validation_data=(data.x_val, data.y_val),
        validation_batch_size=size,
        shuffle=False,
        verbose=0,
    )
    return model, history.history


@pytest.mark.parametrize(("batchnorm", "penalty", "dropout", "optimizer"), COMBINATIONS)
def test_two_epochs_are_bit_identical_to_stock_keras_fit(
    data: Data, batchnorm: str, penalty: str, dropout: float, optimizer: str
) -> None:
    config = TrialConfig(
        model={"hidden": (32, 16)},
        regularization=RegularizationConfig(batchnorm=batchnorm, dropout=dropout, **PENALTIES[penalty]),
        training=OPTIMIZERS[optimizer].model_copy(update={"batch_size": 24, "max_epochs": EPOCHS, "fused": False}),
        early_stopping=None,
        seed=7,
    )
    stock, history = stock_fit(config, data)

    result = train(config, data)

    assert {name: list(values) for name, values in result.history.items()} == history
    for ours, theirs in zip(result.model.weights, stock.weights, strict=True):
        assert ours.path.split("/")[-2:] == theirs.path.split("/")[-2:]
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), err_msg=ours.path)
