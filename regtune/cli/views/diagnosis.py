"""A diagnosis as a person reads it: fit, bias and variance, parameters, errors, and the textbook's sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from regtune.cli.terminal import counted, span
from regtune.cli.views.drawing import metric_text, percent
from regtune.cli.views.tables import table
from regtune.config.trial import format_number
from regtune.escaping import printable
from regtune.evidence.diagnosis import (
    BiasVariance,
    Diagnosis,
    Effect,
    Errors,
    Fit,
    Holds,
    ParameterEffect,
)
from regtune.study.decision_text import NO_TECHNIQUE

STEP = 10
"""Columns between two ticks of a chart: its points stand on them."""
HEIGHT = 12
NARROWEST_PLOT, WIDEST_PLOT = 10, 48
SHOWN_MISTAKES = 6
MARKS: Mapping[Holds, tuple[str, str]] = {
    "holds here": ("✓", "green"),
    "does not hold here": ("✗", "red"),
    "not measured": ("–", "dim"),
}
EFFECTS: Mapping[Effect, str] = {"matters": "bold", "flat": "dim", "not_measured": ""}
TITLES = {
    "fit": "over- or underfitting",
    "bias_variance": "bias and variance",
    "parameters": "what the search tells about each parameter",
    "errors": "where it errs",
}


@dataclass(frozen=True)
class Line:
    """A curve of a chart. marker: drawn as separate points where it is given."""

    name: str
    values: Sequence[float]
    color: str
    marker: str | None = None


def diagnosis_view(diagnosis: Diagnosis, width: int) -> RenderableType:
    """Draw a diagnosis in at most `width` columns."""
    subject, parts = diagnosis.subject, list[RenderableType]()
    mix = NO_TECHNIQUE if subject.mix == "none" else subject.mix
    named = subject.name if subject.mix == "none" and "control" in subject.name else f"{subject.name}: {mix}"
    parts += [Text.assemble((printable(named), "bold"), f"\n{printable(subject.why)}")]
    for name, title in TITLES.items():
        drawn = list(_part(diagnosis, name, width))
        if not drawn and name in diagnosis.missing:
            drawn = [Text(f"not measured: {printable(diagnosis.missing[name])}", style="dim")]
        if drawn:
            parts += [Text(), Text(title, style="bold underline"), *drawn]
    parts += [Text(), Text("the textbook's sentences", style="bold underline"), _sentences(diagnosis)]
    cost = f"{counted(diagnosis.trainings, 'training')}, {counted(diagnosis.epochs, 'epoch')}"
    notes = [f"{cost}, {span(diagnosis.seconds)}", *diagnosis.notes]
    return Group(*parts, Text(), *(Text(printable(note), style="dim") for note in notes))


def _part(diagnosis: Diagnosis, name: str, width: int) -> Iterator[RenderableType]:
    if name == "fit" and diagnosis.fit:
        yield from _fit(diagnosis.fit, width)
    elif name == "bias_variance" and diagnosis.bias_variance:
        yield from _bias_variance(diagnosis.bias_variance, width)
    elif name == "parameters" and diagnosis.parameters:
        yield from _parameters(diagnosis, width)
    elif name == "errors" and diagnosis.errors:
        yield from _errors(diagnosis.errors, width)


def _fit(fit: Fit, width: int) -> Iterator[RenderableType]:
    verdict = {"overfitting": "It overfits", "underfitting": "It underfits", "neither": "It does neither"}
    yield Text(f"{verdict[fit.verdict]}: {fit.reason}.")
    yield Text()
    lines = (
        Line("validation", [point.val_cross_entropy for point in fit.points], "cyan"),
        Line("training", [point.train_cross_entropy for point in fit.points], "magenta", "•"),
    )
    ticks = [f"{point.images:,}" for point in fit.points]
    yield from chart(lines, ticks, width, "training images", "cross-entropy")


def _bias_variance(curve: BiasVariance, width: int) -> Iterator[RenderableType]:
    of = "all" if curve.images == curve.of else f"{curve.images:,} of {curve.of:,}"
    drawn = f"{curve.points[0].trainings} trainings each, on bootstrap samples of {of} training images"
    yield Text(f"Along {curve.along}: {curve.why}; {drawn}.")
    yield Text(f"{curve.reading[0].upper()}{curve.reading[1:]}.")
    yield Text()
    points = curve.points
    lines = (
        Line("Brier score", [point.brier for point in points], "cyan"),
        Line("squared bias", [point.brier_bias for point in points], "magenta", "•"),
        Line("variance", [point.brier_variance for point in points], "yellow", "+"),
    )
    ticks = [_strength(curve, point.value) for point in points]
    marks = {_place(curve, curve.brier_minimum): ("▼", "least")}
    if curve.choice is not None:
        same = curve.choice == curve.brier_minimum
        marks[_place(curve, curve.choice)] = ("◆", "least, and the choice") if same else ("▲", "the choice")
    yield from chart(lines, ticks, width, curve.along, "Brier score", marks)
    heads = (curve.along, "0/1 loss", "bias", "variance", "Brier", "bias²", "variance", "")
    rows = table(*heads, right=heads[:-1])
    for place, point in enumerate(points):
        losses = (point.loss, point.bias, point.variance)
        scores = (point.brier, point.brier_bias, point.brier_variance)
        error = f" ± {100 * point.loss_error:.2f}" if point.loss_error is not None else ""
        rows.add_row(
            ticks[place],
            f"{100 * losses[0]:.2f}{error} %",
            *(f"{100 * value:.2f} %" for value in losses[1:]),
            *(f"{value:.4f}" for value in scores),
            marks.get(place, ("", ""))[0],
        )
    yield Text()
    yield rows
    note = "0/1 loss = bias + variance, which helps where most trainings are wrong (Domingos 2000); ± standard error"
    yield Text(note, style="dim")


def _place(curve: BiasVariance, value: float) -> int:
    return [point.value for point in curve.points].index(value)


def _strength(curve: BiasVariance, value: float) -> str:
    return "off" if value == 0 and curve.along != "epochs" else format_number(value)


def _parameters(diagnosis: Diagnosis, width: int) -> Iterator[RenderableType]:
    noise = (
        f"; of replicates, one training's standard deviation is {diagnosis.noise:.4f}"
        if diagnosis.noise is not None
        else ""
    )
    yield Text(f"From {counted(diagnosis.complete, 'complete trial')}{noise}.")
    heads = ("parameter", "importance", "95 % interval", f"along it, {diagnosis.metric}")
    rows = table(*heads, right=heads[1:3], fold=heads[3:])
    for one in diagnosis.parameters:
        share = "–" if one.importance is None else f"{one.importance:.2f}"
        interval = "–" if one.low is None or one.high is None else f"{one.low:.2f} to {one.high:.2f}"
        rows.add_row(printable(one.name), share, interval, one.reading, style=EFFECTS[one.effect])
    yield rows
    points = [point.metric for one in diagnosis.parameters for point in one.points]
    bands = [
        end
        for one in diagnosis.parameters
        if one.level is not None and one.noise is not None
        for end in (one.level - one.noise, one.level + one.noise)
    ]
    if not points:
        return
    low, high = min(*points, *bands), max(*points, *bands)
    drawn = Table.grid(padding=(0, 1, 0, 0))
    drawn.add_column(no_wrap=True)
    drawn.add_column(no_wrap=True, justify="right")
    drawn.add_column(no_wrap=True, justify="right")
    drawn.add_column(no_wrap=True)
    room = max(NARROWEST_PLOT, min(WIDEST_PLOT, width - 34))
    for one in diagnosis.parameters:
        for place, point in enumerate(one.points):
            name = printable(one.name) if place == 0 else ""
            value = point.value if isinstance(point.value, str) else _number(one, float(point.value))
            line = _band_line(point.metric, one, low, high, room)
            drawn.add_row(name, printable(str(value)), Text(f"({point.count})", "dim"), line)
    ends = f"{metric_text(low):<{room // 2}}{metric_text(high):>{room - room // 2}}"
    drawn.add_row("", "", "", Text(ends, style="dim"))
    yield Text()
    yield drawn
    explained = "●  mean of a bin's trials, adjusted for the other parameters; ( ) how many"
    yield Text(explained + (";  ░  what can be chance" if bands else ""), style="dim")


def _number(one: ParameterEffect, value: float) -> str:
    return "off" if one.log and value == 0 else format_number(value)


def _band_line(value: float, one: ParameterEffect, low: float, high: float, room: int) -> Text:
    """``  ░░░░●░░░   `` in `room` characters."""

    def place(number: float) -> int:
        return round((number - low) / ((high - low) or 1.0) * (room - 1))

    cells = [" "] * room
    if one.level is not None and one.noise is not None:
        first, last = place(one.level - one.noise), place(one.level + one.noise)
        cells[first : last + 1] = "░" * (last - first + 1)
    cells[place(value)] = "●"
    line = Text("".join(cells), style="dim")
    line.stylize("not dim cyan", place(value), place(value) + 1)
    return line


def _errors(errors: Errors, width: int) -> Iterator[RenderableType]:
    wrong = f"{errors.wrong:,} of {errors.images:,} validation images"
    yield Text(
        f"{wrong} are taken for another class; accuracy {percent(errors.accuracy)}, Brier score {errors.brier:.4f}."
    )
    confused = table("confused", "", "images", right=("images",))
    for pair in errors.confusions:
        confused.add_row(str(pair.true), f"taken for {pair.predicted}", str(pair.count))
    surest = table("image", "is", "taken for", "with", right=("image", "with"))
    for one in errors.mistakes[:SHOWN_MISTAKES]:
        surest.add_row(str(one.index), str(one.true), str(one.predicted), f"{100 * one.probability:.1f} %")
    if errors.wrong:
        both = Table.grid(padding=(0, 6, 0, 0))
        both.add_row(Text("most frequent", style="dim"), Text("surest, by index in validation", style="dim"))
        both.add_row(confused, surest)
        yield Text()
        yield both
    yield Text()
    yield Text(f"Calibration: {errors.reading}; ECE {100 * errors.ece:.2f} %.")
    yield _reliability(errors, max(NARROWEST_PLOT, min(WIDEST_PLOT, width - 32)))
    yield Text(
        "●  accuracy of the images with this confidence;  │  where it would be as sure as right", "dim"
    )


def _reliability(errors: Errors, room: int) -> Table:
    """The calibration diagram: a line a bin of confidence, from 0 to 100 %."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_row(Text("confidence", "dim"), "", Text("images", "dim"))
    for one in errors.reliability:
        sure, right = (round(value * (room - 1)) for value in (one.confidence, one.accuracy))
        cells = [" "] * room
        low, high = min(sure, right), max(sure, right)
        cells[low : high + 1] = "─" * (high - low + 1)
        cells[sure], cells[right] = "│", "●"
        line = Text("".join(cells))
        line.stylize("cyan", right, right + 1)
        grid.add_row(f"{100 * one.confidence:.1f} %", line, f"{one.count:,}")
    grid.add_row("", Text(f"{'0 %':<{room // 2}}{'100 %':>{room - room // 2}}", style="dim"), "")
    return grid


