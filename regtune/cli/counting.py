"""Progress of long work: a bar on a terminal, an occasional line elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from regtune.cli.terminal import console, show
from regtune.escaping import printable

LINE_SECONDS = 10.0


class Counting:
    """Tells on standard error how many trials of a study have been seen to. quiet: tells nothing."""

    def __init__(self, *, quiet: bool) -> None:
        err = console(sys.stderr)
        self._lines = not quiet and not err.is_terminal
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=err, transient=True, disable=quiet or not err.is_terminal)
        self._task: TaskID | None = None
        self._study = ""
        self._said = 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def tell(self, study: str, done: int, total: int) -> None:
        """So many trials of a study have been seen to."""
        if study != self._study:
            self._clear()
            self._study, self._said = study, time.monotonic()
            self._task = self._bar.add_task(printable(study), total=total)
        if self._task is not None:
            self._bar.update(self._task, completed=min(done, total))
        if self._lines and time.monotonic() - self._said > LINE_SECONDS:
            self._said = time.monotonic()
            sys.stderr.write(f"{printable(study)}: {min(done, total):,} of {total:,} trials\n")
            sys.stderr.flush()

    def say(self, line: str, quiet: bool = False) -> None:
        """Print a result."""
        self._clear()
        if not quiet:
            show(line)

    def _clear(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task, self._study = None, ""
