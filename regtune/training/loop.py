"""`train(config, data, on_epoch) -> TrialResult`: one configuration, trained by Keras' `fit`."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from regtune.config import METRICS, TrialConfig, higher_is_better
from regtune.data import Data
from regtune.model import build_model
from regtune.training.epoch import EpochModel
from regtune.training.graphs import Graphs
from regtune.training.result import OnEpoch, TrialResult, Verdict

SPARSE_BELOW = 1e-3
"""A kernel's entry smaller than this in absolute value counts as absent."""

_graphs = Graphs()


def train(
    config: TrialConfig, data: Data, on_epoch: OnEpoch | None = None, callbacks: Sequence[Any] = ()
) -> TrialResult:
    """Train `config` on `data` until its epochs are over, early stopping ends it, or `on_epoch` does.

    `on_epoch` is called after each epoch whose figures are finite; what it returns decides what follows. An epoch with a
    NaN or infinite figure ends training as `non_finite` and appears nowhere. `callbacks` are Keras' own; one that sets
    `stop_training` ends training as `early_stopping`. The same configuration and seed give bit-identical figures in any
    process that called `runtime.configure` first. Not for several threads at once.
    """
    model = _graphs.get(config, data)
    model.start(config)
    reporter = _Reporter(on_epoch)
    early_stopping = _early_stopping(config)
    model.fit(
        model.epochs(),
        epochs=config.training.max_epochs,
        steps_per_epoch=1,
        shuffle=False,
        verbose=0,
        callbacks=[*early_stopping, _TerminateOnNonFinite(reporter), *callbacks, reporter],
    )
    end = reporter.end or (
        "max_epochs" if reporter.epochs == config.training.max_epochs else "early_stopping"
    )
    kept_epoch = early_stopping[0].best_epoch + 1 if early_stopping and reporter.epochs else reporter.epochs
    return _result(config, data, model, reporter, end, kept_epoch)


class _Reporter(keras.callbacks.Callback):
    """Keeps the history, asks `on_epoch` what follows, and stops training accordingly."""

    def __init__(self, on_epoch: OnEpoch | None) -> None:
        super().__init__()
        self.history: dict[str, list[float]] = {name: [] for name in METRICS}
        self.epoch_seconds: list[float] = []
        self.end: Literal["pruned", "stopped", "non_finite"] | None = None
        self._on_epoch = on_epoch
        self._begun = 0.0

    @property
    def epochs(self) -> int:
        return len(self.epoch_seconds)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self._begun = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        seconds = time.perf_counter() - self._begun
        if self.end == "non_finite" or logs is None:
            return
        figures = {name: float(logs[name]) for name in METRICS}
        for name, value in figures.items():
            self.history[name].append(value)
        self.epoch_seconds.append(seconds)
        verdict: Verdict = self._on_epoch(epoch + 1, figures, seconds) if self._on_epoch else "continue"
        if verdict != "continue":
            self.end = "pruned" if verdict == "prune" else "stopped"
            self.model.stop_training = True


class _TerminateOnNonFinite(keras.callbacks.TerminateOnNaN):
    """Keras' TerminateOnNaN, for all figures of an epoch, not for the loss alone."""

    def __init__(self, reporter: _Reporter) -> None:
        super().__init__()
        self._reporter = reporter

    def on_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        if not all(math.isfinite(value) for value in (logs or {}).values()):
            self._reporter.end = "non_finite"
            self.model.stop_training = True


def _early_stopping(config: TrialConfig) -> list[keras.callbacks.EarlyStopping]:
    found = config.early_stopping
    if found is None:
        return []
    return [
        keras.callbacks.EarlyStopping(
            monitor=found.monitor,
            mode="max" if higher_is_better(found.monitor) else "min",
            patience=found.patience,
            min_delta=found.min_delta,
            restore_best_weights=True,
        )
    ]


def _result(
    config: TrialConfig,
    data: Data,
    model: EpochModel,
    reporter: _Reporter,
    end: Literal["max_epochs", "early_stopping", "pruned", "stopped", "non_finite"],
    kept_epoch: int,
) -> TrialResult:
    history = {name: tuple(values) for name, values in reporter.history.items()}
    figures = {name: values[kept_epoch - 1] for name, values in history.items()} if kept_epoch else {}
    complete = end in ("max_epochs", "early_stopping")
    plain = build_model(config, data.features, data.classes)
    plain.set_weights(_weights_for(model))
    cross_entropy, accuracy = model.training_figures() if complete else (None, None)
    kernels = np.concatenate(
        [layer.kernel.numpy().ravel() for layer in model.layers[:-1] if isinstance(layer, keras.layers.Dense)]
    )
    return TrialResult(
        history=history,
        epoch_seconds=tuple(reporter.epoch_seconds),
        end=end,
        kept_epoch=kept_epoch,
        figures=figures,
        train_cross_entropy=cross_entropy,
        train_accuracy=accuracy,
        generalization_gap=figures["val_cross_entropy"] - cross_entropy
        if cross_entropy is not None
        else None,
        sparsity=float(np.mean(np.abs(kernels) < SPARSE_BELOW)) if complete else None,
        l2_norm=float(np.linalg.norm(kernels)) if complete else None,
        model=plain,
    )


def _weights_for(model: EpochModel) -> list[Any]:
    return [variable.numpy() for layer in model.layers for variable in layer.weights]
