"""The verbs that keep a folder in order: sync, delete, gc."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from regtune.cli import options, terminal
from regtune.errors import TrackingError
from regtune.escaping import printable

if TYPE_CHECKING:
    from regtune.tracking.sync import Synced
    from regtune.upkeep.cleanup import Leftover

PANEL = "Keep in order"


def sync(
    study: Annotated[
        str | None,
        typer.Argument(
            metavar="STUDY",
            help="Name of a study; default: all.",
            autocompletion=options.study_names,
            callback=options.study_name,
        ),
    ] = None,
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
            tell(f"{printable(name)}: {min(done, total):,} of {total:,} trials")

        entries = list(bring(settings, None if study is None else [study], check=check, tell=told))
    if as_json:
        terminal.show_json(entries)
    for entry in entries:
        if entry.problem:
            terminal.show_error(TrackingError(f"{printable(entry.study)}: {entry.problem}"))
        elif not as_json and not (quiet and entry.fine):
            terminal.show(_line(entry))
    if not all(entry.fine for entry in entries):
        raise typer.Exit(1)
    if not entries and not as_json:
        terminal.say("There are no studies yet.", quiet)


def _line(entry: Synced) -> str:
    from regtune.cli.views.drawing import counted

    name = printable(entry.study)
    if entry.running:
        return f"{name}: is run by {entry.running}, whose sweep keeps MLflow up to date"
    if entry.lacks:
        return f"{name}: MLflow lacks {entry.lacks}"
    if entry.wrote and any(entry.wrote):
        own = "the study's own run" if entry.wrote.own else ""
        trials = counted(entry.wrote.trials, "trial") if entry.wrote.trials else ""
        return f"{name}: wrote {' and '.join(filter(None, (trials, own)))}"
    return f"{name}: MLflow is up to date"


def delete(
    study: options.Study, yes: options.Yes = False, quiet: options.Quiet = False, home: options.Home = None
) -> None:
    """Delete a study: its trials, its MLflow runs and its artifacts."""
    from regtune.cli.views.drawing import counted
    from regtune.study.board import read_study
    from regtune.upkeep.cleanup import delete_study

    settings = terminal.settings_of(home)
    with terminal.opened(settings) as engine:
        info = read_study(engine, study)
    count = sum(info.counts.values())
    terminal.confirm(
        f"Delete {printable(study)} with {counted(count, 'trial')}, their MLflow runs and artifacts?", yes
    )
    with terminal.working(f"deleting {printable(study)}", quiet):
        gone = delete_study(settings, study)
    terminal.say(f"Deleted {printable(study)}, {gone}.", quiet)


def gc(yes: options.Yes = False, quiet: options.Quiet = False, home: options.Home = None) -> None:
    """Remove MLflow runs and artifacts of deleted studies."""
    from regtune.upkeep.cleanup import find_garbage, remove

    settings = terminal.settings_of(home)
    with terminal.working("looking for leftovers of deleted studies", quiet):
        leftovers = find_garbage(settings)
    garbage = [left for left in leftovers if not left.kept]
    for left in sorted(leftovers, key=lambda left: not left.kept):
        terminal.say(
            f"{_leftover(left)}: {left}; {f'stays: {left.kept}' if left.kept else 'can be removed'}", quiet
        )
    if not garbage:
        terminal.say("Nothing to remove.", quiet)
        return
    terminal.confirm(f"Remove the leftovers of deleted studies: {'; '.join(map(_leftover, garbage))}?", yes)
    for left in garbage:
        with terminal.working(f"removing {left}", quiet):
            remove(settings, left)
        terminal.say(f"Removed {left}.", quiet)


def _leftover(left: Leftover) -> str:
    last = f", last run {left.last.astimezone():%Y-%m-%d %H:%M}" if left.last else ""
    return f"{printable(left.name or 'unknown')} (uid {printable(left.uid)[:12]}{last})"


VERBS = (sync, delete, gc)
