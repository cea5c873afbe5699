"""The verbs for registered models."""

from __future__ import annotations

from typing import Annotated

import typer

from regtune.cli import options, terminal
from regtune.escaping import printable

Target = Annotated[
    str,
    typer.Argument(
        metavar="NAME[@ALIAS]", help="A registered model; default alias: champion; @v3: version 3."
    ),
]
ModelName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the registered model.")]


def list_(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A registered model; default: all.")
    ] = None,
    as_json: options.Json = False,
    home: options.Home = None,
) -> None:
    """List registered models: versions, aliases, figures, age and where they come from."""
    from regtune.cli.views.registry import versions_table
    from regtune.registry.listing import list_versions

    with terminal.working("reading MLflow's registry"):
        listed = list_versions(terminal.settings_of(home), name)
    if not as_json:
        for note in listed.notes:
            terminal.say(note)
    if as_json or listed.versions:
        terminal.present(listed.versions, versions_table, as_json)


def show_(target: Target, as_json: options.Json = False, home: options.Home = None) -> None:
    """Show a version's model card."""
    from regtune.registry import journal
    from regtune.registry.store import open_registry

    registry = open_registry(terminal.settings_of(home))
    found = registry.find(target)
    if as_json:
        terminal.show_json(found)
        return
    for note in journal.read(registry, found.name).notes:
        terminal.say(f"{printable(found.name)}: {note}")
    terminal.show(found.description)


def rollback(name: ModelName, quiet: options.Quiet = False, home: options.Home = None) -> None:
    """Make the previous champion the champion again; a second time undoes the first."""
    from regtune.registry import journal
    from regtune.registry.store import open_registry

    state = journal.roll_back(open_registry(terminal.settings_of(home)), name)
    terminal.say(f"{printable(name)}: @champion is version {state.champion}, {state.moves[-1].why}", quiet)
