"""A study to promote from: its search is made up, and what it chose is trained once for all tests of a file."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from made_up import MadeUp
from places import SWEEP

from benchmarks.simulated import Untracked
from regtune.config.sweepfile import SweepSpec
from regtune.evidence.decide import decide
from regtune.executors import Task
from regtune.registry.gates import Gates
from regtune.registry.training import Training, train_twice
from regtune.settings import Settings
from regtune.sweep import run_sweep

STUDY = "small"
SMALL: Mapping[str, Any] = {
    "method": "grid",
    "run_cap": 2,
    "training": {"batch_size": 32, "max_epochs": 3},
    "early_stopping": {"patience": 2},
    "parameters": {"dropout": {"values": [0.1, 0.2]}},
}
EPOCHS = 3
"""For how many a study of SMALL has its choice trained where no validation images are left."""
GATES = Gates(max_ece=None, min_accuracy_shifted=None, min_accuracy_noisy=None)
LENIENT = "max_ece: null\nmin_accuracy_shifted: null\nmin_accuracy_noisy: null\n"
"""Gates that a network of 16 units passes after three epochs."""


def _floor(task: Task) -> float:
    """Dropout 0.2 is much better than 0.1: the best trial is the decision's choice, too."""
    return 0.1 if task.config.regularization.dropout[0] == 0.2 else 0.5


def searched(settings: Settings, study: str = STUDY, **changes: Any) -> None:
    """A study of two trials, which MLflow has not heard of."""
    spec = SweepSpec.from_dict({**SWEEP, **SMALL, "name": study, **changes})
    run_sweep(spec, settings=settings, executor=MadeUp(_floor), tracker=Untracked)


def decided(settings: Settings, study: str = STUDY) -> None:
    """Decide it by replicates."""
    decide(study, settings=settings, executor=MadeUp(_floor), tracker=Untracked)


class TrainedOnce:
    """In the place of `train_twice`: it trains really when it is first called. folder: gets the networks."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._known: tuple[Training, ...] = ()

    def __call__(
        self,
        config: Any,
        metric: str,
        folder: Path,
        *given: Any,
        refit_epochs: int | None = None,
        **named: Any,
    ) -> tuple[Training, Training, Training | None]:
        if not self._known:
            found = train_twice(config, metric, self._folder, *given, refit_epochs=EPOCHS, **named)
            self._known = tuple(one for one in found if one)
        assert self._known[0].record.config == config
        assert refit_epochs in (None, EPOCHS)
        shutil.copytree(self._folder, folder, dirs_exist_ok=True)
        first, second, refit = (
            replace(one, model=folder / one.model.relative_to(self._folder)) for one in self._known
        )
        return first, second, refit if refit_epochs else None
