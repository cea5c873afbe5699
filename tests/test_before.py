"""A folder that the version before left goes on: its study, its MLflow store, what was queued and what was cut off.

`tests/before/folder.tar.xz` holds a project folder as version 0.1.0 wrote it at /home/user/project in November 2026:
a study of 24 trials whose sweep was killed while trial 19 ran, a queued configuration, and the board that it showed.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import terminals

FOLDER = Path(__file__).parent / "before" / "folder.tar.xz"
INTERRUPTED, BUDGET = 19, 24
QUEUED = {"dropout": 0.25, "l1": 0.0, "batchnorm": "none"}
LATER = {"rank": 0, "decision": None}
"""What may be another once the study has gone on."""


def regtune(*arguments: str) -> Any:
    done = terminals.regtune(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout) if "--json" in arguments else None


@pytest.mark.slow
def test_a_study_of_the_version_before_goes_on() -> None:
    with tarfile.open(FOLDER) as archive:
        archive.extractall()
    left = json.loads(Path("board.json").read_text())
    left = [{"decision": None, **row} for row in left]  # a column that came later
    assert regtune("board", "before", "--json") == left
    interrupted = regtune("show", "before", str(INTERRUPTED), "--json")

    regtune("sweep", "before.yaml", "--workers", "1")
    rows = {row["trial"]: row for row in regtune("board", "before", "--json")}
    assert sorted(rows) == list(range(BUDGET))
    for row in left:
        if row["trial"] != INTERRUPTED:
            assert rows[row["trial"]] | LATER == row | LATER
    again = regtune("show", "before", str(INTERRUPTED), "--json")
    assert again["record"]["config"] == interrupted["record"]["config"]
    assert again["state"] in ("COMPLETE", "PRUNED")
    queued = [n for n, row in rows.items() if n > INTERRUPTED and QUEUED.items() <= row.items()]
    assert len(queued) == 1

    regtune("sync", "--check")  # exits with 1 when MLflow lacks anything
