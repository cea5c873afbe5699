"""Calibration, Brier score and prunable weights: closed forms, hand-made networks, and the weights that are kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from regtune.training.runtime import configure

configure()

from regtune.config.trial import (  # noqa: E402
    DataConfig,
    EarlyStoppingConfig,
    ModelConfig,
    RegularizationConfig,
    TrainingConfig,
    TrialConfig,
)
from regtune.data.datasets import load_data  # noqa: E402
from regtune.training.loop import train  # noqa: E402
from regtune.training.measure import KeptWeights, brier_score, calibration_error, prunable_share  # noqa: E402
from regtune.training.model import build_model  # noqa: E402


def answers(*groups: tuple[float, int, int]) -> tuple[Any, Any]:
    """Predictions of class 0 among three, and labels, from groups (confidence, images, right ones)."""
    rows = [[p, (1 - p) / 2, (1 - p) / 2] for p, images, _ in groups for _ in range(images)]
    labels = [int(place >= right) for _, images, right in groups for place in range(images)]
    return np.array(rows, np.float32), np.array(labels)


def test_the_calibration_error_of_calibrated_answers_is_0_and_of_others_their_distance_bin_by_bin() -> None:
    assert calibration_error(*answers((0.6, 10, 6), (0.9, 20, 18), (1.0, 5, 5))) == pytest.approx(0, abs=1e-6)
    assert calibration_error(*answers((0.8, 10, 5))) == pytest.approx(0.3)
    too_high, too_low = (0.95, 10, 5), (0.55, 10, 10)
    assert calibration_error(*answers(too_high, too_low)) == pytest.approx(0.45), "bins add up"
    in_one_bin = (0.61, 10, 5), (0.65, 10, 8)  # both within (9/15, 10/15]
    assert calibration_error(*answers(*in_one_bin)) == pytest.approx(abs(-1.1 + 1.5) / 20), (
        "within one they cancel"
    )


def test_the_brier_score_is_scikit_learns_and_2_where_a_wrong_answer_is_certain() -> None:
    random = np.random.default_rng(1)
    predictions, labels = random.dirichlet(np.ones(10), size=50), np.arange(50) % 10
    theirs = brier_score_loss(labels, predictions, scale_by_half=False)
    assert brier_score(predictions, labels) == pytest.approx(theirs)
    assert brier_score(np.eye(3), np.array([1, 2, 0])) == 2
    assert brier_score(np.eye(3), np.arange(3)) == 0


def test_the_prunable_share_is_that_of_a_network_with_known_needless_weights() -> None:
    """Each of ten images needs its own entry in both kernels; the 180 others of 200 are small."""
    network = build_model(TrialConfig(model=ModelConfig(hidden=(10, 10))), features=10)
    small = np.random.default_rng(1).uniform(-0.01, 0.01, size=(2, 10, 10))
    kernels = np.where(np.eye(10), 1, small)
    network.set_weights([kernels[0], np.zeros(10), kernels[1], np.zeros(10), 10 * np.eye(10), np.zeros(10)])
    before, images, labels = network.get_weights(), np.eye(10, dtype=np.float32), np.arange(10)
    assert prunable_share(network, images, labels, 0.0) == 0.9
    # two images more without their entries are answered with class 0, which is right for one of them
    assert prunable_share(network, images, labels, 0.1) == 0.91
    assert prunable_share(network, images, labels, 0.9) == 1.0
    assert all(map(np.array_equal, network.get_weights(), before))


def test_the_weights_that_early_stopping_keeps_are_measured_and_stay_as_they_are() -> None:
    data = load_data(DataConfig(name="mnist-5k"))
    few = replace(data, x_train=data.x_train[:300], y_train=data.y_train[:300])
    config = TrialConfig(
        model=ModelConfig(hidden=(32, 16)),
        regularization=RegularizationConfig(batchnorm="after_activation", dropout=0.1),
        training=TrainingConfig(max_epochs=30, learning_rate=0.01),
        early_stopping=EarlyStoppingConfig(patience=2),
    )
    plain = train(config, few)
    kept = KeptWeights(few.x_val, few.y_val, 0.01)
    result = train(config, few, callbacks=kept)
    assert result.kept_epoch < len(result.epoch_seconds)
    assert (result.history, result.train_cross_entropy) == (plain.history, plain.train_cross_entropy)
    assert all(map(np.array_equal, result.model.get_weights(), plain.model.get_weights()))

    expected = result.model.predict(few.x_val, verbose=0)
    assert kept.predictions is not None
    assert kept.predictions.dtype == np.float32
    np.testing.assert_allclose(kept.predictions, expected, atol=1e-6)
    assert kept.extra == {
        "ece": calibration_error(kept.predictions, few.y_val),
        "brier": brier_score(kept.predictions, few.y_val),
        "prunable": prunable_share(result.model, few.x_val, few.y_val, 0.01),
    }
    assert 0 < kept.extra["prunable"] < 1

    diverging = TrainingConfig(optimizer="sgd", learning_rate=10.0, momentum=0.99, max_epochs=20)
    strengths = RegularizationConfig(l2=1.0)
    wrong = TrialConfig(model=config.model, regularization=strengths, training=diverging, early_stopping=None)
    lost = KeptWeights(few.x_val, few.y_val, 0.01)
    assert train(wrong, few, callbacks=lost).end == "non_finite"
    assert (lost.predictions, lost.extra) == (None, {})
