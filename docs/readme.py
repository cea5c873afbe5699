"""Writes the parts of README.md that come from the program and from committed results.

python docs/readme.py            rewrite README.md
python docs/readme.py --check    exit 1 when it is not up to date
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import typer

from regtune.cli import app

ROOT = Path(__file__).resolve().parents[1]


def verbs() -> str:
    """A table of the verbs, from the program itself."""
    group: Any = typer.main.get_command(app)
    lines = ["| verb | what it does |", "|---|---|"]
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            summary = f"{command.get_short_help_str(200)} ({', '.join(command.commands)})"
        else:
            summary = command.get_short_help_str(200)
        lines.append(f"| `{name}` | {summary} |")
    return "\n".join(lines)


def findings() -> str:
    """Speed and results, from benchmarks/*.json."""
    sweep = json.loads((ROOT / "benchmarks/sweep.json").read_text())
    train = json.loads((ROOT / "benchmarks/train.json").read_text())
    board = (ROOT / "benchmarks/board.txt").read_text().rstrip()
    ours, notebook, machine = sweep["sweep"], sweep["notebook"], sweep["machine"]
    epoch, workers = train["epoch"], train["workers"]
    exact = epoch["plain, exact"]["median"] / epoch["plain"]["median"]
    heavy = epoch["batch norm + L1 + L2"]["to_floor"]["median"]
    return f"""\
{ours["trials"]} trials of `sweeps/mnist.yaml` on the full MNIST with {ours["workers"]} workers (`make bench-sweep`; \
{machine["cpu"]}, {machine["cores"]} cores):

| | time | trial-epochs a second | validation accuracy of the best by cross-entropy |
|---|---|---|---|
| `regtune sweep`, {ours["trial_epochs"]} trial-epochs | {ours["seconds"] / 60:.1f} min | \
{ours["trial_epochs_per_second"]:.2f} | {ours["best_val_accuracy"]:.4f} ({ours["best_mix"]}) |
| the notebook's way, {notebook["measured_trials"]} of the {ours["trials"]} trials measured | \
{notebook["seconds_for_the_budget"] / 60:.0f} min | {notebook["epochs_per_second"]:.2f} | |

The notebook's way trains the same configurations one after another with stock `fit` on all cores, without pruning.

```
{board}
```

What an epoch costs (`make bench-train`, medians of {train["rounds"]} interleaved rounds; the floor is its matrix \
products, one fused Adam pass and the gather, on one thread):
plain {epoch["plain"]["to_floor"]["median"]:.2f} × the floor, with batch norm, L1 and L2 {heavy:.2f} ×.
The exact way (`fused: false`) costs {exact:.2f} × the fused one.
Two workers together train {workers["speed_up"]["median"]:.1f} × the trial-epochs a second of the notebook's `fit` on \
the same two cores.
Between two trials of one structure {train["between_trials"]["median"] * 1000:.0f} ms pass."""


def filled(text: str) -> str:
    """The README with its generated parts."""
    for name, part in (("verbs", verbs()), ("findings", findings())):
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.S)
        text = pattern.sub(lambda found, part=part: f"{found[1]}{part}\n{found[2]}", text, count=1)
    return text


def main() -> int:
    """Rewrite or check."""
    path = ROOT / "README.md"
    before = path.read_text()
    after = filled(before)
    if "--check" in sys.argv:
        return int(before != after)
    path.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
