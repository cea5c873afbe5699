"""The report: one HTML file that shows a study, or two side by side, and loads nothing.

All text of a study is untrusted: the templates escape it, and the page's policy runs no script but its own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regtune import __version__
from regtune.config.source import text_of
from regtune.config.sweepfile.specification import differences_of
from regtune.evidence.export import Export
from regtune.evidence.report import tables
from regtune.evidence.report.charts import Chart, Table, as_sentence
from regtune.evidence.report.curves import curve_charts
from regtune.evidence.report.decision import against_chart, bought_charts, decision_chart
from regtune.evidence.report.diagnosis import (
    bias_variance_charts,
    calibration_chart,
    confusion_chart,
    fit_chart,
    pictures,
)
from regtune.evidence.report.parameters import importance_chart, parameter_charts
from regtune.evidence.report.search import (
    cost_chart,
    histories_chart,
    history_chart,
    parallel_chart,
    pruning_chart,
)
from regtune.study.decision import Decision
from regtune.study.decision_text import added_title, basis_text, end_text, more_command

if TYPE_CHECKING:
    from jinja2 import Environment

SECTIONS = {
    "answer": "The answer",
    "decision": "The decision",
    "bought": "What each technique adds",
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
    "overfitting": "It overfits.",
    "underfitting": "It underfits.",
    "neither": "It neither over- nor underfits.",
}
NOT_MEASURED = "Not measured yet:"


def page_of(export: Export) -> str:
    """Draw the page of a study."""
    commands, decision, diagnosis = tables.commands_of(export), export.decision, export.diagnosis
    charts = _charts(export)
    shown = dict(_named(charts.values()))
    return _render(
        "study.html",
        generator=generator(export),
        title=export.study.name,
        subtitles=tables.subtitles(export),
        sections=SECTIONS,
        data=export.to_json(),
        figures={key: chart.plot for key, chart in shown.items()},
        charts=charts,
        commands=commands,
        answer=tables.answer(export),
        highlights=tables.highlights(export),
        decision=decision,
        basis=_basis(decision) if decision else (),
        more=more_command(decision) if decision else "",
        candidates=tables.candidates_table(decision) if decision else None,
        bought=tables.bought_table(decision),
        added=added_title(decision) if decision else "",
        diagnosis=diagnosis,
        lacking=lambda part: (diagnosis and diagnosis.missing.get(part)) or NOT_MEASURED,
        fit_verdict=FITTING[diagnosis.fit.verdict] if diagnosis and diagnosis.fit else "",
        pictures=[*pictures(diagnosis.errors)] if diagnosis and diagnosis.errors else (),
        trials=tables.trials_table(export),
        left_out=export.left_out,
        pruning=tables.pruning_text(export),
        cost=tables.cost_text(export),
        space=_space(export),
        configuration=_configuration(export),
        sweep_file=_sweep_file(export),
        data_facts=tables.data_facts(export),
        versions=export.study.versions.items(),
        sources=tables.sources_table(shown, {"": commands}),
    )


def page_of_two(one: Export, other: Export) -> str:
    """Draw two studies side by side."""
    both = one, other
    names = [export.study.name for export in both]
    charts = {
        "against": against_chart(both),
        "histories": histories_chart(one, other),
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
                "answer": tables.answer(export),
                "undecided": "" if export.decision else tables.commands_of(export)["decide"],
            }
            for export in both
        ],
        warnings=[*tables.unlike(one, other)],
        compared=Table(("fact", *names), [*tables.side_by_side(both)], aligned=False),
        differences=Table(("setting", *names), rows, aligned=False),
        sources=tables.sources_table(
            shown, {export.study.name: tables.commands_of(export) for export in both}
        ),
    )


def generator(*exports: Export) -> str:
    """What a page says of its origin: regtune, and the uids of the studies that it shows."""
    return " ".join(("regtune", *(export.study.uid for export in exports)))


def shows(path: Path, exports: Sequence[Export]) -> bool:
    """Whether the file at `path` is a report of these studies, whenever it was drawn."""
    with path.open("rb") as file:
        head = file.read(4096).decode("utf-8", "replace")
    return f'<meta name="generator" content="{generator(*exports)}">' in head


def _render(template: str, **context: Any) -> str:
    from markupsafe import Markup

    scripts = {"theme_js": _asset("theme.js"), "plotly_js": plotly_js(), "page_js": _asset("page.js")}
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts.values())
    policy = (  # Plotly compiles the shaders' code of parallel coordinates, hence 'unsafe-eval'
        f"default-src 'none'; script-src {hashes} 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    trusted = {name: Markup(script) for name, script in scripts.items()}  # noqa: S704
    css = Markup(_asset("page.css"))  # noqa: S704
    of_page = {"policy": policy, "css": css, "version": __version__}
    return _environment().get_template(template).render(**of_page, **trusted, **context)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("regtune.evidence.report", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["sentence"] = as_sentence
    return environment


def _asset(name: str) -> str:
    return (files("regtune.evidence.report") / "template" / name).read_text(encoding="utf-8")


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
        "decision": decision and decision_chart(export, decision),
        "bought": [*bought_charts(decision)] if decision else [],
        "bias": [], "fit": None, "errors": [],
        "curves": [*curve_charts(export)],
        "parallel": parallel_chart(export),
        "history": history_chart(export),
        "importance": None, "parameters": [],
        "pruning": pruning_chart(export),
        "cost": cost_chart(export),
    }  # fmt: skip
    if diagnosis is None:
        return charts
    if diagnosis.bias_variance:
        charts["bias"] = [*bias_variance_charts(diagnosis.bias_variance)]
    if diagnosis.fit:
        charts["fit"] = fit_chart(diagnosis.fit)
    if diagnosis.errors:
        of_errors = calibration_chart, confusion_chart
        charts["errors"] = [chart for draw in of_errors if (chart := draw(diagnosis.errors))]
    charts["importance"] = importance_chart(diagnosis)
    charts["parameters"] = [*parameter_charts(diagnosis, export.study.space)]
    return charts


def _named(charts: Iterable[Any]) -> Iterable[tuple[str, Chart]]:
    for one in charts:
        for chart in one if isinstance(one, list) else [one]:
            if chart:
                yield chart.key, chart


def _basis(decision: Decision) -> list[str]:
    return [f"{basis_text(decision)} {end_text(decision)}", *decision.notes]


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
