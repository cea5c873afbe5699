"""The sweep file: what is read, what is refused and in which words, what is warned of, and what an editor knows."""

from __future__ import annotations

import doctest
import hashlib
import importlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import optuna
import pytest
import yaml
from corpus import GOOD, beside
from hypothesis import given, settings
from specs import SWEEPS, spec_of, specs

from regtune.config.source import parse, read
from regtune.config.sweepfile import SweepSpec
from regtune.config.sweepfile.checks import control_names
from regtune.config.sweepfile.groups import PrunerSpec
from regtune.config.sweepfile.parameters import Categorical, Constant, Range
from regtune.config.sweepfile.specification import BUDGET_KEYS, IGNORED, json_schema
from regtune.config.trial import DataConfig
from regtune.errors import SpecError
from regtune.search import Space, controls

SWITCH = {"l2": {"values": [0, 0.1]}}
RATE = {"dropout": {"min": 0, "max": 0.5}}
NORM = ("none", "after_activation")
Q: dict[str, Any] = {"distribution": "q_uniform"}
LOG: dict[str, Any] = {"distribution": "log_uniform_values"}
Q_LOG: dict[str, Any] = {"distribution": "q_log_uniform_values"}
SCHEMA = jsonschema.Draft202012Validator(json_schema())


class Mistake(NamedTuple):
    """A sweep file, its problems without the name of the file, and whether only several keys together have them."""

    text: str
    problems: list[str]
    together: bool

    def __str__(self) -> str:
        return self.problems[0][:60]


