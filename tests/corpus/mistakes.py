"""Mistakes in the grammar of a sweep, `mistakes.txt`: lines of a sweep file, and below them each line of the refusal.

The lines stand in a good file, in place of those of the same key.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from corpus import beside


class Mistake(NamedTuple):
    """A sweep file, its problems without the name of the file, and whether only several keys together have them."""

    text: str
    problems: list[str]
    together: bool

    def __str__(self) -> str:
        return self.problems[0][:60]


def _read() -> list[Mistake]:
    found: list[Mistake] = []
    lines: list[str] = []
    together = False
    for line in Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            together = "together" in line
        elif not line.startswith("    "):
            lines.append(line)
        elif lines:
            found.append(Mistake(beside(*lines), [line.strip()], together))
            lines = []
        else:
            found[-1].problems.append(line.strip())
    return found


MISTAKES = _read()
