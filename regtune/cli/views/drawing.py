"""Figures as text, learning curves, and the displays of a running sweep.

A display is live on a terminal, one line for each finished trial elsewhere, or silent. It is called from the
coordinator's loop and only keeps what it gets, or prints one line; Rich's own thread draws, four times a second. A
terminal that has gone away does not end a sweep.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from datetime import timedelta
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from regtune.cli.terminal import console, counted, keys_unseen, span
from regtune.config.trial import RegularizationConfig, format_number
from regtune.escaping import printable
from regtune.study.progress import Deciding, Progress, Row
from regtune.study.record import STATES, State, TrialRecord

NARROW = 60
STOPPING = "stopping at the end of this epoch; Ctrl-C again stops at once"
FIRST_EPOCHS = "the first epochs come in a few seconds"
BARS = "▁▂▃▄▅▆▇█"
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
    if len(shown) > width:
        shown = [shown[round(place * (len(shown) - 1) / (width - 1))] for place in range(width)]
    least = min(filter(math.isfinite, shown), default=0.0)
    heights = [math.log(value - 0.9 * least) if value >= least > 0 else value for value in shown]
    if accuracy:
        heights = [-height for height in heights]
    finite = [*filter(math.isfinite, heights)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    shares = [(height - low) / (high - low or 1.0) for height in heights]
    return "".join(BARS[min(7, int(share * 8))] if math.isfinite(share) else " " for share in shares)


def metric_text(value: float | None) -> str:
    """The metric to the digits that one run can tell apart."""
    if value is None:
        return "–"
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 else format_number(value)


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"


def techniques(trial: Row) -> str:
    """The techniques in use and every other searched parameter, marked as a control where it is one."""
    others = [
        f"{name} {format_number(value) if isinstance(value, float) else value}"
        for name, value in trial.parameters.items()
        if name.split(".")[0] not in RegularizationConfig.model_fields
    ]
    control = "control: " if trial.control else ""
    return printable(control + ", ".join((mix_text(trial.mix, trial.control), *others)))


def mix_text(mix: str, control: str | None) -> str:
    """The techniques in use; the control's name where none is."""
    return control.replace("_", " ") if control and mix == "none" else mix


def reason(record: TrialRecord | None) -> str:
    if record is None or record.end_reason is None:
        return "still running"
    if record.message:
        return printable(record.message.splitlines()[0])
    return REASONS.get(record.end_reason, record.end_reason)


def learning_curve(
    train: Sequence[float], validation: Sequence[float], *, width: int, height: int, kept: int | None = None
) -> RenderableType:
    """Draw validation as a line and training as dots over epochs; `kept`, from 1, is marked on the curve."""
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


def sweep_view(
    progress: Progress,
    recent: Sequence[Row] = (),
    *,
    width: int,
    height: int,
    seconds_since: float = 0.0,
    notice: str = "",
) -> RenderableType:
    """Draw a sweep in at most `width` columns and `height` lines; `seconds_since`: the age of `progress`."""
    head, best = _head(progress, seconds_since), _best(progress)
    foot = [_line((f"MLflow  {progress.tracking}", "dim"))] if progress.tracking else []
    foot += [_line((notice, "bold yellow"))] if notice else []
    room = height - len(head) - len(best) - len(foot) - 4 - bool(foot)
    workers = _workers(progress, width, room)
    last = list(recent)[-min(3, room - len(workers) - 1) :] if room - len(workers) > 1 else []
    parts = list(head)
    for block in (best, workers, [ended_text(trial) for trial in reversed(last)], foot):
        parts += [Text(), *block] if block else []
    title = Text(printable(progress.study), style="bold default")
    return Panel(Group(*parts), title=title, title_align="left", border_style="bright_black", width=width)


