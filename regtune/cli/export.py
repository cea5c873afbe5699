"""The verb that exports registered models."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from regtune.cli import options, terminal
from regtune.errors import InputError
from regtune.escaping import printable, shell_word


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
    from regtune.registry.export import (
        TEXTS,
        beside,
        check_output,
        export_model,
        export_text,
        is_configuration,
    )

    if quantize and form != Format.LITERT:
        raise InputError(f"--quantize: expected --format litert, found {form}")
    settings, shown = terminal.settings_of(home), printable(str(output))
    question = f"Replace {shown}, which holds something else?"
    if form in TEXTS:
        if as_json:
            raise InputError(f"--json: {form} has no table; leave it out")
        text = export_text(target, form, settings)
        if output is None:
            typer.echo(text, nl=False)
            return
        if check_output(output, form) and output.read_bytes() != text.encode():
            terminal.confirm(question, yes)
        with beside(output) as made:
            made.write_text(text, encoding="utf-8")
    else:
        if is_configuration(target):
            train = f"regtune train {shell_word(target)} -o model.keras"
            raise InputError(f"{printable(target)}: a configuration has no weights; train it with: {train}")
        if output is None:
            raise InputError(f"--output: {form} goes to a file; expected -o PATH")
        if check_output(output, form):
            terminal.confirm(question, yes)
        from regtune.cli.views.export import exported_table

        with terminal.working(f"exporting {printable(target)}", quiet):
            rows = export_model(target, form, output, settings, quantize)
        terminal.present(rows, exported_table, as_json)
    terminal.say(f"Wrote {shown}", quiet)
