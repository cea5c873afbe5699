"""Charts of a decision: the candidates against no technique, what each technique adds, learning curves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from regtune.evidence.export import Export
from regtune.evidence.report.charts import (
    SERIES,
    ZERO,
    Chart,
    Json,
    Table,
    axis,
    breaking,
    broken,
    dots,
    label,
    layout,
    note,
    plain,
    rows_axis,
    scale_of,
    title_of,
)
from regtune.study.decision import Decision, Estimate, Judged
from regtune.study.decision_text import FIGURES, form_of, signed_text, value_text

COLORS = {"chosen": "@blue", "tied": "@blue", "beaten": "@faint", "diverged": "@faint"}
SYMBOLS = {"chosen": "diamond", "tied": "circle-hollow", "beaten": "circle", "diverged": "x"}
BOUGHT = {
    "val_accuracy": "Accuracy",
    "val_cross_entropy": "Cross-entropy",
    "generalization_gap": "Generalization gap",
    "ece": "Calibration error",
    "brier": "Brier score",
    "prunable": "Prunable weights",
}
"""Figures with a chart of their own; the table has all."""
LOWER = {"val_cross_entropy", "generalization_gap", "ece", "brier", "epochs", "epoch_seconds", "l2_norm"}
MOST_CURVES = 6


def decision_chart(export: Export, decision: Decision) -> Chart | None:
    """Each candidate's difference to no technique, or its mean where that was not measured, with its interval."""
    paired = decision.none is not None and any(one.to_none for one in decision.candidates)
    shown: list[tuple[Judged, Estimate]] = []
    for one in decision.candidates:
        estimate = one.to_none if paired else one.estimate
        if estimate is not None and not (paired and one.candidate.key == "c-none"):
            shown.append((one, estimate))
    if not shown:
        return None
    metric, scale = decision.metric, scale_of(decision.metric)
    unit = "points" if form_of(metric).share else ""
    shown.sort(key=lambda pair: pair[1].mean, reverse=decision.goal == "maximize")
    names = [(name, broken(mix)) for name, mix in (label(one.candidate) for one, _ in shown)]
    lines = 2 + max(mix.count("\n") for _, mix in names)
    text = signed_text if paired else value_text
    hover = [
        f"<b>{plain(name)}</b><br>{breaking(mix)}<br>{text(metric, estimate)}<br>{one.standing}, "
        f"{one.replicates} replicates"
        for (name, mix), (one, estimate) in zip(names, shown, strict=True)
    ]
    data = [_replicate_dots(export, decision, [one for one, _ in shown], paired)]
    data += dots(
        [scale * estimate.mean for _, estimate in shown],
        [scale * (estimate.half_width or 0) for _, estimate in shown],
        [COLORS[one.standing] for one, _ in shown],
        hover,
        [SYMBOLS[one.standing] for one, _ in shown],
    )
    wide, narrow = list[Json](), list[Json]()
    for place, ((name, mix), (one, estimate)) in enumerate(zip(names, shown, strict=True)):
        numbers = f"<b>{text(metric, estimate)}</b><br>{one.standing}"
        at = {"y": place, "yref": "y", "align": "left", "xanchor": "left", "xref": "paper"}
        wide.append(note(numbers, **at, x=1, xshift=14, font={"size": 12.5, "color": "@ink"}))
        wide.append(
            note(
                f"<b>{plain(name)}</b><br>{breaking(mix)}",
                **{**at, "xanchor": "right", "align": "right"},
                x=0,
                xshift=-14,
                font={"size": 12.5, "color": "@ink"},
            )
        )
        over = f"<b>{plain(name)}</b>, {one.standing}<br>{plain(' '.join(mix.split()))}"
        style = {"font": {"size": 11.5, "color": "@ink"}, "bgcolor": "@surface", "borderpad": 1}
        narrow.append(note(over, **at, x=0, yshift=23, **style))
    better = "higher" if decision.goal == "maximize" else "lower"
    what = f"{title_of(metric)}{f', {unit}' if unit else ''}"
    title = (
        f"{what}, difference to no technique ({better} is better)"
        if paired
        else f"{what} ({better} is better)"
    )
    heads = [
        note("no technique", x=0, xref="x", y=1, yref="paper", yanchor="bottom", font={"size": 12, "color": "@ink"})
    ] if paired else []  # fmt: skip
    names_width = 7.6 * max(len(line) for pair in names for text in pair for line in text.split("\n"))
    nameless = rows_axis([""] * len(shown), automargin=False)
    high = len(shown)
    return Chart(
        key="decision",
        title="The candidates against no technique" if paired else "The candidates",
        says=(
            f"Mean of the replicates and its confidence interval at {100 * decision.level:g} %, over all looks; "
            "small dots are single replicates, each paired with that of no technique. "
            "A diamond is chosen, hollow is tied with it, grey is beaten."
        ),
        data=data,
        layout=layout(
            (18 + 16 * lines) * high + 84,
            axis(title, **(ZERO if paired else {})),
            nameless,
            annotations=[*heads, *wide],
            margin={"l": min(380, names_width + 24), "r": 176, "t": 30, "b": 52},
        ),
        narrow={
            "height": 66 * high + 84,
            "margin": {"l": 6, "r": 6, "t": 34, "b": 52},
            "yaxis": {"range": [high - 0.5, -0.8]},
            "annotations": [*heads, *narrow],
            "xaxis": {
                "title": {"text": f"difference to no technique, {better} is better" if paired else what}
            },
        },
        table="candidates",
        source="decision.candidates, replicates",
    )


