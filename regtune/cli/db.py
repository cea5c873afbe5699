"""The verbs of both databases: init, upgrade, check, backup, restore."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from regtune.cli.terminal import (
    HomeOption,
    JsonOption,
    QuietOption,
    Verb,
    YesOption,
    confirm,
    say,
    settings_of,
    show,
    show_json,
)

PANEL = "Set up"
EVERY_SECONDS = 2.0

FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the backup.")]

db = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Create, upgrade, check, back up and restore the databases.",
)


def register(app: typer.Typer) -> None:
    """Add the verbs to `app`."""
    app.add_typer(db, name="db", rich_help_panel=PANEL)


@db.command(cls=Verb)
def init(quiet: QuietOption = False, home: HomeOption = None) -> None:
    """Create the tables of both databases, where missing."""
    from regtune.server.databases import init_databases

    for database in init_databases(settings_of(home)):
        say(str(database), quiet)


@db.command(cls=Verb)
def upgrade(quiet: QuietOption = False, home: HomeOption = None) -> None:
    """Migrate both databases to the installed versions of Optuna and MLflow; back them up first."""
    from regtune.server.databases import upgrade_databases

    for database in upgrade_databases(settings_of(home)):
        say(str(database), quiet)


@db.command(cls=Verb)
def check(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Print the revisions of both databases; exit with 1 if one is not current."""
    from regtune.cli.views.reports import databases_table
    from regtune.server.databases import check_databases

    databases = check_databases(settings_of(home))
    show_json([one.to_json() for one in databases]) if as_json else show(databases_table(databases))
    for one in databases:
        if one.schema and one.schema.problem:
            say(one.schema.problem)
    if not all(one.current for one in databases):
        raise typer.Exit(1)


@db.command(cls=Verb)
def backup(folder: FolderArgument, quiet: QuietOption = False, home: HomeOption = None) -> None:
    """Copy both SQLite databases and all artifacts into DIR, also while a sweep runs."""
    from regtune.upkeep.backup import make_backup

    backed_up = make_backup(settings_of(home), folder, _progress("copied", quiet))
    for note in backed_up.notes:
        say(note, quiet)
    count, size = len(backed_up.manifest.files), backed_up.manifest.size_bytes
    say(f"{backed_up.folder}: {_counted(count)}, {_size(size)}, verified", quiet)


@db.command(cls=Verb)
def restore(
    folder: FolderArgument, yes: YesOption = False, quiet: QuietOption = False, home: HomeOption = None
) -> None:
    """Restore a backup; the present files are set aside, not deleted."""
    from regtune.upkeep.restore import plan_restore
    from regtune.upkeep.restore import restore as restore_backup

    settings = settings_of(home)
    plan = plan_restore(settings, folder)
    if plan.replaced:
        there = ", ".join(str(path) for path in plan.replaced)
        confirm(f"Set {there} aside and restore the backup of {plan.manifest.made}?", yes)
    restored = restore_backup(settings, folder, _progress("restored", quiet))
    for path in restored.aside:
        say(f"set aside: {path}", quiet)
    for note in restored.notes:
        say(note, quiet)
    count, size = len(plan.manifest.files), plan.manifest.size_bytes
    say(f"{settings.home}: {_counted(count)}, {_size(size)}, as of {plan.manifest.made}", quiet)


def _progress(verb: str, quiet: bool) -> Callable[[int, int], None]:
    """Says now and then how far it is, where it takes long."""
    last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > EVERY_SECONDS:
            last = time.monotonic()
            say(f"{verb} {_size(done)} of {_size(total)}", quiet)

    return tell


def _counted(files: int) -> str:
    return f"{files:,} file{'' if files == 1 else 's'}"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
