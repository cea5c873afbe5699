"""Moves of aliases by processes that are killed or compete, on both databases, and by accounts that may not."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from aliases import NAME, three_versions
from stores import Postgres, free_port

from regtune.errors import TrackingError
from regtune.registry import journal
from regtune.registry.store import Registry, open_registry
from regtune.server.process import serving
from regtune.settings import Settings
from regtune.storage.mlflow import make_store
from regtune.tracking import names

pytestmark = pytest.mark.slow

MOVER = """
import os, signal, sys
from mlflow import MlflowClient
from regtune.errors import AliasMoved
from regtune.registry import journal
from regtune.registry.store import open_registry
from regtune.settings import load_settings

deaths, writes = int(sys.argv[2]), 0

def mortal(method):
    def call(*given, **named):
        global writes
        writes += 1
        if writes == deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(*given, **named)
    return call

for name in ("log_param", "set_registered_model_alias", "log_batch"):
    setattr(MlflowClient, name, mortal(getattr(MlflowClient, name)))
registry = open_registry(load_settings())
for line in sys.stdin:
    seen = journal.settle(registry, "digits")
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        print(journal.move(registry, "digits", "champion", int(line), seen, why="promoted").champion, flush=True)
    except AliasMoved as told:
        print(told, flush=True)
"""
"""Moves the champion to the version of each line, at the line after it; dies before its n-th write."""


@pytest.fixture(params=[pytest.param("sqlite", marks=pytest.mark.proof), "postgres"])
def registry(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    if request.param == "postgres":
        server: Postgres = request.getfixturevalue("postgres_server")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.fresh("registry"))
    settings = Settings()
    make_store(settings.mlflow_uri, settings.artifacts)
    return three_versions(settings, tmp_path / "files", (settings.artifacts / "runs" / "1").as_uri())


def mover(deaths: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MOVER, "mover", str(deaths)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_move_killed_at_any_step_is_completed_or_was_never_begun(registry: Registry) -> None:
    first = journal.settle(registry, NAME)
    champion = journal.move(registry, NAME, names.CHAMPION, 1, first, why="promoted").champion
    for write, to in ((1, 2), (2, 2), (3, 3), (4, 1)):
        killed = mover(write)
        tell(killed, f"{to}\ngo")
        assert killed.wait(60) == -signal.SIGKILL
        seen, before = journal.read(registry, NAME), champion
        recorded = write > 1
        champion = to if recorded else before
        assert (seen.champion, bool(seen.notes)) == (champion, recorded)
        settled = journal.settle(registry, NAME)
        assert settled.moved == len(settled.moves)
        assert (settled.champion, settled.previous) == (champion, before if recorded else None)
        assert registry.model(NAME).aliases == settled.aliases


def test_a_move_killed_before_its_aliases_is_withdrawn_when_its_version_is_gone(registry: Registry) -> None:
    journal.move(registry, NAME, names.CHAMPION, 1, journal.settle(registry, NAME), why="promoted")
    killed = mover(2)
    tell(killed, "2\ngo")
    assert killed.wait(60) == -signal.SIGKILL
    registry.client.delete_model_version(NAME, "2")
    assert journal.settle(registry, NAME).withdrawn == {2: "version 2 was deleted"}
    assert registry.model(NAME).aliases == {"champion": 1}


def test_of_two_processes_one_wins_every_time_and_the_other_is_told_who(registry: Registry) -> None:
    champion = journal.move(
        registry, NAME, "champion", 1, journal.settle(registry, NAME), why="promoted"
    ).champion
    both = mover(), mover()
    for _ in range(5):
        others = [number for number in (1, 2, 3) if number != champion]
        for process, to in zip(both, others, strict=True):
            tell(process, str(to))
        assert [hear(process) for process in both] == ["ready", "ready"]
        for process in both:
            tell(process, "go")
        said = [hear(process) for process in both]
        (won,) = (int(one) for one in said if one.isdecimal())
        (lost,) = (one for one in said if not one.isdecimal())
        assert f"@champion was moved to version {won} by " in lost
        state = journal.read(registry, NAME)
        assert (state.champion, state.previous, state.withdrawn, state.notes) == (won, champion, {}, ())
        champion = won
    for process in both:
        process.communicate(timeout=60)


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server with accounts that serves artifacts itself; the administrator's is in use, `reader` may read."""
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "correct-horse-battery")
    with serving(Settings(REGTUNE_HOME=tmp_path / "served"), free_port(), auth=True) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct-horse-battery")
        from mlflow.server.auth.client import AuthServiceClient

        AuthServiceClient(server.url).create_user("reader", "reads-and-nothing-more")
        yield server.url


def test_an_account_that_may_read_finds_and_downloads_and_moves_nothing(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(MLFLOW_TRACKING_URI=url)
    registry = three_versions(settings, tmp_path / "files", "mlflow-artifacts:/sweep")
    state = journal.settle(registry, NAME)
    for to in (1, 2):
        state = journal.move(registry, NAME, names.CHAMPION, to, state, why="promoted")

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "reader")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "reads-and-nothing-more")
    reader = open_registry(settings)
    assert (reader.download(reader.find(NAME), tmp_path / "down") / "what").read_text() == "2"
    assert [version.aliases for version in reader.versions(NAME)] == [(), ("champion",), ("previous",)]
    only = rf"^MLflow at {url}: this account may only read here; ask for the right to edit"
    with pytest.raises(TrackingError, match=only):
        journal.roll_back(reader, NAME)
    assert journal.read(reader, NAME) == state


def test_a_server_that_is_away_is_one_line() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(TrackingError, match=rf"^MLflow at {url} cannot be reached \(Connection refused\)$"):
        open_registry(Settings(MLFLOW_TRACKING_URI=url)).find(NAME)
