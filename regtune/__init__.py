"""Hyperparameter sweeps for regularization: Optuna proposes, Keras trains, MLflow shows.

    from regtune import SweepSpec, run_sweep, open_study, train, build_model

The names are loaded when they are first used: importing regtune imports neither TensorFlow nor MLflow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regtune.config.sweepfile import SweepSpec
    from regtune.config.trial import TrialConfig
    from regtune.data.datasets import load_data
    from regtune.evidence.handle import open_study
    from regtune.evidence.run import run_sweep
    from regtune.registry.load import load_best, load_champion
    from regtune.study.decision import Decision
    from regtune.training.loop import train
    from regtune.training.model import build_model
    from regtune.training.result import TrialResult

__version__ = "0.1.0"

__all__ = [
    "Decision",
    "SweepSpec",
    "TrialConfig",
    "TrialResult",
    "__version__",
    "build_model",
    "load_best",
    "load_champion",
    "load_data",
    "open_study",
    "run_sweep",
    "train",
]

_HOMES = {
    "Decision": "regtune.study.decision",
    "SweepSpec": "regtune.config.sweepfile",
    "TrialConfig": "regtune.config.trial",
    "TrialResult": "regtune.training.result",
    "build_model": "regtune.training.model",
    "load_best": "regtune.registry.load",
    "load_champion": "regtune.registry.load",
    "load_data": "regtune.data.datasets",
    "open_study": "regtune.evidence.handle",
    "run_sweep": "regtune.evidence.run",
    "train": "regtune.training.loop",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'regtune' has no attribute {name!r}")
    from importlib import import_module

    if name in ("build_model", "load_champion", "train"):
        _prepare_keras()
    return getattr(import_module(_HOMES[name]), name)


def _prepare_keras() -> None:
    """Select TensorFlow as Keras' backend, unless both are imported. Raises WorkerError for a file in their place."""
    import os
    import sys
    from importlib.util import find_spec

    from regtune.errors import WorkerError

    if "keras" in sys.modules and "tensorflow" in sys.modules:
        return
    for package in ("keras", "tensorflow"):
        found = find_spec(package)
        if found is not None and found.submodule_search_locations is None:
            raise WorkerError(f"{found.origin} is found in place of the package {package}; rename that file")
    os.environ["KERAS_BACKEND"] = "tensorflow"


def __dir__() -> list[str]:
    return sorted(__all__)
