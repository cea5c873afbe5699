"""The training of one configuration: `train(config, data, on_epoch) -> TrialResult`.

TensorFlow is imported when `train` is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from regtune.training.result import OnEpoch, TrialResult, Verdict

if TYPE_CHECKING:
    from regtune.training.loop import train

__all__ = ["OnEpoch", "TrialResult", "Verdict", "train"]


def __getattr__(name: str) -> Any:
    if name != "train":
        raise AttributeError(f"module 'regtune.training' has no attribute {name!r}")
    from regtune.training.loop import train

    return train
