"""The MLflow server of a folder: `ui`, `up`, `down` and `status`, hardened, and gone with everything it started."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pexpect
import psutil
import pytest
import tracking_records as records
from requests.utils import should_bypass_proxies
from rich.console import Console
from stores import free_port, until
from strangers import stranger
from terminals import environment

from regtune.cli.views.reports import status_view
from regtune.errors import InputError, NoStudies, StorageError, TrackingError
from regtune.processes import bypass_proxies
from regtune.server import service
from regtune.server.process import HARDENING, check_port, server_environment
from regtune.settings import Settings
from regtune.storage.mlflow import connect, prepare, trouble
from regtune.tracking.page import serve_ui, tell_newest, trials_page
from regtune.tracking.store import target_of
from regtune.tracking.studies import Recorded
from regtune.tracking.sync import catch_up
from regtune.tracking.views import runs_path
from regtune.upkeep.status import ServerStatus, Status, look

REGTUNE = [sys.executable, "-m", "regtune"]
OF_ANOTHER_SERVER = {
    "MLFLOW_STATIC_PREFIX": "/elsewhere",
    "MLFLOW_ENABLE_WORKSPACES": "true",
    "_MLFLOW_SERVER_ARTIFACTS_ONLY": "true",
    "UVICORN_ROOT_PATH": "/elsewhere",
}


@pytest.fixture
def settings() -> Iterator[Settings]:
    settings = Settings()
    yield settings
    service.down(settings)
    assert not service.processes(settings.home)


def test_a_folder_without_a_server_says_so_and_down_has_nothing_to_do(settings: Settings) -> None:
    assert service.running(settings) is None
    assert not service.down(settings)
    status = look(settings)
    assert (status.server.state, status.running) == ("none", {})
    assert [database.state for database in status.databases] == ["missing", "missing"]
    assert not settings.home.exists()  # looking makes nothing


def test_another_process_that_has_got_the_servers_id_is_not_taken_for_it(settings: Settings) -> None:
    settings.home.mkdir()
    somebody = service.Service("http://127.0.0.1:9", "127.0.0.1", 9, False, "", os.getpid(), "2026-01-01")
    (settings.home / service.FILE).write_text(json.dumps(vars(somebody)))
    assert service.running(settings) is None
    (settings.home / service.FILE).write_text("{")
    assert service.running(settings) is None


def test_the_port_is_that_of_the_last_up_and_what_is_no_port_is_none(settings: Settings) -> None:
    assert service.usual_port(settings) == 5000
    settings.home.mkdir()
    for text, port in (("5141\n", 5141), ("http", 5000)):
        (settings.home / service.PORT).write_text(text)
        assert service.usual_port(settings) == port


def test_what_contradicts_itself_or_the_environment_is_refused(settings: Settings) -> None:
    with pytest.raises(InputError, match="--no-auth with --host"):
        service.up(settings, host="0.0.0.0", auth=False)
    with pytest.raises(InputError, match="names a server already"):
        service.up(Settings(MLFLOW_TRACKING_URI="http://127.0.0.1:9"))
    with pytest.raises(InputError, match=r"OPTUNA_STORAGE names"):
        service.up(Settings(OPTUNA_STORAGE="sqlite:///other.db"), databases="sqlite")
    with pytest.raises(InputError, match=r"--postgres: expected postgresql"):
        service.up(settings, databases="sqlite:///other.db")
    Path("file").touch()
    with pytest.raises(StorageError, match="file: expected a folder"):
        service.up(Settings(REGTUNE_HOME="file"))
    assert not service.processes(settings.home)


def test_a_taken_port_is_refused_with_who_has_it(settings: Settings) -> None:
    settings.home.mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (settings.home / service.PORT).write_text(str(port))  # where it would come back
        for asked in (port, None):
            said = rf"^port {port} is taken by process {os.getpid()} \(.* try --port \d+$"
            with pytest.raises(TrackingError, match=said) as caught:
                service.up(settings, port=asked)
            check_port("127.0.0.1", int(str(caught.value).split()[-1]))
        with pytest.raises(TrackingError, match="cannot be bound"):
            check_port("192.0.2.1", port)
    assert not service.processes(settings.home)


def test_a_sweep_writes_to_the_folders_server_else_to_its_store(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert target_of(settings) == settings.mlflow_uri
    assert target_of(Settings(MLFLOW_TRACKING_URI="http://127.0.0.1:9")) == "http://127.0.0.1:9"
    for auth, uri in ((False, "http://127.0.0.1:9"), (True, settings.mlflow_uri)):
        known = service.Service("http://127.0.0.1:9", "127.0.0.1", 9, auth, settings.mlflow_uri, 1, "")
        monkeypatch.setattr("regtune.tracking.store.running", lambda _, known=known: known)
        assert target_of(settings) == uri
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "someone")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "some-thing-secret")
    assert target_of(settings) == "http://127.0.0.1:9"


@pytest.mark.slow
def test_the_server_outlives_its_terminal_and_what_is_written_through_it_is_in_the_store(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy"):  # what is on this machine is reached without it
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")
    for name in ("mlflow", "click"):
        Path(f"{name}.py").write_text("raise SystemExit('imported from a folder of the user')")
    port = free_port()
    command = [sys.executable, "-P", "-m", "regtune", "up", "--port", str(port)]
    variables = environment()
    second = subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True)
    terminal = pexpect.spawn("/bin/sh", env=variables, encoding="utf-8", timeout=240)
    terminal.sendline(" ".join(command))  # two at once
    terminal.expect(r"MLflow: http.*\n")
    said = [second.communicate(timeout=240)[1], terminal.match.group()]
    assert second.returncode == 0
    assert sorted("since" in line for line in said) == [False, True]  # one has started it, one has found it
    known = service.running(settings)
    assert known is not None
    assert os.getsid(known.pid) == known.pid  # a closed terminal reaches no other session
    terminal.close(force=True)  # SIGHUP to what is on it
    assert trouble(known.url, 60) == ""
    assert len({process.pid for process in service.processes(settings.home)}) == 2  # mlflow and its child

    with pytest.raises(TrackingError, match=rf"{known.url}, on .*regtune down, then this command again"):
        service.up(settings, port=free_port())
    monkeypatch.setenv("NO_PROXY", "*")
    catch_up(settings, Recorded(records.facts(), [records.complete(0)], winner=0))
    through, direct = (connect(uri, settings.artifacts) for uri in (known.url, settings.mlflow_uri))
    (experiment,) = direct.search_experiments(filter_string="name = 'mnist-regularization'")
    assert experiment.artifact_location == (settings.artifacts / "runs").as_uri()
    runs = direct.search_runs([experiment.experiment_id])
    assert len(through.search_runs([experiment.experiment_id])) == len(runs) == 2
    for client in (through, direct):
        files = {file.path for run in runs for file in client.list_artifacts(run.info.run_id)}
        assert "config.yaml" in files

    page = f"{known.url}{runs_path(experiment.experiment_id)}"  # and not the server's own first page
    lines: list[str] = []
    serve_ui(settings, open_browser=False, tell=lines.append)
    assert lines[0] == f"MLflow: {known.url}, which regtune up has started"
    assert page in lines[1]
    expected = {"state": "running", "url": known.url, "since": known.since, "page": page}
    assert vars(look(settings).server) == {**expected, "foreign": False, "auth": False, "problem": ""}

    assert service.down(settings)
    assert not service.down(settings)
    assert trouble(known.url)
    assert not service.processes(settings.home)
    assert service.usual_port(settings) == port


@pytest.mark.slow
def test_whatever_is_killed_the_next_up_starts_again(settings: Settings) -> None:
    port = free_port()
    starting = subprocess.Popen([*REGTUNE, "up", "--port", str(port)], env=environment())
    until(lambda: bool(service.processes(settings.home)))
    starting.kill()
    starting.wait()
    assert service.running(settings) is None
    assert service.processes(settings.home)
    known = service.up(settings, port=port, tell=lambda _: None)
    for victim in ("mlflow", "its child"):
        parts = service.processes(settings.home)
        (killed,) = [part for part in parts if (part.pid == known.pid) == (victim == "mlflow")]
        killed.kill()
        assert psutil.wait_procs([killed], timeout=120)[0]
        if victim == "mlflow":
            assert trouble(known.url, 60) == ""  # the child goes on alone
            assert look(settings).server.state == "parts"
        until(lambda: service.running(settings) is None)
        assert target_of(settings) == settings.mlflow_uri
        former, known = known, service.up(settings, port=port, tell=lambda _: None)
        assert known.pid != former.pid
        assert trouble(known.url, 60) == ""


# -- in the foreground


def children() -> list[psutil.Process]:
    """The processes of servers that this one has started."""
    ours = psutil.Process().children(recursive=True)
    alive = [child for child in ours if child.status() != psutil.STATUS_ZOMBIE and child.name() != "postgres"]
    return [child for child in alive if "mlflow" in " ".join(child.cmdline())]


@pytest.mark.slow
def test_ctrl_c_ends_the_page_and_every_process_of_it(settings: Settings) -> None:
    prepare(settings.mlflow_uri, settings.artifacts)
    port = free_port()
    variables = environment(**OF_ANOTHER_SERVER)
    command, pipe = [*REGTUNE, "ui", "--no-browser", "--port", str(port)], subprocess.PIPE
    page = subprocess.Popen(command, text=True, env=variables, stdout=pipe, stderr=pipe)
    assert page.stdout is not None
    assert page.stderr is not None
    assert page.stdout.readline() == f"MLflow: http://127.0.0.1:{port}  (Ctrl-C stops it)\n"
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
        assert answer.read() == b"OK"
    parts = psutil.Process(page.pid).children(recursive=True)
    assert parts
    assert not any("mlflow.db" in " ".join(part.cmdline()) for part in parts)
    assert len([part for part in parts if "uvicorn" in part.cmdline()]) == 1
    for _ in range(3):  # once would do
        page.send_signal(signal.SIGINT)
        time.sleep(0.05)
    assert page.wait(timeout=120) == 0
    assert page.stderr.read() == ""
    assert not any(part.is_running() for part in parts)
    check_port("127.0.0.1", port)


@pytest.mark.slow
def test_ctrl_c_while_it_starts_leaves_nothing(settings: Settings) -> None:
    prepare(settings.mlflow_uri, settings.artifacts)

    def press() -> None:
        while not children():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    Thread(target=press).start()
    said: list[str] = []
    serve_ui(settings, free_port(), open_browser=False, tell=said.append)
    assert not said
    assert not children()


@pytest.mark.slow
def test_a_server_that_dies_is_reported(settings: Settings) -> None:
    prepare(settings.mlflow_uri, settings.artifacts)

    def kill(_: str) -> None:
        for child in children():
            child.kill()

    with pytest.raises(TrackingError, match="the MLflow server has ended by itself"):
        serve_ui(settings, free_port(), open_browser=False, tell=kill)
    assert not children()


def test_of_what_servers_read_only_what_is_meant_for_it_is_passed_on(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = {"MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "3"}
    meant = {"MLFLOW_SERVER_ALLOWED_HOSTS": "mlflow:5000", "TZ": "UTC", **pool}
    for name, value in {**OF_ANOTHER_SERVER, **meant, "MLFLOW_ENABLE_AI_GATEWAY": "true"}.items():
        monkeypatch.setenv(name, value)
    variables = server_environment(settings, {"MLFLOW_AUTH_CONFIG_PATH": "auth.ini"})
    assert not variables.keys() & OF_ANOTHER_SERVER.keys()
    given = {**meant, **HARDENING, "MLFLOW_AUTH_CONFIG_PATH": "auth.ini", "MLFLOW_DISABLE_TELEMETRY": "true"}
    assert variables.items() >= given.items()


def test_every_verb_names_the_page_of_a_sweep_s_trials_and_not_the_server_s_first_one() -> None:
    said: list[str] = []
    with stranger(200, '{"experiments": [{"experiment_id": "7"}]}') as url:
        page = f"{url}{runs_path('7')}"
        assert trials_page(f"{url}/") == tell_newest(url, said.append) == page
    assert said == [f"The newest sweep's trials, best first: {page}"]
    assert trials_page(url, seconds=1.0) is None  # nobody answers
    running = ServerStatus("running", url, page=page)
    shown = io.StringIO()
    Console(width=200, file=shown).print(status_view(Status("mlruns", running, (), (), {}, 1)))
    assert page in shown.getvalue()


def test_a_folder_without_studies_has_no_page_and_is_left_as_it_is(settings: Settings) -> None:
    with pytest.raises(NoStudies, match="no studies yet; try: regtune sweep"):
        serve_ui(settings, port=free_port(), open_browser=False)
    assert not settings.home.exists()


def test_a_store_that_is_a_server_is_only_named() -> None:
    said: list[str] = []
    settings = Settings(MLFLOW_TRACKING_URI="http://mlflow.example:5000")
    serve_ui(settings, open_browser=False, tell=said.append)
    (line,) = said
    assert line.startswith("MLflow: http://mlflow.example:5000 cannot be reached (")
    assert not settings.home.exists()


# -- proxies


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A proxy that nobody listens at, and no exceptions."""
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("http_proxy", raising=False)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    return monkeypatch


def direct(host: str) -> bool:
    """Whether both Python's library and requests, which MLflow uses, reach `host` without a proxy."""
    by_urllib = bool(urllib.request.proxy_bypass(host))
    assert bool(should_bypass_proxies(f"http://{host}:5000", None)) == by_urllib, host
    return by_urllib


def test_what_is_on_this_machine_is_reached_without_a_proxy(proxy: pytest.MonkeyPatch) -> None:
    cards = psutil.net_if_addrs().values()
    addresses = {one.address for card in cards for one in card if one.family == socket.AF_INET}
    hosts = ("localhost", "127.0.0.1", "[::1]", *addresses)
    assert not any(map(direct, hosts))
    bypass_proxies()
    assert all(map(direct, (*hosts, socket.gethostname())))
    assert not direct("example.org")


def test_what_a_person_has_excepted_stays_excepted(proxy: pytest.MonkeyPatch) -> None:
    proxy.setenv("no_proxy", "example.org, .example.net")
    bypass_proxies()
    bypass_proxies()
    assert [direct(host) for host in ("example.org", "127.0.0.1", "example.com")] == [True, True, False]
    proxy.setenv("no_proxy", "*")
    bypass_proxies()
    assert direct("example.com")