def mistakes() -> list[Mistake]:
    """The mistakes in `mistakes.txt`: lines of a sweep file, and below them each line of the refusal.

    The lines stand in a good file, in place of those of the same key.
    """
    found: list[Mistake] = []
    lines: list[str] = []
    together = False
    for line in (Path(__file__).parent / "corpus/mistakes.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            together = "together" in line
        elif not line.startswith("    "):
            lines.append(line)
        elif lines:
            found.append(Mistake(beside(*lines), [line.strip()], together))
            lines = []
        else:
            found[-1].problems.append(line.strip())
    return found


MISTAKES = mistakes()


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
    assert (spec.split.validation, spec.split.seed) == (DataConfig().validation, DataConfig().split_seed)
    assert SweepSpec.load("my-sweep.yaml", name="given").name == "given"
    assert load("name: 2024\n" + GOOD).name == "2024"


@pytest.mark.parametrize(
    ("name", "given", "read"),
    [
        ("dropout", {"min": 0, "max": 0.5}, Range(distribution="uniform", min=0.0, max=0.5)),
        ("dropout", {"min": 0, "max": 0.5, "q": 0.1}, Range(**Q, min=0.0, max=0.5, q=0.1)),
        ("batch_size", {"min": 16, "max": 64}, Range(distribution="int_uniform", min=16, max=64)),
        ("batch_size", {"min": 16.0, "max": 64, "q": 8}, Range(**Q, min=16, max=64, q=8)),
        ("batch_size", {**LOG, "min": 16, "max": 256}, Range(**Q_LOG, min=16, max=256, q=1)),
        ("dropout", {"value": 0}, Constant(value=0.0)),
        ("dropout", {"value": [0.1, 0.2]}, Constant(value=(0.1, 0.2))),
        ("dropout", {"values": [0.3]}, Constant(value=0.3)),
        ("hidden", {"values": [[32, 16], [8]]}, Categorical(values=((32, 16), (8,)))),
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
def test_a_spec_comes_back_from_its_canonical_form_and_from_yaml_and_an_editor_takes_it(spec):
    again = SweepSpec.from_dict(spec.to_dict())
    assert (again, again.digest, again.to_dict()) == (spec, spec.digest, spec.to_dict())
    assert load(yaml.safe_dump(spec.to_dict())) == spec
    SCHEMA.validate(spec.to_dict())


def test_the_order_of_keys_in_the_file_changes_nothing():
    one = load("parameters: {l1: {values: [0, 1e-5]}, dropout: {min: 0, max: 0.5}}\nrun_cap: 5\nseed: 1")
    other = load("seed: 1\nrun_cap: 5\nparameters: {dropout: {max: 0.5, min: 0}, l1: {values: [0, 1e-5]}}")
    assert one.digest == other.digest
    assert list(one.parameters) == ["dropout", "l1"]


WANDB = """\
program: train.py
project: mnist
entity: someone
command: ["${env}", python, "${program}", "${args}"]
description: the classic
method: bayes
metric: {name: val_loss, goal: minimize, target: 0.05}
parameters:
  learning_rate: {distribution: log_uniform_values, min: 1e-4, max: 1e-1}
  batch_size: {distribution: q_log_uniform_values, q: 8, min: 32, max: 256}
  dropout: {values: [0.3, 0.4, 0.5]}
  optimizer: {values: ["adam", "sgd"]}
  max_epochs: {value: 10}
early_terminate: {type: hyperband, min_iter: 3, eta: 3.0, strict: true}
run_cap: 50
"""


def test_a_sweep_yaml_of_wandb_reads_as_it_is_and_an_editor_takes_it():
    spec = load(WANDB)
    assert (spec.name, spec.dataset, spec.method, spec.run_cap) == ("sweep", "mnist", "tpe", 50)
    assert spec.parameters["learning_rate"] == Range(**LOG, min=1e-4, max=0.1)
    assert spec.parameters["batch_size"] == Range(**Q_LOG, min=32, max=256, q=8)
    assert spec.fixed("max_epochs") == 10
    assert spec.early_terminate == PrunerSpec(type="hyperband", min_iter=3, eta=3)
    assert spec.warnings == (
        "ignored: program, command, project, entity, metric.target, early_terminate.strict (regtune does not use them)",
    )
    SCHEMA.validate(parse(WANDB, "x").values)


def test_without_a_goal_an_accuracy_is_maximized():
    for name, goal in (("val_accuracy", "maximize"), ("val_loss", "minimize")):
        assert spec_of(RATE, metric={"name": name}).metric.goal == goal


def test_a_decision_takes_at_most_a_third_of_the_search_s_epochs_or_the_share_that_the_file_names():
    shares = {True: 1 / 3, False: 0.0, 0.5: 0.5, 2: 2.0}
    assert {given: spec_of(RATE, decide=given).decision_share for given in shares} == shares
    assert spec_of(RATE).decide is True


# -- mistakes


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_a_mistake_is_one_line_that_says_where_it_is_what_was_expected_and_what_was_found(mistake: Mistake):
    assert problems_of(mistake.text) == [f"sweep.yaml:{problem}" for problem in mistake.problems]
    assert mistake.together or not SCHEMA.is_valid(parse(mistake.text, "sweep.yaml").values)


def test_every_mistake_is_reported_at_once_in_the_order_of_the_file():
    text = """\
nme: x
metric: {name: val_acc, goal: minimise}
run_cap: abc
training: {batch_size: 3.5, clipnorm: 1}
seed: 1
seed: 2
parameters:
  drop_out: {min: 0, max: 0.6}
  dropout: {min: 0, max: 1.5}
  batch_size: {min: 0, max: .inf}
  l1: {values: [0, 1], when: {dropout: 1}}
  max_epochs: {values: [1, 5], when: {patience: 3}}
"""
    assert [problem.split(": ")[:2] for problem in problems_of(text)] == [
        ["sweep.yaml:1", "nme"],
        ["sweep.yaml:2", "metric.name"],
        ["sweep.yaml:2", "metric.goal"],
        ["sweep.yaml:3", "run_cap"],
        ["sweep.yaml:4", "training.batch_size"],
        ["sweep.yaml:4", "training.clipnorm"],
        ["sweep.yaml:6", "seed"],
        ["sweep.yaml:8", "parameters.drop_out"],
        ["sweep.yaml:9", "parameters.dropout.max"],
        ["sweep.yaml:10", "parameters.batch_size.max"],
        ["sweep.yaml:10", "parameters.batch_size.min"],
        ["sweep.yaml:12", "parameters.max_epochs.when.patience"],
    ]


def test_a_condition_names_a_value_that_another_searched_parameter_can_have_or_its_layer():
    others = {
        "batchnorm": {"values": ["none", "before_activation"], "per_layer": True},
        "l1": {"min": 0, "max": 0.5, "optional": True},
        "batch_size": {"min": 8, "max": 32, "q": 8},
        "hidden": {"values": [[64, 32], [16, 8]]},
        "fused": {"values": [True, False]},
    }
    when = {"l1": 0, "hidden": "16-8", "batch_size": [8, 16], "fused": True, "batchnorm.2": "none"}
    assert set(spec_of({**others, "l2": {**RATE["dropout"], "when": when}}).searched["l2"].when) == set(when)
    each = {"values": [0.1, 0.2], "when": {"batchnorm": "none"}, "per_layer": True}
    assert spec_of({**others, "dropout": each})
    with pytest.raises(
        SpecError, match=r"parameters\.l2\.when\.batchnorm\.: expected another searched parameter"
    ):
        spec_of({**others, "l2": {**RATE["dropout"], "when": {"batchnorm.": "none"}}})


def test_gp_without_torch_is_refused_where_it_would_run_and_read_elsewhere(monkeypatch):
    monkeypatch.setattr("regtune.config.sweepfile.specification.find_spec", lambda name: None)
    assert problems_of(beside("method: gp")) == [
        'sweep.yaml:1: method: gp needs torch, which is not installed; try: pip install "regtune[gp]"'
    ]
    assert spec_of(RATE, method="gp").method == "gp"


# -- --set


def test_values_can_be_set_from_the_command_line():
    spec = load(
        "early_stopping: {patience: 2}\ntraining:\n" + GOOD.replace("20", "twenty"),
        *("training.max_epochs=2", "run_cap=4", "parameters.l2.values=[0, 0.3]", "early_stopping=null"),
        *("parameters.l1={values: [0, 1e-4]}", "dataset=mnist-5k"),
    )
    assert (spec.training.max_epochs, spec.run_cap, spec.dataset) == (2, 4, "mnist-5k")
    assert spec.early_stopping is None
    assert spec.parameters == {"l1": Categorical(values=(0.0, 1e-4)), "l2": Categorical(values=(0.0, 0.3))}


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("run_cap=abc", 'run_cap: expected a whole number, found "abc"'),
        ("run_cap=", "run_cap: missing; expected a budget"),
        ("run_cap", "expected key=value, for example training.max_epochs=5"),
        ("training..x=3", "expected key=value"),
        ("run_cap.x=2", "run_cap is not a group of keys"),
        ("training.epochs=2", 'training.epochs: unknown key; did you mean "max_epochs"?'),
        ("seed={a", "1: not readable YAML: "),
        ("seed=.nan", "seed: expected a finite number, found"),
    ],
)
def test_a_wrong_value_from_the_command_line_is_reported_as_such(override, problem):
    (found,) = problems_of(GOOD, override)
    assert found.startswith(f"--set {override}:")
    assert problem in found


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
        ({"early_stopping": {"monitor": "val_loss"}}, SWITCH, "early_stopping.monitor: val_loss contains"),
        (
            {"training": {"optimizer": "adamw"}},
            {"momentum": {"min": 0, "max": 0.9}},
            "parameters.momentum: acts",
        ),
        ({"method": "cmaes", "early_terminate": {"type": "median"}}, RATE, "early_terminate: cmaes learns"),
        ({"method": "cmaes"}, {"batchnorm": {"values": list(NORM)}, **RATE}, "and draws batchnorm at random"),
        ({"run_cap": 3}, RATE, "run_cap: 3 leaves nothing for the search, because 3 controls run first; "),
        (
            {"run_cap": 33, "early_terminate": {"type": "hyperband", "min_iter": 2, "eta": 3}},
            RATE,
            "early_terminate: hyperband needs more than 30 trials, found 30; use a larger run_cap",
        ),
        ({"early_terminate": {"type": "median", "min_iter": 30}}, RATE, "at epoch 30 of at most 30"),
        (
            {"early_terminate": {"type": "successive_halving", "max_iter": 81, "s": 2}},
            RATE,
            "early_terminate.max_iter: 81 is more than the 30 epochs of a trial",
        ),
        ({"metric": {"name": "val_loss"}}, RATE, None),
        ({}, {"weight_decay": {"min": 0, "max": 0.1}, "optimizer": {"values": ["adam", "adamw"]}}, None),
        ({"run_cap": 4}, RATE, None),
        ({"run_cap": 1, "controls": False}, RATE, None),
        ({"run_cap": 34, "early_terminate": {"type": "hyperband", "min_iter": 2}}, RATE, None),
        ({"method": "qmc"}, {"batchnorm": {"values": ["none", "after_activation"]}, **RATE}, None),
    ],
)
def test_what_is_legal_and_hardly_meant_is_warned_of(keys, parameters, warning):
    found = spec_of(parameters, **keys).warnings
    assert len(found) == (warning is not None)
    assert not found or warning in found[0]


