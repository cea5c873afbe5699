"""Training is stock Keras: bit for bit with `fused: false`, within rounding with `fused: true`.

The stock side knows nothing of regtune's training: `build_model` makes an ordinary network, `compile` and
`fit` train it on the batches that the trial's seed says. Everything runs on the embedded 5,000 real MNIST
images.
"""

from __future__ import annotations

import itertools
import math
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


PLACES = {(0, 0), (1, 2), (2, 3), (3, 1)}
"""Of penalty and optimizer, for the quick tests: every value of every factor occurs."""


def _combinations() -> list[Any]:
    """All 96: the quick tests have four; the slow ones sixteen, in which every two values of two factors meet."""
    cases = []
    factors = (range(len(BATCHNORM)), range(len(PENALTIES)), range(len(DROPOUT)), range(len(OPTIMIZERS)))
    for batchnorm, penalty, dropout, optimizer in itertools.product(*factors):
        paired = (batchnorm, dropout) == ((penalty + optimizer) % 3, (penalty + optimizer) % 2)
        quick = paired and (penalty, optimizer) in PLACES
        marks = () if quick else pytest.mark.slow if paired else pytest.mark.proof
        names = (BATCHNORM[batchnorm], [*PENALTIES][penalty], DROPOUT[dropout], [*OPTIMIZERS][optimizer])
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
STATES = 50


def _randomize(model: EpochModel, weights: list[Any], random: np.random.Generator) -> None:
    """A state as it may occur in training: any step, and every tenth time the first, where moments are zero.

    Adam's first moment is bound to the root of its second: each is a mean of the same gradients.
    """
    for variable, initial in zip(model.trainable_weights, weights, strict=True):
        variable.assign(initial + random.normal(scale=0.1, size=initial.shape).astype(np.float32))
    first = random.random() < 0.1
    model.optimizer.iterations.assign(0 if first else int(random.integers(1, 5000)))
    moments: dict[tuple[int, ...], Any] = {}
    for variable in model.optimizer.variables[2:]:
        scale = 0.0 if first else 0.01
        if variable.path.endswith("velocity"):
            ratio = random.uniform(0.3, 3.0, size=variable.shape)
            variable.assign(np.square(moments[tuple(variable.shape)] * ratio).astype(np.float32))
        else:
            moments[tuple(variable.shape)] = random.normal(scale=scale, size=variable.shape)
            variable.assign(moments[tuple(variable.shape)].astype(np.float32))


def _copy(source: EpochModel, target: EpochModel) -> None:
    for theirs, ours in zip(source.variables, target.variables, strict=True):
        ours.assign(theirs)
    for theirs, ours in zip(source.optimizer.variables, target.optimizer.variables, strict=True):
        ours.assign(theirs)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_each_fused_step_from_a_random_state_is_keras_step_to_within_1e_5(data: Data, optimizer: str) -> None:
    config = TrialConfig(
        model={"hidden": (32, 16)},
        regularization=RegularizationConfig(
            dropout=(0.3, 0.1), l1=1e-4, l2=(1e-3, 0.0), batchnorm=("before_activation", "after_activation")
        ),
        training=OPTIMIZERS[optimizer],
    )
    resident = Resident(data)
    exact, fused = EpochModel(config, resident), FusedModel(config, resident)
    exact.start(config)
    fused.start(config)
    steps = [tf.function(model.train_batch, reduce_retracing=True) for model in (exact, fused)]
    random, initial = np.random.default_rng(5), [variable.numpy() for variable in exact.trainable_weights]
    apart, moved = 0.0, 0.0

    for _ in range(STATES):
        _randomize(exact, initial, random)
        _copy(exact, fused)
        before = exact.get_weights()
        rows = random.integers(0, len(data.x_train), 32)
        images, labels = tf.constant(data.x_train[rows]), tf.constant(data.y_train[rows])
        np.testing.assert_allclose(*(step(images, labels) for step in steps), rtol=1e-5)
        after, ours = exact.get_weights(), fused.get_weights()
        apart = max(apart, *(float(np.abs(a - b).max()) for a, b in zip(after, ours, strict=True)))
        moved = max(moved, *(float(np.abs(a - b).max()) for a, b in zip(after, before, strict=True)))

    assert moved > 100 * STEP_TOLERANCE
    assert apart <= STEP_TOLERANCE


BOUND = 0.002
POWER = 0.9
PILOT_SEEDS = 20
MOST_SEEDS = 400


def _power(deviation: float, seeds: int) -> float:
    """Chance that a paired TOST at 5 % passes when there is no difference (Schuirmann 1987)."""
    freedom = seeds - 1
    margin = BOUND * math.sqrt(seeds) / deviation - stats.t.ppf(0.95, freedom)
    return max(0.0, 2 * float(stats.t.cdf(margin, freedom)) - 1)


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
    """Two stages (Stein 1945): a pilot gives the deviation of the differences, that the number of seeds."""
    data = load_data(DataConfig(name="mnist-5k", validation=0.5))

    def difference(seed: int) -> float:
        fused, exact = (
            TrialConfig(
                regularization=regularization,
                training=TrainingConfig(max_epochs=12, fused=fused),
                early_stopping=None,
                seed=seed,
            )
            for fused in (True, False)
        )
        return train(fused, data).figures["val_accuracy"] - train(exact, data).figures["val_accuracy"]

    apart = [difference(seed) for seed in range(PILOT_SEEDS)]
    deviation = float(np.std(apart, ddof=1))
    needed = next(seeds for seeds in range(PILOT_SEEDS, 100_000) if _power(deviation, seeds) >= POWER)
    assert needed <= MOST_SEEDS, f"{needed} paired seeds would be needed at a deviation of {deviation:.4f}"
    apart += [difference(seed) for seed in range(PILOT_SEEDS, needed)]
    interval = stats.ttest_1samp(apart, 0).confidence_interval(0.90)  # within the bound: TOST passes at 5 %
    record_property("paired_seeds", needed)
    record_property("mean_difference_in_accuracy", float(np.mean(apart)))
    record_property("interval_90", [float(interval.low), float(interval.high)])
    assert -BOUND < interval.low < interval.high < BOUND
