"""The network of a configuration."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from regtune.training.runtime import configure

configure()

import keras  # noqa: E402

from regtune.config.trial import Activation, ModelConfig, RegularizationConfig, TrialConfig  # noqa: E402
from regtune.training.model import Seeds, build_model  # noqa: E402


def _network(**regularization: object) -> keras.Sequential:
    return build_model(TrialConfig(regularization=RegularizationConfig(**regularization)))


@pytest.mark.parametrize(
    ("batchnorm", "expected"),
    [
        ("none", ["Dense", "Activation", "Dropout"]),
        ("before_activation", ["Dense", "BatchNormalization", "Activation", "Dropout"]),
        ("after_activation", ["Dense", "Activation", "BatchNormalization", "Dropout"]),
    ],
)
def test_layers_come_in_the_order_of_the_design(batchnorm: str, expected: list[str]) -> None:
    model = _network(batchnorm=batchnorm, dropout=0.2)
    assert [type(layer).__name__ for layer in model.layers] == [*expected, *expected, "Dense"]


def test_each_layer_takes_its_own_amounts() -> None:
    model = _network(
        dropout=(0.2, 0.0), l1=(0.0, 1e-5), l2=(1e-4, 1e-3), batchnorm=("none", "after_activation")
    )
    assert [layer.name for layer in model.layers] == [
        "dense_1",
        "activation_1",
        "dropout_1",
        "dense_2",
        "activation_2",
        "batchnorm_2",
        "probabilities",
    ]
    assert model.get_layer("dropout_1").rate == 0.2
    assert model.get_layer("dense_1").kernel_regularizer.get_config() == {"l1": 0.0, "l2": 1e-4}
    assert model.get_layer("dense_2").kernel_regularizer.get_config() == {"l1": 1e-5, "l2": 1e-3}


def test_penalties_act_on_hidden_kernels_alone() -> None:
    model = _network(l1=1e-5, l2=1e-4)
    penalized = [weight.path for weight in model.trainable_weights if weight.regularizer is not None]
    assert penalized == ["regtune/dense_1/kernel", "regtune/dense_2/kernel"]


def test_probabilities_of_784_pixels_sum_to_one() -> None:
    images = np.random.default_rng(0).random((5, 784), dtype=np.float32)
    np.testing.assert_allclose(_network().predict(images, verbose=0).sum(axis=1), 1.0, rtol=1e-6)


def test_initial_weights_are_the_seed_s_and_nothing_else_s() -> None:
    config = TrialConfig(seed=3)
    first, again = build_model(config), build_model(config)
    other = build_model(config.model_copy(update={"seed": 4}))
    for one, same, another in zip(first.weights, again.weights, other.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), same.numpy())
        assert one.path.endswith("bias") or not np.array_equal(one.numpy(), another.numpy())


def test_no_two_seeds_of_a_trial_are_equal() -> None:
    seeds = Seeds.of(TrialConfig(seed=11))
    everything = [*seeds.kernels, *seeds.dropouts, seeds.order]
    assert len(set(everything)) == len(everything)
    assert all(0 <= seed < 2**31 - 2 for seed in everything)


@pytest.mark.parametrize("activation", get_args(Activation))
def test_every_activation_is_keras_own(activation: Activation) -> None:
    model = build_model(TrialConfig(model=ModelConfig(hidden=(4,), activation=activation)))
    assert model.get_layer("activation_1").activation is keras.activations.get(activation)
