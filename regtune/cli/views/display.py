"""Displays of a running sweep: live on a terminal, one line for each finished trial elsewhere, or none.

They are called from the coordinator's loop and only keep what they get, or print one line; Rich's own thread draws, at
most four times a second. A terminal that has gone away does not end a sweep.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from contextlib import ExitStack, suppress
from typing import Self

from rich.console import Console, ConsoleDimensions, RenderableType
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType, Segment
from rich.text import Text

from regtune.cli.terminal import console, keys_unseen
from regtune.cli.views import drawing
from regtune.study.progress import FinishedTrial, Progress

REDRAWS_A_SECOND = 4
STOPPING = "stopping at the end of this epoch; Ctrl-C again stops at once"


class Display:
    """An Observer that is entered around a sweep; this one shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return

    def progress(self, progress: Progress) -> None: ...

    def finished(self, trial: FinishedTrial, progress: Progress) -> None: ...

    def note(self, message: str) -> None: ...

    def stopping(self) -> None:
        """Called from a signal handler: must neither wait nor take a lock."""


def choose(*, quiet: bool) -> Display:
    if quiet:
        return Display()
    err = console(sys.stderr)
    return LiveDisplay(err) if err.is_terminal and not err.is_dumb_terminal else LineDisplay(err)


class LineDisplay(Display):
    """One line for each finished trial."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._begun = False

    def progress(self, progress: Progress) -> None:
        if progress.starting and not self._begun:
            self.note(drawing.starting(progress))
        self._begun = True

    def finished(self, trial: FinishedTrial, progress: Progress) -> None:
        self.note(finished_line(trial, progress))

    def note(self, message: str) -> None:
        try:
            self._out.print(message, soft_wrap=True)
        except OSError:  # the terminal is gone; the sweep goes on
            self._out = Console(quiet=True)

    def stopping(self) -> None:
        """Say so past Python's buffers: a signal may arrive in the middle of a print."""
        with suppress(OSError, ValueError):
            os.write(self._out.file.fileno(), f"{STOPPING}\n".encode())


class LiveDisplay(Display):
    """The sweep as it stands, redrawn in place; gone when it is closed."""

    def __init__(self, out: Console, *, recent: int = 3) -> None:
        self._out = out
        self._progress: Progress | None = None
        self._at = time.monotonic()
        self._recent: deque[FinishedTrial] = deque(maxlen=recent)
        self._notice = ""
        self._drawn: tuple[ConsoleDimensions, RenderableType] | None = None
        self._unseen = ExitStack()
        self.live = Live(
            console=out,
            get_renderable=self._view,
            refresh_per_second=REDRAWS_A_SECOND,
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
        size = self._out.size
        self._wipe(size.width)
        drawn: RenderableType = Text("starting workers", style="dim")
        if self._progress is not None:
            sizes = {"width": size.width, "height": size.height}
            age = time.monotonic() - self._at
            drawn = drawing.sweep_view(
                self._progress, self._recent, **sizes, seconds_since=age, notice=self._notice
            )
        self._drawn = (size, drawn)
        return drawn

    def _wipe(self, width: int) -> None:
        """Remove a drawing whose lines a narrower window has broken, and leave the cursor where Rich expects it.

        Rich goes up as many lines as it has drawn; a terminal that breaks long lines anew has made more of them.
        """
        if self._drawn is None or width >= self._drawn[0].width:
            return
        before, drawn = self._drawn
        options = self._out.options.update(width=before.width, height=None)
        lines = [Segment.get_line_length(line) for line in self._out.render_lines(drawn, options, pad=False)]
        rows = sum(max(1, math.ceil(length / width)) for length in lines)
        erase = (ControlType.ERASE_IN_LINE, 2)
        above = [(ControlType.CURSOR_UP, 1), erase] * (rows - 1)
        self._out.control(Control(ControlType.CARRIAGE_RETURN, erase, *above))
        self._out.file.write("\n" * (len(lines) - 1))

    def progress(self, progress: Progress) -> None:
        self._progress, self._at = progress, time.monotonic()

    def finished(self, trial: FinishedTrial, progress: Progress) -> None:
        self._recent.append(trial)
        self.progress(progress)

    def note(self, message: str) -> None:
        """Print the note above the drawing."""
        with suppress(OSError):  # the terminal may be gone
            self.live.refresh()  # in the size that the window has now
            self._out.print(Text(message, style="dim"))

    def stopping(self) -> None:
        self._notice = STOPPING


def finished_line(trial: FinishedTrial, progress: Progress) -> str:
    of = f"{progress.finished}/{progress.run_cap}" if progress.run_cap else str(progress.finished)
    if trial.state == "COMPLETE":
        figures = f"{progress.metric} {drawing.metric_text(trial.value)}, accuracy {drawing.percent(trial.accuracy)}"
    elif trial.state == "PRUNED":
        figures = "pruned"
    else:
        figures = f"failed: {drawing.reason(trial.end_reason, trial.message)}"
    best = " (best so far)" if progress.best is not None and progress.best.number == trial.number else ""
    return (
        f"[{of}] {drawing.MARKS.get(trial.state, ' ')} trial {trial.number}: {figures}; "
        f"{drawing.counted(trial.epochs, 'epoch')} in {trial.seconds:.1f} s; {drawing.techniques(trial)}{best}"
    )
