"""Draw the README's picture of how busy one coordinator keeps many workers, from benchmarks/simulate.json.

python docs/images/draw_wide.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
RESULT = FOLDER.parents[1] / "benchmarks" / "simulate.json"
WIDTH, LEFT, RIGHT = 830, 190, 190
TOP, LINE = 66, 30
INK, MUTED, COLORS = "#15181d", "#57606c", {"sqlite": "#1261c4", "postgresql": "#5b8fd6"}
NAMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
FONT = "-apple-system, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif"


def picture(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The SVG: a bar for each number of workers and database, as long as the share of workers that train."""
    ordered = sorted(rows.values(), key=lambda one: (one["workers"], one["database"] != "sqlite"))
    height = TOP + LINE * len(ordered) + 20
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" font-family="{FONT}" font-size="14">\n<title>Share of simulated workers that train</title>\n'
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>'
    )
    return "\n".join([head, *_lines(ordered), "</svg>", ""])


def _lines(rows: list[Mapping[str, Any]]) -> Iterator[str]:
    yield _text(20, 30, "Workers that train at any time", weight="bold", size=16)
    yield _text(
        20, 50, "one coordinator, a study of 10,000 trials, epochs of 10 s, simulated", color=MUTED, size=13
    )
    for place, one in enumerate(rows):
        y = TOP + LINE * place
        width = (WIDTH - LEFT - RIGHT) * one["busy"]
        yield _text(LEFT - 10, y + 17, f"{one['workers']:,}, {NAMES[one['database']]}", anchor="end")
        color = COLORS[one["database"]]
        yield f'<rect x="{LEFT}" y="{y + 2}" width="{WIDTH - LEFT - RIGHT}" height="22" rx="3" fill="#eef1f5"/>'
        yield f'<rect x="{LEFT}" y="{y + 2}" width="{width:.1f}" height="22" rx="3" fill="{color}"/>'
        yield _text(WIDTH - RIGHT + 10, y + 17, f"{one['busy']:.1%}", weight="bold")
        yield _text(WIDTH - RIGHT + 70, y + 17, f"{one['ms_a_trial']:.0f} ms a trial", color=MUTED)


def _text(
    x: float,
    y: float,
    said: str,
    *,
    color: str = INK,
    size: int = 14,
    weight: str = "normal",
    anchor: str = "start",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" fill="{color}" font-size="{size}" font-weight="{weight}" '
        f'text-anchor="{anchor}">{said}</text>'
    )


if __name__ == "__main__":
    (FOLDER / "wide.svg").write_text(picture(json.loads(RESULT.read_text())["rows"]))
