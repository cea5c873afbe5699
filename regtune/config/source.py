"""A YAML file as it is written, a sweep file or a configuration: its values, and the line each stands on.

YAML is composed into nodes by PyYAML's safe loader and turned into plain values here, because only nodes know
their lines and only here a key given twice can be seen. Plain scalars are read by YAML 1.2's core schema, so that
`1e-3` is a number, `no` is a word and `1:30` is not ninety; tagged ones (`!!float 1e-3`) as PyYAML reads them. Tags of
what a file has no place for, non-finite numbers and alias bombs are refused, and what is larger than a person would
write.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from regtune.errors import ConfigError, SourceError, SpecError
from regtune.escaping import printable

MAX_BYTES = 2**18
MAX_NODES = 5_000
MAX_DEPTH = 32
MAX_SHOWN = 60
"""Letters of a key or value that a message repeats."""
MAX_MESSAGE = 480
MAX_PROBLEMS = 30
"""Mistakes that are told at once."""

Where = tuple[str | int, ...]
"""A place in the file: ``("parameters", "dropout", "max")``."""
Problem = tuple[Where, str]
"""A mistake: where it is, and what was expected there."""


class Form(NamedTuple):
    """What a file should be, and the error that says what it is instead."""

    error: type[SourceError]
    name: str
    keys: str


SWEEP = Form(SpecError, "a sweep file", "keys such as parameters and run_cap")
CONFIGURATION = Form(ConfigError, "a configuration", "a configuration, as `regtune best STUDY` prints it")

_INT = re.compile(r"[-+]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NON_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_STANDARD_TAG = "tag:yaml.org,2002:"
_PLAIN = ""
"""The tag of a scalar that has none and no quotation marks."""
_TAGGED = tuple(_STANDARD_TAG + name for name in ("bool", "float", "int", "null"))
_MAX_NUMBER = 40
"""Letters of a number."""
_MARKS = re.compile("^\ufeff+", re.MULTILINE)
"""Byte-order marks, as they stand inside a file that was joined from several."""


@dataclass
class Source:
    """Plain values (mappings, lists, text, numbers, booleans, None) and the place each was read from.

    label: what leads a line about a place that is not in `places`, such as ``sweeps/mnist.yaml``.
    problems: what reading itself found wrong.
    """

    values: Any
    label: str
    places: dict[Where, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, problem: Problem) -> str:
        """``sweeps/mnist.yaml:14: parameters.dropout: expected ...``."""
        where, what = problem[0], shortened(problem[1], MAX_MESSAGE)
        place = next(
            (self.places[where[:n]] for n in range(len(where), -1, -1) if where[:n] in self.places),
            self.label,
        )
        key = ".".join(shortened(str(part)) for part in where)
        line = f"{place}: {key}: {what}" if key and key != place else f"{place}: {what}"
        return printable(line)

    def lines(self, problems: Iterable[Problem]) -> list[str]:
        """One line for each mistake in the order of the file: those of reading, and of `problems` those elsewhere.

        Of very many the first, and how many more there are.
        """

        def order(line: str) -> tuple[int, int]:
            number = line.removeprefix(f"{self.label}:").partition(":")[0]
            return (0, int(number)) if line.startswith(f"{self.label}:") and number.isdigit() else (1, 0)

        unread = {where for where, _ in self.problems}
        every = [*self.problems, *(problem for problem in problems if problem[0] not in unread)]
        found = sorted(dict.fromkeys(map(self.line, every)), key=order)
        more = len(found) - MAX_PROBLEMS
        return [*found[:MAX_PROBLEMS], *([f"{self.label}: and {more} more mistakes"] if more > 0 else [])]

    def set(self, assignment: str) -> None:
        """Apply one `--set key=value`; a dot in the key goes one level down, the value is YAML."""
        label = printable(f"--set {shortened(assignment)}")
        key, equals, text = assignment.partition("=")
        where = tuple(key.strip().split("."))
        if not equals or not all(part and part.isprintable() for part in where):
            self.places[(label,)] = label
            self.problems.append(((label,), "expected key=value, for example training.max_epochs=5"))
            return
        try:
            given = parse(text, label)
        except SpecError as error:
            self.places[where] = label
            self.problems.append((where, error.problems[0].removeprefix(f"{label}: ")))
            return
        target = self.values
        for depth, part in enumerate(where[:-1]):
            if not isinstance(target.get(part), dict):
                if target.get(part) is not None:
                    self.places[where] = label
                    self.problems.append((where, f"{'.'.join(where[: depth + 1])} is not a group of keys"))
                    return
                target[part] = {}
                self.places[where[: depth + 1]] = label
            target = target[part]
        self.places = {at: place for at, place in self.places.items() if at[: len(where)] != where}
        self.places[where] = label
        self.problems = [(at, what) for at, what in self.problems if at[: len(where)] != where]
        self.problems += [((*where, *at), what) for at, what in given.problems]
        target[where[-1]] = given.values


def read(path: Path, form: Form, remedy: str = "") -> Source:
    """Read a file of `form`. Raises its error when it cannot be read at all or is not a mapping.

    remedy: what to try when there is no such file.
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
        raise form.error(
            [f"{label}:{line}: expected UTF-8 text, found the byte 0x{raw[error.start]:02x}"]
        ) from None
    return parse_mapping(text, label, form, with_lines=True)


