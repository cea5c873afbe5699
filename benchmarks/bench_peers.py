"""The same search by regtune and by Optuna, Ray Tune and KerasTuner, each as its own documentation tells a user.

    python benchmarks/bench_peers.py [--trials N --epochs N] [--only TOOL ...] [--rounds 1] [--parity] [--json FILE]

Same space (sweeps/mnist.yaml), trials, epochs, images, split, batch size and early stopping; the tools differ in what
they propose and prune. A tool is measured from outside, from its command's start to its end, on an empty folder: what
it starts, imports and writes is counted. The tools take turns. What is measured replaces that of the same setting in
FILE; without --trials and --epochs both settings of the goals are measured: 8 trials of at most 10 epochs, 30 of up to
30.

First comes the parity gate (`parity.py`), where FILE has none of these versions; --parity ends after it. No ratio is
given to a peer that has not passed it. Exits with 1 when the gate is not passed or a goal is missed.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from parity import PEERS, SCRIPTS, SPLITS, Gate, write_split
from report import machine, options, show, write
from tree import Measured, measure

from regtune.config.trial import DataConfig
from regtune.executors.local import default_workers
from regtune.settings import sqlite_url
from regtune.storage import open_engine
from regtune.study.board import read_board

SWEEP = Path(__file__).resolve().parents[1] / "sweeps" / "mnist.yaml"
OURS = "regtune"
TOOLS = (OURS, *SCRIPTS)
GOALS = {(8, 10): 8.0, (30, 30): 10.0}
"""Trials and epochs, and how many times a peer's seconds a trial-epoch are to be regtune's."""
TARGET_ACCURACY = 0.98
PACKAGES = ("mlflow", "optuna", "optuna-integration", "ray", "keras-tuner")
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}
WARM = "import keras, keras_tuner, mlflow, optuna_integration, ray.tune, regtune"


def main() -> int:
    """Gate, measure in turns, show, write; 1 when the gate is not passed or a goal is missed."""
    parser = options(__doc__)
    parser.add_argument("--trials", type=int)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--only", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--parity", action="store_true", help="end after the parity gate")
    parser.add_argument(
        "--work", type=Path, default=Path("mlruns/peers"), help="folder of a gate's trainings until it ends"
    )
    given = parser.parse_args()
    if (given.trials is None) != (given.epochs is None):
        parser.error("--trials and --epochs: expected both or none")
    found: dict[str, Any] = {"parity": {}, "settings": []}
    if given.json and given.json.exists():
        found = json.loads(given.json.read_text())
    versions = machine(PACKAGES)["versions"]
    stale = [name for name in SPLITS if found["parity"].get(name, {}).get("versions") != versions]
    with ThreadPoolExecutor() as together:
        gates = together.map(lambda name: Gate(name, given.work / name).run(), stale)
        for name, gate in zip(stale, gates, strict=True):
            found["parity"][name] = {"versions": versions, **gate}
            write(given.json, found)
            shutil.rmtree(given.work / name)  # other versions train anew
    print_parity(found["parity"])
    unequal = any(not one["passed"] for gate in found["parity"].values() for one in gate["tools"].values())
    if given.parity:
        return int(unequal and not given.no_verdict)
    sizes = [(given.trials, given.epochs)] if given.trials else list(GOALS)
    subprocess.run([sys.executable, "-c", WARM], check=True, capture_output=True)
    for trials, epochs in sizes:
        setting = setting_of(found, given.dataset, trials, epochs, given.only)
        for number in range(given.rounds):
            for tool in given.only if number % 2 == 0 else given.only[::-1]:
                setting["tools"][tool].append(run(tool, given.dataset, trials, epochs))
                setting["summary"] = summary(setting, found["parity"])
                setting["missed"] = missed(setting)
                write(given.json, found)
    for setting in found["settings"]:
        print_setting(setting)
    short = any(setting["missed"] for setting in found["settings"])
    return int((short or unequal) and not given.no_verdict)


def setting_of(
    found: dict[str, Any], dataset: str, trials: int, epochs: int, tools: Sequence[str]
) -> dict[str, Any]:
    """The entry of a setting, emptied of what is measured again; of another machine nothing is kept."""
    what = {"dataset": dataset, "trials": trials, "epochs": epochs, "machine": machine(PACKAGES)}
    entry = next((one for one in found["settings"] if what.items() <= one.items()), None)
    if entry is None:
        size = dataset, trials, epochs
        others = [one for one in found["settings"] if (one["dataset"], one["trials"], one["epochs"]) != size]
        entry = {**what, "tools": {}}
        found["settings"] = sorted([*others, entry], key=lambda one: one["trials"])
    entry["load_before"] = round(os.getloadavg()[0], 2)
    entry["tools"].update({tool: [] for tool in tools})
    return entry


def run(tool: str, dataset: str, trials: int, epochs: int) -> dict[str, Any]:
    """One search of a tool, on an empty folder."""
    print(f"{tool}: {trials} trials of at most {epochs} epochs", flush=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if tool == OURS:
            chosen = [f"dataset={dataset}", f"run_cap={trials}", f"training.max_epochs={epochs}"]
            words = [word for one in (*chosen, "controls=false", "decide=false") for word in ("--set", one)]
            command = [
                sys.executable,
                "-m",
                "regtune",
                "sweep",
                str(SWEEP),
                *words,
                "--home",
                str(folder / "mlruns"),
            ]
            return {**result(measure(command, folder, QUIET), *our_epochs(folder)), **our_parts(folder)}
        write_split(DataConfig(name=dataset), folder / "images.npz")
        size = ["--trials", str(trials), "--epochs", str(epochs)]
        command = [
            sys.executable,
            str(PEERS / SCRIPTS[tool]),
            "--data",
            "images.npz",
            "--folder",
            name,
            *size,
        ]
        return result(measure(command, folder, QUIET), *their_epochs(folder / "epochs.jsonl"))


def result(measured: Measured, trials: int, epochs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """What a search took; epochs: the Unix time and the validation accuracy of each."""
    reached = [time for time, accuracy in epochs if accuracy >= TARGET_ACCURACY]
    figures = asdict(measured)
    started = figures.pop("started")
    return {
        **{name: round(value, 2) for name, value in figures.items()},
        "trials": trials,
        "trial_epochs": len(epochs),
        "best_val_accuracy": round(max(accuracy for _, accuracy in epochs), 5),
        "seconds_to_target": round(min(reached) - started, 2) if reached else None,
    }


def their_epochs(path: Path) -> tuple[int, list[tuple[float, float]]]:
    """How many trials a peer has begun, and the time and validation accuracy of each epoch."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    epochs = [(line["time"], line["val_accuracy"]) for line in lines if "val_accuracy" in line]
    return len({line["training"] for line in lines}), epochs


