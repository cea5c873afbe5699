"""The committed promotion of the study of sweeps/mnist.yaml: its configuration, trained again, has the same figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import parts
import pytest

from regtune.registry.gates import wilson
from regtune.registry.training import train_twice
from regtune.registry.version import Record
from regtune.training import runtime

runtime.configure()
RESULT = json.loads((Path(__file__).parents[1] / "benchmarks/champion.json").read_text())


def test_the_committed_promotion_passed_its_gates_and_opened_the_test_set_once() -> None:
    record = Record.model_validate({**RESULT["record"], "gates": RESULT["gates"]})
    right = round(record.test.accuracy * record.test.images)
    assert (record.accuracy_low, record.accuracy_high) == wilson(right, record.test.images)
    assert len(record.openings) == 1
    assert not RESULT["refused"]


@pytest.mark.proof
@pytest.mark.full_mnist
def test_the_committed_test_accuracy_is_reached_again(tmp_path: Path) -> None:
    from regtune.data.datasets import load_arrays
    from regtune.registry.deployed import deployable, figures_of, predict_pixels
    from regtune.training.archive import load_weights
    from regtune.training.model import build_model

    record, folder = Record.model_validate({**RESULT["record"], "gates": ()}), parts.full_mnist()
    first, *_ = train_twice(record.config, record.source.metric, tmp_path, folder)
    plain = build_model(record.config)
    load_weights(plain, first.model.read_bytes())
    arrays = load_arrays(record.config.data.name, folder)
    found = figures_of(predict_pixels(deployable(plain), arrays.x_test), arrays.y_test)
    assert found.accuracy == record.test.accuracy
    assert np.isclose(found.cross_entropy, record.test.cross_entropy, rtol=1e-6)