def _sentences(diagnosis: Diagnosis) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column()
    for one in diagnosis.sentences:
        mark, style = MARKS[one.holds]
        grid.add_row(Text(mark, style), Text(one.holds, style), one.text)
        grid.add_row("", "", Text(printable(one.figures), style="dim"))
    return grid


def chart(
    lines: Sequence[Line],
    ticks: Sequence[str],
    width: int,
    x_label: str,
    y_label: str,
    marks: Mapping[int, tuple[str, str]] | None = None,
) -> Iterator[RenderableType]:
    """Draw curves over the same points, which stand equally far apart, each above its tick.

    marks: at some points of the first curve, a sign and what it means.
    """
    from plotille import Figure

    figure = Figure()
    steps = max(1, len(ticks) - 1)
    step = min(STEP, max(4, (width - 20) // steps))
    figure.width, figure.height = step * steps + 2, HEIGHT  # in the last column plotille draws nothing
    figure.origin, figure.color_mode = False, "names"
    figure.set_x_limits(0, steps + 2 / step)
    values = [value for line in lines for value in line.values]
    figure.set_y_limits(0.0 if min(values) >= 0 else min(values), 1.06 * max(values) or 1.0)
    figure.y_ticks_fkt = lambda tick, _: f"{tick:.3f}"
    for line in lines:
        style: dict[str, Any] = {"lc": line.color}
        if line.marker:
            style |= {"marker": line.marker, "interp": None}
        figure.plot(range(len(line.values)), line.values, **style)
    legend = Text("   ").join(
        Text(f"{f'{line.marker} {line.marker}' if line.marker else '⠤⠤'} {line.name}", line.color)
        for line in lines
    )
    for place, (sign, meaning) in (marks or {}).items():
        figure.scatter([place], [lines[0].values[place]], lc="cyan", marker=sign)
        legend.append(f"   {sign} {meaning}")
    rows = [row for row in figure.show().splitlines() if re.match(r" *-?\d+\.\d+ \| ", row)]
    start = Text.from_ansi(rows[0]).plain.index(" | ") + 3
    labels = [" "] * (start + step * steps + STEP)
    for place, tick in enumerate(ticks):
        begin = max(0, start + place * step - len(tick) // 2)
        labels[begin : begin + len(tick)] = tick
    yield Text(f"{y_label} by {x_label}", style="dim")
    yield legend
    yield Text.from_ansi("\n".join(rows))
    yield Text("".join(labels).rstrip(), style="dim")
