"""The verbs for the result of a sweep: best, train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regtune.cli import options, terminal
from regtune.errors import InputError
from regtune.escaping import printable, shell_word

PANEL = "Use"


def best(
    study: options.Study,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="File to write; default: print it.")
    ] = None,
    as_json: options.Json = False,
    yes: options.Yes = False,
    home: options.Home = None,
) -> None:
    """Print the best configuration, complete, as `regtune train` reads it."""
    from regtune.study.best import best_of

    if as_json and output is not None:
        raise InputError("--json and --output: choose one; regtune train reads YAML files")
    with terminal.opened(terminal.settings_of(home)) as engine:
        config = best_of(engine, study)
    if as_json:
        terminal.show_json(config.to_dict())
    elif output is None:
        typer.echo(config.to_yaml(), nl=False)
    else:
        if output.is_file() and not config.is_in(output):
            terminal.confirm(f"Replace {printable(str(output))}, which holds something else?", yes)
        config.write(output)
        terminal.say(f"Wrote {output}. Train it again with: regtune train {shell_word(str(output))}")


def train(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="File from `regtune best -o`, or a run's config.yaml.")
    ],
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    home: options.Home = None,
) -> None:
    """Train a configuration again, log it, and compare its figures with the recorded ones."""
    from regtune.study.best import load_best

    best = load_best(file)
    from regtune.cli.views.reports import retrained_view
    from regtune.sweep.retrain import retrain

    terminal.say(f"training {best.config.mix} on {printable(best.config.data.name)}", quiet)
    result = retrain(
        best,
        terminal.settings_of(home),
        on_epoch=lambda epoch, figures: terminal.say(
            f"epoch {epoch}: val_cross_entropy {figures['val_cross_entropy']:.4f}, "
            f"val_accuracy {figures['val_accuracy']:.4f}",
            quiet,
        ),
        on_note=lambda message: terminal.say(message, quiet),
    )
    terminal.present(result, retrained_view, as_json)
    if result.differences:
        raise typer.Exit(1)


VERBS = (best, train)
