"""The cost of a sweep: sweeps/mnist.yaml on the full MNIST, beside its configurations in the notebook's way.

    python benchmarks/bench_sweep.py [--trials 60] [--notebook-trials 3] [--json FILE] [--board FILE]

The notebook's way has no pruning and no warm workers: one trial after another by stock `fit` on all cores. It is
measured on evenly spaced whole trials of the sweep, and its budget is their mean times the number of trials. Exits
with 1 if the best validation accuracy is below 0.979, or if the coordinator takes more than 1 % of the sweep's CPU.
"""

from __future__ import annotations

import io
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from children import Script
from report import machine, options, write
from rich.console import Console

from regtune import SweepSpec, run_sweep
from regtune.cli.views.tables import board_table, comparison_text
from regtune.settings import Settings, load_settings
from regtune.storage import open_engine
from regtune.study.board import compare, read_board, read_top
from regtune.study.progress import Row
from regtune.training.runtime import ARITHMETIC

SWEEP = Path(__file__).resolve().parents[1] / "sweeps" / "mnist.yaml"
TARGET_ACCURACY = 0.979
TARGET_COORDINATOR_SHARE = 0.01
TOP = 10


def main() -> int:
    """Sweep, measure the notebook's way, show, write; 1 when the target is missed."""
    parser = options(__doc__, verdict=False)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--notebook-trials", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--home", type=Path, help="folder of the study; by default a temporary one")
    parser.add_argument("--board", type=Path, help="write the best trials and the controls to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(home=arguments.home or Path(folder))
        found = measure(settings, arguments.trials, arguments.workers, arguments.notebook_trials)
        board = board_text(settings)
    show(found)
    print(board)
    if arguments.board:
        arguments.board.write_text(board)
    write(arguments.json, found)
    sweep = found["sweep"]
    return int(
        sweep["best_val_accuracy"] < TARGET_ACCURACY
        or sweep["coordinator_cpu_share"] > TARGET_COORDINATOR_SHARE
    )


def board_text(settings: Settings) -> str:
    """The ten best trials and the controls, as `regtune sweep` shows them at its end, and what it says of the best."""
    name = SweepSpec.load(SWEEP).name
    engine = open_engine(settings.storage_url)
    board = read_top(engine, name, TOP)
    console = Console(width=118, file=io.StringIO(), color_system=None)
    console.print(board_table(board, console.width))
    found = compare(board)
    assert found is not None
    console.print("", comparison_text(found), sep="\n")
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"  # type: ignore[attr-defined]


def measure(settings: Settings, trials: int, workers: int, notebook_trials: int) -> dict[str, Any]:
    """Both ways, one after the other."""
    load_before = os.getloadavg()[0]
    spec = SweepSpec.load(SWEEP, [f"run_cap={trials}", "decide=false"])
    coordinator, children = time.process_time(), children_cpu()
    outcome = run_sweep(spec, settings=settings, workers=workers)
    coordinator, children = time.process_time() - coordinator, children_cpu() - children
    rows = read_board(open_engine(settings.storage_url), spec.name).rows
    complete = [row for row in rows if row.state == "COMPLETE"]
    notebook = measure_notebook(rows[:: max(1, len(rows) // notebook_trials)][:notebook_trials])
    seconds = statistics.mean(seconds for seconds, _ in notebook)
    return {
        "machine": machine(),
        "load_before": round(load_before, 2),
        "sweep": {
            "trials": outcome.complete + outcome.pruned,
            "complete": outcome.complete,
            "pruned": outcome.pruned,
            "workers": workers,
            "seconds": round(outcome.seconds, 1),
            "trial_epochs": outcome.trial_epochs,
            "trial_epochs_per_second": round(outcome.trial_epochs / outcome.seconds, 2),
            "coordinator_cpu_share": round(coordinator / (coordinator + children), 4),
            "best_val_cross_entropy": complete[0].value,
            "best_val_accuracy": accuracy(complete[0]),
            "best_mix": complete[0].record.config.mix if complete[0].record else "",
        },
        "notebook": {
            "measured_trials": len(notebook),
            "measured_epochs": sum(epochs for _, epochs in notebook),
            "seconds_a_trial": round(seconds, 1),
            "epochs_per_second": round(
                sum(epochs for _, epochs in notebook) / sum(s for s, _ in notebook), 3
            ),
            "seconds_for_the_budget": round(seconds * trials),
        },
        "ratio": round(seconds * trials / outcome.seconds, 1),
    }


def children_cpu() -> float:
    """CPU seconds of the workers and the tracking process that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def accuracy(row: Row) -> float:
    """Validation accuracy of the kept weights."""
    assert row.record is not None
    assert row.record.kept is not None
    return row.record.kept.figures["val_accuracy"]


def measure_notebook(rows: list[Row]) -> list[tuple[float, int]]:
    """Seconds and epochs of the rows' configurations, trained in the notebook's way in a process of its own."""
    notebook = Script("notebook_trials.py", without=ARITHMETIC)
    found = []
    try:
        notebook.answer()
        for row in rows:
            assert row.record is not None
            notebook.ask(json.dumps(row.record.config.to_dict()))
            seconds, epochs = notebook.answer().split()
            found.append((float(seconds), int(epochs)))
    finally:
        notebook.close()
    return found


def show(found: dict[str, Any]) -> None:
    """Print the table."""
    sweep, notebook = found["sweep"], found["notebook"]
    described = found["machine"]
    print(f"{described['cpu']}, {described['cores']} cores, load {found['load_before']} at the start\n")
    print(f"{'':34}{'seconds':>10}{'epochs/s':>10}")
    print(
        f"{'regtune sweep, two workers':34}{sweep['seconds']:>10.0f}{sweep['trial_epochs_per_second']:>10.2f}"
    )
    print(
        f"{'the notebook' + chr(39) + 's way':34}"
        f"{notebook['seconds_for_the_budget']:>10.0f}{notebook['epochs_per_second']:>10.2f}"
        f"   ({notebook['measured_trials']} of {sweep['trials']} trials measured)"
    )
    print(
        f"\n{found['ratio']} times faster; the coordinator took {sweep['coordinator_cpu_share']:.1%} of its CPU"
    )
    print(
        f"the best by val_cross_entropy has {sweep['best_val_accuracy']:.4f} validation accuracy: {sweep['best_mix']}"
    )


if __name__ == "__main__":
    sys.exit(main())
