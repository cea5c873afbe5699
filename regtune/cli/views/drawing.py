"""Small drawings in characters: sparklines, the budget's bar, a learning curve, a sweep at one moment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from rich import box
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from regtune.config.trial import RegularizationConfig, format_number
from regtune.escaping import printable
from regtune.study.progress import FinishedTrial, Progress, RunningTrial
from regtune.study.record import State

if TYPE_CHECKING:
    from regtune.study.board import Row

BARS = "▁▂▃▄▅▆▇█"
BRAILLE_START = 0x2800
NARROW = 60
STYLES = {
    **{"COMPLETE": "green", "PRUNED": "yellow", "FAIL": "red", "RUNNING": "cyan", "WAITING": "dim"},
    "FOREIGN": "dim",
}
ORDER: tuple[State, ...] = ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING", "FOREIGN")
WORDS = {
    "COMPLETE": "complete",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
    "FOREIGN": "foreign",
}
MARKS = {"COMPLETE": "✓", "PRUNED": "–", "FAIL": "✗"}


def sparkline(values: Sequence[float], width: int = 20, *, accuracy: bool = False) -> str:
    """A learning curve as at most `width` bars, high is high; of a longer one, epochs evenly spaced.

    A curve falls by a factor and then hardly moves, so a bar is as high as the logarithm of the value less
    nine tenths of the least: the last epochs stay apart. An accuracy is drawn by its error, upside down.
    A value that is not finite is a blank; values that are all alike are a low line.
    """
    shown = [1 - value for value in values] if accuracy else list(values)
    finite = [value for value in shown if math.isfinite(value)]
    if not finite:
        return " " * min(width, len(shown))
    least = min(finite)

    def scaled(value: float) -> float:
        found = math.log(value - 0.9 * least) if least > 0 else value
        return -found if accuracy else found

    heights = [scaled(value) for value in finite]
    low, span = min(heights), max(heights) - min(heights)
    if len(shown) > width:
        shown = [shown[round(place * (len(shown) - 1) / (width - 1))] for place in range(width)]
    marks = []
    for value in shown:
        share = (scaled(value) - low) / span if span > 0 and math.isfinite(value) else 0.0
        marks.append(BARS[min(len(BARS) - 1, int(share * len(BARS)))] if math.isfinite(value) else " ")
    return "".join(marks)


def clock(seconds: float) -> str:
    """A duration: ``0:07``, ``12:30``, ``2:05:00``."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def span(seconds: float) -> str:
    """A duration in words, as exact as a guess may be: ``40 s``, ``6 min``, ``1 h 20 min``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"


def counted(count: int, what: str) -> str:
    """``1 trial``, ``1,200 trials``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def metric_text(value: float | None) -> str:
    """The metric to the digits that one run can tell apart."""
    if value is None:
        return "–"
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 else format_number(value)


def percent(value: float | None) -> str:
    """An accuracy: ``97.93 %``."""
    return "–" if value is None else f"{100 * value:.2f} %"


def budget_bar(progress: Progress, width: int) -> Text:
    """What is done of the budget: a thick line as far as trials are finished, coloured by how they ended."""
    share = (
        progress.finished / progress.run_cap
        if progress.run_cap
        else (progress.elapsed_seconds / progress.timeout_seconds if progress.timeout_seconds else 0.0)
    )
    filled = round(min(1.0, share) * width)
    pruned = round(filled * progress.pruned / progress.finished) if progress.finished else 0
    bar = Text()
    bar.append("━" * (filled - pruned), style="green")
    bar.append("━" * pruned, style="yellow")
    bar.append("─" * (width - filled), style="bright_black")
    return bar


