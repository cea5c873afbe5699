"""Controls: what each result of a sweep is compared with."""

from __future__ import annotations

from hypothesis import given, settings
from specs import spec_of, specs

from regtune.config.sweepfile import SweepSpec
from regtune.config.trial import DataConfig, EarlyStoppingConfig, RegularizationConfig
from regtune.search import Space, controls

DATA = DataConfig(name="mnist-5k", digest="0" * 64)
STRENGTH = {"distribution": "log_uniform_values", "min": 1e-7, "max": 1e-3, "optional": True}
FULL = {
    **{"dropout": {"min": 0.0, "max": 0.6}, "l1": STRENGTH, "l2": STRENGTH},
    "batchnorm": {"values": ["none", "before_activation", "after_activation"]},
}
TECHNIQUES = ["dropout", "l1", "l2", "batchnorm_before", "batchnorm_after"]


def test_the_controls_are_no_technique_early_stopping_alone_and_each_technique_alone():
    spec = spec_of(FULL, early_stopping={"patience": 2})
    found = {control.name: control.config for control in controls(spec, DATA)}
    stopping = EarlyStoppingConfig(patience=2)
    plain = RegularizationConfig().spread(2)
    assert {name: (config.regularization, config.early_stopping) for name, config in found.items()} == {
        "none": (plain, None),
        "early_stopping": (plain, stopping),
        "dropout": (RegularizationConfig(dropout=0.2).spread(2), stopping),
        "l1": (RegularizationConfig(l1=1e-5).spread(2), stopping),
        "l2": (RegularizationConfig(l2=1e-4).spread(2), stopping),
        "batchnorm_before": (RegularizationConfig(batchnorm="before_activation").spread(2), stopping),
        "batchnorm_after": (RegularizationConfig(batchnorm="after_activation").spread(2), stopping),
    }
    assert list(found) == ["none", "early_stopping", *TECHNIQUES]
    assert {config.seed for config in found.values()} == {0}
    assert {config.data.digest for config in found.values()} == {"0" * 64}


def test_a_control_that_the_space_contains_teaches_the_sampler():
    spec = spec_of(FULL)
    found = {control.name: control.parameters for control in controls(spec, DATA)}
    off = {"dropout": 0.0, "l1": 0.0, "l2": 0.0, "batchnorm": "none"}
    assert found == {
        "none": None,  # without early stopping: no trial of this sweep is
        "early_stopping": off,
        "dropout": {**off, "dropout": 0.2},
        "l1": {**off, "l1": 1e-5},
        "l2": {**off, "l2": 1e-4},
        "batchnorm_before": {**off, "batchnorm": "before_activation"},
        "batchnorm_after": {**off, "batchnorm": "after_activation"},
    }


def test_a_control_outside_the_space_stands_for_itself():
    spec = spec_of({"dropout": {"min": 0.1, "max": 0.6}})
    found = {control.name: control.parameters for control in controls(spec, DATA)}
    assert found.pop("dropout") == {"dropout": 0.2}
    assert set(found.values()) == {None}


def test_a_fixed_technique_is_no_part_of_the_controls_but_a_fixed_optimizer_is():
    spec = spec_of({**FULL, "l2": {"value": 0.5}, "optimizer": {"value": "sgd"}, "patience": {"value": 9}})
    found = controls(spec, DATA)
    assert {control.config.training.optimizer for control in found} == {"sgd"}
    assert {control.config.regularization.l2 for control in found} == {(0.0, 0.0), (1e-4, 1e-4)}
    stopping = [control.config.early_stopping for control in found]
    assert {each.patience for each in stopping if each} == {9}
    assert all(control.parameters is None for control in found)


def test_without_early_stopping_two_controls_are_one_and_a_sweep_may_go_without_any():
    found = controls(spec_of({"dropout": {"values": [0, 0.2]}}, early_stopping=None), DATA)
    assert [control.name for control in found] == ["none", *TECHNIQUES]
    assert [control.parameters for control in found[:2]] == [{"dropout": 0.0}, {"dropout": 0.2}]
    assert controls(spec_of(FULL, controls=False), DATA) == []


def test_searched_layers_of_another_depth_than_the_base_are_no_obstacle():
    layers = {"hidden": {"values": [[32, 16, 8], [64, 32, 16]]}}
    spec = spec_of({**layers, "dropout": {"values": [0, 0.2], "per_layer": True}})
    assert [control.parameters for control in controls(spec, DATA)] == [None] * 7


@settings(max_examples=40)
@given(specs())
def test_the_parameters_of_a_control_give_exactly_its_configuration(spec: SweepSpec):
    space = Space(spec)
    found = controls(spec, DATA)
    assert len({control.config for control in found}) == len(found)
    for control in found:
        if control.parameters is not None:
            assert space.to_optuna(control.parameters)
            assert space.config(control.parameters, seed=0, data=DATA) == control.config
