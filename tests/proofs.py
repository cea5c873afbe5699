"""The record of `make proofs`: of which commit it is, where it ran, what passed, and the figures."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import machine

ROOT = Path(__file__).resolve().parents[1]


class Record:
    """A pytest plugin that writes the outcome of a run to `path` as JSON; runs of one commit add up.

    Figures are what tests give to pytest's own `record_property`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._commit = _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
        self._started = datetime.now(UTC)
        self._clock = time.monotonic()
        self._outcomes: dict[str, str] = {}
        self._figures: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep a test's outcome: that of its call, or of a setup or teardown that did not pass."""
        if report.when == "call" or report.outcome != "passed":
            self._outcomes[report.nodeid] = report.outcome
        if report.when == "call" and report.user_properties:
            self._figures[report.nodeid] = dict(report.user_properties)

    def pytest_sessionfinish(self) -> None:
        before = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else {}
        if before.get("commit") != self._commit:
            before = {"started": self._started.isoformat(timespec="seconds")}
        tests = before.get("tests", {}) | self._outcomes
        record = {
            "commit": self._commit,
            "started": before["started"],
            "seconds": before.get("seconds", 0) + round(time.monotonic() - self._clock),
            "machine": machine(),
            "outcomes": dict(Counter(tests.values())),
            "tests": dict(sorted(tests.items())),
            "figures": dict(sorted((before.get("figures", {}) | self._figures).items())),
        }
        self._path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _git(*words: str) -> str:
    ended = subprocess.run(["git", *words], cwd=ROOT, check=False, capture_output=True, text=True)
    return ended.stdout.strip() or "unknown"
