"""The verbs that read: board, show, studies, ui."""

from __future__ import annotations

import csv
import sys
from typing import Annotated

import typer

from regtune.cli import options, terminal
from regtune.errors import InputError
from regtune.escaping import csv_cell

PANEL = "Look"


def board(
    study: options.Study,
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
    as_json: options.Json = False,
    home: options.Home = None,
) -> None:
    """Show the leaderboard: every trial, the best first."""
    from regtune.study.board import read_board

    if as_csv and as_json:
        raise InputError("--csv and --json: choose one")
    with terminal.opened(terminal.settings_of(home)) as engine:
        leaderboard = read_board(engine, study, sort, limit)
    if as_json:
        terminal.show_json(leaderboard.cells())
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(map(csv_cell, leaderboard.columns))
        writer.writerows(map(csv_cell, row.values()) for row in leaderboard.cells())
    else:
        from regtune.cli.views.tables import board_table

        terminal.show(board_table(leaderboard, terminal.console().width))
        if not leaderboard.rows:
            terminal.say("There are no trials yet.")


def show_(
    study: options.Study,
    trial: Annotated[int | None, typer.Argument(min=0, metavar="TRIAL", help="Number of a trial.")] = None,
    as_json: options.Json = False,
    home: options.Home = None,
) -> None:
    """Show a study, or one trial with its learning curve and how it ended."""
    from regtune.cli.views.tables import study_view, trial_view
    from regtune.study.board import read_study, read_top, read_trial

    width = terminal.console().width
    with terminal.opened(terminal.settings_of(home)) as engine:
        info = read_study(engine, study)
        if trial is not None:
            row = read_trial(engine, study, trial)
            terminal.present(row, lambda row: trial_view(info, row, width), as_json)
            return
        top = read_top(engine, study, 1)
    if as_json:
        terminal.show_json(info.to_json() | {"best": top.best.number if top.best else None})
    else:
        terminal.show(study_view(top, width))
        terminal.say_more(study, info.trials - len(top.rows))


def studies(as_json: options.Json = False, home: options.Home = None) -> None:
    """List all studies."""
    from regtune.cli.views.tables import studies_table
    from regtune.study.board import list_studies

    with terminal.opened(terminal.settings_of(home)) as engine:
        summaries = list_studies(engine)
    terminal.present(summaries, lambda rows: studies_table(rows, terminal.console().width), as_json)


def ui(
    port: options.Port = None,
    host: options.Address = "127.0.0.1",
    auth: options.Auth = None,
    browser: Annotated[bool, typer.Option(help="Open a browser, if there is one.")] = True,
    home: options.Home = None,
) -> None:
    """Serve the MLflow UI of this folder; Ctrl-C stops it."""
    from regtune.tracking.page import serve_ui

    serve_ui(terminal.settings_of(home), port=port, host=host, auth=auth, open_browser=browser)


VERBS = (board, show_, studies, ui)
