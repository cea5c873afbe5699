"""Many sweeps at once on one PostgreSQL and one server."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from harness import Project, assert_consistent

pytestmark = [pytest.mark.slow, pytest.mark.faults]


@pytest.mark.pairs("postgres-server")
def test_sweeps_at_once_on_one_database_and_one_server_all_end_whole(place: Project, whole: bool) -> None:
    names = [f"study-{number}" for number in range(12 if whole else 3)]
    with ExitStack() as running:
        sweeps = [running.enter_context(place.sweep(name=name, run_cap=3, seed=1)) for name in names]
        for sweep in sweeps:
            sweep.ended(seconds=1000)
    place.run("sync")  # where the machine is too busy for a sweep to wait for MLflow
    for name in names:
        assert_consistent(place, name, run_cap=3)
