"""Malformed files, made by hand: each has an id that says what is wrong with it, and a word that its message has.

`sweeps` are sweep files, `configurations` are `best.yaml` and its like, `datasets` are `.npz` files. All are
made in the current folder when a test asks for them. What would run, would make a file named `canary`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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


LINES = ("run_cap: 20", "parameters: {l2: {values: [0, 0.1]}}")
GOOD = "\n".join(LINES) + "\n"
"""A small sweep file."""


def beside(*lines: str) -> str:
    """A good sweep file with these lines, which stand in place of those of the same key."""
    keys = [line.partition(":")[0] for line in lines]
    return "\n".join([*lines, *(line for line in LINES if line.partition(":")[0] not in keys)]) + "\n"


TAGS = {
    "a tag that calls os.system": f"!!python/object/apply:os.system ['touch {CANARY}']",
    "a tag that names a function": "!!python/name:os.system",
    "a tag of one's own": "!include secrets.yaml",
    "a tag by its whole address": "!<tag:evil.example,2026:run> x",
    "a tag that is a set": "!!set {1, 2}",
    "a tag that is base64": "!!binary aGVsbG8=",
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
        "Latin-1 with an accent": f"# caf\xe9\n{content}".encode("latin-1"),
        "a surrogate written as UTF-8": b"# \xed\xa0\x80\n" + content.encode(),
        "a slash in three bytes": b"# \xe0\x80\xaf\n" + content.encode(),
        "a letter that is cut in two": content.encode() + "# \u00e9".encode()[:-1],
        "bytes at random": bytes(range(256)) * 4,
        "a gzip": b"\x1f\x8b\x08" + bytes(64),
    }


def large(what: str, content: Callable[[int], bytes], said: str, name: str = "bad.yaml") -> Malformed:
    """A file of 10 MB, made when it is asked for."""
    return Malformed(what, lambda: written(name, content(10_000_000)), said)
