"""Arguments and options that several verbs have, the completion of studies, and plain help."""

from __future__ import annotations

import os
import re
from enum import StrEnum
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


def study_name(typed: str | None) -> str | None:
    r"""Decode a study's name as UTF-8, whatever the locale; other bytes as ``\xff``."""
    if typed is None or typed.isprintable():
        return typed
    return os.fsencode(typed).decode("utf-8", "backslashreplace")


_NAMED: dict[str, Any] = {"autocompletion": study_names, "callback": study_name}
Study = Annotated[
    str, typer.Argument(metavar="STUDY", help="Name of the study; `regtune studies` lists all.", **_NAMED)
]
AnyStudy = Annotated[str | None, typer.Argument(metavar="STUDY", help="A study; default: all.", **_NAMED)]
Name = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Name of the study, in place of the file's.", callback=study_name),
]
From = Annotated[
    str | None,
    typer.Option("--from", metavar="STUDY", help="Try this study's best configurations first.", **_NAMED),
]
File = Annotated[Path, typer.Argument(metavar="FILE", help="The sweep file.")]
Home = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Folder of databases and artifacts, else REGTUNE_HOME, else mlruns."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Answer yes to every question.")]
Port = Annotated[
    int | None,
    typer.Option(min=1, max=65535, metavar="N", help="Port; default: the last one used, or 5000."),
]
Host = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS", help="Address, else 127.0.0.1; other machines than this one need an account."
    ),
]
Auth = Annotated[
    bool | None,
    typer.Option("--auth/--no-auth", help="Require accounts; default: only where others can connect."),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=256,
        metavar="N",
        help="Worker processes; default: one per core.",
    ),
]


class Place(StrEnum):
    """Where trials train, when not in processes of this machine."""

    RAY = "ray"


On = Annotated[
    Place | None,
    typer.Option(
        metavar="ray", help="Train on a Ray cluster, by default in as many workers as it has room for."
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS", help="Ray: auto, HOST:PORT or ray://HOST:PORT; default: a cluster of this machine."
    ),
]
CpusPerTrial = Annotated[
    float | None,
    typer.Option(min=0.01, metavar="N", help="Ray: processors a trial takes of its node; default: 1."),
]
GpusPerTrial = Annotated[
    float | None,
    typer.Option(min=0.0, metavar="N", help="Ray: GPUs a trial takes of its node; default: 0."),
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
