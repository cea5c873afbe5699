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
from corpus import GOOD, beside
from corpus.mistakes import MISTAKES, Mistake
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from specs import spec_of, specs

import regtune
from regtune.config.sweepfile import SweepSpec
from regtune.config.sweepfile.checks import control_count
from regtune.config.sweepfile.parameters import Categorical, Constant, Range
from regtune.config.sweepfile.specification import BUDGET_KEYS
from regtune.config.sweepfile.targets import TARGETS
from regtune.config.trial import (
    DataConfig,
    EarlyStoppingConfig,
    ModelConfig,
    RegularizationConfig,
    TrainingConfig,
)
from regtune.errors import SpecError
from regtune.search import controls

SWITCH = {"l2": {"values": [0, 0.1]}}
RATE = {"dropout": {"min": 0, "max": 0.5}}
NORM = ("none", "after_activation")
Q: dict[str, Any] = {"distribution": "q_uniform"}


def load(text: str, *overrides: str, name: str = "sweep.yaml") -> SweepSpec:
    Path(name).write_text(text, encoding="utf-8")
    return SweepSpec.load(name, overrides)


def problems_of(text: str, *overrides: str) -> list[str]:
    with pytest.raises(SpecError) as refused:
        load(text, *overrides)
    return list(refused.value.problems)


# -- what is read


def test_a_file_without_name_and_dataset_takes_its_stem_and_mnist():
    spec = load(GOOD, name="my-sweep.yaml")
    assert (spec.name, spec.dataset, spec.method, spec.seed) == ("my-sweep", "mnist", "tpe", 42)
    assert SweepSpec.load("my-sweep.yaml", name="given").name == "given"
    assert load("name: 2024\n" + GOOD).name == "2024"


def test_defaults_are_those_of_the_configuration():
    spec, data = load(GOOD), DataConfig()
    assert (spec.model, spec.training) == (ModelConfig(), TrainingConfig())
    assert spec.early_stopping == EarlyStoppingConfig()
    assert (spec.split.validation, spec.split.seed) == (data.validation, data.split_seed)


def test_every_key_of_a_configuration_can_be_searched():
    blocks = (RegularizationConfig, ModelConfig, TrainingConfig, EarlyStoppingConfig)
    assert set(TARGETS) == {name for block in blocks for name in block.model_fields}


@pytest.mark.parametrize(
    ("name", "given", "read"),
    [
        ("dropout", {"min": 0, "max": 0.5}, Range(distribution="uniform", min=0.0, max=0.5)),
        ("dropout", {"min": 0, "max": 0.5, "q": 0.1}, Range(**Q, min=0.0, max=0.5, q=0.1)),
        ("batch_size", {"min": 16, "max": 64}, Range(distribution="int_uniform", min=16, max=64)),
        ("batch_size", {"min": 16.0, "max": 64, "q": 8}, Range(**Q, min=16, max=64, q=8)),
        ("dropout", {"value": 0}, Constant(value=0.0)),
        ("dropout", {"value": [0.1, 0.2]}, Constant(value=(0.1, 0.2))),
        ("dropout", {"values": [0.3]}, Constant(value=0.3)),
        ("hidden", {"value": [32, 16]}, Constant(value=(32, 16))),
        ("hidden", {"values": [[32, 16], [8]]}, Categorical(values=((32, 16), (8,)))),
        ("fused", {"values": [True, False]}, Categorical(values=(True, False))),
        ("max_epochs", {"values": [5, 10], "distribution": "categorical"}, Categorical(values=(5, 10))),
        ("batchnorm", {"values": list(NORM)}, Categorical(values=NORM)),
        ("l1", {"values": [1], "optional": True}, Categorical(values=(1.0,), optional=True)),
        ("l1", {"values": [1, 2], "when": {"l2": 0}}, Categorical(values=(1.0, 2.0), when={"l2": (0,)})),
    ],
)
def test_a_parameter_is_read_in_the_type_of_its_key(name, given, read):
    found = spec_of({name: given, **SWITCH}).parameters[name]
    assert found == read
    assert type(getattr(found, "min", 0)) is type(getattr(read, "min", 0))