def parse_mapping(text: str, label: str, form: Form, *, with_lines: bool = False) -> Source:
    """`parse`, where keys are expected. Raises the form's error when there are none."""
    source = parse(text, label, form, with_lines=with_lines)
    if source.values is None and not source.problems:
        raise form.error([f"{label}: the file is empty; expected {form.keys}"])
    if not isinstance(source.values, dict):
        at = f"{label}:1" if with_lines else label
        raise form.error([printable(f"{at}: expected {form.keys}, found {describe(source.values)}")])
    return source


def parse(text: str, label: str, form: Form = SWEEP, *, with_lines: bool = False) -> Source:
    """Values of a YAML text. Raises the form's error when it is not YAML; other mistakes are in `problems`."""
    source = Source(None, label)
    try:
        node = _Loader(_MARKS.sub("", text)).get_single_node()
        values = _Reader(source, with_lines).value(node, ()) if node is not None else None
    except _TooMuch as error:
        at = f"{label}:{error.line}" if with_lines else label
        raise form.error([f"{at}: {error}; expected {form.name}"]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"{label}:{mark.line + 1}" if with_lines and mark else label
        hint = "; indent with spaces, not tabs" if "'\\t'" in str(error.problem) else ""
        told = error.context if error.problem in (None, "second occurrence") else error.problem
        reason = shortened(str(told).removesuffix("; first occurrence"), MAX_MESSAGE)
        raise form.error([printable(f"{at}: not YAML: {reason}{hint}")]) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        reason = shortened(str(error).splitlines()[0], MAX_MESSAGE)
        raise form.error([printable(f"{label}: not YAML: {reason}")]) from None
    source.values = values
    return source


class _TooMuch(Exception):
    """More than a person writes. line: where."""

    def __init__(self, what: str, line: int) -> None:
        self.line = line
        super().__init__(what)


class _Loader(yaml.SafeLoader):
    """Composes no more nodes than a file may have: that takes PyYAML most of the time."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.nodes = self.depth = 0

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        """The tag of a node without one; `_plain` reads plain scalars."""
        if kind is yaml.ScalarNode and implicit[0]:
            return _PLAIN
        return str(super().resolve(kind, value, implicit))  # type: ignore[no-untyped-call]

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """The next node, with all that is in it."""
        self.nodes += 1
        _limit(self.nodes, self.depth, self.line + 1)
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _limit(nodes: int, depth: int, line: int) -> None:
    if nodes > MAX_NODES:
        raise _TooMuch(f"more than {MAX_NODES} values, aliases counted where they are used", line)
    if depth > MAX_DEPTH:
        raise _TooMuch(f"nested deeper than {MAX_DEPTH} levels", line)


_Keys = dict[str, tuple[yaml.ScalarNode, yaml.Node]]
_MERGE = "<<"


class _Reader:
    """Turns nodes into values; counts them, so that aliases cannot multiply without end."""

    def __init__(self, source: Source, with_lines: bool) -> None:
        self.source = source
        self.with_lines = with_lines
        self.nodes = 0

    def value(self, node: yaml.Node, where: Where) -> Any:
        self.nodes += 1
        _limit(self.nodes, len(where), node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, where)
        if isinstance(node, yaml.SequenceNode):
            self._refuse_tag(node, where, "seq")
            return [self._entry(item, (*where, index)) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node, where)

    def _entry(self, node: yaml.Node, where: Where) -> Any:
        self._mark(node, where)
        return self.value(node, where)

    def _mapping(self, node: yaml.MappingNode, where: Where) -> dict[str, Any]:
        found = {}
        for key, (key_node, value_node) in self._keys(node, where).items():
            self.source.places.setdefault((*where, key), self._place(key_node))
            found[key] = self.value(value_node, (*where, key))
        return found

    def _keys(self, node: yaml.MappingNode, where: Where, merges: int = 0) -> _Keys:
        """The keys of a mapping and their values: its own, then those merged into it (`<<`) that it does not have."""
        self._refuse_tag(node, where, "map")
        found: _Keys = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem((*where, "?"), key_node, "expected a word as key, found a group of values")
                continue
            key = self._text(key_node, where)
            line = key_node.start_mark.line + 1
            if key in found:
                before = found[key][0].start_mark.line + 1
                again = (
                    f"given twice, on line {before} and on line {line}" if self.with_lines else "given twice"
                )
                self._problem((*where, key), key_node, f"{again}; expected one")
                continue
            found[key] = key_node, value_node
        merge = found.get(_MERGE)
        if merge is None or merge[0].style is not None:
            return found
        del found[_MERGE]
        listed = merge[1].value if isinstance(merge[1], yaml.SequenceNode) else [merge[1]]
        for other in listed:
            if not isinstance(other, yaml.MappingNode):
                self._problem((*where, _MERGE), merge[0], "expected a group of keys, or a list of groups")
                continue
            self.nodes += len(other.value)
            _limit(self.nodes, len(where) + merges, other.start_mark.line + 1)
            found = {**self._keys(other, where, merges + 1), **found}
        return found

    def _scalar(self, node: yaml.ScalarNode, where: Where) -> Any:
        text = self._text(node, where)
        if node.tag in _TAGGED:
            found = self._tagged(node, where, text)
        elif node.tag == _PLAIN and node.style is None:
            found = float(text.replace(".", "")) if _NON_FINITE.fullmatch(text) else _plain(text)
        else:
            if node.tag != _PLAIN:
                self._refuse_tag(node, where, "str")
            return text
        if isinstance(found, float) and not math.isfinite(found):
            self._problem(where, node, f"expected a finite number, found {shortened(text)}")
            return 0
        return found

    def _tagged(self, node: yaml.ScalarNode, where: Where, text: str) -> Any:
        """What PyYAML's safe loader makes of a scalar with a tag."""
        try:
            if len(text) > _MAX_NUMBER:
                raise ValueError
            return yaml.constructor.SafeConstructor().construct_object(node)
        except (
            ValueError,
            LookupError,
            OverflowError,
        ):  # in these ways PyYAML says that a text has another kind
            kind = node.tag.removeprefix(_STANDARD_TAG)
            self._problem(where, node, f"expected a value of the YAML tag {kind!r}, found {describe(text)}")
            return 0

    def _text(self, node: yaml.ScalarNode, where: Where) -> str:
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
        return f"{self.source.label}:{node.start_mark.line + 1}" if self.with_lines else self.source.label

    def _mark(self, node: yaml.Node, where: Where) -> None:
        self.source.places[where] = self._place(node)

    def _problem(self, where: Where, node: yaml.Node, what: str) -> None:
        self._mark(node, where)
        self.source.problems.append((where, what))


def _plain(text: str) -> Any:
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if _INT.fullmatch(text) and len(text) <= _MAX_NUMBER:
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
    if _FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return text


def shortened(text: str, most: int = MAX_SHOWN) -> str:
    """Text of at most `most` letters, for a message."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def text_of(values: Mapping[str, Any], *, flow: bool | None) -> str:
    """YAML that is read back as it was, here and by YAML 1.1. flow: None has groups of single values on one line."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, default_flow_style=flow, width=110)


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 takes for text and 1.2 for a number: ``1e5``."""


_Dumper.add_implicit_resolver(
    "!number", re.compile(rf"(?:{_INT.pattern}|{_FLOAT.pattern})$"), list("+-.0123456789")
)


def describe(value: Any) -> str:
    """A value for a message: ``"abc"``, ``3``, ``true``, ``a list``."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{shortened(value)}"'
    if isinstance(value, Mapping):
        return "a group of keys"
    if isinstance(value, Sequence):
        return "a list"
    return f"{value!r:.60}"
