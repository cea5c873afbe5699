"""Arguments and options that several verbs have, their completion, and plain help."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from regtune.cli import terminal

_PLAIN_WORD = re.compile(r"[\w./+:,@%=-]+")
"""What a shell takes as it is: some put what is completed into the line, or evaluate it, unquoted."""


def study_names(incomplete: str) -> list[str]:
    """Complete the name of a study."""
    from regtune.errors import RegtuneError
    from regtune.study.board import list_studies

    try:
        with terminal.opened(terminal.settings_of(None)) as engine:
            names = [summary.info.name for summary in list_studies(engine)]
    except RegtuneError:
        return []
    return [name for name in names if name.startswith(incomplete) and _PLAIN_WORD.fullmatch(name)]


def _sweep_files(incomplete: str) -> list[str]:
    typed = Path(incomplete.rpartition("/")[0])
    folders = {typed} if "/" in incomplete else {typed, Path("sweeps")}
    files = {str(path) for folder in folders for end in ("yaml", "yml") for path in folder.glob(f"*.{end}")}
    return sorted(
        path
        for path in files
        if incomplete in (path[: len(incomplete)], Path(path).name[: len(incomplete)])
        and _PLAIN_WORD.fullmatch(path)
    )


def study_name(typed: str | None) -> str | None:
    r"""Decode a study's name as UTF-8, whatever the locale; other bytes as ``\xff``."""
    if typed is None or typed.isprintable():
        return typed
    return os.fsencode(typed).decode("utf-8", "backslashreplace")


Study = Annotated[
    str,
    typer.Argument(
        metavar="STUDY",
        help="Name of the study; `regtune studies` lists all.",
        autocompletion=study_names,
        callback=study_name,
    ),
]
SweepFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="The sweep file.", autocompletion=_sweep_files)
]
Home = Annotated[
    Path | None,
    typer.Option(
        "--home",
        metavar="FOLDER",
        help="Folder of databases and artifacts; default: REGTUNE_HOME, or mlruns.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Answer yes to every question.")]
Port = Annotated[
    int | None,
    typer.Option(
        min=1, max=65535, metavar="N", help="Port to listen on.", show_default="the last one used, or 5000"
    ),
]
Address = Annotated[
    str,
    typer.Option(
        "--host", metavar="ADDRESS", help="Address to bind to; other machines than this one need an account."
    ),
]
Auth = Annotated[
    bool | None,
    typer.Option(
        "--auth/--no-auth",
        help="Require accounts; default: only where other machines can connect.",
        show_default=False,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the file; may be repeated."),
]


class Verb(TyperCommand):
    """A verb whose help is plain: ``FILE`` and ``[TRIAL]`` in the usage, no type beside a flag."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        pieces: list[str] = super().collect_usage_pieces(ctx)
        return [re.sub(r"^\{(.*)\}(?=$|\.)", r"\1", piece).replace("...", " ...") for piece in pieces]

    def get_params(self, ctx: Any) -> list[Any]:
        parameters: list[Any] = super().get_params(ctx)
        for parameter in parameters:
            if getattr(parameter, "is_flag", False) and parameter.metavar is None:
                parameter.metavar = ""
        return parameters
