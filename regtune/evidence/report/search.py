"""Charts of a search: parallel coordinates, its history, what pruning ended, its cost; two searches side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from regtune.evidence.export import Export, ExportedTrial, SearchedParameter
from regtune.evidence.report.charts import (
    Chart,
    Json,
    Table,
    axis,
    layout,
    log_axis,
    plain,
    rows_axis,
    scale,
    scale_of,
    title_of,
)

TABLE = "all-trials"
"""The anchor of the table with every trial."""


def complete(export: Export) -> list[ExportedTrial]:
    """The complete trials, the best first."""
    return [one for one in export.trials if one.state == "COMPLETE" and one.value is not None]


def parallel_chart(export: Export) -> Chart | None:
    """Every complete trial as a line through its parameters to its metric."""
    metric, shown = export.study.metric, scale_of(export.study.metric)
    names = [one.name for one in export.study.space if len({*_values(complete(export), one.name)}) > 1]
    trials = [one for one in complete(export) if all(one.parameters.get(name) is not None for name in names)]
    if len(trials) < 3 or not names:
        return None
    dimensions = [_dimension(one, trials) for one in export.study.space if one.name in names]
    values = [shown * one.value for one in trials if one.value is not None]
    low, high = min(values), max(values)
    pad = 0.03 * (high - low) or 0.01
    dimensions.append(
        {
            "label": title_of(metric).replace(" ", "<br>") + (", %" if shown == 100 else ""),
            "values": values,
            "range": [low - pad, high + pad],
            "tickformat": ".4~g",
            "nticks": 7,
        }
    )
    best = -1 if export.study.goal == "maximize" else 1
    ordered = sorted(values)
    middle = ordered[len(ordered) // 2]
    ends = (low, middle) if best == 1 else (middle, high)
    colors = [[0, "@blue"], [0.5, "@teal"], [1, "@faint"]]
    line = {
        "color": values,
        "colorscale": colors if best == 1 else [[0, "@faint"], [0.5, "@teal"], [1, "@blue"]],
        "cmin": ends[0],
        "cmax": ends[1],
    }
    return Chart(
        key="parallel",
        title="Parallel coordinates",
        says=(
            "Each line is a complete trial; the stronger its colour, the better. Drag along an axis to keep the trials "
            "that pass through a range, click it to take the range away, drag a name to move its axis."
        ),
        data=[
            {
                "type": "parcoords",
                "dimensions": dimensions,
                "line": line,
                "ids": [str(one.number) for one in trials],
                "labelfont": {"size": 13, "color": "@ink"},
                "tickfont": {"size": 12, "color": "@muted"},
                "rangefont": {"size": 11, "color": "@clear"},
                "unselected": {"line": {"color": "@line", "opacity": 0.6}},
            }
        ],
        layout=layout(
            420, axis(), axis(), margin={"l": 72, "r": 104, "t": 60, "b": 24}, paper_bgcolor="@surface"
        ),
        table=TABLE,
        source="trials[].parameters, trials[].value",
    )


def _values(trials: Sequence[ExportedTrial], name: str) -> list[object]:
    return [one.parameters.get(name) for one in trials]


def _dimension(one: SearchedParameter, trials: Sequence[ExportedTrial]) -> Json:
    values = _values(trials, one.name)
    over = scale(values, log=one.log, low=one.low, high=one.high, order=one.values)
    low, high = over.reach
    pad = 0.03 * (high - low)
    return {
        "label": plain(one.name) + (", log" if one.log else ""),
        "values": [over.at(value) for value in values],
        "tickvals": [*over.tickvals],
        "ticktext": [plain(text) for text in over.ticktext],
        "range": [low - pad, high + pad],
    }


def history_chart(export: Export) -> Chart | None:
    """The metric of every trial in the order of the search, and the best so far."""
    metric, shown = export.study.metric, scale_of(export.study.metric)
    ended = sorted((one for one in export.trials if one.value is not None), key=lambda one: one.number)
    if not any(one.state == "COMPLETE" for one in ended):
        return None
    kinds: dict[str, tuple[Callable[[ExportedTrial], bool], Json]] = {
        "complete": (
            lambda one: one.state == "COMPLETE" and not one.control,
            {"color": "@blue", "size": 9, "symbol": "circle"},
        ),
        "control": (
            lambda one: one.state == "COMPLETE" and bool(one.control),
            {"color": "@surface", "size": 9, "symbol": "square", "line": {"color": "@ink", "width": 1.5}},
        ),
        "pruned": (
            lambda one: one.state == "PRUNED",
            {"color": "@orange", "size": 7, "symbol": "x-thin-open", "line": {"width": 2}},
        ),
    }
    data = [_best_so_far(export)]
    for kind, (belongs, marker) in kinds.items():
        of_kind = [one for one in ended if belongs(one)]
        if of_kind:
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": kind,
                    "x": [one.number for one in of_kind],
                    "y": [shown * (one.value or 0) for one in of_kind],
                    "marker": marker,
                    "hovertext": [_hover(one, shown) for one in of_kind],
                    "hoverinfo": "text",
                }
            )
    values = [value for line in data for value in line["y"]]
    loss = not metric.endswith("accuracy") and min(values) > 0
    return Chart(
        key="history",
        title="History of the search",
        says="Single runs, one each, in the order in which they began; the line is the best complete trial so far."
        + (f" The {export.left_out:,} last trials of the board are left out." if export.left_out else ""),
        data=data,
        layout=layout(
            380,
            axis("trial", showgrid=False),
            log_axis(values) if loss else axis(),
            title_of(metric) + (", %" if shown == 100 else ""),
            showlegend=True,
            hovermode="closest",
            margin={"l": 4, "r": 14, "t": 64, "b": 44},
        ),
        table=TABLE,
        source="trials[].value",
    )


def _best_so_far(export: Export, name: str = "best so far", color: str = "@ink") -> Json:
    shown, numbers, bests = scale_of(export.study.metric), list[int](), list[float]()
    better = max if export.study.goal == "maximize" else min
    for one in sorted(complete(export), key=lambda one: one.number):
        numbers.append(one.number)
        bests.append(better([*bests[-1:], shown * (one.value or 0)]))
    return {
        "type": "scatter",
        "mode": "lines",
        "name": plain(name),
        "x": numbers,
        "y": bests,
        "line": {"color": color, "width": 2, "shape": "hv"},
        "hovertemplate": "%{y:.4~g}",
    }


def _hover(one: ExportedTrial, shown: int) -> str:
    kind = f"control {one.control}: " if one.control else ""
    return f"<b>trial {one.number}</b><br>{plain(kind + one.mix)}<br>{shown * (one.value or 0):.4g}"


def pruning_chart(export: Export) -> Chart | None:
    """The learning curves of the pruned trials, over those of the complete ones."""
    metric, shown = export.study.metric, scale_of(export.study.metric)
    curves = {
        state: [one for one in export.trials if one.state == state and one.curves.get(metric)]
        for state in ("COMPLETE", "PRUNED")
    }
    pruned = curves["PRUNED"]
    if not pruned:
        return None
    data = list[Json]()
    for state, color, width in (("COMPLETE", "@faint/60", 1), ("PRUNED", "@orange/60", 1.25)):
        x, y = list[int | None](), list[float | None]()
        for one in curves[state]:
            curve = one.curves[metric]
            x += [*range(1, len(curve) + 1), None]
            y += [*(None if value is None else shown * value for value in curve), None]
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": state.lower(),
                "x": x,
                "y": y,
                "line": {"color": color, "width": width},
                "hoverinfo": "skip",
            }
        )
    data.append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": "pruned here",
            "x": [one.epochs for one in pruned],
            "y": [None if (last := one.curves[metric][-1]) is None else shown * last for one in pruned],
            "marker": {"color": "@orange", "size": 9, "symbol": "x-thin-open", "line": {"width": 2}},
            "hovertext": [
                f"<b>trial {one.number}</b>, epoch {one.epochs}<br>{plain(one.mix)}" for one in pruned
            ],
            "hoverinfo": "text",
        }
    )
    values = [value for line in data for value in line["y"] if value is not None]
    ended = Counter(one.epochs for one in export.trials if one.state == "PRUNED")
    loss = not metric.endswith("accuracy") and min(values) > 0
    return Chart(
        key="pruning",
        title="What pruning ended, and when",
        says="Learning curves of single runs: grey came to their end, orange were pruned where the cross is.",
        data=data,
        layout=layout(
            380,
            axis("epoch", showgrid=False),
            log_axis(values) if loss else axis(),
            title_of(metric) + (", %" if shown == 100 else ""),
            showlegend=True,
            hovermode="closest",
            margin={"l": 4, "r": 14, "t": 64, "b": 44},
        ),
        table=Table(
            ("pruned after epoch", "trials"),
            [(str(epoch), str(count)) for epoch, count in sorted(ended.items())],
        ),
        source="trials[].curves",
    )


def cost_chart(export: Export) -> Chart | None:
    """Epochs by what they were trained for."""
    costs = export.costs
    if not costs:
        return None
    texts = [f"{one.epochs:,} epochs, {span(one.seconds)}" for one in costs]
    most = max(one.epochs for one in costs) or 1
    return Chart(
        key="cost",
        title="Epochs trained",
        says="Seconds are those of training, of all workers together.",
        data=[
            {
                "type": "bar",
                "orientation": "h",
                "x": [one.epochs for one in costs],
                "y": [*range(len(costs))],
                "marker": {"color": ["@teal" if one.what == "replicates" else "@blue" for one in costs]},
                "text": texts,
                "textposition": "outside",
                "cliponaxis": False,
                "textfont": {"size": 12.5, "color": "@ink"},
                "hoverinfo": "skip",
                "width": 0.55,
            }
        ],
        layout=layout(
            44 * len(costs) + 40,
            axis(range=[0, most * 1.5], showticklabels=False, showgrid=False),
            rows_axis([one.what for one in costs]),
            margin={"l": 4, "r": 10, "t": 6, "b": 12},
        ),
        narrow={"xaxis": {"range": [0, most * 3]}},
        table=Table(
            ("for", "trainings", "epochs", "seconds"),
            [(one.what, f"{one.trainings:,}", f"{one.epochs:,}", f"{one.seconds:,.1f}") for one in costs],
        ),
        source="costs",
    )


def span(seconds: float) -> str:
    """``40 s``, ``6.2 min``, ``1.3 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def histories_chart(one: Export, other: Export) -> Chart | None:
    """The best so far of two searches over their trials."""
    if not complete(one) or not complete(other) or one.study.metric != other.study.metric:
        return None
    data = [_best_so_far(one, one.study.name, "@blue"), _best_so_far(other, other.study.name, "@orange")]
    metric = one.study.metric
    values = [value for line in data for value in line["y"]]
    loss = not metric.endswith("accuracy") and min(values) > 0
    return Chart(
        key="histories",
        title="The best so far",
        says="The best complete trial of each search after so many trials: single runs, which flatter.",
        data=data,
        layout=layout(
            380,
            axis("trial", showgrid=False),
            log_axis(values) if loss else axis(),
            title_of(metric) + (", %" if scale_of(metric) == 100 else ""),
            showlegend=True,
            hovermode="x unified",
            margin={"l": 4, "r": 14, "t": 64, "b": 44},
        ),
        table=Table(
            ("study", "complete trials", "best"),
            [
                (export.study.name, str(len(line["x"])), f"{line['y'][-1]:.4g}")
                for export, line in zip((one, other), data, strict=True)
            ],
        ),
        source="trials[].value",
    )
