"""Draw the README's pictures of the terminal from a finished study: the live view at one moment, end and decision.

    python docs/images/draw_terminal.py STUDY --home mlruns --at 0.6
    chromium --headless --screenshot=terminal.png --window-size=1240,420 docs/images/terminal.svg

The moment is rebuilt from the recorded times of the epochs, so the picture shows what the terminal showed.
"""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, RenderableType

from regtune.cli.views.decision import decision_view
from regtune.cli.views.drawing import sweep_view
from regtune.cli.views.tables import answer_view, board_table, comparison_text
from regtune.settings import load_settings
from regtune.storage import open_engine
from regtune.study.board import compare, read_board, read_top
from regtune.study.progress import Progress, Row, StudyInfo

FOLDER = Path(__file__).resolve().parent


def at_moment(info: StudyInfo, rows: Sequence[Row], share: float) -> tuple[Progress, list[Row]]:
    """The sweep when `share` of its time had gone, and the trials that had ended, oldest first."""
    begun = min(row.record.started_ms or 0 for row in rows if row.record)
    ended = max(row.record.ended_ms or 0 for row in rows if row.record)
    now = begun + int(share * (ended - begun))
    done = sorted(
        (row for row in rows if row.record and (row.record.ended_ms or ended) <= now),
        key=lambda row: row.record.ended_ms or 0 if row.record else 0,
    )
    running = []
    for row in rows:
        record = row.record
        if (
            record
            and record.worker is not None
            and (record.started_ms or 0) <= now < (record.ended_ms or ended)
        ):
            epoch = sum(moment <= now for moment in record.epoch_ended_ms)
            running.append(Row(row.number, "RUNNING", None, record.until(epoch)))
    states = [row.state for row in done]
    cap = info.budget["run_cap"]
    best = min((row for row in done if row.rank), key=lambda row: row.rank or 0, default=None)
    progress = Progress(
        study=info.name,
        metric=info.metric,
        goal=info.goal,
        run_cap=cap,
        timeout_seconds=None,
        complete=states.count("COMPLETE"),
        pruned=states.count("PRUNED"),
        failed=states.count("FAIL"),
        waiting=0,
        elapsed_seconds=(now - begun) / 1000,
        trial_epochs=0,
        best=best,
        running=tuple(running),
    )
    return progress, done


def draw(name: str, width: int, command: str, *parts: RenderableType) -> None:
    """Write one picture."""
    out = Console(width=width, force_terminal=True, color_system="truecolor", record=True, file=io.StringIO())
    out.print(*parts, sep="\n")
    text = re.sub(
        r"@font-face \{.*?\}\s*", "", out.export_svg(title=command, unique_id=name), flags=re.DOTALL
    )
    (FOLDER / f"{name}.svg").write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n")


def main() -> None:
    """Read the study and write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study")
    parser.add_argument("--home", type=Path)
    parser.add_argument("--at", type=float, default=0.6, help="share of the sweep's time, between 0 and 1")
    parser.add_argument("--command", default="regtune sweep sweeps/quickstart.yaml")
    given = parser.parse_args()
    engine = open_engine(load_settings(home=given.home).storage_url)
    whole, top = read_board(engine, given.study), read_top(engine, given.study, 10)
    progress, done = at_moment(whole.info, whole.rows, given.at)
    recent = done[-3:]
    draw("terminal", 100, given.command, sweep_view(progress, recent, width=100, height=30))
    found, decision = compare(top), whole.info.decision
    assert found is not None, "no trial is complete"
    end = answer_view(decision) if decision else comparison_text(found)
    draw("terminal-board", 110, given.command, board_table(top, 110), "", end)
    if decision:
        draw("terminal-decision", 110, f"regtune decide {given.study}", decision_view(decision, 110))


if __name__ == "__main__":
    main()
