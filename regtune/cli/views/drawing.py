"""Figures as text, sparklines, learning curves, and the live view of a sweep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, JustifyMethod, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from regtune.config.trial import RegularizationConfig, format_number
from regtune.escaping import printable
from regtune.study.board.rows import STATES
from regtune.study.progress import FinishedTrial, Progress, RunningTrial
from regtune.study.record import State

if TYPE_CHECKING:
    from regtune.study.board.rows import Row

BARS = "▁▂▃▄▅▆▇█"
NARROW = 60
STYLES = dict(zip(STATES, ("green", "yellow", "red", "cyan", "dim", "dim"), strict=True))
WORDS: dict[State, str] = {state: state.lower() for state in STATES} | {"FAIL": "failed"}
MARKS = {"COMPLETE": "✓", "PRUNED": "–", "FAIL": "✗"}
REASONS = {
    "max_epochs": "every epoch was trained",
    "early_stopping": "early stopping: the monitored figure stopped improving",
    "pruned": "pruned: others were better at this epoch",
    "stopped": "stopped by a person",
    "non_finite": "the loss became infinite or not a number",
    "timeout": "longer than trial_timeout",
    "out_of_memory": "more memory than allowed",
    "worker_died": "its worker died",
    "error": "an error",
}


def sparkline(values: Sequence[float], width: int = 20, *, accuracy: bool = False) -> str:
    """Draw a learning curve as at most `width` bars; of a longer one, epochs evenly spaced.

    A curve falls by a factor and then hardly moves, so a bar is as high as the logarithm of the value less nine tenths
    of the smallest: the last epochs stay distinct. An accuracy is drawn by its error, upside down. A value that is not
    finite is a blank; equal values are a low line.
    """
    shown = [1 - value for value in values] if accuracy else list(values)
    finite = [value for value in shown if math.isfinite(value)]
    if not finite:
        return " " * min(width, len(shown))
    least = min(finite)

    def height(value: float) -> float:
        scaled = math.log(value - 0.9 * least) if least > 0 else value
        return -scaled if accuracy else scaled

    low = min(map(height, finite))
    span = max(map(height, finite)) - low
    if len(shown) > width:
        shown = [shown[round(place * (len(shown) - 1) / (width - 1))] for place in range(width)]
    marks = []
    for value in shown:
        share = (height(value) - low) / span if span > 0 and math.isfinite(value) else 0.0
        marks.append(BARS[min(len(BARS) - 1, int(share * len(BARS)))] if math.isfinite(value) else " ")
    return "".join(marks)


def clock(seconds: float) -> str:
    """A duration: ``0:07``, ``12:30``, ``2:05:00``."""
    hours, rest = divmod(max(0, round(seconds)), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def span(seconds: float) -> str:
    """A duration as exact as an estimate may be: ``40 s``, ``6 min``, ``1 h 20 min``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{hours} h {rest} min" if rest else f"{hours} h"


def megabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(1, round(count / 1e6))} MB"


def counted(count: int, what: str) -> str:
    """``1 trial``, ``1,200 trials``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def metric_text(value: float | None) -> str:
    """The metric to the digits that one run can tell apart."""
    if value is None:
        return "–"
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 else format_number(value)


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"


def techniques(trial: RunningTrial | FinishedTrial | Row) -> str:
    """What `configured` says, marked as a control where it is one."""
    return configured(trial) if trial.control is None else f"control: {configured(trial)}"


def configured(trial: RunningTrial | FinishedTrial | Row) -> str:
    """The techniques in use, and every other searched parameter."""
    others = [
        f"{name} {format_number(value) if isinstance(value, float) else value}"
        for name, value in trial.parameters.items()
        if name.split(".")[0] not in RegularizationConfig.model_fields
    ]
    return printable(", ".join((mix_text(trial.mix, trial.control), *others)))


def mix_text(mix: str, control: str | None) -> str:
    """The techniques in use; the control's name where none is."""
    return control.replace("_", " ") if control and mix == "none" else mix


def reason(end_reason: str | None, message: str | None = None) -> str:
    if message:
        return printable(message.splitlines()[0])
    return "still running" if end_reason is None else REASONS.get(end_reason, end_reason)


