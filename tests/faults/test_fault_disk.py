"""The disk is full in the middle of a sweep: it ends with one line, and goes on when there is room."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from harness import Project, assert_consistent, project
from parts import file_system
from stores import Postgres, until

pytestmark = [pytest.mark.slow, pytest.mark.faults]
LONG = {
    "run_cap": 24,
    "keep_models": 24,
    "model": {"hidden": [128]},
    "training": {"batch_size": 64, "max_epochs": 5},
}


def fill(folder: Path, leave: int) -> Path:
    """A file that leaves about `leave` bytes of room in the folder's file system."""
    found = folder / "filler"
    until(lambda: _allocate(found, shutil.disk_usage(folder).free - leave))  # others take room meanwhile
    return found


def _allocate(file: Path, size: int) -> bool:
    return subprocess.run(["fallocate", "-l", str(size), str(file)], check=False).returncode == 0


def sweep_into_a_full_disk(place: Project, disk: Path) -> str:
    """Sweep until the disk is full; make room; sweep to the end. Returns what the first sweep said."""
    with place.sweep(**LONG) as sweep:
        sweep.until_epochs(2)
        filler = fill(disk, 300_000)
        said = sweep.ended(code=1)
    filler.unlink()
    with place.sweep(**LONG) as sweep:
        sweep.ended()
    return said


@pytest.mark.parametrize("pair", ["sqlite", pytest.param("postgres", marks=pytest.mark.whole)])
def test_no_room_for_artifacts_ends_the_sweep_and_loses_nothing(
    pair: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server: Postgres | None = request.getfixturevalue("postgres_server") if pair == "postgres" else None
    with file_system(tmp_path, "size=128m"), project(pair, tmp_path, server) as place:
        said = sweep_into_a_full_disk(place, tmp_path)
        assert "the disk is full; make room and give the same command again: nothing recorded is lost" in said
        assert_consistent(place, run_cap=24, keep_models=24)
