"""The search space: what people see and what Optuna samples are the same thing, said twice; and its controls."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from specs import spec_of, specs

from regtune.config.sweepfile import SweepSpec
from regtune.config.trial import (
    DataConfig,
    EarlyStoppingConfig,
    ModelConfig,
    RegularizationConfig,
    TrialConfig,
)
from regtune.errors import ParameterError, SpecError
from regtune.search import Searched, Space, controls
from regtune.search.controls import every_control

DATA = DataConfig(name="mnist-5k", digest="0" * 64)
MIXED = {
    "dropout": {"min": 0.0, "max": 0.6},
    "l1": {"distribution": "log_uniform_values", "min": 1e-7, "max": 1e-3, "optional": True},
    "batchnorm": {"values": ["none", "before_activation"]},
    "l2": {"min": 0.1, "max": 0.5, "q": 0.1, "when": {"batchnorm": "none"}},
    "hidden": {"values": [[128, 64], [32, 16]]},
    "batch_size": {"min": 16, "max": 64, "q": 16},
}
Q_LOG = {"distribution": "q_log_uniform_values"}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def sampled(space: Space, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What people see, and what Optuna has stored, of one random trial."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    shown = space.suggest(trial)
    return shown, trial.params


@settings(max_examples=60)
@given(specs(), st.integers(0, 2**32 - 1))
def test_what_is_shown_leads_back_to_what_was_sampled_and_is_a_configuration(spec, seed):
    space = Space(spec)
    shown, params = sampled(space, seed)
    assert tuple(shown) == space.names
    again = space.to_optuna(shown)
    assert again.keys() == params.keys()
    fixed = optuna.trial.FixedTrial(again)
    assert space.suggest(fixed) == shown
    assert space.roots <= params.keys() <= space.distributions.keys()
    assert space.static == (space.roots == space.distributions.keys())
    distributions = {name: space.distributions[name] for name in again}
    optuna.create_trial(params=again, distributions=distributions, value=0.0)  # refuses what lies outside
    config = space.config(shown, seed=7, data=DATA)
    assert (config.seed, config.data) == (7, DATA)
    assert TrialConfig.from_yaml(config.to_yaml()) == config
    assert space.parse([f"{name}={str(value).lower()}" for name, value in shown.items()]) == shown


@settings(max_examples=40)
@given(specs(discrete=True))
def test_a_grid_has_every_assignment_once_and_as_many_as_its_size_says(spec):
    space = Space(spec)
    assert space.size is not None
    first = list(islice(space.grid(), 3000))
    assert len({tuple(found.items()) for found in first}) == len(first) == min(space.size, 3000)
    for found in first[:50]:
        assert space.suggest(optuna.trial.FixedTrial(space.to_optuna(found))) == found


def test_optuna_samples_under_the_same_names_and_a_switch_beside_what_is_optional():
    distributions = Space(spec_of(MIXED)).distributions
    assert distributions == {
        "dropout": FloatDistribution(0.0, 0.6),
        "l1.on": CategoricalDistribution([False, True]),
        "l1": FloatDistribution(1e-7, 1e-3, log=True),
        "batchnorm": CategoricalDistribution(["none", "before_activation"]),
        "l2": FloatDistribution(0.1, 0.5, step=0.1),
        "hidden": CategoricalDistribution(["128-64", "32-16"]),
        "batch_size": IntDistribution(16, 64, step=16),
    }


@pytest.mark.parametrize(
    ("name", "given", "points"),
    [
        ("dropout", {"min": 0.05, "max": 0.35, "q": 0.1}, (0.1, 0.2, 0.3)),
        ("batch_size", {**Q_LOG, "min": 8, "max": 33, "q": 8}, (8, 16, 24, 32)),
        ("l1", {**Q_LOG, "min": 1e-3, "max": 3.5e-3, "q": 1e-3}, (1e-3, 2e-3, 3e-3)),
        ("l1", {"values": [0.1, 0.01], "optional": True}, (0.0, 0.1, 0.01)),
        ("patience", {"min": 2, "max": 4, "optional": True}, (0, 2, 3, 4)),
        ("fused", {"values": [True, False]}, (True, False)),
    ],
)
def test_steps_are_exact_multiples_that_random_sampling_reaches_and_never_leaves(name, given, points):
    space = Space(spec_of({name: given}))
    assert tuple(found[name] for found in space.grid()) == points
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = Counter(space.suggest(study.ask())[name] for _ in range(400))
    assert set(seen) == set(points)
    assert [type(value) for value in seen] == [type(points[0])] * len(seen)


def test_a_conditional_parameter_has_its_base_value_where_its_condition_is_not_met():
    momentum = {"min": 0.5, "max": 0.9, "when": {"optimizer": "sgd"}}
    searched = {"optimizer": {"values": ["adam", "sgd"]}, "momentum": momentum}
    space = Space(spec_of(searched, training={"momentum": 0.3}))
    for seed in range(20):
        shown, params = sampled(space, seed)
        assert ("momentum" in params) == (shown["optimizer"] == "sgd")
        if shown["optimizer"] == "adam":
            assert shown["momentum"] == 0.3
            assert space.config(shown, seed=0, data=DATA).training.momentum == 0.3


def test_conditions_may_follow_from_one_another_in_any_order_of_the_file():
    spec = spec_of(
        {
            "dropout": {"values": [0.1, 0.2], "when": {"l1": 0.1}},
            "l1": {"values": [0.1, 0.2], "when": {"batchnorm": "none"}},
            "batchnorm": {"values": ["none", "after_activation"]},
        }
    )
    assert list(Space(spec).grid()) == [
        {"dropout": 0.1, "l1": 0.1, "batchnorm": "none"},
        {"dropout": 0.2, "l1": 0.1, "batchnorm": "none"},
        {"dropout": 0.0, "l1": 0.2, "batchnorm": "none"},
        {"dropout": 0.0, "l1": 0.0, "batchnorm": "after_activation"},
    ]
    assert Space(spec).size == 4


def test_per_layer_conditions_hold_for_the_same_layer():
    spec = spec_of(
        {
            "batchnorm": {"values": ["none", "after_activation"], "per_layer": True},
            "dropout": {"values": [0.1, 0.2], "per_layer": True, "when": {"batchnorm": "none"}},
        }
    )
    space = Space(spec)
    assert space.size == 9  # each layer: two rates without batch norm, or batch norm
    for found in space.grid():
        for layer in (1, 2):
            assert (found[f"dropout.{layer}"] > 0) == (found[f"batchnorm.{layer}"] == "none")


def test_the_size_of_a_huge_grid_is_counted_without_walking_it_and_a_continuous_one_has_none():
    layered = {"min": 0.0, "max": 0.5, "q": 0.001, "per_layer": True}
    parameters = dict.fromkeys(("dropout", "l1", "l2"), layered)
    assert Space(spec_of(parameters, model={"hidden": [8] * 8})).size == 501**24
    rates = {"min": 0.0, "max": 0.9, "q": 0.1, "per_layer": True}
    strengths = {"values": [1e-5, 1e-4], "per_layer": True, "when": {"dropout": 0.0}}
    each = Space(spec_of({"dropout": rates, "l2": strengths}, model={"hidden": [8] * 8}))
    assert each.size == (9 + 2) ** 8
    space = Space(spec_of(MIXED))
    assert space.size is None
    with pytest.raises(SpecError, match="dropout: continuous; a grid needs values or q"):
        space.grid()


def test_a_configuration_holds_what_is_searched_what_is_fixed_and_the_rest():
    spec = spec_of(
        {
            "dropout": {"values": [0.1, 0.2], "per_layer": True},
            "l1": {"value": [1e-5, 0]},
            "hidden": {"values": [[32, 16], [8, 4]]},
            "activation": {"value": "tanh"},
            "patience": {"min": 1, "max": 3},
            "max_epochs": {"value": 7},
        },
        training={"batch_size": 64, "max_epochs": 30},
    )
    config = Space(spec).config(
        {"dropout.1": 0.1, "dropout.2": 0.2, "hidden": "8-4", "patience": 2}, seed=3, data=DATA
    )
    assert config.regularization == RegularizationConfig(
        dropout=(0.1, 0.2), l1=(1e-5, 0.0), l2=(0.0, 0.0), batchnorm=("none", "none")
    )
    assert config.model == ModelConfig(hidden=(8, 4), activation="tanh")
    assert (config.training.batch_size, config.training.max_epochs) == (64, 7)
    assert config.early_stopping == EarlyStoppingConfig(patience=2)
    without = spec_of({"dropout": {"values": [0.1, 0.2]}}, early_stopping=None)
    assert Space(without).config({"dropout": 0.1}, seed=0, data=DATA).early_stopping is None


COMPLETE = {"dropout": 0.1, "l1": 0.0, "l2": 0.2, "batchnorm": "none", "hidden": "32-16", "batch_size": 16}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"learning_rate": 0.1}, "learning_rate: is not searched in this sweep; expected one of dropout, l1"),
        ({"dropout": float("nan")}, "dropout: expected 0 to 0.6; found nan"),
        ({"dropout": True}, "dropout: expected 0 to 0.6; found True"),
        ({"l1": False}, "l1: expected 1e-7 to 0.001, log, or 0 (off); found False"),
        ({"l2": 0.25}, "l2: expected 0.1 to 0.5, multiples of 0.1; found 0.25"),
        ({"batchnorm": "before_activation"}, "l2: applies only when batchnorm is none; otherwise it is 0.0"),
    ],
)
def test_what_lies_outside_the_space_is_refused_with_what_was_expected(changes, problem):
    with pytest.raises(ParameterError) as refused:
        Space(spec_of(MIXED)).to_optuna({**COMPLETE, **changes})
    assert str(refused.value).startswith(problem)


def test_a_missing_value_is_named():
    with pytest.raises(ParameterError, match="missing: batchnorm, hidden, batch_size"):
        Space(spec_of(MIXED)).to_optuna({"dropout": 0.1, "l1": 0.0, "l2": 0.2})


# -- enqueue key=value


def test_what_a_person_does_not_name_is_left_to_the_sampler():
    space = Space(spec_of(MIXED))
    assert space.parse(["hidden=[32, 16]", "batchnorm = none"]) == {"batchnorm": "none", "hidden": "32-16"}
    assert space.parse(["l2=0.2"]) == {"l2": 0.2, "batchnorm": "none"}  # on which it depends
    assert space.fix(space.parse(["l1=1e-4"])) == {"l1.on": True, "l1": 1e-4}
    assert space.fix(space.parse(["l1=0", "dropout=0.3"])) == {"l1.on": False, "dropout": 0.3}
    assert space.fix({"l1.on": True}) == {"l1.on": True}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    found = []
    for _ in range(4):
        study.enqueue_trial(space.fix({"l1": 1e-4}))
        found.append(space.suggest(study.ask()))
    assert {shown["l1"] for shown in found} == {1e-4}
    assert len({shown["dropout"] for shown in found}) == 4


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["l2"], "l2: expected key=value, for example dropout=VALUE"),
        (["l2=0.2", "l2=0.3"], "l2: given twice"),
        (["l2=0.2", "batchnorm=before_activation"], "l2: applies only when batchnorm is none"),
        (["lr=1"], "lr: unknown parameter; expected one of dropout"),
        (["l2="], "l2: expected 0.1 to 0.5, multiples of 0.1; found ''"),
        (["l2=[1]"], "l2: expected 0.1 to 0.5, multiples of 0.1; found '[1]'"),
        (
            ["dropuot=0.2", "l1=abc", "hidden=1", "batch_size=17"],
            'dropuot: unknown parameter; did you mean "dropout"?\n'
            "l1: expected 1e-7 to 0.001, log, or 0 (off); found 'abc'\n"
            "hidden: expected 128-64, 32-16; found '1'\n"
            "batch_size: expected 16 to 64, multiples of 16; found 17",
        ),
    ],
)
def test_a_wrong_assignment_is_refused_in_words(words, problem):
    with pytest.raises(ParameterError) as refused:
        Space(spec_of(MIXED)).parse(words)
    assert str(refused.value).startswith(problem)


def test_a_per_layer_parameter_is_assigned_by_layer():
    space = Space(spec_of({"dropout": {"min": 0.0, "max": 0.6, "per_layer": True}}))
    assert space.parse(["dropout.2=0.3"]) == {"dropout.2": 0.3}
    with pytest.raises(
        ParameterError, match=r"dropout: is searched per layer; expected dropout\.1 and dropout\.2"
    ):
        space.parse(["dropout=0.3"])


# -- the table of `plan`


def test_the_space_as_a_table():
    assert Space(spec_of(MIXED)).rows == (
        Searched("dropout", "real number", "0 to 0.6", "", None),
        Searched("l1", "real number", "1e-7 to 0.001, log, or 0 (off)", "", None),
        Searched("l2", "real number", "0.1 to 0.5, multiples of 0.1", "batchnorm is none", 5),
        Searched("batchnorm", "values", "none, before_activation", "", 2),
        Searched("hidden", "values", "128-64, 32-16", "", 2),
        Searched("batch_size", "whole number", "16 to 64, multiples of 16", "", 4),
    )


# -- controls

STRENGTH = {"distribution": "log_uniform_values", "min": 1e-7, "max": 1e-3, "optional": True}
FULL = {
    **{"dropout": {"min": 0.0, "max": 0.6}, "l1": STRENGTH, "l2": STRENGTH},
    "batchnorm": {"values": ["none", "before_activation", "after_activation"]},
}


def test_the_controls_are_no_technique_early_stopping_alone_and_each_technique_alone():
    found = controls(spec_of(FULL, early_stopping={"patience": 2}), DATA)
    names = ["none", "early_stopping", "dropout", "l1", "l2", "batchnorm_before", "batchnorm_after"]
    alone: list[dict[str, Any]] = [{}, {}, {"dropout": 0.2}, {"l1": 1e-5}, {"l2": 1e-4}]
    alone += [{"batchnorm": "before_activation"}, {"batchnorm": "after_activation"}]
    assert [control.name for control in found] == names
    wanted = [RegularizationConfig(**technique).spread(2) for technique in alone]
    assert [control.config.regularization for control in found] == wanted
    stopping = EarlyStoppingConfig(patience=2)
    assert [control.config.early_stopping for control in found] == [None, *[stopping] * 6]
    assert {(control.config.seed, control.config.data) for control in found} == {(0, DATA)}
    off = {"dropout": 0.0, "l1": 0.0, "l2": 0.0, "batchnorm": "none"}
    assert found[0].parameters is None  # without early stopping: no trial of this sweep is
    assert [control.parameters for control in found[1:]] == [{**off, **technique} for technique in alone[1:]]


def test_a_control_outside_the_space_stands_for_itself():
    found = every_control(spec_of({"dropout": {"min": 0.1, "max": 0.6}}), DATA)
    assert [control.parameters for control in found] == [None, None, {"dropout": 0.2}, *[None] * 4]
    deeper = {
        "hidden": {"values": [[32, 16, 8], [64, 32, 16]]},
        "l1": {"values": [0, 0.2], "per_layer": True},
    }
    assert [control.parameters for control in every_control(spec_of(deeper), DATA)] == [None] * 7


@pytest.mark.parametrize(
    ("searched", "names"),
    [
        ({"dropout": {"min": 0.1, "max": 0.6}}, ["dropout"]),
        ({"l1": STRENGTH, "l2": STRENGTH}, ["l1", "l2"]),
        ({"batchnorm": {"values": ["none", "after_activation"], "per_layer": True}}, ["batchnorm_after"]),
        ({"patience": {"values": [1, 2]}, "l2": {"value": 0.1}}, []),
        ({"learning_rate": {"min": 0.001, "max": 0.1}}, []),
    ],
)
def test_a_technique_that_a_sweep_does_not_search_is_no_control_of_it(searched: Any, names: list[str]):
    spec = spec_of(searched)
    assert [control.name for control in controls(spec, DATA)] == ["none", "early_stopping", *names]
    everything = ["none", "early_stopping", "dropout", "l1", "l2", "batchnorm_before", "batchnorm_after"]
    assert [control.name for control in every_control(spec, DATA)] == everything


def test_a_fixed_technique_is_no_part_of_the_controls_but_a_fixed_optimizer_is():
    spec = spec_of({**FULL, "l2": {"value": 0.5}, "optimizer": {"value": "sgd"}, "patience": {"value": 9}})
    found = every_control(spec, DATA)
    assert {control.config.training.optimizer for control in found} == {"sgd"}
    assert {control.config.regularization.l2 for control in found} == {(0.0, 0.0), (1e-4, 1e-4)}
    assert {control.config.early_stopping for control in found} == {None, EarlyStoppingConfig(patience=9)}
    assert all(control.parameters is None for control in found)


def test_without_early_stopping_two_controls_are_one_and_a_sweep_may_go_without_any():
    found = controls(spec_of({"dropout": {"values": [0, 0.2]}}, early_stopping=None), DATA)
    assert [control.name for control in found][:2] == ["none", "dropout"]
    assert [control.parameters for control in found[:2]] == [{"dropout": 0.0}, {"dropout": 0.2}]
    assert controls(spec_of(FULL, controls=False), DATA) == []


@settings(max_examples=40)
@given(specs())
def test_the_parameters_of_a_control_give_exactly_its_configuration(spec: SweepSpec):
    space, found = Space(spec), every_control(spec, DATA)
    assert len({control.config for control in found}) == len(found)
    for control in found:
        if control.parameters is not None:
            assert space.to_optuna(control.parameters)
            assert space.config(control.parameters, seed=0, data=DATA) == control.config
