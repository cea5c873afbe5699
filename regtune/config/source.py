"""A YAML file as written, a sweep file or a configuration: its values, and the line of each.

PyYAML composes nodes, which know their lines; they become plain values here. Plain scalars are read by YAML 1.2's
core schema: `1e-3` is a number, `no` is a word, `1:30` is not ninety, a date is text. Keys given twice, tags,
non-finite numbers, and more than a person would write (bytes, values, levels, aliases that multiply) are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from regtune.config.mistakes import Problem, Where, describe, shortened
from regtune.errors import ConfigError, SourceError, SpecError
from regtune.escaping import printable

MAX_BYTES = 2**18
MAX_NODES = 5_000
MAX_DEPTH = 32
MAX_MESSAGE = 480
MAX_PROBLEMS = 30
"""Mistakes that are told at once."""


class Form(NamedTuple):
    """What a file should be, and the error that says what it is instead."""

    error: type[SourceError]
    name: str
    keys: str


SWEEP = Form(SpecError, "a sweep file", "keys such as parameters and run_cap")
CONFIGURATION = Form(ConfigError, "a configuration", "a configuration, as `regtune best STUDY` prints it")

_INT = re.compile(r"[-+]?[0-9]{1,40}|0x[0-9a-fA-F]{1,38}|0o[0-7]{1,38}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NON_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_STANDARD_TAG = "tag:yaml.org,2002:"
_PLAIN = ""
"""The tag of a scalar that has none and no quotation marks."""
_SCALAR_TAGS = tuple(_STANDARD_TAG + name for name in ("bool", "float", "int", "null"))
_MARKS = re.compile("^\ufeff+", re.MULTILINE)
"""Byte-order marks, as they stand inside a file that was joined from several."""


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
        return printable(f"{place}: {key}: {what}" if key and key != place else f"{place}: {what}")

    def lines(self, problems: Iterable[Problem]) -> list[str]:
        """One line for each mistake in the order of the file: those of reading, and of `problems` those elsewhere.

        Of very many the first, and how many more there are.
        """

        def order(line: str) -> float:
            number = line.removeprefix(f"{self.label}:").partition(":")[0]
            return int(number) if line.startswith(f"{self.label}:") and number.isdigit() else math.inf

        unread = {where for where, _ in self.problems}
        every = [*self.problems, *(problem for problem in problems if problem[0] not in unread)]
        lines = sorted(dict.fromkeys(map(self.line, every)), key=order)
        more = len(lines) - MAX_PROBLEMS
        return [*lines[:MAX_PROBLEMS], *([f"{self.label}: and {more} more mistakes"] if more > 0 else [])]

    def set(self, assignment: str) -> None:
        """Apply one `--set key=value`; a dot in the key goes one level down, the value is YAML."""
        label = printable(f"--set {shortened(assignment)}")
        key, equals, text = assignment.partition("=")
        where: Where = tuple(key.strip().split("."))
        if not equals or not all(part and str(part).isprintable() for part in where):
            self.refuse((label,), label, "expected key=value, for example training.max_epochs=5")
            return
        try:
            given = parse(text, label)
        except SpecError as error:
            self.refuse(where, label, error.problems[0].removeprefix(f"{label}:1: "))
            return
        group = self.values
        for depth, part in enumerate(where[:-1], 1):
            if group.get(part) is None:
                group[part] = {}
                self.places[where[:depth]] = label
            group = group[part]
            if not isinstance(group, dict):
                self.refuse(where, label, f"{'.'.join(map(str, where[:depth]))} is not a group of keys")
                return
        self.places = {at: place for at, place in self.places.items() if at[: len(where)] != where}
        self.places[where] = label
        self.problems = [(at, what) for at, what in self.problems if at[: len(where)] != where]
        self.problems += [((*where, *at), what) for at, what in given.problems]
        group[where[-1]] = given.values

    def refuse(self, where: Where, place: str, what: str) -> None:
        """Note a mistake."""
        self.places[where] = place
        self.problems.append((where, what))


def read(path: Path, form: Form, remedy: str = "") -> Source:
    """Read a file.

    Args:
        path: the file.
        form: what it should be.
        remedy: what to try when there is no such file.

    Raises:
        SourceError: it cannot be read at all, or is not a mapping.
    """
    label = printable(str(path))
    try:
        if path.is_dir():
            raise form.error([f"{label}: expected {form.name}, found a folder"])
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise form.error([f"{label}: no such file{remedy}"]) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise form.error([f"{label}: cannot be read ({reason})"]) from None
    if len(raw) > MAX_BYTES:
        raise form.error([f"{label}: larger than {MAX_BYTES // 2**10} KiB; expected {form.name}"])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        found = f"found the byte 0x{raw[error.start]:02x}"
        raise form.error([f"{label}:{line}: expected UTF-8 text, {found}"]) from None
    return parse_mapping(text, label, form)


def parse_mapping(text: str, label: str, form: Form) -> Source:
    """`parse`, where keys are expected. Raises the form's error when there are none."""
    source = parse(text, label, form)
    if source.values is None and not source.problems:
        raise form.error([f"{label}: the file is empty; expected {form.keys}"])
    if not isinstance(source.values, dict):
        raise form.error([f"{label}:1: expected {form.keys}, found {describe(source.values)}"])
    return source


