"""Learning curves of the candidates over their replicates, or of single trials where nothing was replicated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from regtune.evidence.export import Export, ExportedTrial, MeanCurve
from regtune.evidence.report.charts import (
    NONE_LINE,
    SERIES,
    Chart,
    Json,
    Table,
    axis,
    label,
    layout,
    log_axis,
    plain,
    scale_of,
    title_of,
)
from regtune.evidence.report.decision import of_interest
from regtune.study.decision import Decision, Judged


def curve_charts(export: Export) -> Iterator[Chart]:
    """Learning curves: of the candidates over their replicates, or, where nothing was replicated, of single trials."""
    decision, metric = export.decision, export.study.metric
    curves = {one.candidate: one for one in export.curves}
    named = list[tuple[str, MeanCurve]]()
    if decision:
        for one in of_interest(decision):
            if found := curves.get(one.candidate.key):
                role = _role(decision, one)
                named.append((f"{label(one.candidate)[0]}{f' ({role})' if role else ''}", found))
    replicated = bool(named)
    if not replicated:
        named = [*_single(export.trials)]
    named = [(name, one) for name, one in named if one.means.get(metric)]
    if not named:
        return
    yield _together(named, metric, replicated)
    both = [(name, one) for name, one in named if one.means.get("cross_entropy")]
    every = [value for _, one in both for part in one.means for value in _loss(one, part) if value > 0]
    for name, curve in both if every else ():
        yield _apart(name, curve, every, replicated)


def _role(decision: Decision, one: Judged) -> str:
    key = one.candidate.key
    roles = {"chosen": decision.chosen, "best in the search": decision.winner}
    return ", ".join(role for role, of in roles.items() if key == of)


def _single(trials: Sequence[ExportedTrial]) -> Iterator[tuple[str, MeanCurve]]:
    """The curves of the three best trials and of the control without techniques: one run each."""
    complete = [one for one in trials if one.state == "COMPLETE" and one.curves]
    best = [one for one in complete if not one.control][:3]
    for one in (*best, *(one for one in complete if one.control == "none")):
        means = {name: [value for value in curve if value is not None] for name, curve in one.curves.items()}
        name = "no technique" if one.control else f"trial {one.number}"
        kept = float(one.kept_epoch or one.epochs)
        yield name, MeanCurve(candidate=name, replicates=1, kept_epoch=kept, means=means, spread={})


def _together(named: Sequence[tuple[str, MeanCurve]], metric: str, replicated: bool) -> Chart:
    data, scale = list[Json](), scale_of(metric)
    colors = iter(SERIES)
    for place, (name, one) in enumerate(named):
        values = [scale * value for value in one.means[metric]]
        epochs = [*range(1, len(values) + 1)]
        none = name.startswith("no technique")
        color = "@ink" if none else next(colors)
        if place == 0 and one.spread.get(metric):
            still = one.still or [one.replicates] * len(values)
            pairs = zip(one.spread[metric], still, strict=True)
            data += _band(values, [scale * sd / math.sqrt(count) for sd, count in pairs], color)
        line = NONE_LINE if none else {"color": color, "width": 3 if place == 0 else 2}
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": plain(name),
                "x": epochs,
                "y": values,
                "line": line,
                "hovertemplate": "%{y:.4~g}",
            }
        )
    every = [value for line in data for value in line["y"]]
    loss = not metric.endswith("accuracy") and min(every) > 0
    unit = ", %" if scale == 100 else ""
    longest = max(len(one.means[metric]) for _, one in named)
    return Chart(
        key="curves",
        title="Validation curves",
        says=(
            "Means over the replicates that still trained, while at least half of them did; the band is one standard "
            "error of the first."
            if replicated
            else "Single runs: the best trials and no technique."
        ),
        data=data,
        layout=layout(
            400,
            axis("epoch", showgrid=False),
            log_axis(every) if loss else axis(),
            f"{title_of(metric)}{unit}",
            showlegend=True,
            hovermode="x unified",
            margin={"l": 4, "r": 14, "t": 74, "b": 44},
        ),
        narrow={"margin": {"t": 130}},
        table=Table(
            ("epoch", *(name for name, _ in named)),
            [
                (str(epoch + 1), *(_cell(one.means[metric], epoch, scale) for _, one in named))
                for epoch in range(longest)
            ],
        ),
        source="curves" if replicated else "trials[].curves",
    )


def _band(values: Sequence[float], errors: Sequence[float], color: str) -> list[Json]:
    pairs: Mapping[str, int] = {"low": -1, "high": 1}
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [*range(1, len(values) + 1)],
            "y": [value + sign * error for value, error in zip(values, errors, strict=True)],
            "line": {"width": 0},
            "hoverinfo": "skip",
            "showlegend": False,
            **({"fill": "tonexty", "fillcolor": f"{color}/18"} if sign > 0 else {}),
        }
        for sign in pairs.values()
    ]


def _loss(one: MeanCurve, part: str) -> list[float]:
    return one.means.get(part, []) if part in ("cross_entropy", "val_cross_entropy") else []


def _apart(name: str, one: MeanCurve, every: Sequence[float], replicated: bool) -> Chart:
    """Training and validation of one candidate; the area between them is the gap."""
    parts = {"training": ("cross_entropy", "@teal"), "validation": ("val_cross_entropy", "@blue")}
    data = list[Json]()
    for part, (figure, color) in parts.items():
        values = _loss(one, figure)
        line = {"color": color, "width": 2, "dash": "dot" if part == "training" else "solid"}
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": part,
                "x": [*range(1, len(values) + 1)],
                "y": values,
                "line": line,
                "hovertemplate": "%{y:.3~g}",
                **({"fill": "tonexty", "fillcolor": "@blue/10"} if data else {}),
            }
        )
    kept = {"color": "@muted", "width": 1, "dash": "dot"}
    at = {"xref": "x", "yref": "paper", "x0": one.kept_epoch, "x1": one.kept_epoch, "y0": 0, "y1": 1}
    return Chart(
        key=f"curve-{one.candidate}".replace(" ", "-"),
        title=name,
        says=f"Training (dotted) and validation cross-entropy; weights of epoch {one.kept_epoch:.0f} are kept.",
        data=data,
        layout=layout(
            230,
            axis("epoch", showgrid=False),
            log_axis(every),
            hovermode="x unified",
            shapes=[{"type": "line", "line": kept, **at}],
            margin={"l": 4, "r": 8, "t": 8, "b": 44},
        ),
        table=Table(
            ("epoch", *parts),
            [
                (str(epoch + 1), *(f"{one.means[figure][epoch]:.4g}" for figure, _ in parts.values()))
                for epoch in range(len(one.means["cross_entropy"]))
            ],
        ),
        small=True,
        source="curves" if replicated else "trials[].curves",
    )


def _cell(values: Sequence[float], epoch: int, scale: int) -> str:
    return f"{scale * values[epoch]:.4g}" if epoch < len(values) else ""
