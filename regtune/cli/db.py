"""The verbs of both databases: init, upgrade, check, backup, restore."""

from __future__ import annotations

import typer

from regtune.cli.terminal import HomeOption, JsonOption, QuietOption, Verb, say, settings_of, show, show_json

PANEL = "Set up"

db = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Databases of studies and runs: make, upgrade, check, back up.",
)


def register(app: typer.Typer) -> None:
    """Add the verbs to `app`."""
    app.add_typer(db, name="db", rich_help_panel=PANEL)


@db.command(cls=Verb)
def init(quiet: QuietOption = False, home: HomeOption = None) -> None:
    """Make the tables of both databases, where they are not there yet."""
    from regtune.tracking.databases import init_databases

    for found in init_databases(settings_of(home)):
        say(str(found), quiet)


@db.command(cls=Verb)
def upgrade(quiet: QuietOption = False, home: HomeOption = None) -> None:
    """Migrate both databases to the versions of Optuna and MLflow installed here; back them up before."""
    from regtune.tracking.databases import upgrade_databases

    for found in upgrade_databases(settings_of(home)):
        say(str(found), quiet)


@db.command(cls=Verb)
def check(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Print the revisions of both databases; exit code 1 when one is not current."""
    from regtune.cli.reports import databases_table
    from regtune.tracking.databases import check_databases

    found = check_databases(settings_of(home))
    show_json([one.to_json() for one in found]) if as_json else show(databases_table(found))
    for one in found:
        if one.schema and one.schema.problem:
            say(one.schema.problem)
    if not all(one.current for one in found):
        raise typer.Exit(1)
