"""What a sweep may search: every key of a configuration, with the type and the limits that `config` gives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import ValidationError

from regtune.config.source import describe
from regtune.config.trial import (
    EarlyStoppingConfig,
    Frozen,
    ModelConfig,
    RegularizationConfig,
    TrainingConfig,
    mistakes,
)

Block = Literal["regularization", "model", "training", "early_stopping"]
Kind = Literal["real", "whole", "word", "switch", "layers"]

BLOCKS: Mapping[Block, type[Frozen]] = {
    "regularization": RegularizationConfig,
    "model": ModelConfig,
    "training": TrainingConfig,
    "early_stopping": EarlyStoppingConfig,
}

SYNONYMS: Mapping[str, str] = {
    "batch_norm": "batchnorm",
    "batch_normalization": "batchnorm",
    "bn": "batchnorm",
    "dropout_rate": "dropout",
    "epochs": "max_epochs",
    "hidden_layers": "hidden",
    "layers": "hidden",
    "lr": "learning_rate",
    "num_epochs": "max_epochs",
    "opt": "optimizer",
    "units": "hidden",
    "wd": "weight_decay",
}
"""Spellings of other tools. They are not read, only recognized in a "did you mean"."""

_CLIPPING = "gradient clipping is not supported; a smaller learning_rate is the nearest thing"
_SCHEDULE = "learning-rate schedules are not supported; search learning_rate instead"
UNSUPPORTED: Mapping[str, str] = {
    "clipnorm": _CLIPPING,
    "clipvalue": _CLIPPING,
    "global_clipnorm": _CLIPPING,
    "gradient_clip": _CLIPPING,
    "label_smoothing": "label smoothing is not supported; remove it",
    "decay": _SCHEDULE,
    "learning_rate_schedule": _SCHEDULE,
    "lr_schedule": _SCHEDULE,
    "lr_decay": _SCHEDULE,
    "reduce_lr_on_plateau": _SCHEDULE,
    "warmup": _SCHEDULE,
    "warmup_epochs": _SCHEDULE,
}
"""What a network can be trained with elsewhere and not here, refused by name."""


@dataclass(frozen=True)
class Target:
    """One key of a configuration. choices: the words it takes, empty where it takes numbers."""

    name: str
    block: Block
    kind: Kind
    choices: tuple[str, ...] = ()

    @property
    def layered(self) -> bool:
        """Whether it has one value a hidden layer."""
        return self.block == "regularization"

    def convert(self, value: Any) -> Any:
        """`value` in the type of this key: whole numbers become real ones, a list of widths a tuple."""
        if self.kind == "real" and type(value) is int and abs(value) <= 2**53:
            return float(value)
        if self.kind == "whole" and type(value) is float and value.is_integer():
            return int(value)
        if isinstance(value, list):
            return tuple(self.convert(item) for item in value)
        return value

    def refusal(self, value: Any) -> str | None:
        """What was expected instead of `value`, or None when the configuration takes it."""
        model = BLOCKS[self.block]
        try:
            model.model_validate({self.name: self.convert(value)})
        except ValidationError as error:
            return expectation(mistakes(error)[0])
        return None


def _target(block: Block, name: str, annotation: Any) -> Target:
    if block == "regularization":  # tuple[X, ...]: one X a hidden layer
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is Literal:
        return Target(name, block, "word", get_args(annotation))
    kinds: Mapping[Any, Kind] = {float: "real", int: "whole", bool: "switch"}
    return Target(name, block, kinds.get(annotation, "layers"))


TARGETS: Mapping[str, Target] = {
    name: _target(block, name, info.annotation)
    for block, model in BLOCKS.items()
    for name, info in model.model_fields.items()
}
"""Every key that may stand under `parameters`, in the order in which they are shown and asked for."""


def suggestion(word: str, known: tuple[str, ...]) -> str:
    """``; did you mean "dropout"?``, or nothing when no known word is near."""
    near = SYNONYMS.get(word.lower())
    if near not in known:
        folded = {name.lower(): name for name in known}
        found = get_close_matches(word.lower(), list(folded), n=1, cutoff=0.6)
        near = folded[found[0]] if found else None
    return f'; did you mean "{near}"?' if near else ""


def unknown_key(name: str, known: tuple[str, ...], homes: Mapping[str, str]) -> str:
    """What to say about a key that means nothing where it stands. homes: where a known key belongs instead."""
    if name in UNSUPPORTED:
        return UNSUPPORTED[name]
    if name in homes:
        return f"unknown key here; it belongs under {homes[name]}"
    hint = suggestion(name, known)
    if not hint and (elsewhere := suggestion(name, tuple(homes))):
        near = elsewhere.split('"')[1]
        return f"unknown key{elsewhere[:-1]} under {homes[near]}?"
    return f"unknown key{hint or '; expected one of ' + ', '.join(known)}"


def expectation(error: Any) -> str:
    """One of pydantic's errors, in words: ``expected at most 0.95, found 1.2``."""
    kind, found = error["type"], error["input"]
    context = error.get("ctx", {})
    shown = f", found {describe(found)}"
    if kind in _LIMITS:
        return f"expected {_LIMITS[kind].format(**context)}{shown}"
    if kind in _TYPES:
        return f"expected {_TYPES[kind]}{shown}"
    if kind in ("literal_error", "enum"):
        words = _words(str(context["expected"]))
        hint = suggestion(found, words) if isinstance(found, str) else ""
        return f"expected one of {', '.join(words)}{shown}{hint}"
    if kind == "missing":
        return "missing"
    if kind == "string_pattern_mismatch":
        return f"expected text of the form {context['pattern']}{shown}"
    return f"{str(error['msg']).removeprefix('Value error, ')}{shown if kind != 'value_error' else ''}"


def _words(expected: str) -> tuple[str, ...]:
    return tuple(
        word.strip().strip("'") for word in expected.replace(" or ", ", ").split(",") if word.strip()
    )


_LIMITS = {
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "more than {gt:g}",
    "less_than_equal": "at most {le:g}",
    "less_than": "less than {lt:g}",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
}
_TYPES = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "tuple_type": "a list such as [128, 64]",
    "list_type": "a list",
    "dict_type": "a group of keys",
    "mapping_type": "a group of keys",
    "model_type": "a group of keys",
    "model_attributes_type": "a group of keys",
}
