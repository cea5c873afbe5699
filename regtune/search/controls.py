"""The controls: configurations that every result of a sweep is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from regtune.config.sweepfile import SweepSpec
from regtune.config.sweepfile.checks import control_names
from regtune.config.sweepfile.parameters import BLOCKS
from regtune.config.trial import DataConfig, RegularizationConfig, TrialConfig
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

    parameters: the assignment that gives exactly this configuration; None where the space does not contain it.
    """

    name: str
    config: TrialConfig
    parameters: Mapping[str, Value] | None


def controls(spec: SweepSpec, data: DataConfig) -> list[Control]:
    """The controls that run first in a sweep: no technique, early stopping alone, and the searched techniques alone.

    A technique that a sweep does not search has no part in its answer. None in a sweep with `controls: false`.
    """
    names = control_names(spec)
    return [control for control in every_control(spec, data) if control.name in names]


def every_control(spec: SweepSpec, data: DataConfig) -> list[Control]:
    """The unregularized network, early stopping alone, and each technique alone at a fixed strength.

    `none` goes without early stopping too and keeps its last epoch's weights; every other has the sweep's early
    stopping. Searched keys of model and training have their base values. The seed is 0: the coordinator sets it.
    Controls that come to the same configuration are listed once.
    """
    space = Space(spec)
    blocks: dict[str, Any] = {
        block: model(**{name: spec.fixed(name) for name in model.model_fields})
        for block, model in BLOCKS.items()
        if block in ("model", "training") or (block == "early_stopping" and spec.early_stopping)
    }
    listed: list[Control] = []
    for name, regularization in STRENGTHS.items():
        stopping = None if name == "none" else blocks.get("early_stopping")
        own = {"early_stopping": stopping, "regularization": regularization}
        config = TrialConfig(**blocks | own, data=data)
        if all(config != other.config for other in listed):
            listed.append(Control(name, config, assignment(space, config)))
    return listed


def assignment(space: Space, config: TrialConfig) -> dict[str, Value] | None:
    """The assignment of `space` that gives exactly `config`, or None."""
    parameters: dict[str, Any] = {}
    for column in space.columns:
        block = getattr(config, column.target.block)
        value: Any = getattr(block, column.target.name, None)
        if column.target.layered:
            value = dict(enumerate(value, start=1)).get(column.layer or 1)
        parameters[column.name] = shown(value)
    try:
        space.to_optuna(parameters)  # which refuses None
    except ParameterError:
        return None
    return parameters if space.config(parameters, seed=config.seed, data=config.data) == config else None
