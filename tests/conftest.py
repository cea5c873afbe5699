"""Every test runs in an empty folder of its own, with no settings from outside."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPTUNA_STORAGE", "MLFLOW_TRACKING_URI", "REGTUNE_HOME", "REGTUNE_WORKERS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
