"""optuna-dashboard, which knows nothing of regtune, shows a study of regtune."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from regtune.config.sweepfile import SweepSpec
from regtune.settings import load_settings
from regtune.storage import open_engine
from regtune.study.board import read_board
from regtune.sweep import run_sweep

SPEC = {
    "name": "seen from outside",
    "dataset": "mnist-5k",
    "run_cap": 5,
    "model": {"hidden": [16]},
    "training": {"max_epochs": 3},
    "parameters": {"dropout": {"min": 0.0, "max": 0.5}},
    "controls": False,
}

WITHOUT_REGTUNE = """
import sys
sys.modules["regtune"] = None  # importing it is an error from here on
from optuna_dashboard import run_server
run_server(sys.argv[1], host="127.0.0.1", port=int(sys.argv[2]))
"""


@pytest.fixture
def dashboard() -> Iterator[str]:
    run_sweep(SweepSpec.from_dict(SPEC), workers=1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = [sys.executable, "-I", "-c", WITHOUT_REGTUNE, load_settings().storage_url, str(port)]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def answer(url: str, seconds: float = 240) -> Any:
    """The JSON at `url`, once the server is up."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=60) as found:
                return json.load(found)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def test_optuna_dashboard_shows_the_study_without_importing_regtune(dashboard: str) -> None:
    summaries = answer(f"{dashboard}/api/studies")["study_summaries"]
    assert [summary["study_name"] for summary in summaries] == [SPEC["name"]]
    shown = answer(f"{dashboard}/api/studies/{summaries[0]['study_id']}")
    rows = {
        row.number: row
        for row in read_board(open_engine(load_settings().storage_url), str(SPEC["name"])).rows
    }
    assert len(rows) == 5
    assert {trial["number"]: trial["values"] for trial in shown["trials"]} == {
        number: [row.value] for number, row in rows.items()
    }
    assert all(len(trial["intermediate_values"]) == 3 for trial in shown["trials"])
    assert [column["name"] for column in shown["union_search_space"]] == ["dropout"]
