"""The report of a benchmark: its options, the machine it ran on, a table and the file of its result."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def options(description: str | None, verdict: bool = True) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark; verdict: whether it fails when a target is missed."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the result to this file")
    if verdict:
        parser.add_argument("--no-verdict", action="store_true", help="exit with 0 on a missed target")
    return parser


def machine(packages: Sequence[str] = ()) -> dict[str, Any]:
    """The machine and the packages that the figures belong to."""
    versions = {}
    for package in ("tensorflow-cpu", "tensorflow", "keras", "numpy", *packages):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        named = {key.strip(): value.strip() for key, value in fields.items()}
        model = (
            f"{named.get('model name', model)} family {named.get('cpu family')} model {named.get('model')}"
        )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def write(file: Path | None, result: Mapping[str, Any]) -> None:
    """Write a result as JSON, where a file was given."""
    if file is not None:
        file.write_text(json.dumps(result, indent=2) + "\n")


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> None:
    """Print a table; the first `words` columns are text, the others are figures."""
    table = Table(title=title)
    for place, name in enumerate(columns):
        table.add_column(name, justify="left" if place < words else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=120).print(table)
