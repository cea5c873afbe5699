"""KerasTuner, as its guides have it: BayesianOptimization over a function that builds the network."""

from __future__ import annotations

from typing import Any

import keras
import keras_tuner
from space import propose
from task import OBJECTIVE, arguments, build, fitting, load


def searched(hp: keras_tuner.HyperParameters) -> keras.Sequential:
    """The network of a trial."""
    return build(propose(hp))


def main() -> None:
    """Search, or train each pair."""
    given = arguments()
    objective = keras_tuner.Objective(OBJECTIVE, "min")
    places = {"directory": given.folder, "project_name": "mnist"}

    def paired(hp: keras_tuner.HyperParameters) -> keras.Sequential:
        return build(given.pairs[hp.Choice("pair", list(range(len(given.pairs))))])

    if given.pairs:
        tuner: Any = keras_tuner.GridSearch(paired, objective, overwrite=True, **places)
    else:
        tuner = keras_tuner.BayesianOptimization(
            searched, objective, max_trials=given.trials, seed=given.seed, **places
        )
    tuner.search(**fitting(load(given.data), given.folder, given.epochs, repeatable=bool(given.pairs)))
    print(tuner.get_best_hyperparameters()[0].values)


if __name__ == "__main__":
    main()
