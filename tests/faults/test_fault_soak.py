"""The soak, shortened: `make soak` is the whole one."""

from __future__ import annotations

from pathlib import Path

import pytest
from soak import soak

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.proof]


@pytest.mark.parametrize("pair", ["sqlite-server", "postgres-server"])
def test_twenty_trials_under_random_faults_are_neither_lost_nor_doubled(pair: str, tmp_path: Path) -> None:
    figures = soak(pair, trials=20, every=5, seed=2, folder=tmp_path)
    assert (figures["lost"], figures["doubled"], figures["finished"]) == (0, 0, 20)
    assert figures["faults"] > 0
