"""The verbs of both databases: init, upgrade, check, backup, restore."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regtune.cli import options, terminal

FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the backup.")]

db = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Create, upgrade, check, back up and restore the databases.",
)


@db.command(cls=options.Verb)
def init(quiet: options.Quiet = False, home: options.Home = None) -> None:
    """Create the tables of both databases, where missing."""
    from regtune.server.databases import init_databases

    for database in init_databases(terminal.settings_of(home)):
        terminal.say(str(database), quiet)


@db.command(cls=options.Verb)
def upgrade(quiet: options.Quiet = False, home: options.Home = None) -> None:
    """Migrate both databases to the installed versions of Optuna and MLflow; back them up first."""
    from regtune.server.databases import upgrade_databases

    for database in upgrade_databases(terminal.settings_of(home)):
        terminal.say(str(database), quiet)


@db.command(cls=options.Verb)
def check(as_json: options.Json = False, home: options.Home = None) -> None:
    """Print the revisions of both databases; exit with 1 if one is not current."""
    from regtune.cli.views.reports import databases_table
    from regtune.server.databases import check_databases

    databases = check_databases(terminal.settings_of(home))
    terminal.present(databases, databases_table, as_json)
    for one in databases:
        if one.schema and one.schema.problem:
            terminal.say(one.schema.problem)
    if not all(one.current for one in databases):
        raise typer.Exit(1)


@db.command(cls=options.Verb)
def backup(folder: FolderArgument, quiet: options.Quiet = False, home: options.Home = None) -> None:
    """Copy both SQLite databases and all artifacts into DIR, also while a sweep runs."""
    from regtune.cli.views.drawing import counted, megabytes
    from regtune.upkeep.backup import make_backup

    with terminal.working(f"copying to {folder}", quiet) as tell:

        def told(done: int, total: int) -> None:
            tell(f"copied {megabytes(done)} of {megabytes(total)}")

        backed_up = make_backup(terminal.settings_of(home), folder, told)
    for note in backed_up.notes:
        terminal.say(note, quiet)
    count, size = len(backed_up.manifest.files), backed_up.manifest.size_bytes
    terminal.say(f"{backed_up.folder}: {counted(count, 'file')}, {megabytes(size)}, verified", quiet)


@db.command(cls=options.Verb)
def restore(
    folder: FolderArgument, yes: options.Yes = False, quiet: options.Quiet = False, home: options.Home = None
) -> None:
    """Restore a backup; the present files are set aside, not deleted."""
    from regtune.cli.views.drawing import counted, megabytes
    from regtune.upkeep.restore import plan_restore
    from regtune.upkeep.restore import restore as restore_backup

    settings = terminal.settings_of(home)
    plan = plan_restore(settings, folder)
    if plan.replaced:
        there = ", ".join(str(path) for path in plan.replaced)
        terminal.confirm(f"Set {there} aside and restore the backup of {plan.manifest.made}?", yes)
    with terminal.working(f"restoring {folder}", quiet) as tell:

        def told(done: int, total: int) -> None:
            tell(f"restored {megabytes(done)} of {megabytes(total)}")

        restored = restore_backup(settings, folder, told)
    for path in restored.aside:
        terminal.say(f"set aside: {path}", quiet)
    for note in restored.notes:
        terminal.say(note, quiet)
    count, size = len(plan.manifest.files), plan.manifest.size_bytes
    terminal.say(
        f"{settings.home}: {counted(count, 'file')}, {megabytes(size)}, as of {plan.manifest.made}", quiet
    )
