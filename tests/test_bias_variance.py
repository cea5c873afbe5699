"""Bias and variance: parts by hand and in closed form, and identities that hold exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regtune.evidence.bias_variance import decompose_brier, decompose_zero_one


def drawn(seed: int, trainings: int, images: int, classes: int) -> tuple[Any, Any]:
    """Predictions `(trainings, images, classes) float32` that tend to agree, and labels."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(images, classes)) * 2 + random.normal(size=(trainings, images, classes))
    odds = np.exp(logits)
    predictions = (odds / odds.sum(axis=2, keepdims=True)).astype(np.float32)
    return predictions, random.integers(0, classes, images)


def values(parts: Any) -> dict[str, float]:
    return {name: mean.value for name, mean in vars(parts).items()}


def test_a_table_of_votes_is_decomposed_as_by_hand() -> None:
    votes = np.array([[0, 0, 0, 0, 1], [0, 0, 0, 1, 2], [1, 1, 1, 1, 1], [0, 0, 1, 1, 2]]).T
    predictions = 0.1 + 0.7 * np.eye(3)[votes]
    predictions[4, 3] = [0.0, 0.4, 0.6]  # of classes 0 and 1, with two votes each, 1 is the more probable
    found = values(decompose_zero_one(predictions, np.array([0, 1, 2, 1])))
    assert found == pytest.approx(
        {
            "loss": (0.2 + 0.8 + 1.0 + 0.6) / 4,
            "bias": (0 + 1 + 1 + 0) / 4,
            "unbiased_variance": (0.2 + 0.6) / 4,
            "biased_variance": 0.4 / 4,
            "net_variance": (0.2 - 0.5 * 0.4 + 0.6) / 4,
        }
    )


def test_bias_and_variance_of_probabilities_are_those_of_their_distribution() -> None:
    """P(right of two classes) ~ Beta(a, b), three trainings: neither part may depend on so few."""
    a, b, images = 6.0, 2.0, 50_000
    right = np.random.default_rng(1).beta(a, b, size=(3, images))
    found = decompose_brier(np.stack([right, 1 - right], axis=2), np.zeros(images, int))
    variance = 2 * a * b / ((a + b) ** 2 * (a + b + 1))
    bias = 2 * (b / (a + b)) ** 2
    for part, expected in ((found.variance, variance), (found.bias, bias), (found.loss, bias + variance)):
        assert part.over_images is not None
        assert 0 < part.over_images < 0.01 * expected
        assert abs(part.value - expected) < 4 * part.over_images


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(2, 9), st.integers(1, 30), st.integers(2, 5))
def test_the_parts_add_up_to_the_loss(seed: int, trainings: int, images: int, classes: int) -> None:
    predictions, labels = drawn(seed, trainings, images, classes)
    zero_one, brier = (values(of(predictions, labels)) for of in (decompose_zero_one, decompose_brier))
    answers = predictions.argmax(axis=2)
    assert zero_one["loss"] == pytest.approx((answers != labels).mean())
    assert zero_one["loss"] == pytest.approx(zero_one["bias"] + zero_one["net_variance"])
    if classes == 2:
        difference = zero_one["unbiased_variance"] - zero_one["biased_variance"]
        assert zero_one["net_variance"] == pytest.approx(difference, abs=1e-12)

    exact = predictions.astype(np.float64)
    scores = np.square(exact - np.eye(classes)[labels]).sum(axis=2)
    assert brier["loss"] == pytest.approx(scores.mean())
    assert brier["variance"] == pytest.approx(exact.var(axis=0, ddof=1).sum(axis=1).mean())
    assert brier["loss"] == pytest.approx(brier["bias"] + brier["variance"])


@pytest.mark.parametrize("decompose", [decompose_zero_one, decompose_brier])
def test_the_standard_errors_of_a_mean_loss_are_those_of_its_trainings_and_of_its_images(
    decompose: Any,
) -> None:
    predictions, labels = drawn(3, 7, 40, 4)
    right = np.eye(4)[labels]
    wrong = (predictions.argmax(axis=2) != labels).astype(float)
    losses = wrong if decompose is decompose_zero_one else np.square(predictions - right).sum(axis=2)
    loss = decompose(predictions, labels).loss
    assert loss.over_trainings == pytest.approx(losses.mean(axis=1).std(ddof=1) / np.sqrt(7))
    assert loss.over_images == pytest.approx(losses.mean(axis=0).std(ddof=1) / np.sqrt(40))
    two = decompose(predictions[:2, :1], labels[:1])
    assert all((part.over_images, part.over_trainings) == (None, None) for part in vars(two).values())


def test_what_is_no_table_of_predictions_is_refused() -> None:
    predictions, labels = drawn(1, 2, 5, 3)
    for wrong in ((predictions[:1], labels), (predictions[0], labels), (predictions, labels[:4])):
        with pytest.raises(ValueError, match=r"expected \(trainings, images, classes\)"):
            decompose_brier(*wrong)
