"""Who may see the MLflow page and write through its server: strangers nothing, an account what MLflow lets it."""

from __future__ import annotations

import stat
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from stores import free_port

from regtune.credentials import basic
from regtune.errors import InputError, SettingsError
from regtune.server.accounts import SHORTEST_PASSWORD, wants_accounts
from regtune.server.process import Server, notices, serving
from regtune.settings import Settings
from regtune.tracking import names
from regtune.tracking.page import run_page, serve_ui, trials_page
from regtune.tracking.views import runs_path

ADMIN, ADMINS = "admin", "correct-horse-battery"
READER, READERS = "reader", "reads-and-nothing-more"


def test_a_page_for_this_machine_has_accounts_only_when_asked_and_one_that_others_reach_always(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", ADMINS)
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        assert [wants_accounts(host, wanted) for wanted in (None, False, True)] == [False, False, True]
    for host in ("0.0.0.0", "::", "192.0.2.7"):
        assert wants_accounts(host, None)
        with pytest.raises(InputError, match="--no-auth with --host"):
            wants_accounts(host, False)
        (said,) = notices(host, accounts=False)
        assert "TLS" in said
        assert "MLFLOW_SERVER_ALLOWED_HOSTS" in said


@pytest.mark.parametrize("password", ["", "x" * (SHORTEST_PASSWORD - 1)])
def test_without_a_password_for_the_administrator_nothing_starts(
    password: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", password)
    wanted = f"at least {SHORTEST_PASSWORD} characters .* MLFLOW_AUTH_ADMIN_PASSWORD_FILE"
    with pytest.raises(SettingsError, match=wanted):
        serve_ui(Settings(), free_port(), "0.0.0.0", open_browser=False)
    assert not list(tmp_path.glob("mlruns/auth*"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("accounts") / "mlruns"


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Server]:
    """A server with accounts: the administrator's, and one that may read, made with MLflow's own client."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", ADMINS)
        with serving(Settings(REGTUNE_HOME=home), free_port(), auth=True) as found:
            become(ADMIN, ADMINS, patch)
            from mlflow.server.auth.client import AuthServiceClient

            AuthServiceClient(found.url).create_user(READER, READERS)
            yield found


def become(name: str, password: str, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("MLFLOW_TRACKING_USERNAME", name)
    patch.setenv("MLFLOW_TRACKING_PASSWORD", password)


def ask(url: str, headers: Mapping[str, str] | None = None) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
def test_strangers_get_nothing_but_that_the_server_lives(server: Server) -> None:
    search = f"{server.url}/api/2.0/mlflow/experiments/search?max_results=1"
    assert [ask(url) for url in (f"{server.url}/health", server.url, search)] == [200, 401, 401]
    assert [ask(search, basic(ADMIN, given)) for given in ("guessed-guessed", ADMINS)] == [401, 200]


@pytest.mark.slow
def test_a_read_only_account_reads_all_and_writes_nothing_of_anothers(
    server: Server, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.server.auth.client import AuthServiceClient

    client, accounts = MlflowClient(server.url), AuthServiceClient(server.url)
    become(ADMIN, ADMINS, monkeypatch)
    accounts.create_user("short", "x" * SHORTEST_PASSWORD)
    with pytest.raises(MlflowException):  # the shortest password is MLflow's
        accounts.create_user("shorter", "x" * (SHORTEST_PASSWORD - 1))
    place = (home / "artifacts" / "runs").as_uri()
    experiment = client.create_experiment("the administrator's", artifact_location=place)
    run = client.create_run(experiment).info.run_id
    client.log_text(run, "kept", "note.txt")
    client.create_registered_model("digits")

    become(READER, READERS, monkeypatch)
    assert stat.S_IMODE((home / "auth.db").stat().st_mode) == 0o600
    assert client.get_experiment(experiment).artifact_location == place
    assert [found.info.run_id for found in client.search_runs([experiment])] == [run]
    artifact = f"{server.url}/get-artifact?run_uuid={run}&path=note.txt"
    assert ask(artifact) == 401
    assert ask(artifact, basic(READER, READERS)) == 200  # a file: location, served by the server
    writes: dict[str, Callable[[], object]] = {
        "create a run": lambda: client.create_run(experiment),
        "delete a run": lambda: client.delete_run(run),
        "change a model": lambda: client.set_registered_model_tag("digits", "a", "b"),
        "become administrator": lambda: accounts.update_user_admin(READER, True),
    }
    for what, write in writes.items():
        with pytest.raises(MlflowException, match="403"):
            pytest.fail(f"a reader may {what}: {write()}")
    own = client.create_experiment("the reader's")  # which MLflow lets every account have
    assert client.create_run(own).info.experiment_id == own

    become(ADMIN, ADMINS, monkeypatch)
    accounts.update_user_password(READER, f"another-{READERS}")
    assert ask(artifact, basic(READER, READERS)) == 401  # also one that was right a moment ago
    assert ask(artifact, basic(READER, f"another-{READERS}")) == 200


@pytest.mark.slow
def test_the_trials_page_is_found_with_credentials_and_without_them_nothing_is_said(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    become(ADMIN, ADMINS, monkeypatch)
    sweep = MlflowClient(server.url).create_experiment("small", tags={names.SWEEP: "small"})
    run = MlflowClient(server.url).create_run(sweep, tags={names.TRIAL_UID: "a-1"}).info.run_id
    page = f"{server.url}{runs_path(sweep)}"
    assert [trials_page(server.url, name) for name in (None, "small", "another")] == [page, page, None]
    settings = Settings(MLFLOW_TRACKING_URI=server.url)
    links = [run_page(settings, *of) for of in (("small", "a-1"), ("small", "a-2"), ("another", "a-1"))]
    assert links == [f"{server.url}/#/experiments/{sweep}/runs/{run}", server.url, server.url]
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    assert trials_page(server.url) is None
