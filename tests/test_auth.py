"""Who may see the MLflow page and write through its server: strangers nothing, an account what MLflow lets it."""

from __future__ import annotations

import json
import stat
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from specs import QUICK
from stores import free_port
from terminals import regtune

from regtune.credentials import basic
from regtune.errors import InputError, SettingsError
from regtune.server.accounts import (
    SHORTEST_PASSWORD,
    accounts_environment,
    is_loopback,
    password_notice,
    wants_accounts,
)
from regtune.server.process import Server, notices
from regtune.settings import Settings
from regtune.tracking.page import serve_ui, trials_page

SMALL = ["--set", "run_cap=2", "--set", "controls=false", "--set", "training.max_epochs=2"]
ADMIN, ADMINS = "admin", "correct-horse-battery"
READER, READERS = "reader", "reads-and-nothing-more"


def test_a_page_for_this_machine_has_accounts_only_when_asked_and_one_that_others_reach_always() -> None:
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        assert is_loopback(host)
        assert [wants_accounts(host, wanted) for wanted in (None, False, True)] == [False, False, True]
    for host in ("0.0.0.0", "::", "192.0.2.7"):
        assert wants_accounts(host, None)
        with pytest.raises(InputError, match="--no-auth with --host"):
            wants_accounts(host, False)
        said = notices(host, "", False)
        assert any("TLS" in line and "MLFLOW_SERVER_ALLOWED_HOSTS" in line for line in said)


def test_without_a_password_for_the_administrator_nothing_starts(tmp_path: Path) -> None:
    wanted = r"there is no default: give it .* MLFLOW_AUTH_ADMIN_PASSWORD_FILE"
    with pytest.raises(SettingsError, match=wanted):
        serve_ui(Settings(), free_port(), "0.0.0.0", open_browser=False)
    assert not list(tmp_path.glob("mlruns/auth*"))


def test_a_password_that_mlflow_refuses_is_refused_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "x" * (SHORTEST_PASSWORD - 1))
    with pytest.raises(SettingsError, match=f"at least {SHORTEST_PASSWORD} characters, found"):
        accounts_environment(Settings())


