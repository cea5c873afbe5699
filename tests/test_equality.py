"""Training is stock Keras: bit for bit with `fused: false`, within rounding with `fused: true`.

The stock side knows nothing of regtune's training: `build_model` makes an ordinary network, `compile` and
`fit` train it on the batches that the trial's seed says. Everything runs on the embedded 5,000 real MNIST
images.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from regtune.training.runtime import configure

configure()

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

from regtune.config.trial import DataConfig, RegularizationConfig, TrainingConfig, TrialConfig  # noqa: E402
from regtune.data.datasets import Data, load_data  # noqa: E402
from regtune.training.epoch import EpochModel, Resident, batch_order, make_optimizer  # noqa: E402
from regtune.training.fused import FusedModel  # noqa: E402
from regtune.training.loop import train  # noqa: E402
from regtune.training.model import Seeds, build_model  # noqa: E402

BATCHNORM = ("none", "before_activation", "after_activation")
PENALTIES = {"no_penalty": {}, "l1": {"l1": 1e-4}, "l2": {"l2": 1e-3}, "l1_l2": {"l1": 1e-4, "l2": 1e-3}}
OPTIMIZERS = {
    "adam": TrainingConfig(optimizer="adam", learning_rate=0.003),
    "sgd": TrainingConfig(optimizer="sgd", learning_rate=0.05),
    "momentum": TrainingConfig(optimizer="sgd", learning_rate=0.02, momentum=0.9),
    "adamw": TrainingConfig(optimizer="adamw", learning_rate=0.003, weight_decay=0.01),
}
EPOCHS = 2
EXACT = {"batch_size": 24, "max_epochs": EPOCHS, "fused": False}
DROPOUT = (0.0, 0.3)
QUICK = {(0, 0), (1, 2), (2, 3), (3, 1)}
"""Of penalty and optimizer, for the quick tests: every value of every factor occurs."""


def _combinations() -> list[Any]:
    """All 96: the quick tests have four; the slow ones sixteen, in which every two values of two factors meet."""
    cases = []
    factors = (BATCHNORM, tuple(PENALTIES), DROPOUT, tuple(OPTIMIZERS))
    for batchnorm, penalty, dropout, optimizer in itertools.product(*(range(len(one)) for one in factors)):
        paired = (batchnorm, dropout) == ((penalty + optimizer) % 3, (penalty + optimizer) % 2)
        quick = paired and (penalty, optimizer) in QUICK
        marks = () if quick else pytest.mark.slow if paired else pytest.mark.proof
        places = (batchnorm, penalty, dropout, optimizer)
        names = (factor[place] for factor, place in zip(factors, places, strict=True))
        cases.append(pytest.param(*names, marks=marks))
    return cases


@pytest.fixture(scope="module")
def data() -> Data:
    """Few enough images that stock `fit` is quick; 24 divides neither part, so both end with a short batch."""
    whole = load_data(DataConfig(name="mnist-5k"))
    train = {"x_train": whole.x_train[:251], "y_train": whole.y_train[:251]}
    return replace(whole, **train, x_val=whole.x_val[:101], y_val=whole.y_val[:101])


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


@pytest.mark.parametrize(("batchnorm", "penalty", "dropout", "optimizer"), _combinations())
def test_two_epochs_are_bit_identical_to_stock_keras_fit(
    data: Data, batchnorm: str, penalty: str, dropout: float, optimizer: str
) -> None:
    config = TrialConfig(
        model={"hidden": (32, 16)},
        regularization=RegularizationConfig(batchnorm=batchnorm, dropout=dropout, **PENALTIES[penalty]),
        training=OPTIMIZERS[optimizer].model_copy(update=EXACT),
        early_stopping=None,
        seed=7,
    )
    stock, history = stock_fit(config, data)

    result = train(config, data)

    assert {name: list(values) for name, values in result.history.items()} == history
    for ours, theirs in zip(result.model.weights, stock.weights, strict=True):
        assert ours.path.split("/")[-2:] == theirs.path.split("/")[-2:]
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), err_msg=ours.path)


STEP_TOLERANCE = 1e-5
STEPS = 100


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_each_fused_step_of_a_training_is_keras_step_to_within_1e_5(data: Data, optimizer: str) -> None:
    config = TrialConfig(
        model={"hidden": (32, 16)},
        regularization=RegularizationConfig(
            dropout=(0.3, 0.1), l1=1e-4, l2=(1e-3, 0.0), batchnorm=("before_activation", "after_activation")
        ),
        training=OPTIMIZERS[optimizer],
    )
    resident = Resident(data)
    exact, fused = EpochModel(config, resident), FusedModel(config, resident)
    steps = []
    for model in (exact, fused):
        model.start(config)
        steps.append(tf.function(model.train_batch, reduce_retracing=True))
    random, apart, moved = np.random.default_rng(5), 0.0, 0.0

    for _ in range(STEPS):
        before = exact.get_weights()
        fused.set_weights(before)  # both start from the state that Keras' own steps have led to
        for ours, theirs in zip(fused.optimizer.variables, exact.optimizer.variables, strict=True):
            ours.assign(theirs)
        rows = random.integers(0, len(data.x_train), 32)
        images, labels = tf.constant(data.x_train[rows]), tf.constant(data.y_train[rows])
        np.testing.assert_allclose(*(step(images, labels) for step in steps), rtol=1e-5)
        for old, new, other in zip(before, exact.get_weights(), fused.get_weights(), strict=True):
            apart = max(apart, float(np.abs(new - other).max()))
            moved = max(moved, float(np.abs(new - old).max()))

    assert moved > 100 * STEP_TOLERANCE
    assert apart <= STEP_TOLERANCE


BOUND = 0.002
SEEDS = 200


@pytest.mark.proof
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    "regularization",
    [
        RegularizationConfig(),
        RegularizationConfig(dropout=0.3, l1=1e-5, l2=1e-4, batchnorm="before_activation"),
    ],
    ids=["none", "everything"],
)
def test_accuracy_of_fused_and_exact_training_is_equivalent_within_two_thousandths(
    regularization: RegularizationConfig, record_property: Callable[[str, object], None]
) -> None:
    """Paired TOST at 5 % (Schuirmann 1987)."""
    data = load_data(DataConfig(name="mnist-5k", validation=0.5))

    def accuracy(seed: int, fused: bool) -> float:
        training = TrainingConfig(max_epochs=12, fused=fused)
        techniques = {"regularization": regularization, "early_stopping": None}
        return train(TrialConfig(training=training, seed=seed, **techniques), data).figures["val_accuracy"]

    apart = [accuracy(seed, fused=True) - accuracy(seed, fused=False) for seed in range(SEEDS)]
    interval = stats.ttest_1samp(apart, 0).confidence_interval(0.90)  # within the bound: TOST passes at 5 %
    record_property("mean_difference_in_accuracy", float(np.mean(apart)))
    record_property("interval_90", [float(interval.low), float(interval.high)])
    assert -BOUND < interval.low < interval.high < BOUND
