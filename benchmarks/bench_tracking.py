"""The cost of MLflow in a sweep: the same sweep with it and without it, in turns, into SQLite and through a server.

    python benchmarks/bench_tracking.py [--rounds 1] [--trials 60] [--dataset mnist] [--json FILE] [--no-verdict]

Every sweep trains the same trials (random search over the space of sweeps/mnist.yaml, nothing pruned) in the same two
warm workers, so the time is what differs. Two figures for each way: the ratio of the sweep's time to that of the same
round without MLflow, which includes all that a busy machine does to a time; and the CPU seconds of the writing process
and of the server while the sweep went on, as a share of all that the sweep used, its workers' and coordinator's with
them. The second is what a machine with nothing to spare pays, and other work on the machine does not change it. Both
are also given without the start (importing MLflow and opening its store, once a sweep, however long it is). MLflow's
tables are made before, as `regtune db init` does: once a folder. Exits with 1 above 1 % of CPU into SQLite.
"""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from bench_coordinator import Unwatched
from report import machine, options, show, write
from simulated import Untracked

from regtune import SweepSpec, run_sweep
from regtune.executors.local import LocalExecutor
from regtune.server import service
from regtune.server.databases import init_databases
from regtune.settings import Settings, load_settings
from regtune.tracking.live import Tracker

SWEEP = Path(__file__).resolve().parent.parent / "sweeps" / "mnist.yaml"
WORKERS = 2
MOST_SHARE = 0.01
WAYS = ("without", "sqlite", "server")
"""Without MLflow, straight into its SQLite store, through the folder's own server."""


class Metered(Tracker):
    """The real tracker; keeps what its process has used up."""

    cpu_seconds = 0.0
    started_seconds = 0.0
    """Up to its first word, when the store is open."""

    def look(self) -> None:
        """Read the process's clock; called often, so that nothing is missed but its last moment."""
        try:
            times = psutil.Process(self.pid).cpu_times()
        except psutil.NoSuchProcess:
            return
        Metered.cpu_seconds = times.user + times.system
        if not self._heard:
            Metered.started_seconds = Metered.cpu_seconds

    def news(self) -> list[str]:
        """As ever."""
        self.look()
        return super().news()

    def close(self, timeout_seconds: float | None = None) -> int:
        """Ends as ever, watched until then."""
        closed = threading.Event()
        watching = threading.Thread(target=self._watch, args=(closed,))
        watching.start()
        unwritten = super().close(timeout_seconds)
        closed.set()
        watching.join()
        return unwritten

    def _watch(self, closed: threading.Event) -> None:
        while not closed.wait(0.02):
            self.look()


def main() -> int:
    """Measure in turns, show, write; 1 when the target is missed."""
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    arguments = parser.parse_args()
    load_before = os.getloadavg()[0]
    executor = LocalExecutor(WORKERS, load_settings().data_dir)
    try:
        sweep_once("without", executor, arguments.dataset, 4)  # the graphs are traced
        rounds = []
        for number in range(arguments.rounds):
            ways = arguments.ways if number % 2 == 0 else arguments.ways[::-1]
            rounds.append(
                {way: sweep_once(way, executor, arguments.dataset, arguments.trials) for way in ways}
            )
            print(f"round {number + 1} of {arguments.rounds}", flush=True)
    finally:
        executor.close()
    found = {
        "machine": machine(),
        "load_before": load_before,
        "trials": arguments.trials,
        "dataset": arguments.dataset,
        "ways": {way: summary(rounds, way) for way in arguments.ways if way != "without"},
        "rounds": rounds,
    }
    print_table(found)
    write(arguments.json, found)
    shares = [entry["cpu_share"] for way, entry in found["ways"].items() if way == "sqlite"]
    return 1 if max(shares, default=0.0) > MOST_SHARE and not arguments.no_verdict else 0


