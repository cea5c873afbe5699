"""Databases are restarted, away, cut off and locked in the middle of a sweep."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from harness import Project, assert_consistent, project
from stores import Postgres, postgres

pytestmark = [pytest.mark.slow, pytest.mark.faults]
LONG = {"run_cap": 4, "training": {"batch_size": 8, "max_epochs": 20}, "early_stopping": {"patience": 20}}
WHOLE = pytest.mark.whole


@pytest.fixture(scope="module")
def own_server() -> Iterator[Postgres]:
    """A server that may be stopped."""
    with postgres() as server:
        yield server


@pytest.fixture(params=["postgres", pytest.param("postgres-server", marks=WHOLE)])
def shaken(request: pytest.FixtureRequest, own_server: Postgres, tmp_path: Path) -> Iterator[Project]:
    """A project both of whose databases lie on that server."""
    with project(request.param, tmp_path, own_server) as found:
        yield found


@pytest.mark.parametrize("mode", [pytest.param("fast", marks=WHOLE), "immediate"])
def test_postgresql_may_be_restarted_during_a_sweep(shaken: Project, own_server: Postgres, mode: str) -> None:
    with shaken.sweep(**LONG) as sweep:
        sweep.until_epochs(3)
        own_server.control("stop", "-m", mode)
        time.sleep(2)
        own_server.control("start")
        said = sweep.ended()
    assert "is back; nothing is lost" in said
    assert_consistent(shaken, run_cap=4)


@pytest.mark.whole
def test_postgresql_may_be_away_for_a_minute(shaken: Project, own_server: Postgres, whole: bool) -> None:
    with shaken.sweep(**LONG) as sweep:
        sweep.until_epochs(3)
        own_server.control("stop", "-m", "fast")
        time.sleep(60 if whole else 10)
        own_server.control("start")
        sweep.ended()
    assert_consistent(shaken, run_cap=4)


def test_postgresql_may_end_every_connection_again_and_again(shaken: Project, own_server: Postgres) -> None:
    with shaken.sweep(**LONG) as sweep:
        for epochs in (2, 10, 20, 30, 40, 50):
            sweep.until_epochs(epochs)
            own_server.run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
        sweep.ended()
    assert_consistent(shaken, run_cap=4)


@pytest.mark.pairs("sqlite", "sqlite-server")
def test_sqlite_files_may_be_locked_by_another_process_for_half_a_minute(place: Project) -> None:
    with place.sweep(**LONG) as sweep:
        sweep.until_epochs(3)
        sweep.until_in_mlflow()
        with ExitStack() as locks:
            for name in ("studies.db", "mlflow.db"):
                connection = locks.enter_context(closing(sqlite3.connect(place.home / name, timeout=20)))
                connection.execute("BEGIN EXCLUSIVE")
            time.sleep(31)
        said = sweep.ended()
    if "MLflow lacks" in said:  # a server gives up before the coordinator does
        assert place.port
        place.run("sync")
    assert_consistent(place, run_cap=4)
