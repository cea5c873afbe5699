"""`Space`: the search space of a sweep, between what people see and what Optuna samples.

People see one flat assignment, name to value: an optional parameter that is off is 0, a parameter whose condition is
not met has its base value, widths of layers read ``128-64``. Optuna sees its distributions under the same names, and a
switch `NAME.on` beside each optional one. A per-layer parameter is one column a hidden layer: `dropout.1`, `dropout.2`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from regtune.config import (
    BatchNorm,
    DataConfig,
    EarlyStoppingConfig,
    ModelConfig,
    RegularizationConfig,
    TrainingConfig,
    TrialConfig,
    format_number,
)
from regtune.errors import ParameterError, SpecError
from regtune.spec import TARGETS, Categorical, Range, SweepSpec, Target, suggestion
from regtune.spec.checks import depths_of, shown_value
from regtune.spec.source import parse

Value = float | int | str | bool
TECHNIQUES = ("dropout", "l1", "l2", "batchnorm")


@dataclass(frozen=True)
class Column:
    """One searched value. layer: counted from 1, None for one value for all layers.

    base: what it is when its condition is not met. when: other columns and the values they must show.
    """

    name: str
    target: Target
    layer: int | None
    parameter: Categorical | Range
    base: Value
    when: Mapping[str, tuple[Value, ...]]

    @property
    def switch(self) -> str:
        """Optuna's name of the switch of an optional column."""
        return f"{self.name}.on"

    @cached_property
    def points(self) -> tuple[Value, ...] | None:
        """Every value while it is on, in a fixed order; None where it is continuous."""
        if isinstance(self.parameter, Categorical):
            return tuple(_shown(value) for value in self.parameter.values)
        return self.parameter.points

    @cached_property
    def choices(self) -> tuple[Value, ...] | None:
        """Every value it can show while its condition is met, off first; None where it is continuous."""
        if self.points is None:
            return None
        off = (self.off,) if self.parameter.optional and self.off not in self.points else ()
        return (*off, *self.points)

    @property
    def off(self) -> Value:
        """What an optional column shows when it is off: zero in its own type."""
        return 0 if self.target.kind == "whole" else 0.0

    @cached_property
    def distribution(self) -> BaseDistribution:
        """What Optuna samples for it."""
        found = self.parameter
        if isinstance(found, Categorical):
            return CategoricalDistribution([_shown(value) for value in found.values])
        if self.target.kind == "whole":
            low, high = (
                int(point)
                for point in (found.points or (found.min, found.max))[:: len(found.points or (0, 0)) - 1]
            )
            return (
                IntDistribution(low, high, log=True)
                if found.log
                else IntDistribution(low, high, step=int(found.q or 1))
            )
        if found.steps is None or found.log:
            return FloatDistribution(float(found.min), float(found.max), log=found.log)
        return FloatDistribution(
            float(found.multiple(found.steps[0])),
            float(found.multiple(found.steps[1])),
            step=float(found.q or 1),
        )

    def active(self, shown: Mapping[str, Value]) -> bool:
        """Whether its condition is met."""
        return all(shown[other] in values for other, values in self.when.items())

    def show(self, sampled: Any) -> Value:
        """A value of Optuna's as it is shown: a multiple of `q` exactly."""
        found = self.parameter
        if isinstance(found, Range) and found.steps is not None and found.q is not None:
            first, last = found.steps
            return found.multiple(min(max(round(sampled / found.q), first), last))
        value: Value = sampled
        return value

    def contains(self, value: Value) -> bool:
        """Whether it can show `value` while it is on."""
        if self.points is not None:
            return any(
                value == point and isinstance(value, bool) == isinstance(point, bool) for point in self.points
            )
        low, high = self.parameter.min, self.parameter.max  # type: ignore[union-attr]
        return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high

    @property
    def range(self) -> str:
        """What it can be, for people: ``1e-7 to 1e-3, log``."""
        found = self.parameter
        if isinstance(found, Categorical):
            return ", ".join(shown_value(value) for value in found.values)
        text = f"{format_number(found.min)} to {format_number(found.max)}"
        step = f", multiples of {found.q}" if found.q not in (None, 1) else ""
        return text + step + (", log" if found.log else "")


@dataclass(frozen=True)
class Row:
    """A column for a table: what it is called, how and over what it is searched, when, and its number of values."""

    name: str
    kind: str
    range: str
    condition: str
    count: int | None


