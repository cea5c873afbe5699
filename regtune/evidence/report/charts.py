"""Charts of the report: what Plotly draws, the same as a table, and where the figures are from.

Colours are names of the page's style sheet: `@ink`, `@blue/20` (20 percent of it). The page's script replaces them, so
that a chart follows the theme. `narrow` is merged into the layout where the chart has less than 720 pixels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from typing import Any

from regtune.config.trial import format_number
from regtune.study.decision import Candidate
from regtune.study.decision_text import form_of

Json = dict[str, Any]
SERIES = ("@blue", "@orange", "@green", "@purple", "@pink", "@teal")
OFF = "off"
ZERO: Json = {"zeroline": True, "zerolinecolor": "@ink", "zerolinewidth": 1.5}
"""Of an axis: its zero is a line."""
NONE_LINE: Json = {"color": "@ink", "width": 2, "dash": "6px 4px"}


_NUMBER = re.compile(r"[-−+]?[\d,]*\.?\d+(e-?\d+)?( ± [\d.]+)?( %| s|)|–|")


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row names it. aligned: columns of numbers only are aligned to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    aligned: bool = True

    @cached_property
    def numeric(self) -> set[int]:
        """The columns of numbers, which are aligned to the right."""
        columns = range(len(self.columns) if self.aligned else 0)
        return {at for at in columns if all(_NUMBER.fullmatch(row[at]) for row in self.rows)}


@dataclass(frozen=True)
class Chart:
    """A chart. says: what it shows, for everyone. table: the same figures, or the anchor of a table that has them.

    source: where its figures are in an export. small: it stands in a grid.
    """

    key: str
    title: str
    says: str
    data: Sequence[Json]
    layout: Json
    table: Table | str
    source: str
    narrow: Json = field(default_factory=dict)
    small: bool = False

    @property
    def plot(self) -> Json:
        return {"data": self.data, "layout": self.layout, "narrow": self.narrow}


def plain(text: object) -> str:
    """Text as Plotly shows it as it is: it reads some HTML."""
    return escape(str(text), quote=False)


def as_sentence(text: str) -> str:
    """A line as a sentence: it begins with a capital, and ends with a full stop unless with a command."""
    stop = "" if text.endswith((".", "!", "?")) or ": regtune " in text else "."
    return f"{text[:1].upper()}{text[1:]}{stop}" if text else ""


def breaking(text: str) -> str:
    """Text of several lines for Plotly."""
    return plain(text).replace("\n", "<br>")


def title_of(metric: str) -> str:
    """``validation cross-entropy`` for ``val_cross_entropy``."""
    words = metric.replace("val_", "validation ").replace("cross_entropy", "cross-entropy")
    return words.replace("_", " ")


def scale_of(metric: str) -> int:
    """By what a figure is multiplied to be shown: shares are in percent."""
    return 100 if form_of(metric).share else 1


def axis(title: str = "", **more: Any) -> Json:
    """An axis in the page's style."""
    return {
        "title": {"text": title, "font": {"size": 12, "color": "@muted"}, "standoff": 10},
        "tickfont": {"size": 12, "color": "@muted"},
        "gridcolor": "@grid",
        "zeroline": False,
        "fixedrange": True,
        **more,
    }


def layout(height: int, x: Json, y: Json, caption: str = "", **more: Any) -> Json:
    """A layout in the page's style. caption: what the vertical axis shows, above it."""
    notes = [*more.pop("annotations", ())]
    if caption:
        notes.append(note(caption, x=0, y=1, xref="paper", yref="paper", xanchor="left", yshift=16))
    return {
        "height": height,
        "margin": {"l": 4, "r": 14, "t": 34 if caption else 12, "b": 48},
        "font": {"color": "@ink", "size": 13},
        "paper_bgcolor": "@clear",
        "plot_bgcolor": "@clear",
        "hoverlabel": {"bgcolor": "@raised", "bordercolor": "@line", "font": {"color": "@ink"}},
        "legend": {
            **{"orientation": "h", "x": 0, "xanchor": "left", "y": 1.1, "yanchor": "bottom"},
            **{"traceorder": "normal", "font": {"size": 13}, "bgcolor": "@clear"},
            **more.pop("legend", {}),
        },
        "showlegend": False,
        "dragmode": False,
        "xaxis": x,
        "yaxis": {"automargin": True, **y},
        "annotations": notes,
        **more,
    }


def note(text: str, **more: Any) -> Json:
    """A word in a chart, without an arrow."""
    return {"text": text, "showarrow": False, "font": {"size": 12, "color": "@muted"}, **more}


def vertical(at: float, text: str, color: str, reach: Sequence[float], line: int = 0) -> tuple[Json, Json]:
    """A vertical line and its label at the top. reach: of the axis. line: of the label, from 0 upwards."""
    dotted = {"color": color, "width": 1.5, "dash": "dot"}
    shape = {
        "type": "line",
        "xref": "x",
        "yref": "paper",
        "x0": at,
        "x1": at,
        "y0": 0,
        "y1": 1,
        "line": dotted,
    }
    anchor = "left" if 2 * at < reach[0] + reach[1] else "right"
    where = {"x": at, "xref": "x", "xanchor": anchor, "y": 1, "yref": "paper", "yanchor": "bottom"}
    return shape, note(text, **where, yshift=15 * line, font={"size": 12, "color": color})


