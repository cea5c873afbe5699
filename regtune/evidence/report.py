"""The report: one HTML file that shows a study, or two side by side, and loads nothing.

All text of a study is untrusted: the templates escape it, and the page's policy runs no script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from regtune import __version__
from regtune.config.source import text_of
from regtune.config.sweepfile.specification import differences_of
from regtune.errors import StorageError
from regtune.escaping import printable, shell_word
from regtune.evidence import decision_charts, diagnosis_charts, search_charts
from regtune.evidence.charts import Chart, Table, label, scale_of, title_of, word
from regtune.evidence.export import Export, ExportedTrial
from regtune.evidence.search_charts import span
from regtune.study.decision import Decision, Estimate, Judged
from regtune.study.decision_text import (
    FIGURES,
    basis_text,
    end_text,
    more_command,
    optimism_text,
    sentence,
    signed_text,
    value_text,
)

SECTIONS = {
    "answer": "The answer",
    "decision": "The decision",
    "bought": "What each technique bought",
    "bias": "Bias and variance",
    "curves": "Learning curves",
    "search": "The search",
    "parameters": "Each parameter",
    "pruning": "What pruning ended",
    "cost": "What it cost",
    "settings": "Every setting",
    "reproduce": "How to reproduce",
}
SECTIONS_OF_TWO = ("answer", "decision", "search", "settings", "reproduce")
FITTING = {
    "overfitting": "It overfits:",
    "underfitting": "It underfits:",
    "neither": "It neither over- nor underfits:",
}
NOT_MEASURED = "Not measured yet:"
FACTS = {"name": "data", "train": "training images", "validation": "validation images", "digest": "SHA-256"}
MIX = ("dropout", "l1", "l2", "batchnorm")


def page_of(export: Export) -> str:
    """Draw the page of a study."""
    commands, decision, diagnosis = _commands(export), export.decision, export.diagnosis
    charts = _charts(export)
    shown = dict(_named(charts.values()))
    return _render(
        "study.html",
        generator=generator(export),
        title=export.study.name,
        subtitles=_subtitles(export),
        sections=SECTIONS,
        data=export.to_json(),
        figures={key: chart.plot for key, chart in shown.items()},
        charts=charts,
        commands=commands,
        answer=_answer(export),
        highlights=_highlights(export),
        decision=decision,
        basis=_basis(decision) if decision else (),
        more=more_command(decision) if decision else "",
        candidates=_candidates(decision) if decision else None,
        bought=_bought(decision),
        diagnosis=diagnosis,
        lacking=lambda part: (diagnosis and diagnosis.missing.get(part)) or NOT_MEASURED,
        fit_verdict=FITTING[diagnosis.fit.verdict] if diagnosis and diagnosis.fit else "",
        pictures=[*diagnosis_charts.pictures(diagnosis.errors)] if diagnosis and diagnosis.errors else (),
        trials=_trials(export),
        left_out=export.left_out,
        pruning=_pruning(export),
        cost=_cost(export),
        space=_space(export),
        configuration=_configuration(export),
        sweep_file=_sweep_file(export),
        data_facts=_facts(export),
        versions=export.study.versions.items(),
        sources=_sources(shown, {"": commands}),
    )


def page_of_two(one: Export, other: Export) -> str:
    """Draw two studies side by side."""
    both = one, other
    names = [export.study.name for export in both]
    charts = {
        "against": decision_charts.against_chart(both),
        "histories": search_charts.histories_chart(one, other),
    }
    shown = dict(_named(charts.values()))
    differences = differences_of(_settings(one), _settings(other))
    rows = [(key, *value.split(" → ", 1)) for key, value in (line.split(": ", 1) for line in differences)]
    return _render(
        "two.html",
        generator=generator(one, other),
        title=" and ".join(names),
        subtitles=(),
        sections={key: SECTIONS[key] for key in SECTIONS_OF_TWO},
        data=[export.to_json() for export in both],
        figures={key: chart.plot for key, chart in shown.items()},
        charts=charts,
        names=names,
        studies=[
            {
                "name": export.study.name,
                "answer": _answer(export),
                "undecided": "" if export.decision else _commands(export)["decide"],
            }
            for export in both
        ],
        warnings=[*_unlike(one, other)],
        compared=Table(("fact", *names), [*_side_by_side(both)]),
        differences=Table(("setting", *names), rows),
        sources=_sources(shown, {export.study.name: _commands(export) for export in both}),
    )


def generator(*exports: Export) -> str:
    """What a page says of its origin: regtune, and the uids of the studies that it shows."""
    return " ".join(("regtune", *(export.study.uid for export in exports)))


def shows(path: Path, exports: Sequence[Export]) -> bool:
    """Whether the file at `path` is a report of these studies, whenever it was drawn."""
    with path.open("rb") as file:
        head = file.read(4096).decode("utf-8", "replace")
    return f'<meta name="generator" content="{generator(*exports)}">' in head


def write(page: str, path: Path) -> None:
    """Write a page whole or not at all. Raises StorageError."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(page, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise StorageError(f"{path}: cannot be written ({error.strerror})") from None


