"""MLflow's pages for people who do not know regtune: descriptions of what the rows are, and the trials' saved view.

MLflow 3.17 keeps a view as a tag of the experiment, `mlflow.sharedViewState.KEY`: an envelope around the page's own
state as JSON. A page's address may name the key. What a page cannot read it passes over: another version of MLflow
would show the table without the view, and lose nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from regtune.config.trial import METRICS, format_number
from regtune.escaping import code, markdown, printable, shell_word
from regtune.study.decision import Decision
from regtune.study.decision_text import sentence
from regtune.tracking import names
from regtune.tracking.replicates import label
from regtune.tracking.runs import Run
from regtune.tracking.studies import ParentState, RetrainedFrom, StudyFacts

KEY = "regtune-best-first"
TITLE = "Trials, best first"
REPLICATES_KEY = "regtune-replicates"
REPLICATES_TITLE = "Replicates by candidate"
CHARTS, CURVES, BEST, WEIGHTS = "regtune-parameters", "regtune-curves", "regtune-best", "regtune-weights"
SECTIONS = {CURVES: "Model metrics", BEST: "best", WEIGHTS: "weights"}
LONGEST_GROUPS = 8000
"""Characters of the groups that are closed; MLflow keeps a view in a tag of 20,000."""
NARROW, MARK, WIDE, NAME = 88, 125, 165, 290
"""Widths of the table's columns in pixels, for a page of 1440: a parameter, a mark, a figure, the run's name."""


def experiment_note(facts: StudyFacts) -> str:
    """Markdown for the experiment's page."""
    metric = names.best(facts.metric)
    better = "lower" if facts.goal == "minimize" else "higher"
    searched = ", ".join(map(code, facts.parameters))
    rows = (
        f"Each *study* is one sweep of {searched}. The runs under it are its trials: one network each, named "
        "by number and technique mix. The *controls* use no technique, or one alone: what every mix has to beat. "
        f"*Views*, then *{TITLE}*, lists all trials with their parameters."
    )
    if facts.retrained is not None:
        rows = "Each *training* is one configuration that `regtune train` trained; the run under it has its figures."
    return "\n\n".join(
        (
            f"Which regularization makes this network generalize best? {markdown(facts.description)}".strip(),
            f"**Rows.** {rows}",
            f"**Figures.** `{metric}` is what the sweep {facts.goal}s ({better} is better). All `best/` figures are "
            "those of the weights a trial keeps; of a pruned one, those of its best epoch. Cross-entropy here never "
            "contains the L1 or L2 penalty, so it compares across strengths. `best/generalization_gap` is validation "
            "minus training cross-entropy: near 0 is good.",
            "**Status.** Finished: trained to its end. Killed: pruned because others did better (`regtune.state` says "
            "PRUNED), or stopped. Failed: diverged or broke; `regtune.end_reason` says how.",
            "**Compare.** The chart symbol above the table draws every trial from its parameters to its accuracy, and "
            "all curves. Or select trials and press *Compare*.",
        )
    )


def study_note(facts: StudyFacts, state: ParentState, winner: int | None, best: Run | None) -> str:
    """Markdown for the parent run's page. winner: number of the best trial; best: its run."""
    data, again = facts.data, facts.retrained
    paragraphs = []
    if facts.decision is not None:
        run = "The replicates are under the run *decision* beside this one."
        paragraphs.append(f"**Decision.** {markdown(sentence(facts.decision))} {run}")
    wanted = dict.fromkeys((names.best(facts.metric), names.best("val_accuracy"), names.BEST_GAP))
    figures = {} if best is None else {name: best.last[name][1] for name in wanted if name in best.last}
    if winner is not None and best is not None and figures:
        said = ", ".join(
            f"{name.removeprefix('best/')} {_figure(name, value)}" for name, value in figures.items()
        )
        who = "Best trial" if state == "FINISHED" else "Best so far"
        who = "Best single run" if facts.decision is not None else who
        who = f"{who}: #{winner:03d}" if again is None else "Trained:"
        mix = markdown(best.tags.get(names.MIX, ""))
        paragraphs.append(f"**{who} {mix}** with {said}. The metrics of this page are that trial's.")
    if again is None:
        stands = {
            "RUNNING": "is running",
            "FINISHED": "has ended",
            "KILLED": "was interrupted",
            "FAILED": "broke off",
        }
        size = "small" if facts.goal == "minimize" else "large"
        paragraphs.append(
            f"The study **{markdown(printable(facts.name))}** {stands[state]}. Its trials are the runs nested under "
            f"this one; `{facts.method}` proposes them, and `{facts.metric}` is to be as {size} as possible."
        )
    else:
        paragraphs.append(f"{_origin(again)} Its run is nested under this one.")
    paragraphs.append(
        f"Data: {markdown(printable(data.name))}, {data.train:,} training and {data.validation:,} validation images, "
        f"digest `{data.digest[:12]}`."
    )
    if again is None:
        word = shell_word(facts.name)
        keep = code(f"regtune best {word} -o best.yaml")
        paragraphs.append(f"In a terminal: {code(f'regtune board {word}')}, {keep}.")
    return "\n\n".join(paragraphs)


def trial_note(facts: StudyFacts, number: int) -> str:
    """Markdown for a trial's page."""
    if facts.retrained is not None:
        return _origin(facts.retrained)
    return f"Trial {number} of the study **{markdown(printable(facts.name))}**. {_shown(facts.name, number)}"


def _origin(again: RetrainedFrom) -> str:
    if again.study is None or again.trial is None:
        return "A configuration, trained by `regtune train`."
    study = markdown(printable(again.study))
    return f"Trial {again.trial} of the study **{study}**, trained again. {_shown(again.study, again.trial)}"


