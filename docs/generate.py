"""Generated parts of README.md and of the pages in docs/: between `<!-- NAME -->` and `<!-- end -->`.

python docs/generate.py            bring them up to date
python docs/generate.py --check    name the files that are not, and exit with 1
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from regtune.cli import app
from regtune.config.sweepfile.specification import json_schema
from regtune.evidence.export import Export, load_export
from regtune.registry.gates import json_schema as gates_schema
from regtune.study.decision_text import FIGURES, paragraph, signed_text, value_text
from regtune.study.decision_text import words as candidate_words

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def table(columns: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def verbs() -> Iterator[tuple[str, Any]]:
    """Every verb with its command, `db init` and its like included."""
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from ((f"{name} {below}", found) for below, found in command.commands.items())
        else:
            yield name, command


def summary(command: Any) -> str:
    """The first sentence of a verb's help."""
    return str(command.get_short_help_str(200))


def verb_list() -> str:
    """One line a verb."""
    rows = ((f"[`{name}`](#regtune-{name.replace(' ', '-')})", summary(command)) for name, command in verbs())
    return table(("verb", "what it does"), rows)


def verb_help() -> str:
    """The help of every verb: usage, arguments, options."""
    parts = []
    for name, command in verbs():
        context = command.make_context(f"regtune {name}", [], resilient_parsing=True)
        usage = " ".join((f"regtune {name}", *command.collect_usage_pieces(context)))
        records = (found.get_help_record(context) for found in command.get_params(context))
        rows = (option(*record) for record in records if record and "--help" not in record[0])
        text = "\n".join(line.strip() for line in command.help.splitlines())
        parts.append(
            f"## regtune {name}\n\n{text}\n\n```text\n{usage}\n```\n\n{table(('argument or option', 'meaning'), rows)}"
        )
    return "\n\n".join(parts)


def option(spelling: str, said: str) -> tuple[str, str]:
    """A line of a verb's help, without the types that its spelling shows already."""
    said = re.sub(r"\[(\S*?)<=x<=(\S*?)\]", r"(\1 to \2)", said)
    said = re.sub(r"\[x>=(\S*?)\]", r"(at least \1)", said)
    said = re.sub(r"\[(required|default: .*?)\]", r"(\1)", said)
    return f"`{re.sub(r' <.*', '', spelling)}`", " ".join(said.split())


