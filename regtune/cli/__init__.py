"""The command line: parse, make one call, draw.

`main` is the console script.

Nothing heavy is imported before a verb runs, so that help and completion answer at once.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from regtune.cli import evidence, export, look, registry, run, upkeep
from regtune.cli.options import Verb
from regtune.cli.terminal import prepare_streams, show_error
from regtune.errors import RegtuneError
from regtune.processes import bypass_proxies

Verbs = tuple[Callable[..., None], ...]
PANELS: dict[str, Verbs] = {
    "Sweep": (run.sweep, run.plan, run.watch, run.stop, run.enqueue),
    "Look": (look.board, look.show_, look.studies, upkeep.ui),
    "Evidence": (evidence.decide, evidence.diagnose, evidence.report),
    "Promote": (registry.promote, registry.pull),
    "Serve": (upkeep.up, upkeep.down, upkeep.status),
    "Use": (look.best, look.train),
    "Keep in order": (upkeep.sync, upkeep.delete, upkeep.gc),
    "Set up": (upkeep.doctor, upkeep.schema),
}
GROUPS: dict[str, tuple[str, str, Verbs]] = {
    "model": (
        "Promote",
        "List, show, verify and export registered models, and roll one back.",
        (registry.list_, registry.show_, registry.verify, export.export, registry.rollback),
    ),
    "data": ("Set up", "List, fetch and verify data sets.", (upkeep.list_, upkeep.fetch, upkeep.verify)),
    "db": (
        "Set up",
        "Create, upgrade, check, back up and restore the databases.",
        (upkeep.init, upkeep.upgrade, upkeep.check, upkeep.backup, upkeep.restore),
    ),
}
FULL = (errno.ENOSPC, errno.EDQUOT)
GONE = (errno.EPIPE, errno.EIO)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def _add(to: typer.Typer, verbs: Verbs, panel: str | None = None) -> None:
    for verb in verbs:
        to.command(verb.__name__.rstrip("_"), cls=Verb, rich_help_panel=panel)(verb)


app = typer.Typer(
    name="regtune",
    help="Find the regularization that makes a network generalize.",
    epilog="Start with: regtune sweep sweeps/quickstart.yaml",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for panel, verbs in PANELS.items():
    _add(app, verbs, panel)
for name, (panel, summary, verbs) in GROUPS.items():
    group = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help=summary)
    _add(group, verbs)
    app.add_typer(group, name=name, rich_help_panel=panel)


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
    except OSError as error:
        code = 1
        if error.errno in FULL:
            show_error(RegtuneError(f"the output could not be written completely ({error.strerror})"))
        elif error.errno not in GONE or error.filename is not None:
            raise
        for stream in (sys.stdout, sys.stderr):  # Python flushes once more at its end, and would complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    raise SystemExit(code)


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
    return 0
