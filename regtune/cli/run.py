"""The verbs that sweep: sweep, plan, watch, stop, enqueue."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regtune.cli import options, terminal
from regtune.cli.terminal import counted, span
from regtune.errors import COMMAND, InputError
from regtune.escaping import printable, shell_word

if TYPE_CHECKING:
    from regtune.config.sweepfile import SweepSpec
    from regtune.executors.ray_driver import RayCluster
    from regtune.settings import Settings
    from regtune.study.board import Board
    from regtune.sweep import SweepOutcome

RESTARTED = "finished trials are kept, running ones restart from epoch 0"
WATCH_SECONDS = 0.5
TOP = 10


def sweep(
    file: options.File,
    *,
    workers: options.Workers = None,
    assignments: options.Set = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Set an earlier study of this name aside and start a new one.")
    ] = False,
    name: options.Name = None,
    from_study: options.From = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    on: options.On = None,
    address: options.Address = None,
    cpus_per_trial: options.CpusPerTrial = None,
    gpus_per_trial: options.GpusPerTrial = None,
    quiet: options.Quiet = False,
    home: options.Home = None,
) -> None:
    """Start or resume a study."""
    ray = {"address": address, "cpus_per_trial": cpus_per_trial, "gpus_per_trial": gpus_per_trial}
    cluster, again = _cluster(on, {key: value for key, value in ray.items() if value is not None})
    spec = _load(file, assignments, name, home, quiet, again)
    settings = terminal.settings_of(home, workers=workers)
    if dry_run:
        _show_plan(spec, settings, fresh=fresh, on=cluster)
        return
    from regtune.cli.views.drawing import choose
    from regtune.evidence.run import run_sweep

    asked = threading.Event()
    try:
        with choose(quiet=quiet) as display, terminal.stopping(asked, display.stopping):
            outcome = run_sweep(
                spec,
                settings=settings,
                observer=display,
                fresh=fresh,
                from_study=from_study,
                stop=asked,
                on=cluster,
            )
    except KeyboardInterrupt:
        terminal.say(f"Stopped at once; {RESTARTED}. Resume with: {COMMAND.get()}")
        raise typer.Exit(terminal.INTERRUPTED) from None
    _show_outcome(outcome, settings, quiet)
    if outcome.stopped:
        cost = RESTARTED if outcome.interrupted else "no trial was interrupted"
        terminal.say(f"Stopped; {cost}. Resume with: {COMMAND.get()}")
        raise typer.Exit(terminal.INTERRUPTED)


def plan(
    file: options.File,
    *,
    workers: options.Workers = None,
    assignments: options.Set = None,
    name: options.Name = None,
    as_json: options.Json = False,
    home: options.Home = None,
) -> None:
    """Show what a sweep would try, how long it takes, and what it writes."""
    spec = _load(file, assignments, name, home, quiet=as_json)
    _show_plan(spec, terminal.settings_of(home, workers=workers), as_json=as_json)


def watch(
    study: options.Study,
    as_json: Annotated[bool, typer.Option("--json", help="Print one snapshot as JSON.")] = False,
    home: options.Home = None,
) -> None:
    """Follow a running study; Ctrl-C stops watching, not the study."""
    from regtune.cli.views.drawing import choose
    from regtune.cli.views.tables import answer_view
    from regtune.study.board import follow, read_progress
    from regtune.study.ownership import holder

    settings = terminal.settings_of(home)
    with terminal.opened(settings) as engine:
        if as_json:
            terminal.show_json(read_progress(engine, study))
            return
        asked = threading.Event()
        with choose(quiet=False) as display, terminal.stopping(asked):
            follow(
                engine,
                study,
                display,
                running=lambda: holder(settings, study) is not None,
                wait=lambda: asked.wait(WATCH_SECONDS),
            )
        if asked.is_set():
            raise typer.Exit(terminal.INTERRUPTED)
    terminal.say(f"{printable(study)} is not running.")
    decision = _show_board(settings, study).info.decision
    if decision:
        terminal.show("", answer_view(decision))


def stop(
    study: options.Study,
    drain: Annotated[
        bool, typer.Option("--drain", help="Start no new trials, and stop when the running ones have ended.")
    ] = False,
    quiet: options.Quiet = False,
    home: options.Home = None,
) -> None:
    """Stop a running study after its current epoch, or with --drain after its running trials."""
    from regtune.study.board import read_study
    from regtune.study.ownership import holder
    from regtune.study.study import request

    settings = terminal.settings_of(home)
    with terminal.opened(settings) as engine:
        read_study(engine, study)
    who = holder(settings, study)
    if who is None:
        terminal.say(f"{printable(study)} is not running; there is nothing to stop.", quiet)
        return
    request(settings, study, "stop", {"drain": drain})
    cost = "once its running trials have ended" if drain else f"now; {RESTARTED}"
    terminal.say(f"Asked {who} to stop {printable(study)} {cost}.", quiet)


def enqueue(
    study: options.Study,
    assignments: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE", help="Searched parameters, for example dropout=0.3.")
    ],
    quiet: options.Quiet = False,
    home: options.Home = None,
) -> None:
    """Queue a configuration; the sampler proposes the parameters that are not given."""
    from regtune.config.sweepfile import SweepSpec
    from regtune.config.sweepfile.checks import shown_value
    from regtune.search import Space
    from regtune.study.board import read_study
    from regtune.study.ownership import holder
    from regtune.study.study import request

    settings = terminal.settings_of(home)
    with terminal.opened(settings) as engine:
        info = read_study(engine, study)
    parameters = Space(SweepSpec.from_dict({**info.spec, **info.budget})).parse(assignments)
    request(settings, study, "enqueue", parameters)
    shown = ", ".join(f"{name}={shown_value(value)}" for name, value in parameters.items())
    cap, who = info.budget.get("run_cap"), holder(settings, study)
    if cap is not None and info.finished >= cap:
        more = info.finished + info.counts["WAITING"] + 1
        named = None if info.file and Path(info.file).stem == study else study
        command = _again(Path(info.file or "FILE"), [f"run_cap={more}"], named, home)
        when = f"once {who} has ended, run it" if who else "run it"
        said = f"the budget is used; {when} with: {command}"
    elif who:
        said = "the running sweep will run it."
    else:
        said = "it runs when the study resumes."
    terminal.say(f"Queued {shown}; {said}", quiet)


def _cluster(on: options.Place | None, ray: Mapping[str, Any]) -> tuple[RayCluster | None, list[str]]:
    """Return the cluster to train on, and the options that choose it. `ray`: what is given of it."""
    given = {f"--{key.replace('_', '-')}": str(value) for key, value in ray.items()}
    if on is None:
        if given:
            raise InputError(f"{', '.join(given)}: expected only with --on ray")
        return None, []
    from regtune.executors.ray_driver import RayCluster

    return RayCluster(**ray), ["--on", on.value, *(word for pair in given.items() for word in pair)]


def _load(
    file: Path,
    assignments: list[str] | None,
    name: str | None,
    home: Path | None,
    quiet: bool,
    more: Sequence[str] = (),
) -> SweepSpec:
    from regtune.config.sweepfile import SweepSpec

    spec = SweepSpec.load(file, assignments or (), name)
    for warning in spec.warnings:
        terminal.say(f"note: {warning}", quiet)
    COMMAND.set(_again(file, assignments, name, home, more))
    return spec


def _show_plan(
    spec: SweepSpec,
    settings: Settings,
    *,
    as_json: bool = False,
    fresh: bool = False,
    on: RayCluster | None = None,
) -> None:
    from regtune.cli.views.reports import plan_view
    from regtune.sweep.plan import make_plan

    planned = make_plan(spec, settings, fresh=fresh, on=on)
    terminal.present(planned, plan_view, as_json)
    if planned.refusal:
        raise InputError(planned.refusal)


def _show_outcome(outcome: SweepOutcome, settings: Settings, quiet: bool) -> None:
    from regtune.cli.views.tables import answer_view, comparison_text
    from regtune.storage.mlflow import SECONDS, is_server
    from regtune.study.board import compare
    from regtune.study.decision_text import more_command
    from regtune.tracking.page import trials_page
    from regtune.tracking.store import target_of

    study = shell_word(outcome.study)
    board = _show_board(settings, outcome.study)
    decision, comparison = board.info.decision, compare(board)
    if decision is not None:
        terminal.show("", answer_view(decision), "")
    elif comparison is not None:
        terminal.show("", comparison_text(comparison), "")
    counts = f"{outcome.complete} complete, {outcome.pruned} pruned, {outcome.failed} failed"
    reason = f" ({outcome.reason})" if not outcome.stopped else ""
    epochs = counted(outcome.trial_epochs, "epoch")
    terminal.say(f"{counts}, {epochs}; this run took {span(outcome.seconds)}{reason}", quiet)
    if outcome.unwritten:
        behind = f"MLflow is behind by {counted(outcome.unwritten, 'run')}; bring it up to date with"
        terminal.say(f"{behind}: regtune sync {study}", quiet)
    more = more_command(decision) if decision else comparison and f"regtune decide {study}"
    if more:
        terminal.say(f"settle more:       {more}", quiet)
    uri = target_of(settings)
    page = "regtune ui  (MLflow, best trial first)"
    if is_server(uri):
        page = trials_page(uri, outcome.study, SECONDS) or uri
    terminal.say(f"compare the runs:  {page}", quiet)
    terminal.say(
        f"keep the {'choice:  ' if decision else 'best:    '} regtune best {study} -o best.yaml", quiet
    )


def _show_board(settings: Settings, study: str) -> Board:
    from regtune.cli.views.tables import board_table
    from regtune.study.board import read_top

    with terminal.opened(settings) as engine:
        top = read_top(engine, study, TOP)
    terminal.show("", board_table(top, terminal.console().width))
    terminal.say_more(study, top.info.trials - len(top.rows))
    return top


def _again(
    file: Path,
    assignments: list[str] | None,
    name: str | None,
    home: Path | None,
    more: Sequence[str] = (),
) -> str:
    words = ["regtune", "sweep", file, *(word for key in assignments or () for word in ("--set", key))]
    words += ["--name", name] if name is not None else []
    words += ["--home", home] if home is not None else []
    words += more
    return " ".join(shell_word(str(word)) for word in words)