def _replicate_dots(export: Export, decision: Decision, candidates: Sequence[Judged], paired: bool) -> Json:
    """Single replicates as small dots, their differences to the same replicate of no technique."""
    metric, scale = decision.metric, scale_of(decision.metric)
    values = {
        (one.candidate, one.index): one.figures[metric]
        for one in export.replicates
        if one.vary == decision.vary and metric in one.figures
    }
    x, y = list[float](), list[float]()
    for place, judged in enumerate(candidates):
        for (candidate, index), value in values.items():
            base = values.get(("c-none", index)) if paired else 0.0
            if candidate == judged.candidate.key and base is not None:
                x.append(scale * (value - base))
                y.append(place + 0.24)
    marker = {"size": 5, "color": "@ink/30"}
    return {"type": "scatter", "mode": "markers", "x": x, "y": y, "marker": marker, "hoverinfo": "skip"}


def bought_charts(decision: Decision) -> Iterator[Chart]:
    """What each technique adds: `Judged.added` of the controls, a chart for each figure."""
    controls = decision.techniques
    for figure, title in BOUGHT.items():
        shown = [(one, one.added[figure]) for one in controls if figure in one.added]
        if not shown:
            continue
        scale, form = scale_of(figure), FIGURES[figure]
        unit = "points" if form.share else form.unit.strip()
        colors = [_verdict(figure, estimate) for _, estimate in shown]
        names = [label(one.candidate)[0] for one, _ in shown]
        better = "left is better" if figure in LOWER else "right is better"
        hover = [
            f"<b>{plain(name)}</b><br>{signed_text(figure, estimate)} {unit}"
            for name, (_, estimate) in zip(names, shown, strict=True)
        ]
        means = [scale * estimate.mean for _, estimate in shown]
        widths = [scale * (estimate.half_width or 0) for _, estimate in shown]
        reach = 1.12 * max(1e-9, *(abs(mean) + width for mean, width in zip(means, widths, strict=True)))
        yield Chart(
            key=f"bought-{figure}",
            title=title,
            says=f"Difference{f' in {unit}' if unit else ''}; {better}.",
            data=dots(means, widths, colors, hover),
            layout=layout(
                34 * len(shown) + 46,
                axis(range=[-reach, reach], nticks=4, tickangle=0, **ZERO),
                rows_axis(names, automargin=False),
                margin={"l": 132, "r": 8, "t": 6, "b": 30},
            ),
            small=True,
            table="bought-table",
            source="decision.candidates[].beyond, bought",
        )


def _verdict(figure: str, estimate: Estimate) -> str:
    """Blue where the whole interval is on the better side, orange on the worse one, grey where it has no sign."""
    low, high = estimate.low, estimate.high
    if low is None or high is None or low <= 0 <= high:
        return "@faint"
    return "@blue" if (high < 0) == (figure in LOWER) else "@orange"


def of_interest(decision: Decision) -> list[Judged]:
    """The candidates whose curves are drawn: chosen, no technique, the search's winner, the answer, then the tied."""
    keys = [decision.chosen, "c-none", decision.winner, decision.answer]
    keys += [one.candidate.key for one in decision.with_standing("tied")]
    found = [decision.judged(key) for key in dict.fromkeys(keys)]
    return [one for one in found if one is not None][:MOST_CURVES]


def against_chart(exports: Sequence[Export]) -> Chart | None:
    """What two studies chose, and the best of their controls, against no technique."""
    shown = list[tuple[str, Judged, Estimate, str]]()
    metric = exports[0].study.metric
    for export, color in zip(exports, SERIES, strict=False):
        decision = export.decision
        for one in of_interest(decision) if decision and export.study.metric == metric else ():
            if one.to_none:
                shown.append((export.study.name, one, one.to_none, color))
    if not shown:
        return None
    scale, form = scale_of(metric), form_of(metric)
    names = [f"<b>{plain(study)}</b><br>{plain(label(one.candidate)[0])}" for study, one, _, _ in shown]
    hover = [
        f"{name}<br>{plain(one.candidate.mix)}<br>{signed_text(metric, estimate)}"
        for name, (_, one, estimate, _) in zip(names, shown, strict=True)
    ]
    better = "higher" if exports[0].study.goal == "maximize" else "lower"
    return Chart(
        key="against",
        title="Against no technique",
        says="Paired differences with their intervals; a diamond is what the study chose.",
        data=dots(
            [scale * estimate.mean for _, _, estimate, _ in shown],
            [scale * (estimate.half_width or 0) for _, _, estimate, _ in shown],
            [color for *_, color in shown],
            hover,
            [SYMBOLS["chosen" if one.standing == "chosen" else "tied"] for _, one, _, _ in shown],
        ),
        layout=layout(
            46 * len(shown) + 70,
            axis(f"{title_of(metric)}{', points' if form.share else ''}, {better} is better", **ZERO),
            rows_axis(names),
        ),
        narrow={"xaxis": {"title": {"text": f"{better} is better"}}},
        table=Table(
            ("study", "candidate", "techniques", "difference to no technique"),
            [
                (study, *label(one.candidate), signed_text(metric, estimate))
                for study, one, estimate, _ in shown
            ],
        ),
        source="decision.candidates",
    )
