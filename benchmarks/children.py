"""Child processes of a benchmark: the cost of one beside a bare import; a script that answers line by line."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
Costs = Sequence[tuple[float, float]]
"""Seconds and megabytes, one pair per round."""

_VERB = """
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
_BARE = """
import importlib, json, sys
for name in json.load(open(sys.argv[1])):
    try:
        importlib.import_module(name)
    except ImportError:
        pass
"""


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


class Verb:
    """A verb of regtune and a process that only imports the modules outside regtune that the verb has imported.

    `list_modules` runs the verb once and writes down these modules; `round` measures both, in turns.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], modules: Path) -> None:
        self._words, self._environment, self._modules = words, environment, str(modules)
        self._costs: list[tuple[float, float]] = []
        self._bare: list[tuple[float, float]] = []

    def list_modules(self) -> None:
        cost([sys.executable, "-c", _VERB.format(path=self._modules), *self._words], self._environment)

    def round(self) -> None:
        self._bare.append(cost([sys.executable, "-c", _BARE, self._modules], self._environment))
        self._costs.append(cost([sys.executable, "-m", "regtune", *self._words], self._environment))

    def medians(self) -> dict[str, float]:
        seconds, memory = (statistics.median(one[at] for one in self._costs) for at in (0, 1))
        bare_seconds, bare_memory = (statistics.median(one[at] for one in self._bare) for at in (0, 1))
        pairs = zip(self._costs, self._bare, strict=True)
        return {
            "seconds": seconds,
            "peak_mb": memory,
            "bare_import_seconds": bare_seconds,
            "bare_import_mb": bare_memory,
            "times_the_import": statistics.median(mine[0] / bare[0] for mine, bare in pairs),
        }


class Script:
    """A script beside this file that answers a line on standard input with a line on standard output."""

    def __init__(self, name: str, without: Sequence[str]) -> None:
        """Start it without these variables; its first line says that it is ready."""
        environment = {key: value for key, value in os.environ.items() if key not in without}
        environment["PYTHONPATH"] = os.pathsep.join((str(HERE.parent), environment.get("PYTHONPATH", "")))
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / name)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def ask(self, line: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args} ended; run it alone to see why")
        return line

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
