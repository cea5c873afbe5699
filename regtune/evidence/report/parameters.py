"""What a diagnosis tells about each searched parameter: importance, and the metric along it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from regtune.evidence.diagnosis import Diagnosis, ParameterEffect
from regtune.evidence.export import SearchedParameter
from regtune.evidence.report.charts import (
    Chart,
    Json,
    Table,
    as_sentence,
    axis,
    dots,
    layout,
    plain,
    rows_axis,
    scale,
    scale_of,
    title_of,
    word,
)


def importance_chart(found: Diagnosis) -> Chart | None:
    """How much of what makes a trial good each parameter explains."""
    shown = [(one, 100 * one.importance) for one in found.parameters if one.importance is not None]
    if not shown:
        return None
    shown.sort(key=lambda pair: -pair[1])
    widths = [
        (share - 100 * one.low, 100 * one.high - share)
        if one.low is not None and one.high is not None
        else (0.0, 0.0)
        for one, share in shown
    ]
    hover = [f"<b>{plain(one.name)}</b><br>{share:.0f} %" for one, share in shown]
    names = [plain(one.name) for one, _ in shown]
    return Chart(
        key="importance",
        title="Importance of the parameters",
        says=f"PED-ANOVA over {found.complete} complete trials, with its 95 % interval over bootstrap samples of them.",
        data=dots([share for _, share in shown], widths, ["@blue"] * len(shown), hover),
        layout=layout(
            40 * len(shown) + 60,
            axis("share, %", range=[-2, 102]),
            rows_axis(names),
            margin={"l": 4, "r": 14, "t": 6, "b": 40},
        ),
        table=Table(
            ("parameter", "importance, %", "interval, %", "reading"),
            [
                (
                    one.name,
                    f"{share:.0f}",
                    "–"
                    if one.low is None or one.high is None
                    else f"{100 * one.low:.0f} to {100 * one.high:.0f}",
                    one.reading,
                )
                for one, share in shown
            ],
        ),
        source="diagnosis.parameters",
    )


def parameter_charts(found: Diagnosis, space: Sequence[SearchedParameter]) -> Iterator[Chart]:
    """The metric along each parameter, with what the noise of replicates alone would show as a band."""
    searched = {one.name: one for one in space}
    for one in found.parameters:
        if one.points:
            yield _parameter_chart(one, searched.get(one.name), found.metric)


def _parameter_chart(one: ParameterEffect, searched: SearchedParameter | None, metric: str) -> Chart:
    percent = scale_of(metric)
    values = [point.value for point in one.points]
    words = any(isinstance(value, str) for value in values)
    order = searched.values if searched else ()
    low, high = (searched.low, searched.high) if searched else (None, None)
    places = scale(values, log=one.log, low=low, high=high, order=order)
    y = [percent * point.metric for point in one.points]
    most = max(point.count for point in one.points)
    color = "@blue" if one.effect == "matters" else "@faint"
    shapes = list[Json]()
    if one.level is not None and one.noise:
        edges = {"y0": percent * (one.level - one.noise), "y1": percent * (one.level + one.noise)}
        band = {"type": "rect", "xref": "paper", "yref": "y", "x0": 0, "x1": 1, "layer": "below"}
        shapes.append({**band, **edges, "fillcolor": "@ink/8", "line": {"width": 0}})
        y = [*y, *edges.values()]
    left, right = places.reach
    ends = [left - 0.06 * (right - left), right + 0.06 * (right - left)]
    pad = 0.06 * ((max(y) - min(y)) or 1)
    return Chart(
        key=f"along-{one.name}",
        title=f"Along {one.name}",
        says=as_sentence(one.reading),
        data=[
            {
                "type": "scatter",
                "mode": "markers" if words else "lines+markers",
                "x": [places.at(value) for value in values],
                "y": y[: len(values)],
                "line": {"color": color, "width": 2},
                "marker": {
                    "color": color,
                    "size": [6 + 8 * math.sqrt(point.count / most) for point in one.points],
                    "opacity": 1,
                },
                "hovertext": [
                    f"{plain(word(point.value))}<br>{percent * point.metric:.4g}, {point.count} trials"
                    for point in one.points
                ],
                "hoverinfo": "text",
            }
        ],
        layout=layout(
            230,
            axis(
                "log" if one.log else "",
                tickvals=[*places.tickvals],
                ticktext=[*places.ticktext],
                range=ends,
                showgrid=False,
            ),
            axis(range=[min(y) - pad, max(y) + pad], nticks=5),
            shapes=shapes,
            margin={"l": 4, "r": 8, "t": 8, "b": 34},
        ),
        table=Table(
            (one.name, "trials", title_of(metric)),
            [(word(point.value), str(point.count), f"{percent * point.metric:.4g}") for point in one.points],
        ),
        source="diagnosis.parameters[].points",
        small=True,
    )
