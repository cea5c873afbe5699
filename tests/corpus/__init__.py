"""Malformed files, made by hand: each has an id that says what is wrong with it, and a word that its message has.

`sweeps` are sweep files, `configurations` are `best.yaml` and its like, `datasets` are `.npz` files. All are
made in the current folder when a test asks for them. What would run, would make a file named `canary`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CANARY = "canary"
LINES = ("run_cap: 20", "parameters: {l2: {values: [0, 0.1]}}")
GOOD = "\n".join(LINES) + "\n"
"""A small sweep file."""


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


def link(name: str, target: str) -> str:
    """The name of a symbolic link."""
    Path(name).symlink_to(target)
    return name


def text(what: str, content: str | bytes, said: str, name: str = "bad.yaml") -> Malformed:
    """A file of this content."""
    return Malformed(what, lambda: written(name, content), said)


def beside(*lines: str) -> str:
    """A good sweep file with these lines, which stand in place of those of the same key."""
    keys = [line.partition(":")[0] for line in lines]
    return "\n".join([*lines, *(line for line in LINES if line.partition(":")[0] not in keys)]) + "\n"


def bomb(levels: int = 12, width: int = 10) -> str:
    """Aliases that multiply: a few hundred bytes which are `width ** levels` values."""
    lines = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"
