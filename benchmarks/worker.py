"""One worker: regtune's `train`, a whole trial a time, on one thread."""

from __future__ import annotations

import sys

from regtune.training.runtime import configure

configure()

import psutil  # noqa: E402

from regtune.config.trial import RegularizationConfig, TrainingConfig, TrialConfig  # noqa: E402
from regtune.data.datasets import load_data  # noqa: E402
from regtune.settings import load_settings  # noqa: E402
from regtune.training.loop import train  # noqa: E402

config = TrialConfig(regularization=RegularizationConfig(dropout=0.2), early_stopping=None)
data = load_data(config.data, load_settings().data_dir)


def trial(epochs: int, seed: int) -> None:
    """All of a trial: its epochs, the figures of its kept weights, the plain network."""
    train(config.model_copy(update={"training": TrainingConfig(max_epochs=epochs), "seed": seed}), data)


trial(1, 0)
print("ready", flush=True)
for seed, line in enumerate(sys.stdin, start=1):
    trial(int(line), seed)
    print(f"done {psutil.Process().memory_info().rss}", flush=True)
