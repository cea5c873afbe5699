"""An exported model beside the registered network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from regtune.cli.views.drawing import percent
from regtune.cli.views.tables import table
from regtune.registry.export import LARGEST_DIFFERENCE

if TYPE_CHECKING:
    from regtune.registry.export import Exported


def exported_table(rows: Sequence[Exported]) -> RenderableType:
    """A model beside the registered network, over the validation images."""
    registered, written = rows
    right = ("MB", "one image", "accuracy", "largest difference", "other classes")
    drawn = table("model", *right, right=right)
    for row in rows:
        compared = ("", "") if row is registered else (f"{row.difference:.1e}", f"{row.other_classes:,}")
        drawn.add_row(
            row.format,
            f"{row.bytes / 1e6:.3f}",
            f"{1000 * row.seconds_a_digit:.3f} ms",
            percent(row.accuracy),
            *compared,
        )
    parts: list[RenderableType] = [
        drawn,
        Text("over the validation images; the test set stays closed", "dim"),
    ]
    if written.difference > LARGEST_DIFFERENCE:
        points = 100 * (registered.accuracy - written.accuracy)
        parts.append(Text(f"accuracy lost to 8-bit numbers: {points:.2f} points"))
    return Group(*parts)
