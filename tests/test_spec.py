"""The sweep file: what is read, what is refused and in which words, what is warned of."""

from __future__ import annotations

import doctest
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from specs import spec_of, specs

import regtune
from regtune.config.sweepfile import TARGETS, Categorical, Constant, Range, SweepSpec
from regtune.config.sweepfile.checks import DATASETS, control_count
from regtune.config.sweepfile.specification import BUDGET_KEYS
from regtune.config.trial import (
    DataConfig,
    EarlyStoppingConfig,
    ModelConfig,
    RegularizationConfig,
    TrainingConfig,
)
from regtune.data.datasets import NAMES
from regtune.errors import SpecError
from regtune.search import controls

GOOD = """\
run_cap: 20
parameters:
  dropout: {min: 0.0, max: 0.6}
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str, name: str = "sweep.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return Path(name)

    return write


def problems_of(path: Path | dict[str, Any], *overrides: str) -> list[str]:
    with pytest.raises(SpecError) as refused:
        SweepSpec.from_dict(path) if isinstance(path, dict) else SweepSpec.load(path, overrides)
    return list(refused.value.problems)


def only_problem(path: Path | dict[str, Any], *overrides: str) -> str:
    found = problems_of(path, *overrides)
    assert len(found) == 1, found
    return found[0]


# -- what is read


def test_a_file_without_name_and_dataset_takes_its_stem_and_mnist(write):
    spec = SweepSpec.load(write(GOOD, "my-sweep.yaml"))
    assert (spec.name, spec.dataset, spec.method, spec.seed) == ("my-sweep", "mnist", "tpe", 42)
    assert spec.parameters == {"dropout": Range(distribution="uniform", min=0.0, max=0.6)}
    assert spec.warnings == ()


def test_a_name_from_the_command_line_stands_above_the_files(write):
    assert SweepSpec.load(write("name: written\n" + GOOD), name="given").name == "given"
    assert SweepSpec.load(write("name: written\n" + GOOD)).name == "written"


def test_defaults_are_those_of_the_configuration(write):
    spec = SweepSpec.load(write(GOOD))
    assert spec.model == ModelConfig()
    assert spec.training == TrainingConfig()
    assert spec.early_stopping == EarlyStoppingConfig()
    assert (spec.split.validation, spec.split.seed) == (DataConfig().validation, DataConfig().split_seed)


def test_every_key_of_a_configuration_can_be_searched():
    blocks = (RegularizationConfig, ModelConfig, TrainingConfig, EarlyStoppingConfig)
    assert set(TARGETS) == {name for block in blocks for name in block.model_fields}


def test_the_datasets_of_a_sweep_are_those_that_data_knows():
    assert DATASETS == NAMES


@pytest.mark.parametrize(
    ("name", "given", "read"),
    [
        ("dropout", {"min": 0, "max": 0.5}, Range(distribution="uniform", min=0.0, max=0.5)),
        ("l1", {"min": 0, "max": 1}, Range(distribution="uniform", min=0.0, max=1.0)),
        ("batch_size", {"min": 16, "max": 64}, Range(distribution="int_uniform", min=16, max=64)),
        ("batch_size", {"min": 16, "max": 64, "q": 8}, Range(distribution="q_uniform", min=16, max=64, q=8)),
        (
            "dropout",
            {"min": 0, "max": 0.5, "q": 0.1},
            Range(distribution="q_uniform", min=0.0, max=0.5, q=0.1),
        ),
        ("dropout", {"value": 0}, Constant(value=0.0)),
        ("dropout", {"value": [0.1, 0.2]}, Constant(value=(0.1, 0.2))),
        ("dropout", {"values": [0.3]}, Constant(value=0.3)),
        ("hidden", {"value": [32, 16]}, Constant(value=(32, 16))),
        ("hidden", {"values": [[32, 16], [8]]}, Categorical(values=((32, 16), (8,)))),
        ("fused", {"values": [True, False]}, Categorical(values=(True, False))),
        ("max_epochs", {"values": [5, 10], "distribution": "categorical"}, Categorical(values=(5, 10))),
    ],
)
def test_a_parameter_is_read_in_the_type_of_its_key(name, given, read):
    assert spec_of({name: given, "l2": {"values": [0, 1e-4]}}).parameters[name] == read


def test_values_may_be_none_where_none_is_a_word():
    found = spec_of({"batchnorm": {"values": ["none", "before_activation"]}})
    assert found.parameters["batchnorm"] == Categorical(values=("none", "before_activation"))


@given(specs())
def test_a_spec_comes_back_from_its_canonical_form(spec):
    again = SweepSpec.from_dict(spec.to_dict())
    assert again == spec
    assert again.digest == spec.digest
    assert again.to_dict() == spec.to_dict()


@settings(max_examples=40)
@given(specs())
def test_a_spec_comes_back_from_yaml(spec):
    path = Path("again.yaml")
    path.write_text(yaml.safe_dump(spec.to_dict()), encoding="utf-8")
    assert SweepSpec.load(path) == spec


def test_the_order_of_keys_in_the_file_changes_nothing(write):
    one = write(
        "parameters: {l1: {values: [0, 1e-5]}, dropout: {min: 0, max: 0.5}}\nrun_cap: 5\nseed: 1\nname: x"
    )
    other = write(
        "name: x\nseed: 1\nrun_cap: 5\nparameters: {dropout: {max: 0.5, min: 0}, l1: {values: [0, 1e-5]}}",
        "o",
    )
    assert SweepSpec.load(one).digest == SweepSpec.load(other).digest
    assert list(SweepSpec.load(one).parameters) == ["dropout", "l1"]


def test_the_digest_is_the_same_in_another_process_with_another_hash_seed(write):
    path = write(GOOD).resolve()
    code = f"from regtune.config.sweepfile import SweepSpec; print(SweepSpec.load({str(path)!r}).digest)"
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(regtune.__file__).parent.parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert digests == {SweepSpec.load(path).digest}


def test_reading_a_spec_imports_neither_optuna_nor_tensorflow_nor_mlflow(write):
    path = write(GOOD).resolve()
    code = (
        f"import sys; from regtune.config.sweepfile import SweepSpec; SweepSpec.load({str(path)!r}); "
        "print([name for name in ('optuna', 'tensorflow', 'keras', 'mlflow', 'numpy', 'torch') if name in sys.modules])"
    )
    folder = Path(regtune.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_spec_cannot_be_changed_and_cannot_be_made_wrong(write):
    spec = SweepSpec.load(write(GOOD))
    with pytest.raises(ValidationError):
        spec.run_cap = 5
    with pytest.raises(ValidationError, match="nothing is searched"):
        SweepSpec(run_cap=5)


# -- mistakes: every one at once, with its line


def test_every_mistake_is_reported_at_once_in_the_order_of_the_file(write):
    path = write(
        """\
