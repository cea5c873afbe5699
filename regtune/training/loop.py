"""The training of one configuration by Keras' `fit`, in a graph that configurations of one structure share."""

from __future__ import annotations

import gc
import math
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from regtune.config.trial import METRICS, TrialConfig, higher_is_better
from regtune.data.datasets import Data, load_data_cached
from regtune.settings import load_settings
from regtune.training.epoch import EpochModel, Resident
from regtune.training.fused import FusedModel
from regtune.training.model import hidden_kernels, plain_keras
from regtune.training.result import End, OnEpoch, TrialResult

MAX_GRAPHS = 16  # of about 10 MB each, besides the numbers of their networks
MAX_BYTES = 2**30
"""Of all their networks: weights, those that they began with, and two moments of each."""
SPARSE_BELOW = 1e-3
"""A kernel's entry smaller than this in absolute value counts as absent."""


class Graphs:
    """A cache of traced graphs: an `EpochModel` per structure, the least recently used dropped.

    They are kept while the data has the same form: another split, or another sample of as many images.
    """

    def __init__(self) -> None:
        self._models: OrderedDict[tuple[Any, ...], EpochModel] = OrderedDict()
        self._resident: Resident | None = None

    def get(self, config: TrialConfig, data: Data) -> EpochModel:
        """The model of a configuration's structure over `data`; the caller starts it."""
        if self._resident is not None and not self._resident.take(data):
            self._models.clear()
            self._resident = None
            gc.collect()  # frees the images that its graphs hold
        if self._resident is None:
            self._resident = Resident(data)
        key = structure(config)
        if key not in self._models:
            kind = FusedModel if config.training.fused else EpochModel
            self._models[key] = kind(config, self._resident)
        self._models.move_to_end(key)
        while len(self._models) > 1 and (len(self._models) > MAX_GRAPHS or self._bytes > MAX_BYTES):
            self._models.popitem(last=False)
            gc.collect()
        return self._models[key]

    @property
    def _bytes(self) -> int:
        return sum(4 * 4 * model.count_params() for model in self._models.values())


_graphs = Graphs()


def structure(config: TrialConfig) -> tuple[Any, ...]:
    """What two configurations must share to share a graph: all that cannot be a value in it.

    Rates, strengths, the learning rate and seeds are values.
    """
    training = config.training
    present = tuple(
        (rate > 0, l1 > 0 or l2 > 0, placement)
        for rate, l1, l2, placement in zip(*dict(config.regularization).values(), strict=True)
    )
    momentum = training.momentum if training.optimizer == "sgd" else 0.0
    optimizer = (training.optimizer, momentum > 0 if training.fused else momentum)
    return (config.model, present, optimizer, training.batch_size, training.fused)


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
    its `data` has as many images.

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
        WorkerError: Keras does not run on TensorFlow.

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
    stopping = []
    if (asked := config.early_stopping) is not None:
        mode = "max" if higher_is_better(asked.monitor) else "min"
        options = {**asked.model_dump(), "mode": mode, "restore_best_weights": True}
        stopping = [keras.callbacks.EarlyStopping(**options)]
    epochs = config.training.max_epochs
    model.fit(
        model.epochs,
        epochs=epochs,
        steps_per_epoch=1,
        shuffle=False,
        verbose=0,
        callbacks=[*stopping, *keras.tree.flatten(callbacks or ()), reporter],
    )
    trained = len(reporter.epoch_seconds)
    end = reporter.end or ("max_epochs" if trained == epochs else "early_stopping")
    kept_epoch = stopping[0].best_epoch + 1 if stopping else trained
    return _result(model, reporter, end, 0 if end == "non_finite" else kept_epoch)


class _Reporter(keras.callbacks.Callback):  # type: ignore[misc]
    """Keeps the history, asks `on_epoch` what follows, and stops training for it or for a figure that is not finite."""

    def __init__(self, on_epoch: OnEpoch | None) -> None:
        super().__init__()
        self.history: dict[str, list[float]] = {name: [] for name in METRICS}
        self.epoch_seconds: list[float] = []
        self.end: End | None = None
        self._on_epoch = on_epoch
        self._begun = 0.0

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self._begun = time.perf_counter()

    def on_batch_end(self, batch: int, logs: Mapping[str, float]) -> None:  # an epoch is one batch
        if not all(map(math.isfinite, logs.values())):
            self.end = "non_finite"
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float]) -> None:
        seconds = time.perf_counter() - self._begun
        if self.end == "non_finite":
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


def _result(model: EpochModel, reporter: _Reporter, end: End, kept_epoch: int) -> TrialResult:
    history = {name: tuple(values) for name, values in reporter.history.items()}
    figures = {name: values[kept_epoch - 1] for name, values in history.items()} if kept_epoch else {}
    measured: dict[str, Any] = {}
    if end in ("max_epochs", "early_stopping"):
        cross_entropy, accuracy = model.training_figures()
        kernels = np.concatenate([kernel.numpy().ravel() for kernel in hidden_kernels(model)])
        measured = {
            "train_cross_entropy": cross_entropy,
            "train_accuracy": accuracy,
            "generalization_gap": figures["val_cross_entropy"] - cross_entropy,
            "sparsity": float(np.mean(np.abs(kernels) < SPARSE_BELOW)),
            "l2_norm": float(np.linalg.norm(kernels)),
        }
    return TrialResult(
        history=history,
        epoch_seconds=tuple(reporter.epoch_seconds),
        end=end,
        kept_epoch=kept_epoch,
        figures=figures,
        make_model=model.snapshot() if kept_epoch else None,
        **measured,
    )
