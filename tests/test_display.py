"""The display: every size of terminal, nothing cut in silence, nothing left behind."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from itertools import pairwise, product

import pyte
import pytest
import studies
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from regtune.cli.terminal import working
from regtune.cli.views import drawing
from regtune.cli.views.drawing import BARS, LineDisplay, LiveDisplay, learning_curve, sparkline, sweep_view
from regtune.study.progress import Deciding, Progress, Row

SEARCHED = {"dropout": 0.31, "batchnorm": "after_activation", "patience": 3}
FINISHED = Row(17, "COMPLETE", 0.07123, studies.record(17, SEARCHED, epochs=14))
PRUNED = Row(18, "PRUNED", None, studies.record(18, SEARCHED, epochs=4, end="pruned"))
ACCURACY = f"{100 * (FINISHED.accuracy or 0):.2f} %"


def failed(end: str, message: str | None) -> Row:
    return Row(19, "FAIL", None, studies.record(19, SEARCHED, epochs=14, end=end, message=message))


FAILED = failed("non_finite", "loss is NaN")


def running(number: int, epochs: int = 7, worker: int | None = 0) -> Row:
    parameters = {"dropout": 0.12, "l1": 3.1e-6, "batchnorm": "before_activation", "learning_rate": 0.0021}
    record = studies.record(number, parameters, epochs=epochs, end=None, worker=worker)
    return Row(number, "RUNNING", None, record)


def progress(workers: int = 2, **changes: object) -> Progress:
    now = Progress(
        study="mnist-regularization",
        metric="val_cross_entropy",
        goal="minimize",
        run_cap=60,
        timeout_seconds=None,
        complete=18,
        pruned=5,
        failed=1,
        waiting=0,
        elapsed_seconds=192.0,
        finished_before=2,
        trial_epochs=412,
        best=FINISHED,
        running=tuple(running(24 + worker) for worker in range(workers)),
        tracking="the server is away; 3 trials wait",
    )
    return replace(now, **changes)  # type: ignore[arg-type]


def screen(width: int, height: int = 24) -> tuple[io.StringIO, Console]:
    file = io.StringIO()
    return file, Console(file=file, force_terminal=True, width=width, height=height, legacy_windows=False)


def drawn(width: int, height: int, seconds_since: float = 0.0, **changes: object) -> list[str]:
    out = Console(width=width, height=height, file=io.StringIO(), highlight=False)
    now = progress(**changes)  # type: ignore[arg-type]
    recent = (FINISHED, PRUNED, FAILED)
    with out.capture() as shown:
        out.print(sweep_view(now, recent, width=width, height=height, seconds_since=seconds_since))
    return shown.get().splitlines()


def test_the_view_fits_every_terminal() -> None:
    for width, height, workers in product((60, 80, 124, 200), (16, 24, 50), (0, 1, 2, 16)):
        lines = drawn(width, height, workers=workers)
        assert max(map(len, lines)) <= width, (width, height, workers)
        assert len(lines) <= height, (width, height, workers)
    assert any("and " in line and "more" in line for line in drawn(80, 16, workers=16))
    first = tuple(running(number, 0, worker=None) for number in (0, 1))
    assert "starting 2 workers" in "\n".join(drawn(80, 24, running=first, starting=2, best=None))


@pytest.mark.parametrize("width", [60, 124])
def test_the_view_says_what_a_person_wants_to_know(width: int) -> None:
    text = "\n".join(drawn(width, 30))
    for wanted in (
        "23 of 60",
        "18 complete",
        "5 pruned",
        "1 failed",
        "03:12",
        "about 6 min left",
        "0.0712",
    ):
        assert wanted in text
    for wanted in (ACCURACY, "mnist-regularization", "trial 17", "dropout 0.31", "7/30", "24", "25"):
        assert wanted in text
    assert "MLflow  the server is away" in text
    assert "03:22" in "\n".join(drawn(width, 30, seconds_since=10))  # the clock goes on between two events


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=300), st.integers(2, 60), st.booleans())
def test_a_sparkline_has_its_width_and_order(values: list[float], width: int, accuracy: bool) -> None:
    shown = [value / 1e7 for value in values] if accuracy else values
    line = sparkline(shown, width, accuracy=accuracy)
    assert len(line) == min(len(values), width)
    if len(values) <= width:
        heights = [BARS.index(mark) for mark in line]
        order = sorted(range(len(values)), key=shown.__getitem__)
        assert all(heights[a] <= heights[b] for a, b in pairwise(order))


def test_the_last_epochs_stay_apart_and_what_is_not_finite_is_a_blank() -> None:
    values = [point["val_cross_entropy"] for point in studies.curve(0.08, 24)]
    line = sparkline(values, 24)
    assert line[0] == BARS[-1]
    assert BARS.index(line[-1]) > BARS.index(line[values.index(min(values))])
    assert sparkline([0.5, math.nan, 0.1], 10)[1] == sparkline([math.inf], 10) == " "
    assert sparkline([], 10) == ""
    assert sparkline([0.3, 0.3, 0.3], 10) == BARS[0] * 3


def curve_of(epochs: int, width: int, kept: int) -> list[str]:
    points = studies.curve(0.08, epochs)
    train, validation = ([point[name] for point in points] for name in ("cross_entropy", "val_cross_entropy"))
    out = Console(width=200, file=io.StringIO())
    with out.capture() as shown:
        out.print(learning_curve(train, validation, width=width, height=14, kept=kept))
    return shown.get().splitlines()


def test_a_learning_curve_has_axes_the_kept_epoch_and_both_curves() -> None:
    for width, epochs, kept in ((40, 1, 1), (72, 2, 2), (88, 20, 1), (40, 300, 300)):
        lines = curve_of(epochs, width, kept)
        assert lines[0] == f"⠤⠤ validation  • • training  ▲ kept: {kept}"
        assert sum("▲" in line for line in lines[1:]) == 1
        assert max(map(len, lines)) <= width
        assert len(lines) == 14
    lines = curve_of(20, 72, 8)
    assert lines[-1].split() == ["|", "1", "6", "11", "16", "21"]
    assert len([line for line in lines if "⠀" < max(line) <= "⣿"]) >= 6
    assert sum(line.count("•") for line in lines[1:]) >= 15


@pytest.mark.parametrize("values", [[], [math.nan], [0.1], [0.1, 0.1], [5.0, math.inf, 4.0]])
def test_a_learning_curve_of_few_or_odd_points_is_drawn_too(values: list[float]) -> None:
    Console(width=40, file=io.StringIO()).print(learning_curve(values, values, width=40, height=8))


def test_a_finished_trial_is_one_line_with_every_searched_parameter() -> None:
    searched = "dropout 0.31 + batch norm after, patience 3; 14 epochs in 11.2 s"
    late = "longer than trial_timeout, 0.2 s"
    for trial, expected in (
        (FINISHED, f"✓ trial 17: val_cross_entropy 0.0712, accuracy {ACCURACY}; {searched}"),
        (PRUNED, "– trial 18: pruned; dropout"),
        (FAILED, f"✗ trial 19: failed: loss is NaN; {searched}"),
        (failed("non_finite", None), "failed: the loss became infinite or not a number; dropout"),
        (failed("timeout", f"{late}\nmore"), f"failed: {late}; dropout"),
    ):
        assert expected in drawing.ended_text(trial, "val_cross_entropy").plain
        assert len(drawing.ended_text(trial).plain.splitlines()) == 1


def test_lines_are_plain_and_never_wrapped_in_a_pipe() -> None:
    file = io.StringIO()
    with LineDisplay(Console(file=file, width=40, highlight=False)) as display:
        for _ in range(2):
            display.progress(progress(running=(running(0, 0, worker=None),), starting=1))
        for trial in (FINISHED, PRUNED):
            display.finished(trial, progress())
        display.note("worker 1 ended with signal SIGKILL; another takes its place")
    starting, first, second, note = file.getvalue().splitlines()
    assert starting == "starting workers; the first epochs come in a few seconds"
    assert first.startswith("[23/60] ✓ trial 17: ")
    assert (first.endswith("(best so far)"), second.endswith("(best so far)")) == (True, False)
    assert note.endswith("another takes its place")
    assert "\x1b" not in file.getvalue()


def replicate(row: Row, candidate: str, index: int) -> Row:
    return replace(row, replicate=(candidate, index))


DECIDING = Deciding(
    **{"done": 31, "planned": 44, "look": 8, "candidates": 11, "best": "trial 9", "seconds": 17.0},
    open=("trial 16", "control dropout"),
)


def test_replicates_are_named_by_their_candidates_with_what_is_still_open() -> None:
    rows = replicate(running(16), "trial 16", 4), replicate(running(-1), "control dropout", 11)
    for width, height in product((60, 80, 124), (16, 24)):
        lines = drawn(width, height, deciding=DECIDING, running=rows)
        assert max(map(len, lines)) <= width
        assert len(lines) <= height
        text = "\n".join(lines)
        for wanted in (
            "31 of 44 replicates",
            "11 candidates",
            "about 17 s to the next look",
            "leads   trial 9",
        ):
            assert wanted in text
        for wanted in ("open    trial 16, control dropout", "trial 16 #5", "control dropout #12"):
            assert wanted in text
    first = "\n".join(drawn(80, 24, deciding=replace(DECIDING, best=""), running=rows))
    assert "known at the first look" in first


def test_lines_tell_a_decision_s_replicates_and_each_look_once() -> None:
    file = io.StringIO()
    with LineDisplay(Console(file=file, width=40, highlight=False)) as display:
        for deciding in (replace(DECIDING, best="", look=4), DECIDING, DECIDING):
            display.progress(progress(deciding=deciding))
        display.finished(replicate(FINISHED, "trial 9", 3), progress(deciding=DECIDING))
    first, look, replicated = file.getvalue().splitlines()
    assert first == "deciding between 11 candidates; the first look is at 4 replicates of each"
    assert look == "trial 9 leads; open: trial 16, control dropout; the next look is at 8 replicates of each"
    assert replicated.startswith("[31/44] ✓ trial 9 #4: val_cross_entropy 0.0712")
    assert "best so far" not in replicated


class _Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


def test_a_terminal_that_goes_away_does_not_end_the_sweep() -> None:
    with LineDisplay(Console(file=_Gone())) as display:
        display.finished(FINISHED, progress())
        display.note("still here")
        display.stopping()


def test_a_live_display_leaves_nothing_behind() -> None:
    file, out = screen(80)
    with LiveDisplay(out) as display:
        display.progress(progress())
        display.finished(FINISHED, progress())
        display.stopping()
        display.live.refresh()
    assert drawing.STOPPING in file.getvalue()
    assert on_screen(file.getvalue()) == ""


def on_screen(text: str, width: int = 80) -> str:
    terminal = pyte.Screen(width, 40)
    pyte.Stream(terminal).feed(text.replace("\n", "\r\n"))
    return "\n".join(line.rstrip() for line in terminal.display).strip()


def test_a_resized_window_has_no_fragments() -> None:
    """The terminal breaks the lines of the drawing anew, as most do."""
    file, out = screen(100, 40)
    with LiveDisplay(out) as display:
        display.live.auto_refresh = False
        display.progress(progress())
        display.live.refresh()
        out.width = 70
        display.note("a note")
        text = on_screen(file.getvalue(), 70)
        assert text.count("23 of 60") == text.count("trial 17") == text.count("╭") == text.count("╰") == 1
    assert on_screen(file.getvalue(), 70) == "a note"


def test_what_takes_seconds_is_shown_on_a_terminal_until_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    file, out = screen(80)
    monkeypatch.setattr("regtune.cli.terminal.console", lambda stream: out)
    with working("deleting small"):
        pass
    assert "deleting small" in file.getvalue()
    assert on_screen(file.getvalue()) == ""


def test_a_narrow_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    for width, display in ((40, LineDisplay), (60, LiveDisplay)):
        monkeypatch.setattr("regtune.cli.views.drawing.console", lambda stream, width=width: screen(width)[1])
        assert type(drawing.choose(quiet=False)) is display
    assert type(drawing.choose(quiet=True)) is LineDisplay
