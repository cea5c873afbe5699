"""The command line: parse, make one call, draw.

`main` is the console script.

Nothing heavy is imported before a verb runs, so that help and completion answer at once.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated, TextIO

import typer

from regtune.cli import db, keep, look, run, serve, setup, use
from regtune.cli.options import Verb
from regtune.cli.terminal import INTERRUPTED, prepare_streams, show_error
from regtune.errors import RegtuneError
from regtune.processes import bypass_proxies

BROKEN_PIPE = 141
FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)

app = typer.Typer(
    name="regtune",
    help="Find the regularization that makes a network generalize.",
    epilog="Start with: regtune sweep sweeps/quickstart.yaml",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (run, look, serve, use, keep, setup):
    for verb in group.VERBS:
        app.command(verb.__name__.rstrip("_"), cls=Verb, rich_help_panel=group.PANEL)(verb)
for name, verbs in {"data": setup.data, "db": db.db}.items():
    app.add_typer(verbs, name=name, rich_help_panel=setup.PANEL)


def _version(value: bool) -> None:
    if value:
        from regtune import __version__

        typer.echo(f"regtune {__version__}")
        raise typer.Exit


@app.callback()
def _regtune(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Find the regularization that makes a network generalize."""


def main() -> None:
    """Run and exit: 0, 1 for what failed, 2 for what was typed wrong, 130 when interrupted."""
    prepare_streams()
    bypass_proxies()
    try:
        code = _run()
        sys.stdout.flush()
    except BrokenPipeError:
        code = _discard(BROKEN_PIPE, sys.stdout)
    except OSError as error:
        if error.errno in FULL:
            show_error(RegtuneError(f"the output could not be written completely ({error.strerror})"))
            code = _discard(1, sys.stdout)
        elif error.errno == errno.EIO and error.filename is None:  # the terminal is gone
            code = _discard(1, sys.stdout, sys.stderr)
        else:
            raise
    raise SystemExit(code)


def _discard(code: int, *streams: TextIO) -> int:
    """Python flushes once more at its end, and would complain."""
    for stream in streams:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code


def _run() -> int:
    try:
        app()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except RegtuneError as error:
        show_error(error)
        return error.exit_code
    except OSError as error:
        if error.errno not in FORBIDDEN or error.filename is None:
            raise
        hint = "give this account access to it, or choose another folder with REGTUNE_HOME"
        show_error(RegtuneError(f"{error.filename}: {error.strerror}; {hint}"))
        return 1
    except ValueError as error:
        from regtune.storage.mlflow import bad_variable

        if (understood := bad_variable(error)) is None:
            raise
        show_error(understood)
        return understood.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0
