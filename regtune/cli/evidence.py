"""The verbs for evidence: decide."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Annotated

import typer

from regtune.cli import options, terminal
from regtune.errors import InputError
from regtune.escaping import printable

if TYPE_CHECKING:
    from regtune.evidence.decide import Budget

KEPT = "replicates that have ended are kept"
SECONDS = {"s": 1, "m": 60, "h": 3600}


def decide(
    study: options.Study,
    *,
    top: Annotated[
        int,
        typer.Option(min=1, max=100, metavar="N", help="Configurations of the search, beside the controls."),
    ] = 5,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="N|TIME",
            help="At most N replicates of each candidate (8), or this much time (90s, 5m, 1h); default: until settled.",
        ),
    ] = None,
    practical: Annotated[
        float | None,
        typer.Option(
            metavar="D",
            help="Differences of the metric below D do not matter; default: 0.0005 for an accuracy, "
            "1 % of the mean of no technique for a loss.",
        ),
    ] = None,
    vary: Annotated[
        str, typer.Option(metavar="both|seed|split", help="What is fresh in each replicate.")
    ] = "both",
    workers: options.Workers = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    home: options.Home = None,
) -> None:
    """Train the best configurations and the controls again, until they are told apart.

    Replicate i of every candidate has the same seed and the same split of the images. What is beaten is trained no
    further; a decision that was stopped resumes, and a larger budget goes on from it.
    """
    from regtune.cli.views.decision import decision_view
    from regtune.cli.views.drawing import choose
    from regtune.evidence.decide import decide as replicate
    from regtune.study.decision_text import more_command

    limit = _budget(budget)
    if practical is not None and not 0 < practical < 1e9:
        raise InputError(f"--practical {practical:g}: expected a number above 0, in units of the metric")
    if vary not in ("both", "seed", "split"):
        raise InputError(f"--vary {printable(vary)}: expected both, seed or split")
    asked, again = threading.Event(), terminal.typed()
    try:
        with choose(quiet=quiet or as_json) as display, terminal.stopping(asked, display.stopping):
            decision = replicate(
                study,
                settings=terminal.settings_of(home, workers=workers),
                top=top,
                budget=limit,
                practical=practical,
                vary=vary,  # type: ignore[arg-type]
                observer=display,
                stop=asked,
            )
    except KeyboardInterrupt:
        terminal.say(f"Stopped at once; {KEPT}. Resume with: {again}")
        raise typer.Exit(terminal.INTERRUPTED) from None
    if as_json:
        terminal.show_json(decision.model_dump(mode="json"))
    else:
        terminal.show(decision_view(decision, terminal.console().width))
    if decision.end == "stopped":
        terminal.say(f"Stopped; {KEPT}. Resume with: {again}")
        raise typer.Exit(terminal.INTERRUPTED)
    if command := more_command(decision):
        terminal.say(f"settle more:  {command}", quiet)


def _budget(typed: str | None) -> Budget | None:
    """Read `8` as replicates of each candidate and `90s`, `5m`, `1h` as time. Raises InputError."""
    from regtune.evidence.decide import Budget

    if typed is None:
        return None
    found = re.fullmatch(r"0*([1-9]\d{0,8})([smh]?)", typed, re.ASCII)
    if found is None:
        expected = "expected replicates of each candidate, such as 8, or a time, such as 90s, 5m or 1h"
        raise InputError(f"--budget {printable(typed)}: {expected}")
    count, unit = int(found[1]), found[2]
    return Budget(seconds=count * SECONDS[unit]) if unit else Budget(replicates=count)
