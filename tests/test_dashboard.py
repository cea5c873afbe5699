"""optuna-dashboard, which knows nothing of regtune, shows a study of regtune."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import studies
from stores import free_port, until

from regtune.settings import load_settings
from regtune.storage import open_engine
from regtune.study.board import read_board

NAME = "seen from outside"
WITHOUT_REGTUNE = """
import sys
sys.modules["regtune"] = None  # importing it is an error from here on
from optuna_dashboard import run_server
run_server(sys.argv[1], host="127.0.0.1", port=int(sys.argv[2]))
"""


@pytest.fixture
def dashboard() -> Iterator[str]:
    studies.fill(studies.create(Path("mlruns/studies.db"), NAME))
    port = str(free_port())
    arguments = [sys.executable, "-I", "-c", WITHOUT_REGTUNE, load_settings().storage_url, port]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}/api/studies"
    finally:
        process.kill()
        process.wait()


def answer(url: str) -> Any:
    with suppress(OSError), urllib.request.urlopen(url, timeout=60) as response:
        return json.load(response)
    return None


def test_optuna_dashboard_shows_the_study_without_importing_regtune(dashboard: str) -> None:
    (summary,) = until(lambda: answer(dashboard))["study_summaries"]
    assert summary["study_name"] == NAME
    shown = {trial["number"]: trial for trial in answer(f"{dashboard}/{summary['study_id']}")["trials"]}
    rows = [row for row in read_board(open_engine(load_settings().storage_url), NAME).rows if row.rank]
    assert len(rows) == 5
    for row in rows:
        assert shown[row.number]["values"] == [row.value]
        assert len(shown[row.number]["intermediate_values"]) == row.epochs
