"""Many sweeps at once on one PostgreSQL and one server; and many faults in one sweep, one after the other."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from harness import assert_consistent
from places import Place
from soak import PAIRS, soak


@pytest.mark.pairs("postgres-server")
@pytest.mark.parametrize("count", [3, pytest.param(12, marks=pytest.mark.proof)])
def test_sweeps_at_once_on_one_database_and_one_server_all_end_whole(place: Place, count: int) -> None:
    places = [place, *(place.with_new_study() for _ in range(count - 1))]
    with ExitStack() as running:
        sweeps = [running.enter_context(each.sweep(run_cap=3, seed=1)) for each in places]
        for sweep in sweeps:
            sweep.ended(seconds=1000)
    place.run("sync")  # where the machine is too busy for a sweep to wait for MLflow
    for each in places:
        assert_consistent(each, run_cap=3)


@pytest.mark.proof
@pytest.mark.parametrize("pair", PAIRS)
def test_twenty_trials_under_random_faults_are_neither_lost_nor_doubled(pair: str, tmp_path: Path) -> None:
    figures = soak(pair, trials=20, every=5, seed=2, folder=tmp_path)
    assert (figures["lost"], figures["doubled"], figures["finished"]) == (0, 0, 20)
    assert figures["faults"] > 0
