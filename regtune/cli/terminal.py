"""What all verbs share: settings, consoles, questions, output of results and errors.

Results go to standard output, everything else to standard error. Only a terminal gets colour and live drawing, no
colour when NO_COLOR is set; a pipe gets tables in their full width.
"""

from __future__ import annotations

import codecs
import io
import json
import math
import os
import re
import sys
import termios
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import is_dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

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
LINE_SECONDS = 10.0
_HELD = "\0"
_HOME: ContextVar[Path | None] = ContextVar("home", default=None)
"""The folder that --home names: it belongs to every command in a message."""
_COMMAND = re.compile(r"\bregtune [a-z](?:'[^']*'|[^;,)`\n ]| (?![ (]))*")
_HINT = re.compile(rf"(?<=: |  )(?!regtune (?:data|schema)\b){_COMMAND.pattern}")
"""A command that is said to be typed, of the verbs that have a folder."""
_Value = TypeVar("_Value")
INTERRUPTED = 130
SPELLED = "regtune.spelled"
_BRAILLE = dict.fromkeys(range(0x2801, 0x2900), ":") | {0x2800: " "}  # learning curves
_SPELLINGS = (
    str.maketrans("–─━│…•✓✗▲▁▂▃▄▅▆▇█", "--=|.o+x^_.-:=+*#") | {ord("±"): "+-", ord("→"): "->"} | _BRAILLE
)
"""What regtune draws, where the terminal's encoding has no such letters."""


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
    """Let standard output and error spell what their encoding lacks; a closed one (``>&-``) swallows everything."""
    sys.stdout, sys.stderr = sys.stdout or io.StringIO(), sys.stderr or io.StringIO()
    codecs.register_error(SPELLED, _spelled)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=SPELLED)


def _spelled(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    spelled = error.object[error.start : error.end].translate(_SPELLINGS)
    return spelled.encode("ascii", "backslashreplace").decode(), error.end


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


def _whole(message: str) -> str:
    """The message, with --home in its commands if this one has it."""
    home = f" --home {shell_word(str(_HOME.get()))}" if _HOME.get() else ""
    return _HINT.sub(lambda match: match[0] if " --home " in match[0] else match[0].rstrip() + home, message)


def say(message: str, quiet: bool = False) -> None:
    if not quiet:
        message = _whole(message)
        err = console(sys.stderr)
        err.print(wrapped(message, err.width) if err.is_terminal else message, soft_wrap=True)


@contextmanager
def working(what: str, quiet: bool = False) -> Iterator[Callable[[str], object]]:
    """Show that something takes seconds, on a terminal until it is done.

    Yields what takes a new line of progress: a terminal shows the newest, a pipe one every ten seconds.
    """
    err = console(sys.stderr)
    said = time.monotonic()

    def tell(line: str) -> None:
        nonlocal said
        if time.monotonic() - said > LINE_SECONDS:
            said = time.monotonic()
            say(line, quiet)

    if quiet or not err.is_terminal:
        yield tell
    else:
        with err.status(Text(what)) as status:
            yield lambda line: status.update(Text(line))


def say_more(study: str, count: int) -> None:
    """Say where to see the trials that a table leaves out."""
    if count:
        say(f"{count:,} more trial{'' if count == 1 else 's'}: regtune board {shell_word(study)}")


def wrapped(message: str, width: int) -> str:
    """Break prose between words; a command (`regtune ...`) stays whole, even if longer than a line."""
    whole = _COMMAND.sub(lambda match: match[0].replace(" ", _HELD), message)
    lines = (
        textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) or [""]
        for line in whole.splitlines()
    )
    return "\n".join(line for part in lines for line in part).replace(_HELD, " ")


def present(value: _Value, view: Callable[[_Value], RenderableType], as_json: bool) -> None:
    show_json(value) if as_json else show(view(value))


def show_json(value: Any) -> None:
    """Print indented JSON, non-finite numbers as null; escape all but ASCII where a character acts or has no letter."""
    plain = _plain(value)
    text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False)
    utf8 = (sys.stdout.encoding or "").lower() == "utf-8"
    if not text.isascii() and not (utf8 and text.replace("\n", "").isprintable()):
        text = json.dumps(plain, indent=2, allow_nan=False)
    sys.stdout.write(text.replace("\x7f", "\\u007f") + "\n")


def show_error(error: RegtuneError) -> None:
    err = console(sys.stderr)
    lines = _whole(str(error)).splitlines() or [type(error).__name__]
    if err.is_terminal:
        text = Text(wrapped("\n".join((f"error {lines[0]}", *lines[1:])), err.width))
        text.stylize("bold red", 0, len("error"))
        err.print(text, soft_wrap=True)
        return
    err.print("\n".join((f"error: {lines[0]}", *lines[1:])), soft_wrap=True)


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


def confirm(question: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        from regtune.errors import InputError

        typed = " ".join(map(shell_word, ("regtune", *sys.argv[1:], "--yes")))
        raise InputError(f"{question} There is no terminal to ask; add --yes: {typed}")
    if not typer.confirm(printable(question), err=True):
        say("Nothing was changed.")
        raise typer.Exit(1)


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
