"""The disk is full in the middle of a sweep: it ends with one line, and goes on when there is room."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from harness import assert_consistent
from parts import file_system
from places import place_on
from stores import Postgres, postgres, until

TRAINING = {"batch_size": 64, "max_epochs": 5}
LONG = {"run_cap": 24, "keep_models": 24, "model": {"hidden": [128]}, "training": TRAINING}


def fill(folder: Path, leave: int) -> Path:
    """A file that leaves about `leave` bytes of room in the folder's file system."""
    filler = folder / "filler"
    until(lambda: _allocate(filler, shutil.disk_usage(folder).free - leave))  # others take room meanwhile
    return filler


def _allocate(file: Path, size: int) -> bool:
    return subprocess.run(["fallocate", "-l", str(size), str(file)], check=False).returncode == 0


@pytest.mark.parametrize("pair", ["sqlite", pytest.param("postgres", marks=pytest.mark.proof)])
def test_no_room_for_a_project_ends_the_sweep_and_loses_nothing(
    pair: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server: Postgres | None = request.getfixturevalue("postgres_server") if pair == "postgres" else None
    with file_system(tmp_path, "size=128m"), place_on(pair, tmp_path, server) as place:
        with place.sweep(**LONG) as sweep:
            sweep.until_epochs(2)
            filler = fill(tmp_path, 300_000)
            said = sweep.ended(code=1)
        assert "the disk is full; make room and run the same command again: nothing recorded is lost" in said
        filler.unlink()
        with place.sweep(**LONG) as sweep:
            sweep.ended()
        assert_consistent(place, run_cap=24, keep_models=24)


@pytest.mark.proof
def test_no_room_for_postgresql_stops_or_ends_the_sweep_and_loses_nothing(tmp_path: Path) -> None:
    """Without room for a table it refuses; without room for its log it ends, and is started again with room."""
    with (
        tempfile.TemporaryDirectory(prefix="disk") as disk,
        file_system(Path(disk), "size=400m,mode=755"),
        postgres(Path(disk)) as server,
        place_on("postgres", tmp_path, server) as place,
    ):
        with place.sweep(**LONG) as sweep:
            sweep.until_epochs(2)
            filler = fill(Path(disk), 100_000)
            until(lambda: sweep.process.poll() is not None or "sweep is waiting for it" in sweep.said, 240)
            filler.unlink()
            server.ensure_running()
            if sweep.process.poll() is None:
                assert "is back; nothing was lost" in sweep.ended()
            else:
                assert "the disk is full; make room" in sweep.ended(code=1)
        with place.sweep(**LONG) as sweep:
            sweep.ended()
        assert_consistent(place, run_cap=24, keep_models=24)
