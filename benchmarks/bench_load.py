"""The cost of a long sweep: throughput, memory, files and threads over thousands of trials of a fraction of a second.

    python benchmarks/bench_load.py [--trials 2000] [--workers 2] [--json FILE] [--no-verdict]

`regtune sweep` runs in a folder of its own, SQLite and MLflow included, and is looked at from outside: trials finished,
and of the coordinator, the writer and each worker the resident memory, file descriptors and threads. "Flat" compares
medians of the last tenth with those from the 200th trial to the 400th: memory within 10 %, descriptors and threads no
more than one above, which a look may catch open. The growth a trial, by least squares, is what 24 hours are
extrapolated from. Exits with 1 when something is not flat.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy
import yaml
from report import machine, options, show, write

LOOK_SECONDS = 0.5
WARM = 200
MOST_GROWTH = 1.10
DAY_SECONDS = 86_400
ROLES = {"worker": "regtune.forks", "writer": "regtune.tracking.live"}
SWEEP: dict[str, Any] = {
    "name": "load",
    "dataset": "mnist-5k",
    "method": "tpe",
    "seed": 1,
    "model": {"hidden": [16]},
    "training": {"batch_size": 256, "max_epochs": 2},
    "early_stopping": {"patience": 2},
    "decide": False,
    "parameters": {
        "dropout": {"min": 0.0, "max": 0.6},
        "l2": {"distribution": "log_uniform_values", "min": 1e-7, "max": 1e-3, "optional": True},
        "batchnorm": {"values": ["none", "before_activation", "after_activation"]},
    },
    "keep_models": 3,
    "controls": False,
}


def main() -> int:
    """Sweep, look, show, write; 1 when something grows."""
    parser = options(__doc__)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        seconds, looks = sweep(Path(folder), arguments.trials, arguments.workers)
    found = figures(looks, arguments.trials, seconds)
    print_table(found)
    given = {"machine": machine(), "load_before": load_before, "workers": arguments.workers}
    write(arguments.json, {**given, **found})
    return int(not all(one["flat"] for one in found["processes"].values()) and not arguments.no_verdict)


def sweep(folder: Path, trials: int, workers: int) -> tuple[float, list[dict[str, Any]]]:
    """Run the sweep; returns its seconds, and what was seen of it."""
    home = folder / "mlruns"
    (folder / "load.yaml").write_text(yaml.safe_dump({**SWEEP, "run_cap": trials}))
    command = [sys.executable, "-m", "regtune", "sweep", "load.yaml", "--workers", str(workers), "--quiet"]
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("OPTUNA_STORAGE", "MLFLOW_TRACKING_URI")
    }
    began = time.monotonic()
    looks = []
    with subprocess.Popen(command, cwd=folder, env={**kept, "REGTUNE_HOME": str(home)}) as process:
        while process.poll() is None:
            time.sleep(LOOK_SECONDS)
            with suppress(psutil.Error):
                finished = _finished(home / "studies.db")
                looks.append(
                    {"at": time.monotonic() - began, "finished": finished, "processes": _look(process.pid)}
                )
    if process.returncode:
        raise SystemExit(f"the sweep ended with {process.returncode}")
    return time.monotonic() - began, looks


def _finished(database: Path) -> int:
    if not database.exists():
        return 0
    engine = sqlalchemy.create_engine(f"sqlite:///{database}", connect_args={"timeout": 30})
    try:
        with engine.connect() as connection:
            count = "SELECT COUNT(*) FROM trials WHERE state IN ('COMPLETE', 'PRUNED')"
            return int(connection.scalar(sqlalchemy.text(count)) or 0)
    except sqlalchemy.exc.OperationalError:  # it is being made
        return 0
    finally:
        engine.dispose()


def _look(coordinator: int) -> dict[str, dict[str, float]]:
    """Memory (MiB), file descriptors and threads of each process of a sweep, and the CPU seconds it has used."""
    root = psutil.Process(coordinator)
    found = {"coordinator": _weigh(root)}
    workers = 0
    for child in sorted(root.children(recursive=True), key=lambda child: child.pid):
        role = next((role for role, module in ROLES.items() if module in " ".join(child.cmdline())), None)
        if role is None or (role == "worker" and child.ppid() == coordinator):  # that one only forks workers
            continue
        workers += role == "worker"
        found[f"worker {workers}" if role == "worker" else role] = _weigh(child)
    return found


def _weigh(process: psutil.Process) -> dict[str, float]:
    with process.oneshot():
        times = process.cpu_times()
        return {
            "mib": process.memory_info().rss / 2**20,
            "files": process.num_fds(),
            "threads": process.num_threads(),
            "cpu_seconds": times.user + times.system,
        }


def figures(looks: Sequence[dict[str, Any]], trials: int, seconds: float) -> dict[str, Any]:
    """What was seen, in figures."""
    warm = min(WARM, trials // 10)
    early = [look for look in looks if warm <= look["finished"] < 2 * warm]
    late = [look for look in looks if look["finished"] >= trials * 0.9]
    between = [look for look in looks if look["finished"] >= warm]
    pace = (between[-1]["finished"] - between[0]["finished"]) / (between[-1]["at"] - between[0]["at"])
    found = {}
    for name in early[0]["processes"]:
        before, after = (
            {key: statistics.median(look["processes"][name][key] for look in part if name in look["processes"])
             for key in ("mib", "files", "threads")}
            for part in (early, late)
        )  # fmt: skip
        points = [
            (look["finished"], look["processes"][name]["mib"])
            for look in between
            if name in look["processes"]
        ]
        slope = statistics.linear_regression(*zip(*points, strict=True)).slope
        cpu = late[-1]["processes"][name]["cpu_seconds"] if name in late[-1]["processes"] else None
        found[name] = {
            "warm": before,
            "end": after,
            "kib_a_trial": slope * 1024,
            "mib_after_a_day": before["mib"] + slope * pace * DAY_SECONDS,
            "cpu_seconds": cpu,
            "flat": after["mib"] <= MOST_GROWTH * before["mib"]
            and all(after[key] - before[key] <= 1 for key in ("files", "threads")),
        }
    return {"trials": trials, "seconds": seconds, "trials_a_second": pace, "processes": found}


def print_table(found: dict[str, Any]) -> None:
    """Print the processes with their verdicts."""
    title = f"{found['trials']:,} trials in {found['seconds']:.0f} s, {found['trials_a_second']:.2f} a second"
    columns = (
        *("", "memory, warm", "at the end", "a trial", "after 24 hours"),
        *("files", "threads", "CPU", "verdict"),
    )
    rows = (
        (
            name,
            f"{one['warm']['mib']:.0f} MiB",
            f"{one['end']['mib']:.0f} MiB",
            f"{one['kib_a_trial']:+.2f} KiB",
            f"{one['mib_after_a_day']:.0f} MiB",
            f"{one['warm']['files']:.0f} to {one['end']['files']:.0f}",
            f"{one['warm']['threads']:.0f} to {one['end']['threads']:.0f}",
            "" if one["cpu_seconds"] is None else f"{one['cpu_seconds']:.0f} s",
            "flat" if one["flat"] else "GROWS",
        )
        for name, one in found["processes"].items()
    )
    show(title, columns, rows)


if __name__ == "__main__":
    raise SystemExit(main())
