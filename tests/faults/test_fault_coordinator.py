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
from harness import assert_consistent, what_repeats
from parts import missing
from places import Place, place_on, standing

LONG = {"run_cap": 5, "training": {"batch_size": 8, "max_epochs": 20}, "early_stopping": {"patience": 20}}
STOPPED = 130


@pytest.mark.timeout(1800)
@pytest.mark.pairs("postgres", "sqlite", "sqlite-server", "postgres-server")
@pytest.mark.parametrize(
    ("kills", "run_cap", "epochs"), [(3, 5, 20), pytest.param(50, 40, 40, marks=pytest.mark.proof)]
)
def test_a_coordinator_killed_at_random_moments_and_resumed_ends_as_if_nothing_had_been(
    place: Place, tmp_path: Path, kills: int, run_cap: int, epochs: int
) -> None:
    dice = random.Random(7)
    changes = {
        "controls": run_cap > 10,
        "run_cap": run_cap,
        "training": {"batch_size": 16, "max_epochs": epochs},
        "early_stopping": {"patience": epochs},
        "early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 2},
    }
    for number in range(kills):
        with place.sweep(**changes) as sweep:
            if number % 3 == 1:  # while it begins
                time.sleep(dice.uniform(0.2, 6.0))
            else:
                sweep.until_epochs(sweep.epochs + dice.randrange(1, 6))
                time.sleep(dice.uniform(0.0, 0.2))
            sweep.kill()
    with place.sweep(**changes) as sweep:
        sweep.ended()
    assert_consistent(place, run_cap=run_cap)
    with place_on("sqlite", tmp_path, None) as elsewhere:
        undisturbed = replace(elsewhere, name=place.name)  # Optuna's Hyperband draws brackets from it
        with undisturbed.sweep(**changes) as sweep:
            sweep.ended()
        assert what_repeats(place) == what_repeats(undisturbed)


@pytest.mark.pairs("sqlite", "postgres")
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.proof)])
def test_after_a_signal_or_a_closed_terminal_the_same_line_goes_on(
    place: Place, number: signal.Signals
) -> None:
    with place.sweep(**LONG) as sweep:
        sweep.until_epochs(3)
        sweep.signal(number)
        assert "Resume with: regtune sweep" in sweep.ended(STOPPED)
    words = place.command(**LONG)
    buffered = {name: value for name, value in place.variables().items() if name != "PYTHONUNBUFFERED"}
    terminal = pexpect.spawn(words[0], words[1:], env=buffered, cwd=str(place.folder), timeout=240)
    terminal.expect(" of 5")
    process = psutil.Process(terminal.pid)
    terminal.ptyproc.fileobj.close()  # the kernel sends SIGHUP to those in the terminal
    assert process.wait(400) in (STOPPED, 1)  # what it says last can be written nowhere
    with place.sweep(**LONG) as sweep:
        sweep.ended()
    assert_consistent(place, run_cap=5)


@pytest.mark.pairs("sqlite", "postgres")
@pytest.mark.parametrize("jump", ["-3600", pytest.param("+3600", marks=pytest.mark.proof)])
def test_a_clock_that_jumps_an_hour_changes_no_result(place: Place, jump: str) -> None:
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None) or missing(
        "faketime is not installed"
    )
    offset = place.folder / f"{place.name}.clock"
    offset.write_text("+0")
    faked = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    with replace(place, environment={**place.environment, **faked}).sweep(timeout=1800, **LONG) as sweep:
        sweep.until_finished(1)
        moved = offset.with_suffix(".new")
        moved.write_text(jump)
        moved.replace(offset)
        sweep.ended()
    offset.unlink()
    assert_consistent(place, run_cap=5)


@pytest.mark.pairs("postgres", "sqlite")
def test_a_second_coordinator_is_refused_by_name_and_a_dead_one_s_lock_is_free_at_once(place: Place) -> None:
    with place.sweep(**LONG) as first:
        first.until_epochs(1)
        with standing([psutil.Process(first.process.pid)]), place.sweep(**LONG) as second:
            said = second.ended(code=1)
        assert f'study "{place.name}" is being run by process {first.process.pid} on ' in said
        assert f"regtune watch {place.name}" in said
        first.kill()
        with place.sweep(**LONG) as third:
            third.ended()
    assert_consistent(place, run_cap=5)
