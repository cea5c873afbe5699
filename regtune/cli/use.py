"""The verbs for the result of a sweep: best, train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regtune.cli.terminal import (
    HomeOption,
    JsonOption,
    QuietOption,
    StudyArgument,
    Verb,
    YesOption,
    confirm,
    opened,
    say,
    settings_of,
    show,
    show_json,
)
from regtune.escaping import printable, shell_word

PANEL = "Use"


def register(app: typer.Typer) -> None:
    """Add the verbs to `app`."""
    for verb in (best, train):
        app.command(verb.__name__, cls=Verb, rich_help_panel=PANEL)(verb)


def best(
    study: StudyArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="File to write; default: print it."),
    ] = None,
    as_json: JsonOption = False,
    yes: YesOption = False,
    home: HomeOption = None,
) -> None:
    """Print the best configuration, complete, as `regtune train` reads it."""
    from regtune.study.best import best_of

    if as_json and output is not None:
        from regtune.errors import InputError

        raise InputError("--json and --output: choose one; regtune train reads YAML files")
    with opened(settings_of(home)) as engine:
        config = best_of(engine, study)
    if as_json:
        show_json(config.to_dict())
    elif output is None:
        typer.echo(config.to_yaml(), nl=False)
    else:
        if output.is_file() and not config.is_in(output):
            confirm(f"Replace {printable(str(output))}, which holds something else?", yes)
        config.write(output)
        say(f"Wrote {output}. Train it again with: regtune train {shell_word(str(output))}")


def train(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="File from `regtune best -o`, or a run's config.yaml.")
    ],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    home: HomeOption = None,
) -> None:
    """Train a configuration again, log it, and compare its figures with the recorded ones."""
    from regtune.study.best import load_best

    best = load_best(file)
    from regtune.cli.views.reports import retrained_view
    from regtune.sweep.retrain import retrain

    say(f"training {best.config.mix} on {printable(best.config.data.name)}", quiet)
    result = retrain(
        best,
        settings_of(home),
        on_epoch=lambda epoch, figures: say(
            f"epoch {epoch}: val_cross_entropy {figures['val_cross_entropy']:.4f}, "
            f"val_accuracy {figures['val_accuracy']:.4f}",
            quiet,
        ),
        on_note=lambda message: say(message, quiet),
    )
    show_json(result.to_json()) if as_json else show(retrained_view(result))
    if result.differences:
        raise typer.Exit(1)
