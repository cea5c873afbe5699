"""The parity gate of bench_peers.py: whether all tools reach the same validation accuracy with the same configurations.

Each tool trains the same configurations from the same seeds through its own machinery, regtune through its executor.
Two one-sided t-tests on the paired differences must place their mean within ±0.001 (Schuirmann 1987), with as many
pairs as the first ones ask for. The peers call the same `fit`, so their figures can be equal to the last digit: a peer
whose first trainings are equal to Optuna's in every epoch shares the rest with it; any other trains all pairs itself.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import nct, t
from statsmodels.stats.weightstats import DescrStatsW, ttost_paired

from regtune import TrialConfig
from regtune.config.trial import DataConfig
from regtune.data.datasets import load_arrays, split_of
from regtune.executors import EpochEnded, Task, TrialEnded
from regtune.executors.local import LocalExecutor, default_workers
from regtune.settings import load_settings
from regtune.training.runtime import ARITHMETIC

PEERS = Path(__file__).resolve().parent / "peers"
SCRIPTS = {"Optuna": "optuna_study.py", "Ray Tune": "ray_tune.py", "KerasTuner": "keras_tuner_search.py"}
ALL_PAIRS = "Optuna"
"""The peer that trains every pair."""

MARGIN, ALPHA, POWER = 0.001, 0.05, 0.9
PILOT = 24
EQUAL = 4
CONFIGURATIONS: Sequence[Mapping[str, Any]] = (
    {"dropout": 0.0, "l1": 0.0, "l2": 0.0, "batchnorm": "none"},
    {"dropout": 0.2, "l1": 0.0, "l2": 0.0, "batchnorm": "after_activation"},
    {"dropout": 0.3, "l1": 1e-5, "l2": 0.0, "batchnorm": "before_activation"},
    {"dropout": 0.1, "l1": 0.0, "l2": 1e-4, "batchnorm": "none"},
)
"""Each technique of the space, and none."""
SPLITS: Mapping[str, tuple[DataConfig, int]] = {
    "mnist-5k": (DataConfig(name="mnist-5k", validation=0.5), 10),
    "mnist": (DataConfig(name="mnist"), 5),
}
"""What the gate trains on, and for how many epochs at most. Half of the few images validate: that is more precise."""

Training = Sequence[tuple[float, float]]
"""Validation accuracy and cross-entropy, an epoch each."""


def pair(index: int) -> dict[str, Any]:
    """A configuration and its seed."""
    return {**CONFIGURATIONS[index % len(CONFIGURATIONS)], "seed": 1000 + index, "name": f"pair_{index}"}


def pairs_needed(sd: float, margin: float = MARGIN, power: float = POWER, alpha: float = ALPHA) -> int:
    """Pairs with which two equal tools pass in `power` of the cases, if their paired differences have this `sd`."""
    count = 3
    while True:
        limit = t.ppf(1 - alpha, count - 1)
        if 1 - 2 * nct.cdf(limit, count - 1, margin * math.sqrt(count) / sd) >= power:
            return count
        count += 1


def equivalence(ours: Sequence[float], theirs: Sequence[float], margin: float = MARGIN) -> dict[str, Any]:
    """The two one-sided tests: mean difference, its interval at 1 - 2 alpha, and the larger p-value."""
    differences = np.subtract(ours, theirs)
    low, high = DescrStatsW(differences).tconfint_mean(2 * ALPHA)
    p = float(ttost_paired(np.array(ours), np.array(theirs), -margin, margin)[0])
    return {
        "pairs": len(ours),
        "difference": float(differences.mean()),
        "low": float(low),
        "high": float(high),
        "sd": float(differences.std(ddof=1)),
        "p": p,
        "passed": p < ALPHA,
    }


def kept_accuracy(training: Training) -> float:
    """Validation accuracy of the epoch that early stopping restores: the first with the lowest cross-entropy."""
    return min(training, key=lambda epoch: epoch[1])[0]


def read_trainings(path: Path) -> dict[str, Training]:
    """The trainings of a file of `Epochs` that came to their end, by their names."""
    found: dict[str, list[tuple[float, float]]] = {}
    ended = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        said = json.loads(line)
        if said.get("ended"):
            ended[said["name"]] = found[said["training"]]
        else:
            figures = said["val_accuracy"], said["val_cross_entropy"]
            found.setdefault(said["training"], []).append(figures)
    return ended


def write_split(config: DataConfig, path: Path) -> None:
    """Write regtune's split as an .npz file of whole numbers, which the peers read."""
    arrays = load_arrays(config.name, load_settings().data_dir)
    split = split_of(arrays, config)
    parts = {"train": split.train, "val": split.validation}
    images = {f"x_{part}": arrays.x_train[rows] for part, rows in parts.items()}
    np.savez(path, **images, **{f"y_{part}": arrays.y_train[rows] for part, rows in parts.items()})


