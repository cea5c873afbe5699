"""Databases are restarted, away, cut off, locked and without room in the middle of a sweep."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import assert_consistent, away, locked
from parts import file_system
from places import Place, place_on
from stores import Postgres, postgres, until

LONG = {"run_cap": 4, "training": {"batch_size": 8, "max_epochs": 20}, "early_stopping": {"patience": 20}}
TRAINING = {"batch_size": 64, "max_epochs": 5}
MANY = {"run_cap": 24, "keep_models": 24, "model": {"hidden": [128]}, "training": TRAINING}
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


# -- a full disk: the sweep ends with one line, and goes on when there is room


def fill(folder: Path, leave: int) -> Path:
    """A file that leaves about `leave` bytes of room in the folder's file system."""
    filler = folder / "filler"

    def allocated() -> bool:
        size = shutil.disk_usage(folder).free - leave
        return subprocess.run(["fallocate", "-l", str(size), str(filler)], check=False).returncode == 0

    until(allocated)  # others take room meanwhile
    return filler


@pytest.mark.parametrize("pair", ["sqlite", pytest.param("postgres", marks=PROOF)])
def test_no_room_for_a_project_ends_the_sweep_and_loses_nothing(
    pair: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server: Postgres | None = request.getfixturevalue("postgres_server") if pair == "postgres" else None
    with file_system(tmp_path, "size=128m"), place_on(pair, tmp_path, server) as place:
        with place.sweep(**MANY) as sweep:
            sweep.until_epochs(2)
            filler = fill(tmp_path, 300_000)
            said = sweep.ended(code=1)
        assert "the disk is full; make room and run the same command again: nothing recorded is lost" in said
        filler.unlink()
        with place.sweep(**MANY) as sweep:
            sweep.ended()
        assert_consistent(place, run_cap=24, keep_models=24)


@PROOF
def test_no_room_for_postgresql_stops_or_ends_the_sweep_and_loses_nothing(tmp_path: Path) -> None:
    """Without room for a table it refuses; without room for its log it ends, and is started again with room."""
    with (
        tempfile.TemporaryDirectory(prefix="disk") as disk,
        file_system(Path(disk), "size=400m,mode=755"),
        postgres(Path(disk)) as server,
        place_on("postgres", tmp_path, server) as place,
    ):
        with place.sweep(**MANY) as sweep:
            sweep.until_epochs(2)
            filler = fill(Path(disk), 100_000)
            until(lambda: sweep.process.poll() is not None or "sweep is waiting for it" in sweep.said, 240)
            filler.unlink()
            server.ensure_running()
            if sweep.process.poll() is None:
                assert "is back; nothing was lost" in sweep.ended()
            else:
                assert "the disk is full; make room" in sweep.ended(code=1)
        with place.sweep(**MANY) as sweep:
            sweep.ended()
        assert_consistent(place, run_cap=24, keep_models=24)
