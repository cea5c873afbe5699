"""A YAML file as written, a sweep file or a configuration: its values, and the line of each.

PyYAML composes nodes, which know their lines; they become plain values here. Plain scalars are read by YAML 1.2's
core schema: `1e-3` is a number, `no` is a word, `1:30` is not ninety, a date is text. Keys given twice, tags,
non-finite numbers, and more than a person would write (bytes, values, levels, aliases that multiply) are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from regtune.config.mistakes import Problem, Where, describe, shortened
from regtune.errors import SourceError, SpecError
from regtune.escaping import printable

MAX_BYTES = 2**18
MAX_NODES = 5_000
MAX_DEPTH = 32
MAX_MESSAGE = 480
MAX_PROBLEMS = 30
"""Mistakes that are told at once."""

_TAG = "tag:yaml.org,2002:"


@dataclass
class Source:
    """Plain values (mappings, lists, text, numbers, booleans, None) and the place each was read from.

    label: what leads a line about a place that is not in `places`, such as ``sweeps/mnist.yaml``.
    problems: what reading itself refused.
    """

    values: Any
    label: str
    places: dict[Where, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, problem: Problem) -> str:
        """``sweeps/mnist.yaml:14: parameters.dropout: expected ...``."""
        where, what = problem[0], shortened(problem[1], MAX_MESSAGE)
        above = (where[:depth] for depth in range(len(where), -1, -1))
        place = next((self.places[at] for at in above if at in self.places), self.label)
        key = ".".join(shortened(str(part)) for part in where)
        return printable(f"{place}: {key}: {what}" if key else f"{place}: {what}")

    def lines(self, problems: Iterable[Problem]) -> list[str]:
        """One line for each mistake in the order of the file: those of reading, and of `problems` those elsewhere.

        Of very many the first, and how many more there are.
        """

        def order(line: str) -> float:
            number = line.removeprefix(f"{self.label}:").partition(":")[0]
            return int(number) if number.isdigit() else math.inf

        unread = {where for where, _ in self.problems}
        every = [*self.problems, *(problem for problem in problems if problem[0] not in unread)]
        lines = sorted(dict.fromkeys(map(self.line, every)), key=order)
        more = len(lines) - MAX_PROBLEMS
        return [*lines[:MAX_PROBLEMS], *([f"{self.label}: and {more} more mistakes"] if more > 0 else [])]

    def set(self, assignment: str) -> None:
        """Apply one `--set key=value`; a dot in the key goes one level down, the value is YAML. Raises SpecError."""
        label = printable(f"--set {shortened(assignment)}")
        key, equals, text = assignment.partition("=")
        where: Where = tuple(key.strip().split("."))
        if not equals or not all(part and str(part).isprintable() for part in where):
            raise SpecError([f"{label}: expected key=value, for example training.max_epochs=5"])
        given = parse(text, label)
        group = self.values
        for part in where[:-1]:
            if group.get(part) is None:
                group[part] = {}
            group = group[part]
            if not isinstance(group, dict):
                raise SpecError([f"{label}: {part} is not a group of keys"])
        group[where[-1]] = given.values
        self.places = {at: place for at, place in self.places.items() if at[: len(where)] != where}
        self.places[where] = label
        self.problems += [((*where, *at), what) for at, what in given.problems]

    def at(self, node: yaml.Node) -> str:
        """The file and line of a node."""
        return f"{self.label}:{node.start_mark.line + 1}"

    def refuse(self, where: Where, node: yaml.Node, what: str) -> None:
        """Note a mistake."""
        self.places[where] = self.at(node)
        self.problems.append((where, what))


def read(path: Path, error: type[SourceError]) -> Source:
    """Read a file. Raises `error` when it cannot be read at all, or is not a mapping."""
    label = printable(str(path))
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise error([f"{label}: no such file; expected {error.expected}"]) from None
    except (OSError, ValueError) as reason:
        said = getattr(reason, "strerror", None) or str(reason)
        raise error([f"{label}: cannot be read ({said})"]) from None
    if len(raw) > MAX_BYTES:
        raise error([f"{label}: larger than {MAX_BYTES // 2**10} KiB; expected {error.expected}"])
    try:
        return parse_mapping(raw.decode("utf-8"), label, error)
    except UnicodeDecodeError as reason:
        line = raw[: reason.start].count(b"\n") + 1
        raise error([f"{label}:{line}: expected UTF-8 text"]) from None


def parse_mapping(text: str, label: str, error: type[SourceError]) -> Source:
    """`parse`, where keys are expected. Raises `error` when there are none."""
    source = parse(text, label, error)
    if not isinstance(source.values, dict):
        raise error([f"{label}:1: expected {error.expected}, found {describe(source.values)}"])
    return source


def parse(text: str, label: str, error: type[SourceError] = SpecError) -> Source:
    """Values of a YAML text. Raises `error` when it is not YAML; other mistakes are in `problems`."""
    source, place = Source(None, label), label
    without_marks = re.sub("^\ufeff+", "", text, flags=re.MULTILINE)  # a file may be joined from several
    try:
        node = _Loader(without_marks).get_single_node()
        if node is not None:
            source.values = _value(source, node, ())
    except (yaml.YAMLError, ValueError, OverflowError) as reason:
        said = str(reason).splitlines()[0]
        if isinstance(reason, yaml.MarkedYAMLError):
            said = " ".join(filter(None, (reason.context, reason.problem)))
            mark = reason.problem_mark or reason.context_mark
            place = f"{label}:{mark.line + 1}" if mark else label
        raise error([printable(f"{place}: not readable YAML: {shortened(said, MAX_MESSAGE)}")]) from None
    return source


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


_INT = r"[-+]?[0-9]{1,40}|0x[0-9a-fA-F]{1,38}|0o[0-7]{1,38}"
_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
_SCALARS: Mapping[str, tuple[str, str, Callable[[str], Any]]] = {
    "null": ("nothing", r"~|null|Null|NULL|", lambda text: None),
    "bool": (
        "true or false",
        r"true|True|TRUE|false|False|FALSE",
        lambda text: yaml.SafeLoader.bool_values[text.lower()],
    ),
    "int": ("a whole number", _INT, lambda text: int(text, 0 if text[:2] in ("0x", "0o") else 10)),
    "float": ("a finite number", _FLOAT, _finite),
}
"""What is not text: how it is said, how it is written, how it is read."""


class _Loader(yaml.SafeLoader):
    """Composes no more nodes than a person writes; an alias counts as often as what it repeats."""

    nodes = depth = 0

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.sizes: dict[str | None, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event, before = self.peek_event(), self.nodes  # type: ignore[no-untyped-call]
        alias = isinstance(event, yaml.AliasEvent)
        self.nodes += self.sizes.get(event.anchor, 0) if alias else 1
        self.depth += 1
        if self.nodes > MAX_NODES or self.depth > MAX_DEPTH:
            much = f"more than {MAX_NODES} values, those of aliases included, or than {MAX_DEPTH} levels"
            raise yaml.MarkedYAMLError(problem=much, problem_mark=event.start_mark)
        if not alias:
            self.sizes[event.anchor] = MAX_NODES  # for an alias of a group within itself
        node: yaml.Node | None = super().compose_node(parent, index)
        if not alias:
            self.sizes[event.anchor] = self.nodes - before
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 takes for text and 1.2 for a number: ``1e5``."""


