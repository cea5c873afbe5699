"""Displays of a running sweep: live on a terminal, one line for each finished trial elsewhere, or none.

They are called from the coordinator's loop and only keep what they get, or print one line; Rich's own thread draws, at
most four times a second. A terminal that has gone away does not end a sweep.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from contextlib import ExitStack, suppress
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from regtune.cli.terminal import console, keys_unseen
from regtune.cli.views import drawing
from regtune.study.progress import FinishedTrial, Progress

NARROW = 60
STOPPING = "stopping at the end of this epoch; Ctrl-C again stops at once"


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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...

    def progress(self, progress: Progress) -> None:
        if progress.starting and not self._begun:
            self.note(drawing.starting(progress))
        self._begun = True

    def finished(self, trial: FinishedTrial, progress: Progress) -> None:
        of = f"{progress.finished}/{progress.run_cap}" if progress.run_cap else str(progress.finished)
        best = " (best so far)" if progress.best and progress.best.number == trial.number else ""
        self.note(f"[{of}] {drawing.ended_text(trial, progress.metric)}{best}")

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
        self._recent: deque[FinishedTrial] = deque(maxlen=3)
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
        return drawing.sweep_view(
            self._progress, self._recent, width=width, height=height, seconds_since=age, notice=self._notice
        )

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
