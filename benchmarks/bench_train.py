"""The cost of training: an epoch against its floor, two workers against the notebook's `fit`, the gap between trials.

    python benchmarks/bench_train.py [--quick] [--no-verdict] [--json FILE]

Everything is measured in turns, round by round, so that a slower machine is slower for all; ratios are taken within a
round, and their medians count. Exits with 1 when a target is missed. Needs the full MNIST.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any

from regtune.training.runtime import ARITHMETIC, configure

configure()

from children import Script  # noqa: E402
from floor import Floor  # noqa: E402
from report import machine, options, write  # noqa: E402

from regtune.config.trial import RegularizationConfig, TrainingConfig, TrialConfig  # noqa: E402
from regtune.data.datasets import Data, load_data  # noqa: E402
from regtune.settings import load_settings  # noqa: E402
from regtune.training.loop import train  # noqa: E402

TECHNIQUES: Mapping[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"dropout": 0.2},
    "batch norm + L1 + L2": {"batchnorm": "before_activation", "l1": 1e-5, "l2": 1e-4},
}
TARGETS = {"plain": 2.0, "batch norm + L1 + L2": 3.5}
SPEED_UP_TARGET = 8.0
BETWEEN_TARGET_SECONDS = 0.2
TRIAL_EPOCHS = 5


def main() -> int:
    """Measure, show, write; 1 when a target is missed."""
    parser = options(__doc__)
    parser.add_argument("--quick", action="store_true", help="three rounds instead of nine")
    arguments = parser.parse_args()
    rounds = 3 if arguments.quick else 9
    data = load_data(TrialConfig().data, load_settings().data_dir)
    load_before = os.getloadavg()[0]
    found = {
        "machine": machine(),
        "load_before": round(load_before, 2),
        "rounds": rounds,
        "epoch": measure_epochs(data, rounds),
        "between_trials": measure_between(data, rounds),
        "workers": measure_workers(rounds),
    }
    missed = show(found)
    write(arguments.json, found)
    return 1 if missed and not arguments.no_verdict else 0


def measure_epochs(data: Data, rounds: int) -> dict[str, Any]:
    """Seconds of an epoch, validation included, and their ratios to the floor of the same round."""
    floor = Floor(data.x_train, data.x_val, (128, 64, 10), batch_size=32)
    ways = {
        f"{name}{'' if fused else ', exact'}": _config(techniques, fused)
        for fused in (True, False)
        for name, techniques in TECHNIQUES.items()
    }
    seconds: dict[str, list[float]] = {"floor": [], **{name: [] for name in ways}}
    for config in ways.values():
        train(config, data)
    for turn in range(rounds):
        seconds["floor"].append(statistics.median(floor.seconds(3 * turn + part) for part in range(3)))
        for name, config in ways.items():
            seconds[name].append(train(config, data).epoch_seconds[-1])
    return {
        name: {
            **_summary(found),
            "to_floor": _summary(
                [mine / theirs for mine, theirs in zip(found, seconds["floor"], strict=True)]
            ),
        }
        for name, found in seconds.items()
    }


def measure_between(data: Data, rounds: int) -> dict[str, float]:
    """Seconds from a trial's last epoch to the next one's first, where the structure repeats."""
    ended: list[float] = []
    found: list[float] = []

    def on_epoch(epoch: int, figures: Mapping[str, float], seconds: float) -> Any:
        now = time.perf_counter()
        if epoch == 1 and ended:
            found.append(now - seconds - ended[-1])
        ended.append(now)
        return "continue"

    for trial in range(rounds + 2):
        amounts = {"dropout": 0.1 + trial / 100, "l2": 10.0 ** (-3 - trial % 4)}
        config = _config({**amounts, "batchnorm": "before_activation"}, fused=True, seed=trial)
        train(config, data, on_epoch)
    return _summary(found[1:])


def measure_workers(rounds: int) -> dict[str, Any]:
    """Trial-epochs per second: two workers at once with whole trials, and the notebook's `fit` on all cores."""
    started = [Script(name, without=ARITHMETIC) for name in ("notebook.py", "worker.py", "worker.py")]
    try:
        notebook, *workers = started
        for script in started:
            script.answer()
        rates: dict[str, list[float]] = {"notebook": [], "two workers": []}
        memory = 0
        for _ in range(rounds):
            begun = time.perf_counter()
            notebook.ask(1)
            notebook.answer()
            rates["notebook"].append(1 / (time.perf_counter() - begun))
            begun = time.perf_counter()
            for worker in workers:
                worker.ask(TRIAL_EPOCHS)
            memory = max(int(worker.answer().split()[1]) for worker in workers)
            rates["two workers"].append(2 * TRIAL_EPOCHS / (time.perf_counter() - begun))
    finally:
        for script in started:
            script.close()
    speed_up = [ours / theirs for ours, theirs in zip(rates["two workers"], rates["notebook"], strict=True)]
    return {
        "trial_epochs_per_second": {name: _summary(found) for name, found in rates.items()},
        "notebook_epoch_seconds": _summary([1 / rate for rate in rates["notebook"]]),
        "speed_up": _summary(speed_up),
        "worker_rss_mib": round(memory / 2**20),
    }


def show(found: Mapping[str, Any]) -> list[str]:
    """Print the table; return the targets that were missed."""
    described = found["machine"]
    print(f"{described['cpu']}, {described['cores']} cores, load {found['load_before']} at the start\n")
    print(_row("an epoch of 48,000 images, validation on 12,000", "seconds", "× floor", "target"))
    missed = []
    for name, figures in found["epoch"].items():
        ratio, target = figures["to_floor"]["median"], TARGETS.get(name)
        print(_row(name, f"{figures['median']:.3f}", f"{ratio:.2f}", f"≤ {target}" if target else ""))
        if target and ratio > target:
            missed.append(f"{name}: {ratio:.2f} × floor, expected at most {target}")
    workers, between = found["workers"], found["between_trials"]["median"]
    rates, speed_up = workers["trial_epochs_per_second"], workers["speed_up"]["median"]
    print("\n" + _row("784-128-64-10, dropout 0.2, adam, batch 32", "epochs/s", "×", "target"))
    print(_row("the notebook's fit, all cores", f"{rates['notebook']['median']:.2f}", "1.0", ""))
    ours = f"{rates['two workers']['median']:.2f}"
    print(_row("two workers at once", ours, f"{speed_up:.1f}", f"≥ {SPEED_UP_TARGET}"))
    print(
        f"\nbetween two trials {between * 1000:.0f} ms (≤ 200), a worker holds {workers['worker_rss_mib']} MiB"
    )
    if speed_up < SPEED_UP_TARGET:
        missed.append(f"two workers: {speed_up:.1f} × the notebook, expected at least {SPEED_UP_TARGET}")
    if between > BETWEEN_TARGET_SECONDS:
        missed.append(f"between trials: {between:.3f} s, expected at most {BETWEEN_TARGET_SECONDS}")
    for line in missed:
        print(f"MISSED  {line}")
    return missed


def _row(name: str, *cells: str) -> str:
    return f"{name:50}" + "".join(f"{cell:>10}" for cell in cells)


def _config(techniques: Mapping[str, Any], fused: bool, seed: int = 0) -> TrialConfig:
    return TrialConfig(
        regularization=RegularizationConfig(**techniques),
        training=TrainingConfig(max_epochs=2, fused=fused),
        seed=seed,
    )


def _summary(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 4),
        "least": round(min(values), 4),
        "most": round(max(values), 4),
    }


if __name__ == "__main__":
    sys.exit(main())
