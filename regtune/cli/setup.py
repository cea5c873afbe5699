"""The verbs that set up: data, doctor, schema."""

from __future__ import annotations

from typing import Annotated

import typer

from regtune.cli import options, terminal

PANEL = "Set up"
DATASETS = ["mnist", "mnist-5k", "fashion-mnist"]

data = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="List, fetch and verify data sets.")


def _names(incomplete: str) -> list[str]:
    return [name for name in DATASETS if name.startswith(incomplete)]


@data.command("list", cls=options.Verb)
def list_(as_json: options.Json = False) -> None:
    """List the data sets and where they are."""
    from regtune.cli.views.reports import datasets_table
    from regtune.data.datasets import list_datasets

    datasets = list_datasets(terminal.settings_of(None).data_dir)
    terminal.present(datasets, datasets_table, as_json)


@data.command(cls=options.Verb)
def fetch(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="mnist or fashion-mnist.", autocompletion=_names)
    ],
    quiet: options.Quiet = False,
) -> None:
    """Download a data set through Keras."""
    from regtune.data.datasets import fetch as download

    terminal.say(f"fetching {name}", quiet)
    terminal.say(f"{name}: {download(name)}", quiet)


@data.command(cls=options.Verb)
def verify(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Name or .npz file; default: all.", autocompletion=_names),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Check the shapes, labels and digests of data sets."""
    from regtune.cli.views.reports import datasets_table
    from regtune.data.datasets import verify_datasets

    datasets = verify_datasets(terminal.settings_of(None).data_dir, name)
    terminal.present(datasets, datasets_table, as_json)
    if any(entry.problem for entry in datasets):
        raise typer.Exit(1)


def doctor(as_json: options.Json = False, home: options.Home = None) -> None:
    """Check this machine: what is installed, what works, what to fix."""
    from regtune.cli.views.reports import checks_view
    from regtune.upkeep.doctor import examine

    with terminal.working("checking this machine"):
        checks = examine(terminal.settings_of(home))
    terminal.present(checks, checks_view, as_json)
    if any(check.status == "mend" for check in checks):
        raise typer.Exit(1)


def schema() -> None:
    """Print the JSON Schema of the sweep file, for editors."""
    from regtune.config.sweepfile.schema import json_schema

    terminal.show_json(json_schema())


VERBS = (doctor, schema)