def _render(template: str, **context: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("regtune.evidence", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scripts = {"theme_js": _asset("theme.js"), "plotly_js": plotly_js(), "page_js": _asset("page.js")}
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts.values())
    policy = (
        f"default-src 'none'; script-src {hashes} 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    trusted = {name: Markup(script) for name, script in scripts.items()}  # noqa: S704
    css = Markup(_asset("page.css"))  # noqa: S704
    of_page = {"policy": policy, "css": css, "version": __version__}
    return environment.get_template(template).render(**of_page, **trusted, **context)


def _asset(name: str) -> str:
    return (files("regtune.evidence") / "page" / name).read_text(encoding="utf-8")


@cache
def plotly_js() -> str:
    """The text of plotly.js, from the installed package; nothing in it ends a script element."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs()).replace("</script", r"<\/script")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _charts(export: Export) -> dict[str, Any]:
    decision, diagnosis = export.decision, export.diagnosis
    charts: dict[str, Any] = {
        "decision": decision and decision_charts.decision_chart(export, decision),
        "bought": [*decision_charts.bought_charts(decision)] if decision else [],
        "bias": [], "fit": None, "errors": [],
        "curves": [*decision_charts.curve_charts(export)],
        "parallel": search_charts.parallel_chart(export),
        "history": search_charts.history_chart(export),
        "importance": None, "parameters": [],
        "pruning": search_charts.pruning_chart(export),
        "cost": search_charts.cost_chart(export),
    }  # fmt: skip
    if diagnosis is None:
        return charts
    if diagnosis.bias_variance:
        charts["bias"] = [*diagnosis_charts.bias_variance_charts(diagnosis.bias_variance)]
    if diagnosis.fit:
        charts["fit"] = diagnosis_charts.fit_chart(diagnosis.fit)
    if diagnosis.errors:
        of_errors = diagnosis_charts.calibration_chart, diagnosis_charts.confusion_chart
        charts["errors"] = [chart for draw in of_errors if (chart := draw(diagnosis.errors))]
    charts["importance"] = diagnosis_charts.importance_chart(diagnosis)
    charts["parameters"] = [*diagnosis_charts.parameter_charts(diagnosis)]
    return charts


def _named(charts: Iterable[Any]) -> Iterable[tuple[str, Chart]]:
    for one in charts:
        for chart in one if isinstance(one, list) else [one]:
            if chart:
                yield chart.key, chart


def _commands(export: Export) -> dict[str, str]:
    study = shell_word(export.study.name)
    name = "" if export.study.file else f" --name {study}"
    return {
        "sweep": f"regtune sweep {shell_word(export.study.file or 'FILE')}{name}",
        "decide": f"regtune decide {study}",
        "diagnose": f"regtune diagnose {study}",
        "board": f"regtune board {study}",
        "export": f"regtune report {study} --json",
        "redraw": "regtune report export.json",
    }


def _subtitles(export: Export) -> list[str]:
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


def _answer(export: Export) -> list[str]:
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


def _highlights(export: Export) -> list[dict[str, str]]:
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
            shown.append(
                (f"Its {title_of(metric)}", value_text(metric, chosen.estimate), "mean of its replicates")
            )
            if chosen.to_none:
                against = signed_text(metric, chosen.to_none) + (" points" if scale_of(metric) == 100 else "")
                shown.append(("Against no technique", against, "paired difference"))
        shown.append(("Cannot be told apart", str(len(tied)), f"of {len(decision.candidates)} candidates"))
        each = f"{decision.replicates} of each open candidate"
        shown.append(("Trainings for the decision", f"{decision.trainings:,}", each))
    return [dict(zip(("name", "value", "note"), one, strict=True)) for one in shown]


def _states(export: Export) -> str:
    words = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    counts = export.study.counts.items()
    return ", ".join(f"{count} {words[state]}" for state, count in counts if state in words and count)


def _basis(decision: Decision) -> list[str]:
    return [f"{basis_text(decision)} {end_text(decision)}", *decision.notes]


def _candidates(decision: Decision) -> Table:
    metric = decision.metric

    def row(one: Judged) -> Sequence[str]:
        differences = signed_text(metric, one.to_none), signed_text(metric, one.to_chosen)
        counted = f"{one.replicates}{f' ({one.diverged} diverged)' if one.diverged else ''}"
        name = "\n".join(label(one.candidate))
        return name, value_text(metric, one.estimate), *differences, counted, one.standing

    columns = "candidate", title_of(metric), "to no technique", "to the chosen one", "replicates", "standing"
    return Table(columns, [row(one) for one in decision.candidates])


def _bought(decision: Decision | None) -> Table:
    controls = (
        [one for one in decision.candidates if one.candidate.control and one.figures] if decision else []
    )
    names = [name for name in FIGURES if any(name in one.figures for one in controls)]
    rows = list[Sequence[str]]()
    for one in sorted(controls, key=lambda one: one.candidate.key != "c-none"):
        if one.candidate.key == "c-none":
            rows.append(
                (label(one.candidate)[0], *(value_text(name, one.figures.get(name)) for name in names))
            )
        elif one.bought:
            rows.append(
                (label(one.candidate)[0], *(signed_text(name, one.bought.get(name)) for name in names))
            )
    return Table(("control", *(FIGURES[name].title for name in names)), rows if len(rows) > 1 else [])


def _trials(export: Export) -> Table:
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


def _pruning(export: Export) -> str:
    pruned = export.study.counts.get("PRUNED", 0)
    if not export.study.spec.get("early_terminate"):
        return "The sweep file has no early_terminate: no trial was pruned."
    if not pruned:
        return "Nothing was pruned."
    spent = sum(one.epochs for one in export.costs if one.what.endswith("trials"))
    share = 100 * export.saved_epochs / (spent + export.saved_epochs)
    trials = sum(export.study.counts.values())
    return (
        f"{pruned} of {trials} trials were pruned. They left out at most {export.saved_epochs:,} epochs, "
        f"{share:.0f} % of all that the search might have trained."
    )


def _cost(export: Export) -> str:
    total = sum(one.seconds for one in export.costs)
    text = f"The search took {span(export.worked_seconds)} and all trainings together {span(total)} of work."
    if diagnosis := export.diagnosis:
        spent = f"{diagnosis.trainings:,} trainings, {diagnosis.epochs:,} epochs, {span(diagnosis.seconds)}"
        text += f" The diagnosis took {spent}."
    return text


def _space(export: Export) -> Table:
    return Table(("parameter", "values"), [(one.name, one.takes) for one in export.study.space])


def _configuration(export: Export) -> str:
    decision = export.decision
    chosen = decision.judged(decision.chosen or decision.answer) if decision else None
    return chosen.candidate.config.to_yaml() if chosen else ""


def _settings(export: Export) -> dict[str, Any]:
    return {**export.study.spec, **export.study.budget}


def _sweep_file(export: Export) -> str:
    return text_of(_settings(export), flow=None)


def _facts(export: Export) -> list[tuple[str, str]]:
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


def _sources(shown: Mapping[str, Chart], commands: Mapping[str, Mapping[str, str]]) -> Table:
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


def _unlike(one: Export, other: Export) -> Iterable[str]:
    """What forbids a comparison of two studies."""
    facts: dict[str, Callable[[Export], Any]] = {
        "metric": lambda export: export.study.metric,
        "images (their digests differ)": lambda export: export.study.data.get("digest"),
    }
    for what, of in facts.items():
        if of(one) != of(other):
            yield f"The two studies have different {what}: their figures cannot be compared."


def _side_by_side(both: Sequence[Export]) -> Iterable[Sequence[str]]:
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
