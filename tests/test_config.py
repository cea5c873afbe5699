"""One decided configuration: canonical form, digest, YAML and back, and what it refuses."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from regtune.config.trial import (
    METRICS,
    DataConfig,
    EarlyStoppingConfig,
    ModelConfig,
    RegularizationConfig,
    TrainingConfig,
    TrialConfig,
    format_number,
    higher_is_better,
)
from regtune.errors import ConfigError


@st.composite
def configs(draw: st.DrawFn) -> TrialConfig:
    hidden = draw(st.lists(st.integers(1, 4096), min_size=1, max_size=8))
    layers = len(hidden)

    def per_layer(value: st.SearchStrategy) -> list:
        return draw(
            st.one_of(value.map(lambda one: [one]), st.lists(value, min_size=layers, max_size=layers))
        )

    rates = st.floats(0, 0.95, allow_subnormal=False)
    strengths = st.floats(0, 100, allow_subnormal=False)
    return TrialConfig(
        model=ModelConfig(hidden=hidden, activation=draw(st.sampled_from(["relu", "tanh", "selu"]))),
        regularization=RegularizationConfig(
            dropout=per_layer(rates),
            l1=per_layer(strengths),
            l2=per_layer(strengths),
            batchnorm=per_layer(st.sampled_from(["none", "before_activation", "after_activation"])),
        ),
        training=TrainingConfig(
            optimizer=draw(st.sampled_from(["adam", "adamw", "sgd"])),
            learning_rate=draw(st.floats(1e-12, 10)),
            batch_size=draw(st.integers(1, 65536)),
            fused=draw(st.booleans()),
        ),
        early_stopping=draw(
            st.none()
            | st.builds(
                EarlyStoppingConfig, monitor=st.sampled_from(METRICS), patience=st.integers(0, 10_000)
            )
        ),
        data=DataConfig(
            name=draw(st.text(min_size=1, max_size=30).filter(lambda text: text.isprintable())),
            digest=draw(st.none() | st.text("0123456789abcdef", min_size=64, max_size=64)),
        ),
        seed=draw(st.integers(0, 2**31 - 1)),
    )


@settings(max_examples=50)
@given(configs())
def test_a_configuration_comes_back_from_yaml_and_from_json_as_it_was(config):
    assert TrialConfig.from_yaml(config.to_yaml()) == config
    assert TrialConfig.from_dict(json.loads(config.canonical())) == config
    assert TrialConfig.from_yaml(config.to_yaml()).digest == config.digest


@settings(max_examples=40)
@given(configs(), configs())
def test_configurations_have_one_digest_exactly_when_they_are_equal(one, other):
    assert (one.digest == other.digest) == (one == other)


def test_ways_to_write_the_same_configuration_have_one_digest():
    for rates in ({"dropout": 0}, {"dropout": -0.0}, {"dropout": [0.0]}, {"dropout": (0, 0.0), "l1": 0}):
        assert TrialConfig(regularization=RegularizationConfig(**rates)).digest == TrialConfig().digest


def test_one_value_stands_for_every_layer():
    config = TrialConfig(
        model=ModelConfig(hidden=(32, 16, 8)),
        regularization=RegularizationConfig(dropout=0.2, l2=[0.1, 0.2, 0.3]),
    )
    assert config.regularization.dropout == (0.2, 0.2, 0.2)
    assert config.regularization.l2 == (0.1, 0.2, 0.3)
    assert config.regularization.batchnorm == ("none", "none", "none")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"seed": 2**31}, "seed: expected at most 2147483647, found 2147483648"),
        ({"seed": True}, "seed: expected a whole number, found true"),
        ({"nme": 1}, "nme: unknown key"),
        ({"model": {"hidden": []}}, "model.hidden: expected at least 1 of them, found 0"),
        ({"model": {"hidden": [8] * 9}}, "model.hidden: expected at most 8 of them, found 9"),
        ({"model": {"hidden": [4097]}}, "model.hidden.0: expected at most 4096, found 4097"),
        ({"model": {"activation": "swish"}}, "model.activation: expected one of relu, elu, "),
        (
            {"regularization": {"dropout": 0.96}},
            "regularization.dropout.0: expected at most 0.95, found 0.96",
        ),
        ({"regularization": {"dropout": float("nan")}}, "regularization.dropout.0: expected a finite number"),
        ({"regularization": {"dropout": "0.2"}}, 'regularization.dropout.0: expected a number, found "0.2"'),
        ({"regularization": {"l1": 10**400}}, "regularization.l1.0: "),
        ({"regularization": {"l1": [0.1, 0.2, 0.3]}}, "regularization.l1: expected 1 or 2 values"),
        ({"training": {"learning_rate": 0}}, "training.learning_rate: expected more than 0.0, found 0"),
        ({"training": {"momentum": 1.0}}, "training.momentum: expected less than 1.0, found 1.0"),
        ({"training": {"optimiser": "adam"}}, 'training.optimiser: unknown key; did you mean "optimizer"?'),
        (
            {"training": {"dropout": 0.2}},
            "training.dropout: unknown key here; it belongs under regularization",
        ),
        (
            {"early_stopping": 3},
            "early_stopping: expected a group of keys (monitor, patience, min_delta), found 3",
        ),
        ({"data": {"digest": "51AB"}}, "data.digest: expected text of the form ^[0-9a-f]{64}$"),
        ([], "expected a group of keys (model, "),
    ],
)
def test_what_no_trial_can_be_is_refused_by_its_key(values, problem):
    with pytest.raises(ConfigError) as refused:
        TrialConfig.from_dict(values, "best.yaml")
    assert str(refused.value).startswith(f"best.yaml: {problem}")
    assert "\n" not in str(refused.value)


def test_every_mistake_of_a_configuration_is_named():
    with pytest.raises(ConfigError) as refused:
        TrialConfig.from_dict({"seed": -1, "training": {"batch_size": 0, "optimizer": "lion"}})
    assert [line.split(": ")[1] for line in str(refused.value).splitlines()] == [
        "training.optimizer",
        "training.batch_size",
        "seed",
    ]


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValidationError):
        TrialConfig().training.batch_size = 64


def test_a_mix_is_said_in_the_words_of_the_field():
    all_three = {"dropout": 0.123456, "l2": 2.3456e-6, "batchnorm": "after_activation"}
    for regularization, mix in (
        ({}, "none"),
        ({"dropout": 0.2}, "dropout 0.2"),
        ({"dropout": [0.2, 0.0]}, "dropout 0.2/0"),
        ({"l1": 1e-5, "l2": 0.0001}, "L1 1e-5 + L2 1e-4"),
        ({"batchnorm": "before_activation"}, "batch norm before"),
        ({"batchnorm": ["none", "after_activation"]}, "batch norm no/after"),
        (all_three, "dropout 0.123 + L2 2.35e-6 + batch norm after"),
    ):
        assert TrialConfig(regularization=RegularizationConfig(**regularization)).mix == mix


def test_numbers_are_short_for_people():
    values = (0.2, 1e-4, 2.35e-6, 0, 2048, 1234.5, 1e7, 1e-3)
    assert " ".join(map(format_number, values)) == "0.2 1e-4 2.35e-6 0 2048 1234 1e7 0.001"


@given(st.floats(-1e300, 1e300))
def test_a_number_for_people_is_near_the_number(value):
    assert float(format_number(value)) == pytest.approx(value, rel=6e-3)


def test_accuracies_grow_and_losses_shrink():
    assert {metric for metric in METRICS if higher_is_better(metric)} == {"accuracy", "val_accuracy"}
