"""The JSON Schema says of a file what the reader says of it."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from specs import SWEEPS, specs

from regtune.config.source import SWEEP, read
from regtune.config.sweepfile import SweepSpec, json_schema
from regtune.config.sweepfile.reading import IGNORED
from regtune.errors import SpecError

VALIDATOR = jsonschema.Draft202012Validator(json_schema())
GOOD: dict[str, Any] = {"run_cap": 9, "parameters": {"dropout": {"min": 0.0, "max": 0.5}}}


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(json_schema())


def test_the_schema_knows_every_key_and_describes_it():
    properties = json_schema()["properties"]
    assert set(properties) == set(SweepSpec.model_fields) | set(IGNORED)
    assert all(found["description"] for found in properties.values())


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_sweeps_of_the_repository_are_valid(path):
    VALIDATOR.validate(read(path, SWEEP).values)


@settings(max_examples=60, deadline=None)
@given(specs())
def test_every_canonical_form_is_valid(spec):
    VALIDATOR.validate(spec.to_dict())


def test_the_keys_of_wandb_that_are_passed_over_are_valid():
    ignored = dict.fromkeys(IGNORED, "x")
    metric = {"name": "val_loss", "target": 0.1, "impute": "worst"}
    pruner = {"type": "hyperband", "min_iter": 3, "strict": True}
    VALIDATOR.validate({**GOOD, **ignored, "method": "bayes", "metric": metric, "early_terminate": pruner})


@pytest.mark.parametrize(
    "changes",
    [
        {"run_cap": None},
        {"run_cap": 0},
        {"run_cap": "20"},
        {"runs": 3},
        {"method": "tpee"},
        {"metric": {"name": "val_acc"}},
        {"metric": "val_accuracy"},
        {"training": {"epochs": 3}},
        {"training": {"clipnorm": 1}},
        {"training": {"batch_size": 2.5}},
        {"model": {"hidden": []}},
        {"early_stopping": {"patience": -1}},
        {"early_terminate": {"type": "asha"}},
        {"controls": "no"},
        {"parameters": {}},
        {"parameters": {"drop_out": {"min": 0, "max": 0.5}}},
        {"parameters": {"dropout": 0.2}},
        {"parameters": {"dropout": {"min": 0}}},
        {"parameters": {"dropout": {"min": 0, "max": 1.5}}},
        {"parameters": {"dropout": {"min": 0, "max": 0.5, "values": [0]}}},
        {"parameters": {"dropout": {"min": 0, "max": 0.5, "when": "x"}}},
        {"parameters": {"dropout": {"distribution": "normal", "mu": 0, "sigma": 1}}},
        {"parameters": {"dropout": {"distribution": "int_uniform", "min": 0, "max": 0}}},
        {"parameters": {"dropout": {"values": []}}},
        {"parameters": {"dropout": {"values": [0.1, 0.1]}}},
        {"parameters": {"dropout": {"values": [0.1, 0.96]}}},
        {"parameters": {"dropout": {"value": 0.1, "optional": True}}},
        {"parameters": {"batch_size": {"min": 1, "max": 9, "per_layer": True}}},
        {"parameters": {"batch_size": {"min": 1, "max": 9, "optional": True}}},
        {"parameters": {"batchnorm": {"values": ["none", "before"]}}},
        {"parameters": {"hidden": {"values": [64, 32]}}},
        {"parameters": {"l1": {"values": [0, 1], "probabilities": [0.5, 0.5]}}},
        {"parameters": {"fused": {"values": ["yes", "no"]}}},
    ],
    ids=str,
)
def test_what_the_reader_refuses_the_schema_refuses(changes):
    values = {**GOOD, **changes}
    with pytest.raises(SpecError):
        SweepSpec.from_dict(values)
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(values)
