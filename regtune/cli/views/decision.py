"""A decision as a person reads it: the answer, the candidates on one axis, what each technique adds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from regtune.cli.views.drawing import mix_text
from regtune.cli.views.tables import table
from regtune.escaping import printable
from regtune.study.decision import Decision, Estimate, Judged, Standing
from regtune.study.decision_text import (
    FIGURES,
    NO_TECHNIQUE,
    PRUNABLE,
    added_title,
    basis_text,
    end_text,
    form_of,
    optimism_text,
    sentence,
    signed_text,
    value_text,
)

STYLES: Mapping[Standing, str] = {"chosen": "bold green", "tied": "", "beaten": "dim", "diverged": "red"}
NARROWEST_PLOT, WIDEST_PLOT = 10, 72
SMALL = "small weights: share of the hidden weights below 0.001"
L1 = "Under Adam an L1 penalty makes weights small, not zero."


def decision_view(decision: Decision, width: int) -> RenderableType:
    """Draw a decision in at most `width` columns."""
    decision = decision.model_copy(
        update={"candidates": tuple(sorted(decision.candidates, key=_order(decision)))}
    )
    parts: list[RenderableType] = [Text(sentence(decision), style="bold")]
    if decision.candidates:
        parts += [*_plot(decision, width), Text(), _candidates(decision)]
    if added := _added(decision, width):
        parts += [Text(), *added]
    lines = optimism_text(decision), basis_text(decision), end_text(decision), *decision.notes
    parts += [Text(), *(Text(printable(line)) for line in lines if line)]
    return Group(*parts)


def _order(decision: Decision) -> Callable[[Judged], tuple[int, float]]:
    """The chosen one, then tied, beaten and diverged ones, each from the best mean on."""
    sign, places = -1 if decision.goal == "maximize" else 1, [*STYLES]
    return lambda one: (places.index(one.standing), sign * one.estimate.mean if one.estimate else 0.0)


def _plot(decision: Decision, width: int) -> list[RenderableType]:
    """Paired differences to no technique, or where that was not measured to the chosen one, on a common axis."""
    compared = decision.none is not None
    shown = [
        (one, difference)
        for one in decision.candidates
        if (difference := one.to_none if compared else one.to_chosen) is not None
    ]
    if not shown:
        return []
    better = "left" if decision.goal == "minimize" else "right"
    to = NO_TECHNIQUE if compared else "the chosen one"
    unit = ", points" if form_of(decision.metric).share else ""
    names = [one.candidate.name for one, _ in shown]
    room = max(NARROWEST_PLOT, min(WIDEST_PLOT, width - max(map(len, names)) - 11))
    low, high = _range([difference for _, difference in shown])
    grid = Table.grid(padding=(0, 1, 0, 0))
    for one, difference in shown:
        style = STYLES[one.standing]
        line = Text(interval_line(difference, low, high, room), style, no_wrap=True)
        line.highlight_words("│", "not bold bright_black")
        grid.add_row(Text(one.candidate.name, style, no_wrap=True), line, Text(one.standing, style))
    grid.add_row("", Text(_axis(decision.metric, low, high, room), "dim", no_wrap=True), "")
    title = f"{decision.metric} against {to}, paired{unit}: {better} is better"
    return [Text(), Text(title, style="dim"), grid]


def interval_line(estimate: Estimate, low: float, high: float, room: int) -> str:
    """``  ├──●──┤   │`` in `room` characters from `low` to `high`, with a line where nothing differs."""

    def place(value: float) -> int:
        return round((value - low) / (high - low) * (room - 1))

    line = [" "] * room
    if estimate.low is not None and estimate.high is not None:
        first, last = place(estimate.low), place(estimate.high)
        line[first : last + 1] = "─" * (last - first + 1)
        line[first], line[last] = "├", "┤"
    line[place(0.0)] = {" ": "│", "─": "┼"}.get(line[place(0.0)], line[place(0.0)])
    line[place(estimate.mean)] = "●"
    return "".join(line)


def _range(differences: Sequence[Estimate]) -> tuple[float, float]:
    """The ends of the axis: 0 and every interval lie on it."""
    ends = [0.0, *(one.mean for one in differences)]
    ends += [end for one in differences for end in (one.low, one.high) if end is not None]
    low, high = min(ends), max(ends)
    return (low, high) if high > low else (low - 1.0, high + 1.0)


def _axis(metric: str, low: float, high: float, room: int) -> str:
    """The line below the axis: its 0, and its ends where there is room beside that."""
    left, right = (signed_text(metric, Estimate(mean=end)) for end in (low, high))
    zero = round(-low / (high - low) * (room - 1))
    before = f"{left if len(left) < zero else '':<{zero}}0"
    return before + (f"{right:>{room - zero - 1}}" if len(right) + zero + 1 < room else "")


def _candidates(decision: Decision) -> Table:
    """Every candidate with its replicates, their mean, the paired difference to the chosen one, and what it is."""
    heads = ("candidate", "n", decision.metric, "to the chosen one", "")
    drawn = table(*heads, right=heads[1:4], fold=heads[:1])
    for one in decision.candidates:
        cells = (
            _described(one),
            str(one.replicates),
            value_text(decision.metric, one.estimate),
            signed_text(decision.metric, one.to_chosen),
            one.standing,
        )
        drawn.add_row(*cells, style=STYLES[one.standing])
    return drawn


def _described(one: Judged) -> str:
    """``trial 9: dropout 0.15 + batch norm before``, ``control: early stopping``."""
    candidate = one.candidate
    return f"{'control' if candidate.control else candidate.name}: {_techniques(one)}"


def _techniques(one: Judged) -> str:
    return printable(mix_text(one.candidate.mix, one.candidate.control))


def _added(decision: Decision, width: int) -> list[RenderableType]:
    """What each technique adds: the control without any as it is, then the paired differences of the others."""
    controls, none = decision.techniques, decision.none
    if none is None or not controls:
        return []
    names = [name for name in FIGURES if name in none.figures]
    rows = [[NO_TECHNIQUE, *(value_text(name, none.figures[name]) for name in names)]]
    for one in controls:
        rows.append([_techniques(one), *(signed_text(name, one.added.get(name)) for name in names)])
    heads = ["technique", *(FIGURES[name].title for name in names)]
    widths = [max(map(cell_len, column)) for column in zip(heads, *rows, strict=True)]
    parts: list[RenderableType] = [Text(added_title(decision), style="bold")]
    for places in _fitting(widths, width):
        drawn = table(*(heads[place] for place in places), right=heads[1:])
        for row in rows:
            drawn.add_row(*(row[place] for place in places))
        parts += [drawn, Text()]
    notes = [SMALL] if "sparsity" in names else []
    notes += [f"prunable: {PRUNABLE}"] if "prunable" in names else []
    notes += [L1] if any(one.candidate.control == "l1" for one in controls) else []
    return [*parts[:-1], *(Text(note, style="dim") for note in notes)]


def _fitting(widths: Sequence[int], width: int) -> Iterator[list[int]]:
    """Places of columns, the first in every table, so that each table fits into `width`."""
    places, taken = [0], widths[0]
    for place, wide in enumerate(widths[1:], start=1):
        if taken + 2 + wide > width and len(places) > 1:
            yield places
            places, taken = [0], widths[0]
        places.append(place)
        taken += 2 + wide
    yield places
