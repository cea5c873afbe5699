"""One searched value: Optuna's distribution, the value shown to people, and its condition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import BaseTrial

from regtune.config.sweepfile import TARGETS, Categorical, Range, SweepSpec, Target
from regtune.config.sweepfile.checks import shown_value
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
        """Whether it may be off."""
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
        found = self.parameter
        if isinstance(found, Categorical):
            return CategoricalDistribution(self.points or ())
        low, high = (found.points[0], found.points[-1]) if found.points else (found.min, found.max)
        if self.target.kind == "whole":
            step = 1 if found.log else int(found.step or 1)
            return IntDistribution(int(low), int(high), log=found.log, step=step)
        step_or_none = None if found.log or found.q is None else float(found.q)
        return FloatDistribution(float(low), float(high), log=found.log, step=step_or_none)

    def ask(self, trial: BaseTrial) -> Value:
        """Let Optuna choose a value; the value as it is shown."""
        found = self.distribution
        if isinstance(found, CategoricalDistribution):
            return self.show(trial.suggest_categorical(self.name, found.choices))
        if isinstance(found, IntDistribution):
            return self.show(
                trial.suggest_int(self.name, found.low, found.high, step=found.step, log=found.log)
            )
        assert isinstance(found, FloatDistribution)
        return self.show(
            trial.suggest_float(self.name, found.low, found.high, step=found.step, log=found.log)
        )

    def show(self, sampled: Any) -> Value:
        """A value of Optuna's as it is shown: a multiple of `q` exactly."""
        found = self.parameter
        if isinstance(found, Range) and found.steps is not None and found.step is not None:
            first, last = found.steps
            return found.multiple(min(max(round(sampled / found.step), first), last))
        value: Value = sampled
        return value

    def active(self, assignment: Mapping[str, Value]) -> bool:
        """Whether its condition is met."""
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
        """Whether `value` says that it is off."""
        return self.optional and value == self.off and not isinstance(value, bool)

    @property
    def takes(self) -> str:
        """What it can be, for people: ``1e-7 to 0.001, log, or 0 (off)``."""
        return f"{self.range}{', or 0 (off)' if self.optional else ''}"

    @property
    def range(self) -> str:
        """What it can be while it is on, for people: ``1e-7 to 0.001, log``."""
        found = self.parameter
        if isinstance(found, Categorical):
            return ", ".join(shown_value(value) for value in found.values)
        step = f", multiples of {format_number(found.q)}" if found.q not in (None, 1) and found.q else ""
        return f"{format_number(found.min)} to {format_number(found.max)}{step}{', log' if found.log else ''}"

    @property
    def kind(self) -> str:
        """How it is searched, for people."""
        if isinstance(self.parameter, Categorical):
            return "values"
        return "whole number" if self.target.kind == "whole" else "real number"

    @property
    def conditions(self) -> str:
        """When it applies, for people: ``batchnorm is none``; empty for always."""
        return " and ".join(
            f"{other} is {' or '.join(shown_value(value) for value in values)}"
            for other, values in self.when.items()
        )


def columns_of(spec: SweepSpec, name: str, depth: int) -> Iterator[Column]:
    """The columns of one searched parameter: one, or one for each of `depth` hidden layers."""
    parameter = spec.searched[name]
    for layer in range(1, depth + 1) if parameter.per_layer else (None,):
        when: dict[str, tuple[Value, ...]] = {}
        for other, values in parameter.when.items():
            target = TARGETS[other.partition(".")[0]]
            same_layer = layer is not None and other in spec.searched and spec.searched[other].per_layer
            when[f"{other}.{layer}" if same_layer else other] = tuple(
                shown(target.convert(value)) for value in values
            )
        label = name if layer is None else f"{name}.{layer}"
        yield Column(label, TARGETS[name], layer, parameter, shown(spec.fixed(name)), when)


def in_order_of_conditions(columns: Sequence[Column]) -> tuple[Column, ...]:
    """Each column behind those its condition asks about, otherwise in the given order."""
    waiting = list(columns)
    found: dict[str, Column] = {}
    while waiting:
        column = next(column for column in waiting if column.when.keys() <= found.keys())
        waiting.remove(column)
        found[column.name] = column
    return tuple(found.values())


def shown(value: Any) -> Any:
    """A configuration's value as a column shows it: widths of layers as ``128-64``."""
    return shown_value(value) if isinstance(value, tuple) else value
