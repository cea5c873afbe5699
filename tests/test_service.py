"""The server of a folder in the background: `up`, `down`, `status`, and what is killed in between."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pexpect
import psutil
import pytest
import tracking_records as records
from stores import free_port, until

from regtune.errors import InputError, TrackingError
from regtune.server import service
from regtune.server.process import check_port
from regtune.settings import Settings
from regtune.storage.mlflow import connect, trouble
from regtune.tracking.page import serve_ui
from regtune.tracking.store import target_of
from regtune.tracking.sync import catch_up
from regtune.tracking.views import runs_path
from regtune.upkeep.status import look

ROOT = str(Path(__file__).parents[1])
UP = [sys.executable, "-m", "regtune", "up", "--port"]


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    settings = Settings()
    yield settings
    service.down(settings)
    assert not service.processes(settings.home)


def answers(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/health", timeout=60):
            return True
    except OSError:
        return False


def test_a_folder_without_a_server_says_so_and_down_has_nothing_to_do(settings: Settings) -> None:
    assert service.running(settings) is None
    assert not service.down(settings)
    status = look(settings)
    assert status.server.state == "none"
    assert [database.state for database in status.databases] == ["missing", "missing"]
    assert (status.running, status.behind) == ({}, {})
    assert status.free_bytes > 0
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
    for text, port in (("5141\n", 5141), ("0", 5000), ("99999", 5000), ("http", 5000)):
        (settings.home / service.PORT).write_text(text)
        assert service.usual_port(settings) == port


def test_what_contradicts_itself_or_the_environment_is_refused(settings: Settings) -> None:
    with pytest.raises(InputError, match="--no-auth with --host"):
        service.up(settings, host="0.0.0.0", auth=False)
    with pytest.raises(InputError, match="names a server already"):
        service.up(Settings(MLFLOW_TRACKING_URI="http://127.0.0.1:9"))
    with pytest.raises(InputError, match=r"OPTUNA_STORAGE in \.env names"):
        service.up(Settings(OPTUNA_STORAGE="sqlite:///other.db"), databases="sqlite")
    with pytest.raises(InputError, match=r"--postgres: expected postgresql"):
        service.up(settings, databases="sqlite:///other.db")
    assert not service.processes(settings.home)


def test_a_taken_port_is_refused_with_who_has_it(settings: Settings) -> None:
    settings.home.mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (settings.home / service.PORT).write_text(str(port))  # where it would come back
        for asked in (port, None):
            said = rf"^port {port} is taken by process {os.getpid()} \(.* regtune up --port \d+$"
            with pytest.raises(TrackingError, match=said) as caught:
                service.up(settings, port=asked)
            check_port(
                "127.0.0.1", int(str(caught.value).rsplit(" ", 1)[1])
            )  # the one that is suggested is free
    assert not service.processes(settings.home)


def test_a_sweep_writes_to_the_folders_server_else_to_its_store(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = (settings.artifacts / "runs").as_uri()
    assert target_of(settings) == type(target_of(settings))(settings.mlflow_uri, place)
    foreign = target_of(Settings(MLFLOW_TRACKING_URI="http://127.0.0.1:9"))
    assert (foreign.uri, foreign.place) == ("http://127.0.0.1:9", None)
    for auth, uri in ((False, "http://127.0.0.1:9"), (True, settings.mlflow_uri)):
        known = service.Service("http://127.0.0.1:9", "127.0.0.1", 9, auth, settings.mlflow_uri, 1, "")
        monkeypatch.setattr("regtune.tracking.store.running", lambda _, known=known: known)
        assert (target_of(settings).uri, target_of(settings).place) == (uri, place)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "someone")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "some-thing-secret")
    assert target_of(settings).uri == "http://127.0.0.1:9"


@pytest.mark.slow
def test_the_server_outlives_its_terminal_and_what_is_written_through_it_is_in_the_store(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy"):  # what is on this machine is reached without it
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")
    port = free_port()
    variables = {**os.environ, "PYTHONPATH": ROOT}
    second = subprocess.Popen([*UP, str(port)], env=variables, stderr=subprocess.PIPE, text=True)
    terminal = pexpect.spawn("/bin/sh", env=variables, encoding="utf-8", timeout=240)
    terminal.sendline(" ".join([*UP, str(port)]))  # two at once
    terminal.expect(r"MLflow: http.*\n")
    said = [second.communicate(timeout=240)[1], terminal.match.group()]
    assert second.returncode == 0
    assert sorted("since" in line for line in said) == [False, True]  # one has started it, one has found it
    known = service.running(settings)
    assert known is not None
    assert os.getsid(known.pid) == known.pid  # a closed terminal reaches no other session
    terminal.close(force=True)  # SIGHUP to what is on it
    assert answers(known.url)
    assert len({process.pid for process in service.processes(settings.home)}) == 2  # mlflow and its child

    with pytest.raises(TrackingError, match=rf"{known.url} on .*regtune down, then: regtune up --port"):
        service.up(settings, port=free_port())
    monkeypatch.setenv("NO_PROXY", "*")
    catch_up(settings, records.facts(), records.Listed([records.complete(0)]), "FINISHED", 0)
    through, direct = (connect(uri, settings.artifacts) for uri in (known.url, settings.mlflow_uri))
    (experiment,) = direct.search_experiments(filter_string="name = 'mnist-regularization'")
    assert experiment.artifact_location == (settings.artifacts / "runs").as_uri()
    runs = direct.search_runs([experiment.experiment_id])
    files = [
        {run.info.run_id: {file.path for file in client.list_artifacts(run.info.run_id)} for run in runs}
        for client in (through, direct)
    ]
    assert files[0] == files[1]
    assert (
        len(through.search_runs([experiment.experiment_id])) == len(runs) == 2
    )  # the study's own and the trial's
    assert "config.yaml" in set().union(*files[0].values())

    page = f"{known.url}{runs_path(experiment.experiment_id)}"  # and not the server's own first page
    lines: list[str] = []
    serve_ui(settings, open_browser=False, tell=lines.append)
    assert lines[0] == f"MLflow: {known.url}, which regtune up has started"
    assert page in lines[1]
    status = look(settings)
    expected = {"state": "running", "url": known.url, "since": known.since, "page": page}
    assert vars(status.server) == {**expected, "foreign": False, "auth": False, "problem": ""}
    assert trouble(known.url) == ""
    assert status.databases[1].state == "current"

    assert service.down(settings)
    assert not service.down(settings)
    assert not answers(known.url)
    assert not service.processes(settings.home)
    assert service.usual_port(settings) == port


@pytest.mark.slow
def test_whatever_is_killed_the_next_up_starts_again(settings: Settings) -> None:
    port = free_port()
    starting = subprocess.Popen([*UP, str(port)], env={**os.environ, "PYTHONPATH": ROOT})
    until(lambda: bool(service.processes(settings.home)))
    starting.kill()
    starting.wait()
    assert service.running(settings) is None
    assert service.processes(settings.home)
    known = service.up(settings, port=port, tell=lambda _: None)
    for victim in ("mlflow", "its child"):
        parts = service.processes(settings.home)
        assert len(parts) == 2
        killed = [part for part in parts if (part.pid == known.pid) == (victim == "mlflow")]
        for part in killed:
            part.send_signal(signal.SIGKILL)
        gone, _ = psutil.wait_procs(killed, timeout=120)
        assert gone
        if victim == "mlflow":
            assert answers(known.url)  # the child goes on alone
            assert look(settings).server.state == "parts"
        until(lambda: service.running(settings) is None)
        assert target_of(settings).uri == settings.mlflow_uri
        again = service.up(settings, port=port, tell=lambda _: None)
        assert again.pid != known.pid
        assert answers(again.url)
        known = again
