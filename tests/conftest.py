"""Every test runs in an empty folder of its own, with no settings from outside."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from proofs import Record
from stores import Postgres, postgres

from regtune.credentials import SECRETS
from regtune.errors import AGAIN, COMMAND

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
os.environ.pop("COLUMNS", None)  # of the terminal in which the tests were started

LONGEST = (
    *("test_compose.py", "test_stores.py", "test_secrets.py"),
    *("test_fault_workers.py", "test_fault_coordinator.py", "test_fault_server.py"),
    *("test_sweep.py", "test_cli.py", "test_cli_sweep.py", "test_training.py", "test_equality.py"),
)
"""Files that take minutes: they begin first, so that what runs side by side ends together."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--proofs", type=Path, metavar="FILE", help="write what passed to FILE")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--proofs")
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Record(path))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("OPTUNA_STORAGE", "MLFLOW_TRACKING_URI", "REGTUNE_HOME", "REGTUNE_WORKERS", "REGTUNE_DATA_DIR")
    for name in (*names, "PGPASSFILE", *SECRETS, *(f"{name}_FILE" for name in SECRETS)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    urllib.request.install_opener(None)  # the one that is kept has the proxies of the test that opened first
    COMMAND.set(AGAIN)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """A real PostgreSQL server for the whole run; each test makes databases of its own."""
    with postgres() as server:
        yield server


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An MLflow database with its tables and nothing in them: making them takes seconds."""
    from regtune.storage.mlflow import make_store

    home = tmp_path_factory.mktemp("mlflow")
    make_store(f"sqlite:///{home / 'mlflow.db'}", home / "artifacts")
    return (home / "mlflow.db").read_bytes()
