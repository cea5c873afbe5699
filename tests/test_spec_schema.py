"""The JSON Schema says of a file what the reader says of it."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from corpus.mistakes import MISTAKES, Mistake
from hypothesis import given, settings
from specs import SWEEPS, specs

from regtune.config.source import SWEEP, parse, read
from regtune.config.sweepfile import SweepSpec
from regtune.config.sweepfile.schema import json_schema
from regtune.config.sweepfile.specification import IGNORED

VALIDATOR = jsonschema.Draft202012Validator(json_schema())
GOOD: dict[str, Any] = {"run_cap": 9, "parameters": {"dropout": {"min": 0.0, "max": 0.5}}}


def test_the_schema_is_one_and_knows_every_key_and_describes_it():
    jsonschema.Draft202012Validator.check_schema(json_schema())
    properties = json_schema()["properties"]
    assert set(properties) == set(SweepSpec.model_fields) | set(IGNORED[""])
    assert all(found["description"] for found in properties.values())


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_sweeps_of_the_repository_are_valid(path):
    VALIDATOR.validate(read(path, SWEEP).values)


@settings(max_examples=60)
@given(specs())
def test_every_canonical_form_is_valid(spec):
    VALIDATOR.validate(spec.to_dict())


def test_the_keys_of_wandb_that_are_ignored_are_valid():
    ignored = dict.fromkeys(IGNORED[""], "x")
    metric = {"name": "val_loss", "target": 0.1, "impute": "worst"}
    pruner = {"type": "hyperband", "min_iter": 3, "strict": True}
    VALIDATOR.validate({**GOOD, **ignored, "method": "bayes", "metric": metric, "early_terminate": pruner})


@pytest.mark.parametrize("mistake", [one for one in MISTAKES if not one.together], ids=str)
def test_what_the_reader_refuses_the_schema_refuses(mistake: Mistake):
    assert not VALIDATOR.is_valid(parse(mistake.text, "sweep.yaml").values)