def test_the_controls_that_warnings_count_are_those_that_run():
    for spec in (spec_of(RATE, early_stopping=stopping) for stopping in ({"patience": 3}, None)):
        assert control_names(spec) == [control.name for control in controls(spec, DataConfig())]


# -- a study that is resumed


def test_what_may_be_raised_is_no_part_of_the_identity():
    one = load(GOOD)
    other = load(
        GOOD,
        *("run_cap=99", "timeout=3600", "description=more", "keep_models=1", "max_failures=9"),
        *("decide=0.5", "trial_timeout=60", "trial_memory_mb=900"),
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
  l1: {distribution: log_uniform_values, min: 1e-9, max: 1e-3, optional: true}
  l2: {distribution: log_uniform_values, min: 1e-7, max: 1e-3, when: {batchnorm: none}}
  batchnorm: {values: [none, before_activation]}
  batch_size: {min: 16, max: 64.0, q: 16}
  max_epochs: {values: [10]}
early_terminate: {type: hyperband, eta: 3.0, strict: true}
"""


def test_a_file_means_what_it_meant_when_studies_were_begun_with_it():
    stored = json.dumps(load(BEGUN).identity(), sort_keys=True).encode()
    digest = "3b682dde312f3bfa5c3d7b7f63944a1481bc62d8d0fdbf4b0773a96a4492fbbe"
    assert hashlib.sha256(stored).hexdigest() == digest


# -- the sweeps of the repository


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_begins_with_its_question_has_room_beside_its_controls_and_proposes_configurations(
    path: Path,
):
    first = path.read_text(encoding="utf-8").split("\n\n", 1)[0]
    assert all(line.startswith("# ") for line in first.splitlines())
    assert "?" in first
    SCHEMA.validate(read(path, SpecError).values)
    spec = SweepSpec.load(path)
    space, data = Space(spec), DataConfig(name=spec.dataset)
    assert spec.warnings == ()
    assert spec.run_cap is not None
    assert sum(bool(one.parameters) or spec.method != "grid" for one in controls(spec, data)) < spec.run_cap
    if spec.method == "grid":
        assert spec.run_cap == space.size
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    assert len({space.config(space.suggest(study.ask()), seed=0, data=data) for _ in range(9)}) > 1


def test_the_notebook_is_repeated_with_dropout_and_without():
    spec = SweepSpec.load(next(path for path in SWEEPS if path.stem == "notebook"))
    assert list(Space(spec).grid()) == [{"dropout": 0.0}, {"dropout": 0.2}]
    assert spec.model.hidden == (128, 64)
    assert (spec.training.optimizer, spec.training.learning_rate) == ("adam", 0.001)
    assert (spec.training.batch_size, spec.training.max_epochs, spec.training.fused) == (32, 10, False)
    assert (spec.split.validation, spec.split.seed) == (0.2, 42)
    assert (spec.early_stopping, spec.controls, spec.dataset) == (None, False, "mnist")
    assert spec.decision_share * 2 * 10 == 8 * 2 * 10  # eight replicates of both, in epochs


# -- what an editor and a reader of the code see


def test_the_schema_is_one_and_knows_every_key_and_describes_it():
    jsonschema.Draft202012Validator.check_schema(json_schema())
    properties = json_schema()["properties"]
    assert set(properties) == set(SweepSpec.model_fields) | set(IGNORED[""])
    assert all(found["description"] for found in properties.values())


@pytest.mark.parametrize(
    "module", ["regtune.config.trial", "regtune.config.sweepfile.specification", "regtune.search.space"]
)
def test_the_examples_of_the_docstrings_are_true(module):
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted > 0
    assert found.failed == 0
