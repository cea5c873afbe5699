"""Sentences and tables of the report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from regtune.escaping import printable, shell_word
from regtune.evidence.export import Export, ExportedTrial
from regtune.evidence.report.charts import Chart, Table, label, scale_of, title_of, word
from regtune.evidence.report.search import span
from regtune.study.decision import Decision, Estimate, Judged
from regtune.study.decision_text import FIGURES, optimism_text, sentence, signed_text, value_text

FACTS = {"name": "data", "train": "training images", "validation": "validation images", "digest": "SHA-256"}


def commands_of(export: Export) -> dict[str, str]:
    study = shell_word(export.study.name)
    return {
        "sweep": f"regtune sweep {shell_word(export.study.file or 'FILE')} --name {study}",
        "decide": f"regtune decide {study}",
        "diagnose": f"regtune diagnose {study}",
        "board": f"regtune board {study}",
        "export": f"regtune report {study} --json",
        "redraw": "regtune report export.json",
    }


def subtitles(export: Export) -> list[str]:
    study = export.study
    images = study.data.get("train")
    facts = [
        str(study.data.get("name") or study.spec.get("dataset", "")),
        f"{images:,} training images" if isinstance(images, int) else "",
        f"{sum(study.counts.values()):,} trials ({_states(export)})",
        f"last active {_moment(study.last_active)}" if study.last_active else "",
    ]
    return [*filter(None, (study.description, ", ".join(filter(None, facts))))]


def _best(export: Export) -> ExportedTrial | None:
    return next((one for one in export.trials if one.rank == 1), None)


def _value(metric: str, value: float | None) -> str:
    return "–" if value is None else value_text(metric, Estimate(mean=value))


def answer(export: Export) -> list[str]:
    """The answer in two sentences."""
    if decision := export.decision:
        return [*filter(None, (sentence(decision), optimism_text(decision)))]
    best, metric = _best(export), export.study.metric
    if best is None:
        return ["Nothing is known yet: no trial is complete."]
    value = _value(metric, best.value)
    return [
        f"The best single run is trial {best.number}: {best.mix}, {value} {title_of(metric)}.",
        "Whether it is better than the others, or was only luckier, is not known before it is replicated.",
    ]


def highlights(export: Export) -> list[dict[str, str]]:
    metric, decision, best = export.study.metric, export.decision, _best(export)
    if decision is None:
        none = next((one for one in export.trials if one.control == "none"), None)
        shown = [
            ("Best single run", _value(metric, best.value) if best else "–", best.mix if best else ""),
            ("No technique, a single run", _value(metric, none.value) if none else "–", title_of(metric)),
            ("Trials", f"{sum(export.study.counts.values()):,}", _states(export)),
        ]
    else:
        chosen, tied = decision.judged(decision.chosen), decision.with_standing("chosen", "tied")
        shown = []
        if chosen:
            shown.append(("Chosen", *label(chosen.candidate)))
            shown.append(("Its mean", value_text(metric, chosen.estimate), title_of(metric)))
            if chosen.to_none:
                against = signed_text(metric, chosen.to_none) + (" points" if scale_of(metric) == 100 else "")
                shown.append(("Against no technique", against, "paired difference"))
        shown.append(("Cannot be told apart", str(len(tied)), f"of {len(decision.candidates)} candidates"))
        each = f"{decision.replicates} of each open candidate"
        shown.append(("Trainings", f"{decision.trainings:,}", each))
    return [dict(zip(("name", "value", "note"), one, strict=True)) for one in shown]


def _states(export: Export) -> str:
    words = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    counts = export.study.counts.items()
    return ", ".join(f"{count} {words[state]}" for state, count in counts if state in words and count)


def candidates_table(decision: Decision) -> Table:
    metric = decision.metric

    def row(one: Judged) -> Sequence[str]:
        differences = signed_text(metric, one.to_none), signed_text(metric, one.to_chosen)
        counted = f"{one.replicates}{f' ({one.diverged} diverged)' if one.diverged else ''}"
        name = "\n".join(label(one.candidate))
        return name, value_text(metric, one.estimate), *differences, counted, one.standing

    columns = "candidate", title_of(metric), "to no technique", "to the chosen one", "replicates", "standing"
    return Table(columns, [row(one) for one in decision.candidates])


def bought_table(decision: Decision | None) -> Table:
    """The figures of no technique, then what each technique adds."""
    controls, none = (decision.techniques, decision.none) if decision else ((), None)
    names = [name for name in FIGURES if any(name in one.added for one in controls)]
    rows = (
        [(label(none.candidate)[0], *(value_text(name, none.figures.get(name)) for name in names))]
        if none
        else []
    )
    rows += [
        (label(one.candidate)[0], *(signed_text(name, one.added.get(name)) for name in names))
        for one in controls
    ]
    return Table(("control", *(FIGURES[name].title for name in names)), rows if controls else [])


def trials_table(export: Export) -> Table:
    metric, names = export.study.metric, [one.name for one in export.study.space]
    columns = (
        "rank",
        "trial",
        "state",
        title_of(metric),
        "accuracy",
        "gap",
        "epochs",
        "seconds",
        "control",
        *names,
    )
    states = {"FAIL": "failed", "FOREIGN": "of another program"}

    def row(one: ExportedTrial) -> Sequence[str]:
        gap = one.figures.get("generalization_gap")
        return (
            str(one.rank or "–"),
            str(one.number),
            states.get(one.state, one.state.lower()),
            _value(metric, one.value),
            _value("val_accuracy", one.figures.get("val_accuracy")),
            "–" if gap is None else f"{gap:.4f}",
            str(one.epochs),
            f"{one.seconds:.1f}",
            (one.control or "").replace("_", " "),
            *("–" if one.parameters.get(name) is None else word(one.parameters[name]) for name in names),
        )

    return Table(columns, [row(one) for one in export.trials])


def pruning_text(export: Export) -> str:
    pruned = export.study.counts.get("PRUNED", 0)
    if not export.study.spec.get("early_terminate"):
        return "The sweep file has no early_terminate: no trial was pruned."
    if not pruned:
        return "Nothing was pruned."
    spent = sum(one.epochs for one in export.costs if one.what.endswith("trials"))
    share = 100 * export.saved_epochs / (spent + export.saved_epochs)
    ended = sum(one.trainings for one in export.costs if one.what.endswith("trials"))
    return (
        f"{pruned} of {ended} trials were pruned. They left out at most {export.saved_epochs:,} epochs, "
        f"{share:.0f} % of all that the search might have trained."
    )


def cost_text(export: Export) -> str:
    total = sum(one.seconds for one in export.costs)
    text = f"The search took {span(export.worked_seconds)} and all trainings together {span(total)} of work."
    if diagnosis := export.diagnosis:
        spent = f"{diagnosis.trainings:,} trainings, {diagnosis.epochs:,} epochs, {span(diagnosis.seconds)}"
        text += f" The diagnosis took {spent}."
    return text


def data_facts(export: Export) -> list[tuple[str, str]]:
    study = export.study
    data = [(shown, study.data.get(key)) for key, shown in FACTS.items()]
    facts = [
        ("study", study.name),
        ("uid", study.uid),
        ("metric", f"{study.metric}, {study.goal}"),
        ("method", str(study.spec.get("method", ""))),
        ("seed", str(study.spec.get("seed", ""))),
        ("started", _moment(study.started)),
        ("last active", _moment(study.last_active)),
    ]
    return [
        *facts,
        *((name, f"{value:,}" if isinstance(value, int) else str(value or "")[:20]) for name, value in data),
    ]


def _moment(time: str | None) -> str:
    return f"{time[:10]} {time[11:16]} UTC" if time else ""


def sources_table(shown: Mapping[str, Chart], commands: Mapping[str, Mapping[str, str]]) -> Table:
    """Each chart with the place of its figures and the command that measures them."""

    def measured(source: str) -> str:
        verb = {"decision": "decide", "replicates": "decide", "curves": "decide", "diagnosis": "diagnose"}
        name = verb.get(source.partition(".")[0].partition("[")[0], "sweep")
        return "; ".join(dict.fromkeys(of[name] for of in commands.values()))

    titles = defaultdict[str, list[str]](list)
    for chart in shown.values():
        titles[chart.source].append(chart.title)
    rows = [("; ".join(charts), source, measured(source)) for source, charts in titles.items()]
    return Table(("charts", "figures", "command"), rows)


def unlike(one: Export, other: Export) -> Iterable[str]:
    """What forbids a comparison of two studies."""
    facts: dict[str, Callable[[Export], Any]] = {
        "metric": lambda export: export.study.metric,
        "images (their digests differ)": lambda export: export.study.data.get("digest"),
    }
    for what, of in facts.items():
        if of(one) != of(other):
            yield f"The two studies have different {what}: their figures cannot be compared."


def side_by_side(both: Sequence[Export]) -> Iterable[Sequence[str]]:
    def chosen(export: Export) -> Judged | None:
        return export.decision.judged(export.decision.chosen) if export.decision else None

    def best(export: Export) -> str:
        found = _best(export)
        return f"trial {found.number}: {_value(export.study.metric, found.value)}" if found else "–"

    def of_chosen(show: Callable[[str, Judged], str]) -> Callable[[Export], str]:
        return lambda export: "–" if (one := chosen(export)) is None else show(export.study.metric, one)

    facts: dict[str, Callable[[Export], str]] = {
        "chosen": of_chosen(lambda _, one: ": ".join(label(one.candidate))),
        "its mean": of_chosen(lambda metric, one: value_text(metric, one.estimate)),
        "against no technique": of_chosen(lambda metric, one: signed_text(metric, one.to_none)),
        "cannot be told apart": lambda export: (
            str(len(export.decision.with_standing("chosen", "tied"))) if export.decision else "–"
        ),
        "optimism of the search": lambda export: (
            signed_text(export.study.metric, export.decision.optimism) if export.decision else "–"
        ),
        "best single run": best,
        "metric": lambda export: export.study.metric,
        "data": lambda export: printable(str(export.study.data.get("name", ""))),
        "method": lambda export: str(export.study.spec.get("method", "")),
        "trials": lambda export: f"{sum(export.study.counts.values()):,}: {_states(export)}",
        "epochs": lambda export: f"{sum(one.epochs for one in export.costs):,}",
        "time of the search": lambda export: span(export.worked_seconds),
    }
    for name, of in facts.items():
        yield name, *map(of, both)
