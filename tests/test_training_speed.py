"""The speed of training on the full MNIST, as the benchmark measures it: in turns, as a ratio to the floor."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from parts import full_mnist

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from bench_train import TARGETS, measure_epochs

from regtune.config import DataConfig
from regtune.data import load_data


@pytest.mark.full_mnist
def test_an_epoch_costs_no_more_than_its_multiple_of_the_floor() -> None:
    measured = measure_epochs(load_data(DataConfig(), full_mnist()), rounds=3)
    ratios = {name: measured[name]["to_floor"]["median"] for name in TARGETS}
    assert all(ratios[name] <= target for name, target in TARGETS.items()), ratios
