"""The verbs that look: board, show, studies, ui."""

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
            help="Any column or parameter, also by MLflow's name, the better end first; -COLUMN: the other end.",
        ),
    ] = "rank",
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="At most N rows.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV in full precision.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """The leaderboard: every trial, the best first."""
    from regtune.study.board import columns, order_of, read_board, read_parameters, read_study

    if as_csv and as_json:
        from regtune.errors import InputError

        raise InputError("--csv and --json: choose one")
    with opened(settings_of(home)) as engine:
        info = read_study(engine, study)
        rows = read_board(engine, study, sort, limit)
        names = read_parameters(engine, study, rows)
    by = order_of(info, sort)
    own = [column.name for column in columns(info)]
    names = tuple(dict.fromkeys((*names, *([by.name] if by.name not in own else []))))
    cells = [row.cells(info.metric, names) for row in rows]
    if as_json:
        show_json(cells)
    elif as_csv:
        writer = csv.DictWriter(sys.stdout, [*own, *names], lineterminator="\n")
        writer.writerow({name: csv_cell(name) for name in writer.fieldnames})
        writer.writerows({key: csv_cell(value) for key, value in row.items()} for row in cells)
    else:
        from regtune.cli.views.tables import board_table

        show(board_table(info, rows, names, console().width, None if sort == "rank" else by))
        if not rows:
            say("no trial yet")


def show_(
    study: StudyArgument,
    trial: Annotated[int | None, typer.Argument(min=0, metavar="TRIAL", help="A trial's number.")] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """A study; or one trial with its learning curve, and how and why it ended."""
    from regtune.cli.views.tables import study_view, trial_view
    from regtune.study.board import read_study, read_top, read_trial

    width = console().width
    with opened(settings_of(home)) as engine:
        info = read_study(engine, study)
        if trial is not None:
            row = read_trial(engine, study, trial)
            show_json(row.to_json()) if as_json else show(trial_view(info, row, width))
            return
        rows, names = read_top(engine, study, 1)
    best = next((row for row in rows if row.rank == 1), None)
    if as_json:
        show_json(info.to_json() | {"best": best.number if best else None})
    else:
        show(study_view(info, rows, names, width))
        say_more(study, info.trials - len(rows))


def studies(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """All studies here."""
    from regtune.study.board import list_studies

    with opened(settings_of(home)) as engine:
        found = list_studies(engine)
    if as_json:
        show_json([summary.to_json() for summary in found])
        return
    from regtune.cli.views.tables import studies_table

    show(studies_table(found, console().width))


def ui(
    port: PortOption = None,
    host: AddressOption = "127.0.0.1",
    auth: AuthOption = None,
    browser: Annotated[bool, typer.Option(help="Open a browser where there is one.")] = True,
    home: HomeOption = None,
) -> None:
    """The MLflow UI over the runs here; Ctrl-C ends it."""
    from regtune.tracking.page import serve_ui

    serve_ui(settings_of(home), port=port, host=host, auth=auth, open_browser=browser)
