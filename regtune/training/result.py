"""The result of training one configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

Verdict = Literal["continue", "prune", "stop"]
"""What follows an epoch: the next one, an end of an unpromising trial, or an end that was asked for."""
End = Literal["max_epochs", "early_stopping", "pruned", "stopped", "non_finite"]
OnEpoch = Callable[[int, Mapping[str, float], float], Verdict]
"""`on_epoch(epoch, figures, seconds)`: epoch counts from 1, figures are the six METRICS."""


@dataclass(frozen=True)
class TrialResult:
    """The figures of one training and its network.

    `train_cross_entropy` and what follows it are measured on the kept weights in inference mode, without the L1 and L2
    penalty, and only where training ended as `max_epochs` or `early_stopping`; else they are None.

    Attributes:
        history: One tuple per metric of METRICS, with one float per epoch.
        epoch_seconds: Duration of each epoch in seconds.
        end: Why training ended: `max_epochs`, `early_stopping`, `pruned`, `stopped` or `non_finite`.
        kept_epoch: The epoch, counted from 1, whose weights are kept: the one that early stopping restores, else the
            last; 0 for `non_finite`, which keeps none.
        figures: METRICS of the kept epoch; empty for `non_finite`.
        train_cross_entropy: Cross-entropy over all training images, in nats.
        train_accuracy: Accuracy over all training images, from 0 to 1.
        generalization_gap: Validation minus training cross-entropy, in nats.
        sparsity: Share of the hidden kernels' entries below 1e-3 in absolute value, from 0 to 1.
        l2_norm: Euclidean norm of all hidden kernels together.
        extra: `ece`, `brier` and `prunable`, measured only where a replicate asks for them.
        make_model: Creates `model`; None for `non_finite`, and once a result has crossed a process boundary.
    """

    history: Mapping[str, tuple[float, ...]]
    epoch_seconds: tuple[float, ...]
    end: End
    kept_epoch: int
    figures: Mapping[str, float]
    train_cross_entropy: float | None = None
    train_accuracy: float | None = None
    generalization_gap: float | None = None
    sparsity: float | None = None
    l2_norm: float | None = None
    extra: Mapping[str, float] = field(default_factory=dict)
    make_model: Callable[[], Any] | None = None

    @cached_property
    def model(self) -> Any:
        """The plain keras.Sequential with the kept weights, created on first use; or None.

        Most trials are trained for their figures alone, and Keras keeps some memory of each network.
        """
        return None if self.make_model is None else self.make_model()

    def without_model(self) -> TrialResult:
        """The figures alone, as they cross a process boundary."""
        return replace(self, make_model=None)
