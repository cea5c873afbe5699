"""What training a configuration gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

Verdict = Literal["continue", "prune", "stop"]
"""What follows an epoch: the next one, an end because the trial is not promising, or an end because somebody
said so."""
OnEpoch = Callable[[int, Mapping[str, float], float], Verdict]
"""`on_epoch(epoch, figures, seconds)`: epoch counts from 1, figures are the six METRICS."""


@dataclass(frozen=True)
class TrialResult:
    """A trained network and its figures.

    history: one list of floats a metric of METRICS, one entry an epoch. epoch_seconds: likewise.
    end: why training ended: `max_epochs`, `early_stopping`, `pruned`, `stopped` or `non_finite`.
    kept_epoch: the epoch, counted from 1, whose weights are kept: the one early stopping restores, else the
    last; 0 for non_finite, of which nothing is kept. figures: METRICS of that epoch, empty for non_finite.
    The rest is measured on the kept weights in inference mode, without the penalty: train_cross_entropy and
    train_accuracy over all training images, generalization_gap = validation minus training cross-entropy;
    sparsity = share of the hidden kernels' entries below 1e-3 in absolute value; l2_norm = Euclidean norm of
    all hidden kernels together. For an end other than max_epochs and early_stopping these are not measured:
    None. make_model: makes `model`; None for non_finite and where a result has crossed a process boundary.
    """

    history: Mapping[str, tuple[float, ...]]
    epoch_seconds: tuple[float, ...]
    end: Literal["max_epochs", "early_stopping", "pruned", "stopped", "non_finite"]
    kept_epoch: int
    figures: Mapping[str, float]
    train_cross_entropy: float | None
    train_accuracy: float | None
    generalization_gap: float | None
    sparsity: float | None
    l2_norm: float | None
    make_model: Callable[[], Any] | None = None

    @cached_property
    def model(self) -> Any:
        """The plain keras.Sequential with the kept weights, made when it is first asked for; or None.

        Most trials are trained for their figures alone, and of each network that is made Keras keeps some memory.
        """
        return None if self.make_model is None else self.make_model()

    def without_model(self) -> TrialResult:
        """The figures alone, as they cross a process boundary."""
        return replace(self, make_model=None)
