"""The verbs that clean up: delete, gc."""

from __future__ import annotations

import typer

from regtune.cli.terminal import (
    HomeOption,
    QuietOption,
    StudyArgument,
    Verb,
    YesOption,
    confirm,
    opened,
    say,
    settings_of,
)
from regtune.quoting import printable

PANEL = "Clean up"


def register(app: typer.Typer) -> None:
    """Add the verbs to `app`."""
    for verb in (delete, gc):
        app.command(verb.__name__, cls=Verb, rich_help_panel=PANEL)(verb)


def delete(
    study: StudyArgument, yes: YesOption = False, quiet: QuietOption = False, home: HomeOption = None
) -> None:
    """Delete a study: its trials, its MLflow runs and its artifacts."""
    from regtune.cleanup import delete_study
    from regtune.cli.drawing import counted
    from regtune.leaderboard import read_study

    settings = settings_of(home)
    with opened(settings) as engine:
        info = read_study(engine, study)
    count = sum(info.counts.values())
    confirm(
        f"Delete {printable(study)} with {counted(count, 'trial')}, their MLflow runs and artifacts?", yes
    )
    say(f"Deleted {printable(study)}, {delete_study(settings, study)}.", quiet)


def gc(yes: YesOption = False, quiet: QuietOption = False, home: HomeOption = None) -> None:
    """Remove artifacts and MLflow runs that no study refers to."""
    from regtune.cleanup import find_garbage, remove

    settings = settings_of(home)
    found = find_garbage(settings)
    if not found:
        say("Nothing to remove.", quiet)
        return
    confirm(f"Remove {found}?", yes)
    remove(settings, found)
    say(f"Removed {found}.", quiet)
