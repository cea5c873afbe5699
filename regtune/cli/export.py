"""The verb that exports registered models."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from regtune.cli import options, terminal
from regtune.errors import InputError
from regtune.escaping import printable


class Format(StrEnum):
    """What `model export` writes."""

    YAML = "yaml"
    JSON = "json"
    PYTHON = "python"
    KERAS = "keras"
    SAVEDMODEL = "savedmodel"
    ONNX = "onnx"
    LITERT = "litert"


def export(
    target: Annotated[
        str,
        typer.Argument(
            metavar="NAME[@ALIAS]|FILE",
            help="A registered model; or a configuration's .yaml file, for yaml, json and python.",
        ),
    ],
    *,
    form: Annotated[
        Format, typer.Option("--format", help="python: a script that trains it with Keras alone.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="PATH", help="File, or savedmodel's folder; default: print a text."
        ),
    ] = None,
    quantize: Annotated[
        bool, typer.Option("--quantize", help="litert: 8-bit numbers, smaller and less exact.")
    ] = False,
    as_json: options.Json = False,
    yes: options.Yes = False,
    quiet: options.Quiet = False,
    home: options.Home = None,
) -> None:
    """Write a registered model for other programs, compared with the registered network, or its configuration."""
    from regtune.registry.export import TEXTS, check_export, export_model, export_text
    from regtune.storage.output import beside

    if quantize and form != Format.LITERT:
        raise InputError(f"--quantize: expected --format litert, found {form}")
    if as_json and form in TEXTS:
        raise InputError(f"--json: {form} has no table; leave it out")
    settings, there = terminal.settings_of(home), check_export(target, form, output)
    say = partial(terminal.say, quiet=quiet)
    question = f"Replace {printable(str(output))}, which holds something else?"
    if form in TEXTS:
        text = export_text(target, form, settings, say)
        if output is None:
            typer.echo(text, nl=False)
            return
        if there and output.read_bytes() != text.encode():
            terminal.confirm(question, yes)
        with beside(output) as made:
            made.write_text(text, encoding="utf-8")
    else:
        assert output is not None
        if there:
            terminal.confirm(question, yes)
        from regtune.cli.views.export import exported_table

        with terminal.working(f"exporting {printable(target)}", quiet):
            rows = export_model(target, form, output, settings, say, quantize)
        terminal.present(rows, exported_table, as_json)
    say(f"Wrote {printable(str(output))}")
