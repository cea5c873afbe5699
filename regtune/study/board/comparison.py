"""The winner against no technique: the difference, and the standard error of one accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from regtune.study.board.rows import Board, Row


@dataclass(frozen=True)
class Comparison:
    """The best trial and the control `none`, one run each.

    value_by, accuracy_by: value and validation accuracy of the best trial minus those of the control.
    standard_error: of one validation accuracy, sqrt(p (1 - p) / n) over the n validation
    images; None where n is unknown.
    """

    metric: str
    winner: Row
    baseline: Row | None
    value_by: float | None
    accuracy_by: float | None
    standard_error: float | None


def compare(board: Board) -> Comparison | None:
    """Compare the best trial with the control `none`; None when no trial is complete."""
    winner, info = board.best, board.info
    if winner is None:
        return None
    baseline = next((row for row in board.rows if row.rank and row.control == "none"), None)
    images = info.data.get("validation")
    accuracy = winner.accuracy
    standard_error = None
    if isinstance(images, int) and images > 0 and accuracy is not None:
        standard_error = math.sqrt(accuracy * (1 - accuracy) / images)
    value_by = accuracy_by = None
    if baseline is not None and baseline is not winner:
        value_by = (winner.value or 0.0) - (baseline.value or 0.0)
        if accuracy is not None and baseline.accuracy is not None:
            accuracy_by = accuracy - baseline.accuracy
    return Comparison(info.metric, winner, baseline, value_by, accuracy_by, standard_error)


def top_and_controls(rows: Sequence[Row], count: int) -> list[Row]:
    """Of `rows`, which are in the order of rank: the best `count`, and every control."""
    return [row for place, row in enumerate(rows) if (place < count and row.rank) or row.control]