@dataclass(frozen=True)
class Control:
    """A configuration that runs first, so that the board answers "better than what?".

    parameters: the assignment that gives exactly this configuration, None where the space does not contain it.
    """

    name: str
    config: TrialConfig
    parameters: Mapping[str, Value] | None


class Space:
    """The search space of a spec."""

    def __init__(self, spec: SweepSpec) -> None:
        self.spec = spec
        depth = max(depths_of(spec))
        columns = [column for name in spec.searched for column in _columns(spec, name, depth)]
        self.columns: tuple[Column, ...] = tuple(columns)
        self._by_name = {column.name: column for column in columns}
        self._order = _ordered(columns)

    @property
    def names(self) -> tuple[str, ...]:
        """The searched columns, as they are shown everywhere."""
        return tuple(self._by_name)

    @property
    def static(self) -> bool:
        """Whether every trial has the same parameters: nothing optional, nothing conditional."""
        return not any(column.parameter.optional or column.when for column in self.columns)

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's parameters and their distributions, switches of optional ones included."""
        found: dict[str, BaseDistribution] = {}
        for column in self._order:
            if column.parameter.optional:
                found[column.switch] = CategoricalDistribution([False, True])
            found[column.name] = column.distribution
        return found

    @property
    def roots(self) -> frozenset[str]:
        """Optuna's parameters that every trial of this space has."""
        return frozenset(
            column.switch if column.parameter.optional else column.name
            for column in self.columns
            if not column.when
        )

    def suggest(self, trial: optuna.Trial) -> dict[str, Value]:
        """Ask Optuna for a value of each column; the assignment as it is shown."""
        shown: dict[str, Value] = {}
        for column in self._order:
            if not column.active(shown):
                shown[column.name] = column.base
            elif column.parameter.optional and not trial.suggest_categorical(column.switch, [False, True]):
                shown[column.name] = column.off
            else:
                shown[column.name] = column.show(_ask(trial, column.name, column.distribution))
        return {name: shown[name] for name in self.names}

    def to_optuna(self, parameters: Mapping[str, Value]) -> dict[str, Any]:
        """Optuna's parameters that `suggest` shows as `parameters`. Raises ParameterError."""
        self._known(parameters)
        missing = [name for name in self.names if name not in parameters]
        if missing:
            raise ParameterError(f"missing: {', '.join(missing)}")
        found: dict[str, Any] = {}
        problems: list[str] = []
        for column in self._order:
            value = self._converted(column, parameters[column.name])
            if not column.active(parameters):
                if value != column.base:
                    problems.append(
                        f"{column.name}: {_unmet(column, parameters)}, so it is {column.base}; found {value}"
                    )
                continue
            on = column.contains(value)
            if column.parameter.optional and value == column.off and not isinstance(value, bool):
                found[column.switch] = False
                continue
            if not on:
                also = " or 0 (off)" if column.parameter.optional else ""
                problems.append(f"{column.name}: expected {column.range}{also}; found {value}")
                continue
            if column.parameter.optional:
                found[column.switch] = True
            found[column.name] = value
        if problems:
            raise ParameterError("\n".join(problems))
        return found

    def parse(self, assignments: Sequence[str]) -> dict[str, Value]:
        """An assignment from ``key=value`` words; keys not given take their base values. Raises ParameterError."""
        given: dict[str, Value] = {}
        for text in assignments:
            name, equals, value = text.partition("=")
            if not equals or not name:
                raise ParameterError(f"{text}: expected key=value, for example {self.names[0]}=VALUE")
            if name in given:
                raise ParameterError(f"{name}: given twice")
            self._known([name])
            given[name] = self._read(self._by_name[name], value)
        shown: dict[str, Value] = {}
        missing: list[str] = []
        for column in self._order:
            if column.name in given:
                shown[column.name] = given[column.name]
                continue
            shown[column.name] = column.base
            off = column.parameter.optional and column.base == column.off
            if column.active(shown) and not off and not column.contains(column.base):
                missing.append(f"{column.name} (its base {column.base} is outside {column.range})")
        if missing:
            raise ParameterError(f"missing: {', '.join(missing)}")
        complete = {name: shown[name] for name in self.names}
        self.to_optuna(complete)
        return complete

    def config(self, parameters: Mapping[str, Value], *, seed: int, data: DataConfig) -> TrialConfig:
        """The configuration that an assignment stands for. Raises ParameterError for names the space has not."""
        self._known(parameters)

        def value(name: str) -> Any:
            layers = sorted(
                (column.layer or 0, key)
                for key, column in self._by_name.items()
                if column.target.name == name
            )
            if not layers:
                return self.spec.fixed(name)
            found = [parameters[key] for _, key in layers]
            return tuple(found) if layers[0][0] else found[0]

        hidden = value("hidden")
        early_stopping = self.spec.early_stopping
        return TrialConfig(
            model=ModelConfig(hidden=_widths(hidden), activation=value("activation")),
            regularization=RegularizationConfig(**{name: value(name) for name in TECHNIQUES}),
            training=TrainingConfig(**{name: value(name) for name in TrainingConfig.model_fields}),
            early_stopping=None
            if early_stopping is None
            else EarlyStoppingConfig(**{name: value(name) for name in EarlyStoppingConfig.model_fields}),
            data=data,
            seed=seed,
        )

    @cached_property
    def size(self) -> int | None:
        """How many distinct assignments there are; None when one column is continuous."""
        if any(column.choices is None for column in self.columns):
            return None
        asked_about = {other for column in self.columns for other in column.when}
        order = self._order

        @lru_cache(maxsize=None)
        def count(index: int, shown: tuple[tuple[str, Value], ...]) -> int:
            if index == len(order):
                return 1
            column = order[index]
            choices = (column.choices or ()) if column.active(dict(shown)) else (column.base,)
            if column.name not in asked_about:
                return len(choices) * count(index + 1, shown)
            return sum(count(index + 1, (*shown, (column.name, choice))) for choice in choices)

        return count(0, ())

    def grid(self) -> Iterator[dict[str, Value]]:
        """All distinct assignments in a fixed order, the last column fastest. Raises SpecError when one is continuous."""
        continuous = [column.name for column in self.columns if column.choices is None]
        if continuous:
            raise SpecError([f"{name}: continuous; a grid needs values or q" for name in continuous])

        def walk(index: int, shown: dict[str, Value]) -> Iterator[dict[str, Value]]:
            if index == len(self._order):
                yield {name: shown[name] for name in self.names}
                return
            column = self._order[index]
            for choice in (column.choices or ()) if column.active(shown) else (column.base,):
                yield from walk(index + 1, {**shown, column.name: choice})

        return walk(0, {})

    def grid_at(self, index: int) -> dict[str, Value] | None:
        """The `index`-th assignment of the grid, counted from 0; None behind its end."""
        return next(islice(self.grid(), index, None), None)

    @property
    def rows(self) -> tuple[Row, ...]:
        """The space as a table."""
        return tuple(
            Row(
                name=column.name,
                kind=_kind(column),
                range=column.range + (", or 0 (off)" if column.parameter.optional else ""),
                condition=" and ".join(_condition(other, values) for other, values in column.when.items()),
                count=None if column.choices is None else len(column.choices),
            )
            for column in self.columns
        )

    def _known(self, names: Mapping[str, Any] | Sequence[str]) -> None:
        problems = []
        for name in names:
            if name in self._by_name:
                continue
            if name in TARGETS and (layers := [key for key in self.names if key.startswith(f"{name}.")]):
                problems.append(f"{name}: is searched per layer; expected {layers[0]} to {layers[-1]}")
            elif name in TARGETS:
                problems.append(
                    f"{name}: is not searched in this sweep; expected one of {', '.join(self.names)}"
                )
            else:
                hint = suggestion(name, self.names) or f"; expected one of {', '.join(self.names)}"
                problems.append(f"{name}: unknown parameter{hint}")
        if problems:
            raise ParameterError("\n".join(problems))

    @staticmethod
    def _converted(column: Column, value: Value) -> Value:
        converted: Value = column.target.convert(value)
        return converted

    def _read(self, column: Column, text: str) -> Value:
        try:
            source = parse(text, column.name)
        except SpecError as error:
            raise ParameterError(str(error)) from None
        if source.problems:
            raise ParameterError(f"{column.name}: {source.problems[0][1]}")
        value = source.values
        if isinstance(value, list) and column.target.kind == "layers":
            value = _shown(tuple(value))
        if value is None or isinstance(value, list | dict):
            raise ParameterError(f"{column.name}: expected {column.range}; found {text!r}")
        if column.target.kind in ("word", "layers"):
            value = str(value)
        return self._converted(column, value)


