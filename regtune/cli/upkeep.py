"""The verbs for the MLflow server and for upkeep: of studies, databases, data sets and this machine."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regtune.cli import options, terminal
from regtune.cli.terminal import counted, megabytes
from regtune.errors import InputError, SettingsError, TrackingError
from regtune.escaping import printable

if TYPE_CHECKING:
    from regtune.tracking.sync import Synced
    from regtune.upkeep.backup import Manifest
    from regtune.upkeep.cleanup import Leftover

Backup = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the backup.")]


def ui(
    port: options.Port = None,
    host: options.Host = None,
    auth: options.Auth = None,
    browser: Annotated[bool, typer.Option(help="Open a browser, if there is one.")] = True,
    home: options.Home = None,
) -> None:
    """Serve the MLflow UI of this folder; Ctrl-C stops it."""
    from regtune.server.process import DEFAULT_HOST
    from regtune.tracking.page import serve_ui

    settings = terminal.settings_of(home)
    serve_ui(settings, port=port, host=host or DEFAULT_HOST, auth=auth, open_browser=browser)


def up(
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="URL",
            help="Server for --postgres: postgresql+psycopg://USER@HOST/NAME; default: one of this folder's own.",
        ),
    ] = None,
    *,
    sqlite: Annotated[bool, typer.Option("--sqlite", help="Use the folder's SQLite files.")] = False,
    postgres: Annotated[bool, typer.Option("--postgres", help="Use PostgreSQL.")] = False,
    port: options.Port = None,
    host: options.Host = None,
    auth: options.Auth = None,
    quiet: options.Quiet = False,
    home: options.Home = None,
) -> None:
    """Start this folder's MLflow server in the background, or print its address."""
    from regtune.credentials import in_url
    from regtune.server.service import up as start
    from regtune.settings import IN_NO_URL
    from regtune.tracking.page import tell_newest

    if url and in_url(url):
        raise SettingsError(f"--postgres: {IN_NO_URL}")
    if sqlite and postgres:
        raise InputError("--sqlite and --postgres: choose one")
    if url and not postgres:
        raise InputError(f"{url}: expected --postgres before a PostgreSQL server: --postgres {url}")
    databases = "sqlite" if sqlite else (url or "postgres") if postgres else None

    settings, tell = terminal.settings_of(home), partial(terminal.say, quiet=quiet)
    service = start(settings, databases=databases, port=port, host=host, auth=auth, tell=tell)
    tell_newest(service.url, tell)


def down(quiet: options.Quiet = False, home: options.Home = None) -> None:
    """Stop what `up` has started."""
    from regtune.server.service import down as end

    with terminal.working("stopping the server", quiet):
        ended = end(terminal.settings_of(home))
    terminal.say("Stopped." if ended else "Nothing is running here.", quiet)


def status(as_json: options.Json = False, home: options.Home = None) -> None:
    """Show this folder's server, databases, disk and running sweeps."""
    from regtune.cli.views.reports import status_view
    from regtune.upkeep.status import look

    with terminal.working("checking the server and the databases"):
        standing = look(terminal.settings_of(home))
    terminal.present(standing, status_view, as_json)


def sync(
    study: options.AnyStudy = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only report what MLflow lacks; exit with 1 if anything.")
    ] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    home: options.Home = None,
) -> None:
    """Bring MLflow up to date with the studies.

    A sweep does so by itself: when it starts, while it runs, when it ends, and when a server is back. Runs, curves,
    parameters, tags, states and artifacts are restored whatever happened to MLflow's database. Notes and tags that a
    person wrote there are in no study; only a backup restores them.
    """
    from regtune.tracking.sync import sync as bring

    settings = terminal.settings_of(home)
    with terminal.working("comparing MLflow with the studies", quiet or as_json) as tell:

        def told(name: str, done: int, total: int) -> None:
            tell(f"{printable(name)}: {min(done, total):,} of {total:,} runs")

        entries = list(bring(settings, None if study is None else [study], check=check, tell=told))
    if as_json:
        terminal.show_json(entries)
    for entry in entries:
        if entry.problem:
            terminal.show_error(TrackingError(f"{printable(entry.study)}: {entry.problem}"))
        elif not as_json and not (quiet and entry.fine):
            terminal.show(f"{printable(entry.study)}: {_synced(entry)}")
    if not all(entry.fine for entry in entries):
        raise typer.Exit(1)


def _synced(entry: Synced) -> str:
    if entry.running:
        return f"is run by {entry.running}, whose sweep keeps MLflow up to date"
    if entry.lacks:
        return f"MLflow lacks {entry.lacks}"
    if entry.wrote:
        wrote = entry.wrote
        said = {
            counted(wrote.trials, "trial"): wrote.trials,
            counted(wrote.replicates, "replicate"): wrote.replicates,
            "the study's own run": wrote.own,
            "the run of its decision": wrote.decision,
        }
        return f"wrote {' and '.join(words for words, true in said.items() if true)}"
    return "MLflow is up to date"


def delete(
    study: options.Study, yes: options.Yes = False, quiet: options.Quiet = False, home: options.Home = None
) -> None:
    """Delete a study: its trials, its MLflow runs and its artifacts."""
    from regtune.study.board import read_study
    from regtune.upkeep.cleanup import delete_study

    settings, name = terminal.settings_of(home), printable(study)
    with terminal.opened(settings) as engine:
        trials = counted(read_study(engine, study).trials, "trial")
    terminal.confirm(f"Delete {name} with {trials}, their MLflow runs and artifacts?", yes)
    with terminal.working(f"deleting {name}", quiet):
        delete_study(settings, study)
    terminal.say(f"Deleted {name}.", quiet)