def starting(progress: Progress) -> str:
    return f"starting {counted(progress.starting, 'worker')}; the first epochs come in a few seconds"


def sweep_view(
    progress: Progress,
    recent: Sequence[FinishedTrial] = (),
    *,
    width: int,
    height: int,
    seconds_since: float = 0.0,
    notice: str = "",
) -> RenderableType:
    """Draw a sweep in at most `width` columns and `height` lines; `seconds_since`: the age of `progress`."""
    wide = width >= NARROW
    head, best = _head(progress, seconds_since, wide), _best(progress, wide)
    foot = [_line((f"MLflow  {progress.tracking}", "dim"))] if progress.tracking else []
    foot += [_line((notice, "bold yellow"))] if notice else []
    room = height - len(head) - len(best) - len(foot) - (4 if wide else 3) - bool(foot)
    workers, used = _workers(progress, width, room)
    last = list(recent)[-min(3, room - used - 1) :] if room - used > 1 else []
    parts = list(head)
    for block in (best, workers, [_ended(trial) for trial in reversed(last)], foot):
        parts += [Text(), *block] if block else []
    if not wide:
        return Group(_line((printable(progress.study), "bold")), *parts)
    title = Text(printable(progress.study), style="bold default")
    frame = {"title_align": "left", "box": box.ROUNDED, "border_style": "bright_black", "width": width}
    return Panel(Group(*parts), title=title, **frame)  # type: ignore[arg-type]


def _line(*parts: str | tuple[str, str]) -> Text:
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def _head(progress: Progress, seconds_since: float, wide: bool) -> list[RenderableType]:
    done, cap, timeout = progress.finished, progress.run_cap, progress.timeout_seconds
    bar = Table.grid(expand=True, padding=(0, 2, 0, 0))
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True)
    of = f"{done} of {cap}" if cap else counted(done, "trial")
    total, used = (cap, done) if cap else (timeout or 1, progress.elapsed_seconds)
    share = ProgressBar(total, min(used, total), complete_style="green", finished_style="green")
    bar.add_row(share, Text(of, "bold"))
    counts = _line(f"{progress.complete} complete  {progress.pruned} pruned  {progress.failed} failed")
    for state in ("COMPLETE", "PRUNED", "FAIL"):
        counts.highlight_regex(rf"\b[1-9]\d* {WORDS[state]}", STYLES[state])
    time = Text(clock(progress.elapsed_seconds + seconds_since), "cyan", no_wrap=True)
    if progress.remaining_seconds is not None:
        time.append(f"  about {span(max(1.0, progress.remaining_seconds - seconds_since))} left", "dim")
    if not wide:
        return [bar, counts, time]
    both = Table.grid(expand=True)
    both.add_column(ratio=1)
    both.add_column(justify="right")
    both.add_row(counts, time)
    return [bar, both]


def _best(progress: Progress, wide: bool) -> list[RenderableType]:
    best = progress.best
    if best is None:
        return [Text("best    none yet", style="dim")]
    figures = (metric_text(best.value), "bold green"), (percent(best.accuracy), "bold")
    if not wide:
        first = _line(("best ", "dim"), figures[0], "  ", figures[1], (f"  trial {best.number}", "dim"))
        return [first, _line(f"     {techniques(best)}")]
    named = figures[0], (f" {progress.metric}   ", "dim"), figures[1], (" accuracy", "dim")
    first = _line(("best    ", "dim"), *named)
    return [first, _line((f"        trial {best.number}   ", "dim"), techniques(best))]


