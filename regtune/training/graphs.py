"""A cache of traced graphs: one `EpochModel` per structure, the least recently used dropped.

A structure is what cannot be a value in a graph: layers, batch norm's placement, which layers have dropout
or a penalty at all, the optimizer, the batch size, the arithmetic, the data. Rates, strengths, the learning
rate and seeds are values.
"""

from __future__ import annotations

import gc
import hashlib
from collections import OrderedDict
from typing import Any

import numpy as np

from regtune.config.trial import TrialConfig
from regtune.data.datasets import Data
from regtune.training.epoch import EpochModel, Resident
from regtune.training.fused import FusedModel

MAX_GRAPHS = 16
"""Of about 10 MB each."""
MAX_DATA = 2


class Graphs:
    """A bounded cache of graphs, and of the data of two data sets, each once for all its graphs."""

    def __init__(self, max_graphs: int = MAX_GRAPHS) -> None:
        self._max_graphs = max_graphs
        self._models: OrderedDict[tuple[Any, ...], EpochModel] = OrderedDict()
        self._residents: OrderedDict[str, Resident] = OrderedDict()

    def __len__(self) -> int:
        return len(self._models)

    def get(self, config: TrialConfig, data: Data) -> EpochModel:
        """The model of a configuration's structure over `data`; the caller starts it."""
        contents, resident = self._resident(data)
        key = (contents, *structure(config))
        if key not in self._models:
            kind = FusedModel if config.training.fused else EpochModel
            self._models[key] = kind(config, resident)
        self._models.move_to_end(key)
        if len(self._models) > self._max_graphs:
            self._models.popitem(last=False)
            gc.collect()
        return self._models[key]

    def _resident(self, data: Data) -> tuple[str, Resident]:
        for contents, resident in self._residents.items():
            if resident.data is data:
                self._residents.move_to_end(contents)
                return contents, resident
        contents = _contents(data)
        if contents not in self._residents:
            self._residents[contents] = Resident(data)
        self._residents[contents].data = data
        self._residents.move_to_end(contents)
        while len(self._residents) > MAX_DATA:
            gone, _ = self._residents.popitem(last=False)
            for key in [key for key in self._models if key[0] == gone]:
                del self._models[key]
        return contents, self._residents[contents]


def structure(config: TrialConfig) -> tuple[Any, ...]:
    """What two configurations must share to share a graph, their data aside."""
    found, training = config.regularization, config.training
    present = tuple(
        (rate > 0, l1 > 0 or l2 > 0, placement)
        for rate, l1, l2, placement in zip(found.dropout, found.l1, found.l2, found.batchnorm, strict=True)
    )
    momentum = training.momentum if training.optimizer == "sgd" else 0.0
    optimizer = (training.optimizer, momentum > 0 if training.fused else momentum)
    return (config.model, present, optimizer, training.batch_size, training.fused)


def _contents(data: Data) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for array in (data.x_train, data.y_train, data.x_val, data.y_val):
        digest.update(str((array.shape, array.dtype)).encode())
        digest.update(np.ascontiguousarray(array).data)
    return f"{data.classes}-{digest.hexdigest()}"