def controls(spec: SweepSpec, data: DataConfig) -> list[Control]:
    """The unregularized network, early stopping alone, and each technique alone at a fixed strength.

    `none` also goes without early stopping and keeps its last epoch's weights; every other has the sweep's early
    stopping. Searched keys of model and training have their base values. The seed is 0: the coordinator sets it.
    Controls that come to the same configuration are listed once.
    """
    space = Space(spec)
    base = {name: spec.fixed(name) for name in TARGETS}
    before: BatchNorm = "before_activation"
    after: BatchNorm = "after_activation"
    techniques = {
        "none": RegularizationConfig(),
        "early_stopping": RegularizationConfig(),
        "dropout": RegularizationConfig(dropout=(0.2,)),
        "l1": RegularizationConfig(l1=(1e-5,)),
        "l2": RegularizationConfig(l2=(1e-4,)),
        "batchnorm_before": RegularizationConfig(batchnorm=(before,)),
        "batchnorm_after": RegularizationConfig(batchnorm=(after,)),
    }
    found: list[Control] = []
    for name, regularization in techniques.items():
        stopping = spec.early_stopping if name != "none" else None
        config = TrialConfig(
            model=ModelConfig(hidden=base["hidden"], activation=base["activation"]),
            regularization=regularization,
            training=TrainingConfig(**{key: base[key] for key in TrainingConfig.model_fields}),
            early_stopping=stopping
            and EarlyStoppingConfig(**{key: base[key] for key in EarlyStoppingConfig.model_fields}),
            data=data,
        )
        if all(config != other.config for other in found):
            found.append(Control(name, config, _assignment(space, config)))
    return found


