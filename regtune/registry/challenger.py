"""The challenger of a champion: trained afresh, and through the gates that need no test set."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from regtune.config.trial import TrialConfig
from regtune.data.datasets import Arrays, split_of
from regtune.registry.choice import Choice
from regtune.registry.gates import Gates, closed_gates, seconds_a_digit
from regtune.registry.training import OnEpoch, Training, train_twice
from regtune.registry.version import Gate
from regtune.study.record import Kept
from regtune.training import runtime


@dataclass(frozen=True)
class Challenger:
    """What is to be registered, and how its gates went.

    training: the one that is registered. network: of `deployable`. bytes: of its file. entries: of the hidden kernels
    that are not absent, as `decide` counts them.
    """

    training: Training
    network: Any
    gates: tuple[Gate, ...]
    entries: int
    bytes: int
    seconds_a_digit: float

    @property
    def kept(self) -> Kept:
        return _kept(self.training)


def challenge(
    choice: Choice,
    arrays: Arrays,
    limits: Gates,
    folder: Path,
    data_dir: Path | None,
    refit: bool,
    on_epoch: OnEpoch,
) -> Challenger:
    """Train twice, and ask the gates that need no test set.

    folder: gets the networks. refit: train a third time, on the training and the validation images together; then that
    is what is registered, while the first training is what the gates see. Raises WorkerError, DataError, StorageError.
    """
    runtime.configure()
    from regtune.registry.deployed import predict_pixels

    config, epochs = choice.config, choice.epochs if refit else None
    first, second, whole = train_twice(
        config, choice.source.metric, folder, data_dir, refit_epochs=epochs, on_epoch=on_epoch
    )
    gated = _network(config, arrays, first)
    network = _network(config, arrays, whole) if whole else gated
    file = folder / "deployed.keras"
    network.save(file)
    part = split_of(arrays, config.data).validation
    images, labels = arrays.x_train[part], arrays.y_train[part]
    digests = {"data": (config.data.digest or arrays.digest, arrays.digest)}
    for number, one in enumerate(filter(None, (first, second, whole)), 1):
        found = hashlib.sha256(one.model.read_bytes()).hexdigest()
        digests[f"training {number}"] = one.sha256, found
    size, seconds = file.stat().st_size, seconds_a_digit(partial(predict_pixels, network), images)
    gates = closed_gates(
        limits,
        partial(predict_pixels, gated),
        images,
        labels,
        trainings=(first.figures, second.figures),
        digests=digests,
        size_bytes=size,
        seconds_a_digit=seconds,
    )
    training = whole or first
    return Challenger(training, network, gates, _entries(config, arrays, training), size, seconds)


def classes_of(arrays: Arrays) -> int:
    """How many classes a data set has."""
    return int(arrays.y_train.max()) + 1


def _network(config: TrialConfig, arrays: Arrays, training: Training) -> Any:
    from regtune.training.deployable import load_deployable

    return load_deployable(config, classes_of(arrays), training.model.read_bytes())


def _entries(config: TrialConfig, arrays: Arrays, training: Training) -> int:
    layers: tuple[int, ...] = (arrays.x_train.shape[1], *config.model.hidden)
    weights = sum(a * b for a, b in pairwise(layers))
    return round((1 - _kept(training).sparsity) * weights)


def _kept(training: Training) -> Kept:
    assert training.record.kept is not None
    return training.record.kept
