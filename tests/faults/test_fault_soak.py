"""The soak, shortened: `make soak` is the whole one."""

from __future__ import annotations

from pathlib import Path

import pytest
from soak import soak

pytestmark = [pytest.mark.slow, pytest.mark.faults]


@pytest.mark.parametrize("pair", [pytest.param("sqlite-server", marks=pytest.mark.whole), "postgres-server"])
def test_twenty_trials_under_random_faults_are_neither_lost_nor_doubled(pair: str, tmp_path: Path) -> None:
    found = soak(pair, trials=20, every=5, seed=2, folder=tmp_path)
    assert (found["lost"], found["doubled"], found["finished"]) == (0, 0, 20)
    assert found["faults"] > 0
