"""The parts that all verbs share: consoles, options, completion, output of results and errors.

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
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text
from typer.core import TyperCommand

from regtune.escaping import printable, printable_lines, shell_word

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from regtune.errors import RegtuneError
    from regtune.settings import Settings

PIPE_WIDTH = 1000
_HELD = "\0"
_HOME: ContextVar[Path | None] = ContextVar("home", default=None)
"""The folder that --home names: it belongs to every command in a message."""
_PLAIN_WORD = re.compile(r"[\w./+:,@%=-]+")
_COMMAND = re.compile(r"\bregtune [a-z](?:'[^']*'|[^;,)`\n ]| (?![ (]))*")
_HINT = re.compile(rf"(?<=: |  )(?!regtune (?:data|schema)\b){_COMMAND.pattern}")
"""A command that is said to be typed, of the verbs that have a folder."""
INTERRUPTED = 130
SPELLED = "regtune.spelled"
_SPELLINGS = {
    **{"–": "-", "─": "-", "━": "=", "│": "|", "…": ".", "→": "->", "±": "+-", "•": "o"},
    **{"✓": "+", "✗": "x", "▲": "^", **dict(zip("▁▂▃▄▅▆▇█", "_.-:=+*#", strict=True))},
}
"""What regtune draws, where the terminal's encoding has no such letters."""
_BRAILLE = range(0x2800, 0x2900)


def study_names(incomplete: str) -> list[str]:
    """Complete the name of a study."""
    from regtune.errors import RegtuneError
    from regtune.study.board import list_studies

    try:
        with opened(settings_of(None)) as engine:
            names = [summary.info.name for summary in list_studies(engine)]
    except RegtuneError:
        return []
    return [name for name in names if name.startswith(incomplete) and _harmless(name)]


def _harmless(word: str) -> bool:
    """Whether a shell takes `word` as it is: some put what is completed into the line, or evaluate it, unquoted."""
    return _PLAIN_WORD.fullmatch(word) is not None


def _sweep_files(incomplete: str) -> list[str]:
    typed = Path(incomplete.rpartition("/")[0])
    folders = {typed} if "/" in incomplete else {typed, Path("sweeps")}
    files = {str(path) for folder in folders for end in ("yaml", "yml") for path in folder.glob(f"*.{end}")}
    return sorted(
        path
        for path in files
        if incomplete in (path[: len(incomplete)], Path(path).name[: len(incomplete)]) and _harmless(path)
    )


def study_name(typed: str | None) -> str | None:
    r"""Decode a study's name as UTF-8, whatever the locale; other bytes as ``\xff``."""
    if typed is None or typed.isprintable():
        return typed
    return os.fsencode(typed).decode("utf-8", "backslashreplace")


StudyArgument = Annotated[
    str,
    typer.Argument(
        metavar="STUDY",
        help="Name of the study; `regtune studies` lists all.",
        autocompletion=study_names,
        callback=study_name,
    ),
]
FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="The sweep file.", autocompletion=_sweep_files)
]
HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home",
        metavar="FOLDER",
        help="Folder of databases and artifacts; default: REGTUNE_HOME, or mlruns.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Answer yes to every question.")]
PortOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=65535,
        metavar="N",
        help="Port to listen on.",
        show_default="the last one used, or 5000",
    ),
]
AddressOption = Annotated[
    str,
    typer.Option(
        "--host",
        metavar="ADDRESS",
        help="Address to bind to; other machines than this one need an account.",
    ),
]
AuthOption = Annotated[
    bool | None,
    typer.Option(
        "--auth/--no-auth",
        help="Require accounts; default: only where other machines can connect.",
        show_default=False,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the file; may be repeated."),
]


class Verb(TyperCommand):
    """A verb whose help is plain: ``FILE`` and ``[TRIAL]`` in the usage, no type beside a flag."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The arguments without braces."""
        pieces: list[str] = super().collect_usage_pieces(ctx)
        return [re.sub(r"^\{(.*)\}(?=$|\.)", r"\1", piece).replace("...", " ...") for piece in pieces]

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters; a flag takes no value, so none is named."""
        parameters: list[Any] = super().get_params(ctx)
        for parameter in parameters:
            if getattr(parameter, "is_flag", False) and parameter.metavar is None:
                parameter.metavar = ""
        return parameters


class Screen(Console):
    """A console on which no text is a command: only Rich's own styles and movements reach the terminal as such."""

    def render_str(self, text: str, **options: Any) -> Text:
        """A string as Rich's text."""
        return super().render_str(printable_lines(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is written for `renderable`, piece by piece."""
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
    return "".join(map(_spelling, error.object[error.start : error.end])), error.end


def _spelling(letter: str) -> str:
    if ord(letter) in _BRAILLE:  # learning curves
        return " " if ord(letter) == _BRAILLE.start else ":"
    return _SPELLINGS.get(letter) or letter.encode("ascii", "backslashreplace").decode()


def console(stream: IO[str] | None = None) -> Console:
    """Open a console on `stream`, by default standard output; in a pipe as wide as need be."""
    stream = stream or sys.stdout
    columns = os.environ.get("COLUMNS", "")
    asked = int(columns) if columns.isdecimal() and len(columns) < 6 else 0
    width = None if stream.isatty() else asked or PIPE_WIDTH
    return Screen(file=stream, width=width, highlight=False, markup=False, emoji=False)


def show(*renderables: RenderableType) -> None:
    """Print a result."""
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
    """Print something that is not a result."""
    if not quiet:
        message = _whole(message)
        err = console(sys.stderr)
        err.print(wrapped(message, err.width) if err.is_terminal else message, soft_wrap=True)


@contextmanager
def working(what: str, quiet: bool = False) -> Iterator[None]:
    """Show on a terminal that something takes seconds, until it is done."""
    err = console(sys.stderr)
    if quiet or not err.is_terminal:
        yield
        return
    with err.status(what):
        yield


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


def show_json(value: Any) -> None:
    """Print indented JSON, non-finite numbers as null; escape all but ASCII where a character acts or has no letter."""
    plain = _plain(value)
    text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False)
    utf8 = (sys.stdout.encoding or "").lower() == "utf-8"
    if not text.isascii() and not (utf8 and text.replace("\n", "").isprintable()):
        text = json.dumps(plain, indent=2, allow_nan=False)
    sys.stdout.write(text.replace("\x7f", "\\u007f") + "\n")


def show_error(error: RegtuneError) -> None:
    """Print an error in full, without a traceback."""
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
    """Keep the terminal from writing ``^C`` and other keys into a drawing, which would move the cursor."""
    before = _echo(stream, False)
    try:
        yield
    finally:
        if before:
            _echo(stream, True)


def _echo(stream: IO[str], on: bool) -> bool:
    """Switch the echo of keys; says whether it was on. A process in the background leaves the terminal alone."""
    import termios

    with suppress(OSError, ValueError, termios.error):
        terminal = stream.fileno()
        if os.tcgetpgrp(terminal) == os.getpgrp():
            modes = termios.tcgetattr(terminal)
            before = bool(modes[3] & termios.ECHO)
            modes[3] = modes[3] | termios.ECHO if on else modes[3] & ~termios.ECHO
            termios.tcsetattr(terminal, termios.TCSANOW, modes)
            return before
    return False


def confirm(question: str, yes: bool) -> None:
    """Ask before going on. Raises typer.Exit after a no, InputError without a terminal."""
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
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, str | int | bool) or value is None:
        return value
    if isinstance(value, Iterable):
        return [_plain(item) for item in value]
    return str(value)
