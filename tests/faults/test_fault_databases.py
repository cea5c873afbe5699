"""Databases are restarted, away, cut off and locked in the middle of a sweep."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import assert_consistent, away, locked
from places import Place, place_on
from stores import Postgres, postgres

LONG = {"run_cap": 4, "training": {"batch_size": 8, "max_epochs": 20}, "early_stopping": {"patience": 20}}
PROOF = pytest.mark.proof


@pytest.fixture(scope="module")
def own_server() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture(params=["postgres", pytest.param("postgres-server", marks=PROOF)])
def shaken(request: pytest.FixtureRequest, own_server: Postgres, tmp_path: Path) -> Iterator[Place]:
    """A place both of whose databases lie on that server."""
    with place_on(request.param, tmp_path, own_server) as place:
        yield place


@pytest.mark.parametrize(("mode", "away_seconds"), [("immediate", 10), pytest.param("fast", 60, marks=PROOF)])
def test_postgresql_may_be_restarted_be_away_and_cut_every_connection(
    shaken: Place, own_server: Postgres, mode: str, away_seconds: float
) -> None:
    with shaken.sweep(**LONG) as sweep:
        sweep.until_epochs(3)
        with away(own_server, mode):
            time.sleep(away_seconds)
        for epochs in (10, 20, 30, 40, 50):
            sweep.until_epochs(epochs)
            own_server.end_connections()
        said = sweep.ended()
    assert "is back; nothing was lost" in said
    assert_consistent(shaken, run_cap=4)


@pytest.mark.parametrize("pair", ["sqlite", pytest.param("sqlite-server", marks=PROOF)])
def test_sqlite_files_may_be_locked_by_another_process_for_half_a_minute(pair: str, tmp_path: Path) -> None:
    with place_on(pair, tmp_path, None) as place:
        with place.sweep(**LONG) as sweep:
            sweep.until_epochs(3)
            sweep.until_in_mlflow()
            with locked(place.home):
                time.sleep(31)
            said = sweep.ended()
        if "MLflow is behind" in said:  # a server gives up before the coordinator does
            assert place.port
            place.run("sync")
        assert_consistent(place, run_cap=4)
