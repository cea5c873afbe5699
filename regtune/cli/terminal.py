"""What all verbs share: settings, consoles, questions, output of results and errors.

Results go to standard output, everything else to standard error. Only a terminal gets colour and live drawing, no
colour when NO_COLOR is set; a pipe gets tables in their full width.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import signal
import sys
import termios
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import is_dataclass
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from regtune.escaping import printable, printable_lines, shell_word

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from regtune.errors import RegtuneError
    from regtune.settings import Settings

PIPE_WIDTH = 1000
INTERRUPTED = 130
"""The exit code of what Ctrl-C ended."""
_HELD = "\0"
_HOME: ContextVar[Path | None] = ContextVar("home", default=None)
"""The folder that --home names: it belongs to every command in a message."""
_COMMAND = re.compile(r"\bregtune [a-z](?:'[^']*'|[^;,)`\n ]| (?![ (]))*")
_HINT = re.compile(rf"(?<=: |  )(?!regtune (?:data|schema)\b){_COMMAND.pattern}")
"""A command that is said to be typed, of the verbs that have a folder."""


class Screen(Console):
    """A console on which no text is a command: only Rich's own styles and movements reach the terminal as such."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable_lines(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for piece in super().render(renderable, options):
            text = piece.text
            if piece.control or text.isprintable() or text == "\n":
                yield piece
            else:
                yield Segment(printable_lines(text), piece.style)


def prepare_streams() -> None:
    """Replace what an encoding lacks, so that all can be printed; a closed stream (``>&-``) swallows everything."""
    sys.stdout, sys.stderr = sys.stdout or io.StringIO(), sys.stderr or io.StringIO()
    for stream, way in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=way)


def console(stream: IO[str] | None = None) -> Console:
    """Open a console on `stream`, by default standard output; in a pipe as wide as need be."""
    stream = stream or sys.stdout
    columns = os.environ.get("COLUMNS", "")
    asked = int(columns) if columns.isdecimal() and len(columns) < 6 else 0
    width = None if stream.isatty() else asked or PIPE_WIDTH
    return Screen(file=stream, width=width, highlight=False, markup=False, emoji=False)


def show(*renderables: RenderableType) -> None:
    out = console()
    if out.is_terminal:
        out.print(*renderables, sep="\n")
        return
    with out.capture() as drawn:
        out.print(*renderables, sep="\n")
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in drawn.get().splitlines()))


def say(message: str, quiet: bool = False) -> None:
    if not quiet:
        _tell(message)


def show_error(error: RegtuneError) -> None:
    _tell(str(error) or type(error).__name__, "error: ")


def _tell(message: str, head: str = "") -> None:
    err = console(sys.stderr)
    whole = printable_lines(head + _with_home(message))
    text = Text(wrapped(whole, err.width) if err.is_terminal else whole)
    text.stylize("bold red", 0, len(head))
    err.print(text, soft_wrap=True)


def _with_home(message: str) -> str:
    """The message, with --home in its commands if this one has it."""
    home = f" --home {shell_word(str(_HOME.get()))}" if _HOME.get() else ""
    return _HINT.sub(lambda match: match[0] if " --home " in match[0] else match[0].rstrip() + home, message)


def wrapped(message: str, width: int) -> str:
    """Break prose between words; a command (`regtune ...`) stays whole, even if longer than a line."""
    whole = _COMMAND.sub(lambda match: match[0].replace(" ", _HELD), message)
    lines = whole.splitlines()
    filled = [textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False) for line in lines]
    return "\n".join(filled).replace(_HELD, " ")


@contextmanager
def working(what: str, quiet: bool = False) -> Iterator[Callable[[str], object]]:
    """Show on a terminal that something takes seconds, until it is done; yields what takes a line of progress."""
    err = console(sys.stderr)
    if quiet or not err.is_terminal:
        yield lambda line: None
    else:
        with err.status(Text(what)) as status:
            yield lambda line: status.update(Text(line))


def say_more(study: str, count: int) -> None:
    """Say where to see the trials that a table leaves out."""
    if count:
        say(f"{counted(count, 'more trial')}: regtune board {shell_word(study)}")


def counted(count: int, what: str) -> str:
    """``1 trial``, ``1,200 trials``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def megabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(1, round(count / 1e6))} MB"


def span(seconds: float) -> str:
    """A duration as exact as an estimate may be: ``40 s``, ``6 min``, ``1 h 20 min``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{hours} h {rest} min" if rest else f"{hours} h"


def present(value: Any, view: Callable[[Any], RenderableType], as_json: bool) -> None:
    show_json(value) if as_json else show(view(value))


def show_json(value: Any, indent: int | None = 2) -> None:
    """Print JSON in ASCII, non-finite numbers as null."""
    text = json.dumps(_plain(value), indent=indent, allow_nan=False)
    sys.stdout.write(text.replace("\x7f", "\\u007f") + "\n")


def _plain(value: Any) -> Any:
    if hasattr(value, "to_json"):
        value = value.to_json()
    elif is_dataclass(value):
        value = vars(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str | int | float | None):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, Iterable) else str(value)


def settings_of(home: Path | None, **flags: Any) -> Settings:
    """Load the settings; a verb's flags take precedence."""
    from regtune.settings import load_settings

    _HOME.set(home)
    return load_settings(home=home, **flags)


@contextmanager
def opened(settings: Settings) -> Iterator[Engine]:
    """Open the studies' database for reading."""
    from regtune.storage import open_engine

    engine = open_engine(settings.storage_url)
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def keys_unseen(stream: IO[str]) -> Iterator[None]:
    """Keep the terminal from writing ``^C`` and other keys into a drawing; in the background, leave it alone."""
    before = None
    with suppress(OSError, ValueError, termios.error):
        if os.tcgetpgrp(stream.fileno()) == os.getpgrp():
            before = termios.tcgetattr(stream)
            modes = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
            termios.tcsetattr(stream, termios.TCSANOW, modes)
    try:
        yield
    finally:
        if before:
            with suppress(OSError, ValueError, termios.error):
                termios.tcsetattr(stream, termios.TCSANOW, before)


@contextmanager
def stopping(asked: threading.Event, stopping: Callable[[], None] = lambda: None) -> Iterator[None]:
    """The first Ctrl-C, SIGTERM or SIGHUP asks for a stop, the second stops at once.

    A KeyboardInterrupt may be raised where Python ignores what is raised, in a finalizer; an event is not lost.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        stopping()

    signals = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    with ExitStack() as stack:
        for number in signals:
            stack.callback(signal.signal, number, signal.signal(number, handle))
        yield


def typed(*more: str) -> str:
    """The command as it was typed, with `more`."""
    return " ".join(map(shell_word, ("regtune", *sys.argv[1:], *more)))


def confirm(question: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        from regtune.errors import InputError

        raise InputError(f"{question} There is no terminal to ask; add --yes: {typed('--yes')}")
    if not typer.confirm(printable(question), err=True):
        say("Nothing was changed.")
        raise typer.Exit(1)
