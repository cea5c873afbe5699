"""How far the decision of a study is, read from its replicates, for a person who watches it from another terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sqlalchemy import Connection

from regtune.study import tables
from regtune.study.decision import named, replicates_of
from regtune.study.progress import Deciding, Row, StudyInfo

FIRST_LOOK = 4  # replicates of each candidate; each look doubles them


def read_replicates(connection: Connection, info: StudyInfo) -> list[Row]:
    """Read the replicates of a study as rows, running ones too. Raises StorageError."""
    rows = []
    for one in replicates_of(tables.read_replicates(connection, info.id)):
        number = int(one.candidate[1:]) if one.candidate.startswith("t") else -1
        name = named(one.candidate)
        value = one.record.figure(info.metric) if one.record.kept else None
        state = one.record.end_state or "RUNNING"
        rows.append(Row(number, state, value, one.record.now, replicate=(name, one.index), vary=one.vary))
    return rows


def under_way(rows: Sequence[Row]) -> list[Row]:
    """The replicates of the decision that is running: of the kind of the last that began; none where none is."""
    began = [(row.record.started_ms or 0, row.vary) for row in rows if row.state == "RUNNING" and row.record]
    return [row for row in rows if row.vary == max(began)[1]] if began else []


def deciding_of(info: StudyInfo, rows: Sequence[Row]) -> Deciding | None:
    """How far the decision is that has these replicates `under_way`; None where there are none."""
    if not rows:
        return None
    named = [(row.replicate[0], row.state == "RUNNING") for row in rows if row.replicate]
    ended = Counter(name for name, running in named if not running)
    decision = info.decision if info.decision and info.decision.vary == rows[0].vary else None
    sign = -1 if info.goal == "maximize" else 1
    tied = decision.with_standing("chosen", "tied") if decision else ()
    leaders = sorted(tied, key=lambda one: sign * one.estimate.mean if one.estimate else 0.0)
    still = [one.candidate.name for one in leaders] or sorted({name for name, _ in named})
    look = 2 * decision.replicates if decision and decision.replicates else FIRST_LOOK
    left = sum(max(0, look - ended[name]) for name in still)
    return Deciding(
        done=ended.total(),
        planned=ended.total() + left,
        look=look,
        candidates=len({name for name, _ in named}),
        open=tuple(still[1:] if leaders else still),
        best=still[0] if leaders else "",
    )
