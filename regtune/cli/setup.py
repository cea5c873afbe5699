"""The verbs that set up: data, doctor, schema."""

from __future__ import annotations

from typing import Annotated

import typer

from regtune.cli.terminal import (
    HomeOption,
    JsonOption,
    QuietOption,
    Verb,
    say,
    settings_of,
    show,
    show_json,
    working,
)

PANEL = "Set up"
DATASETS = ["mnist", "mnist-5k", "fashion-mnist"]

data = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="List, fetch and verify data sets.")


def register(app: typer.Typer) -> None:
    """Add the verbs to `app`."""
    app.add_typer(data, name="data", rich_help_panel=PANEL)
    for verb in (doctor, schema):
        app.command(verb.__name__, cls=Verb, rich_help_panel=PANEL)(verb)


def _names(incomplete: str) -> list[str]:
    return [name for name in DATASETS if name.startswith(incomplete)]


@data.command("list", cls=Verb)
def list_(as_json: JsonOption = False) -> None:
    """List the data sets and where they are."""
    from regtune.cli.views.reports import datasets_table
    from regtune.data.inventory import list_datasets

    datasets = list_datasets(settings_of(None).data_dir)
    show_json([entry.to_json() for entry in datasets]) if as_json else show(datasets_table(datasets))


@data.command(cls=Verb)
def fetch(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="mnist or fashion-mnist.", autocompletion=_names)
    ],
    quiet: QuietOption = False,
) -> None:
    """Download a data set through Keras."""
    from regtune.data.datasets import fetch as download

    say(f"fetching {name}", quiet)
    say(f"{name}: {download(name)}", quiet)


@data.command(cls=Verb)
def verify(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Name or .npz file; default: all.", autocompletion=_names),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check the shapes, labels and digests of data sets."""
    from regtune.cli.views.reports import datasets_table
    from regtune.data.inventory import verify_datasets

    datasets = verify_datasets(settings_of(None).data_dir, name)
    show_json([entry.to_json() for entry in datasets]) if as_json else show(datasets_table(datasets))
    if any(entry.problem for entry in datasets):
        raise typer.Exit(1)


def doctor(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Check this machine: what is installed, what works, what to fix."""
    from regtune.cli.views.reports import checks_view
    from regtune.upkeep.doctor import examine

    with working("checking this machine"):
        checks = examine(settings_of(home))
    show_json([check.to_json() for check in checks]) if as_json else show(checks_view(checks))
    if any(check.status == "mend" for check in checks):
        raise typer.Exit(1)


def schema() -> None:
    """Print the JSON Schema of the sweep file, for editors."""
    from regtune.config.sweepfile import json_schema

    show_json(json_schema())
