"""The coordinator is killed, asked to end, cut off from its terminal; its clock jumps; a second one wants its study."""

from __future__ import annotations

import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pexpect
import psutil
import pytest
from harness import Project, assert_consistent, project, standing, what_repeats
from parts import missing

pytestmark = [pytest.mark.slow, pytest.mark.faults]
LONG = {"run_cap": 5, "training": {"batch_size": 8, "max_epochs": 20}, "early_stopping": {"patience": 20}}
STOPPED = 130
WHOLE = pytest.mark.whole
FAKETIME = "faketime/libfaketimeMT.so.1"


@pytest.mark.timeout(1800)
@pytest.mark.pairs("postgres-server", "sqlite", "postgres", "sqlite-server")
def test_a_coordinator_killed_at_random_moments_and_resumed_ends_as_if_nothing_had_been(
    place: Project, tmp_path: Path, whole: bool
) -> None:
    kills, dice = 50 if whole else 4, random.Random(7)
    changes = {
        "controls": True,
        "run_cap": 40 if whole else 10,
        "training": {"batch_size": 16, "max_epochs": 40},
        "early_stopping": {"patience": 40},
        "early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 2},
    }
    for _ in range(kills):
        with place.sweep(**changes) as sweep:
            if dice.random() < 0.3:  # while it begins
                time.sleep(dice.uniform(0.2, 6.0))
            else:
                sweep.until_epochs(sweep.epochs + dice.randrange(1, 6))
                time.sleep(dice.uniform(0.0, 0.2))
            sweep.kill()
    with place.sweep(**changes) as sweep:
        sweep.ended()
    assert_consistent(place, run_cap=changes["run_cap"])
    (tmp_path / "undisturbed").mkdir()
    with project("sqlite", tmp_path / "undisturbed", None) as undisturbed:
        with undisturbed.sweep(**changes) as sweep:
            sweep.ended()
        assert what_repeats(place) == what_repeats(undisturbed)


@pytest.mark.whole
@pytest.mark.pairs("sqlite", "postgres")
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=WHOLE)])
def test_a_coordinator_that_is_told_to_end_ends_its_epochs_and_goes_on_with_the_same_line(
    place: Project, number: signal.Signals
) -> None:
    with place.sweep(**LONG) as sweep:
        sweep.until_epochs(3)
        sweep.signal(number)
        assert "Go on with: regtune sweep" in sweep.ended(STOPPED)
    with place.sweep(**LONG) as sweep:
        sweep.ended()
    assert_consistent(place, run_cap=5)


@pytest.mark.pairs("sqlite")
def test_a_terminal_that_is_closed_stops_the_sweep_as_a_signal_does(place: Project) -> None:
    words = place.command(**LONG)
    buffered = {name: value for name, value in place.variables().items() if name != "PYTHONUNBUFFERED"}
    terminal = pexpect.spawn(words[0], words[1:], env=buffered, cwd=str(place.folder), timeout=240)
    terminal.expect("0 of 5")
    process = psutil.Process(terminal.pid)
    terminal.ptyproc.fileobj.close()  # the kernel sends SIGHUP to those in the terminal
    assert process.wait(400) in (STOPPED, 1)  # what it says last can be written nowhere
    with place.sweep(**LONG) as sweep:
        sweep.ended()
    assert_consistent(place, run_cap=5)


@pytest.mark.pairs("sqlite", "postgres")
@pytest.mark.parametrize("jump", [pytest.param("+3600", marks=WHOLE), "-3600"])
def test_a_clock_that_jumps_an_hour_changes_no_result(place: Project, jump: str) -> None:
    libraries = [str(path) for path in Path("/usr/lib").glob(f"*/{FAKETIME}")]
    library = libraries[0] if libraries else missing("faketime is not installed")
    offset = place.folder / "clock"
    offset.write_text("+0")
    swept = replace(
        place,
        environment={
            **place.environment,
            "LD_PRELOAD": library,
            "FAKETIME_TIMESTAMP_FILE": str(offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        },
    )
    with swept.sweep(timeout=1800, **LONG) as sweep:
        sweep.until_finished(1)
        moved = offset.with_suffix(".new")
        moved.write_text(jump)
        moved.replace(offset)
        sweep.ended()
    assert_consistent(place, run_cap=5)


@pytest.mark.pairs("sqlite", "postgres")
def test_a_second_coordinator_is_refused_by_name_and_a_dead_one_s_lock_is_free_at_once(
    place: Project,
) -> None:
    with place.sweep(**LONG) as first:
        first.until_epochs(1)
        with standing([psutil.Process(first.process.pid)]), place.sweep(**LONG) as second:
            said = second.ended(code=1)
        assert f'study "small" is being run by process {first.process.pid} on ' in said
        assert "regtune watch small" in said
        first.kill()
        with place.sweep(**LONG) as third:
            third.ended()
    assert_consistent(place, run_cap=5)