_Loader.yaml_implicit_resolvers = {}
for _kind, _scalar in _SCALARS.items():
    for _end in (_Loader, _Dumper):
        _end.add_implicit_resolver(_TAG + _kind, re.compile(f"(?:{_scalar[1]})$"), None)


def _value(source: Source, node: yaml.Node, where: Where) -> Any:
    kind = node.tag.removeprefix(_TAG)
    if where:
        source.places.setdefault(where, source.at(node))
    if kind not in (*_SCALARS, "str", "seq", "map"):
        source.refuse(where, node, f"the YAML tag {kind!r:.60} is not read; write the value without it")
    if isinstance(node, yaml.MappingNode):
        items = _items(source, node, where)
        return {key: _value(source, inner, (*where, key)) for key, inner in items.items()}
    if isinstance(node, yaml.SequenceNode):
        return [_value(source, inner, (*where, index)) for index, inner in enumerate(node.value)]
    text = _text(source, node, where)
    if kind not in _SCALARS:
        return text
    expected, _, convert = _SCALARS[kind]
    try:
        return convert(text)
    except (ValueError, KeyError, OverflowError):
        source.refuse(where, node, f"expected {expected}, found {describe(text)}")
        return 0


def _items(source: Source, node: yaml.MappingNode, where: Where) -> dict[str, yaml.Node]:
    """The keys of a mapping: its own, then those merged into it (`<<`) that it does not have."""
    items: dict[str, yaml.Node] = {}
    merged: list[yaml.Node] = []
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            source.refuse((*where, "?"), key_node, "expected a word as key, found a group of values")
            continue
        key = _text(source, key_node, where)
        if key == "<<" and key_node.style is None:
            merged += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
        elif key in items:
            first = source.places[(*where, key)]
            source.refuse((*where, key), key_node, f"given twice, first at {first}; expected one")
        else:
            items[key] = value_node
            source.places.setdefault((*where, key), source.at(key_node))
    for other in merged:
        if isinstance(other, yaml.MappingNode):
            items = {**_items(source, other, where), **items}
        else:
            source.refuse((*where, "<<"), other, "expected a group of keys, or a list of groups")
    return items


def _text(source: Source, node: yaml.Node, where: Where) -> str:
    """The text of a scalar; JSON writes a letter beyond U+FFFF as two halves, which PyYAML leaves apart."""
    text = str(node.value)
    try:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        source.refuse(where, node, "expected text, found half a letter (a lone surrogate)")
        return printable(text)


def text_of(values: Mapping[str, Any], *, flow: bool | None) -> str:
    """YAML that is read back as it was, here and by YAML 1.1. flow: None has groups of single values on one line."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, default_flow_style=flow, width=110)