def test_no_file_of_accounts_holds_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "admin"
    secret.touch(mode=0o600)
    secret.write_text(f"{ADMINS}\n")
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD_FILE", str(secret))
    settings = Settings(REGTUNE_HOME=tmp_path / "100%" / "mlruns")
    found = accounts_environment(settings)
    assert found["MLFLOW_AUTH_ADMIN_PASSWORD"] == ADMINS
    assert len(found["MLFLOW_FLASK_SERVER_SECRET_KEY"]) > 32
    assert stat.S_IMODE((settings.home / "auth.db").stat().st_mode) == 0o600
    written = "".join(path.read_text() for path in settings.home.rglob("*") if path.is_file())
    assert ADMINS not in written
    assert found["MLFLOW_FLASK_SERVER_SECRET_KEY"] not in written


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("accounts") / "mlruns"


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    """A server with accounts: the administrator's, and one that may read, made with MLflow's own client."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", ADMINS)
        with Server(Settings(REGTUNE_HOME=home), port=free_port(), auth=True) as found:
            patch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN)
            patch.setenv("MLFLOW_TRACKING_PASSWORD", ADMINS)
            from mlflow.server.auth.client import AuthServiceClient

            AuthServiceClient(found.url).create_user(READER, READERS)
            yield found


@pytest.fixture
def as_account(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    def become(name: str, password: str) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)

    return become


def ask(url: str, headers: Mapping[str, str] | None = None, body: Any = None) -> int:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
def test_strangers_get_nothing_but_that_the_server_lives(server: Server) -> None:
    search = f"{server.url}/api/2.0/mlflow/experiments/search"
    body = {"max_results": 1}
    assert ask(f"{server.url}/health") == 200
    assert ask(server.url) == 401
    assert ask(search, body=body) == 401
    assert ask(search, basic(ADMIN, "guessed-guessed-guessed"), body) == 401
    assert ask(search, basic(ADMIN, ADMINS), body) == 200


@pytest.mark.slow
def test_a_read_only_account_reads_all_and_writes_nothing_of_anothers(
    server: Server, home: Path, as_account: Callable[[str, str], None], tmp_path: Path
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.server.auth.client import AuthServiceClient

    client, accounts = MlflowClient(server.url), AuthServiceClient(server.url)
    as_account(ADMIN, ADMINS)
    accounts.create_user("short", "x" * SHORTEST_PASSWORD)
    with pytest.raises(MlflowException):  # the shortest password is MLflow's
        accounts.create_user("shorter", "x" * (SHORTEST_PASSWORD - 1))
    place = (home / "artifacts" / "runs").as_uri()
    experiment = client.create_experiment("the administrator's", artifact_location=place)
    run = client.create_run(experiment).info.run_id
    (tmp_path / "note.txt").write_text("kept")
    client.log_artifact(run, str(tmp_path / "note.txt"))
    client.create_registered_model("digits")

    as_account(READER, READERS)
    assert client.get_experiment(experiment).artifact_location == place
    assert [found.info.run_id for found in client.search_runs([experiment])] == [run]
    artifact = f"{server.url}/get-artifact?run_uuid={run}&path=note.txt"
    assert ask(artifact) == 401
    assert ask(artifact, basic(READER, READERS)) == 200  # a file: location, served by the server
    writes: dict[str, Callable[[], object]] = {
        "create a run": lambda: client.create_run(experiment),
        "log a parameter": lambda: client.log_param(run, "a", 1),
        "log a metric": lambda: client.log_metric(run, "a", 1.0),
        "set a tag": lambda: client.set_tag(run, "a", "b"),
        "delete a run": lambda: client.delete_run(run),
        "delete an experiment": lambda: client.delete_experiment(experiment),
        "change a model": lambda: client.set_registered_model_tag("digits", "a", "b"),
        "make an account": lambda: accounts.create_user("third", READERS),
        "become administrator": lambda: accounts.update_user_admin(READER, True),
        "take rights": lambda: accounts.grant_user_permission(READER, "experiment", experiment, "MANAGE"),
    }
    for what, write in writes.items():
        with pytest.raises(MlflowException, match="403"):
            pytest.fail(f"a reader may {what}: {write()}")
    # what MLflow lets every account do: have experiments and models of its own
    own = client.create_experiment("the reader's")
    assert client.create_run(own).info.experiment_id == own
    client.create_registered_model("the reader's")

    as_account(ADMIN, ADMINS)
    accounts.grant_user_permission(READER, "experiment", experiment, "EDIT")
    as_account(READER, READERS)
    client.set_tag(run, "a", "b")
    as_account(ADMIN, ADMINS)
    accounts.update_user_password(READER, f"another-{READERS}")
    assert ask(artifact, basic(READER, READERS)) == 401  # also one that was right a moment ago
    assert ask(artifact, basic(READER, f"another-{READERS}")) == 200


@pytest.mark.slow
def test_the_trials_page_is_found_with_credentials_and_without_them_nothing_is_said(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert trials_page(server.url) is None
    secret = tmp_path / "password"
    secret.touch(mode=0o600)
    secret.write_text(ADMINS)
    environment = {
        "MLFLOW_TRACKING_URI": server.url,
        "MLFLOW_TRACKING_USERNAME": ADMIN,
        "MLFLOW_TRACKING_PASSWORD_FILE": str(secret),
    }
    ended = regtune("sweep", str(QUICK), *SMALL, "--workers", "1", **environment)
    assert ended.returncode == 0, ended.stderr
    assert "MLflow" not in ended.stderr, ended.stderr  # nothing waits to be written
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    page = trials_page(server.url)
    assert page is not None
    assert page.startswith(f"{server.url}/#/experiments/")
    assert f"compare the runs:  {page}" in ended.stderr


@pytest.mark.slow
def test_a_password_without_effect_is_said(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", ADMINS)
    assert password_notice(server.url) == ""
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", f"another-{ADMINS}")
    assert "keeps its own" in password_notice(server.url)
    assert ADMINS not in password_notice(server.url)
