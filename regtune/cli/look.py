"""The verbs for results: board, show, studies, best, train."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regtune.cli import options, terminal
from regtune.errors import InputError
from regtune.escaping import csv_cell, printable, shell_word

if TYPE_CHECKING:
    from regtune.study.best import Best
    from regtune.tracking.page import Where


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
    from regtune.cli.views.tables import answer_view, board_table
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
        terminal.show(board_table(leaderboard, terminal.console().width))
        if decision := leaderboard.info.decision:
            terminal.show("", answer_view(decision))
        elif any(row.rank for row in leaderboard.rows):
            terminal.show("single runs: differences may be luck")
            terminal.say(f"decide with: regtune decide {shell_word(study)}")
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
    from regtune.tracking.page import where

    settings, width = terminal.settings_of(home), terminal.console().width
    with terminal.opened(settings) as engine:
        info = read_study(engine, study)
        if trial is not None:
            row = read_trial(engine, study, trial)
            found = row.record and where(settings, info, row.record.uid)
            if as_json:
                terminal.show_json({**row.to_json(), **(vars(found) if found else {})})
                return
            terminal.show(trial_view(info, row, width))
            if found:
                _say_where(found)
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


def best(
    study: options.Study,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="File to write; default: print it.")
    ] = None,
    control: Annotated[
        str | None, typer.Option(metavar="NAME", help="This control instead, such as dropout.")
    ] = None,
    trial: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="This complete trial instead.")
    ] = None,
    as_json: options.Json = False,
    yes: options.Yes = False,
    quiet: options.Quiet = False,
    home: options.Home = None,
) -> None:
    """Print the decision's choice, else the best configuration of the search, as `regtune train` reads it."""
    from regtune.storage.output import check_file
    from regtune.study.best import best_of
    from regtune.study.board import read_study
    from regtune.tracking.page import where

    if as_json and output is not None:
        raise InputError("--json and --output: choose one; regtune train reads YAML files")
    if control is not None and trial is not None:
        raise InputError("--control and --trial: choose one")
    settings = terminal.settings_of(home)
    with terminal.opened(settings) as engine:
        config, info = best_of(engine, study, control, trial), read_study(engine, study)
    terminal.say(_kind(config, study, control), quiet)
    if config.provenance and not quiet:
        _say_where(where(settings, info, config.provenance.trial_uid))
    if as_json:
        terminal.show_json(config.to_dict())
    elif output is None:
        typer.echo(config.to_yaml(), nl=False)
    else:
        if check_file(output) and not config.is_in(output):
            terminal.confirm(f"Replace {printable(str(output))}, which holds something else?", yes)
        config.write(output)
        terminal.say(f"Wrote {output}. Train it again with: regtune train {shell_word(str(output))}")


def _say_where(found: Where) -> None:
    if found.model:
        terminal.say(f"model: {printable(found.model)} (takes 784 numbers from 0 to 1)")
    terminal.say(f"MLflow: {found.mlflow}")


def _kind(best: Best, study: str, control: str | None) -> str:
    """Which kind of best it is."""
    known = best.provenance
    if known is None:
        return "the decision's choice; the search did not train it, so there are no figures to reach"
    if control is not None:
        return f"trial {known.trial}: the control {printable(control)}, as you asked"
    if known.chosen == "person":
        return f"trial {known.trial}: {best.config.mix}, as you asked"
    alone = best.config.mix == "none" and best.config.early_stopping is not None
    trial = f"trial {known.trial}: {'early stopping alone' if alone else best.config.mix}"
    if known.chosen == "search":
        return f"{trial}; the best of single runs, which may be luck; decide with: regtune decide {shell_word(study)}"
    return f"{trial}; chosen by {known.replicates} replicates"


def train(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="File from `regtune best -o`, or a run's config.yaml.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="MODEL.keras",
            help="Write the network, which takes 28 x 28 pixels as uint8.",
        ),
    ] = None,
    as_json: options.Json = False,
    yes: options.Yes = False,
    quiet: options.Quiet = False,
    home: options.Home = None,
) -> None:
    """Train a configuration again, log it, and compare its figures with the recorded ones."""
    from regtune.storage.output import check_file
    from regtune.study.best import load_best

    best = load_best(file)
    if output is not None and check_file(output, ".keras"):
        terminal.confirm(f"Replace {printable(str(output))}?", yes)
    from regtune.cli.views.reports import retrained_view
    from regtune.sweep.retrain import retrain

    tell = partial(terminal.say, quiet=quiet)

    def tell_epoch(epoch: int, figures: Mapping[str, float]) -> None:
        shown = (f"{name} {figures[name]:.4f}" for name in ("val_cross_entropy", "val_accuracy"))
        tell(f"epoch {epoch}: {', '.join(shown)}")

    tell(f"training {best.config.mix} on {printable(best.config.data.name)}")
    result = retrain(best, terminal.settings_of(home), tell_epoch, tell, output)
    terminal.present(result, retrained_view, as_json)
    if output is not None:
        tell(f"Wrote {printable(str(output))}: it takes pixels of 28 x 28 as uint8")
    if result.differences:
        raise typer.Exit(1)
