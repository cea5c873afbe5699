"""Draw the README's picture of the same search by regtune and its peers, from benchmarks/peers.json.

python docs/images/draw_peers.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
RESULT = FOLDER.parents[1] / "benchmarks" / "peers.json"
WIDTH, LEFT, RIGHT = 830, 118, 232
TITLE, LINE, GAP = 66, 30, 26
INK, MUTED, BLUE, GREY = "#15181d", "#57606c", "#1261c4", "#a9b2bd"  # of the report's page
FONT = "-apple-system, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif"


def picture(found: Mapping[str, Any]) -> str:
    """The SVG: for each setting a bar a tool, as long as a trial-epoch; behind it the ratio and the whole time."""
    settings = found["settings"]
    lines, height = list[str](), 0
    for setting in settings:
        lines += _group(setting, height)
        height += TITLE + LINE * len(setting["summary"]) + GAP
    described = ". ".join(
        f"{_title(setting)}: "
        + ", ".join(f"{tool} {_time(one['seconds'])}" for tool, one in setting["summary"].items())
        for setting in settings
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" font-family="{FONT}" font-size="14">\n<title>{escape(described)}</title>\n'
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>'
    )
    return "\n".join([head, *lines, "</svg>", ""])


def _title(setting: Mapping[str, Any]) -> str:
    return f"{setting['trials']} trials of at most {setting['epochs']} epochs"


def _group(setting: Mapping[str, Any], top: int) -> Iterator[str]:
    yield _text(20, top + 30, _title(setting), INK, size=16, weight="bold")
    yield _text(20, top + 50, "seconds a trial-epoch, from the command's start to its end", MUTED, size=13)
    longest = max(one["seconds_a_trial_epoch"] for one in setting["summary"].values())
    for place, (tool, one) in enumerate(setting["summary"].items()):
        y = top + TITLE + LINE * place
        ours = tool == "regtune"
        width = max(2.0, (WIDTH - LEFT - RIGHT) * one["seconds_a_trial_epoch"] / longest)
        yield _text(LEFT - 10, y + 17, tool, INK, anchor="end", weight="bold" if ours else "normal")
        yield f'<rect x="{LEFT}" y="{y + 2}" width="{width:.1f}" height="22" rx="3" fill="{BLUE if ours else GREY}"/>'
        figure = f"{one['seconds_a_trial_epoch']:.2f} s"
        more = f"{one['ratio']:.1f} ×" if "ratio" in one else ""
        yield _text(LEFT + width + 10, y + 17, figure, INK, weight="bold")
        yield _text(LEFT + width + 66, y + 17, " · ".join(filter(None, (more, _time(one["seconds"])))), MUTED)


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s in all" if seconds < 100 else f"{seconds / 60:.1f} min in all"


def _text(
    x: float, y: float, said: str, color: str, size: int = 14, weight: str = "normal", anchor: str = "start"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" fill="{color}" font-size="{size}" font-weight="{weight}" '
        f'text-anchor="{anchor}">{escape(said)}</text>'
    )


if __name__ == "__main__":
    (FOLDER / "peers.svg").write_text(picture(json.loads(RESULT.read_text())))