nme: x
method: tpee
metric: {name: val_acc, goal: minimise}
run_cap: abc
dropout: 0.3
training: {epochs: 3, batch_size: 3.5, clipnorm: 1, dropout: 0.2}
parameters:
  drop_out: {min: 0, max: 0.6}
  dropout: {min: 0, max: 1.5}
  l1: {distribution: log_unifrm, min: 0, max: 1}
  batchnorm: {values: [none, befor_activation, true]}
  learning_rate: {min: 1e-3}
  batch_size: {min: 0, max: .inf}
  max_epochs: {values: [1, 5], when: {patience: 3}}
"""
    )
    metrics = "loss, accuracy, cross_entropy, val_loss, val_accuracy, val_cross_entropy"
    placements = "none, before_activation, after_activation"
    distributions = (
        "constant, categorical, uniform, q_uniform, int_uniform, log_uniform_values, q_log_uniform_values, "
        "log_uniform, inv_log_uniform, inv_log_uniform_values, q_log_uniform"
    )
    assert problems_of(path) == [
        'sweep.yaml:1: nme: unknown key; did you mean "name"?',
        'sweep.yaml:2: method: expected one of tpe, random, grid, qmc, cmaes, gp, found "tpee"; did you mean "tpe"?',
        f"sweep.yaml:3: metric.name: expected a metric of an epoch, one of {metrics}, "
        'found "val_acc"; did you mean "val_accuracy"?',
        'sweep.yaml:3: metric.goal: expected one of minimize, maximize, found "minimise"; did you mean "minimize"?',
        'sweep.yaml:4: run_cap: expected a whole number, found "abc"',
        "sweep.yaml:5: dropout: unknown key here; it belongs under parameters",
        "sweep.yaml:6: training.batch_size: expected a whole number, found 3.5",
        'sweep.yaml:6: training.epochs: unknown key; did you mean "max_epochs"?',
        "sweep.yaml:6: training.clipnorm: gradient clipping is not supported; a smaller learning_rate is the nearest "
        "thing",
        "sweep.yaml:6: training.dropout: unknown key here; it belongs under parameters",
        'sweep.yaml:8: parameters.drop_out: unknown parameter; did you mean "dropout"?',
        "sweep.yaml:9: parameters.dropout.max: expected at most 0.95, found 1.5",
        f"sweep.yaml:10: parameters.l1.distribution: expected one of {distributions}, "
        'found "log_unifrm"; did you mean "log_uniform"?',
        f"sweep.yaml:11: parameters.batchnorm.values.1: expected one of {placements}, "
        'found "befor_activation"; did you mean "before_activation"?',
        f"sweep.yaml:11: parameters.batchnorm.values.2: expected one of {placements}, found true",
        "sweep.yaml:12: parameters.learning_rate: expected value, or values, or min and max, "
        "for example min: ... and max: ..., found min",
        "sweep.yaml:13: parameters.batch_size.max: expected a finite number, found .inf",
        "sweep.yaml:13: parameters.batch_size.min: expected at least 1, found 0",
        "sweep.yaml:14: parameters.max_epochs.when.patience: expected another searched parameter, one of max_epochs",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "run_cap: 5",
            "parameters: nothing is searched; expected at least one range or list, "
            "for example dropout: {min: 0.0, max: 0.6}",
        ),
        (
            "run_cap: 5\nparameters: {}",
            "2: parameters: nothing is searched; expected at least one range or list, "
            "for example dropout: {min: 0.0, max: 0.6}",
        ),
        (
            "run_cap: 5\nparameters: {dropout: {value: 0.2}}",
            "2: parameters: nothing is searched, each has one value "
            "only; expected at least one range or list, for example dropout: {min: 0.0, max: 0.6}",
        ),
        (
            "run_cap: 5\nparameters: [dropout]",
            "2: parameters: expected a parameter on each line, found a list",
        ),
        (
            "run_cap: 5\nparameters: {dropout: 0.2}",
            "2: parameters.dropout: expected min: ... and max: ..., found 0.2",
        ),
        (
            "run_cap: 5\nparameters: {dropout: }",
            "2: parameters.dropout: expected min: ... and max: ..., found nothing",
        ),
        (
            "parameters: {dropout: {values: [0, 0.2]}}",
            "run_cap: missing; expected a budget: run_cap (trials) or "
            "timeout (seconds), for example run_cap: 60",
        ),
        ("run_cap: 0", "1: run_cap: expected at least 1, found 0"),
        ("run_cap: true", "1: run_cap: expected a whole number, found true"),
        ("timeout: 2h", '1: timeout: expected seconds, such as 3600, found "2h"'),
        ("timeout: -1", "1: timeout: expected more than 0, found -1"),
        ("name: a/b", '1: name: expected up to 100 letters, digits, spaces or . _ + = @ -, found "a/b"'),
        ("name: -x", '1: name: expected up to 100 letters, digits, spaces or . _ + = @ -, found "-x"'),
        ("name: [x]", "1: name: expected up to 100 letters, digits, spaces or . _ + = @ -, found a list"),
        (
            "dataset: mnst",
            "1: dataset: expected mnist, mnist-5k, fashion-mnist or a path to a .npz file, "
            'found "mnst"; did you mean "mnist"?',
        ),
        (
            "metric: val_accuracy",
            '1: metric: expected a group of keys, found "val_accuracy", '
            "for example {name: val_cross_entropy}",
        ),
        (
            "metric: {name: val_accuracy, goal: minimize}",
            "1: metric: expected goal: maximize, because val_accuracy is better when it is higher",
        ),
        (
            "early_terminate: hyperband",
            '1: early_terminate: expected a group of keys, found "hyperband", for example {type: hyperband}',
        ),
        ("early_terminate: {}", "1: early_terminate.type: missing"),
        (
            "early_terminate: {type: asha}",
            '1: early_terminate.type: expected one of median, hyperband, successive_halving, found "asha"',
        ),
        (
            "early_terminate: {type: hyperband, min_iter: 0}",
            "1: early_terminate.min_iter: expected at least 1, found 0",
        ),
        (
            "early_terminate: {type: hyperband, eta: 1.5}",
            "1: early_terminate.eta: expected a whole number, found 1.5",
        ),
        ("early_terminate: {type: median, eta: 3}", "1: early_terminate: eta means nothing for median"),
        (
            "early_terminate: {type: hyperband, s: 2}",
            "1: early_terminate: s counts rungs back from max_iter: expected "
            "max_iter with s, or min_iter without s",
        ),
        (
            "early_terminate: {type: hyperband, s: 3, max_iter: 20}",
            "1: early_terminate: expected max_iter to be at least eta ** s = 27, found 20",
        ),
        ("label_smoothing: 0.1", "1: label_smoothing: label smoothing is not supported; remove it"),
        (
            "training: {lr_schedule: cosine}",
            "1: training.lr_schedule: learning-rate schedules are not supported; "
            "search learning_rate instead",
        ),
        (
            "training: {global_clipnorm: 1}",
            "1: training.global_clipnorm: gradient clipping is not supported; a smaller "
            "learning_rate is the nearest thing",
        ),
        (
            "training: {optimizer: rmsprop}",
            '1: training.optimizer: expected one of adam, adamw, sgd, found "rmsprop"',
        ),
        (
            "training: [1]",
            "1: training: expected a group of keys, found a list, for example {max_epochs: 30}",
        ),
        ("learning_rate: 0.1", "1: learning_rate: unknown key here; it belongs under training"),
        ("lr: 0.1", '1: lr: unknown key; did you mean "learning_rate" under training?'),
        ("model: {hidden: []}", "1: model.hidden: expected at least 1 of them, found a list"),
        ("model: {hidden: [64, x]}", '1: model.hidden.1: expected a whole number, found "x"'),
        ("model: {hidden: 64}", "1: model.hidden: expected a list such as [128, 64], found 64"),
        ("controls: no", '1: controls: expected true or false, found "no"'),
        (
            "early_stopping: {monitor: loss_val}",
            "1: early_stopping.monitor: expected one of loss, accuracy, "
            'cross_entropy, val_loss, val_accuracy, val_cross_entropy, found "loss_val"; did you mean "loss"?',
        ),
        ("workers: 2", "1: workers: unknown key; expected one of"),
    ],
)
def test_a_mistake_at_the_top_is_one_line_that_says_what_was_expected(write, text, problem):
    key = text.partition(":")[0]
    rest = {"run_cap": 5, "parameters": {"dropout": {"values": [0, 0.2]}}}
    text += "".join(
        f"\n{yaml.safe_dump({name: value}, default_flow_style=True).strip()[1:-1]}"
        for name, value in rest.items()
        if name not in text
        and not (name == "run_cap" and key in ("timeout", "parameters"))
        and not (name == "parameters" and problem.startswith("parameters: "))
    )
    found = only_problem(write(text))
    assert found.startswith(f"sweep.yaml:{problem}" if problem[0].isdigit() else f"sweep.yaml: {problem}")


@pytest.mark.parametrize(
    ("name", "given", "problem"),
    [
        ("dropout", {"min": 0.5, "max": 0.1}, "max: expected more than min (0.5), found 0.1"),
        (
            "dropout",
            {"min": 0.5, "max": 0.5},
            "max: expected more than min (0.5), found 0.5; for one value use value",
        ),
        ("dropout", {"min": -0.1, "max": 0.5}, "min: expected at least 0, found -0.1"),
        ("dropout", {"min": "a", "max": 0.5}, 'min: expected a number, found "a"'),
        ("dropout", {"min": True, "max": 0.5}, "min: expected a number, found true"),
        ("dropout", {"min": float("nan"), "max": 0.5}, "min: expected a finite number, found nan"),
        ("dropout", {"min": 0, "max": 10**400}, "max: expected"),
        ("dropout", {"min": 0, "max": 0.5, "q": 0}, "q: expected a number above 0, found 0"),
        (
            "dropout",
            {"min": 0, "max": 0.5, "q": 0.6},
            "q: expected at least two multiples of 0.6 between 0 and 0.5",
        ),
        (
            "dropout",
            {"min": 0, "max": 0.5, "q": 1e-7},
            "q: expected at most 100000 multiples between min and max",
        ),
        (
            "dropout",
            {"min": 0, "max": 0.5, "values": [1]},
            "expected value, or values, or min and max, "
            "for example min: ... and max: ..., found values and min and max",
        ),
        (
            "dropout",
            {"distribution": "uniform", "min": 0, "max": 0.5, "q": 0.1},
            "q: means nothing for uniform; expected min, max, optional, per_layer, when",
        ),
        ("dropout", {"distribution": "uniform", "max": 0.5}, "min: missing"),
        ("dropout", {"distribution": "constant"}, "value: missing"),
        ("dropout", {"distribution": "categorical"}, "values: expected a list such as [1, 2], found nothing"),
        ("dropout", {"values": []}, "values: expected a list such as [1, 2], found a list"),
        ("dropout", {"values": [0.1, 0.1]}, "values.1: 0.1 is given twice"),
        ("dropout", {"values": [0, 0.0]}, "values.1: 0.0 is given twice"),
        (
            "dropout",
            {"values": [[0.1, 0.2], 0]},
            "values.0: expected one value, found a list; for one value a layer use per_layer: true",
        ),
        ("dropout", {"values": [0.1, 0.96]}, "values.1: expected at most 0.95, found 0.96"),
        ("dropout", {"value": 0.3, "optional": True}, "optional: means nothing for constant; expected value"),
        (
            "dropout",
            {"distribution": "int_uniform", "min": 0, "max": 1},
            "distribution: dropout is a real number; use uniform, or q_uniform with q: 1",
        ),
        (
            "dropout",
            {"values": [0.1, 0], "optional": True},
            "optional: adds 0, which is among the values already; drop one of the two",
        ),
        (
            "patience",
            {"min": 0, "max": 4, "optional": True},
            "optional: adds 0, which is among the values already; drop one of the two",
        ),
        ("dropout", {"mn": 0, "max": 1}, 'mn: unknown key; did you mean "min"?'),
        (
            "dropout",
            {"parameters": {"rate": {"value": 1}}},
            "parameters: nested parameters are not read; name each key directly under parameters",
        ),
        (
            "dropout",
            {"values": [0.1, 0.2], "probabilities": [0.5, 0.5]},
            "probabilities: values cannot be weighted; use values alone",
        ),
        (
            "l1",
            {"distribution": "log_uniform_values", "min": 0, "max": 1},
            "min: expected more than 0 for log_uniform_values, found 0.0; optional: true adds 0",
        ),
        (
            "batch_size",
            {"distribution": "uniform", "min": 1, "max": 9},
            "distribution: batch_size is a whole number; use int_uniform, or q_uniform with q: 1",
        ),
        ("batch_size", {"min": 1.5, "max": 9}, "min: expected a whole number, found 1.5"),
        ("batch_size", {"min": 1, "max": 9, "q": 0.5}, "q: expected a whole number, found 0.5"),
        ("batch_size", {"values": [1, 2.5]}, "values.1: expected a whole number, found 2.5"),
        (
            "batch_size",
            {"min": 1, "max": 9, "per_layer": True},
            "per_layer: batch_size has one value for all layers; per_layer is for dropout, l1, l2, batchnorm",
        ),
        (
            "batch_size",
            {"min": 1, "max": 9, "optional": True},
            "optional: batch_size cannot be off: it does not take 0",
        ),
        (
            "batchnorm",
            {"values": ["none", "after_activation"], "optional": True},
            "optional: batchnorm cannot be off: it does not take 0; add none to its values",
        ),
        (
            "batchnorm",
            {"min": 0, "max": 1},
            "batchnorm is not a number; expected values: [none, before_activation, after_activation]",
        ),
        ("hidden", {"values": [[64], 32]}, "values.1: expected a list such as [128, 64], found 32"),
        ("dropout", {"min": 0, "max": 0.5, "per_layer": 1}, "per_layer: expected true or false, found 1"),
        (
            "dropout",
            {"min": 0, "max": 0.5, "when": "always"},
            'when: expected parameter: value, for example batchnorm: none, found "always"',
        ),
        (
            "dropout",
            {"min": 0, "max": 0.5, "when": {"l2": []}},
            "when.l2: expected a value or a list of values, found a list",
        ),
    ],
)
def test_a_mistake_in_a_parameter_is_one_line_that_says_what_was_expected(name, given, problem):
    found = only_problem({"run_cap": 50, "parameters": {name: given, "l2": {"values": [0, 1e-4]}}})
    assert found.startswith((f"spec: parameters.{name}.{problem}", f"spec: parameters.{name}: {problem}"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("epochs", 'unknown parameter; did you mean "max_epochs"?'),
        ("lr", 'unknown parameter; did you mean "learning_rate"?'),
        ("units", 'unknown parameter; did you mean "hidden"?'),
        ("drop_out", 'unknown parameter; did you mean "dropout"?'),
        ("Dropout", 'unknown parameter; did you mean "dropout"?'),
        ("batch_norm", 'unknown parameter; did you mean "batchnorm"?'),
        ("training.batch_size", 'unknown parameter; did you mean "batch_size"?'),
        ("clipvalue", "gradient clipping is not supported; a smaller learning_rate is the nearest thing"),
        ("label_smoothing", "label smoothing is not supported; remove it"),
        ("lr_decay", "learning-rate schedules are not supported; search learning_rate instead"),
    ],
)
def test_spellings_of_other_tools_are_recognized_not_read(name, expected):
    values = {"run_cap": 50, "parameters": {name: {"min": 1, "max": 2}, "l2": {"values": [0, 1e-4]}}}
    assert only_problem(values) == f"spec: parameters.{name}: {expected}"


# -- conditions and layers


@pytest.mark.parametrize(
    ("when", "problem"),
    [
        (
            {"batchnorm": "nne"},
            'batchnorm is one of none, before_activation, found "nne"; did you mean "none"?',
        ),
        (
            {"batchnorm": ["none", "after_activation"]},
            "batchnorm is one of none, before_activation, "
            'found "after_activation"; did you mean "before_activation"?',
        ),
        (
            {"batchnrm": "none"},
            "expected another searched parameter, one of dropout, l1, l2, batchnorm, hidden, "
            'batch_size, fused, patience; did you mean "batchnorm"?',
        ),
        ({"activation": "relu"}, "has one value only; expected another searched parameter"),
        (
            {"dropout": 0.2},
            "dropout is continuous, no single value of it recurs; expected a parameter with values or q",
        ),
        ({"l1": 0.2}, "l1 is continuous, no single value of it recurs; expected 0 (off)"),
        ({"batch_size": 12}, "batch_size goes from 8 to 32 by 8, found 12"),
        ({"batch_size": "8"}, 'batch_size goes from 8 to 32 by 8, found "8"'),
        ({"hidden": "32"}, 'hidden is one of 64-32, 16-8, found "32"'),
        ({"batchnorm.1": "none"}, "batchnorm is not per layer; expected batchnorm"),
        ({"patience": 0}, None),
        ({"l1": 0}, None),
        ({"hidden": "16-8"}, None),
        ({"batch_size": [8, 16]}, None),
        ({"fused": True, "batchnorm": "none"}, None),
    ],
)
def test_a_condition_names_a_value_that_another_searched_parameter_can_have(when, problem):
    values = {
        "run_cap": 50,
        "parameters": {
            "batchnorm": {"values": ["none", "before_activation"]},
            "activation": {"value": "relu"},
            "dropout": {"min": 0, "max": 0.5},
            "l1": {"min": 0, "max": 0.5, "optional": True},
            "batch_size": {"min": 8, "max": 32, "q": 8},
            "hidden": {"values": [[64, 32], [16, 8]]},
            "fused": {"values": [True, False]},
            "patience": {"min": 1, "max": 4, "optional": True},
            "l2": {"min": 0, "max": 0.5, "when": when},
        },
    }
    if problem is None:
        assert SweepSpec.from_dict(values).searched["l2"].when
    else:
        assert only_problem(values) == f"spec: parameters.l2.when.{next(iter(when))}: {problem}"


def test_conditions_in_a_circle_are_refused():
    values = {"values": [0, 0.1]}
    found = problems_of(
        {
            "run_cap": 50,
            "parameters": {
                "dropout": {**values, "when": {"l1": 0}},
                "l1": {**values, "when": {"dropout": 0}},
            },
        }
    )
    assert found == [
        "spec: parameters.dropout.when: a circle: dropout needs l1 needs dropout; expected one that needs none"
    ]
    itself = problems_of({"run_cap": 50, "parameters": {"dropout": {**values, "when": {"dropout": 0}}}})
    assert itself == [
        "spec: parameters.dropout.when: a circle: dropout needs dropout; expected one that needs none"
    ]


def test_a_condition_on_a_per_layer_parameter_names_the_layer_or_is_per_layer_itself():
    norm = {"values": ["none", "after_activation"], "per_layer": True}
    rate = {"values": [0.1, 0.2]}

    def parameters(**dropout: Any) -> dict[str, Any]:
        return {"run_cap": 50, "parameters": {"batchnorm": norm, "dropout": {**rate, **dropout}}}

    assert only_problem(parameters(when={"batchnorm": "none"})) == (
        "spec: parameters.dropout.when.batchnorm: batchnorm is per layer; expected batchnorm.1 to batchnorm.2"
    )
    assert only_problem(parameters(when={"batchnorm.3": "none"})) == (
        "spec: parameters.dropout.when.batchnorm.3: expected batchnorm.1 to batchnorm.2"
    )
    assert SweepSpec.from_dict(parameters(when={"batchnorm.2": "none"}))
    assert SweepSpec.from_dict(parameters(when={"batchnorm": "none"}, per_layer=True))


def test_per_layer_needs_one_number_of_layers():
    rate = {"min": 0, "max": 0.5, "per_layer": True}
    hidden = {"values": [[64], [64, 32]]}
    assert only_problem({"run_cap": 50, "parameters": {"dropout": rate, "hidden": hidden}}) == (
        "spec: parameters.dropout.per_layer: expected one number of hidden layers, found 1 or 2; "
        "drop per_layer, or search hidden of one depth"
    )
    assert only_problem(
        {"run_cap": 50, "parameters": {"l1": {"value": [0, 0, 0]}, "dropout": {"values": [0, 0.1]}}}
    ) == ("spec: parameters.l1.value: expected one value, or 2 (one a hidden layer), found 3")


def test_what_early_stopping_has_is_not_searched_without_early_stopping():
    assert only_problem(
        {"run_cap": 50, "early_stopping": None, "parameters": {"patience": {"values": [1, 2]}}}
    ) == (
        "spec: parameters.patience: early_stopping is null, so this would never act; give early_stopping, or remove it"
    )


# -- methods


@pytest.mark.parametrize("method", ["cmaes", "qmc", "gp"])
@pytest.mark.parametrize("key", ["optional", "when"])
def test_methods_that_need_one_fixed_space_refuse_what_is_conditional(method, key):
    rate = {"min": 0.0, "max": 0.5, key: True if key == "optional" else {"l2": 0}}
    found = only_problem(
        {"run_cap": 50, "method": method, "parameters": {"dropout": rate, "l2": {"values": [0, 0.1]}}}
    )
    assert found.startswith(f"spec: parameters.dropout.{key}: method {method} ")
    assert found.endswith("use tpe or random")


def test_a_grid_refuses_what_is_continuous():
    found = problems_of(
        {
            "run_cap": 50,
            "method": "grid",
            "parameters": {
                "dropout": {"min": 0, "max": 0.5},
                "l1": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1},
                "batch_size": {"min": 1, "max": 4},
            },
        }
    )
    text = "continuous, and method grid needs single values; give values or q, or use tpe or random"
    assert found == [f"spec: parameters.dropout: {text}", f"spec: parameters.l1: {text}"]


def test_cmaes_refuses_a_space_without_numbers_and_warns_of_lists_among_them():
    lists = {"batchnorm": {"values": ["none", "after_activation"]}}
    assert only_problem({"run_cap": 50, "method": "cmaes", "parameters": lists}) == (
        "spec: method: cmaes searches numbers, and every parameter here is a list of values; use tpe or random, or grid"
    )
    mixed = spec_of({**lists, "dropout": {"min": 0, "max": 0.5}}, method="cmaes")
    assert mixed.warnings == (
        "method: cmaes searches numbers only and draws batchnorm at random; use tpe or random",
    )


def test_gp_without_torch_is_refused_with_the_line_that_installs_it(write, monkeypatch):
    monkeypatch.setattr("regtune.config.sweepfile.reading.find_spec", lambda name: None)
    path = write("method: gp\n" + GOOD)
    assert only_problem(path) == (
        'sweep.yaml:1: method: gp needs torch, which is not installed; try: pip install "regtune[gp]"'
    )


def test_a_stored_gp_study_can_be_read_without_torch(monkeypatch):
    monkeypatch.setattr("regtune.config.sweepfile.reading.find_spec", lambda name: None)
    assert spec_of({"dropout": {"min": 0, "max": 0.5}}, method="gp").method == "gp"


# -- --set


def test_values_can_be_set_from_the_command_line(write):
    path = write("name: x\nearly_stopping: {patience: 2}\n" + GOOD)
    spec = SweepSpec.load(
        path,
        [
            "training.max_epochs=2",
            "run_cap=4",
            "parameters.dropout.max=0.3",
            "early_stopping=null",
            "parameters.l1={values: [0, 1e-4]}",
            "dataset=mnist-5k",
        ],
    )
    assert (spec.training.max_epochs, spec.run_cap, spec.early_stopping, spec.dataset) == (
        2,
        4,
        None,
        "mnist-5k",
    )
    assert spec.parameters["dropout"] == Range(distribution="uniform", min=0.0, max=0.3)
    assert spec.parameters["l1"] == Categorical(values=(0.0, 1e-4))


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("run_cap=abc", '--set run_cap=abc: run_cap: expected a whole number, found "abc"'),
        ("run_cap=", "--set run_cap=: run_cap: missing; expected a budget"),
        ("run_cap", "--set run_cap: expected key=value, for example training.max_epochs=5"),
        ("=3", "--set =3: expected key=value, for example training.max_epochs=5"),
        ("training..x=3", "--set training..x=3: expected key=value"),
        (
            "parameters.dropout.max=2",
            "--set parameters.dropout.max=2: parameters.dropout.max: expected at most 0.95, found 2",
        ),
        ("run_cap.x=2", "--set run_cap.x=2: run_cap.x: run_cap is not a group of keys"),
        (
            "training.epochs=2",
            '--set training.epochs=2: training.epochs: unknown key; did you mean "max_epochs"?',
        ),
        ("seed={a", "--set seed={a: seed: not YAML: "),
        ("seed=.nan", "--set seed=.nan: seed: expected a finite number, found .nan"),
    ],
)
def test_a_wrong_value_from_the_command_line_is_reported_as_such(write, override, problem):
    assert only_problem(write(GOOD), override).startswith(problem)


def test_a_value_from_the_command_line_mends_what_the_file_has_wrong(write):
    assert SweepSpec.load(write(GOOD.replace("20", "twenty")), ["run_cap=20"]).run_cap == 20


# -- warnings


@pytest.mark.parametrize(
    ("keys", "parameters", "warning"),
    [
        (
            {"metric": {"name": "val_loss"}},
            {"l1": {"values": [0, 0.1]}, "l2": {"values": [0, 0.1]}},
            "metric.name: val_loss contains the penalty of l1 and l2, which is searched, so it cannot compare "
            "strengths; use val_cross_entropy",
        ),
        (
            {"early_stopping": {"monitor": "val_loss"}},
            {"l2": {"values": [0, 0.1]}},
            "early_stopping.monitor: val_loss contains the penalty of l2, which is searched, so it cannot compare "
            "strengths; use val_cross_entropy",
        ),
        (
            {},
            {"weight_decay": {"min": 0, "max": 0.1}},
            "parameters.weight_decay: acts under optimizer adamw only, which no trial uses",
        ),
        (
            {"training": {"optimizer": "adamw"}},
            {"momentum": {"min": 0, "max": 0.9}},
            "parameters.momentum: acts under optimizer sgd only, which no trial uses",
        ),
        (
            {"method": "cmaes", "early_terminate": {"type": "median"}},
            {"dropout": {"min": 0, "max": 0.5}},
            "early_terminate: cmaes learns from complete trials only, not from pruned ones; use tpe",
        ),
        (
            {"run_cap": 7},
            {"dropout": {"min": 0, "max": 0.5}},
            "run_cap: 7 leaves nothing for the search, because 7 controls run first; raise it above 7, or set "
            "controls: false",
        ),
        (
            {"run_cap": 37, "early_terminate": {"type": "hyperband", "min_iter": 2, "eta": 3}},
            {"dropout": {"min": 0, "max": 0.5}},
            "early_terminate: hyperband has 3 brackets for 30 trials; expected more than 10 a bracket: run_cap above "
            "37, a larger min_iter, or type: median",
        ),
        (
            {"early_terminate": {"type": "median", "min_iter": 30}},
            {"dropout": {"min": 0, "max": 0.5}},
            "early_terminate: the first check is at epoch 30 of at most 30, so nothing is ended early",
        ),
        (
            {"early_terminate": {"type": "successive_halving", "max_iter": 81, "s": 2}},
            {"dropout": {"min": 0, "max": 0.5}},
            "early_terminate.max_iter: 81 is more than the 30 epochs of a trial",
        ),
    ],
)
def test_what_is_legal_and_hardly_meant_is_warned_of(keys, parameters, warning):
    assert spec_of(parameters, **keys).warnings == (warning,)


@pytest.mark.parametrize(
    ("keys", "parameters"),
    [
        ({"metric": {"name": "val_loss"}}, {"dropout": {"values": [0, 0.1]}}),
        ({"training": {"optimizer": "adamw"}}, {"weight_decay": {"min": 0, "max": 0.1}}),
        ({}, {"weight_decay": {"min": 0, "max": 0.1}, "optimizer": {"values": ["adam", "adamw"]}}),
        ({"run_cap": 8}, {"dropout": {"min": 0, "max": 0.5}}),
        ({"run_cap": 1, "controls": False}, {"dropout": {"min": 0, "max": 0.5}}),
        (
            {"run_cap": 38, "early_terminate": {"type": "hyperband", "min_iter": 2}},
            {"dropout": {"min": 0, "max": 0.5}},
        ),
        (
            {"method": "qmc"},
            {"dropout": {"min": 0, "max": 0.5}, "batchnorm": {"values": ["none", "after_activation"]}},
        ),
    ],
)
def test_what_is_fine_is_not_warned_of(keys, parameters):
    assert spec_of(parameters, **keys).warnings == ()


@given(specs())
def test_the_number_of_controls_that_warnings_speak_of_is_the_number_that_run(spec):
    assert control_count(spec) == len(controls(spec, DataConfig()))
    without = SweepSpec.from_dict(
        {**spec.to_dict(), "early_stopping": None, "parameters": {"dropout": {"values": [0, 0.1]}}}
    )
    assert control_count(without) == len(controls(without, DataConfig()))


# -- a study that goes on


def test_what_may_be_raised_is_no_part_of_the_identity(write):
    one = SweepSpec.load(write(GOOD))
    other = SweepSpec.load(
        write(GOOD),
        [
            "run_cap=99",
            "timeout=3600",
            "description=more",
            "keep_models=1",
            "max_failures=9",
            "trial_timeout=60",
            "trial_memory_mb=900",
        ],
    )
    assert one.identity() == other.identity()
    assert other.differences(one.identity()) == []
    assert one.digest != other.digest
    assert set(one.to_dict()) - set(one.identity()) == set(BUDGET_KEYS)


def test_differences_say_what_was_and_what_is(write):
    one = SweepSpec.load(write(GOOD))
    other = SweepSpec.load(
        write(GOOD),
        [
            "method=random",
            "parameters.dropout.max=0.5",
            "parameters.l2={values: [0, 1e-4]}",
            "early_stopping=null",
        ],
    )
    stopping = '{"monitor": "val_cross_entropy", "patience": 4, "min_delta": 0.0}'
    assert other.differences(one.identity()) == [
        "method: tpe → random",
        f"early_stopping: {stopping} → nothing",
        "parameters.dropout.max: 0.6 → 0.5",
        'parameters.l2: nothing → {"values": [0.0, 0.0001]}',
    ]


# -- whatever it says


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["none", "uniform", "val_loss", "hyperband", "dropout", 10**400, -(10**30), "l1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["value", "values", "distribution", "min", "max", "q", "optional", "per_layer", "when", "mu"]
)


@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(st.sampled_from([*SweepSpec.model_fields, "program", "metrics"]), JSON, max_size=4),
    st.dictionaries(
        st.sampled_from(sorted(TARGETS)), st.dictionaries(KEYS, JSON, max_size=4) | JSON, max_size=3
    ),
)
def test_nothing_that_can_be_written_does_more_than_be_refused_or_read(keys, parameters):
    try:
        spec = SweepSpec.from_dict({"run_cap": 9, "parameters": parameters, **keys})
    except SpecError as error:
        problems = error.problems
    else:
        assert SweepSpec.from_dict(spec.to_dict()) == spec
        problems = tuple(f"spec: {warning}" for warning in spec.warnings) or ("spec: fine",)
    assert problems
    assert all(line.startswith("spec: ") and "\n" not in line for line in problems)
    assert len(set(problems)) == len(problems)


@pytest.mark.parametrize(
    "module", ["regtune.config.trial", "regtune.config.sweepfile.specification", "regtune.search.space"]
)
def test_the_examples_of_the_docstrings_are_true(module):
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted > 0
    assert found.failed == 0
