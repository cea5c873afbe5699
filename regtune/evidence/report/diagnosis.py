"""Charts of a diagnosis: bias and variance, learning curve over images, parameters, confusions, calibration."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Iterator

from regtune.config.trial import format_number
from regtune.evidence.diagnosis import BiasVariance, Errors, Fit, Mistake
from regtune.evidence.report.charts import (
    Chart,
    Json,
    Table,
    axis,
    layout,
    log_axis,
    rows_axis,
    scale,
    vertical,
)

SIDE = 28
"""Pixels on one side of an image."""


def bias_variance_charts(found: BiasVariance) -> Iterator[Chart]:
    """Bias, variance and their sum along a strength: for the 0/1 loss, and for the Brier score."""
    parts: dict[str, tuple[tuple[str, str, str], str | None, float, str]] = {
        "0/1 loss": (("loss", "bias", "variance"), "loss_error", found.minimum, "Domingos 2000"),
        "Brier score": (
            ("brier", "brier_bias", "brier_variance"),
            "brier_error",
            found.brier_minimum,
            "Brier 1950",
        ),
    }
    strengths = [point.value for point in found.points]
    places = scale(
        strengths,
        log=found.log,
        low=min(filter(None, strengths) if found.log else strengths, default=0),
        high=max(strengths),
    )
    styles: dict[str, Json] = {
        "expected loss": {"color": "@ink", "width": 3},
        "bias": {"color": "@blue", "width": 2},
        "variance": {"color": "@orange", "width": 2, "dash": "6px 3px"},
    }
    for title, (names, error, minimum, source) in parts.items():
        percent = 100 if title == "0/1 loss" else 1
        data = list[Json]()
        for name, (shown, line) in zip(names, styles.items(), strict=True):
            errors = [getattr(point, error) for point in found.points] if name == names[0] and error else []
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": shown,
                    "x": [places.at(value) for value in strengths],
                    "y": [percent * getattr(point, name) for point in found.points],
                    "line": line,
                    "marker": {"size": 7, "color": line["color"]},
                    "hovertemplate": "%{y:.3~g}",
                    **({"error_y": _bars([percent * (one or 0) for one in errors])} if any(errors) else {}),
                }
            )
        ends = min(places.positions.values()), max(places.positions.values())
        pad = 0.04 * ((ends[1] - ends[0]) or 1)
        reach = [ends[0] - pad, ends[1] + pad]
        same = found.choice == minimum
        words = " least loss and choice " if same else " least loss "
        marks = [vertical(places.at(minimum), words, "@green", reach)]
        if not same and found.choice in places.positions:
            marks.append(vertical(places.at(found.choice), " choice ", "@purple", reach, line=1))
        yield Chart(
            key=f"bias-{names[0]}",
            title=f"{title} along {found.along}",
            says=(
                f"Means over trainings on bootstrap samples of the images ({source})"
                f"{', in percent' if percent == 100 else ''}; bars are standard errors."
            ),
            data=data,
            layout=layout(
                340,
                axis(
                    f"{found.along}{', log' if found.log else ''}",
                    tickvals=[*places.tickvals],
                    ticktext=[*places.ticktext],
                    range=reach,
                    showgrid=False,
                ),
                axis(rangemode="tozero"),
                showlegend=True,
                hovermode="x unified",
                shapes=[shape for shape, _ in marks],
                annotations=[text for _, text in marks],
                margin={"l": 4, "r": 14, "t": 84, "b": 48},
                legend={"y": 1.2},
            ),
            table=Table(
                (found.along, "trainings", "expected loss", "bias", "variance"),
                [
                    (
                        format_number(point.value),
                        str(point.trainings),
                        *(f"{percent * getattr(point, name):.4g}" for name in names),
                    )
                    for point in found.points
                ],
            ),
            source="diagnosis.bias_variance.points",
            small=True,
        )


def _bars(errors: list[float]) -> Json:
    return {"type": "data", "array": errors, "thickness": 1.5, "width": 0, "color": "@ink"}


def fit_chart(fit: Fit) -> Chart:
    """Cross-entropy over the number of training images."""
    lines = {
        "validation": ("val_cross_entropy", "@blue", "solid"),
        "training": ("train_cross_entropy", "@teal", "dot"),
    }
    images = [point.images for point in fit.points]
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "x": images,
            "y": [max(getattr(point, figure), 1e-6) for point in fit.points],
            "line": {"color": color, "width": 2.5, "dash": dash},
            "marker": {"size": 7, "color": color},
            "hovertemplate": "%{y:.3~g}",
            **(
                {"error_y": _bars([point.error or 0 for point in fit.points])}
                if figure == "val_cross_entropy"
                else {"fill": "tonexty", "fillcolor": "@blue/10"}
            ),
        }
        for name, (figure, color, dash) in lines.items()
    ]
    values = [value for line in data for value in line["y"]]
    return Chart(
        key="sizes",
        title="Learning curve over training images",
        says="Means over trainings that differ in their seed; the area between the lines is the generalization gap.",
        data=data,
        layout=layout(
            340,
            axis(
                "training images, log",
                type="log",
                tickvals=images,
                ticktext=[f"{n:,}" for n in images],
                showgrid=False,
            ),
            log_axis(values),
            "cross-entropy",
            showlegend=True,
            hovermode="x unified",
            margin={"l": 4, "r": 14, "t": 66, "b": 44},
        ),
        table=Table(
            ("images", "trainings", "training", "validation", "accuracy, %"),
            [
                (
                    f"{point.images:,}",
                    str(point.trainings),
                    f"{point.train_cross_entropy:.4f}",
                    f"{point.val_cross_entropy:.4f}",
                    f"{100 * point.val_accuracy:.2f}",
                )
                for point in fit.points
            ],
        ),
        source="diagnosis.fit.points",
    )


def confusion_chart(errors: Errors) -> Chart | None:
    """The most frequent confusions."""
    shown = errors.confusions
    if not shown:
        return None
    names = [f"{one.true} taken for {one.predicted}" for one in shown]
    return Chart(
        key="confusions",
        title="What is taken for what",
        says=f"The most frequent confusions among {errors.images:,} validation images.",
        data=[
            {
                "type": "bar",
                "orientation": "h",
                "x": [one.count for one in shown],
                "y": [*range(len(shown))],
                "marker": {"color": "@blue"},
                "text": [str(one.count) for one in shown],
                "textposition": "outside",
                "cliponaxis": False,
                "textfont": {"color": "@ink"},
                "hoverinfo": "skip",
                "width": 0.6,
            }
        ],
        layout=layout(
            28 * len(shown) + 30,
            axis(showticklabels=False, showgrid=False, range=[0, 1.12 * max(one.count for one in shown)]),
            rows_axis(names),
            margin={"l": 4, "r": 10, "t": 6, "b": 10},
        ),
        table=Table(
            ("confusion", "images"), [(name, str(one.count)) for name, one in zip(names, shown, strict=True)]
        ),
        source="diagnosis.errors.confusions",
        small=True,
    )


def calibration_chart(errors: Errors) -> Chart | None:
    """How often predictions of one confidence are right."""
    bins = errors.reliability
    if not bins:
        return None
    most = max(one.count for one in bins)
    diagonal = {"type": "line", "xref": "x", "yref": "y", "x0": 0, "x1": 100, "y0": 0, "y1": 100}
    return Chart(
        key="calibration",
        title="Calibration",
        says=(
            "On the diagonal, a confidence is as good as its word; below it, the network is overconfident. Larger dots "
            "hold more images. "
            f"The expected calibration error is {100 * errors.ece:.2f} %."
        ),
        data=[
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": [100 * one.confidence for one in bins],
                "y": [100 * one.accuracy for one in bins],
                "line": {"color": "@blue", "width": 2},
                "marker": {
                    "color": "@blue",
                    "opacity": 1,
                    "size": [7 + 15 * math.sqrt(one.count / most) for one in bins],
                },
                "cliponaxis": False,
                "hovertext": [
                    f"confidence {100 * one.confidence:.1f} %<br>right {100 * one.accuracy:.1f} %<br>{one.count} images"
                    for one in bins
                ],
                "hoverinfo": "text",
            }
        ],
        layout=layout(
            310,
            axis("confidence, %", range=[0, 104], showgrid=False),
            axis(range=[0, 104]),
            "right, %",
            shapes=[{**diagonal, "line": {"color": "@muted", "width": 1, "dash": "dot"}}],
        ),
        table=Table(
            ("confidence, %", "right, %", "images"),
            [(f"{100 * one.confidence:.1f}", f"{100 * one.accuracy:.1f}", str(one.count)) for one in bins],
        ),
        source="diagnosis.errors.reliability",
        small=True,
    )


def pictures(errors: Errors) -> Iterator[tuple[Mistake, str]]:
    """The most confident mistakes, each with its image as a data URL."""
    for mistake in errors.mistakes:
        try:
            pixels = base64.b64decode(mistake.pixels, validate=True)
        except ValueError:
            continue
        if len(pixels) == SIDE * SIDE:
            yield mistake, "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def png(pixels: bytes) -> bytes:
    """A grey picture of SIDE x SIDE bytes, dark on light, as PNG (ISO/IEC 15948)."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    dark = bytes(255 - value for value in pixels)
    lines = b"".join(b"\0" + dark[at : at + SIDE] for at in range(0, len(dark), SIDE))
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines, 9)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
