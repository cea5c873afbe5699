"""The JSON Schema of a sweep file, by which editors complete and check while it is written.

It is stricter than a Weights & Biases schema where regtune refuses, and takes their keys that are passed
over. What only several keys together can have wrong (a circle of conditions, a range upside down) it cannot
say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from regtune.config.sweepfile.forms import ALIASES, RANGES
from regtune.config.sweepfile.reading import IGNORED, IGNORED_BELOW
from regtune.config.sweepfile.specification import NAME, SweepSpec
from regtune.config.sweepfile.targets import BLOCKS, TARGETS, Target

Schema = dict[str, Any]

_TECHNIQUES: Mapping[str, str] = {
    "dropout": "Share of a hidden layer's outputs that is dropped while training.",
    "l1": "L1 coefficient on the kernels of the hidden layers.",
    "l2": "L2 coefficient on the kernels of the hidden layers, times the sum of squares.",
    "batchnorm": "Where batch normalization stands in a hidden layer.",
}
_KEYS: Mapping[str, str] = {
    "name": "The sweep's and the study's name; the file's stem when it is missing.",
    "description": "A text for people.",
    "dataset": "mnist, mnist-5k (part of the installation), fashion-mnist, or a path to a .npz file.",
    "split": "How the training images are divided.",
    "method": "How the next trial is chosen. bayes reads as tpe.",
    "metric": "What the sweep is after.",
    "run_cap": "Finished trials after which the sweep ends, controls included; of a grid its points, controls aside.",
    "timeout": "Seconds after which the sweep ends.",
    "seed": "Everything random follows from it.",
    "model": "The network before any regularization.",
    "training": "How weights are fitted; a key under parameters stands above it.",
    "early_stopping": "Keras' EarlyStopping with restored best weights; null for none.",
    "parameters": "What is searched.",
    "early_terminate": "When an unpromising trial is ended early.",
    "controls": "Run the unregularized network and each technique alone first.",
    "max_failures": "Failed trials that are replaced before the sweep gives up.",
    "trial_timeout": "Seconds after which one trial is stopped.",
    "trial_memory_mb": "Memory in MiB at which one trial is stopped.",
    "keep_models": "How many of the best trials keep their weights on disk.",
}


def json_schema() -> Schema:
    """JSON Schema (draft 2020-12) of a sweep file."""
    whole = SweepSpec.model_json_schema()
    groups = whole["$defs"]
    properties: Schema = {key: _plain(whole["properties"][key], groups) for key in SweepSpec.model_fields}
    properties["name"] = {"type": "string", "pattern": NAME}
    properties["method"]["enum"] = [*properties["method"]["enum"], "bayes"]
    properties["early_terminate"]["anyOf"][0]["properties"]["type"]["enum"].append("none")
    properties["parameters"] = {
        "type": "object",
        "additionalProperties": False,
        "minProperties": 1,
        "properties": {name: _parameter(target) for name, target in TARGETS.items()},
    }
    for group, keys in IGNORED_BELOW.items():
        inner = properties[group].get("anyOf", [properties[group]])[0]
        inner["properties"] |= {key: _passed_over() for key in keys}
    for key, text in _KEYS.items():
        properties[key]["description"] = text
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "regtune sweep",
        "type": "object",
        "additionalProperties": False,
        "required": ["parameters"],
        "anyOf": [
            {"required": ["run_cap"], "properties": {"run_cap": {"type": "integer"}}},
            {"required": ["timeout"], "properties": {"timeout": {"type": "number"}}},
        ],
        "properties": properties | {key: _passed_over() for key in IGNORED},
    }


def _passed_over() -> Schema:
    return {
        "description": "A key of Weights & Biases that means nothing here; it is passed over.",
        "deprecated": True,
    }


def _plain(schema: Any, groups: Mapping[str, Any]) -> Any:
    """One of pydantic's schemas with its references put in place, without titles."""
    if isinstance(schema, list):
        return [_plain(item, groups) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        found = _plain(groups[schema["$ref"].rsplit("/", 1)[-1]], groups)
        return found | {key: value for key, value in schema.items() if key == "default"}
    return {
        key: {name: _plain(item, groups) for name, item in value.items()}
        if key == "properties"
        else _plain(value, groups)
        for key, value in schema.items()
        if key not in ("title", "description") or (key == "title" and not isinstance(value, str))
    }


def _value(target: Target) -> Schema:
    """What one value of a key may be: its type and limits as in the configuration."""
    model: type[BaseModel] = BLOCKS[target.block]
    full = model.model_json_schema()
    schema: Schema = _plain(full["properties"][target.name], full.get("$defs", {}))
    schema = schema["items"] if target.block == "regularization" else schema
    return {key: value for key, value in schema.items() if key != "default"}


def _parameter(target: Target) -> Schema:
    value = _value(target)
    one: Schema = (
        {"anyOf": [value, {"type": "array", "items": value, "minItems": 1}]} if target.layered else value
    )
    extras: Schema = {"when": _when()}
    if target.layered:
        extras["per_layer"] = {"type": "boolean", "description": "One value for each hidden layer."}
    if target.refusal(0) is None:
        extras["optional"] = {"type": "boolean", "description": "May be off, that is 0."}
    forms = [
        _form({"value": one, "distribution": {"const": "constant"}}, ["value"]),
        _form(
            {
                "values": {"type": "array", "items": value, "minItems": 1, "uniqueItems": True},
                "distribution": {"const": "categorical"},
                **extras,
            },
            ["values"],
        ),
    ]
    if target.kind in ("real", "whole"):
        forms += _ranges(target, value, extras)
    found: Schema = {"anyOf": forms}
    if target.name in _TECHNIQUES:
        found["description"] = _TECHNIQUES[target.name]
    return found


def _ranges(target: Target, value: Schema, extras: Schema) -> list[Schema]:
    """Ranges of values, and those whose bounds are exponents of e."""
    foreign = "int_uniform" if target.kind == "real" else "uniform"
    values = [name for name in (*RANGES, *ALIASES) if name != foreign and not _exponential(name)]
    plain = [name for name in values if not name.startswith("q_")]
    stepped = [name for name in values if name.startswith("q_")]
    step = {"type": "number", "exclusiveMinimum": 0}
    exponent = {"type": "number", "minimum": -700, "maximum": 700}
    ends = {"min": value, "max": value, **extras}
    exponents = {"min": exponent, "max": exponent, **extras}
    return [
        _form({**ends, "distribution": {"enum": plain}}, ["min", "max"]),
        _form({**ends, "distribution": {"enum": stepped}, "q": step}, ["min", "max", "q"]),
        _form({**ends, "distribution": {"enum": stepped}}, ["min", "max", "distribution"]),
        _form(
            {
                **exponents,
                "distribution": {"enum": [name for name in ALIASES if _exponential(name)]},
                "q": step,
            },
            ["min", "max", "distribution"],
        ),
    ]


def _exponential(name: str) -> bool:
    return name in ALIASES and ALIASES[name].exponents


def _form(properties: Schema, required: list[str]) -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": properties, "required": required}


def _when() -> Schema:
    scalar = {"type": ["string", "number", "boolean"]}
    return {
        "type": "object",
        "description": "Other searched parameters and the values they must have.",
        "additionalProperties": {"anyOf": [scalar, {"type": "array", "items": scalar, "minItems": 1}]},
    }
