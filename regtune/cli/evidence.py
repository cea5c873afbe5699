"""The verbs for evidence: decide, diagnose, report."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regtune.cli import options, terminal
from regtune.errors import InputError, TrackingError
from regtune.escaping import printable

if TYPE_CHECKING:
    from regtune.evidence.decide import Budget
    from regtune.evidence.export import Export
    from regtune.settings import Settings

KEPT = "replicates that have ended are kept"
PAGE = Path("report.html")
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
            help="At most N replicates of each candidate (4, 8, 16, ...), or this much time (90s, 5m, 1h); "
            "default: until settled, or until more would hardly narrow the intervals.",
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


def diagnose(
    target: Annotated[
        str,
        typer.Argument(
            metavar="STUDY|FILE",
            help="Name of a study, or a configuration such as best.yaml.",
            autocompletion=options.study_names,
            callback=options.study_name,
        ),
    ],
    *,
    along: Annotated[
        str | None,
        typer.Option(
            metavar="dropout|l1|l2|epochs",
            help="Measure bias and variance along this; default: the technique that matters most.",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Keep each part within two minutes on two cores.")
    ] = False,
    workers: options.Workers = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    home: options.Home = None,
) -> None:
    """Measure why the choice does what it does: bias and variance, fit, parameters, errors.

    What is measured of a study is kept with it, for its report.
    """
    from regtune.cli.views.diagnosis import diagnosis_view
    from regtune.evidence.diagnosing import diagnose as measure

    settings = terminal.settings_of(home, workers=workers)
    try:
        with terminal.working("diagnosing", quiet or as_json) as tell:
            diagnosis = measure(target, settings=settings, along=along, quick=quick, on_progress=tell)
    except KeyboardInterrupt:
        terminal.say("Stopped; nothing was stored.")
        raise typer.Exit(terminal.INTERRUPTED) from None
    width = terminal.console().width
    terminal.present(diagnosis, lambda shown: diagnosis_view(shown, width), as_json)


def report(
    studies: Annotated[
        list[str],
        typer.Argument(
            metavar="STUDY",
            help="Name of a study, or a .json file that --json has printed; two are shown side by side.",
            autocompletion=options.study_names,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="File to write.")] = PAGE,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the figures as JSON, from which the page can be drawn again."),
    ] = False,
    yes: options.Yes = False,
    quiet: options.Quiet = False,
    home: options.Home = None,
) -> None:
    """Write one HTML page about a study, complete in itself, or about two side by side.

    The page is also logged to the study's run in MLflow.
    """
    from regtune.evidence.report import page_of, page_of_two, shows
    from regtune.storage.output import beside, check_file

    if len(studies) > 2:
        raise InputError(f"expected one or two studies, found {len(studies)}")
    if as_json and (len(studies) > 1 or output != PAGE):
        raise InputError("--json prints the figures of one study; expected one study and no --output")
    settings = terminal.settings_of(home)
    exports = [_export(str(options.study_name(name)), settings) for name in studies]
    if as_json:
        terminal.show_json(exports[0], indent=None)
        return
    if check_file(output) and not shows(output, exports):
        terminal.confirm(f"Replace {printable(str(output))}, which holds something else?", yes)
    page = page_of(*exports) if len(exports) == 1 else page_of_two(*exports)
    with beside(output) as made:
        made.write_text(page, encoding="utf-8")
    size = f"{output.stat().st_size / 1e6:.1f} MB"
    terminal.say(f"Wrote {output} ({size}). Open it in a browser; it loads nothing from elsewhere.", quiet)
    if len(studies) == 1 and not _is_export(studies[0]):
        _log(settings, exports[0].study.name, output)


def _is_export(typed: str) -> bool:
    return typed.endswith(".json") and Path(typed).is_file()


def _export(typed: str, settings: Settings) -> Export:
    from regtune.evidence.export import export_of, load_export

    if _is_export(typed):
        return load_export(Path(typed))
    with terminal.opened(settings) as engine:
        return export_of(engine, typed)


def _log(settings: Settings, study: str, page: Path) -> None:
    from regtune.tracking.sync import log_report

    try:
        log_report(settings, study, page)
    except TrackingError as error:
        terminal.say(f"The page is not in MLflow: {error}")


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
