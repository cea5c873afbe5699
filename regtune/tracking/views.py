"""The saved view of an experiment in MLflow: trials best first, with their parameters and figures.

MLflow 3.17 keeps a view as a tag of the experiment, `mlflow.sharedViewState.KEY`: an envelope around the page's own
state as JSON. A page's address may name the key. What a page cannot read it passes over: another version of MLflow
would show the table without the view, and lose nothing else.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from regtune.tracking import names
from regtune.tracking.facts import StudyFacts

KEY = "regtune-best-first"
TITLE = "Trials, best first"
CHARTS, CURVES, BEST, WEIGHTS = "regtune-parameters", "regtune-curves", "regtune-best", "regtune-weights"
NARROW, WIDE, NAME = 88, 165, 290
"""Widths of the table's columns in pixels: a parameter, a figure, the run's name; chosen for a page of 1440."""


def view_tag(facts: StudyFacts) -> dict[str, str]:
    """The experiment's tag that holds the view. The same for the same facts."""
    at = facts.created_ms or 0
    envelope = {"name": TITLE, "createdAt": at, "updatedAt": at, "state": json.dumps(_state(facts))}
    return {f"mlflow.sharedViewState.{KEY}": json.dumps(envelope)}


def runs_path(experiment_id: str) -> str:
    """Where on an MLflow server the view is, to be appended to its address."""
    return f"/#/experiments/{quote(experiment_id)}/runs?viewStateShareKey={KEY}&workflowType=machine_learning"


def _state(facts: StudyFacts) -> dict[str, Any]:
    metric = names.best(facts.metric)
    kind = names.TRIAL if facts.retrained is None else names.RETRAINING
    figures = list(dict.fromkeys((metric, names.best("val_accuracy"))))
    widths = {
        "attributes.`Run Name`": NAME,
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
        "selectedColumns": list(widths)[1:],
        "columnOrder": list(widths),
        "columnWidths": widths,
        "runsHiddenMode": "SHOW_ALL",
        "hideEmptyCharts": True,
        "isAccordionReordered": True,
        "compareRunSections": [
            {**_SECTION, "uuid": CHARTS, "name": "Parameters to accuracy", "columns": 1, "cardHeight": 420},
            {**_SECTION, "uuid": CURVES, "name": "Model metrics"},
            {**_SECTION, "uuid": BEST, "name": "best"},
            {**_SECTION, "uuid": WEIGHTS, "name": "weights"},
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
            *(_chart("LINE", CURVES, name) for name in reversed(names.EPOCH_METRICS)),
            *(_chart("BAR", BEST, name) for name in (*figures, names.BEST_GAP, names.BEST_EPOCH)),
            *(_chart("BAR", WEIGHTS, name) for name in (names.SPARSITY, names.L2_NORM)),
        ],
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
