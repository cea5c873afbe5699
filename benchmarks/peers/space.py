"""The four parameters of sweeps/mnist.yaml as each tool has them said."""

from __future__ import annotations

from typing import Any

PLACEMENTS = ["none", "before_activation", "after_activation"]


def suggest(trial: Any) -> dict[str, Any]:
    """A configuration of an Optuna trial, which Ray's OptunaSearch passes as well; l1 and l2 may be off."""
    config: dict[str, Any] = {"dropout": trial.suggest_float("dropout", 0.0, 0.6)}
    for name in ("l1", "l2"):
        on = trial.suggest_categorical(f"{name}.on", [False, True])
        config[name] = trial.suggest_float(name, 1e-7, 1e-3, log=True) if on else 0.0
    config["batchnorm"] = trial.suggest_categorical("batchnorm", PLACEMENTS)
    return config


def propose(hp: Any) -> dict[str, Any]:
    """The same of KerasTuner's hyperparameters."""
    config: dict[str, Any] = {"dropout": hp.Float("dropout", 0.0, 0.6)}
    for name in ("l1", "l2"):
        on = hp.Boolean(f"{name}.on")
        with hp.conditional_scope(f"{name}.on", [True]):
            config[name] = hp.Float(name, 1e-7, 1e-3, sampling="log") if on else 0.0
    config["batchnorm"] = hp.Choice("batchnorm", PLACEMENTS)
    return config