def _assignment(space: Space, config: TrialConfig) -> dict[str, Value] | None:
    """The assignment of `space` that gives `config`, or None."""
    blocks = (config.model, config.regularization, config.training, config.early_stopping)
    shown: dict[str, Value] = {}
    for column in space.columns:
        block = next(
            (block for block in blocks if block and column.target.name in type(block).model_fields), None
        )
        if block is None:
            return None
        value = getattr(block, column.target.name)
        if column.target.layered:
            if column.layer is None and len(set(value)) > 1:
                return None
            value = value[(column.layer or 1) - 1]
        shown[column.name] = _shown(value)
    try:
        space.to_optuna(shown)
    except ParameterError:
        return None
    return shown if space.config(shown, seed=config.seed, data=config.data) == config else None


def _columns(spec: SweepSpec, name: str, depth: int) -> Iterator[Column]:
    parameter = spec.searched[name]
    target = TARGETS[name]
    base = _shown(spec.fixed(name))
    for layer in range(1, depth + 1) if parameter.per_layer else (None,):
        when = {}
        for other, values in parameter.when.items():
            same_layer = layer is not None and other in spec.searched and spec.searched[other].per_layer
            converted = tuple(_shown(TARGETS[other.partition(".")[0]].convert(value)) for value in values)
            when[f"{other}.{layer}" if same_layer else other] = converted
        yield Column(f"{name}.{layer}" if layer else name, target, layer, parameter, base, when)


def _ordered(columns: Sequence[Column]) -> tuple[Column, ...]:
    """Each column behind those its condition asks about, otherwise in the given order."""
    waiting = list(columns)
    found: list[Column] = []
    while waiting:
        column = next(c for c in waiting if all(any(o == f.name for f in found) for o in c.when))
        waiting.remove(column)
        found.append(column)
    return tuple(found)


def _ask(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(
            name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    if isinstance(distribution, FloatDistribution):
        return trial.suggest_float(
            name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    raise TypeError(type(distribution).__name__)


def _shown(value: Any) -> Any:
    return shown_value(value) if isinstance(value, tuple) else value


def _widths(shown: Any) -> tuple[int, ...]:
    return shown if isinstance(shown, tuple) else tuple(int(width) for width in str(shown).split("-"))


def _kind(column: Column) -> str:
    found = column.parameter
    if isinstance(found, Categorical):
        return "values"
    kind = "whole number" if column.target.kind == "whole" else "real number"
    return f"{kind}, log scale" if found.log else kind


def _condition(other: str, values: Sequence[Value]) -> str:
    return f"{other} is {' or '.join(shown_value(value) for value in values)}"


def _unmet(column: Column, shown: Mapping[str, Value]) -> str:
    conditions = [
        _condition(other, values) for other, values in column.when.items() if shown.get(other) not in values
    ]
    return f"applies only when {' and '.join(conditions)}"
