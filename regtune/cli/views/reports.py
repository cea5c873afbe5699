"""Plans, checks, folders, data sets, databases and retrainings as reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from regtune.cli.terminal import counted, megabytes, span
from regtune.cli.views.drawing import metric_text
from regtune.cli.views.tables import facts_table, space_table, table
from regtune.errors import COMMAND
from regtune.escaping import printable

if TYPE_CHECKING:
    from regtune.data.datasets import Entry
    from regtune.storage.schema import Schema
    from regtune.sweep.plan import Duration, Plan
    from regtune.sweep.retrain import Retrained
    from regtune.upkeep.doctor import Check
    from regtune.upkeep.status import DatabaseStatus, ServerStatus, Status

SHARES = {1 / 3: "a third of the search's epochs", 1.0: "as many epochs as the search"}
STATUS_STYLES = {"ok": "green", "note": "yellow", "mend": "bold red"}


def plan_view(plan: Plan) -> RenderableType:
    points = "continuous" if plan.size is None else counted(plan.size, "configuration")
    beside = f", {plan.beside} beside the grid's points" if plan.beside else ""
    controls = f"{len(plan.controls)} first{beside}: {', '.join(plan.controls)}"
    facts = {
        "study": f"{printable(plan.study)}, {plan.standing}",
        "data": printable(plan.data),
        "space": f"{counted(len(plan.parameters), 'parameter')}, {points}",
        "method": f"{plan.method}, {plan.goal} {plan.metric}",
        "budget": _budget(plan),
        "controls": controls if plan.controls else "none",
        "decision": _decision(plan.decision_share),
        "time": _time(plan.duration, plan.workers) if plan.duration else "none, it is complete",
        **{f"{name} in": path for name, path in plan.writes.items()},
    }
    notes = list(plan.data_notes)
    if not plan.controls_fit:
        least = len(plan.controls) + 1
        notes.append(f"The budget is too small for the controls: {COMMAND.get()} --set run_cap={least}")
    elif plan.untried and plan.run_cap is not None:
        left, enough = counted(plan.untried, "point"), plan.run_cap + plan.untried
        notes.append(f"{left} of the grid untried; try all with: {COMMAND.get()} --set run_cap={enough}")
    lines = (part for note in notes for part in (Text(), Text(note, style="yellow")))
    return Group(facts_table(facts), Text(), space_table(plan.parameters), *lines)


def _budget(plan: Plan) -> str:
    trials = "" if plan.run_cap is None else counted(plan.run_cap, "trial")
    if plan.method == "grid" and plan.size is not None:
        trials = f"{plan.size - plan.untried} of {plan.size} points"
    most = trials and f"{trials} of at most {counted(plan.max_epochs, 'epoch')}"
    time = span(plan.timeout_seconds) if plan.timeout_seconds else ""
    return ", ".join(filter(None, (most, time)))


def _decision(share: float) -> str:
    """The most that a decision may cost."""
    if not share:
        return "none"
    return "at most " + SHARES.get(share, f"{share:.3g} times the search's epochs")


def _time(duration: Duration, workers: int | None) -> str:
    shared = counted(workers or 1, "worker")
    if workers is None:
        shared += ", less with as many as the Ray cluster has room for"
    basis = f"an estimate: {duration.epoch_seconds:.2f} s an epoch; nothing was measured here yet"
    if duration.epochs_measured:
        epochs = counted(duration.epochs_measured, "epoch")
        basis = f"measured here on {epochs} of {duration.epoch_seconds:.2f} s"
    longer = duration.at_most_seconds > duration.seconds * 1.05
    most = f", at most {span(duration.at_most_seconds)}" if longer else ""
    return f"about {span(duration.seconds)}{most} with {shared} ({basis})"


def checks_view(checks: Sequence[Check]) -> RenderableType:
    drawn = table("", "what", "found", fold=("found",))
    for check in checks:
        text = Text(check.found)
        if check.mend:
            text.append(f"\n→ {check.mend}", style=STATUS_STYLES[check.status])
        status = "fix" if check.status == "mend" else check.status
        drawn.add_row(Text(status, style=STATUS_STYLES[check.status]), check.name, text)
    count = sum(check.status == "mend" for check in checks)
    last = f"{count} to fix." if count else "Nothing to fix."
    return Group(drawn, Text(), Text(last, style="bold red" if count else "green"))


def status_view(status: Status) -> RenderableType:
    facts: dict[str, str | Text] = {"folder": status.home, "server": _server_text(status.server)}
    if status.server.page:
        facts["newest sweep"] = Text(status.server.page, style=f"link {status.server.page}")
    for database in status.databases:
        facts[database.name] = _database_text(database)
    facts["artifacts"] = Text("; ".join(map(str, status.strays)), style="yellow")
    running = "; ".join(f"{printable(study)} ({who})" for study, who in status.running.items())
    facts["sweeps"] = running or "none is running"
    facts["disk"] = f"{megabytes(status.free_bytes)} free"
    return facts_table(facts)


def _server_text(server: ServerStatus) -> Text:
    if server.state == "none":
        return Text("not running; start it with: regtune up", style="yellow")
    if server.state == "parts":
        left = "parts of a killed server are left; clean up with: regtune down, or restart with: regtune up"
        return Text(left, style="red")
    from regtune.server.service import clock

    said = f" {server.problem}" if server.problem else ""
    since = f", since {clock(server.since)}" if server.since else ""
    accounts = {True: ", asks for an account", False: ", without accounts", None: ""}[server.auth]
    named = ", named by MLFLOW_TRACKING_URI" if server.foreign else ""
    return Text(f"{server.url}{said}{since}{accounts}{named}", style="red" if said else "green")


def _database_text(database: DatabaseStatus) -> Text:
    if database.problem:
        return Text(database.problem, style="red")
    if database.state == "server":
        return Text(f"on {database.place}")
    if database.revision is None:
        return Text(f"{database.place}, the first sweep creates it")
    return Text(f"{database.place}, revision {database.revision}, {database.state}")


def datasets_table(entries: Sequence[Entry]) -> RenderableType:
    if not entries:
        return Text("no data set is here; try: regtune data fetch mnist")
    read = any(entry.digest or entry.problem for entry in entries)
    figures = ("train", "test", "digest") if read else ()
    drawn = table("data set", *figures, "where", right=figures, fold=("where",))
    for entry in entries:
        counts = [f"{count:,}" if count else "–" for count in (entry.train, entry.test)]
        digest = f"{entry.digest[:12]}{' ✓' if entry.known else ''}" if entry.digest else "–"
        where = entry.problem or entry.where or f"not here; try: regtune data fetch {entry.name}"
        text = Text("\n".join((where, *entry.notes)), style="red" if entry.problem else "")
        drawn.add_row(entry.name, *((*counts, digest) if read else ()), text)
    return drawn


def retrained_view(retrained: Retrained) -> RenderableType:
    drawn = table("figure", "now", "recorded", "", right=("now", "recorded"))
    for name, value in retrained.figures.items():
        recorded, cells = (retrained.recorded or {}).get(name), [name, metric_text(value)]
        if recorded is not None:
            difference = retrained.differences.get(name)
            same = "the same" if difference is None else f"{difference:+.2e}"
            cells += [metric_text(recorded), same]
        drawn.add_row(*cells)
    kept = Text(f"kept weights: epoch {retrained.epoch} of {retrained.epochs}, {retrained.model}")
    verdict, style = "The figures differ with the same versions: is it another processor?", "yellow"
    if retrained.recorded is None:
        verdict = f"Not compared: {retrained.uncompared}."
    elif not retrained.differences:
        verdict, style = "Every figure equals the recorded one, bit for bit.", "green"
    elif retrained.changed:
        verdict = f"The figures differ; so do versions: {', '.join(retrained.changed)}."
    return Group(drawn, Text(), kept, Text(verdict, style=style))


def databases_table(databases: Sequence[Schema]) -> RenderableType:
    fold = "revision", "expected", "where"
    drawn = table("database", "state", *fold, fold=fold)
    for database in databases:
        one = database.to_json()
        state = Text(one["state"], style="bold red" if database.problem else "green")
        drawn.add_row(one["database"], state, one["revision"] or "-", one["wanted"] or "-", one["place"])
    return drawn