def our_epochs(folder: Path) -> tuple[int, list[tuple[float, float]]]:
    """The same of regtune's study."""
    records = _records(folder)
    epochs = [
        (moment / 1000, accuracy)
        for record in records
        for moment, accuracy in zip(
            record.epoch_ended_ms, record.history.get("val_accuracy", ()), strict=True
        )
    ]
    return len(records), epochs


def our_parts(folder: Path) -> dict[str, Any]:
    """Where regtune's time went: from the first trial's start to the last one's end, and training in its workers."""
    records = _records(folder)
    begun = min(record.started_ms or 0 for record in records)
    return {
        "trials_seconds": round((max(record.ended_ms or 0 for record in records) - begun) / 1000, 2),
        "training_seconds": round(sum(record.seconds for record in records) / default_workers(), 2),
    }


def _records(folder: Path) -> list[Any]:
    board = read_board(
        open_engine(sqlite_url((folder / "mlruns" / "studies.db").resolve())), "mnist-regularization"
    )
    return [row.record for row in board.rows if row.record is not None]


def summary(setting: dict[str, Any], parity: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Medians over the rounds; beside each peer that has passed the gate how many times regtune's its figures are."""
    names = ("seconds", "cpu_seconds", "peak_mib", "trial_epochs", "best_val_accuracy")
    found = {}
    for tool, runs in setting["tools"].items():
        if runs:
            found[tool] = {name: statistics.median(one[name] for one in runs) for name in names}
            reached = [one["seconds_to_target"] for one in runs]
            found[tool]["seconds_to_target"] = None if None in reached else statistics.median(reached)
            a_trial_epoch = statistics.median(one["seconds"] / one["trial_epochs"] for one in runs)
            found[tool]["seconds_a_trial_epoch"] = round(a_trial_epoch, 4)
    goal = GOALS.get((setting["trials"], setting["epochs"]))
    for tool, one in found.items():
        gates = [parity.get(name, {"tools": {}})["tools"].get(tool, {}) for name in SPLITS]
        if OURS in found and all(gate.get("passed") for gate in gates):
            one["ratio"] = round(one["seconds_a_trial_epoch"] / found[OURS]["seconds_a_trial_epoch"], 2)
            one["ratio_of_seconds"] = round(one["seconds"] / found[OURS]["seconds"], 2)
            if goal is not None:
                one["met"] = one["ratio"] >= goal
    return found


def print_parity(parity: dict[str, Any]) -> None:
    """Print the gate."""
    rows = [
        (
            *(dataset, tool, str(one["pairs"]), f"{one['difference']:+.5f}"),
            *(
                f"{one['low']:+.5f} to {one['high']:+.5f}",
                f"{one['p']:.2g}",
                "passed" if one["passed"] else "FAILED",
            ),
        )
        for dataset, gate in parity.items()
        for tool, one in gate["tools"].items()
    ]
    columns = "images", "regtune minus", "pairs", "val_accuracy", "90 % interval", "p", "within ±0.001"
    show("parity: the same configurations in all tools", columns, rows, words=2)


def print_setting(setting: dict[str, Any]) -> None:
    """Print the tools of a setting, the goals, and what bounds what falls short."""
    rows = []
    for tool, one in setting["summary"].items():
        reached, ratio = one["seconds_to_target"], one.get("ratio")
        verdict = {True: "met", False: "MISSED"}.get(one.get("met"), "") if ratio else ""
        rows.append(
            (
                *(tool, f"{one['seconds']:.1f} s", f"{one['trial_epochs']:.0f}"),
                f"{1 / one['seconds_a_trial_epoch']:.2f}",
                f"{one['seconds_a_trial_epoch']:.3f} s",
                "not reached" if reached is None else f"{reached:.0f} s",
                *(f"{one['peak_mib'] / 1024:.2f} GiB", f"{one['cpu_seconds']:.0f} s"),
                f"{ratio:.1f} {verdict}" if ratio else "",
            )
        )
    title = f"{setting['trials']} trials of at most {setting['epochs']} epochs, {setting['dataset']}"
    columns = (
        *("", "whole command", "trial-epochs", "a second", "seconds each"),
        *("to 0.98", "memory", "CPU", "times regtune's"),
    )
    show(title, columns, rows)
    print(setting["missed"])


def missed(setting: dict[str, Any]) -> str:
    """Which goals of a setting are missed and what bounds regtune there; empty where none is."""
    short = [
        f"{tool} {one['ratio']:.1f}" for tool, one in setting["summary"].items() if one.get("met") is False
    ]
    if not short:
        return ""
    ours = setting["tools"][OURS][-1]
    seconds, trials, training = (ours[name] for name in ("seconds", "trials_seconds", "training_seconds"))
    return (
        f"Short of {GOALS[setting['trials'], setting['epochs']]:.0f} times: {', '.join(short)}. "
        f"Of regtune's {seconds:.1f} s, {seconds - trials:.1f} lie before its first trial and after its last, "
        f"{trials - training:.1f} between trainings, {training:.1f} in training, "
        f"which alone is {training / ours['trial_epochs']:.3f} s a trial-epoch."
    )


if __name__ == "__main__":
    raise SystemExit(main())
