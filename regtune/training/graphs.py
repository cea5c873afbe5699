"""A cache of traced graphs: one `EpochModel` per structure, the least recently used dropped.

A structure is what cannot be a value in a graph: layers, batch norm's placement, which layers have dropout
or a penalty at all, the optimizer, the batch size, the arithmetic, the data. Rates, strengths, the learning
rate and seeds are values.
"""

from __future__ import annotations

import gc
from collections import OrderedDict
from typing import Any

from regtune.config.trial import TrialConfig
from regtune.data.datasets import Data
from regtune.training.epoch import EpochModel, Resident
from regtune.training.fused import FusedModel

MAX_GRAPHS = 16
"""Of about 10 MB each."""
MAX_DATA = 2


class Graphs:
    """A bounded cache of graphs, and of two data sets, each once for all its graphs."""

    def __init__(self, max_graphs: int = MAX_GRAPHS) -> None:
        self._max_graphs = max_graphs
        self._models: OrderedDict[tuple[Any, ...], EpochModel] = OrderedDict()
        self._residents: list[Resident] = []

    def __len__(self) -> int:
        return len(self._models)

    def get(self, config: TrialConfig, data: Data) -> EpochModel:
        """The model of a configuration's structure over `data`; the caller starts it."""
        resident = self._resident(data)
        key = (resident, *structure(config))
        if key not in self._models:
            kind = FusedModel if config.training.fused else EpochModel
            self._models[key] = kind(config, resident)
        self._models.move_to_end(key)
        if len(self._models) > self._max_graphs:
            self._models.popitem(last=False)
            gc.collect()
        return self._models[key]

    def _resident(self, data: Data) -> Resident:
        """The tensors of this `data` object, which becomes the latest used."""
        resident = next((known for known in self._residents if known.data is data), None) or Resident(data)
        self._residents = [*(known for known in self._residents if known is not resident), resident]
        while len(self._residents) > MAX_DATA:
            dropped = self._residents.pop(0)
            for key in [key for key in self._models if key[0] is dropped]:
                del self._models[key]
        return resident


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