@settings(max_examples=60)
@given(specs())
def test_a_spec_comes_back_from_its_canonical_form_and_from_yaml(spec):
    again = SweepSpec.from_dict(spec.to_dict())
    assert (again, again.digest, again.to_dict()) == (spec, spec.digest, spec.to_dict())
    assert load(yaml.safe_dump(spec.to_dict())) == spec


def test_the_order_of_keys_in_the_file_changes_nothing():
    one = load("parameters: {l1: {values: [0, 1e-5]}, dropout: {min: 0, max: 0.5}}\nrun_cap: 5\nseed: 1")
    other = load("seed: 1\nrun_cap: 5\nparameters: {dropout: {max: 0.5, min: 0}, l1: {values: [0, 1e-5]}}")
    assert one.digest == other.digest
    assert list(one.parameters) == ["dropout", "l1"]


def test_a_spec_means_the_same_in_another_process_that_imports_neither_optuna_nor_tensorflow_nor_mlflow():
    digest = load(GOOD).digest
    code = (
        "import sys; from regtune.config.sweepfile import SweepSpec; "
        f"print(SweepSpec.load({str(Path('sweep.yaml').resolve())!r}).digest); "
        "print([name for name in ('optuna', 'tensorflow', 'keras', 'mlflow', 'numpy', 'torch') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        cwd=Path(regtune.__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split("\n") == [digest, "[]", ""]


def test_a_spec_cannot_be_changed_and_cannot_be_made_wrong():
    with pytest.raises(ValidationError):
        load(GOOD).run_cap = 5
    with pytest.raises(ValidationError, match="nothing is searched"):
        SweepSpec(run_cap=5)


# -- mistakes


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_a_mistake_is_one_line_that_says_where_it_is_what_was_expected_and_what_was_found(mistake: Mistake):
    assert problems_of(mistake.text) == [f"sweep.yaml:{problem}" for problem in mistake.problems]


def test_every_mistake_is_reported_at_once_in_the_order_of_the_file():
    text = """\
nme: x
metric: {name: val_acc, goal: minimise}
run_cap: abc
training: {batch_size: 3.5, clipnorm: 1, dropout: 0.2}
seed: 1
seed: 2
parameters:
  drop_out: {min: 0, max: 0.6}
  dropout: {min: 0, max: 1.5}
  batch_size: {min: 0, max: .inf}
  l1: {values: [0, 1], when: {dropout: 1}}
  max_epochs: {values: [1, 5], when: {patience: 3}}
  min_delta: {min: 0, max: !!int five}
"""
    assert [problem.split(": ")[:2] for problem in problems_of(text)] == [
        ["sweep.yaml:1", "nme"],
        ["sweep.yaml:2", "metric.name"],
        ["sweep.yaml:2", "metric.goal"],
        ["sweep.yaml:3", "run_cap"],
        ["sweep.yaml:4", "training.batch_size"],
        ["sweep.yaml:4", "training.clipnorm"],
        ["sweep.yaml:4", "training.dropout"],
        ["sweep.yaml:6", "seed"],
        ["sweep.yaml:8", "parameters.drop_out"],
        ["sweep.yaml:9", "parameters.dropout.max"],
        ["sweep.yaml:10", "parameters.batch_size.max"],
        ["sweep.yaml:10", "parameters.batch_size.min"],
        ["sweep.yaml:12", "parameters.max_epochs.when.patience"],
        ["sweep.yaml:13", "parameters.min_delta.max"],
    ]


@pytest.mark.parametrize(
    "when",
    [
        {"patience": 0},
        {"l1": 0},
        {"hidden": "16-8"},
        {"batch_size": [8, 16]},
        {"fused": True, "batchnorm": "none"},
    ],
)
def test_a_condition_names_a_value_that_another_searched_parameter_can_have(when):
    others = {
        "batchnorm": {"values": ["none", "before_activation"]},
        "l1": {"min": 0, "max": 0.5, "optional": True},
        "batch_size": {"min": 8, "max": 32, "q": 8},
        "hidden": {"values": [[64, 32], [16, 8]]},
        "fused": {"values": [True, False]},
        "patience": {"min": 1, "max": 4, "optional": True},
    }
    spec = spec_of({**others, "l2": {"min": 0, "max": 0.5, "when": when}})
    assert set(spec.searched["l2"].when) == set(when)


def test_a_condition_on_a_per_layer_parameter_names_the_layer_or_is_per_layer_itself():
    norm = {"values": ["none", "after_activation"], "per_layer": True}
    for more in ({"when": {"batchnorm.2": "none"}}, {"when": {"batchnorm": "none"}, "per_layer": True}):
        assert spec_of({"batchnorm": norm, "dropout": {"values": [0.1, 0.2], **more}})


def test_gp_without_torch_is_refused_where_it_would_run_and_read_elsewhere(monkeypatch):
    monkeypatch.setattr("regtune.config.sweepfile.specification.find_spec", lambda name: None)
    assert problems_of(beside("method: gp")) == [
        'sweep.yaml:1: method: gp needs torch, which is not installed; try: pip install "regtune[gp]"'
    ]
    assert spec_of(RATE, method="gp").method == "gp"


# -- --set


def test_values_can_be_set_from_the_command_line():
    spec = load(
        "early_stopping: {patience: 2}\n" + GOOD,
        *("training.max_epochs=2", "run_cap=4", "parameters.l2.values=[0, 0.3]", "early_stopping=null"),
        *("parameters.l1={values: [0, 1e-4]}", "dataset=mnist-5k"),
    )
    assert (spec.training.max_epochs, spec.run_cap, spec.dataset) == (2, 4, "mnist-5k")
    assert spec.early_stopping is None
    assert spec.parameters == {"l1": Categorical(values=(0.0, 1e-4)), "l2": Categorical(values=(0.0, 0.3))}
    assert load(GOOD.replace("20", "twenty"), "run_cap=20").run_cap == 20


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("run_cap=abc", 'run_cap: expected a whole number, found "abc"'),
        ("run_cap=", "run_cap: missing; expected a budget"),
        ("run_cap", "expected key=value, for example training.max_epochs=5"),
        ("=3", "expected key=value, for example training.max_epochs=5"),
        ("training..x=3", "expected key=value"),
        ("run_cap.x=2", "run_cap.x: run_cap is not a group of keys"),
        ("training.epochs=2", 'training.epochs: unknown key; did you mean "max_epochs"?'),
        ("seed={a", "seed: not YAML: "),
        ("seed=.nan", "seed: expected a finite number, found .nan"),
    ],
)
def test_a_wrong_value_from_the_command_line_is_reported_as_such(override, problem):
    found = problems_of(GOOD, override)
    assert len(found) == 1
    assert found[0].startswith(f"--set {override}: {problem}")