class Gate:
    """The gate on one data set. Trainings that `folder` has are not repeated, so an interrupted gate goes on."""

    def __init__(self, dataset: str, folder: Path) -> None:
        self.config, self.epochs = SPLITS[dataset]
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        write_split(self.config, folder / "images.npz")

    def run(self) -> dict[str, Any]:
        """Train what is needed, and test every peer."""
        ours = self.accuracies("regtune", PILOT)
        theirs = self.accuracies(ALL_PAIRS, PILOT)
        sd = statistics.stdev(np.subtract(ours, theirs).tolist())
        count = max(PILOT, pairs_needed(sd))
        print(f"{self.config.name}: differences have an sd of {sd:.4f}; {count} pairs", flush=True)
        ours, theirs = self.accuracies("regtune", count), self.accuracies(ALL_PAIRS, count)
        tools = {}
        for tool in SCRIPTS:
            first = self.trainings(tool, EQUAL)
            equal = tool != ALL_PAIRS and first == self.trainings(ALL_PAIRS, EQUAL)
            tools[tool] = equivalence(ours, theirs if equal else self.accuracies(tool, count))
            tools[tool]["equal_to_optuna"] = EQUAL if equal else 0
        return {
            "validation_images": self.config.validation,
            "epochs": self.epochs,
            "margin": MARGIN,
            "pilot": PILOT,
            "pilot_sd": sd,
            "tools": tools,
        }

    def accuracies(self, tool: str, count: int) -> list[float]:
        """What a tool reaches with the first `count` pairs."""
        return [kept_accuracy(training) for training in self.trainings(tool, count)]

    def trainings(self, tool: str, count: int) -> list[Training]:
        """A tool's first `count` pairs, trained as far as they are missing."""
        folder = self.folder / tool.replace(" ", "-").lower()
        folder.mkdir(exist_ok=True)
        names = [pair(index)["name"] for index in range(count)]
        found = read_trainings(folder / "epochs.jsonl")
        missing = [pair(index) for index in range(count) if names[index] not in found]
        if missing:
            print(f"{self.config.name}: {tool} trains {len(missing)} pairs", flush=True)
            (self._ours if tool == "regtune" else self._theirs)(tool, missing, folder)
            found = read_trainings(folder / "epochs.jsonl")
        return [found[name] for name in names]

    def _theirs(self, tool: str, missing: Sequence[Mapping[str, Any]], folder: Path) -> None:
        (folder / "pairs.json").write_text(json.dumps(missing))
        options = ["--data", self.folder / "images.npz", "--folder", folder, "--epochs", str(self.epochs)]
        with (folder / "log.txt").open("a") as log:
            subprocess.run(
                [sys.executable, PEERS / SCRIPTS[tool], *options, "--pairs", folder / "pairs.json"],
                env={**os.environ, **ARITHMETIC, "RAY_USAGE_STATS_ENABLED": "0"},
                stdout=log,
                stderr=log,
                check=True,
            )

    def _ours(self, tool: str, missing: Sequence[Mapping[str, Any]], folder: Path) -> None:
        waiting = [(one["name"], self._task(one)) for one in reversed(missing)]
        left = len(waiting)
        executor = LocalExecutor(default_workers(), load_settings().data_dir)
        try:
            while left:
                while waiting and executor.idle:
                    executor.submit(waiting.pop()[1])
                for event in executor.events(1.0):
                    if isinstance(event, EpochEnded):
                        executor.decide(event.uid, "continue")
                    elif isinstance(event, TrialEnded):
                        left -= 1
                        _append(folder / "epochs.jsonl", event)
        finally:
            executor.close()

    def _task(self, one: Mapping[str, Any]) -> Task:
        searched = {name: one[name] for name in CONFIGURATIONS[0]}
        values = {
            "regularization": searched,
            "training": {"max_epochs": self.epochs},
            "data": self.config.model_dump(),
            "seed": one["seed"],
        }
        return Task(one["name"], TrialConfig.from_dict(values), "val_cross_entropy", folder=None)


def _append(path: Path, event: TrialEnded) -> None:
    said = {"training": event.uid, "name": event.uid}
    history = event.result.history
    with path.open("a") as file:
        for accuracy, loss in zip(history["val_accuracy"], history["val_cross_entropy"], strict=True):
            file.write(json.dumps({**said, "val_accuracy": accuracy, "val_cross_entropy": loss}) + "\n")
        file.write(json.dumps({**said, "ended": True}) + "\n")
