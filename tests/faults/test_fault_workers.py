"""Workers are killed, stopped and starved: each costs an attempt at most, never a trial."""

from __future__ import annotations

import signal
import time

import psutil
import pytest
from harness import assert_consistent
from optuna.trial import TrialState
from places import Place, Sweep, standing
from stores import until

from regtune.study.record import TrialRecord
from regtune.study.study import record_of

LONG = {"training": {"batch_size": 4, "max_epochs": 20}, "early_stopping": {"patience": 20}, "run_cap": 2}
"""Epochs long enough to be in the middle of one."""
WIDE = {**LONG, "model": {"hidden": [4096, 1024]}, "training": {"batch_size": 512, "max_epochs": 3}}
"""A model that takes long to save, and much memory."""


def failures(place: Place) -> list[TrialRecord]:
    records = [record_of(trial) for trial in place.study().get_trials(states=(TrialState.FAIL,))]
    return [record for record in records if record is not None]


def _waits(process: psutil.Process) -> bool:
    """Whether it has done nothing for a second."""
    before = process.cpu_times().user
    time.sleep(1)
    return process.status() == psutil.STATUS_SLEEPING and process.cpu_times().user == before


def kill_in_an_epoch(sweep: Sweep) -> None:
    sweep.until_epochs(sweep.epochs + 2)
    time.sleep(0.2)
    sweep.workers[0].kill()


def kill_while_it_reports(sweep: Sweep) -> None:
    """Kill the worker when it has sent an epoch's figures and waits for the answer."""
    sweep.until_epochs(sweep.epochs + 1)
    (worker,) = sweep.workers
    sweep.signal(signal.SIGSTOP)  # nobody answers
    until(lambda: _waits(worker), 60)
    worker.kill()
    sweep.signal(signal.SIGCONT)


@pytest.mark.pairs("sqlite", "postgres", "sqlite-server", "postgres-server")
def test_a_killed_worker_costs_one_attempt_and_a_trial_killed_twice_is_failed(place: Place) -> None:
    with place.sweep(**LONG) as sweep:
        kill_in_an_epoch(sweep)
        sweep.until_finished(2)  # the lost attempt, and the one that took its place
        kill_while_it_reports(sweep)
        sweep.until_finished(3)
        kill_in_an_epoch(sweep)  # of the second attempt
        sweep.ended()
    records = failures(place)
    assert [record.end_reason for record in records] == ["worker_died"] * 3
    assert [(record.attempt, record.retry_of) for record in records] == [(1, None), (1, None), (2, 2)]
    assert all("SIGKILL" in str(record.message) for record in records)
    assert records[1].epochs >= 1
    assert records[1].config == records[2].config
    assert_consistent(place, run_cap=2, failed=3)


@pytest.mark.proof
@pytest.mark.pairs("sqlite", "postgres")
def test_a_worker_killed_before_it_is_ready_costs_nothing_or_one_attempt(place: Place) -> None:
    with place.sweep(**LONG) as sweep:
        sweep.until_running()
        sweep.workers[0].kill()
        sweep.ended()
    records = failures(place)
    assert [(record.end_reason, record.attempt) for record in records] in ([("worker_died", 1)], [])
    assert_consistent(place, run_cap=2, failed=len(records))


@pytest.mark.proof
@pytest.mark.pairs("sqlite", "postgres")
def test_a_worker_killed_while_it_saves_a_model_leaves_no_half_of_it(place: Place) -> None:
    folder = place.home / "artifacts" / "trials"
    with place.sweep(**WIDE) as sweep:
        sweep.until(lambda: any(folder.glob("*/.*model.keras")), "half a model", pause=0.01)
        sweep.workers[0].kill()
        sweep.ended()
    (lost,) = failures(place)
    assert (lost.end_reason, lost.epochs) == ("worker_died", 3)
    assert_consistent(place, run_cap=2, failed=1)


@pytest.mark.pairs("postgres-server", "sqlite", "postgres", "sqlite-server")
def test_all_workers_killed_at_once_are_replaced(place: Place) -> None:
    with place.sweep(workers=2, **LONG) as sweep:
        sweep.until_epochs(2)
        for worker in sweep.workers:
            worker.kill()
        sweep.ended()
    records = failures(place)
    assert {record.end_reason for record in records} == {"worker_died"}
    assert 1 <= len(records) <= 2
    assert_consistent(place, run_cap=2, failed=len(records))


@pytest.mark.pairs("postgres", "sqlite")
def test_a_worker_that_hangs_is_ended_and_its_late_result_does_not_count(place: Place) -> None:
    short = {"training": {"batch_size": 16, "max_epochs": 20}}  # seconds; the deadline is for slow machines
    with place.sweep(trial_timeout=30, **{**LONG, **short}) as sweep:
        sweep.until_epochs(1)
        (worker,) = sweep.workers
        worker.suspend()
        sweep.until_finished(1)
        with pytest.raises(psutil.NoSuchProcess):
            worker.resume()
        sweep.ended()
    (late,) = failures(place)
    assert (late.end_reason, late.message) == ("timeout", "longer than trial_timeout, 30 s")
    assert_consistent(place, run_cap=2, failed=1)


@pytest.mark.pairs("sqlite", "postgres")
def test_a_trial_without_memory_is_failed_with_the_reason_and_the_next_one_runs(place: Place) -> None:
    """Arrays of more than 32 MiB are the only ones for which the C library asks the system each time."""
    changes = {"model": {"hidden": [2100, 4096]}, "training": {"batch_size": 128, "max_epochs": 3}}
    with place.sweep(**{**WIDE, **changes}) as sweep:
        sweep.until_epochs(1)
        (worker,) = sweep.workers
        with standing([psutil.Process(sweep.process.pid)]):  # between two epochs, not while a model is saved
            until(lambda: _waits(worker))
            address_space = worker.memory_info().vms + 30 * 2**20  # room for all but a gradient, of 33 MiB
            worker.rlimit(psutil.RLIMIT_AS, (address_space, psutil.RLIM_INFINITY))
        sweep.ended()
    (starved,) = failures(place)
    assert (starved.end_reason, starved.attempt) == ("out_of_memory", 1)
    assert "alloc" in str(starved.message)  # what there was no room for, in TensorFlow's words or NumPy's
    assert_consistent(place, run_cap=2, failed=1)