def parse(text: str, label: str, form: Form = SWEEP) -> Source:
    """Values of a YAML text. Raises the form's error when it is not YAML; other mistakes are in `problems`."""

    def refusal(what: str, mark: yaml.Mark | None = None) -> SourceError:
        at = f"{label}:{mark.line + 1}" if mark else label
        return form.error([printable(f"{at}: {shortened(what, MAX_MESSAGE)}")])

    source = Source(None, label)
    try:
        node = _Loader(_MARKS.sub("", text)).get_single_node()
        if node is not None:
            source.values = _Reader(source).value(node, ())
    except _TooMuch as error:
        what, mark = error.args
        raise refusal(f"{what}; expected {form.name}", mark) from None
    except yaml.MarkedYAMLError as error:
        told = error.context if error.problem in (None, "second occurrence") else error.problem
        hint = "; indent with spaces, not tabs" if "'\\t'" in str(told) else ""
        reason = str(told).removesuffix("; first occurrence")
        raise refusal(f"not YAML: {reason}{hint}", error.problem_mark or error.context_mark) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise refusal(f"not YAML: {str(error).splitlines()[0]}") from None
    return source


class _TooMuch(Exception):
    """More than a person writes: of what, and the mark of the place."""


def _limit(nodes: int, depth: int, mark: yaml.Mark) -> None:
    if nodes > MAX_NODES:
        raise _TooMuch(f"more than {MAX_NODES} values, aliases counted where they are used", mark)
    if depth > MAX_DEPTH:
        raise _TooMuch(f"nested deeper than {MAX_DEPTH} levels", mark)


class _Loader(yaml.SafeLoader):
    """Composes no more nodes than a file may have: that is what takes PyYAML most of the time."""

    nodes = depth = 0

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        """The tag of a node without one; `_plain` reads plain scalars."""
        if kind is yaml.ScalarNode and implicit[0]:
            return _PLAIN
        return str(super().resolve(kind, value, implicit))  # type: ignore[no-untyped-call]

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.nodes += 1
        _limit(self.nodes, self.depth, self.get_mark())
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Reader:
    """Turns nodes into values; counts them, so that aliases cannot multiply without end."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.nodes = 0

    def value(self, node: yaml.Node, where: Where) -> Any:
        self.nodes += 1
        _limit(self.nodes, len(where), node.start_mark)
        if where:
            self.source.places.setdefault(where, self._place(node))
        if isinstance(node, yaml.MappingNode):
            return {key: self.value(inner, (*where, key)) for key, inner in self._items(node, where).items()}
        if isinstance(node, yaml.SequenceNode):
            self._refuse_tag(node, where, "seq")
            return [self.value(inner, (*where, index)) for index, inner in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node, where)

    def _items(self, node: yaml.MappingNode, where: Where, merges: int = 0) -> dict[str, yaml.Node]:
        """The keys of a mapping: its own, then those merged into it (`<<`) that it does not have."""
        self._refuse_tag(node, where, "map")
        items: dict[str, yaml.Node] = {}
        lines: dict[str, int] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem((*where, "?"), key_node, "expected a word as key, found a group of values")
                continue
            key, line = self._text(key_node, where), key_node.start_mark.line + 1
            if key in lines:
                twice = f"given twice, on line {lines[key]} and on line {line}; expected one"
                self._problem((*where, key), key_node, twice)
                continue
            lines[key] = line
            if key == "<<" and key_node.style is None:
                merged = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
            else:
                items[key] = value_node
                self.source.places.setdefault((*where, key), self._place(key_node))
        for other in merged:
            if not isinstance(other, yaml.MappingNode):
                self._problem((*where, "<<"), other, "expected a group of keys, or a list of groups")
                continue
            self.nodes += len(other.value)
            _limit(self.nodes, len(where) + merges, other.start_mark)
            items = {**self._items(other, where, merges + 1), **items}
        return items

    def _scalar(self, node: yaml.ScalarNode, where: Where) -> Any:
        text = self._text(node, where)
        if node.tag in _SCALAR_TAGS:
            try:
                value = yaml.constructor.SafeConstructor().construct_object(node)
            except (ValueError, LookupError, OverflowError):  # PyYAML's, where a text has another kind
                kind = node.tag.removeprefix(_STANDARD_TAG)
                expected = f"expected a value of the YAML tag {kind!r}"
                self._problem(where, node, f"{expected}, found {describe(text)}")
                return 0
        elif node.tag == _PLAIN and node.style is None:
            value = _plain(text)
        else:
            if node.tag != _PLAIN:
                self._refuse_tag(node, where, "str")
            return text
        if isinstance(value, float) and not math.isfinite(value):
            self._problem(where, node, f"expected a finite number, found {shortened(text)}")
            return 0
        return value

    def _text(self, node: yaml.Node, where: Where) -> str:
        """The text of a scalar; JSON writes a letter beyond U+FFFF as two halves, which PyYAML leaves apart."""
        text = str(node.value)
        try:
            return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        except UnicodeDecodeError:
            self._problem(where, node, "expected text, found half a letter (a lone surrogate)")
            return printable(text)

    def _refuse_tag(self, node: yaml.Node, where: Where, expected: str) -> None:
        if node.tag not in (_STANDARD_TAG + expected, "!"):
            name = node.tag.removeprefix(_STANDARD_TAG)
            self._problem(where, node, f"the YAML tag {name!r:.60} is not read; write the value without it")

    def _place(self, node: yaml.Node) -> str:
        return f"{self.source.label}:{node.start_mark.line + 1}"

    def _problem(self, where: Where, node: yaml.Node, what: str) -> None:
        self.source.refuse(where, self._place(node), what)


def _plain(text: str) -> Any:
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if _NON_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    if _INT.fullmatch(text):
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
    if _FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return text


def text_of(values: Mapping[str, Any], *, flow: bool | None) -> str:
    """YAML that is read back as it was, here and by YAML 1.1. flow: None has groups of single values on one line."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, default_flow_style=flow, width=110)


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 takes for text and 1.2 for a number: ``1e5``."""


_Dumper.add_implicit_resolver(
    "!number", re.compile(rf"(?:{_INT.pattern}|{_FLOAT.pattern})$"), list("+-.0123456789")
)
