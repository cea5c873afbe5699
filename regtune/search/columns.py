"""One searched value: Optuna's distribution, the value shown to people, and its condition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import BaseTrial

from regtune.config.sweepfile import SweepSpec
from regtune.config.sweepfile.checks import shown_value
from regtune.config.sweepfile.parameters import TARGETS, Categorical, Range, Target
from regtune.config.trial import format_number

Value = float | int | str | bool


@dataclass(frozen=True)
class Column:
    """One searched value, under the name by which it is known everywhere.

    layer: counted from 1; None for one value for all layers. base: what it is when its condition is not met.
    when: other columns and the values they must show.
    """

    name: str
    target: Target
    layer: int | None
    parameter: Categorical | Range
    base: Value
    when: Mapping[str, tuple[Value, ...]]

    @property
    def optional(self) -> bool:
        return self.parameter.optional

    @property
    def switch(self) -> str:
        """Optuna's name of the switch of an optional column."""
        return f"{self.name}.on"

    @property
    def off(self) -> Value:
        """What an optional column shows when it is off: zero in its own type."""
        return 0 if self.target.kind == "whole" else 0.0

    @cached_property
    def points(self) -> tuple[Value, ...] | None:
        """Every value while it is on, in a fixed order; None where it is continuous."""
        if isinstance(self.parameter, Categorical):
            return tuple(shown(value) for value in self.parameter.values)
        return self.parameter.points

    @cached_property
    def choices(self) -> tuple[Value, ...] | None:
        """Every value it can show while its condition is met, off first; None where it is continuous."""
        if self.points is None:
            return None
        return (self.off, *self.points) if self.optional and self.off not in self.points else self.points

    @cached_property
    def distribution(self) -> BaseDistribution:
        """What Optuna samples while it is on. A log range with steps is sampled without them and rounded by `show`."""
        parameter = self.parameter
        if isinstance(parameter, Categorical):
            return CategoricalDistribution(self.points or ())
        points = parameter.points or (parameter.min, parameter.max)
        low, high, log = points[0], points[-1], parameter.log
        if self.target.kind == "whole":
            return IntDistribution(int(low), int(high), log=log, step=1 if log else int(parameter.step or 1))
        step = None if log or parameter.q is None else float(parameter.q)
        return FloatDistribution(float(low), float(high), log=log, step=step)

    def ask(self, trial: BaseTrial) -> Value:
        """Let Optuna choose a value; the value as it is shown."""
        of, name = self.distribution, self.name
        if isinstance(of, CategoricalDistribution):
            return self.show(trial.suggest_categorical(name, of.choices))
        if isinstance(of, IntDistribution):
            return self.show(trial.suggest_int(name, of.low, of.high, step=of.step, log=of.log))
        assert isinstance(of, FloatDistribution)
        return self.show(trial.suggest_float(name, of.low, of.high, step=of.step, log=of.log))

    def show(self, sampled: Any) -> Value:
        """A value of Optuna's as it is shown: a multiple of `q` exactly."""
        parameter = self.parameter
        if isinstance(parameter, Range) and parameter.steps is not None and parameter.step is not None:
            first, last = parameter.steps
            return parameter.multiple(min(max(round(sampled / parameter.step), first), last))
        value: Value = sampled
        return value

    def active(self, assignment: Mapping[str, Value]) -> bool:
        return all(assignment[other] in values for other, values in self.when.items())

    def contains(self, value: Value) -> bool:
        """Whether it can show `value` while it is on."""
        if isinstance(self.parameter, Range):
            return (
                isinstance(value, int | float) and not isinstance(value, bool) and self.parameter.has(value)
            )
        points = self.points or ()
        return any(value == point and isinstance(value, bool) == isinstance(point, bool) for point in points)

    def is_off(self, value: Value) -> bool:
        return self.optional and value == self.off and not isinstance(value, bool)

    @property
    def takes(self) -> str:
        """What it can be, for people: ``1e-7 to 0.001, log, or 0 (off)``."""
        parameter, off = self.parameter, ", or 0 (off)" if self.optional else ""
        if isinstance(parameter, Categorical):
            return ", ".join(map(shown_value, parameter.values)) + off
        ends = f"{format_number(parameter.min)} to {format_number(parameter.max)}"
        step = f", multiples of {format_number(parameter.q)}" if parameter.q and parameter.q != 1 else ""
        return f"{ends}{step}{', log' if parameter.log else ''}{off}"

    @property
    def conditions(self) -> str:
        """When it applies, for people: ``batchnorm is none``; empty for always."""
        met = ((other, " or ".join(map(shown_value, values))) for other, values in self.when.items())
        return " and ".join(f"{other} is {values}" for other, values in met)


def columns_of(spec: SweepSpec, name: str, depth: int) -> Iterator[Column]:
    """The columns of one searched parameter: one, or one for each of `depth` hidden layers."""
    parameter = spec.searched[name]
    for layer in range(1, depth + 1) if parameter.per_layer else (None,):
        when: dict[str, tuple[Value, ...]] = {}
        for other, values in parameter.when.items():
            target = TARGETS[other.partition(".")[0]]
            same_layer = layer is not None and other in spec.searched and spec.searched[other].per_layer
            asked = f"{other}.{layer}" if same_layer else other
            when[asked] = tuple(shown(target.convert(value)) for value in values)
        label = name if layer is None else f"{name}.{layer}"
        yield Column(label, TARGETS[name], layer, parameter, shown(spec.fixed(name)), when)


def in_order_of_conditions(columns: Sequence[Column]) -> tuple[Column, ...]:
    """Each column behind those its condition asks about, otherwise in the given order."""
    waiting = list(columns)
    placed: dict[str, Column] = {}
    while waiting:
        column = next(column for column in waiting if column.when.keys() <= placed.keys())
        waiting.remove(column)
        placed[column.name] = column
    return tuple(placed.values())


def shown(value: Any) -> Any:
    """A configuration's value as a column shows it: widths of layers as ``128-64``."""
    return shown_value(value) if isinstance(value, tuple) else value