def _line(*parts: str | tuple[str, str]) -> Text:
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def _head(progress: Progress, seconds_since: float) -> list[RenderableType]:
    done, cap, timeout = progress.finished, progress.run_cap, progress.timeout_seconds
    of = f"{done} of {cap}" if cap else counted(done, "trial")
    total, used = (cap, done) if cap else (timeout or 1, progress.elapsed_seconds)
    counts = _line(f"{progress.complete} complete  {progress.pruned} pruned  {progress.failed} failed")
    for state in ("COMPLETE", "PRUNED", "FAIL"):
        counts.highlight_regex(rf"\b[1-9]\d* {WORDS[state]}", STYLES[state])
    left = "left"
    if deciding := progress.deciding:
        total, used, left = max(1, deciding.planned), deciding.done, "to the next look"
        of = f"{deciding.done} of {counted(deciding.planned, 'replicate')}"
        counts = _line(counted(deciding.candidates, "candidate"))
    bar = Table.grid(expand=True, padding=(0, 2, 0, 0))
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True)
    share = ProgressBar(total, min(used, total), complete_style="green", finished_style="green")
    bar.add_row(share, Text(of, "bold"))
    elapsed = timedelta(seconds=round(progress.elapsed_seconds + seconds_since))
    time = Text(str(elapsed).removeprefix("0:"), "cyan", no_wrap=True)
    if progress.remaining_seconds is not None:
        time.append(f"  about {span(max(1.0, progress.remaining_seconds - seconds_since))} {left}", "dim")
    both = Table.grid(expand=True, padding=(0, 1, 0, 0))
    both.add_column(ratio=1)
    both.add_column(justify="right")
    both.add_row(counts, time)
    return [bar, both]


def _best(progress: Progress) -> list[Text]:
    best, deciding = progress.best, progress.deciding
    if deciding:
        leads = (deciding.best, "bold green") if deciding.best else ("known at the first look", "dim")
        still = ", ".join(deciding.open) or "none"
        return [_line(("leads   ", "dim"), leads), _line(("open    ", "dim"), printable(still))]
    if best is None:
        return [Text("best    none yet", style="dim")]
    value, accuracy = (metric_text(best.value), "bold green"), (percent(best.accuracy), "bold")
    return [
        _line(("best    ", "dim"), value, (f" {progress.metric}   ", "dim"), accuracy, (" accuracy", "dim")),
        _line((f"        trial {best.number}   ", "dim"), techniques(best)),
    ]


def _workers(progress: Progress, width: int, room: int) -> list[Text]:
    """The lines of the running trials that fit into `room`, with the number of the others."""
    running = sorted(progress.running, key=lambda trial: (trial.worker, trial.number))
    if not running:
        return [Text("nothing is training" if progress.deciding else "no trial is running", style="dim")]
    if progress.starting == len(running):
        return [_line((starting(progress), "dim"))]
    most, accuracy = max(1, room - 2), progress.metric.endswith("accuracy")
    shown = running if len(running) <= most else running[: max(1, most - 1)]
    spark, curves = max(10, min(18, width - 70)), [trial.curve(progress.metric) for trial in shown]
    bars = max(5, *(min(spark, len(curve)) for curve in curves))
    head, names = "trial", [name_of(trial).removeprefix("trial ") for trial in shown]
    if progress.deciding:
        head, names = "replicate", [name_of(trial) for trial in shown]
    wide = max(len(head), *map(len, names))
    lines = [_line((f"worker  {head:<{wide}}   epoch  {'curve':<{bars}}     now  techniques", "dim"))]
    for trial, name, curve in zip(shown, names, curves, strict=True):
        worker = trial.worker if trial.worker >= 0 else "–"
        epoch = f"{trial.epochs}/{trial.max_epochs}"
        now = metric_text(curve[-1] if curve else None)
        label = f"{name:<{wide}}" if progress.deciding else f"{name:>{wide}}", "cyan"
        drawn = f"{sparkline(curve, spark, accuracy=accuracy):<{bars}}", "cyan"
        lines += [
            _line(f"{worker:>6}  ", label, f"  {epoch:>6}  ", drawn, f"  {now:>6}  {techniques(trial)}")
        ]
    if len(shown) < len(running):
        lines += [Text(f"and {len(running) - len(shown)} more", style="dim")]
    return lines


def name_of(trial: Row) -> str:
    """``trial 16``; of a replicate its candidate and its number, from 1: ``trial 16 #3``."""
    if trial.replicate is None:
        return f"trial {trial.number}"
    candidate, index = trial.replicate
    return f"{printable(candidate)} #{index + 1}"


def starting(progress: Progress) -> str:
    return f"starting {counted(progress.starting, 'worker')}; {FIRST_EPOCHS}"