# -- warnings


@pytest.mark.parametrize(
    ("keys", "parameters", "warning"),
    [
        (
            {"metric": {"name": "val_loss"}},
            {"l1": {"values": [0, 0.1]}, **SWITCH},
            "metric.name: val_loss contains the penalty of l1 and l2, which is searched, so it cannot compare "
            "strengths; use val_cross_entropy",
        ),
        (
            {"early_stopping": {"monitor": "val_loss"}},
            SWITCH,
            "early_stopping.monitor: val_loss contains the penalty of l2, which is searched, so it cannot compare "
            "strengths; use val_cross_entropy",
        ),
        (
            {"training": {"optimizer": "adamw"}},
            {"momentum": {"min": 0, "max": 0.9}},
            "parameters.momentum: acts under optimizer sgd only, which no trial uses",
        ),
        (
            {"method": "cmaes", "early_terminate": {"type": "median"}},
            RATE,
            "early_terminate: cmaes learns from complete trials only, not from pruned ones; use tpe",
        ),
        (
            {"method": "cmaes"},
            {"batchnorm": {"values": list(NORM)}, **RATE},
            "method: cmaes searches numbers only and draws batchnorm at random; use tpe or random",
        ),
        (
            {"run_cap": 7},
            RATE,
            "run_cap: 7 leaves nothing for the search, because 7 controls run first; raise it above 7, or set "
            "controls: false",
        ),
        (
            {"run_cap": 37, "early_terminate": {"type": "hyperband", "min_iter": 2, "eta": 3}},
            RATE,
            "early_terminate: hyperband has 3 brackets for 30 trials; expected more than 10 a bracket: run_cap above "
            "37, a larger min_iter, or type: median",
        ),
        (
            {"early_terminate": {"type": "median", "min_iter": 30}},
            RATE,
            "early_terminate: the first check is at epoch 30 of at most 30, so nothing is ended early",
        ),
        (
            {"early_terminate": {"type": "successive_halving", "max_iter": 81, "s": 2}},
            RATE,
            "early_terminate.max_iter: 81 is more than the 30 epochs of a trial",
        ),
        ({"metric": {"name": "val_loss"}}, RATE, None),
        ({}, {"weight_decay": {"min": 0, "max": 0.1}, "optimizer": {"values": ["adam", "adamw"]}}, None),
        ({"run_cap": 8}, RATE, None),
        ({"run_cap": 1, "controls": False}, RATE, None),
        ({"run_cap": 38, "early_terminate": {"type": "hyperband", "min_iter": 2}}, RATE, None),
        ({"method": "qmc"}, {"batchnorm": {"values": ["none", "after_activation"]}, **RATE}, None),
    ],
)
def test_what_is_legal_and_hardly_meant_is_warned_of(keys, parameters, warning):
    assert spec_of(parameters, **keys).warnings == ((warning,) if warning else ())


