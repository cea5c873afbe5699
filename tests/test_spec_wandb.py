"""A Weights & Biases sweep file, read as it is where it means something here.

The keys and distributions are those of https://docs.wandb.ai/models/sweeps/sweep-config-keys.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from specs import spec_of

from regtune.config.sweepfile import Constant, PrunerSpec, Range, SweepSpec
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
    assert (spec.name, spec.dataset, spec.method, spec.description) == (
        "sweep",
        "mnist",
        "tpe",
        "the classic",
    )
    assert (spec.metric.name, spec.metric.goal, spec.run_cap) == ("val_loss", "minimize", 50)
    assert spec.parameters["learning_rate"] == Range(distribution="log_uniform_values", min=1e-4, max=0.1)
    assert spec.parameters["batch_size"] == Range(distribution="q_log_uniform_values", min=32, max=256, q=8)
    assert spec.parameters["max_epochs"] == Constant(value=10)
    assert spec.fixed("max_epochs") == 10
    assert spec.early_terminate == PrunerSpec(type="hyperband", min_iter=3)


def test_what_means_nothing_here_is_named_in_one_line():
    path = Path("sweep.yaml")
    path.write_text(WANDB)
    assert SweepSpec.load(path).warnings == (
        "passed over, because it means nothing here: program, command, project, entity, metric.target, "
        "early_terminate.strict",
    )


def test_without_a_goal_an_accuracy_is_maximized():
    assert (
        spec_of({"dropout": {"min": 0, "max": 0.5}}, metric={"name": "val_accuracy"}).metric.goal
        == "maximize"
    )
    assert spec_of({"dropout": {"min": 0, "max": 0.5}}, metric={"name": "val_loss"}).metric.goal == "minimize"


@pytest.mark.parametrize(
    ("given", "low", "high", "distribution"),
    [
        (
            {"distribution": "log_uniform", "min": -9, "max": -3},
            math.exp(-9),
            math.exp(-3),
            "log_uniform_values",
        ),
        (
            {"distribution": "inv_log_uniform", "min": 3, "max": 9},
            math.exp(-9),
            math.exp(-3),
            "log_uniform_values",
        ),
        (
            {"distribution": "inv_log_uniform_values", "min": 1e-4, "max": 0.1},
            1e-4,
            0.1,
            "log_uniform_values",
        ),
        (
            {"distribution": "q_log_uniform", "min": -9, "max": -3, "q": 1e-3},
            math.exp(-9),
            math.exp(-3),
            "q_log_uniform_values",
        ),
    ],
)
def test_distributions_that_say_the_same_are_read_as_one(given, low, high, distribution):
    found = spec_of({"l1": given}).parameters["l1"]
    assert isinstance(found, Range)
    assert found.distribution == distribution
    assert (found.min, found.max) == pytest.approx((low, high), rel=1e-12)


def test_exponents_of_e_for_a_whole_number_are_rounded_inwards():
    given = {"distribution": "q_log_uniform", "min": math.log(16), "max": math.log(300.5), "q": 4}
    found = spec_of({"batch_size": given}).parameters["batch_size"]
    assert found == Range(distribution="q_log_uniform_values", min=16, max=300, q=4)


def test_a_log_range_of_whole_numbers_needs_no_q():
    given = {"distribution": "log_uniform_values", "min": 16, "max": 256}
    found = spec_of({"batch_size": given}).parameters["batch_size"]
    assert found == Range(distribution="q_log_uniform_values", min=16, max=256, q=1)


def test_values_given_to_log_uniform_as_if_it_took_values_are_warned_of():
    spec = spec_of({"l1": {"distribution": "log_uniform", "min": 1e-7, "max": 1e-3}})
    assert spec.warnings == (
        "parameters.l1: log_uniform takes exponents of e, so this searches 1 to 1.001; "
        "for 1e-07 to 0.001 themselves use log_uniform_values",
    )


@pytest.mark.parametrize(
    ("given", "what_to_use"),
    [
        (
            {"distribution": "normal", "mu": 0.3, "sigma": 0.1},
            "normal: unbounded; use uniform with min and max",
        ),
        (
            {"distribution": "q_normal", "mu": 1, "q": 1},
            "q_normal: unbounded; use q_uniform with min, max and q",
        ),
        ({"distribution": "log_normal"}, "log_normal: unbounded; use log_uniform_values with min and max"),
        (
            {"distribution": "q_log_normal", "sigma": 1},
            "q_log_normal: unbounded; use q_log_uniform_values with min, max and q",
        ),
        ({"distribution": "beta", "a": 1, "b": 2}, "beta: not searched here; use uniform with min and max"),
        (
            {"distribution": "q_beta", "a": 1, "q": 1},
            "q_beta: not searched here; use q_uniform with min, max and q",
        ),
    ],
)
def test_distributions_that_optuna_cannot_sample_are_refused_with_what_to_use(given, what_to_use):
    with pytest.raises(SpecError) as refused:
        spec_of({"dropout": given, "l2": {"values": [0, 0.1]}})
    assert refused.value.problems == (f"spec: parameters.dropout.distribution: {what_to_use}",)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        (
            "method",
            "custom",
            "method: custom is W&B's own; expected one of tpe, random, grid, qmc, cmaes, gp",
        ),
        ("metrics", [], "metrics: several objectives are not supported; expected metric: with name and goal"),
        (
            "metric",
            {"name": "validation_loss"},
            "metric.name: expected a metric of an epoch, one of loss, accuracy, cross_entropy, val_loss, val_accuracy, "
            'val_cross_entropy, found "validation_loss"; did you mean "val_loss"?',
        ),
    ],
)
def test_what_would_mean_something_else_here_is_refused(key, value, problem):
    values: dict[str, Any] = {"run_cap": 9, "parameters": {"l2": {"values": [0, 0.1]}}, key: value}
    with pytest.raises(SpecError) as refused:
        SweepSpec.from_dict(values)
    assert refused.value.problems == (f"spec: {problem}",)


@pytest.mark.parametrize(
    ("given", "first", "brackets"),
    [
        ({"type": "hyperband", "min_iter": 3}, 3, (3, 9, 27)),
        ({"type": "hyperband", "min_iter": 3, "eta": 2}, 3, (3, 6, 12, 24)),
        ({"type": "hyperband", "max_iter": 27, "s": 2}, 3, (3, 9, 27)),
        ({"type": "hyperband", "max_iter": 27, "s": 2, "eta": 3.0}, 3, (3, 9, 27)),
        ({"type": "hyperband", "min_iter": 1, "max_iter": 9}, 1, (1, 3, 9)),
    ],
)
def test_the_rungs_of_hyperband_stand_where_wandb_documents_them(given, first, brackets):
    found = spec_of({"l2": {"values": [0, 0.1]}}, early_terminate=given).early_terminate
    assert found is not None
    assert found.first_epoch == first
    assert found.brackets(30) == brackets


def test_a_type_of_none_is_no_pruner():
    assert spec_of({"l2": {"values": [0, 0.1]}}, early_terminate={"type": "none"}).early_terminate is None
