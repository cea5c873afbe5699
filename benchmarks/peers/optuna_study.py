"""Optuna, as its documentation and its example for Keras have it: `study.optimize` over `model.fit`.

Trials are pruned by Optuna's default, the median pruner, and logged by `MLflowCallback` to a store in SQLite.
"""

from __future__ import annotations

import time
from typing import Any

import optuna
from optuna_integration import KerasPruningCallback, MLflowCallback
from space import suggest
from task import OBJECTIVE, arguments, build, fitting, load

given = arguments()
data = load(given.data)


def objective(trial: optuna.Trial) -> float:
    """The lowest validation cross-entropy of a trial, whose weights early stopping restores."""
    config: dict[str, Any] = {**suggest(trial), **trial.user_attrs}
    fit = fitting(data, given.folder, given.epochs, repeatable=bool(given.pairs))
    fit["callbacks"].append(KerasPruningCallback(trial, OBJECTIVE))
    history = build(config).fit(**fit)
    return float(min(history.history[OBJECTIVE]))


study = optuna.create_study(
    study_name=f"mnist-{time.time_ns()}",  # an interrupted gate leaves one behind
    storage=f"sqlite:///{given.folder}/optuna.db",
    sampler=optuna.samplers.TPESampler(seed=given.seed),
    pruner=optuna.pruners.NopPruner() if given.pairs else None,
)
for pair in given.pairs:
    known = {name: pair[name] for name in ("dropout", "l1", "l2", "batchnorm") if pair[name]}
    switches = {f"{name}.on": bool(pair[name]) for name in ("l1", "l2")}
    study.enqueue_trial(
        {"dropout": 0.0, **known, **switches}, user_attrs={"seed": pair["seed"], "name": pair["name"]}
    )
mlflow = MLflowCallback(tracking_uri=f"sqlite:///{given.folder}/mlflow.db", metric_name=OBJECTIVE)
study.optimize(objective, n_trials=len(given.pairs) or given.trials, callbacks=[mlflow])
print(study.best_value, study.best_params)