def _shown(study: str, number: int) -> str:
    return f"In a terminal: {code(f'regtune show {shell_word(study)} {number}')}."


def _figure(name: str, value: float) -> str:
    return f"{value:.2%}" if name.endswith("accuracy") else format_number(value)


def view_tags(facts: StudyFacts) -> dict[str, str]:
    """The experiment's tags that hold the views. The same for the same facts."""
    at, state = facts.created_ms or 0, _state(facts)
    views = {KEY: (TITLE, state)}
    if facts.decision is not None:
        views[REPLICATES_KEY] = REPLICATES_TITLE, state | _replicates(facts, facts.decision, state)
    return {
        f"mlflow.sharedViewState.{key}": json.dumps(
            {"name": title, "createdAt": at, "updatedAt": at, "state": json.dumps(state)}
        )
        for key, (title, state) in views.items()
    }


def runs_path(experiment_id: str) -> str:
    """Where on an MLflow server the view is, to be appended to its address."""
    return f"/#/experiments/{quote(experiment_id)}/runs?viewStateShareKey={KEY}&workflowType=machine_learning"


def _state(facts: StudyFacts) -> dict[str, Any]:
    metric = names.best(facts.metric)
    kind = names.TRIAL if facts.retrained is None else names.RETRAINING
    figures = _figures(facts)
    widths = {
        "attributes.`Run Name`": NAME,
        **({f"tags.`{names.STANDING}`": MARK} if facts.decision is not None else {}),
        **{f"metrics.`{name}`": WIDE for name in figures},
        **{f"params.`{name}`": NARROW for name in facts.parameters},
        f"metrics.`{names.BEST_GAP}`": WIDE,
        f"tags.`{names.STATE}`": WIDE,
        f"tags.`{names.CONTROL}`": WIDE,
    }
    return {
        "searchFilter": f"tags.`{names.KIND}` = '{kind}'",
        "orderByKey": f"metrics.`{metric}`",
        "orderByAsc": facts.goal == "minimize",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        **_columns(widths),
        "runsHiddenMode": "SHOW_ALL",
        "hideEmptyCharts": True,
        "isAccordionReordered": True,
        "compareRunSections": [
            {**_SECTION, "uuid": CHARTS, "name": "Parameters to accuracy", "columns": 1, "cardHeight": 420},
            *({**_SECTION, "uuid": uuid, "name": name} for uuid, name in SECTIONS.items()),
        ],
        "compareRunCharts": [
            {
                "type": "PARALLEL",
                "uuid": "regtune-parallel",
                "metricSectionId": CHARTS,
                "runsCountToCompare": 500,
                "selectedParams": list(facts.parameters),
                "selectedMetrics": [names.best("val_accuracy")],
                "showAllRuns": True,
                "deleted": False,
                "isGenerated": False,
            },
            *(_chart("LINE", CURVES, name) for name in reversed(METRICS)),
            *(_chart("BAR", BEST, name) for name in (*figures, names.BEST_GAP, names.BEST_EPOCH)),
            *(_chart("BAR", WEIGHTS, name) for name in (names.SPARSITY, names.L2_NORM)),
        ],
    }


def _replicates(facts: StudyFacts, decision: Decision, trials: Mapping[str, Any]) -> dict[str, Any]:
    """Where the view of the replicates differs from that of the trials: a closed group of runs a candidate.

    MLflow's averages are over the first hundred runs. The earliest come first, so that these are as many of each
    candidate that is not beaten.
    """
    figures = *_figures(facts), names.BEST_GAP, *map(names.evidence, ("ece", "brier", "prunable"))
    labels = [label(one.candidate.name, one.candidate.mix) for one in decision.candidates]
    by = {"mode": "tag", "groupByData": names.CANDIDATE}
    closed = {f"tag.{names.CANDIDATE}.{name}": False for name in labels}
    return {
        "searchFilter": f"tags.`{names.KIND}` = '{names.REPLICATE}'",
        "orderByKey": "attributes.start_time",
        "orderByAsc": True,
        **_columns({"attributes.`Run Name`": NAME, **{f"metrics.`{name}`": WIDE for name in figures}}),
        "compareRunSections": trials["compareRunSections"][1:],
        "compareRunCharts": trials["compareRunCharts"][1:],
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [by]},
        "groupsExpanded": closed if len(json.dumps(closed)) < LONGEST_GROUPS else {},
    }


def _figures(facts: StudyFacts) -> list[str]:
    return list(dict.fromkeys((names.best(facts.metric), names.best("val_accuracy"))))


def _columns(widths: Mapping[str, int]) -> dict[str, Any]:
    """The columns of the table, the run's name first; it is always there."""
    return {
        "selectedColumns": list(widths)[1:],
        "columnOrder": list(widths),
        "columnWidths": widths,
    }


def _chart(kind: str, section: str, metric: str) -> dict[str, Any]:
    return {
        "type": kind,
        "uuid": f"regtune-{metric}",
        "metricSectionId": section,
        "runsCountToCompare": 10,
        "metricKey": metric,
        "displayName": metric.rpartition("/")[2],
        "deleted": False,
        "isGenerated": True,
        **(_LINE if kind == "LINE" else {}),
    }


_SECTION = {"display": True, "isReordered": True, "deleted": False, "isGenerated": False}
_LINE = {
    "lineSmoothness": 0,
    "xAxisScaleType": "linear",
    "scaleType": "linear",
    "xAxisKey": "step",
    "selectedXAxisMetricKey": "",
    "yAxisKey": "metric",
    "yAxisExpressions": [],
    "ignoreOutliers": False,
    "range": {},
    "useGlobalXaxisKey": True,
    "useGlobalLineSmoothing": True,
}