def open_text(deciding: Deciding) -> str:
    """What is still open between two looks, in one line."""
    if not deciding.best:
        candidates = counted(deciding.candidates, "candidate")
        return f"deciding between {candidates}; the first look is at {deciding.look} replicates of each"
    still = f"open: {', '.join(deciding.open)}" if deciding.open else "nothing is open"
    return printable(
        f"{deciding.best} leads; {still}; the next look is at {deciding.look} replicates of each"
    )


def ended_text(trial: Row, metric: str = "") -> Text:
    """How a trial ended, in one line; `metric` before its value, where there is room for it."""
    figures = "pruned"
    if trial.state == "COMPLETE":
        figures = f"{metric} {metric_text(trial.value)}, accuracy {percent(trial.accuracy)}".lstrip()
    elif trial.state == "FAIL":
        figures = f"failed: {reason(trial.record)}"
    mark, style = MARKS.get(trial.state, " "), STYLES[trial.state]
    rest = f"; {techniques(trial)}; {counted(trial.epochs, 'epoch')} in {trial.seconds:.1f} s"
    return _line((mark, style), f" {name_of(trial)}: ", (figures, style), (rest, "dim"))


def choose(*, quiet: bool) -> LineDisplay | LiveDisplay:
    """The display for standard error as it is; lines, too, where a terminal is too narrow to draw."""
    out = Console(quiet=True) if quiet else console(sys.stderr)
    drawn = out.is_terminal and not out.is_dumb_terminal and out.width >= NARROW and not quiet
    return LiveDisplay(out) if drawn else LineDisplay(out)


class LineDisplay:
    """One line for each finished trial."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._begun = False
        self._looked: tuple[object, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...

    def progress(self, progress: Progress) -> None:
        if progress.starting and not self._begun:
            self.note(f"starting workers; {FIRST_EPOCHS}")  # one after another: their number is not known yet
        self._begun = True
        if deciding := progress.deciding:
            looked = deciding.look, deciding.best, deciding.open if deciding.best else ()
            if looked != self._looked:
                self._looked = looked
                self.note(open_text(deciding))

    def finished(self, trial: Row, progress: Progress) -> None:
        if progress.deciding:
            of = f"{progress.deciding.done}/{progress.deciding.planned}"
            self.note(f"[{of}] {ended_text(trial, progress.metric)}")
            return
        of = f"{progress.finished}/{progress.run_cap}" if progress.run_cap else str(progress.finished)
        best = " (best so far)" if progress.best and progress.best.number == trial.number else ""
        self.note(f"[{of}] {ended_text(trial, progress.metric)}{best}")

    def note(self, message: str) -> None:
        try:
            self._out.print(message, soft_wrap=True)
        except OSError:  # the terminal is gone; the sweep goes on
            self._out = Console(quiet=True)

    def stopping(self) -> None:
        """Say so past Python's buffers: a signal may arrive in the middle of a print, and no lock may be taken."""
        if not self._out.quiet:
            with suppress(OSError, ValueError):
                os.write(self._out.file.fileno(), f"{STOPPING}\n".encode())


class LiveDisplay:
    """The sweep as it stands, redrawn in place; gone when it is closed."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._progress: Progress | None = None
        self._at = time.monotonic()
        self._recent: deque[Row] = deque(maxlen=3)
        self._notice = ""
        self._width = out.width
        self._unseen = ExitStack()
        self.live = Live(
            console=out,
            get_renderable=self._view,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self.live.start()
        self._unseen.enter_context(keys_unseen(self._out.file))
        return self

    def __exit__(self, *error: object) -> None:
        with self._unseen, suppress(OSError):  # the terminal may be gone
            self.live.stop()

    def _view(self) -> RenderableType:
        width, height = self._out.size
        if width < self._width:  # the terminal has broken the lines of the last drawing
            self._out.clear()
        self._width = width
        if self._progress is None:
            return Text("starting workers", style="dim")
        age = time.monotonic() - self._at
        return sweep_view(
            self._progress, self._recent, width=width, height=height, seconds_since=age, notice=self._notice
        )

    def progress(self, progress: Progress) -> None:
        self._progress, self._at = progress, time.monotonic()

    def finished(self, trial: Row, progress: Progress) -> None:
        self._recent.append(trial)
        self.progress(progress)

    def note(self, message: str) -> None:
        """Print the note above the drawing."""
        with suppress(OSError):  # the terminal may be gone
            self.live.refresh()  # in the size that the window has now
            self._out.print(Text(message, style="dim"))

    def stopping(self) -> None:
        self._notice = STOPPING