def gc(yes: options.Yes = False, quiet: options.Quiet = False, home: options.Home = None) -> None:
    """Remove MLflow runs and artifacts of deleted studies."""
    from regtune.upkeep.cleanup import find_garbage, remove

    settings = terminal.settings_of(home)
    with terminal.working("looking for leftovers of deleted studies", quiet):
        leftovers = find_garbage(settings)
    garbage = [left for left in leftovers if not left.kept]
    for left in sorted(leftovers, key=lambda left: not left.kept):
        fate = f"stays: {left.kept}" if left.kept else "can be removed"
        terminal.say(f"{_leftover(left)}: {left}; {fate}", quiet)
    if not garbage:
        own = "only a folder's own studies are looked after" if settings.storage else ""
        terminal.say(f"Nothing to remove{': ' if own else ''}{own}.", quiet)
        return
    terminal.confirm(f"Remove the leftovers of deleted studies: {'; '.join(map(_leftover, garbage))}?", yes)
    for left in garbage:
        with terminal.working(f"removing {left}", quiet):
            remove(settings, left.uid)
        terminal.say(f"Removed {left}.", quiet)


def _leftover(left: Leftover) -> str:
    last = f", last run {left.last.astimezone():%Y-%m-%d %H:%M}" if left.last else ""
    return f"{printable(left.name or 'unknown')} (uid {printable(left.uid)[:12]}{last})"


def init(quiet: options.Quiet = False, home: options.Home = None) -> None:
    """Create the tables of both databases, where missing."""
    from regtune.server.databases import init_databases

    for line in init_databases(terminal.settings_of(home)):
        terminal.say(line, quiet)


def upgrade(quiet: options.Quiet = False, home: options.Home = None) -> None:
    """Migrate both databases to the installed versions of Optuna and MLflow; make a backup first."""
    from regtune.server.databases import upgrade_databases

    for line in upgrade_databases(terminal.settings_of(home)):
        terminal.say(line, quiet)


def check(as_json: options.Json = False, home: options.Home = None) -> None:
    """Print the revisions of both databases; exit with 1 if one is not current."""
    from regtune.cli.views.reports import databases_table
    from regtune.server.databases import check_databases

    databases = check_databases(terminal.settings_of(home))
    terminal.present(databases, databases_table, as_json)
    problems = [one.problem for one in databases if one.problem]
    for problem in problems:
        terminal.say(problem)
    if problems:
        raise typer.Exit(1)


def backup(folder: Backup, quiet: options.Quiet = False, home: options.Home = None) -> None:
    """Copy both SQLite databases and all artifacts into DIR, also while a sweep runs."""
    from regtune.upkeep.backup import make_backup

    with terminal.working(f"copying to {folder}", quiet):
        backed_up = make_backup(terminal.settings_of(home), folder)
    for note in (*backed_up.notes, f"{folder}: {_size(backed_up.manifest)}, verified"):
        terminal.say(note, quiet)


def restore(
    folder: Backup, yes: options.Yes = False, quiet: options.Quiet = False, home: options.Home = None
) -> None:
    """Restore a backup; the present files are set aside, not deleted."""
    from regtune.upkeep.restore import plan_restore
    from regtune.upkeep.restore import restore as restore_backup

    settings = terminal.settings_of(home)
    plan = plan_restore(settings, folder)
    if plan.replaced:
        there = ", ".join(str(path) for path in plan.replaced)
        terminal.confirm(f"Set {there} aside and restore the backup of {plan.manifest.made}?", yes)
    with terminal.working(f"restoring {folder}", quiet):
        lines = restore_backup(settings, folder)
    for line in (*lines, f"{settings.home}: {_size(plan.manifest)}, as of {plan.manifest.made}"):
        terminal.say(line, quiet)


def _size(manifest: Manifest) -> str:
    return f"{counted(len(manifest.files), 'file')}, {megabytes(manifest.size_bytes)}"


def list_(as_json: options.Json = False) -> None:
    """List the data sets and where they are."""
    from regtune.cli.views.reports import datasets_table
    from regtune.data.datasets import list_datasets

    datasets = list_datasets(terminal.settings_of(None).data_dir)
    terminal.present(datasets, datasets_table, as_json)


def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="mnist or fashion-mnist.")],
    quiet: options.Quiet = False,
) -> None:
    """Download a data set through Keras, into REGTUNE_DATA_DIR where it is set."""
    from regtune.data.datasets import fetch as download

    terminal.say(f"fetching {name}", quiet)
    terminal.say(f"{name}: {download(name, terminal.settings_of(None).data_dir)}", quiet)


def verify(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Name or .npz file; default: all.")
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


def schema(
    of: Annotated[str, typer.Argument(metavar="sweep|gates", help="Which file.")] = "sweep",
) -> None:
    """Print the JSON Schema of the sweep file, or of a file of gates, for editors."""
    if of == "sweep":
        from regtune.config.sweepfile.specification import json_schema
    elif of == "gates":
        from regtune.registry.gates import json_schema
    else:
        raise InputError(f"{printable(of)}: expected sweep or gates")
    terminal.show_json(json_schema())
