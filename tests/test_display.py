"""The display: every size of terminal, nothing cut in silence, nothing left behind."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import pyte
import pytest
import studies
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from regtune.cli import app
from regtune.cli.terminal import working
from regtune.cli.views.display import STOPPING, LineDisplay, LiveDisplay, finished_line
from regtune.cli.views.drawing import (
    BARS,
    clock,
    learning_curve,
    metric_text,
    span,
    sparkline,
    sweep_view,
)
from regtune.study.progress import FinishedTrial, Progress, RunningTrial

FINISHED = FinishedTrial(
    number=17,
    state="COMPLETE",
    value=0.07123,
    accuracy=0.97925,
    epochs=14,
    seconds=13.2,
    mix="dropout 0.31 + batch norm after",
    parameters={"dropout": 0.31},
    control=None,
    end_reason="early_stopping",
)
PRUNED = replace(FINISHED, number=18, state="PRUNED", value=None, end_reason="pruned", epochs=4)
FAILED = replace(PRUNED, number=19, state="FAIL", end_reason="non_finite", message="loss is NaN", epochs=14)


def running(number: int, epochs: int = 7, **changes: object) -> RunningTrial:
    curve = tuple(point["val_cross_entropy"] for point in studies.curve(0.08, epochs))
    made = RunningTrial(
        number=number,
        control=None,
        mix="dropout 0.12 + L1 3.1e-6 + batch norm before",
        parameters={"dropout": 0.12, "learning_rate": 0.0021},
        worker=number % 8,
        epoch=epochs,
        max_epochs=30,
        curve=curve,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def progress(workers: int = 2, **changes: object) -> Progress:
    made = Progress(
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
        remaining_seconds=341.0,
        trial_epochs=412,
        best=FINISHED,
        running=tuple(running(24 + worker) for worker in range(workers)),
        tracking="the server is away; 3 trials wait",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def drawn(width: int, height: int, seconds_since: float = 0.0, **changes: object) -> list[str]:
    out = Console(width=width, height=height, file=io.StringIO(), highlight=False)
    view = sweep_view(
        progress(**changes),  # type: ignore[arg-type]
        (FINISHED, PRUNED, FAILED),
        width=width,
        height=height,
        seconds_since=seconds_since,
    )
    with out.capture() as found:
        out.print(view)
    return found.get().splitlines()


def test_the_view_fits_every_terminal() -> None:
    for width, height, workers in product((40, 60, 80, 124, 200), (16, 24, 50), (0, 1, 2, 16)):
        lines = drawn(width, height, workers=workers)
        assert max(map(len, lines)) <= width, (width, height, workers)
        assert len(lines) <= height, (width, height, workers)


@pytest.mark.parametrize("width", [40, 80, 124])
def test_the_view_says_what_a_person_wants_to_know(width: int) -> None:
    text = "\n".join(drawn(width, 30))
    for wanted in ("23 of 60", "18 complete", "5 pruned", "1 failed", "3:12", "about 6 min left", "0.0712"):
        assert wanted in text
    for wanted in ("97.92 %", "mnist-regularization", "trial 17", "dropout 0.31", "7/30", "24", "25"):
        assert wanted in text
    assert "MLflow  the server is away" in text
    assert "3:22" in "\n".join(drawn(width, 30, seconds_since=10))  # the clock goes on between two events


def test_workers_that_do_not_fit_are_counted() -> None:
    assert any("more" in line and "and" in line for line in drawn(80, 16, workers=16))


def test_the_bar_is_full_at_the_end() -> None:
    bars = [drawn(80, 24, complete=complete, pruned=0)[1].count("━") for complete in (0, 30, 60)]
    assert bars[0] == 0
    assert bars[2] > 60
    assert abs(bars[1] - bars[2] / 2) <= 1


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=300), st.integers(2, 60), st.booleans())
def test_a_sparkline_has_its_width_and_order(values: list[float], width: int, accuracy: bool) -> None:
    shown = [value / 1e7 for value in values] if accuracy else values
    line = sparkline(shown, width, accuracy=accuracy)
    assert len(line) == min(len(values), width)
    if len(values) <= width:
        heights = [BARS.index(mark) for mark in line]
        order = sorted(range(len(values)), key=shown.__getitem__)
        assert all(heights[a] <= heights[b] for a, b in pairwise(order))


def test_the_last_epochs_of_a_learning_curve_stay_apart() -> None:
    values = [point["val_cross_entropy"] for point in studies.curve(0.08, 24)]
    line = sparkline(values, 24)
    assert line[0] == BARS[-1]
    least = values.index(min(values))
    assert BARS.index(line[-1]) > BARS.index(line[least])


def test_an_epoch_without_a_finite_figure_is_a_blank_and_equal_values_are_a_low_line() -> None:
    assert sparkline([0.5, math.nan, 0.1], 10)[1] == " "
    assert sparkline([math.inf], 10) == " "
    assert sparkline([], 10) == ""
    assert sparkline([0.3, 0.3, 0.3], 10) == BARS[0] * 3


def curve_of(epochs: int, width: int, kept: int) -> list[str]:
    points = studies.curve(0.08, epochs)
    train, validation = ([point[name] for point in points] for name in ("cross_entropy", "val_cross_entropy"))
    out = Console(width=200, file=io.StringIO())
    with out.capture() as found:
        out.print(learning_curve(train, validation, width=width, height=14, kept=kept))
    return found.get().splitlines()


def test_a_learning_curve_has_axes_the_kept_epoch_and_both_curves() -> None:
    for width, epochs in product((40, 72, 88), (1, 2, 20, 300)):
        for kept in {1, epochs}:
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


def test_durations_and_metrics_are_as_short_as_a_person_can_tell_them_apart() -> None:
    clocks = {7: "0:07", 59.6: "1:00", 750: "12:30", 7500: "2:05:00", -3: "0:00"}
    spans = {0.2: "1 s", 40: "40 s", 360: "6 min", 4800: "80 min", 7200: "2 h", 9000: "2 h 30 min"}
    metrics = {0.07123: "0.0712", None: "–", math.inf: "inf", 1e-5: "1e-5"}
    for shorten, texts in ((clock, clocks), (span, spans), (metric_text, metrics)):
        assert {value: shorten(value) for value in texts} == texts


def test_a_finished_trial_is_one_line() -> None:
    said = "val_cross_entropy 0.0712, accuracy 97.92 %; 14 epochs in 13.2 s; dropout 0.31 + batch norm after"
    late = "longer than trial_timeout, 0.2 s"
    for trial, expected in (
        (FINISHED, said),
        (PRUNED, "pruned; 4 epochs"),
        (FAILED, "failed: loss is NaN; 14 epochs"),
        (replace(FAILED, message=None), "failed: the loss became infinite or not a number; 14 epochs"),
        (replace(FAILED, end_reason="timeout", message=late), f"failed: {late}; 14 epochs"),
    ):
        line = finished_line(trial, progress())
        assert expected in line
        assert "\n" not in line
        assert line.startswith("[23/60]")
        assert line.endswith("(best so far)") == ("best" in line) == (trial is FINISHED)


def test_lines_are_plain_and_never_wrapped_in_a_pipe() -> None:
    file = io.StringIO()
    display = LineDisplay(Console(file=file, width=40, highlight=False))
    with display:
        display.progress(progress())
        display.finished(FINISHED, progress())
        display.note("worker 1 ended with signal SIGKILL; another takes its place")
    lines = file.getvalue().splitlines()
    assert len(lines) == 2
    assert "\x1b" not in file.getvalue()


class _Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


def test_a_terminal_that_goes_away_does_not_end_the_sweep() -> None:
    with LineDisplay(Console(file=_Gone())) as display:
        display.finished(FINISHED, progress())
        display.note("still here")
        display.stopping()


def on_screen(text: str) -> str:
    screen = pyte.Screen(80, 24)
    pyte.Stream(screen).feed(text.replace("\n", "\r\n"))
    return "".join(screen.display).strip()


def test_a_live_display_leaves_nothing_behind() -> None:
    file = io.StringIO()
    out = Console(file=file, force_terminal=True, width=80, height=24, legacy_windows=False)
    with LiveDisplay(out) as display:
        display.progress(progress())
        display.finished(FINISHED, progress())
        display.live.refresh()
        display.stopping()
        display.live.refresh()
    text = file.getvalue()
    assert STOPPING in text
    assert on_screen(text) == ""


@pytest.mark.parametrize(("before", "after"), [(100, 70), (100, 40), (50, 30), (80, 120)])
def test_a_resized_window_has_no_fragments(before: int, after: int) -> None:
    """The terminal breaks lines anew, as most do, and leaves the cursor at the end of the last."""
    file = io.StringIO()
    out = Console(file=file, force_terminal=True, width=before, height=40, legacy_windows=False)
    screen = pyte.Screen(before, 40)
    pyte.Stream(screen).feed("$ regtune sweep\r\n")

    def fed() -> None:
        pyte.Stream(screen).feed(file.getvalue().replace("\n", "\r\n"))
        file.seek(0)
        file.truncate()

    with LiveDisplay(out) as display:
        display.live.auto_refresh = False
        display.progress(progress())
        display.live.refresh()
        fed()
        lines = [line.rstrip() for line in screen.display[: screen.cursor.y + 1]]
        screen = pyte.Screen(after, 40)
        pyte.Stream(screen).feed("\r\n".join(lines))
        out.width = after
        display.note("a note")
        fed()
        text = "\n".join(screen.display)
        assert text.count("23 of 60") == text.count("trial 17") == 1
        assert text.count("╭") == text.count("╰") == (after >= 60)
    fed()
    assert "\n".join(line.rstrip() for line in screen.display).strip() == "$ regtune sweep\na note"


def test_the_first_seconds_say_that_workers_start() -> None:
    first = tuple(running(number, 0, worker=-1) for number in (0, 1))
    began = progress(running=first, starting=2, complete=0, pruned=0, best=None)
    text = "\n".join(drawn(80, 24, running=first, starting=2, complete=0, pruned=0, best=None))
    assert "starting 2 workers" in text
    assert "worker  trial" not in text
    file = io.StringIO()
    with LineDisplay(Console(file=file, width=80)) as display:
        display.progress(began)
        display.progress(began)
    assert file.getvalue() == "starting 2 workers; the first epochs come in a few seconds\n"


def test_every_searched_parameter_of_a_finished_trial_is_said() -> None:
    trial = replace(FINISHED, parameters={"dropout.1": 0.31, "patience": 3, "learning_rate": 0.00123})
    said = "dropout 0.31 + batch norm after, patience 3, learning_rate 0.00123"
    assert said in finished_line(trial, progress())
    out = Console(width=120, height=24, file=io.StringIO())
    with out.capture() as found:
        out.print(sweep_view(progress(), (trial,), width=120, height=24))
    assert "patience 3, learning_rate 0.00123" in found.get()


def test_what_takes_seconds_is_shown_on_a_terminal_until_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal in (True, False):
        file = io.StringIO()
        out = Console(file=file, force_terminal=terminal, width=80, height=24, legacy_windows=False)
        monkeypatch.setattr("regtune.cli.terminal.console", lambda stream, out=out: out)
        with working("deleting small"):
            pass
        assert ("deleting small" in file.getvalue()) == terminal
        assert on_screen(file.getvalue()) == ""


def test_verbs_that_take_seconds_show_that_they_work(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    @contextmanager
    def noted(what: str, quiet: bool = False) -> Iterator[None]:
        shown.append(what)
        yield

    monkeypatch.setattr("regtune.cli.terminal.working", noted)
    studies.create(Path("mlruns/studies.db"), "small")
    for verb in (["delete", "small", "--yes"], ["gc", "--yes"], ["down"], ["status"]):
        assert CliRunner().invoke(app, verb, catch_exceptions=False).exit_code == 0
    assert len(shown) == 4