def sweep_view(
    progress: Progress,
    recent: Sequence[FinishedTrial] = (),
    *,
    width: int,
    height: int,
    seconds_since: float = 0.0,
    notice: str = "",
) -> RenderableType:
    """A sweep at one moment, in at most `width` columns and `height` lines.

    seconds_since: how long ago `progress` was made; the clock goes on while nothing else does.
    """
    framed = width >= NARROW
    inner = width - 4 if framed else width
    head, best = _head(progress, inner, seconds_since), _best(progress, inner)
    foot = _foot(progress, notice, inner)
    each = 1 if inner >= NARROW else 2
    room = height - len(head) - len(best) - len(foot) - 2 - (2 if framed else 0) - (1 if foot else 0)
    workers = _workers(progress, inner, max(1, (room - 2) // each))
    room -= len(workers) + 1
    last = list(recent)[-min(3, room) :] if room > 0 else []
    ended: list[RenderableType] = [_cut(_ended(trial), inner) for trial in reversed(last)]
    parts: list[RenderableType] = [*head]
    for block in (best, workers, ended, foot):
        parts += [Text(), *block] if block else []
    body = Group(*parts)
    if not framed:
        return body
    title = Text(printable(progress.study), style="bold default")
    return Panel(
        body, title=title, title_align="left", box=box.ROUNDED, border_style="bright_black", width=width
    )


def _foot(progress: Progress, notice: str, width: int) -> list[RenderableType]:
    lines: list[RenderableType] = []
    if progress.tracking:
        lines.append(_cut(Text(f"MLflow  {progress.tracking}", style="dim"), width))
    if notice:
        lines.append(_cut(Text(notice, style="bold yellow"), width))
    return lines


def _head(progress: Progress, width: int, seconds_since: float) -> list[RenderableType]:
    elapsed = clock(progress.elapsed_seconds + seconds_since)
    left = ""
    if progress.remaining_seconds is not None:
        left = f"about {span(max(1.0, progress.remaining_seconds - seconds_since))} left"
    done = progress.finished
    of = f"{done} of {progress.run_cap}" if progress.run_cap else counted(done, "trial")
    tail = f"  {of}"
    counts = Text()
    for count, state in (
        (progress.complete, "COMPLETE"),
        (progress.pruned, "PRUNED"),
        (progress.failed, "FAIL"),
    ):
        counts.append("  " if counts else "")
        counts.append(str(count), style=STYLES[state] if count else "dim")
        counts.append(f" {WORDS[state]}", style="" if count else "dim")
    lines: list[RenderableType] = []
    if width < NARROW:
        lines.append(_cut(Text(printable(progress.study), style="bold"), width))
    bar = budget_bar(progress, max(4, width - cell_len(tail)))
    bar.append(tail, style="bold")
    lines.append(bar)
    clockface = Text().append(elapsed, style="cyan")
    if left:
        clockface.append(f"  {left}", style="dim")
    if width >= NARROW:
        lines.append(_both(counts, clockface, width))
    else:
        lines += [_cut(counts, width), _cut(clockface, width)]
    return lines


def _best(progress: Progress, width: int) -> list[RenderableType]:
    best = progress.best
    if best is None:
        return [Text("best    none yet", style="dim")]
    first = Text().append("best    ", style="dim")
    first.append(metric_text(best.value), style="bold green")
    first.append(f" {progress.metric}", style="dim")
    first.append(f"   {percent(best.accuracy)}", style="bold")
    first.append(" accuracy", style="dim")
    second = Text().append(f"        trial {best.number}   ", style="dim")
    second.append(techniques(best))
    if width < NARROW:
        first = Text().append("best ", style="dim").append(metric_text(best.value), style="bold green")
        first.append(f"  {percent(best.accuracy)}", style="bold").append(
            f"  trial {best.number}", style="dim"
        )
        second = Text(f"     {techniques(best)}")
    return [_cut(first, width), _cut(second, width)]


def _workers(progress: Progress, width: int, most: int) -> list[RenderableType]:
    """At most `most` running trials, one or two lines each; how many more there are is said."""
    ordered = sorted(progress.running, key=lambda trial: (trial.worker, trial.number))
    running = ordered if len(ordered) <= most else ordered[: most - 1]
    if not progress.running:
        return [Text("no trial is running", style="dim")]
    if progress.starting == len(progress.running):
        return [Text(starting(progress), style="dim")]
    draw = _worker_rows if width >= NARROW else _worker_pairs
    lines = draw(running, progress.metric, width)
    if len(running) < len(progress.running):
        lines.append(Text(f"and {len(progress.running) - len(running)} more", style="dim"))
    return lines


def starting(progress: Progress) -> str:
    """What happens before the first epoch."""
    return f"starting {counted(progress.starting, 'worker')}; the first epochs come in a few seconds"


def _worker_pairs(running: Sequence[RunningTrial], metric: str, width: int) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for trial in running:
        line = Text().append(f"{trial.number} ", style="cyan")
        line.append(f"{trial.epoch}/{trial.max_epochs} ", style="dim")
        line.append(_spark(trial, metric, max(4, width - 20)), style="cyan")
        line.append(f" {metric_text(trial.curve[-1])}" if trial.curve else "")
        lines += [_cut(line, width), _cut(Text(f"  {techniques(trial)}", style="dim"), width)]
    return lines


def _worker_rows(running: Sequence[RunningTrial], metric: str, width: int) -> list[RenderableType]:
    spark = max(10, min(18, width - 66))
    wide = width > 110
    figure = max(6, len(metric)) if wide else 6
    heads = ("validation curve" if spark >= 16 else "curve", metric if wide else "now")
    head = f"worker  trial   epoch  {heads[0]:<{spark}}  {heads[1]:>{figure}}  techniques"
    rows: list[RenderableType] = [_cut(Text(head, style="dim"), width)]
    for trial in running:
        row = Text(f"{trial.worker if trial.worker >= 0 else '–':>6}  ")
        row.append(f"{trial.number:>5}", style="cyan")
        row.append(f"  {f'{trial.epoch}/{trial.max_epochs}':>6}  ")
        row.append(f"{_spark(trial, metric, spark):<{spark}}", style="cyan")
        row.append(f"  {metric_text(trial.curve[-1] if trial.curve else None):>{figure}}  ")
        row.append(techniques(trial))
        rows.append(_cut(row, width))
    return rows


def _spark(trial: RunningTrial, metric: str, width: int) -> str:
    return sparkline(trial.curve, width, accuracy=metric.endswith("accuracy"))


def techniques(trial: RunningTrial | FinishedTrial | Row) -> str:
    """What `configured` says; a control is named as one."""
    return configured(trial) if trial.control is None else f"control: {configured(trial)}"


def configured(trial: RunningTrial | FinishedTrial | Row) -> str:
    """The techniques in use, and every other parameter that is searched."""
    others = [
        f"{name} {format_number(value)}" if isinstance(value, float) else f"{name} {value}"
        for name, value in trial.parameters.items()
        if name.split(".")[0] not in RegularizationConfig.model_fields
    ]
    return printable(", ".join((mix_text(trial.mix, trial.control), *others)))


def mix_text(mix: str, control: str | None) -> str:
    """The techniques in use; of a control that changes nothing in the network, its own name."""
    return control.replace("_", " ") if control and mix == "none" else mix


def _ended(trial: FinishedTrial) -> Text:
    line = Text().append(f"{MARKS.get(trial.state, ' ')} ", style=STYLES[trial.state])
    line.append(f"{trial.number:>4}  ", style="dim")
    if trial.state == "COMPLETE":
        line.append(f"{metric_text(trial.value)}  {percent(trial.accuracy)}")
    elif trial.state == "PRUNED":
        line.append(f"pruned after {counted(trial.epochs, 'epoch')}", style="yellow")
    else:
        line.append(f"failed: {reason(trial.end_reason, trial.message)}", style="red")
    line.append(f"  {techniques(trial)}", style="dim")
    return line


def reason(end_reason: str | None, message: str | None = None) -> str:
    """How and why a trial ended, for people; a message says it in full."""
    words = {
        "max_epochs": "every epoch was trained",
        "early_stopping": "early stopping: the monitored figure stopped getting better",
        "pruned": "pruned: others were better at this epoch",
        "stopped": "stopped by a person",
        "non_finite": "the loss became infinite or not a number",
        "timeout": "longer than trial_timeout",
        "out_of_memory": "more memory than allowed",
        "worker_died": "its worker died",
        "error": "an error",
    }
    if message:
        return printable(message.splitlines()[0])
    return words.get(end_reason or "", "still running" if end_reason is None else end_reason)


def _both(left: Text, right: Text, width: int) -> Text:
    gap = width - left.cell_len - right.cell_len
    return _cut(Text.assemble(left, " " * max(2, gap), right), width)


def _cut(text: Text, width: int) -> Text:
    text.truncate(width, overflow="ellipsis")
    text.no_wrap = True
    return text


def learning_curve(
    train: Sequence[float], validation: Sequence[float], *, width: int, height: int, kept: int | None = None
) -> RenderableType:
    """Two curves over epochs: validation as a line, training as dots, told apart without colour.

    width, height: in characters, axes included. kept: the epoch whose weights are kept, marked below the
    axis.
    """
    from plotille import Canvas

    points = [value for value in (*train, *validation) if math.isfinite(value)]
    if not points:
        return Text("no finite epoch to draw", style="dim")
    low, high = min(points), max(points)
    margin = (high - low) * 0.04 or abs(high) * 0.05 or 1.0
    low, high = (max(0.0, low - margin) if low >= 0 else low - margin), high + margin
    epochs = max(len(train), len(validation))
    labels = [f"{low + (high - low) * share:.3f}" for share in (1.0, 0.5, 0.0)]
    left = max(len(label) for label in labels)
    columns, rows = max(8, width - left - 3), max(3, height - 2)
    layers = []
    for values, joined in ((train, False), (validation, True)):
        canvas = Canvas(columns, rows, xmin=0.5, xmax=epochs + 0.5, ymin=low, ymax=high)
        finite = [(i, value) for i, value in enumerate(values, start=1) if math.isfinite(value)]
        for x, y in finite:
            canvas.point(x, y)
        if joined:
            for (x0, y0), (x1, y1) in pairwise(finite):
                canvas.line(x0, y0, x1, y1)
        layers.append(canvas.plot().splitlines())
    drawn: list[RenderableType] = [
        Text.assemble((" " * (left + 2), ""), ("⠒⠒ validation", "cyan"), "   ", ("⠂⠂ training", "magenta"))
    ]
    for row in range(rows):
        label = {0: labels[0], rows // 2: labels[1], rows - 1: labels[2]}.get(row, "")
        line = Text().append(f"{label:>{left}} ┤" if label else f"{'':>{left}} │", style="dim")
        for dots, solid in zip(
            _padded(layers[0][row], columns), _padded(layers[1][row], columns), strict=True
        ):
            both = chr(BRAILLE_START | _dots(dots) | _dots(solid))
            style = "cyan" if _dots(solid) else "magenta"
            line.append(both if _dots(dots) | _dots(solid) else " ", style=style)
        drawn.append(line)
    drawn.append(_epoch_axis(epochs, columns, left, kept))
    return Group(*drawn)


def _padded(line: str, width: int) -> str:
    return line.ljust(width)[:width]


def _dots(character: str) -> int:
    code = ord(character)
    return code - BRAILLE_START if BRAILLE_START <= code < BRAILLE_START + 256 else 0


def _epoch_axis(epochs: int, columns: int, left: int, kept: int | None) -> Text:
    axis = [" "] * columns

    def put(epoch: int, label: str) -> None:
        at = min(columns - len(label), max(0, round((epoch - 0.5) / epochs * columns - len(label) / 2)))
        if all(character == " " for character in axis[max(0, at - 1) : at + len(label) + 1]):
            axis[at : at + len(label)] = label

    if kept is not None:
        put(kept, f"▲ {kept} kept")
    put(1, "1")
    put(epochs, str(epochs))
    line = Text(f"{'':>{left}} └" if left else "", style="dim")
    line.append("".join(axis).rstrip(), style="dim")
    return line
