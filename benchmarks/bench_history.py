"""What a bounded history costs: simple regret of TPE that is shown all finished trials, or the best and the latest.

    python benchmarks/bench_history.py [--trials 1500] [--seeds 8] [--processes 2] [--json FILE]

Studies in memory over the space of sweeps/mnist.yaml, on functions whose minimum is 0. Each study is run with the same
seed under every history. The regret is the function's value, without noise, at the trial with the lowest observed
value. Differences are paired by seed; intervals are 95 %, by Student's t.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from typing import Any

import numpy as np
import optuna
from big_study import SWEEP
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from report import machine, options, show, write
from scipy import stats

from regtune.config.sweepfile import SweepSpec
from regtune.search import Space
from regtune.search.memory import Draft, StudyInMemory
from regtune.search.samplers import BEST, RECENT, History, make_sampler
from regtune.study.study import derive_seed

HISTORIES: dict[str, tuple[int | None, int]] = {
    "all": (None, 0),
    f"{BEST} + {RECENT}": (BEST, RECENT),
    "25 + 125": (25, 125),
}
NOISE = 0.0012
"""Standard deviation of one trial's accuracy by its seed on MNIST; values of `noisy` are on that scale."""


def _unit(shown: Mapping[str, Any]) -> tuple[float, float, float, str]:
    """Dropout and both strengths in [0, 1], where a penalty that is off is as weak as the weakest."""

    def strength(name: str) -> float:
        value = float(shown[name])
        return (math.log10(value) + 7) / 4 if value else 0.0

    return float(shown["dropout"]) / 0.6, strength("l1"), strength("l2"), str(shown["batchnorm"])


def bowl(shown: Mapping[str, Any]) -> float:
    """One smooth minimum."""
    u, v, w, place = _unit(shown)
    steps = {"none": 0.1, "before_activation": 0.0, "after_activation": 0.03}
    return (u - 0.4) ** 2 + 0.5 * (v - 0.55) ** 2 + 0.3 * (w - 0.7) ** 2 + steps[place]


def valley(shown: Mapping[str, Any]) -> float:
    """Techniques stand in for each other: a curved valley, elsewhere for each placement of batch norm."""
    u, v, w, place = _unit(shown)
    wanted = {"none": 1.5, "before_activation": 1.1, "after_activation": 1.3}[place]
    off = {"none": 0.05, "before_activation": 0.0, "after_activation": 0.02}[place]
    return (u + v * v + w - wanted) ** 2 + 0.1 * (u - 0.3) ** 2 + 0.05 * (v - 0.6) ** 2 + off * u


def waves(shown: Mapping[str, Any]) -> float:
    """Many minima, one of them the lowest (Rastrigin's function, scaled)."""
    u, v, w, place = _unit(shown)
    found = 0.05 * (place != "after_activation")
    for x, at in ((u, 0.35), (v, 0.6), (w, 0.45)):
        found += (x - at) ** 2 + 0.03 * (1 - math.cos(8 * math.pi * (x - at)))
    return found


def noisy(shown: Mapping[str, Any]) -> float:
    """The bowl on the scale of MNIST's validation cross-entropy, where noise is as large as most differences."""
    return 0.02 * bowl(shown)


FUNCTIONS: dict[str, tuple[Callable[[Mapping[str, Any]], float], float]] = {
    "bowl": (bowl, 0.0),
    "valley": (valley, 0.0),
    "waves": (waves, 0.0),
    "noisy": (noisy, NOISE),
}


def run(function: str, history: str, seed: int, trials: int) -> dict[str, Any]:
    """One study; its regret after a quarter of the trials, half and all, and its seconds."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    spec = SweepSpec.load(SWEEP)
    space = Space(spec)
    memory = InMemoryStorage()
    storage = StudyInMemory(memory, memory.create_new_study([StudyDirection.MINIMIZE], function))
    study = optuna.load_study(study_name=function, storage=storage)
    dice = np.random.default_rng(seed)
    value, noise = FUNCTIONS[function]
    seen = History(space, *HISTORIES[history])
    best, regret, regrets = math.inf, math.inf, {}
    began = time.process_time()
    for number in range(trials):
        sampler = make_sampler(space, derive_seed(seed, number, "sampler"))
        shown = seen.shown(study.get_trials(deepcopy=False), study.direction)
        draft = Draft(storage, shown, sampler)
        true = value(space.suggest(draft.trial))
        observed = true + noise * float(dice.normal())
        storage.keep(draft.proposed)
        study.tell(number, observed)
        if observed < best:
            best, regret = observed, true
        if number + 1 in (trials // 4, trials // 2, trials):
            regrets[str(number + 1)] = regret
    seconds = time.process_time() - began
    return {"function": function, "history": history, "seed": seed, "regret": regrets, "seconds": seconds}


def main() -> None:
    """Run all, show, write."""
    parser = options(__doc__, verdict=False)
    parser.add_argument("--trials", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    cases = [
        (function, history, seed, arguments.trials)
        for seed, function, history in product(range(arguments.seeds), FUNCTIONS, HISTORIES)
    ]
    with ProcessPoolExecutor(arguments.processes) as pool:
        found = list(pool.map(run, *zip(*cases, strict=True)))
    summary = summarize(found, arguments.trials)
    print_table(summary, arguments.trials, arguments.seeds)
    result = {"machine": machine(), "trials": arguments.trials, "summary": summary, "studies": found}
    write(arguments.json, result)


def summarize(found: list[dict[str, Any]], trials: int) -> list[dict[str, Any]]:
    """Mean regrets with their intervals, and the differences to the whole history."""
    rows = []
    for function, history in product(FUNCTIONS, HISTORIES):
        regrets = _by_seed(found, function, history, trials)
        whole = _by_seed(found, function, "all", trials)
        chosen = [study for study in found if (study["function"], study["history"]) == (function, history)]
        rows.append(
            {
                "function": function,
                "history": history,
                "regret": _interval([regrets[seed] for seed in sorted(regrets)]),
                "difference": _interval([regrets[seed] - whole[seed] for seed in sorted(regrets)]),
                "ms_an_ask": 1000 * statistics.mean(study["seconds"] for study in chosen) / trials,
            }
        )
    return rows


def _by_seed(found: list[dict[str, Any]], function: str, history: str, trials: int) -> dict[int, float]:
    return {
        study["seed"]: study["regret"][str(trials)]
        for study in found
        if (study["function"], study["history"]) == (function, history)
    }


def _interval(values: list[float]) -> dict[str, float]:
    mean = statistics.mean(values)
    half = 0.0
    if len(values) > 1 and any(values):
        error = statistics.stdev(values) / math.sqrt(len(values))
        half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return {"mean": mean, "low": mean - half, "high": mean + half}


def print_table(found: list[dict[str, Any]], trials: int, seeds: int) -> None:
    """Print the functions and histories."""
    title = f"simple regret × 10⁴ after {trials:,} trials, {seeds} studies each, 95 % intervals"
    rows = (
        (
            row["function"],
            row["history"],
            _text(row["regret"]),
            "" if row["history"] == "all" else _text(row["difference"]),
            f"{row['ms_an_ask']:.1f} ms",
        )
        for row in found
    )
    show(title, ("function", "history", "regret", "more than with all", "CPU an ask"), rows, words=2)


def _text(interval: Mapping[str, float]) -> str:
    scaled = {name: 1e4 * value for name, value in interval.items()}
    return f"{scaled['mean']:.2f} ({scaled['low']:.2f} to {scaled['high']:.2f})"


if __name__ == "__main__":
    main()
