"""The controls: configurations that every result of a sweep is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from regtune.config.sweepfile import TARGETS, SweepSpec
from regtune.config.trial import (
    DataConfig,
    EarlyStoppingConfig,
    ModelConfig,
    RegularizationConfig,
    TrainingConfig,
    TrialConfig,
)
from regtune.errors import ParameterError
from regtune.search.columns import Value, shown
from regtune.search.space import Space

STRENGTHS: Mapping[str, RegularizationConfig] = {
    "none": RegularizationConfig(),
    "early_stopping": RegularizationConfig(),
    "dropout": RegularizationConfig(dropout=(0.2,)),
    "l1": RegularizationConfig(l1=(1e-5,)),
    "l2": RegularizationConfig(l2=(1e-4,)),
    "batchnorm_before": RegularizationConfig(batchnorm=("before_activation",)),
    "batchnorm_after": RegularizationConfig(batchnorm=("after_activation",)),
}
"""The controls in the order in which they run, and their one technique each."""


@dataclass(frozen=True)
class Control:
    """A configuration that runs first, so that the board answers "better than what?".

    parameters: the assignment that gives exactly this configuration; None where the space does not contain
    it.
    """

    name: str
    config: TrialConfig
    parameters: Mapping[str, Value] | None


def controls(spec: SweepSpec, data: DataConfig) -> list[Control]:
    """The unregularized network, early stopping alone, and each technique alone at a fixed strength.

    `none` goes without early stopping too and keeps its last epoch's weights; every other has the sweep's
    early stopping. Searched keys of model and training have their base values. The seed is 0: the coordinator
    sets it. Controls that come to the same configuration are listed once. A spec with `controls: false` has
    none.
    """
    if not spec.controls:
        return []
    space = Space(spec)
    base = {
        name: spec.fixed(name) for name, target in TARGETS.items() if target.block in ("model", "training")
    }
    stopping = spec.early_stopping and EarlyStoppingConfig(
        **{name: spec.fixed(name) for name in EarlyStoppingConfig.model_fields}
    )
    found: list[Control] = []
    for name, regularization in STRENGTHS.items():
        config = TrialConfig(
            model=ModelConfig(**{key: base[key] for key in ModelConfig.model_fields}),
            regularization=regularization,
            training=TrainingConfig(**{key: base[key] for key in TrainingConfig.model_fields}),
            early_stopping=None if name == "none" else stopping,
            data=data,
        )
        if all(config != other.config for other in found):
            found.append(Control(name, config, assignment(space, config)))
    return found


def assignment(space: Space, config: TrialConfig) -> dict[str, Value] | None:
    """The assignment of `space` that gives exactly `config`, or None."""
    blocks = (config.model, config.regularization, config.training, config.early_stopping)
    found: dict[str, Value] = {}
    for column in space.columns:
        block = next(
            (block for block in blocks if block and column.target.name in type(block).model_fields), None
        )
        if block is None:
            return None
        value = getattr(block, column.target.name)
        if column.target.layered:
            layer = column.layer or 1
            if layer > len(value):
                return None
            value = value[layer - 1]
        found[column.name] = shown(value)
    try:
        space.to_optuna(found)
    except ParameterError:
        return None
    return found if space.config(found, seed=config.seed, data=config.data) == config else None
