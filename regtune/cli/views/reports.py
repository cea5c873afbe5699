"""Plans, examinations, data sets and retrainings, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from regtune.cli.views.drawing import counted, metric_text, span
from regtune.cli.views.tables import facts_table, plain_table, space_table
from regtune.errors import COMMAND
from regtune.escaping import printable

if TYPE_CHECKING:
    from regtune.data.inventory import Entry
    from regtune.server.databases import Database
    from regtune.sweep.plan import Duration, Plan
    from regtune.sweep.retrain import Retrained
    from regtune.tracking.sync import Missing
    from regtune.upkeep.doctor import Check
    from regtune.upkeep.status import DatabaseStatus, ServerStatus, Status

STATE_STYLES = {
    "current": "green",
    "server": "green",
    "missing": "yellow",
    "empty": "yellow",
    "older": "yellow",
}
STATUS_STYLES = {"ok": "green", "note": "yellow", "mend": "bold red"}


def plan_view(plan: Plan) -> RenderableType:
    """What a sweep would do: the space, the budget, time, disk, and where it writes."""
    facts = {
        "study": f"{printable(plan.study)}, {plan.standing}",
        "data": printable(plan.data),
        "space": _size(plan),
        "method": f"{plan.method}, {plan.goal} {plan.metric}",
        "budget": _budget(plan),
        "controls": _controls(plan),
        "time": "none, it is finished" if plan.ended else _time(plan.duration, plan.workers),
        "disk": f"about {_bytes(plan.disk_bytes)}" if plan.disk_bytes else "",
        **{f"{name} in": path for name, path in plan.writes.items()},
    }
    parts: list[RenderableType] = [facts_table(facts), Text(), space_table(plan.parameters)]
    for note in plan.data_notes:
        parts += [Text(), Text(note, style="yellow")]
    if not plan.controls_fit:
        wanted = len(plan.controls) + 1
        parts += [
            Text(),
            Text(
                f"The budget is too small for the controls: {COMMAND.get()} --set run_cap={wanted}",
                style="yellow",
            ),
        ]
    elif plan.untried and plan.run_cap is not None:
        enough = plan.run_cap + plan.untried
        parts += [
            Text(),
            Text(
                f"{counted(plan.untried, 'point')} of the grid untried; "
                f"try all with: {COMMAND.get()} --set run_cap={enough}",
                style="yellow",
            ),
        ]
    return Group(*parts)


def _size(plan: Plan) -> str:
    what = counted(len(plan.parameters), "parameter")
    return (
        f"{what}, {counted(plan.size, 'configuration')}" if plan.size is not None else f"{what}, continuous"
    )


def _budget(plan: Plan) -> str:
    parts = [] if plan.run_cap is None else [_most(plan.run_cap, plan.max_epochs)]
    if plan.method == "grid" and plan.size is not None:
        tried = plan.size - plan.untried
        parts = [f"{tried} of {plan.size} points of at most {counted(plan.max_epochs, 'epoch')}"]
    if plan.timeout_seconds is not None:
        parts.append(span(plan.timeout_seconds))
    return ", ".join(parts)


def _most(trials: int, epochs: int) -> str:
    return f"{counted(trials, 'trial')} of at most {counted(epochs, 'epoch')}"


def _controls(plan: Plan) -> str:
    beside = f", {plan.beside} beside the grid's points" if plan.beside else ""
    return f"{len(plan.controls)} first{beside}: {', '.join(plan.controls)}" if plan.controls else "none"


def _time(found: Duration | None, workers: int) -> str:
    if found is None:
        return "unknown until the data is here"
    basis = (
        f"measured here on {counted(found.epochs_measured, 'epoch')} of {found.epoch_seconds:.2f} s"
        if found.epochs_measured
        else f"a guess: {found.epoch_seconds:.2f} s an epoch, nothing was measured here yet"
    )
    most = f", at most {span(found.at_most_seconds)}" if found.at_most_seconds > found.seconds * 1.05 else ""
    return f"about {span(found.seconds)}{most} with {counted(workers, 'worker')} ({basis})"


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(1, round(count / 1e6))} MB"


def checks_view(checks: Sequence[Check]) -> RenderableType:
    """What was looked at, and what to mend."""
    table = plain_table()
    table.add_column("", no_wrap=True)
    table.add_column("what", no_wrap=True)
    table.add_column("found", overflow="fold")
    for check in checks:
        found = Text(check.found)
        if check.mend:
            found.append(f"\n→ {check.mend}", style=STATUS_STYLES[check.status])
        table.add_row(Text(check.status, style=STATUS_STYLES[check.status]), check.name, found)
    count = sum(check.status == "mend" for check in checks)
    last = f"{count} to mend." if count else "Nothing to mend."
    return Group(table, Text(), Text(last, style="bold red" if count else "green"))


def status_view(status: Status) -> RenderableType:
    """How a folder stands, a line for each thing."""
    facts: dict[str, str | Text] = {"folder": status.home, "server": _server_text(status.server)}
    if status.server.page:
        facts["newest sweep"] = Text(status.server.page, style=f"link {status.server.page}")
    for database in status.databases:
        facts[database.name] = _database_text(database)
    facts["behind"] = _behind_text(status.behind)
    if status.strays:
        facts["artifacts"] = Text("; ".join(map(str, status.strays)), style="yellow")
    facts["sweeps"] = (
        "; ".join(f"{printable(study)} ({who})" for study, who in status.running.items()) or "none is running"
    )
    facts["disk"] = f"{_bytes(status.free_bytes)} free"
    table = plain_table()
    table.show_header = False
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for name, fact in facts.items():
        table.add_row(name, fact)
    return table


def _server_text(server: ServerStatus) -> Text:
    if server.state == "none":
        return Text("not running; start it with: regtune up", style="yellow")
    if server.state == "parts":
        return Text(
            "parts of a server that was killed are left; mend with: regtune up, or: regtune down", style="red"
        )
    from regtune.server.service import clock

    said = f" {server.problem}" if server.problem else ""
    since = f", since {clock(server.since)}" if server.since else ""
    accounts = {True: ", asks for an account", False: ", without accounts", None: ""}[server.auth]
    named = ", named by MLFLOW_TRACKING_URI" if server.foreign else ""
    return Text(f"{server.url}{said}{since}{accounts}{named}", style="red" if said else "green")


def _behind_text(found: Mapping[str, Missing] | None) -> Text:
    if found is None:
        return Text("unknown while a database or MLflow cannot be asked", style="yellow")
    if not found:
        return Text("MLflow has everything")
    lacking = "; ".join(f"{printable(study)}: {missing}" for study, missing in found.items())
    return Text(f"MLflow lacks {lacking}; write it with: regtune sync", style="yellow")


def _database_text(database: DatabaseStatus) -> Text:
    if database.problem:
        return Text(database.problem, style="red")
    if database.state == "server":
        return Text(f"kept by {database.place}")
    if database.size_bytes is None:
        return Text(f"{database.place}, made by the first sweep")
    return Text(
        f"{database.place}, {_bytes(database.size_bytes)}, revision {database.revision}, {database.state}"
    )


def datasets_table(entries: Sequence[Entry]) -> RenderableType:
    """Data sets, where they lie, and what is wrong with them."""
    if not entries:
        return Text("no data set is here; try: regtune data fetch mnist")
    read = any(entry.digest or entry.problem for entry in entries)
    table = plain_table()
    table.add_column("data set", no_wrap=True)
    for name in ("train", "test", "digest") if read else ():
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("where", overflow="fold")
    for entry in entries:
        counts = [f"{entry.train:,}" if entry.train else "–", f"{entry.test:,}" if entry.test else "–"]
        digest = f"{entry.digest[:12]}{' ✓' if entry.known else ''}" if entry.digest else "–"
        where = entry.problem or entry.where or f"not here; try: regtune data fetch {entry.name}"
        where = "\n".join((where, *entry.notes))
        table.add_row(
            entry.name,
            *((*counts, digest) if read else ()),
            Text(where, style="red" if entry.problem else ""),
        )
    return table


def retrained_view(found: Retrained) -> RenderableType:
    """The figures of a training beside the recorded ones."""
    table = plain_table()
    table.add_column("figure", no_wrap=True)
    table.add_column("now", justify="right", no_wrap=True)
    if found.recorded is not None:
        table.add_column("recorded", justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
    for name, value in found.figures.items():
        if found.recorded is None:
            table.add_row(name, metric_text(value))
            continue
        before = found.recorded.get(name)
        said = "the same" if name not in found.differences else f"{found.differences[name]:+.2e}"
        table.add_row(name, metric_text(value), metric_text(before), said)
    kept = Text(f"kept weights: epoch {found.epoch} of {found.epochs}, {found.model}")
    parts: list[RenderableType] = [table, Text(), kept]
    if found.recorded is None:
        return Group(*parts, Text(f"Not compared: {found.uncompared}.", style="yellow"))
    if not found.differences:
        parts.append(Text("Every figure equals the recorded one, bit for bit.", style="green"))
    elif found.changed:
        parts.append(Text(f"The figures differ; so do versions: {', '.join(found.changed)}.", style="yellow"))
    else:
        parts.append(
            Text("The figures differ with the same versions: is it another processor?", style="yellow")
        )
    return Group(*parts)


def databases_table(databases: Sequence[Database]) -> RenderableType:
    """Both databases: where, which revision, and what is wanted here."""
    table = plain_table()
    for name in ("database", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("revision", "wanted", "where"):
        table.add_column(name, overflow="fold")
    for one in (database.to_json() for database in databases):
        state = Text(one["state"], style=STATE_STYLES.get(one["state"], "bold red"))
        table.add_row(one["database"], state, one["revision"] or "-", one["wanted"] or "-", one["place"])
    return table
