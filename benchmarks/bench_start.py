"""The start and the end of a short sweep: where the seconds of sweeps/quickstart.yaml go, and what eight workers hold.

    python benchmarks/bench_start.py [--rounds 3] [--json FILE] [--no-verdict]

The command is timed from outside, with its decision and without. The start lasts until the first epoch begins, the end
from the search's last epoch on. Memory is the proportional set size of all processes that train, at its peak in a sweep
with eight workers: what they share counts once. Exits with 1 when the search takes more than 12 s from the command to
its last line, or eight workers hold more than 2 GiB.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import psutil
from report import machine, options, show, write

from regtune.study.record import RECORD

QUICKSTART = Path(__file__).resolve().parents[1] / "sweeps" / "quickstart.yaml"
LOOK_SECONDS = 0.2
MANY = 8
TARGET_SECONDS = 12.0
TARGET_MIB = 2048
WAYS = {"search": ("--set", "decide=false"), "search and decision": ()}


def main() -> int:
    """Sweep, show, write; 1 when a target is missed."""
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    load_before = os.getloadavg()[0]
    rounds: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(arguments.rounds):
        for way, words in WAYS.items():
            rounds[way].append(sweep(*words)[0])
    ways = {
        way: {part: statistics.median(one[part] for one in found) for part in found[0]}
        for way, found in rounds.items()
    }
    memory = sweep("--set", "decide=false", "--workers", str(MANY))[1]
    for way, one in ways.items():
        show(way, ("part", "seconds"), ((part, f"{seconds:.1f}") for part, seconds in one.items()))
    print(f"{MANY} workers: {memory:.0f} MiB together")
    found = {"machine": machine(), "load_before": load_before, "rounds": arguments.rounds, "ways": ways}
    write(arguments.json, {**found, "workers": MANY, "workers_mib": memory})
    missed = ways["search"]["command"] > TARGET_SECONDS or memory > TARGET_MIB
    return int(missed and not arguments.no_verdict)


def sweep(*words: str) -> tuple[dict[str, float], float]:
    """Run the command in a folder of its own. Returns the seconds of its parts, and the trainers' MiB at their peak."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        home = Path(folder) / "mlruns"
        environment = {**_without_stores(), "REGTUNE_HOME": str(home)}
        command = [sys.executable, "-m", "regtune", "sweep", str(QUICKSTART), "--quiet", *words]
        began, peak = time.time(), 0.0
        with subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            while process.poll() is None:
                peak = max(peak, _trainers_mib(process.pid))
                time.sleep(LOOK_SECONDS)
        ended = time.time()
        if process.returncode:
            raise SystemExit(f"the sweep ended with {process.returncode}")
        first, last = _first_and_last_epoch(f"sqlite:///{home / 'studies.db'}")
    parts = {"start": first - began, "training": last - first, "end": ended - last, "command": ended - began}
    return parts, peak


def _without_stores() -> Mapping[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ("OPTUNA_STORAGE", "MLFLOW_TRACKING_URI")
    }


def _first_and_last_epoch(storage: str) -> tuple[float, float]:
    """When the search's first epoch began and its last one ended, in Unix seconds."""
    study = optuna.load_study(study_name=QUICKSTART.stem, storage=storage)
    records: list[dict[str, Any]] = [trial.user_attrs[RECORD] for trial in study.get_trials()]
    begins = [one["epoch_ended_ms"][0] / 1000 - one["epoch_seconds"][0] for one in records]
    return min(begins), max(one["epoch_ended_ms"][-1] for one in records) / 1000


def _trainers_mib(coordinator: int) -> float:
    """Proportional set size of the process that forks the workers, and of these."""
    total = 0
    with suppress(psutil.Error):
        for child in psutil.Process(coordinator).children(recursive=True):
            with suppress(psutil.Error):
                if "regtune.forks" in " ".join(child.cmdline()):
                    total += child.memory_full_info().pss
    return total / 2**20


if __name__ == "__main__":
    sys.exit(main())
