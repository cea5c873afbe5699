"""Openings of test sets: counted per data set in the study, whoever else opens one, and never forgotten."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import studies

from regtune.errors import StorageError
from regtune.registry.openings import open_test_set, openings_of
from regtune.registry.version import Opening
from regtune.settings import Settings
from regtune.storage import open_engine
from regtune.study.board import read_study
from regtune.study.record import TEST_OPENINGS

MNIST, OTHER = "ab" * 32, "cd" * 32


def opening(data: str = MNIST, model: str = "digits") -> Opening:
    at = "2026-01-01T00:00:00+00:00"
    return Opening(data=data, at=at, study="mnist-regularization", model=model, config="0" * 64)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    studies.create(tmp_path / "mlruns" / "studies.db")
    return Settings(home=tmp_path / "mlruns")


def test_openings_are_counted_per_data_set(settings: Settings) -> None:
    assert open_test_set(settings, opening()) == (opening(),)
    assert open_test_set(settings, opening(OTHER)) == (opening(OTHER),)
    assert open_test_set(settings, opening(model="staging")) == (opening(), opening(model="staging"))


def test_openings_at_once_are_all_counted(settings: Settings) -> None:
    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(lambda n: len(open_test_set(settings, opening(model=f"m{n}"))), range(4)))
    assert sorted(counts) == [1, 2, 3, 4]


def test_openings_that_cannot_be_read_are_refused_not_forgotten(settings: Settings) -> None:
    engine = open_engine(settings.storage_url)
    name = read_study(engine, "mnist-regularization").name
    with pytest.raises(StorageError, match="openings of test sets cannot be read"):
        openings_of({TEST_OPENINGS: [{"data": 3}]}, name)
