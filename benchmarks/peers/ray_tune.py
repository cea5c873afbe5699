"""Ray Tune, as its documentation has it: OptunaSearch, ASHA, an MLflow logger, actors that are used again.

As many trials at once as there are cores; `tune.with_parameters` puts the images into Ray's object store once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import ray
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from space import suggest
from task import OBJECTIVE, arguments, build, fitting, load


class Report(keras.callbacks.Callback):
    """Tells Ray each epoch, without a checkpoint."""

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float]) -> None:
        tune.report(dict(logs))


def train(config: dict[str, Any], data: Any, folder: Any, epochs: int) -> None:
    """A trial."""
    fit = fitting(data, folder, epochs, repeatable="pair" in config)
    fit["callbacks"].append(Report())
    build({"l1": 0.0, "l2": 0.0, **config.get("pair", config)}).fit(**fit)


given = arguments()
ray.init("local", include_dashboard=False, log_to_driver=False)
searching = {
    "search_alg": OptunaSearch(suggest, metric=OBJECTIVE, mode="min", seed=given.seed),
    "scheduler": ASHAScheduler(max_t=given.epochs),
    "num_samples": given.trials,
}
tuner = tune.Tuner(
    tune.with_parameters(train, data=load(given.data), folder=given.folder.resolve(), epochs=given.epochs),
    param_space={"pair": tune.grid_search(given.pairs)} if given.pairs else None,
    tune_config=tune.TuneConfig(
        metric=OBJECTIVE, mode="min", reuse_actors=True, **({} if given.pairs else searching)
    ),
    run_config=tune.RunConfig(
        name="mnist",
        storage_path=str(given.folder.resolve()),
        callbacks=[
            MLflowLoggerCallback(
                tracking_uri=f"sqlite:///{given.folder.resolve()}/mlflow.db", experiment_name="mnist"
            )
        ],
        verbose=0,
    ),
)
best = tuner.fit().get_best_result()
print(best.metrics[OBJECTIVE], best.config)