def plain(value: Any) -> str:
    """A value as a sweep file has it; whole numbers with their thousands."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return json.dumps(value).strip('"')


TYPES = {"integer": "whole number", "number": "number", "boolean": "`true` or `false`", "string": "text"}
LIMITS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
    "maxLength": "at most",
}


class Schema:
    """The sweep file's JSON Schema, as tables."""

    def __init__(self, whole: Mapping[str, Any]) -> None:
        self.whole = whole

    def resolved(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """A part of the schema with references followed and "or null" left out."""
        if "$ref" in given:
            target: Any = self.whole
            for key in given["$ref"].removeprefix("#/").split("/"):
                target = target[key]
            return self.resolved({**target, **{key: value for key, value in given.items() if key != "$ref"}})
        rest = {key: value for key, value in given.items() if key not in ("anyOf", "oneOf")}
        forms = [one for one in given.get("anyOf", given.get("oneOf", ())) if one.get("type") != "null"]
        if len(forms) == 1:
            return self.resolved({**forms[0], **rest})
        return {**rest, "anyOf": forms} if forms else rest

    def properties(self, given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """The keys of a group, those left out that regtune ignores."""
        found = self.resolved(given).get("properties", {})
        return {name: self.resolved(part) for name, part in found.items() if not part.get("deprecated")}

    def kind(self, given: Mapping[str, Any]) -> str:
        """Type and limits of a value: `number, more than 0, at most 10`."""
        found = self.resolved(given)
        words = found.get("enum", [found["const"]] if "const" in found else None)
        if words is not None:
            return ", ".join(f"`{word}`" for word in words)
        if "properties" in found:
            return "keys below"
        if found.get("type") == "array":
            return f"list, each item a {self.kind(found['items'])}"
        if "anyOf" in found and all("type" in form for form in found["anyOf"]):
            return "; or ".join(map(self.kind, found["anyOf"]))
        parts = [TYPES.get(found.get("type", ""), "value")]
        parts += [f"{said} {plain(found[key])}" for key, said in LIMITS.items() if key in found]
        return ", ".join(parts) + (" characters" if "maxLength" in found else "")

    def rows(self, given: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
        """Key, type, default and meaning of each key of a group."""
        for name, part in self.properties(given).items():
            default = part.get("default")
            shown = "" if "properties" in part or default in (None, "") else f"`{plain(default)}`"
            yield f"`{name}`", self.kind(part), shown, part.get("description", "")

    def value_of(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """What one value of a parameter may be."""
        for form in map(self.resolved, self.resolved(given)["anyOf"]):
            if "value" in form["properties"]:
                value = self.resolved(form["properties"]["value"])
                return self.resolved(value["anyOf"][0]) if "anyOf" in value else value
        raise LookupError("no form of a parameter has a value")


KEYS = ("key", "type and limits", "default", "meaning")


def sweep_file_keys() -> str:
    """Tables of every key of the sweep file."""
    schema = Schema(json_schema())
    groups = {name: part for name, part in schema.properties(schema.whole).items() if name != "parameters"}
    parts = [table(KEYS, schema.rows(schema.whole))]
    for name, part in groups.items():
        if "properties" in part:
            parts.append(f"### {name}\n\n{part.get('description', '')}\n\n{table(KEYS, schema.rows(part))}")
    return "\n\n".join(parts)


def searched_keys() -> str:
    """A table of what may stand under `parameters`."""
    schema = Schema(json_schema())
    groups = schema.properties(schema.whole)
    rows = (
        (f"`{name}`", schema.kind(schema.value_of(part)), part.get("description", ""))
        for name, part in schema.properties(groups["parameters"]).items()
    )
    return table(("key", "each value", "meaning"), rows)


def gates_keys() -> str:
    """A table of every key of a file of gates."""
    schema = Schema(gates_schema())
    return table(KEYS, schema.rows(schema.whole))


def results(name: str) -> Any:
    """A committed result."""
    return json.loads((ROOT / f"benchmarks/{name}.json").read_text())


def sweep_files() -> str:
    """The files in sweeps/, each with the question at its top."""
    rows = []
    for file in sorted((ROOT / "sweeps").glob("*.yaml")):
        comment = file.read_text().split("\n\n")[0]
        rows.append((f"`{file.name}`", " ".join(line.removeprefix("# ") for line in comment.splitlines())))
    return table(("file", "question"), iter(rows))


def machine(name: str) -> str:
    """The machine of a committed result."""
    found = results(name)["machine"]
    return f"Measured on: {found['cpu']}, {found['cores']} cores."


def speed() -> str:
    """A sweep beside the notebook's way."""
    sweep = results("sweep")
    ours, notebook, where = sweep["sweep"], sweep["notebook"], sweep["machine"]
    return f"""\
{ours["trials"]} trials of `sweeps/mnist.yaml` on the full MNIST with {ours["workers"]} workers (`make bench-sweep`; \
{where["cpu"]}, {where["cores"]} cores):

| | time | trial-epochs per second | validation accuracy of the best trial by cross-entropy |
|---|---|---|---|
| `regtune sweep`, {ours["trial_epochs"]} trial-epochs | {ours["seconds"] / 60:.1f} min | \
{ours["trial_epochs_per_second"]:.2f} | {ours["best_val_accuracy"]:.4f} ({ours["best_mix"]}) |
| the notebook's way, one after another with stock `fit` on all cores, \
{notebook["measured_trials"]} of the {ours["trials"]} trials measured | \
{notebook["seconds_for_the_budget"] / 60:.0f} min | {notebook["epochs_per_second"]:.2f} | |"""


def board() -> str:
    """The whole board of that sweep."""
    return f"```text\n{(ROOT / 'benchmarks/board.txt').read_text().rstrip()}\n```"


def best_of_board() -> str:
    """Its end: the best trial against the controls."""
    whole = board()
    return f"```text\n{whole[whole.index('best  trial') :]}"


def epochs() -> str:
    """What an epoch costs."""
    train = results("train")
    epoch, workers, rounds = train["epoch"], train["workers"], train["rounds"]
    rows = (
        ("an epoch of the plain network", f"{epoch['plain']['to_floor']['median']:.2f} × its floor"),
        (
            "an epoch with batch norm, L1 and L2",
            f"{epoch['batch norm + L1 + L2']['to_floor']['median']:.2f} × its floor",
        ),
        (
            "the exact way (`fused: false`)",
            f"{epoch['plain, exact']['median'] / epoch['plain']['median']:.2f} × the fused way",
        ),
        (
            "two workers against the notebook's `fit` on the same two cores",
            f"{workers['speed_up']['median']:.1f} × the trial-epochs per second",
        ),
        (
            "from one trial's last epoch to the next trial's first",
            f"{train['between_trials']['median'] * 1000:.0f} ms",
        ),
    )
    columns = (f"`make bench-train`, medians of {rounds} interleaved rounds", "result")
    return f"{table(columns, iter(rows))}\n\n{machine('train')}"


def scale() -> str:
    """What reading a large study costs."""
    rows = (
        (f"`{one['verb']}`", one["database"], f"{one['seconds']:.2f} s", f"{one['peak_mb']:.0f} MB")
        for one in results("scale")["verbs"]
    )
    return f"{table(('verb', 'database', 'time', 'memory'), rows)}\n\n{machine('scale')}"


def coordinator() -> str:
    """What the coordinator costs."""
    rows = (
        (one["database"], f"{one['size']:,}", f"{one['cpu_ms_per_trial']:.1f} ms", f"{one['cpu_share']:.1%}")
        for one in results("coordinator")["coordinator"]
    )
    columns = ("database", "trials in the study", "CPU per trial", "CPU per second of training")
    share = results("sweep")["sweep"]["coordinator_cpu_share"]
    said = f"In the sweep above it took {share:.2%} of all CPU; the target is 1 %."
    return f"{table(columns, rows)}\n\n{machine('coordinator')} {said}"


def simulated() -> list[dict[str, Any]]:
    """What was simulated, by database and workers."""
    rows = results("simulate")["rows"].values()
    return sorted(rows, key=lambda one: (one["database"], one["workers"], one["trials"]))


def busy() -> str:
    """How busy simulated workers are."""
    found = simulated()
    rows = (
        (
            one["database"],
            f"{one['before']:,} + {one['trials']:,}",
            f"{one['workers']:,}",
            f"{one['busy']:.1%}",
            f"{one['coordinator_busy']:.0%}",
            f"{one['wait_for_verdict']:.2f} s",
            f"{one['wait_for_trial']:.2f} s",
        )
        for one in found
    )
    columns = (
        "database",
        "trials",
        "workers",
        "training",
        "coordinator works",
        "an epoch waits",
        "a trial waits",
    )
    loads = sorted(one["load_before"] for one in found)
    said = f"Other work used it at the same time: load average {loads[0]:.0f} to {loads[-1]:.0f}."
    return f"{table(columns, rows)}\n\n{machine('simulate')} {said}"


def wide() -> str:
    """How many simulated workers train at the end of a study, in a row a database."""
    found = {(one["database"], one["workers"]): one for one in simulated() if one["before"]}
    databases, workers = (sorted({key[at] for key in found}) for at in (0, 1))
    rows = (
        (
            {"sqlite": "SQLite", "postgresql": "PostgreSQL"}[database],
            *(f"{found[database, one]['busy']:.1%}" if (database, one) in found else "" for one in workers),
        )
        for database in sorted(databases, reverse=True)
    )
    columns = ("workers that train (`make bench-simulate`), of", *(f"{one:,}" for one in workers))
    return table(columns, rows)


def coordinator_parts() -> str:
    """What the coordinator of many workers does."""
    found = simulated()
    rows = (
        (
            one["database"],
            f"{one['before']:,} + {one['trials']:,}",
            f"{one['workers']:,}",
            *(f"{part:.0f}" for part in (one["ms_a_trial"], *one["parts_ms_a_trial"].values())),
        )
        for one in found
    )
    return table(("ms per trial", "trials", "workers", "all", *found[0]["parts_ms_a_trial"]), rows)


def beyond() -> str:
    """How many workers one coordinator would serve, as arithmetic."""
    said = []
    for one in simulated():
        if one["workers"] >= 256:
            busy, works = f"{one['busy']:.1%}", f"{one['coordinator_busy']:.1%}"
            most = one["workers"] * one["busy"] / one["coordinator_busy"]
            said.append(
                f"- {one['database']}: while {busy} of {one['workers']:,} workers train, the coordinator works {works} "
                f"of the time, so it has none left at {one['workers']:,} × {busy} ÷ {works} = {most:,.0f} that train."
            )
    return "\n".join(said)


def pending() -> str:
    """What pending trials cost the sampler."""
    found = results("simulate").get("regret")
    if found is None:
        return "Not measured yet."
    rows = (
        (
            f"{one['trials']:,}",
            f"{1e4 * one['sequential']:.1f}",
            f"{1e4 * one['with_pending']:.1f}",
            "{:+.1f} ({:+.1f} to {:+.1f})".format(
                *(1e4 * one["added"][at] for at in ("mean", "low", "high"))
            ),
        )
        for one in found["rows"]
    )
    columns = ("trials", "one worker", "256 workers", "more, 95 % interval")
    sweeps = len(found["sweeps"]) // 2
    return (
        f"{table(columns, rows)}\n\nRegret × 10⁴ in validation cross-entropy, means of {sweeps} sweeps each."
    )


def tracking() -> str:
    """What MLflow costs a sweep."""
    found = results("tracking")
    rows = (
        (way, f"{one['cpu_share']:.1%}", f"{one['cpu_share'] - one['cpu_share_without_start']:.1%}")
        for way, one in found["ways"].items()
    )
    columns = (f"way of {found['trials']} trials", "share of the sweep's CPU", "of which the start")
    return f"{table(columns, rows)}\n\n{machine('tracking')}"


def sync() -> str:
    """What comparing a large study with MLflow costs."""
    rows = (
        (
            f"`{one['verb']}`",
            one["database"],
            one["way"],
            f"{one['seconds']:.1f} s",
            f"{one['peak_mb']:.0f} MB",
        )
        for one in results("sync")["verbs"]
        if one["promised"]
    )
    columns = ("verb", "database", "MLflow's database is read", "time", "memory")
    return f"{table(columns, rows)}\n\n{machine('sync')}"


def load() -> str:
    """What a long sweep costs."""
    found = results("load")
    rows = (
        (
            name,
            f"{one['end']['mib']:.0f} MiB",
            f"{one['kib_a_trial']:.1f} KiB",
            f"{one['end']['threads']:.0f}",
        )
        for name, one in found["processes"].items()
    )
    columns = ("process", "memory at the end", "growth per trial", "threads")
    said = f"{found['trials']:,} trials, {found['trials_a_second']:.1f} per second."
    return f"{said} {machine('load')}\n\n{table(columns, rows)}"


def ray() -> str:
    """What an epoch and a trial cost beside their training."""
    found = results("ray")
    rows = (
        (one["title"], *(f"{one[f'{kind}_ms']:.1f} ms" for kind in ("epoch", "trial")))
        for one in found["ways"].values()
    )
    return f"{table(('one trial at a time', 'an epoch', 'a trial'), rows)}\n\n{machine('ray')}"


def start() -> str:
    """Where the seconds of the quickstart go."""
    found = results("start")
    search, whole = found["ways"]["search"], found["ways"]["search and decision"]
    rows = (
        ("from the command to the first epoch", f"{search['start']:.1f} s"),
        ("the search's epochs", f"{search['training']:.1f} s"),
        ("from the last epoch to the last line", f"{search['end']:.1f} s"),
        ("the whole search (`--set decide=false`)", f"{search['command']:.1f} s"),
        ("the whole command, with its decision", f"{whole['command']:.1f} s"),
        (f"memory of {found['workers']} workers together", f"{found['workers_mib']:,.0f} MiB"),
    )
    columns = (f"`make bench-start`, medians of {found['rounds']} rounds", "result")
    return f"{table(columns, iter(rows))}\n\n{machine('start')}"


def soak() -> str:
    """What random faults cost."""
    rows = (
        (
            one["pair"],
            *(str(one[key]) for key in ("finished", "faults", "failed_attempts", "lost", "doubled")),
        )
        for one in results("soak")["soaks"]
    )
    return table(("stores", "trials", "faults", "failed attempts", "lost", "doubled"), rows)


def decisions() -> str:
    """How often a decision errs."""
    found = results("decision")
    varied = {"both": "seed and split", "seed": "seed"}
    unit = found["sd_of_a_run_by_its_seed"]

    def regret(value: float) -> str:
        return f"{value / unit:.2f} sd"

    rows = (
        (
            one["name"],
            varied[one["vary"]],
            f"{one['false_claims']:.1%}",
            f"{one['found']:.1%}, {one['replicates_when_found']:.0f}" if one["better"] else "",
            f"{regret(one['regret'])}, {regret(one['regret_of_best_single_run'])}" if one["better"] else "",
            f"{min(one['covered'].values()):.1%}",
        )
        for one in found["rows"]
    )
    columns = (
        "true differences",
        "varied",
        "false claims",
        "found, replicates",
        "regret, of the best single run",
        "intervals",
    )
    sweeps = found["rows"][0]["sweeps"]
    return f"{table(columns, rows)}\n\n{sweeps:,} sweeps a row; sd: of a run by its seed, 0.0012 of accuracy on MNIST."


def peers() -> str:
    """The same searches by regtune and its peers, and the gate before them."""
    found = results("peers")
    said = []
    for name, gate in found["parity"].items():
        tools = ", ".join(
            f"{tool} {one['difference']:+.5f} ({one['low']:+.5f} to {one['high']:+.5f})".replace("-", "−")
            for tool, one in gate["tools"].items()
        )
        one = gate["tools"]["Optuna"]
        passed = (
            "in all tools" if all(one["passed"] for one in gate["tools"].values()) else "not in all tools"
        )
        said.append(
            f"- `{name}`, {one['pairs']} pairs of at most {gate['epochs']} epochs: the same configurations reach the "
            f"same validation accuracy {passed}. Regtune's minus the peer's, with 90 % intervals, which have to lie "
            f"within ±{gate['margin']}: {tools}."
        )
    parts = ["\n".join(said)]
    for setting in found["settings"]:
        rows = []
        for tool, one in setting["summary"].items():
            reached = one["seconds_to_target"]
            rows.append(
                (
                    *(tool, f"{one['seconds']:.1f} s", f"{one['trial_epochs']:.0f}"),
                    *(
                        f"{one['seconds_a_trial_epoch']:.3f} s",
                        f"{one['ratio']:.1f}" if "ratio" in one else "",
                    ),
                    "not reached" if reached is None else f"{reached:.0f} s",
                    *(f"{one['peak_mib'] / 1024:.2f} GiB", f"{one['cpu_seconds']:.0f} s"),
                )
            )
        columns = (
            *(f"{setting['trials']} trials of at most {setting['epochs']} epochs", "whole command"),
            *("trial-epochs", "each", "times regtune's", "to 0.98 accuracy", "memory", "CPU"),
        )
        where = f"Measured on: {setting['machine']['cpu']}, {setting['machine']['cores']} cores."
        parts += [table(columns, iter(rows)), f"{where} {setting['missed']}".strip()]
    return "\n\n".join(filter(None, parts)) or "No result is committed yet."


def study() -> Export:
    """The export of the study of sweeps/mnist.yaml that the documents speak of."""
    return load_export(ROOT / "benchmarks/study.json")


def decision() -> str:
    """What the replicates of that study decide, in sentences."""
    found = study().decision
    assert found is not None
    return " ".join(paragraph(found))


def candidates() -> str:
    """Every candidate of that decision."""
    found = study().decision
    assert found is not None
    rows = (
        (
            f"{candidate_words(one.candidate)}{'' if one.candidate.searched else ' (control)'}",
            value_text(found.metric, one.estimate),
            signed_text(found.metric, one.to_none),
            value_text("val_accuracy", one.figures.get("val_accuracy")),
            f"**{one.standing}**" if one.standing == "chosen" else one.standing,
        )
        for one in found.candidates
    )
    return table(("candidate", found.metric, "against no technique", "accuracy", ""), rows)


def bought() -> str:
    """What each technique of that study adds to early stopping alone (early stopping: to no technique)."""
    found = study().decision
    assert found is not None
    shown = (
        "val_accuracy",
        "val_cross_entropy",
        "generalization_gap",
        "ece",
        "epochs",
        "l2_norm",
        "prunable",
    )
    rows = (
        (
            candidate_words(one.candidate),
            *(signed_text(name, one.added[name]) for name in shown),
        )
        for one in found.techniques
    )
    return table(("technique", *(FIGURES[name].title for name in shown)), rows)


def champion() -> str:
    """The test accuracy of what that study promotes, and the gates that it passed."""
    found = results("champion")
    record = found["record"]
    test, low, high = record["test"], record["accuracy_low"], record["accuracy_high"]
    gates = found["gates"]
    head = "gate", *(one["name"] for one in gates)
    rows = ("figure", *(one["figure"] for one in gates)), ("limit", *(one["limit"] for one in gates))
    passed = sum(one["passed"] is True for one in gates)
    return f"""\
Promoted (`regtune promote mnist-regularization --json`), the decision's choice has a test accuracy of \
**{test["accuracy"]:.4f}**, 95 % interval {low:.4f} to {high:.4f}, on {test["images"]:,} images, opened once. \
It passed {passed} of {len(gates)} gates:

{table(head, iter(rows))}"""


def textbook() -> str:
    """The textbook's sentences, held against that study."""
    found = study().diagnosis
    assert found is not None
    rows = ((one.text, one.holds, one.figures) for one in found.sentences)
    return table(("the textbook says", "here", "figures"), rows)


PARTS: Mapping[str, Callable[[], str]] = {
    part.__name__.replace("_", " "): part
    for part in (
        *(verb_list, verb_help, sweep_file_keys, searched_keys, sweep_files, gates_keys),
        *(
            speed,
            best_of_board,
            board,
            epochs,
            scale,
            coordinator,
            tracking,
            sync,
            load,
            start,
            ray,
            soak,
            peers,
        ),
        *(busy, wide, coordinator_parts, beyond, pending),
        *(decisions, decision, candidates, bought, textbook, champion),
    )
}


def filled(text: str) -> str:
    """A page with its generated parts."""
    return re.sub(
        r"<!-- ([a-z ]+) -->\n.*?<!-- end -->",
        lambda part: f"<!-- {part[1]} -->\n{PARTS[part[1]]()}\n<!-- end -->",
        text,
        flags=re.S,
    )


def stale() -> list[Path]:
    """The pages whose generated parts are not up to date."""
    return [page for page in PAGES if page.read_text() != filled(page.read_text())]


def main() -> int:
    """Rewrite or check."""
    pages = stale()
    if "--check" in sys.argv:
        print(*(page.relative_to(ROOT) for page in pages), sep="\n", end="")
        return int(bool(pages))
    for page in pages:
        page.write_text(filled(page.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