def test_the_number_of_controls_that_warnings_speak_of_is_the_number_that_run():
    for spec in (spec_of(RATE, early_stopping=stopping) for stopping in ({"patience": 3}, None)):
        assert control_count(spec) == len(controls(spec, DataConfig()))


# -- a study that is resumed


def test_what_may_be_raised_is_no_part_of_the_identity():
    one = load(GOOD)
    other = load(
        GOOD,
        *("run_cap=99", "timeout=3600", "description=more", "keep_models=1", "max_failures=9"),
        *("trial_timeout=60", "trial_memory_mb=900"),
    )
    assert one.identity() == other.identity()
    assert other.differences(one.identity()) == []
    assert one.digest != other.digest
    assert set(one.to_dict()) - set(one.identity()) == set(BUDGET_KEYS)


def test_differences_say_what_was_and_what_is():
    searched = ("parameters.l2.values=[0, 0.2]", "parameters.l1={value: 1}")
    changes = ("method=random", *searched, "early_stopping=null")
    stopping = '{"monitor": "val_cross_entropy", "patience": 4, "min_delta": 0.0}'
    assert load(GOOD, *changes).differences(load(GOOD).identity()) == [
        "method: tpe → random",
        f"early_stopping: {stopping} → nothing",
        "parameters.l2.values: [0.0, 0.1] → [0.0, 0.2]",
        'parameters.l1: nothing → {"value": 1.0}',
    ]


BEGUN = """\
name: fixed
method: bayes
run_cap: 20
model: {hidden: [32, 16]}
parameters:
  dropout: {min: 0, max: 0.6, per_layer: true}
  l1: {distribution: log_uniform, min: -9, max: -3, optional: true}
  l2: {distribution: inv_log_uniform_values, min: 1e-7, max: 1e-3, when: {batchnorm: none}}
  batchnorm: {values: [none, before_activation]}
  batch_size: {min: 16, max: 64.0, q: 16}
  max_epochs: {values: [10]}
early_terminate: {type: hyperband, eta: 3.0, strict: true}
"""


def test_a_file_means_what_it_meant_when_studies_were_begun_with_it():
    assert load(BEGUN).digest == "16d96af5de98a17398ac498e08eb52028d9a3480ca95164f90ae72b222425209"


# -- whatever it says


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    SCALARS
    | st.sampled_from(["none", "uniform", "val_loss", "hyperband", "dropout", 10**400, -(10**30), "l1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["value", "values", "distribution", "min", "max", "q", "optional", "per_layer", "when", "mu"]
)


@settings(max_examples=200)
@given(
    st.dictionaries(st.sampled_from([*SweepSpec.model_fields, "program", "metrics"]), JSON, max_size=4),
    st.dictionaries(
        st.sampled_from(sorted(TARGETS)), st.dictionaries(KEYS, JSON, max_size=4) | JSON, max_size=3
    ),
)
def test_nothing_that_can_be_written_does_more_than_be_refused_or_read(keys: dict[str, Any], parameters: Any):
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
