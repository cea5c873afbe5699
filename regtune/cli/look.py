"""The verbs that read: board, show, studies, ui."""

from __future__ import annotations

import csv
import sys
from typing import Annotated

import typer

from regtune.cli.terminal import (
    AddressOption,
    AuthOption,
    HomeOption,
    JsonOption,
    PortOption,
    StudyArgument,
    Verb,
    console,
    opened,
    say,
    say_more,
    settings_of,
    show,
    show_json,
)
from regtune.escaping import csv_cell

PANEL = "Look"


def register(app: typer.Typer) -> None:
    """Add the verbs to `app`."""
    for verb in (board, show_, studies, ui):
        app.command(verb.__name__.rstrip("_"), cls=Verb, rich_help_panel=PANEL)(verb)


def board(
    study: StudyArgument,
    *,
    sort: Annotated[
        str,
        typer.Option(
            metavar="COLUMN",
            help="Sort by a column or parameter, the better end first; -COLUMN reverses the order.",
        ),
    ] = "rank",
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Show at most N rows.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV in full precision.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Show the leaderboard: every trial, the best first."""
    from regtune.study.board import read_board

    if as_csv and as_json:
        from regtune.errors import InputError

        raise InputError("--csv and --json: choose one")
    with opened(settings_of(home)) as engine:
        leaderboard = read_board(engine, study, sort, limit)
    if as_json:
        show_json(leaderboard.cells())
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(map(csv_cell, leaderboard.columns))
        writer.writerows(map(csv_cell, row.values()) for row in leaderboard.cells())
    else:
        from regtune.cli.views.tables import board_table

        show(board_table(leaderboard, console().width))
        if not leaderboard.rows:
            say("There are no trials yet.")


def show_(
    study: StudyArgument,
    trial: Annotated[int | None, typer.Argument(min=0, metavar="TRIAL", help="Number of a trial.")] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Show a study, or one trial with its learning curve and how it ended."""
    from regtune.cli.views.tables import study_view, trial_view
    from regtune.study.board import read_study, read_top, read_trial

    width = console().width
    with opened(settings_of(home)) as engine:
        info = read_study(engine, study)
        if trial is not None:
            row = read_trial(engine, study, trial)
            show_json(row.to_json()) if as_json else show(trial_view(info, row, width))
            return
        top = read_top(engine, study, 1)
    if as_json:
        show_json(info.to_json() | {"best": top.best.number if top.best else None})
    else:
        show(study_view(top, width))
        say_more(study, info.trials - len(top.rows))


def studies(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """List all studies."""
    from regtune.study.board import list_studies

    with opened(settings_of(home)) as engine:
        summaries = list_studies(engine)
    if as_json:
        show_json([summary.to_json() for summary in summaries])
        return
    from regtune.cli.views.tables import studies_table

    show(studies_table(summaries, console().width))


def ui(
    port: PortOption = None,
    host: AddressOption = "127.0.0.1",
    auth: AuthOption = None,
    browser: Annotated[bool, typer.Option(help="Open a browser, if there is one.")] = True,
    home: HomeOption = None,
) -> None:
    """Serve the MLflow UI of this folder; Ctrl-C stops it."""
    from regtune.tracking.page import serve_ui

    serve_ui(settings_of(home), port=port, host=host, auth=auth, open_browser=browser)
