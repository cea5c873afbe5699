"""Malformed files, made by hand: each has an id that says what is wrong with it, and a word that its message has.

`sweeps` are sweep files, `configurations` are `best.yaml` and its like, `datasets` are `.npz` and IDX files. All are
made in the current folder when a test asks for them. What would run, would make a file named `canary`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

CANARY = "canary"


@dataclass(frozen=True)
class Malformed:
    """A file that has to be refused.

    what: what is wrong with it. make: makes it, and returns its path or name. said: what the message has to have.
    """

    what: str
    make: Callable[[], str]
    said: str

    def __str__(self) -> str:
        return self.what


def written(name: str, content: str | bytes) -> str:
    """The name of a file with this content."""
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    return name


def text(what: str, content: str | bytes, said: str, name: str = "bad.yaml") -> Malformed:
    """A file of this content."""
    return Malformed(what, lambda: written(name, content), said)


TAGS = {
    "a tag that calls os.system": f"!!python/object/apply:os.system ['touch {CANARY}']",
    "a tag that calls subprocess": f"!!python/object/apply:subprocess.check_output [[touch, {CANARY}]]",
    "a tag that evaluates an expression": f"!!python/object/apply:eval [\"open('{CANARY}', 'w')\"]",
    "a tag that makes a new object": f"!!python/object/new:pathlib.Path [{CANARY}]",
    "a tag that makes an object with state": f"!!python/object:pathlib.Path {{path: {CANARY}}}",
    "a tag that names a function": "!!python/name:os.system",
    "a tag that imports a module": "!!python/module:antigravity",
    "a tag that is Python's tuple": "!!python/tuple [1, 2]",
    "a tag that is Python's text": "!!python/str 5",
    "a tag of another language": "!!js/function 'function () {}'",
    "a tag of one's own": "!include secrets.yaml",
    "a tag by its whole address": "!<tag:evil.example,2026:run> x",
    "a tag that is a set": "!!set {1, 2}",
    "a tag that is an ordered map": "!!omap [a: 1]",
    "a tag that is a list of pairs": "!!pairs [a: 1]",
    "a tag that is base64": "!!binary aGVsbG8=",
    "a tag that is a day": "!!timestamp tomorrow",
    "a number's tag on a word": "!!int five",
    "a tag without its handle": "!nowhere!x 1",
}
"""Tags of YAML in place of a value."""


def nested(depth: int) -> str:
    """Lists in lists."""
    return "[" * depth + "]" * depth


def bomb(levels: int = 12, width: int = 10) -> str:
    """Aliases that multiply: a few hundred bytes which are `width ** levels` values."""
    lines = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


def encodings(content: str) -> dict[str, bytes]:
    """The same text in encodings that are not UTF-8, and bytes that are no text."""
    return {
        "UTF-16 with its mark": content.encode("utf-16"),
        "UTF-16 without its mark": content.encode("utf-16-le"),
        "UTF-32": content.encode("utf-32"),
        "Latin-1 with an accent": f"# caf\xe9\n{content}".encode("latin-1"),
        "Windows-1252 with a quotation mark": f"# \u201cdraft\u201d\n{content}".encode("cp1252"),
        "Shift JIS": f"# \u5b66\u7fd2\n{content}".encode("shift_jis"),
        "EBCDIC": content.encode("cp500"),
        "a surrogate written as UTF-8": b"# \xed\xa0\x80\n" + content.encode(),
        "a slash in three bytes": b"# \xe0\x80\xaf\n" + content.encode(),
        "a letter that is cut in two": content.encode() + "# \u00e9".encode()[:-1],
        "bytes at random": bytes(range(256)) * 4,
        "a PNG": b"\x89PNG\r\n\x1a\n" + bytes(64),
        "a gzip": b"\x1f\x8b\x08" + bytes(64),
        "an ELF program": b"\x7fELF\x02\x01\x01" + bytes(64),
    }


def large(what: str, content: Callable[[int], bytes], said: str, name: str = "bad.yaml") -> Malformed:
    """A file of 10 MB, made when it is asked for."""
    return Malformed(what, lambda: written(name, content(10_000_000)), said)


def valid_yaml(values: object) -> str:
    """Plain YAML of `values`."""
    return yaml.safe_dump(values)
