"""The winner against the controls: how much better than no technique, and how much of it may be luck."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from regtune.study.board.rows import Row, StudyInfo


@dataclass(frozen=True)
class Comparison:
    """The best trial and the control `none`, one run each.

    better_by: how much better the winner's value is, positive when it is. accuracy_by: its validation
    accuracy minus that of the control. luck: standard error of one validation accuracy, sqrt(p (1 - p) / n)
    over the n validation images; None where n is not known.
    """

    winner: Row
    baseline: Row | None
    better_by: float | None
    accuracy_by: float | None
    luck: float | None


def compare(info: StudyInfo, rows: Sequence[Row]) -> Comparison | None:
    """Compare the best of `rows` with the control `none`; None when no trial is complete."""
    complete = [row for row in rows if row.rank is not None and row.value is not None]
    if not complete:
        return None
    winner = min(complete, key=lambda row: row.rank or 0)
    baseline = next((row for row in complete if row.control == "none"), None)
    images = info.data.get("validation")
    accuracy = winner.accuracy
    luck = None
    if isinstance(images, int) and images > 0 and accuracy is not None:
        luck = math.sqrt(accuracy * (1 - accuracy) / images)
    better_by = accuracy_by = None
    if baseline is not None and baseline is not winner:
        difference = (winner.value or 0.0) - (baseline.value or 0.0)
        better_by = difference if info.goal == "maximize" else -difference
        if accuracy is not None and baseline.accuracy is not None:
            accuracy_by = accuracy - baseline.accuracy
    return Comparison(winner, baseline, better_by, accuracy_by, luck)


def top_and_controls(rows: Sequence[Row], count: int) -> list[Row]:
    """Of `rows`, which are in the order of rank: the best `count`, and every control."""
    return [row for place, row in enumerate(rows) if (place < count and row.rank) or row.control]
