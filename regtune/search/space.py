"""The search space: all searched columns of a sweep together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import BaseTrial

from regtune.config.mistakes import suggestion
from regtune.config.source import parse
from regtune.config.sweepfile import SweepSpec
from regtune.config.sweepfile.checks import depths_of
from regtune.config.sweepfile.parameters import BLOCKS, TARGETS, Categorical
from regtune.config.trial import DataConfig, TrialConfig
from regtune.errors import ParameterError, SpecError
from regtune.search.columns import Column, Value, columns_of, in_order_of_conditions, shown


@dataclass(frozen=True)
class Searched:
    """A column in a table: how and over what it is searched, when it applies, its number of values if countable."""

    name: str
    kind: str
    range: str
    condition: str
    count: int | None


class Space:
    """The search space of a spec.

    Example:
        >>> spec = SweepSpec.from_dict({"run_cap": 9, "parameters": {"dropout": {"values": [0.0, 0.2]}}})
        >>> [dict(assignment) for assignment in Space(spec).grid()]
        [{'dropout': 0.0}, {'dropout': 0.2}]
    """

    def __init__(self, spec: SweepSpec) -> None:
        self.spec = spec
        depth = max(depths_of(spec))
        self.columns: tuple[Column, ...] = tuple(
            column for name in spec.searched for column in columns_of(spec, name, depth)
        )
        self._by_name = {column.name: column for column in self.columns}
        self._asked = in_order_of_conditions(self.columns)

    @property
    def names(self) -> tuple[str, ...]:
        """The searched columns, as they are shown everywhere."""
        return tuple(self._by_name)

    @property
    def static(self) -> bool:
        """Whether every trial has the same parameters: nothing optional, nothing conditional."""
        return not any(column.optional or column.when for column in self.columns)

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's parameters and their distributions, the switches of optional ones included."""
        distributions: dict[str, BaseDistribution] = {}
        for column in self._asked:
            if column.optional:
                distributions[column.switch] = CategoricalDistribution([False, True])
            distributions[column.name] = column.distribution
        return distributions

    @cached_property
    def roots(self) -> frozenset[str]:
        """Optuna's parameters that every trial of this space has."""
        always = (column for column in self.columns if not column.when)
        return frozenset(column.switch if column.optional else column.name for column in always)

    @property
    def rows(self) -> tuple[Searched, ...]:
        rows = []
        for column in self.columns:
            number = "whole number" if column.target.kind == "whole" else "real number"
            kind = "values" if isinstance(column.parameter, Categorical) else number
            count = None if column.choices is None else len(column.choices)
            rows.append(Searched(column.name, kind, column.takes, column.conditions, count))
        return tuple(rows)

    def suggest(self, trial: BaseTrial) -> dict[str, Value]:
        """Let Optuna choose a value for each column; the assignment as it is shown."""
        assignment: dict[str, Value] = {}
        for column in self._asked:
            if not column.active(assignment):
                assignment[column.name] = column.base
            elif column.optional and not trial.suggest_categorical(column.switch, [False, True]):
                assignment[column.name] = column.off
            else:
                assignment[column.name] = column.ask(trial)
        return self._in_order(assignment)

    def to_optuna(self, parameters: Mapping[str, Value]) -> dict[str, Any]:
        """Optuna's parameters that `suggest` shows as `parameters`. Raises ParameterError, one line a mistake."""
        self._complete(parameters)
        return self.fix(parameters)

    def fix(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Optuna's parameters that `suggest` shows as `parameters`; it proposes what is not among them.

        parameters: by the names that are shown, or by Optuna's. Raises ParameterError, one line a mistake.
        """
        switches = {column.switch: column for column in self.columns if column.optional}
        problems, given, fixed = list[str](), dict[str, Any](), dict[str, Any]()
        for name, value in parameters.items():
            if name in self._by_name:
                given.setdefault(name, self._by_name[name].target.convert(value))
            elif name not in switches:
                problems.append(self._unknown(name))
            elif not isinstance(value, bool):
                problems.append(f"{name}: expected true or false; found {value!r:.80}")
            else:
                fixed[name] = value
                if not value:
                    given[switches[name].name] = switches[name].off
        fixed |= self._fixed(self._with_conditions(given), problems)
        _refuse(problems)
        return fixed

    def _fixed(self, given: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
        """Optuna's parameters for the columns in `given`; what is wrong with them goes to `problems`."""
        fixed: dict[str, Any] = {}
        for column in self._asked:
            if column.name not in given:
                continue
            value = given[column.name]
            if not column.active(given):
                if value != column.base:
                    only = f"applies only when {column.conditions}; otherwise it is {column.base}"
                    problems.append(f"{column.name}: {only}, found {value!r:.80}")
            elif column.is_off(value):
                fixed[column.switch] = False
            elif not column.contains(value):
                problems.append(f"{column.name}: expected {column.takes}; found {value!r:.80}")
            else:
                if column.optional:
                    fixed[column.switch] = True
                fixed[column.name] = value
        return fixed

    def parse(self, assignments: Sequence[str]) -> dict[str, Value]:
        """What ``key=value`` words name, and what that depends on. Raises ParameterError, one line a mistake."""
        given: dict[str, Value] = {}
        problems: list[str] = []
        for text in assignments:
            name, equals, value = (part.strip() for part in text.partition("="))
            if not equals or not name:
                problems.append(f"{text}: expected key=value, for example {self.names[0]}=VALUE")
            elif name not in self._by_name:
                problems.append(self._unknown(name))
            elif name in given:
                problems.append(f"{name}: given twice")
            else:
                given[name] = _read(self._by_name[name], value)
        try:
            self.fix(given)
        except ParameterError as error:
            problems += str(error).splitlines()
        _refuse(problems)
        assignment = self._with_conditions(given)
        return {name: assignment[name] for name in self.names if name in assignment}

    def config(self, parameters: Mapping[str, Value], *, seed: int, data: DataConfig) -> TrialConfig:
        """The configuration that a complete assignment stands for. Raises ParameterError."""
        self._complete(parameters)
        blocks: dict[str, Any] = {
            block: model(**{name: self._value(name, parameters) for name in model.model_fields})
            for block, model in BLOCKS.items()
            if block != "early_stopping" or self.spec.early_stopping
        }
        return TrialConfig(**{"early_stopping": None} | blocks, data=data, seed=seed)

    @cached_property
    def size(self) -> int | None:
        """How many distinct assignments there are; None when a column is continuous."""
        if any(column.choices is None for column in self.columns):
            return None
        asked = defaultdict(list)
        for column in self.columns:
            for other, values in column.when.items():
                asked[other].append(values)

        @cache
        def count(index: int, decided: tuple[tuple[str, Value], ...]) -> int:
            if index == len(self._asked):
                return 1
            column = self._asked[index]
            alike = defaultdict(list)  # choices that meet the same conditions have as many assignments each
            for choice in self._choices(column, dict(decided)):
                alike[tuple(choice in values for values in asked[column.name])].append(choice)
            return sum(
                len(choices) * count(index + 1, (*decided, (column.name, choices[0])))
                for choices in alike.values()
            )

        return count(0, ())

    def grid(self) -> Iterator[dict[str, Value]]:
        """All distinct assignments in a fixed order, the last column fastest. Raises SpecError for a continuous one."""
        continuous = [column.name for column in self.columns if column.choices is None]
        if continuous:
            raise SpecError([f"{name}: continuous; a grid needs values or q" for name in continuous])

        def walk(index: int, decided: dict[str, Value]) -> Iterator[dict[str, Value]]:
            if index == len(self._asked):
                yield self._in_order(decided)
                return
            column = self._asked[index]
            for choice in self._choices(column, decided):
                yield from walk(index + 1, {**decided, column.name: choice})

        return walk(0, {})

    @staticmethod
    def _choices(column: Column, decided: Mapping[str, Value]) -> tuple[Value, ...]:
        return (column.choices or ()) if column.active(decided) else (column.base,)

    def _in_order(self, assignment: Mapping[str, Value]) -> dict[str, Value]:
        return {name: assignment[name] for name in self.names}

    def _value(self, name: str, parameters: Mapping[str, Value]) -> Any:
        """What `name` is in a configuration: one value, or one a layer; widths as numbers again."""
        values = [parameters[column.name] for column in self.columns if column.target.name == name]
        if not values:
            return self.spec.fixed(name)
        if self.spec.searched[name].per_layer:
            return tuple(values)
        return tuple(int(width) for width in str(values[0]).split("-")) if name == "hidden" else values[0]

    def _complete(self, parameters: Mapping[str, Value]) -> None:
        problems = [self._unknown(name) for name in parameters if name not in self._by_name]
        missing = [name for name in self.names if name not in parameters]
        _refuse(problems or ([f"missing: {', '.join(missing)}"] if missing else []))

    def _unknown(self, name: str) -> str:
        layers = [known for known in self.names if known.startswith(f"{name}.")]
        if layers:
            return f"{name}: is searched per layer; expected {' and '.join(layers)}"
        others = f"expected one of {', '.join(self.names)}"
        if name in TARGETS:
            return f"{name}: is not searched in this sweep; {others}"
        return f"{name}: unknown parameter{suggestion(name, self.names) or '; ' + others}"

    def _with_conditions(self, given: Mapping[str, Value]) -> dict[str, Value]:
        """With a value for each column that a condition of these asks about: the first under which it is met."""
        complete = dict(given)
        for column in reversed(self._asked):
            for other, values in column.when.items() if column.name in complete else ():
                asked = self._by_name[other]
                possible = (value for value in values if asked.contains(value) or asked.is_off(value))
                complete.setdefault(other, next(possible, values[0]))
        return complete


def _read(column: Column, text: str) -> Value:
    """The value that a person has typed; the text itself where it is none, which the column refuses."""
    try:
        source = parse(text, column.name)
    except SpecError:
        return text
    value = source.values
    if isinstance(value, list) and column.target.kind == "layers":
        value = shown(tuple(value))
    if source.problems or value is None or isinstance(value, list | dict):
        return text
    textual = column.target.kind in ("word", "layers")
    converted: Value = str(value) if textual else column.target.convert(value)
    return converted


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise ParameterError("\n".join(problems))
