"""The keys of a configuration that a sweep may search, with the type and limits of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from regtune.config.trial import (
    EarlyStoppingConfig,
    Frozen,
    ModelConfig,
    RegularizationConfig,
    TrainingConfig,
)

Block = Literal["regularization", "model", "training", "early_stopping"]
Kind = Literal["real", "whole", "word", "switch", "layers"]

BLOCKS: Mapping[Block, type[Frozen]] = {
    "regularization": RegularizationConfig,
    "model": ModelConfig,
    "training": TrainingConfig,
    "early_stopping": EarlyStoppingConfig,
}


@dataclass(frozen=True)
class Target:
    """One key of a configuration, which may be searched.

    values: the type of one value, with its limits. choices: the words it takes, empty where it takes numbers.
    """

    name: str
    block: Block
    kind: Kind
    values: Any
    choices: tuple[str, ...] = ()

    @property
    def layered(self) -> bool:
        return self.block == "regularization"

    @cached_property
    def zero(self) -> bool:
        """Whether it takes 0, so that it may be off."""
        try:
            TypeAdapter(self.values).validate_python(0, strict=True)
        except ValidationError:
            return False
        return True

    def convert(self, value: Any) -> Any:
        """`value` in the type of this key: whole numbers become real ones, a list of widths a tuple."""
        if self.kind == "real" and type(value) is int and abs(value) <= 2**53:
            return float(value)
        if self.kind == "whole":
            return whole(value)
        return tuple(value) if isinstance(value, list) else value


def whole(value: Any) -> Any:
    """W&B writes whole numbers as real ones, too."""
    return int(value) if type(value) is float and value.is_integer() else value


def _target(block: Block, name: str) -> Target:
    info = BLOCKS[block].model_fields[name]
    values: Any = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
    if block == "regularization":  # tuple[X, ...]: one X a hidden layer
        values = get_args(info.annotation)[0]
    plain = get_args(values)[0] if get_origin(values) is Annotated else values
    if get_origin(plain) is Literal:
        return Target(name, block, "word", values, get_args(plain))
    if plain is int:
        return Target(name, block, "whole", Annotated[values, BeforeValidator(whole)])
    kinds: Mapping[Any, Kind] = {float: "real", bool: "switch"}
    return Target(name, block, kinds.get(plain, "layers"), values)


TARGETS: Mapping[str, Target] = {
    name: _target(block, name) for block, model in BLOCKS.items() for name in model.model_fields
}
"""Every key that may stand under `parameters`, in the order in which they are shown and asked for."""
