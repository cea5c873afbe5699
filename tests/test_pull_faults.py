"""Pulls that are killed, and pulls while MLflow is away: on both databases, and through a server with accounts."""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from stores import Postgres, free_port
from terminals import run_here

from regtune.training.runtime import configure

configure()

from versions import register_version  # noqa: E402

import regtune  # noqa: E402
from regtune.errors import TrackingError  # noqa: E402
from regtune.registry.pull import ask, difference  # noqa: E402
from regtune.registry.store import open_registry  # noqa: E402
from regtune.server.process import serving  # noqa: E402
from regtune.settings import Settings  # noqa: E402
from regtune.storage.mlflow import make_store  # noqa: E402

pytestmark = pytest.mark.slow

NAME, DIR = "digits", Path("digits")
DATABASES = ("sqlite", "postgres")
"""Written directly, which is a proof: through the server in front of one, more can go wrong."""
MOMENTS = 20
PULLER = """
import os, signal, sys, time
from pathlib import Path
import mlflow.artifacts, mlflow.store.tracking.sqlalchemy_store
from regtune.registry.pull import pull
from regtune.settings import load_settings

for line in sys.stdin:
    target, seconds = line.split()
    began, child = time.monotonic(), os.fork()
    if not child:
        try:
            pull(load_settings(), target, Path("digits"), lambda said: None)
            os._exit("tensorflow" in sys.modules)
        finally:
            os._exit(1)
    if float(seconds):
        time.sleep(float(seconds))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), time.monotonic() - began, flush=True)
"""
"""Pulls the target of each line in a process of its own, which it kills after so many seconds, where they are not 0."""
ACCOUNTS = {"admin": "correct-horse-battery", "reader": "reads-and-nothing-more"}


@dataclass(frozen=True)
class Served:
    """A server with accounts that serves artifacts itself, with two versions; `stop` ends it."""

    url: str
    stop: Callable[[], None]


def sign_in(patch: pytest.MonkeyPatch, account: str) -> None:
    patch.setenv("MLFLOW_TRACKING_USERNAME", account)
    patch.setenv("MLFLOW_TRACKING_PASSWORD", ACCOUNTS[account])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", ACCOUNTS["admin"])
        home = Settings(REGTUNE_HOME=tmp_path_factory.mktemp("served"))
        server = stack.enter_context(serving(home, free_port(), auth=True))
        sign_in(patch, "admin")
        from mlflow.server.auth.client import AuthServiceClient

        AuthServiceClient(server.url).create_user("reader", ACCOUNTS["reader"])
        two_versions(Settings(MLFLOW_TRACKING_URI=server.url), "mlflow-artifacts:/sweep")
        yield Served(server.url, stack.close)


def two_versions(settings: Settings, place: str) -> None:
    experiment = open_registry(settings).client.create_experiment("sweep", place)
    for seed in (0, 1):
        register_version(settings, NAME, seed, experiment=str(experiment))


@pytest.fixture(params=["server", *(pytest.param(name, marks=pytest.mark.proof) for name in DATABASES)])
def settings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("cache").resolve()))
    if request.param == "server":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue("served").url)
        sign_in(monkeypatch, "reader")
        return Settings()
    if request.param == "postgres":
        server: Postgres = request.getfixturevalue("postgres_server")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.fresh("pulled"))
    found = Settings()
    make_store(found.mlflow_uri, found.artifacts)
    two_versions(found, (found.artifacts / "runs" / "1").as_uri())
    return found


@pytest.fixture
def puller() -> Iterator[Callable[[str, float], tuple[int, float]]]:
    command = [sys.executable, "-c", PULLER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def run(target: str, kill_after: float = 0.0) -> tuple[int, float]:
            process.stdin.write(f"{target} {kill_after}\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            code, seconds = process.stdout.readline().split()  # type: ignore[union-attr]
            return int(code), float(seconds)

        yield run
        process.stdin.close()


def test_a_pull_killed_at_any_moment_leaves_one_version_whole_and_the_next_leaves_nothing_else(
    settings: Settings, puller: Callable[..., tuple[int, float]]
) -> None:
    versions = [f"{NAME}@v1", f"{NAME}@v2"]
    founds = {target: ask(settings, target) for target in versions}
    assert puller(versions[0])[0] == 0
    shutil.rmtree("cache", ignore_errors=True)  # so that files are downloaded
    code, seconds = puller(versions[1])
    assert (code, difference(DIR, founds[versions[1]])) == (0, "")
    killed = 0
    for number in range(MOMENTS):
        old, new = versions[1 - number % 2], versions[number % 2]
        shutil.rmtree("cache", ignore_errors=True)  # so that files are downloaded
        moment = random.uniform(0.001, seconds)
        print("killed after", moment)
        killed += puller(new, moment)[0] == -signal.SIGKILL
        assert "" in (difference(DIR, founds[old]), difference(DIR, founds[new]))
        assert puller(new)[0] == 0
        assert difference(DIR, founds[new]) == ""
        assert names_in(DIR) == [".versions", "card.md", "config.yaml", "model.keras", "version"]
        assert len(names_in(DIR / ".versions")) <= 3  # the lock, this version, and the one before
        for folder in Path("cache").glob("regtune/models/*"):
            kept = [name for name in names_in(folder) if not re.fullmatch(r"[0-9a-f]{64}\.json", name)]
            assert kept == [founds[new].digest, "locks"]
    assert killed > MOMENTS / 2


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_while_the_server_is_away_pulls_come_from_the_cache_which_is_said_and_never_damaged(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = Path("cache").resolve()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", served.url)
    sign_in(monkeypatch, "reader")
    found = ask(Settings(), NAME)
    has = "digits has version 2 of digits (@champion): config.yaml, model.keras, card.md\n"
    assert run_here(capsys, "pull", NAME) == (0, "", has)
    regtune.load_champion(f"{NAME}@previous")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")  # that is not away
    code, _, said = run_here(capsys, "pull", NAME)
    assert (code, "cache" in said) == (1, False)

    served.stop()
    away = f"MLflow at {served.url} cannot be reached (Connection refused)"
    when = f"as of {found.at[:13].replace('T', ' ')}"
    assert run_here(capsys, "pull", NAME, "--check")[::2] == (1, f"error: {away}\n")
    code, _, said = run_here(capsys, "pull", NAME, "-o", "new")
    first, second = said.splitlines()
    assert first.startswith(f"{away}; version 2 of digits is from this machine's cache, @champion {when}")
    assert (code, second, difference(Path("new"), found)) == (
        0,
        has.replace("digits has", "new has").strip(),
        "",
    )
    assert run_here(capsys, "pull", f"{NAME}@previous", "--get", "seed")[:2] == (0, "0\n")
    with pytest.warns(UserWarning, match="version 2 of digits is from this machine's cache"):
        regtune.load_champion(NAME)
    code, _, said = run_here(capsys, "pull", f"{NAME}@staging")
    assert (code, said) == (1, f"error: {away}; digits@staging is not in this machine's cache\n")

    (model,) = cache.rglob(f"{found.digest}/data/model.keras")
    model.write_bytes(model.read_bytes()[:-1])
    code, _, said = run_here(capsys, "pull", NAME, "-o", "newer")
    assert (code, said.splitlines()[-1]) == (1, f"error: {away}")
    assert "this machine's cache of version 2 is not used: data/model.keras: was changed" in said
    assert not Path("newer").exists()
    with pytest.raises(TrackingError, match="cannot be reached"):
        regtune.load_champion(NAME)