def _workers(progress: Progress, width: int, room: int) -> tuple[list[RenderableType], int]:
    """The running trials that fit into `room` lines, with the number of the others; and how many lines that takes."""
    running = sorted(progress.running, key=lambda trial: (trial.worker, trial.number))
    if not running:
        return [Text("no trial is running", style="dim")], 1
    if progress.starting == len(running):
        return [_line((starting(progress), "dim"))], 1
    wide, accuracy = width >= NARROW, progress.metric.endswith("accuracy")
    each = 1 if wide else 2
    most = max(1, (room - 2) // each)
    shown = running if len(running) <= most else running[: max(1, most - 1)]
    lines: list[RenderableType] = []
    if wide:
        spark = max(10, min(18, width - 70))
        table = Table.grid(padding=(0, 2, 0, 0))
        table.show_header = True
        for name in ("worker", "trial", "epoch", "curve", progress.metric if width > 114 else "now"):
            side: JustifyMethod = "left" if name == "curve" else "right"
            table.add_column(name, justify=side, no_wrap=True, header_style="dim")
        table.add_column("techniques", header_style="dim")
        for trial in shown:
            table.add_row(
                str(trial.worker) if trial.worker >= 0 else "–",
                Text(str(trial.number), "cyan"),
                f"{trial.epoch}/{trial.max_epochs}",
                Text(sparkline(trial.curve, spark, accuracy=accuracy), "cyan"),
                metric_text(trial.curve[-1] if trial.curve else None),
                _line(techniques(trial)),
            )
        lines = [table]
    else:
        for trial in shown:
            curve = sparkline(trial.curve, max(4, width - 20), accuracy=accuracy)
            now = f" {metric_text(trial.curve[-1])}" if trial.curve else ""
            epoch = (f"{trial.epoch}/{trial.max_epochs} ", "dim")
            lines += [_line((f"{trial.number} ", "cyan"), epoch, (curve, "cyan"), now)]
            lines += [_line((f"  {techniques(trial)}", "dim"))]
    used = wide + each * len(shown)
    if len(shown) < len(running):
        return [*lines, Text(f"and {len(running) - len(shown)} more", style="dim")], used + 1
    return lines, used


def _ended(trial: FinishedTrial) -> Text:
    if trial.state == "COMPLETE":
        figures = f"{metric_text(trial.value)}  {percent(trial.accuracy)}", ""
    elif trial.state == "PRUNED":
        figures = f"pruned after {counted(trial.epochs, 'epoch')}", "yellow"
    else:
        figures = f"failed: {reason(trial.end_reason, trial.message)}", "red"
    mark = (f"{MARKS.get(trial.state, ' ')} ", STYLES[trial.state])
    return _line(mark, (f"{trial.number:>4}  ", "dim"), figures, (f"  {techniques(trial)}", "dim"))


def learning_curve(
    train: Sequence[float], validation: Sequence[float], *, width: int, height: int, kept: int | None = None
) -> RenderableType:
    """Draw two curves over epochs: validation as a line, training as dots, distinct without colour.

    kept: the epoch whose weights are kept, from 1, marked on the curve.
    """
    from plotille import Figure

    curves = [[(i, y) for i, y in enumerate(values, 1) if math.isfinite(y)] for values in (validation, train)]
    points = [value for curve in curves for _, value in curve]
    if not points:
        return Text("no finite epoch to draw", style="dim")
    figure = Figure()
    figure.width, figure.height = max(10, width - 24), max(3, height - 5)
    figure.origin, figure.color_mode = False, "names"
    figure.x_label, figure.y_label = "epoch", "cross-entropy"
    epochs = max(map(len, (train, validation)))
    ticks = figure.width / 10  # of ten columns; the last one stays free
    a_tick = math.ceil(max(1, epochs - 1) / (ticks - 0.1))
    figure.set_x_limits(1, 1 + a_tick * ticks)
    low, high = min(points), max(points)
    margin = (high - low) * 0.04 or abs(high) * 0.05 or 1.0
    figure.set_y_limits(max(0.0, low - margin) if low >= 0 else low - margin, high + margin)
    figure.x_ticks_fkt = lambda tick, _: f"{tick:.0f}"
    figure.y_ticks_fkt = lambda tick, _: f"{tick:.3f}"
    styles: tuple[dict[str, Any], ...] = {"lc": "cyan"}, {"lc": "magenta", "marker": "•", "interp": None}
    for curve, style in zip(curves, styles, strict=True):
        if curve:
            figure.plot(*zip(*curve, strict=True), **style)
    legend = Text.assemble(("⠤⠤ validation", "cyan"), "  ", ("• • training", "magenta"))
    if kept is not None:
        figure.scatter([kept], [validation[kept - 1]], lc="cyan", marker="▲")
        legend.append(f"  ▲ kept: {kept}")
    return Group(legend, Text.from_ansi(figure.show()))
