"""The training of one configuration by Keras' `fit`."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from regtune.config.trial import METRICS, TrialConfig, higher_is_better
from regtune.data.datasets import Data, load_data_cached
from regtune.errors import WorkerError
from regtune.settings import load_settings
from regtune.training.epoch import EpochModel
from regtune.training.graphs import Graphs
from regtune.training.model import plain_keras
from regtune.training.result import OnEpoch, TrialResult

End = Literal["max_epochs", "early_stopping", "pruned", "stopped", "non_finite"]

SPARSE_BELOW = 1e-3
"""A kernel's entry smaller than this in absolute value counts as absent."""

_graphs = Graphs()


@plain_keras()
def train(
    config: TrialConfig | Mapping[str, Any] | str | Path,
    data: Data | None = None,
    on_epoch: OnEpoch | None = None,
    callbacks: Sequence[Any] | Any = (),
) -> TrialResult:
    """Train one configuration with Keras' `fit`.

    Training ends with the last epoch, by early stopping, or when `on_epoch` says so. The same configuration and seed
    give bit-identical figures in every process that called `runtime.configure` first, whatever it trained before. A
    process trains one trial at a time, because trials of one structure share a graph; the next one starts sooner when
    it gets the same `data` object.

    Args:
        config: The configuration, its keys and values, or the path of its file, such as `best.yaml`.
        data: Images `(n, 784) float32 in [0, 1]` and labels `(n,) int32`; by default `load_data(config)`. When given,
            the configuration's `data` block is not read.
        on_epoch: Called after each epoch with its number from 1, its six METRICS and its duration in seconds; returns
            `continue`, `prune` or `stop`. An epoch with a NaN or infinite figure ends training as `non_finite` and is
            in no history.
        callbacks: Keras callbacks, one or several. To them an epoch is one batch; one that sets `stop_training` ends
            training as `early_stopping`.

    Returns:
        The history per epoch, the figures of the kept weights, and the network.

    Raises:
        ConfigError: The configuration is not valid.
        DataError: The data set is missing, damaged, or not the one the configuration names.
        WorkerError: Keras does not run on TensorFlow, or training ended for no known reason.

    Example:
        >>> result = train({"data": {"name": "mnist-5k"}, "training": {"max_epochs": 2}})
        >>> result.end, len(result.history["val_cross_entropy"])
        ('max_epochs', 2)
    """
    gc.collect(1)  # networks are cycles; a full collection, which would come too late, takes 0.3 s
    config = TrialConfig.of(config)
    if data is None:
        data = load_data_cached(config.data, load_settings().data_dir)
    model = _graphs.get(config, data)
    model.start(config)
    reporter = _Reporter(on_epoch)
    stopping = _early_stopping(config)
    epochs, given = config.training.max_epochs, keras.tree.flatten(callbacks or ())
    model.fit(
        model.epochs,
        epochs=epochs,
        steps_per_epoch=1,
        shuffle=False,
        verbose=0,
        callbacks=[*stopping, _TerminateOnNonFinite(reporter), *given, reporter],
    )
    whole = reporter.epochs == epochs
    if not whole and not model.stop_training:
        ended = f"training ended after epoch {reporter.epochs} of {epochs}"
        raise WorkerError(f"{ended}, and neither early stopping nor a callback has asked for it")
    end = reporter.end or ("max_epochs" if whole else "early_stopping")
    kept_epoch = stopping[0].best_epoch + 1 if stopping else reporter.epochs
    return _result(model, reporter, end, 0 if end == "non_finite" else kept_epoch)


class _Reporter(keras.callbacks.Callback):  # type: ignore[misc]
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
        figures: dict[str, float] = {name: float(logs[name]) for name in METRICS}
        for name, value in figures.items():
            self.history[name].append(value)
        self.epoch_seconds.append(seconds)
        verdict = self._on_epoch(epoch + 1, figures, seconds) if self._on_epoch else "continue"
        ended = self.model.stop_training or epoch + 1 == self.params["epochs"]
        if verdict != "continue" and not ended:  # a trial that is over anyway keeps its result
            self.end = "pruned" if verdict == "prune" else "stopped"
            self.model.stop_training = True


class _TerminateOnNonFinite(keras.callbacks.TerminateOnNaN):  # type: ignore[misc]
    """Keras' TerminateOnNaN, for every figure of an epoch and not for the loss alone."""

    def __init__(self, reporter: _Reporter) -> None:
        super().__init__()
        self._reporter = reporter

    def on_batch_end(self, batch: int, logs: Mapping[str, float] | None = None) -> None:
        if not all(math.isfinite(value) for value in (logs or {}).values()):
            self._reporter.end = "non_finite"
            self.model.stop_training = True


def _early_stopping(config: TrialConfig) -> list[keras.callbacks.EarlyStopping]:
    asked = config.early_stopping
    if asked is None:
        return []
    mode = "max" if higher_is_better(asked.monitor) else "min"
    options = {"patience": asked.patience, "min_delta": asked.min_delta, "restore_best_weights": True}
    return [keras.callbacks.EarlyStopping(asked.monitor, mode=mode, **options)]


def _result(model: EpochModel, reporter: _Reporter, end: End, kept_epoch: int) -> TrialResult:
    history = {name: tuple(values) for name, values in reporter.history.items()}
    result = TrialResult(
        history=history,
        epoch_seconds=tuple(reporter.epoch_seconds),
        end=end,
        kept_epoch=kept_epoch,
        figures={name: values[kept_epoch - 1] for name, values in history.items()} if kept_epoch else {},
        make_model=model.snapshot() if kept_epoch else None,
    )
    if end not in ("max_epochs", "early_stopping"):
        return result
    cross_entropy, accuracy = model.training_figures()
    hidden = [layer for layer in model.layers[:-1] if isinstance(layer, keras.layers.Dense)]
    kernels = np.concatenate([layer.kernel.numpy().ravel() for layer in hidden])
    return replace(
        result,
        train_cross_entropy=cross_entropy,
        train_accuracy=accuracy,
        generalization_gap=result.figures["val_cross_entropy"] - cross_entropy,
        sparsity=float(np.mean(np.abs(kernels) < SPARSE_BELOW)),
        l2_norm=float(np.linalg.norm(kernels)),
    )
