"""Draw the README's charts from committed results: a bar a tool, and a bar a number of workers.

python docs/images/draw_bars.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
WIDTH, LEFT, RIGHT = 830, 150, 248
TITLE, LINE, GAP = 66, 30, 26
INK, MUTED, BLUE, PALE, GREY = "#15181d", "#57606c", "#1261c4", "#5b8fd6", "#a9b2bd"  # of the report's page
FONT = "-apple-system, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif"
DATABASES = {"sqlite": ("SQLite", BLUE), "postgresql": ("PostgreSQL", PALE)}


@dataclass(frozen=True)
class Bar:
    """A line of a chart. share: its length, of the longest that there is room for."""

    name: str
    share: float
    color: str
    figure: str
    more: str = ""


@dataclass(frozen=True)
class Chart:
    title: str
    subtitle: str
    bars: Sequence[Bar]


def peers(found: Any) -> Iterator[Chart]:
    """For each setting of bench_peers.py what a trial-epoch takes in each tool."""
    for setting in found["settings"]:
        tools = setting["summary"]
        longest = max(one["seconds_a_trial_epoch"] for one in tools.values())
        bars = [
            Bar(
                tool,
                one["seconds_a_trial_epoch"] / longest,
                BLUE if tool == "regtune" else GREY,
                f"{one['seconds_a_trial_epoch']:.2f} s",
                (f"{one['ratio']:.1f} × · " if "ratio" in one else "") + f"{_time(one['seconds'])} in all",
            )
            for tool, one in tools.items()
        ]
        title = f"{setting['trials']} trials of at most {setting['epochs']} epochs"
        where = f"{setting['machine']['cpu']}, {setting['machine']['cores']} cores"
        yield Chart(title, f"seconds a trial-epoch, from the command's start to its end; {where}", bars)


def wide(found: Any) -> Iterator[Chart]:
    """The share of simulated workers that train, at the end of a study."""
    rows = [one for one in found["rows"].values() if one["before"]]
    rows.sort(key=lambda one: (one["workers"], one["database"] != "sqlite"))
    bars = []
    for one in rows:
        database, color = DATABASES[one["database"]]
        more = f"{one['ms_a_trial']:.0f} ms a trial"
        bars.append(Bar(f"{one['workers']:,}, {database}", one["busy"], color, f"{one['busy']:.1%}", more))
    yield Chart("Workers that train at any time", "of one coordinator, epochs of 10 s, simulated", bars)


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def picture(charts: Sequence[Chart]) -> str:
    """The SVG of charts below one another."""
    lines, height = list[str](), 0
    for chart in charts:
        lines += _drawn(chart, height)
        height += TITLE + LINE * len(chart.bars) + GAP
    described = ". ".join(
        f"{chart.title}: " + ", ".join(f"{bar.name} {bar.figure}" for bar in chart.bars) for chart in charts
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" font-family="{FONT}" font-size="14">\n<title>{escape(described)}</title>\n'
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>'
    )
    return "\n".join([head, *lines, "</svg>", ""])


def _drawn(chart: Chart, top: int) -> Iterator[str]:
    yield _text(20, top + 30, chart.title, INK, size=16, weight="bold")
    yield _text(20, top + 50, chart.subtitle, MUTED, size=13)
    for place, bar in enumerate(chart.bars):
        y = top + TITLE + LINE * place
        width = max(2.0, (WIDTH - LEFT - RIGHT) * bar.share)
        yield _text(LEFT - 10, y + 17, bar.name, INK, anchor="end")
        yield f'<rect x="{LEFT}" y="{y + 2}" width="{width:.1f}" height="22" rx="3" fill="{bar.color}"/>'
        yield _text(LEFT + width + 10, y + 17, bar.figure, INK, weight="bold")
        yield _text(LEFT + width + 66, y + 17, bar.more, MUTED)


def _text(
    x: float, y: float, said: str, color: str, size: int = 14, weight: str = "normal", anchor: str = "start"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" fill="{color}" font-size="{size}" font-weight="{weight}" '
        f'text-anchor="{anchor}">{escape(said)}</text>'
    )


DRAWN = {"peers": peers, "simulate": wide}
"""What is drawn of each result in benchmarks/."""


def drawn(name: str) -> str:
    """The SVG of a committed result."""
    found = json.loads((FOLDER.parents[1] / "benchmarks" / f"{name}.json").read_text())
    return picture([*DRAWN[name](found)])


if __name__ == "__main__":
    for name in DRAWN:
        (FOLDER / f"{name}.svg").write_text(drawn(name))
