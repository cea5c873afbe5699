"""The sweep file as it is written: its values, and for each of them the line it stands on.

YAML is composed into nodes by PyYAML's safe loader and turned into plain values here, because only nodes know
their lines and only here a key given twice can be seen. Scalars are read by YAML 1.2's core schema, so that
`1e-3` is a number, `no` is a word and `1:30` is not ninety. Tags, merge keys, non-finite numbers and alias
bombs are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from regtune.errors import SpecError
from regtune.quoting import printable

MAX_BYTES = 2**18
MAX_NODES = 20_000
MAX_DEPTH = 32

Where = tuple[str | int, ...]
"""A place in the file: ``("parameters", "dropout", "max")``."""
Problem = tuple[Where, str]
"""A mistake: where it is, and what was expected there."""

_INT = re.compile(r"[-+]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NON_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_STANDARD_TAG = "tag:yaml.org,2002:"
_IMPLICIT = yaml.resolver.Resolver()


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
        where, what = problem
        place = next(
            (self.places[where[:n]] for n in range(len(where), -1, -1) if where[:n] in self.places),
            self.label,
        )
        key = ".".join(str(part) for part in where)
        line = f"{place}: {key}: {what}" if key and key != place else f"{place}: {what}"
        return printable(line)

    def set(self, assignment: str) -> None:
        """Apply one `--set key=value`; a dot in the key goes one level down, the value is YAML."""
        label = f"--set {assignment}"
        key, equals, text = assignment.partition("=")
        where = tuple(key.strip().split("."))
        if not equals or not all(where):
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


def read(path: Path) -> Source:
    """Read a sweep file. Raises SpecError when it cannot be read at all or is not a mapping."""
    label = printable(str(path))
    try:
        if path.is_dir():
            raise SpecError([f"{label}: expected a sweep file, found a folder"])
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise SpecError([f"{label}: no such file"]) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SpecError([f"{label}: cannot be read ({reason})"]) from None
    if len(raw) > MAX_BYTES:
        raise SpecError([f"{label}: larger than {MAX_BYTES // 2**10} KiB; expected a sweep file"])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise SpecError(
            [f"{label}:{line}: expected UTF-8 text, found the byte 0x{raw[error.start]:02x}"]
        ) from None
    source = parse(text, label, with_lines=True)
    if source.values is None and not source.problems:
        raise SpecError([f"{label}: the file is empty; expected keys such as parameters and run_cap"])
    if not isinstance(source.values, dict):
        raise SpecError(
            [f"{label}:1: expected keys such as parameters and run_cap, found {describe(source.values)}"]
        )
    return source


def parse(text: str, label: str, *, with_lines: bool = False) -> Source:
    """Values of a YAML text. Raises SpecError when it is not YAML; other mistakes are in the result's `problems`."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"{label}:{mark.line + 1}" if with_lines and mark else label
        hint = "; indent with spaces, not tabs" if "'\\t'" in str(error.problem) else ""
        raise SpecError([f"{at}: not YAML: {error.problem or error.context}{hint}"]) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        raise SpecError([f"{label}: not YAML: {reason}"]) from None
    source = Source(None, label)
    source.values = _Reader(source, with_lines).value(node, ()) if node is not None else None
    return source


class _Reader:
    """Turns nodes into values; counts them, so that aliases cannot multiply without end."""

    def __init__(self, source: Source, with_lines: bool) -> None:
        self.source = source
        self.with_lines = with_lines
        self.nodes = 0

    def value(self, node: yaml.Node, where: Where) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or len(where) > MAX_DEPTH:
            what = (
                f"more than {MAX_NODES} values"
                if self.nodes > MAX_NODES
                else f"nested deeper than {MAX_DEPTH} levels"
            )
            raise SpecError(
                [f"{self._place(node)}: {what}, aliases counted where they are used; expected a sweep file"]
            )
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
        self._refuse_tag(node, where, "map")
        found: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem((*where, "?"), key_node, "expected a word as key, found a group of values")
                continue
            key = str(key_node.value)
            line = key_node.start_mark.line + 1
            if key == "<<" and key_node.style is None:
                self._problem((*where, key), key_node, "merge keys are not read; write the keys out")
                continue
            if key in found:
                again = (
                    f"given twice, on line {lines[key]} and on line {line}"
                    if self.with_lines
                    else "given twice"
                )
                self._problem((*where, key), key_node, f"{again}; expected one")
                continue
            lines[key] = line
            self._mark(key_node, (*where, key))
            found[key] = self.value(value_node, (*where, key))
        return found

    def _scalar(self, node: yaml.ScalarNode, where: Where) -> Any:
        text = str(node.value)
        if node.style is not None:
            self._refuse_tag(node, where, "str")
            return text
        if node.tag != _IMPLICIT.resolve(yaml.ScalarNode, text, (True, False)):  # type: ignore[no-untyped-call]
            self._refuse_tag(node, where, "")
            return text
        if _NON_FINITE.fullmatch(text):
            self._problem(where, node, f"expected a finite number, found {text}")
            return 0
        return _plain(text)

    def _refuse_tag(self, node: yaml.Node, where: Where, expected: str) -> None:
        if node.tag not in (_STANDARD_TAG + expected, "!"):
            name = node.tag.removeprefix(_STANDARD_TAG)
            self._problem(where, node, f"expected a value without a YAML tag, found the tag {name!r:.60}")

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
    if _INT.fullmatch(text) and len(text) <= 40:
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
    if _FLOAT.fullmatch(text) and math.isfinite(float(text)):
        return float(text)
    return text


def describe(value: Any) -> str:
    """A value for a message: ``"abc"``, ``3``, ``true``, ``a list``."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 60 else f'"{value[:57]}..."'
    if isinstance(value, Mapping):
        return "a group of keys"
    if isinstance(value, Sequence):
        return "a list"
    return f"{value!r:.60}"