def sweep_once(way: str, executor: LocalExecutor, dataset: str, trials: int) -> dict[str, float]:
    """One sweep in an empty folder: its seconds and epochs, and the CPU seconds of what tracks it."""
    spec = SweepSpec.load(
        SWEEP,
        [
            "method=random",
            "early_terminate={type: none}",
            "decide=false",
            f"run_cap={trials}",
            f"dataset={dataset}",
        ],
    )
    Metered.cpu_seconds = Metered.started_seconds = 0.0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        settings = load_settings(home=Path(folder) / "mlruns")
        init_databases(settings)
        with_server = _server(settings) if way == "server" else None
        tracker: Any = Metered if way != "without" else lambda *_: Untracked()
        try:
            before, trained = with_server() if with_server else 0.0, _training(executor)
            outcome = run_sweep(
                spec, settings=settings, executor=executor, observer=Unwatched(), tracker=tracker
            )
            server = with_server() - before if with_server else 0.0
            trained = _training(executor) - trained
        finally:
            if with_server:
                service.down(settings)
    assert outcome.unwritten == 0
    return {
        "seconds": outcome.seconds,
        "trial_epochs": outcome.trial_epochs,
        "training_cpu_seconds": trained,
        "writer_cpu_seconds": Metered.cpu_seconds,
        "start_cpu_seconds": Metered.started_seconds,
        "server_cpu_seconds": server,
    }


def _training(executor: LocalExecutor) -> float:
    """CPU seconds of the workers and of this process, which is the coordinator."""
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in (os.getpid(), *executor.pids.values()))


def _server(settings: Settings) -> Callable[[], float]:
    """Start the folder's server; what is returned reads the CPU seconds of all its processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = service.up(settings, port=port, tell=lambda line: None)

    def used() -> float:
        root = psutil.Process(started.pid)
        return sum(sum(one.cpu_times()[:2]) for one in (root, *root.children(recursive=True)))

    return used


def summary(rounds: Sequence[dict[str, dict[str, float]]], way: str) -> dict[str, float]:
    """Medians over the rounds; the lowest and the highest of the ratio beside it."""
    ratios = [entry[way]["seconds"] / entry["without"]["seconds"] for entry in rounds if "without" in entry]
    whole, later = [], []
    for entry in rounds:
        one = entry[way]
        cpu = one["writer_cpu_seconds"] + one["server_cpu_seconds"]
        whole.append(cpu / (cpu + one["training_cpu_seconds"]))
        later.append((cpu - one["start_cpu_seconds"]) / (cpu + one["training_cpu_seconds"]))
    return {
        "seconds": statistics.median(entry[way]["seconds"] for entry in rounds),
        **(
            {"time_ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
            if ratios
            else {}
        ),
        "cpu_share": statistics.median(whole),
        "cpu_share_without_start": statistics.median(later),
        "start_cpu_seconds": statistics.median(entry[way]["start_cpu_seconds"] for entry in rounds),
    }


def print_table(found: dict[str, Any]) -> None:
    """Print the ways."""
    title = f"what MLflow costs a sweep of {found['trials']} trials, {WORKERS} workers"
    columns = (
        *("", "sweep", "workers busy", "time / without"),
        *("CPU / all of it", "after the start", "start, CPU"),
    )
    rows = []
    for way in found["rounds"][0]:
        entry = found["ways"].get(way)
        seconds, training = (
            statistics.median(one[way][name] for one in found["rounds"])
            for name in ("seconds", "training_cpu_seconds")
        )
        ratio = (
            "{time_ratio:.3f} ({lowest:.3f} to {highest:.3f})".format(**entry)
            if entry and "lowest" in entry
            else ""
        )
        shares = (
            [f"{entry[name]:.2%}" for name in ("cpu_share", "cpu_share_without_start")] if entry else ["", ""]
        )
        start = f"{entry['start_cpu_seconds']:.1f} s" if entry else ""
        busy = f"{training / (WORKERS * seconds):.1%}"
        rows.append((way, f"{seconds:.1f} s", busy, ratio, *shares, start))
    show(title, columns, rows)


if __name__ == "__main__":
    raise SystemExit(main())