def dots(
    means: Sequence[float],
    widths: Sequence[float | tuple[float, float]],
    colors: Sequence[str],
    hover: Sequence[str],
    symbols: Sequence[str] = (),
) -> list[Json]:
    """Dots with intervals, one line each, the first on top. widths: half widths, or below and above the mean."""
    pairs = [width if isinstance(width, tuple) else (width, width) for width in widths]
    traces = []
    for color in dict.fromkeys(colors):
        at = [place for place, one in enumerate(colors) if one == color]
        shape = [symbols[place] if symbols else "circle" for place in at]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [means[place] for place in at],
                "y": at,
                "marker": {
                    "size": [15 if symbol == "diamond" else 11 for symbol in shape],
                    "symbol": [symbol.removesuffix("-hollow") for symbol in shape],
                    "color": ["@surface" if symbol.endswith("-hollow") else color for symbol in shape],
                    "line": {"width": 2, "color": color},
                    "opacity": 1,
                },
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [pairs[place][1] for place in at],
                    "arrayminus": [pairs[place][0] for place in at],
                    "thickness": 2.5,
                    "width": 0,
                    "color": color,
                },
                "hovertext": [hover[place] for place in at],
                "hoverinfo": "text",
            }
        )
    return traces


def rows_axis(names: Sequence[str], **more: Any) -> Json:
    """A vertical axis with a name for each line, the first on top."""
    shown = {
        "tickvals": [*range(len(names))],
        "ticktext": [*names],
        "tickfont": {"size": 13, "color": "@ink"},
    }
    return axis(
        **{**shown, "range": [len(names) - 0.4, -0.6], "showgrid": False, "ticklabelstandoff": 6, **more}
    )


def log_axis(values: Sequence[float], title: str = "", **more: Any) -> Json:
    """A logarithmic axis over positive values, with ticks that people read."""
    low, high = min(values), max(values)
    pad = 0.04 * max(math.log10(high / low), 0.1)
    shown = ticks(low, high)
    reach = [math.log10(low) - pad, math.log10(high) + pad]
    texts = [*map(format_number, shown)]
    return axis(title, type="log", tickvals=shown, ticktext=texts, range=reach, **more)


def ticks(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis: decades over many, 1-2-5 over some, even steps over less than one."""
    span = math.log10(high / low)
    if span < 0.7:
        return even(low, high)
    steps = (1.0,) if span > 2.4 else (1.0, 2.0, 5.0)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [float(f"{step * 10.0**decade:.3g}") for decade in decades for step in steps]
    inside = [value for value in found if low * 0.999 <= value <= high * 1.001]
    return inside[:: math.ceil(len(inside) / 7)]


def even(low: float, high: float) -> list[float]:
    """At most seven multiples of 1, 2 or 5 times a power of 10 between two values."""
    rough = max(high - low, 1e-12) / 5
    decade = 10 ** math.floor(math.log10(rough))
    step = next(times * decade for times in (1, 2, 5, 10) if times * decade >= rough * 0.999)
    places = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return [float(f"{place * step:.6g}") for place in places]


@dataclass(frozen=True)
class Scale:
    """Where the values of a searched parameter lie on an axis. 0 is left of a logarithmic range, as `off`."""

    positions: Mapping[Any, float]
    tickvals: Sequence[float]
    ticktext: Sequence[str]
    reach: tuple[float, float]

    def at(self, value: Any) -> float:
        return self.positions[value]


def scale(
    values: Sequence[Any], *, log: bool, low: float | None, high: float | None, order: Sequence[Any] = ()
) -> Scale:
    """A scale for these values. low, high: of the search's range; None for words, which stand in `order`."""
    if any(isinstance(value, str | bool) for value in values) or low is None or high is None:
        kinds = list(dict.fromkeys([one for one in order if one in values] + [*values]))
        if all(isinstance(kind, int | float) and not isinstance(kind, bool) for kind in kinds):
            kinds.sort()
        places = {kind: float(place) for place, kind in enumerate(kinds)}
        texts = [word(kind) for kind in kinds]
        return Scale(places, [*places.values()], texts, (-0.2, max(len(kinds) - 0.8, 0.2)))
    outside = [value for value in values if value > 0 or not log]
    low, high = min([low, *outside]), max([high, *outside])
    if not log:
        shown = even(low, high)
        return Scale({value: value for value in values}, shown, [f"{n:.6g}" for n in shown], (low, high))
    left = math.log10(low) - 0.14 * max(math.log10(high / low), 1)
    positions = {value: math.log10(value) if value > 0 else left for value in values}
    decades = ticks(low, high)
    at, texts = [math.log10(tick) for tick in decades], [*map(format_number, decades)]
    if 0 in values:
        at, texts = [left, *at], [OFF, *texts]
    return Scale(positions, at, texts, (min(*at, math.log10(low)), math.log10(high)))


def word(value: Any) -> str:
    """A value of a parameter for people: ``before`` for ``before_activation``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value).removesuffix("_activation").replace("_", " ")
    return format_number(value)


def label(candidate: Candidate) -> tuple[str, str]:
    """A candidate in two lines: what it is, and its techniques."""
    if candidate.control:
        name = candidate.control.replace("_", " ").replace("batchnorm", "batch norm")
        name = {"none": "no technique", "l1": "L1", "l2": "L2"}.get(name, name)
        return name, f"control: {candidate.mix}" if candidate.mix not in ("none", name) else "control"
    return candidate.name, candidate.mix


def broken(text: str, most: int = 40) -> str:
    """Techniques on two lines where they are longer than `most` characters."""
    parts = text.split(" + ")
    if len(text) <= most or len(parts) < 2:
        return text
    at = min(range(1, len(parts)), key=lambda place: abs(len(" + ".join(parts[:place])) - len(text) / 2))
    return f"{' + '.join(parts[:at])} +\n{' + '.join(parts[at:])}"
