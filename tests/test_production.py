"""The page "Into production" as it stands: its commands, what they print and how they end, on every kind of store."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, redirect_stdout
from io import StringIO
from pathlib import Path

import optuna
import pytest
from stores import Postgres, free_port
from terminals import regtune, run_here

from regtune.training.runtime import configure

configure()

from regtune.server.databases import init_databases  # noqa: E402
from regtune.server.process import serving  # noqa: E402
from regtune.settings import Settings  # noqa: E402
from regtune.storage import full_url  # noqa: E402

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "production.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```(sh|python)\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.S)
STORES = (
    *("sqlite", "postgres-accounts"),
    *(pytest.param(store, marks=pytest.mark.proof) for store in ("postgres", "sqlite-accounts")),
)
"""Written directly, and through a server that asks for an account and keeps the artifacts itself."""
ADMIN, SWEEP = ("admin", "correct-horse-battery"), ("sweep", "sweeps-and-promotes")
FIGURE = re.compile(r"[+−]?\d+\.\d+(?:e[+-]?\d+)?|(?<=trial )\d+|\d+ (?:s|min)\b")
"""What differs from machine to machine."""


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the page's first command has run; in CI, the one in which `make sweep` has."""
    made = ROOT / "mlruns"
    new = (made / "studies.db").exists() and not any(made.glob("artifacts/**/promotion.json"))
    if os.environ.get("CI") and new:
        return ROOT
    folder = tmp_path_factory.mktemp("swept")
    shutil.copytree(ROOT / "sweeps", folder / "sweeps")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = regtune("sweep", "sweeps/quickstart.yaml")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(params=STORES)
def store(
    request: pytest.FixtureRequest, swept: Path, tmp_path: Path
) -> Iterator[tuple[str, dict[str, str]]]:
    """A kind of store, with a copy of that study in this folder; the variables with which regtune finds it."""
    kind: str = request.param
    shutil.copytree(swept / "sweeps", "sweeps")
    shutil.copytree(swept / "mlruns", "mlruns")
    variables = {"COLUMNS": "100", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    tracking = {}
    if "postgres" in kind:
        server: Postgres = request.getfixturevalue("postgres_server")
        tracking["MLFLOW_TRACKING_URI"] = server.fresh("production_mlflow")
        variables |= {"OPTUNA_STORAGE": server.fresh("production_studies")}
        init_databases(Settings(**variables, **tracking))
        found = Settings(REGTUNE_HOME=tmp_path / "mlruns").storage_url, variables["OPTUNA_STORAGE"]
        old, new = (full_url(url) for url in found)
        optuna.copy_study(from_study_name="quickstart", from_storage=old, to_storage=new)
    with ExitStack() as stack:
        if "accounts" in kind:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", ADMIN[1])
            settings = Settings(REGTUNE_HOME=tmp_path / "served", **tracking)
            tracking["MLFLOW_TRACKING_URI"] = stack.enter_context(
                serving(settings, free_port(), auth=True)
            ).url
            sign_in(patch, ADMIN)
            from mlflow.server.auth.client import AuthServiceClient

            AuthServiceClient(tracking["MLFLOW_TRACKING_URI"]).create_user(*SWEEP)
            sign_in(patch, SWEEP)
        yield kind, variables | tracking


def sign_in(patch: pytest.MonkeyPatch, account: tuple[str, str]) -> None:
    for name, text in zip(("USERNAME", "PASSWORD"), account, strict=True):
        patch.setenv(f"MLFLOW_TRACKING_{name}", text)


def plain(text: str) -> list[str]:
    """The lines of a text without what differs from machine to machine."""
    return [" ".join(FIGURE.sub("#", line).split()) for line in text.splitlines() if line.strip()]


def test_the_page_runs_as_it_stands(
    store: tuple[str, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    kind, variables = store
    blocks = BLOCK.findall(PAGE)
    assert len(blocks) == 7
    for language, lines, shown in blocks:
        if language == "python":
            said = in_python(lines, variables)
        elif lines.startswith("regtune "):
            said = "".join(in_regtune(line, variables, capsys) for line in lines.splitlines())
        elif kind == "sqlite":  # it reads a folder, wherever that was pulled from
            said = in_shell(lines)
        else:
            continue
        for line in plain(shown):
            assert line == "..." or any(line in one for one in plain(said)), f"{line}\nis not in\n{said}"


def in_regtune(line: str, variables: Mapping[str, str], capsys: pytest.CaptureFixture[str]) -> str:
    expected = re.search(r"# exit code (\d+)", line)
    code, out, said = run_here(capsys, *shlex.split(line, comments=True)[1:], **variables)
    assert code == (int(expected[1]) if expected else 0), f"{line}\n{out}{said}"
    return out + said


def in_python(lines: str, variables: Mapping[str, str]) -> str:
    import mlflow

    here = "sqlite:///mlruns/mlflow.db"
    assert here in lines
    with redirect_stdout(StringIO()) as said:
        exec(lines.replace(here, variables.get("MLFLOW_TRACKING_URI", here)), {})
    mlflow.set_tracking_uri(None)
    return said.getvalue()


def in_shell(lines: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-euc", lines.replace("5001", str(free_port()))]
    done = subprocess.run(
        command, env={**os.environ, "PATH": path}, check=True, capture_output=True, text=True, timeout=300
    )
    return done.stdout
