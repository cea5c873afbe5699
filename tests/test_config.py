"""One decided configuration: canonical form, digest, YAML and back, and what it refuses."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regtune.config.trial import (
    METRICS,
    DataConfig,
    EarlyStoppingConfig,
    ModelConfig,
    RegularizationConfig,
    TrainingConfig,
    TrialConfig,
    format_number,
)
from regtune.errors import ConfigError


@st.composite
def configs(draw: st.DrawFn) -> TrialConfig:
    hidden = draw(st.lists(st.integers(1, 4096), min_size=1, max_size=8))

    def each(value: st.SearchStrategy) -> st.SearchStrategy:
        return st.sampled_from([1, len(hidden)]).flatmap(
            lambda count: st.lists(value, min_size=count, max_size=count)
        )

    strengths = each(st.floats(0, 100, allow_subnormal=False))
    whole = st.builds(
        TrialConfig,
        model=st.builds(ModelConfig, hidden=st.just(hidden), activation=st.sampled_from(["relu", "selu"])),
        regularization=st.builds(
            RegularizationConfig,
            dropout=each(st.floats(0, 0.95, allow_subnormal=False)),
            l1=strengths,
            l2=strengths,
            batchnorm=each(st.sampled_from(["none", "before_activation", "after_activation"])),
        ),
        training=st.builds(
            TrainingConfig,
            optimizer=st.sampled_from(["adam", "adamw", "sgd"]),
            learning_rate=st.floats(1e-12, 10),
            fused=st.booleans(),
        ),
        early_stopping=st.none() | st.builds(EarlyStoppingConfig, monitor=st.sampled_from(METRICS)),
        data=st.builds(
            DataConfig,
            name=st.text(min_size=1, max_size=30).filter(str.isprintable),
            digest=st.none() | st.text("0123456789abcdef", min_size=64, max_size=64),
        ),
        seed=st.integers(0, 2**31 - 1),
    )
    return draw(whole)


@settings(max_examples=30)
@given(configs())
def test_a_configuration_comes_back_from_yaml_and_from_json_as_it_was(config):
    assert TrialConfig.from_yaml(config.to_yaml()) == config
    assert TrialConfig.from_dict(json.loads(config.canonical())) == config
    assert TrialConfig.from_yaml(config.to_yaml()).digest == config.digest


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


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"seed": True}, "seed: expected a whole number, found true"),
        ({"model": {"hidden": [8] * 9}}, "model.hidden: expected at most 8 items"),
        ({"model": {"hidden": [4097]}}, "model.hidden.0: expected at most 4096, found 4097"),
        (
            {"regularization": {"dropout": 0.96}},
            "regularization.dropout.0: expected at most 0.95, found 0.96",
        ),
        ({"regularization": {"dropout": float("nan")}}, "regularization.dropout.0: expected a finite number"),
        ({"regularization": {"l1": 10**400}}, "regularization.l1.0: "),
        ({"regularization": {"l1": [0.1, 0.2, 0.3]}}, "regularization.l1: expected 1 or 2 values"),
        ({"training": {"dropout": 0.2}}, 'training.dropout: unknown key; did you mean "dropout" under regu'),
        ({"early_stopping": 3}, "early_stopping: expected a group of keys (monitor, patience, min_delta)"),
        ({"data": {"digest": "51AB"}}, "data.digest: "),
        ([], "expected a group of keys (model, "),
    ],
)
def test_what_no_trial_can_be_is_refused_by_its_key(values, problem):
    with pytest.raises(ConfigError) as refused:
        TrialConfig.from_dict(values, "best.yaml")
    assert str(refused.value).startswith(f"best.yaml: {problem}")
    assert "\n" not in str(refused.value)


def test_a_mix_is_said_in_the_words_of_the_field():
    all_three = {"dropout": 0.123456, "l2": 2.3456e-6, "batchnorm": "after_activation"}
    for regularization, mix in (
        ({}, "none"),
        ({"dropout": [0.2, 0.0]}, "dropout 0.2/0"),
        ({"l1": 1e-5, "l2": 0.0001}, "L1 1e-5 + L2 1e-4"),
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
