"""A Weights & Biases sweep file, read as it is where it means something here.

The keys and distributions are those of https://docs.wandb.ai/models/sweeps/sweep-config-keys.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from specs import spec_of

from regtune.config.sweepfile import SweepSpec
from regtune.config.sweepfile.groups import PrunerSpec
from regtune.config.sweepfile.parameters import Constant, Range
from regtune.errors import SpecError

WANDB = """\
program: train.py
project: mnist
entity: someone
command:
  - ${env}
  - python
  - ${program}
  - ${args}
description: the classic
method: bayes
metric:
  name: val_loss
  goal: minimize
  target: 0.05
parameters:
  learning_rate:
    distribution: log_uniform_values
    min: 1e-4
    max: 1e-1
  batch_size:
    distribution: q_log_uniform_values
    q: 8
    min: 32
    max: 256
  dropout:
    values: [0.3, 0.4, 0.5]
  optimizer:
    values: ["adam", "sgd"]
  max_epochs:
    value: 10
early_terminate:
  type: hyperband
  min_iter: 3
  strict: true
run_cap: 50
"""


def test_a_sweep_yaml_of_wandb_reads_as_it_is():
    path = Path("sweep.yaml")
    path.write_text(WANDB)
    spec = SweepSpec.load(path)
    said = (spec.name, spec.dataset, spec.method, spec.description)
    assert said == ("sweep", "mnist", "tpe", "the classic")
    assert (spec.metric.name, spec.metric.goal, spec.run_cap) == ("val_loss", "minimize", 50)
    assert spec.parameters["learning_rate"] == Range(distribution="log_uniform_values", min=1e-4, max=0.1)
    assert spec.parameters["batch_size"] == Range(distribution="q_log_uniform_values", min=32, max=256, q=8)
    assert spec.parameters["max_epochs"] == Constant(value=10)
    assert spec.fixed("max_epochs") == 10
    assert spec.early_terminate == PrunerSpec(type="hyperband", min_iter=3)
    assert spec.warnings == (
        "ignored: program, command, project, entity, metric.target, early_terminate.strict (regtune does not use them)",
    )


def test_without_a_goal_an_accuracy_is_maximized():
    for name, goal in (("val_accuracy", "maximize"), ("val_loss", "minimize")):
        assert spec_of({"dropout": {"min": 0, "max": 0.5}}, metric={"name": name}).metric.goal == goal


@pytest.mark.parametrize(
    ("name", "low", "high", "more", "read"),
    [
        ("log_uniform", -9, -3, {}, (math.exp(-9), math.exp(-3), "log_uniform_values")),
        ("inv_log_uniform", 3, 9, {}, (math.exp(-9), math.exp(-3), "log_uniform_values")),
        ("inv_log_uniform_values", 1e-4, 0.1, {}, (1e-4, 0.1, "log_uniform_values")),
        ("q_log_uniform", -9, -3, {"q": 1e-3}, (math.exp(-9), math.exp(-3), "q_log_uniform_values")),
    ],
)
def test_distributions_that_say_the_same_are_read_as_one(name, low, high, more, read):
    found = spec_of({"l1": {"distribution": name, "min": low, "max": high, **more}}).parameters["l1"]
    assert isinstance(found, Range)
    assert (found.min, found.max) == pytest.approx(read[:2])
    assert found.distribution == read[2]


@pytest.mark.parametrize(
    ("given", "high", "step"),
    [
        ({"distribution": "q_log_uniform", "min": math.log(16), "max": math.log(300.5), "q": 4}, 300, 4),
        ({"distribution": "log_uniform_values", "min": 16, "max": 256}, 256, 1),
    ],
)
def test_logs_of_whole_numbers_are_rounded_inwards_and_need_no_q(given, high, step):
    found = spec_of({"batch_size": given}).parameters["batch_size"]
    assert found == Range(distribution="q_log_uniform_values", min=16, max=high, q=step)


def test_values_given_to_log_uniform_as_if_it_took_values_are_warned_of():
    spec = spec_of({"l1": {"distribution": "log_uniform", "min": 1e-7, "max": 1e-3}})
    assert spec.warnings == (
        "parameters.l1: log_uniform takes exponents of e, so this searches 1 to 1.001; "
        "for 1e-07 to 0.001 themselves use log_uniform_values",
    )


@pytest.mark.parametrize(
    ("name", "what_to_use"),
    [
        ("normal", "unbounded; use uniform with min and max"),
        ("q_normal", "unbounded; use q_uniform with min, max and q"),
        ("log_normal", "unbounded; use log_uniform_values with min and max"),
        ("q_log_normal", "unbounded; use q_log_uniform_values with min, max and q"),
        ("beta", "not searched here; use uniform with min and max"),
        ("q_beta", "not searched here; use q_uniform with min, max and q"),
    ],
)
def test_distributions_that_optuna_cannot_sample_are_refused_with_what_to_use(name, what_to_use):
    with pytest.raises(SpecError) as refused:
        spec_of({"dropout": {"distribution": name, "mu": 0.3, "q": 1}, "l2": {"values": [0, 0.1]}})
    assert refused.value.problems == (f"spec: parameters.dropout.distribution: {name}: {what_to_use}",)


def test_a_type_of_none_is_no_pruner():
    assert spec_of({"l2": {"values": [0, 0.1]}}, early_terminate={"type": "none"}).early_terminate is None
