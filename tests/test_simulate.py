"""The simulation of many workers: sweeps of the real coordinator in virtual time, and the committed figures."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bench_simulate import GOAL, simulate, spec_of
from benchmarks.simulated import SimulatedExecutor
from regtune.settings import load_settings
from regtune.storage import open_engine
from regtune.study.board import read_board
from regtune.study.progress import Row

TRIALS, WORKERS = 24, 6


def swept(home: Path, **given: Any) -> tuple[SimulatedExecutor, list[Row]]:
    """A sweep of TRIALS by simulated workers: the executor after it, and the study's trials by their numbers."""
    settings, spec, executor = load_settings(home=home), spec_of(TRIALS), SimulatedExecutor(WORKERS, **given)
    outcome = simulate(settings, spec, executor)
    assert outcome.complete + outcome.pruned == TRIALS
    engine = open_engine(settings.storage_url)
    rows = read_board(engine, spec.name).rows
    engine.dispose()
    return executor, sorted(rows, key=lambda row: row.number)


def test_a_simulated_sweep_repeats_itself_and_retries_each_trial_that_a_death_has_cost(
    tmp_path: Path,
) -> None:
    def told(executor: SimulatedExecutor, rows: list[Row]) -> list[Any]:
        records = [row.record for row in rows if row.record]
        return [executor.now, *((r.parameters, r.history, r.end_reason, r.worker) for r in records)]

    executor, rows = swept(tmp_path / "once", deaths=0.03)
    assert told(executor, rows) == told(*swept(tmp_path / "again", deaths=0.03))
    records = [row.record for row in rows if row.record]
    assert len(records) == len(rows)
    lost = [record for record in records if record.end_reason == "worker_died"]
    assert 0 < len(lost) == executor.dead
    retried = {record.retry_of: record for record in records if record.retry_of is not None}
    assert retried.keys() == {row.number for row in rows if row.record in lost and row.record.attempt == 1}
    for number, again in retried.items():
        first = rows[number].record
        assert first is not None
        assert (again.attempt, again.config) == (2, first.config)
        for name, values in first.history.items():
            shared = min(first.epochs, again.epochs)
            assert values[:shared] == again.history[name][:shared]  # it repeats itself
    assert "pruned" in {record.end_reason for record in records}


def test_workers_that_wait_for_a_slow_coordinator_are_not_busy(tmp_path: Path) -> None:
    calls = itertools.count()
    idle, _ = swept(tmp_path / "idle")
    slow, _ = swept(
        tmp_path / "slow", worked=lambda: 2.0 * next(calls)
    )  # 2 s between two calls of its executor
    assert [len(one.trials) for one in (idle, slow)] == [TRIALS - WORKERS] * 2  # all that followed another
    assert idle.busy == pytest.approx(1.0, abs=1e-6)
    assert (idle.working, sum(idle.verdicts), sum(idle.trials)) == pytest.approx((0.0, 0.0, 0.0), abs=1e-6)
    waited = sum(slow.verdicts) + sum(slow.trials)
    assert slow.busy == pytest.approx(1 - waited / (WORKERS * slow.seconds), abs=0.05)
    assert slow.busy < 0.9 < slow.working


def test_epochs_that_have_ended_are_answered_before_one_more_trial_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = list[str]()

    def noted(name: str) -> Callable[..., Any]:
        method = getattr(SimulatedExecutor, name)
        return lambda *given: called.append(name) or method(*given)

    for name in ("submit", "events"):
        monkeypatch.setattr(SimulatedExecutor, name, noted(name))
    swept(tmp_path)
    assert called.count("submit") >= TRIALS
    assert ("submit", "submit") not in itertools.pairwise(called)


def test_the_committed_simulation_keeps_as_many_workers_busy_as_it_promises() -> None:
    committed = Path(__file__).resolve().parents[1] / "benchmarks" / "simulate.json"
    rows = json.loads(committed.read_text())["rows"].values()
    judged = [row for row in rows if row["workers"] in GOAL]
    assert judged
    assert all(row["busy"] >= GOAL[row["workers"]] for row in judged)
