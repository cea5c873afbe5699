"""The verbs for registered models."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from regtune.cli import options, terminal
from regtune.errors import InputError, RegtuneError
from regtune.escaping import printable, shell_word

Target = Annotated[
    str,
    typer.Argument(
        metavar="NAME[@ALIAS]", help="A registered model; default alias: champion; @v3: version 3."
    ),
]
ModelName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the registered model.")]


def promote(
    study: options.Study,
    *,
    name: Annotated[
        str | None,
        typer.Option("--as", metavar="NAME", help="Name of the registered model; default: the sweep's."),
    ] = None,
    trial: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="This trial, in place of the decision's choice.")
    ] = None,
    alias: Annotated[
        str, typer.Option(metavar="ALIAS", help="Alias that moves to the new version.")
    ] = "champion",
    refit: Annotated[
        bool, typer.Option("--refit", help="Train on the training and the validation images together.")
    ] = False,
    gates: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Limits of the gates; `regtune schema gates` describes them."),
    ] = None,
    force: Annotated[
        str | None, typer.Option(metavar="REASON", help="Pass gates that refuse; the reason is stored.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the gates that need no test set; write nothing.")
    ] = False,
    as_json: options.Json = False,
    yes: options.Yes = False,
    quiet: options.Quiet = False,
    home: options.Home = None,
) -> None:
    """Train a study's choice afresh, hold it against the gates, and make it the champion.

    The test set is opened once for it, which is counted. The champion before becomes @previous.
    """
    from regtune.cli.views.registry import gates_table, promoted_line
    from regtune.registry.choice import choose
    from regtune.registry.gates import load_gates
    from regtune.registry.promote import promote as register

    limits, settings = load_gates(gates), terminal.settings_of(home)
    if force is not None and not force.strip():
        raise InputError("--force: expected a reason, which is stored with the version")
    with terminal.opened(settings) as engine:
        choice = choose(engine, study, trial)
        if choice.lucky and not dry_run:
            decide = f"decide with: regtune decide {shell_word(study)}"
            terminal.confirm(f"{choice.lucky}; {decide}. Promote it?", yes)
        elif choice.lucky:
            terminal.say(choice.lucky, quiet)
        with terminal.working(f"promoting {printable(study)}", quiet or as_json) as tell:

            def on_epoch(which: str, epoch: int, figures: Mapping[str, float]) -> None:
                tell(f"{which}: epoch {epoch}, val_accuracy {figures['val_accuracy']:.4f}")

            promotion = register(
                choice,
                engine,
                settings=settings,
                name=name,
                alias=alias,
                limits=limits,
                refit=refit,
                dry_run=dry_run,
                force=force,
                on_note=partial(terminal.say, quiet=quiet or as_json),
                on_epoch=on_epoch,
            )
    terminal.present(promotion, lambda shown: gates_table(shown.gates), as_json)
    if promotion.version is not None:
        terminal.say(promoted_line(promotion), quiet)
        terminal.say(f"pull it with: regtune pull {shell_word(promotion.name)}", quiet)
        return
    if promotion.refused:
        gate = "gate refuses" if len(promotion.refused) == 1 else "gates refuse"
        left = "nothing was registered" if not dry_run else "a dry run: nothing was written"
        raise RegtuneError(f"{printable(promotion.name)}: {left}; {gate}: {', '.join(promotion.refused)}")
    terminal.say("a dry run: nothing was written, and the test set stays closed", quiet)


def list_(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A registered model; default: all.")
    ] = None,
    as_json: options.Json = False,
    home: options.Home = None,
) -> None:
    """List registered models: versions, aliases, figures, age and where they come from."""
    from regtune.cli.views.registry import versions_table
    from regtune.registry.listing import list_versions

    with terminal.working("reading MLflow's registry"):
        listed = list_versions(terminal.settings_of(home), name)
    if not as_json:
        for note in listed.notes:
            terminal.say(note)
    if as_json or listed.versions:
        terminal.present(listed.versions, versions_table, as_json)


def show_(target: Target, as_json: options.Json = False, home: options.Home = None) -> None:
    """Show a version's model card."""
    from regtune.registry import journal
    from regtune.registry.store import open_registry

    registry = open_registry(terminal.settings_of(home))
    found = registry.find(target)
    if as_json:
        terminal.show_json(found)
        return
    for note in journal.read(registry, found.name).notes:
        terminal.say(f"{printable(found.name)}: {note}")
    terminal.show(found.description)


def rollback(name: ModelName, quiet: options.Quiet = False, home: options.Home = None) -> None:
    """Make the previous champion the champion again; a second time undoes the first."""
    from regtune.registry import journal
    from regtune.registry.store import open_registry

    state = journal.roll_back(open_registry(terminal.settings_of(home)), name)
    terminal.say(f"{printable(name)}: @champion is version {state.champion}, {state.moves[-1].why}", quiet)
