"""The verbs for registered models."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regtune.cli import options, terminal
from regtune.errors import InputError, RegtuneError
from regtune.escaping import printable, shell_word

if TYPE_CHECKING:
    from regtune.registry.cache import Found
    from regtune.registry.pull import Pulled
    from regtune.registry.verify import Verified
    from regtune.settings import Settings

Target = Annotated[
    str,
    typer.Argument(
        metavar="NAME[@ALIAS]", help="A registered model; default alias: champion; @v3: version 3."
    ),
]
NOT_CURRENT = 10
"""The exit code of `pull --check` for a folder that is not up to date."""
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
    from regtune.registry.journal import LONGEST_WHY
    from regtune.registry.promote import promote as register

    limits, settings = load_gates(gates), terminal.settings_of(home)
    if force is not None and not (force.strip() and force.isprintable() and len(force) <= LONGEST_WHY):
        expected = f"expected a reason of at most {LONGEST_WHY:,} printable characters"
        raise InputError(f"--force: {expected}, which is stored with the version")
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
        target = promotion.name if alias == "champion" else f"{promotion.name}@{alias}"
        terminal.say(f"pull it with: regtune pull {shell_word(target)}", quiet)
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


def pull(
    target: Target,
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Folder to write; default: NAME. With --config, the file."
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only compare: exit 0 when DIR is up to date, 10 when it is not.")
    ] = False,
    config: Annotated[
        bool, typer.Option("--config", help="Print the configuration alone, as `regtune train` reads it.")
    ] = False,
    get: Annotated[
        str | None, typer.Option(metavar="KEY", help="Print one value of the configuration, such as dropout.")
    ] = None,
    as_json: options.Json = False,
    yes: options.Yes = False,
    quiet: options.Quiet = False,
    home: options.Home = None,
) -> None:
    """Put a version's configuration, model and card into a folder, checked; where MLflow is away, from a cache.

    DIR has config.yaml, model.keras and card.md, and all files of the version under version/. They are replaced at
    once: whoever reads DIR finds the version before, or this one.
    """
    if check + config + (get is not None) > 1:
        raise InputError("--check, --config and --get: choose one")
    if output is not None and (get is not None or (config and as_json)):
        raise InputError("--output: expected with a folder, or with --config for a YAML file")
    settings = terminal.settings_of(home)
    if config or get is not None:
        _pull_configuration(settings, target, output, get, as_json=as_json, yes=yes, quiet=quiet)
        return
    from regtune.registry import pull as pulling
    from regtune.registry.store import parse_target

    folder = output or Path(parse_target(target)[0])
    if check:
        found = pulling.ask(settings, target)
        why = pulling.difference(folder, found)
        if as_json:
            terminal.show_json({**found.model_dump(), "folder": folder, "current": not why, "why": why})
        terminal.say(f"{folder}: {f'not {_named(found)}: {why}' if why else _named(found)}", quiet)
        raise typer.Exit(NOT_CURRENT if why else 0)
    with terminal.working("pulling", quiet or as_json):
        pulled = pulling.pull(settings, target, folder, terminal.say)
    if as_json:
        terminal.show_json(pulled)
    already = "" if pulled.changed else " already"
    terminal.say(f"{folder} has {_named(pulled)}{already}: {', '.join(pulling.LINKS)}", quiet)


def _named(version: Found | Pulled | Verified) -> str:
    return f"version {version.number} of {printable(version.name)} (@{printable(version.alias)})"


def _pull_configuration(
    settings: Settings,
    target: str,
    output: Path | None,
    key: str | None,
    *,
    as_json: bool,
    yes: bool,
    quiet: bool,
) -> None:
    from regtune.registry.pull import pull_best
    from regtune.registry.values import value_of, words
    from regtune.storage.output import check_file

    best = pull_best(settings, target, terminal.say)
    if key is not None:
        value = value_of(best.config, key)
        terminal.show_json(value) if as_json else typer.echo(words(value))
    elif as_json:
        terminal.show_json(best.to_dict())
    elif output is None:
        typer.echo(best.to_yaml(), nl=False)
    else:
        if check_file(output) and not best.is_in(output):
            terminal.confirm(f"Replace {printable(str(output))}, which holds something else?", yes)
        best.write(output)
        terminal.say(f"Wrote {output}.", quiet)


def verify(target: Target, as_json: options.Json = False, home: options.Home = None) -> None:
    """Check every file of a version, load it, and repeat its figures exactly.

    The figures of the test set are those of the stored predictions; its images are not looked at.
    """
    from regtune.cli.views.registry import verified_view
    from regtune.registry.verify import verify as check

    with terminal.working("verifying", as_json):
        verified = check(terminal.settings_of(home), target)
    terminal.present(verified, lambda shown: verified_view(shown, _named(shown)), as_json)
