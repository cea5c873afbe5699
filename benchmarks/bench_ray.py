"""What an epoch and a trial cost beside their training: on this machine, on Ray, and in Ray Tune.

    python benchmarks/bench_ray.py [--rounds 5] [--trials 10] [--epochs 20] [--json FILE]

One trial at a time, in turns, on one Ray cluster of this machine. regtune's executors train a network of one unit, and
the training's own seconds are taken off; Ray Tune's function does nothing but report, in actors that are reused. The
cost of an epoch is the time from one report to the next: a message to the coordinator, its answer, what follows from
it. The cost of a trial is the time from the end of one to the start of the next, which is already decided.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from report import machine, options, show, write

from regtune.config.trial import DataConfig, ModelConfig, TrainingConfig, TrialConfig
from regtune.data.datasets import load_arrays
from regtune.executors import EpochEnded, Executor, Task, TrialEnded, TrialStarted
from regtune.executors.local import LocalExecutor
from regtune.executors.ray import RayExecutor
from regtune.executors.ray_driver import RayCluster

TITLES = {
    "local": "`regtune sweep`, on this machine",
    "ray": "`regtune sweep --on ray`",
    "ray_tune": "Ray Tune",
}
Costs = dict[str, list[float]]
"""Milliseconds of each `epoch` and of each `trial`."""


def main() -> int:
    """Measure in turns, show, write."""
    parser = options(__doc__, verdict=False)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()
    load_before = os.getloadavg()[0]
    os.environ |= {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # 127.0.0.1
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_AIR_NEW_OUTPUT": "0",  # Ray Tune then prints nothing with verbose=0
    }
    import ray

    context = ray.init(
        "local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    arrays = load_arrays("mnist-5k")
    local = LocalExecutor(1, arrays)
    on_ray = RayExecutor(RayCluster(context.address_info["gcs_address"]), arrays, 1)
    trials, epochs = arguments.trials, arguments.epochs
    ways: Mapping[str, Callable[[], Costs]] = {
        "local": lambda: of_executor(local, trials, epochs),
        "ray": lambda: of_executor(on_ray, trials, epochs),
        "ray_tune": lambda: of_tune(trials, epochs),
    }
    try:
        for executor in (local, on_ray):
            of_executor(executor, 2, 2)  # warm
        rounds = []
        for number in range(arguments.rounds):
            names = [*ways] if number % 2 == 0 else [*ways][::-1]
            rounds.append({name: medians(ways[name]()) for name in names})
            print(f"round {number + 1} of {arguments.rounds}", flush=True)
    finally:
        on_ray.close()
        local.close()
        ray.shutdown()
    found = {
        "machine": machine() | {"ray": ray.__version__},
        "load_before": load_before,
        "trials": trials,
        "epochs": epochs,
        "ways": {way: {"title": TITLES[way], **summary([entry[way] for entry in rounds])} for way in ways},
        "rounds": rounds,
    }
    show(
        f"costs beside training: {arguments.rounds} rounds of {trials} trials of {epochs} epochs",
        ("", "ms an epoch", "epochs a second", "ms a trial"),
        (
            (
                one["title"],
                f"{one['epoch_ms']:.2f}",
                f"{one['epochs_a_second']:.0f}",
                f"{one['trial_ms']:.1f}",
            )
            for one in found["ways"].values()
        ),
    )
    write(arguments.json, found)
    return 0


def of_executor(executor: Executor, trials: int, epochs: int) -> Costs:
    """Train with an executor's one worker; every epoch goes on."""
    config = TrialConfig(
        model=ModelConfig(hidden=(1,)),
        training=TrainingConfig(max_epochs=epochs, batch_size=3200),
        early_stopping=None,
        data=DataConfig(name="mnist-5k"),
    )
    costs: Costs = {"epoch": [], "trial": []}
    ended = None
    for number in range(trials):
        executor.submit(Task(f"trial-{number}", config, "val_cross_entropy", None))
        before, done = None, False
        while not done:
            for event in executor.events(1.0):
                now = time.perf_counter()
                if isinstance(event, TrialStarted) and ended is not None:
                    costs["trial"].append(1000 * (now - ended))
                elif isinstance(event, EpochEnded):
                    executor.decide(event.uid, "continue")
                    if before is not None:
                        costs["epoch"].append(1000 * (now - before - event.seconds))
                    before = now
                elif isinstance(event, TrialEnded):
                    ended, done = now, True
    return costs


def of_tune(trials: int, epochs: int) -> Costs:
    """Run Ray Tune's function API as its documentation has it, one trial at a time."""
    from ray import tune

    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            tune.with_resources(_report_only, {"cpu": 1}),
            param_space={"number": tune.grid_search(list(range(trials))), "epochs": epochs, "folder": folder},
            tune_config=tune.TuneConfig(max_concurrent_trials=1, reuse_actors=True),
            run_config=tune.RunConfig(storage_path=f"{folder}/results", verbose=0),
        )
        tuner.fit()
        spans = sorted(tuple(map(float, file.read_text().split())) for file in Path(folder).glob("*.span"))
    assert len(spans) == trials
    return {
        "epoch": [1000 * (ended - began) / epochs for began, ended in spans],
        "trial": [1000 * (after[0] - one[1]) for one, after in pairwise(spans)],
    }


def _report_only(config: dict[str, Any]) -> None:
    from ray import tune

    began = time.time()
    for epoch in range(config["epochs"]):
        tune.report({"epoch": epoch, "val_cross_entropy": 1.0})
    ended = time.time()
    (Path(config["folder"]) / f"{config['number']}.span").write_text(f"{began} {ended}")


def medians(costs: Costs) -> dict[str, float]:
    """The round's medians."""
    return {f"{kind}_ms": statistics.median(values) for kind, values in costs.items()}


def summary(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Medians over the rounds, with the lowest and the highest."""
    epochs, trials = ([one[kind] for one in rounds] for kind in ("epoch_ms", "trial_ms"))
    return {
        "epoch_ms": statistics.median(epochs),
        "epoch_ms_lowest": min(epochs),
        "epoch_ms_highest": max(epochs),
        "epochs_a_second": 1000 / statistics.median(epochs),
        "trial_ms": statistics.median(trials),
        "trial_ms_lowest": min(trials),
        "trial_ms_highest": max(trials),
    }


if __name__ == "__main__":
    raise SystemExit(main())
