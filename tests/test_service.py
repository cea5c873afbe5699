"""The server of a folder in the background: `up`, `down`, `status`, and what is killed in between."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pexpect
import psutil
import pytest
import yaml
from stores import free_port, until
from terminals import regtune
from test_sweep import SPEC

from regtune.errors import InputError, TrackingError
from regtune.server import service
from regtune.settings import Settings
from regtune.storage.health import trouble
from regtune.tracking.target import target_of
from regtune.tracking.views import runs_path

ROOT = str(Path(__file__).parents[1])


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    found = Settings()
    yield found
    service.down(found)
    assert not service.processes(found.home)


def answers(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/health", timeout=60):
            return True
    except OSError:
        return False


def test_a_folder_without_a_server_says_so_and_down_has_nothing_to_do(settings: Settings) -> None:
    assert service.running(settings) is None
    assert not service.down(settings)
    ended = regtune("status", "--json")
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["server"]["state"] == "none"
    assert [database["state"] for database in found["databases"]] == ["missing", "missing"]
    assert (found["running"], found["behind"]) == ({}, {})
    assert found["free_bytes"] > 0
    assert not settings.home.exists()  # looking makes nothing


def test_another_process_that_has_got_the_servers_number_is_not_taken_for_it(settings: Settings) -> None:
    settings.home.mkdir()
    somebody = service.Service(
        "http://127.0.0.1:9", "127.0.0.1", 9, False, "", os.getpid(), "2026-01-01T00:00:00"
    )
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


def test_options_that_contradict_each_other_are_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in (["--sqlite", "--postgres"], ["postgresql://someone@somewhere/name"]):
        ended = regtune("up", *arguments)
        assert ended.returncode == 2
        assert "Traceback" not in ended.stderr
    with pytest.raises(InputError, match="--no-auth with --host"):
        service.up(settings, host="0.0.0.0", auth=False)
    with pytest.raises(InputError, match="names a server already"):
        service.up(Settings(MLFLOW_TRACKING_URI="http://127.0.0.1:9"))
    with pytest.raises(InputError, match=r"OPTUNA_STORAGE in \.env names"):
        service.up(Settings(OPTUNA_STORAGE="sqlite:///other.db"), databases="sqlite")
    assert not service.processes(settings.home)


def test_a_taken_port_is_refused_with_who_has_it(settings: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            TrackingError, match=rf"port {port} is taken by process {os.getpid()}.* regtune up --port"
        ):
            service.up(settings, port=port)
    assert not service.processes(settings.home)


def test_a_sweep_writes_to_the_folders_server_else_to_its_store(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = (settings.artifacts / "runs").as_uri()
    assert target_of(settings) == type(target_of(settings))(settings.mlflow_uri, place)
    foreign = target_of(Settings(MLFLOW_TRACKING_URI="http://127.0.0.1:9"))
    assert (foreign.uri, foreign.place) == ("http://127.0.0.1:9", None)
    for auth, uri in ((False, "http://127.0.0.1:9"), (True, settings.mlflow_uri)):
        found = service.Service("http://127.0.0.1:9", "127.0.0.1", 9, auth, settings.mlflow_uri, 1, "")
        monkeypatch.setattr("regtune.tracking.target.running", lambda _, found=found: found)
        assert (target_of(settings).uri, target_of(settings).place) == (uri, place)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "someone")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "some-thing-secret")
    assert target_of(settings).uri == "http://127.0.0.1:9"


@pytest.mark.slow
def test_up_runs_in_the_background_and_again_says_where(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy"):  # what is on this machine is reached without it
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")
    port = free_port()
    with ThreadPoolExecutor() as pool:  # two at once
        both = [pool.submit(regtune, "up", "--port", str(port)) for _ in range(2)]
        ended = [one.result() for one in both]
    assert [one.returncode for one in ended] == [0, 0], [one.stderr for one in ended]
    assert sorted("since" in one.stderr for one in ended) == [
        False,
        True,
    ]  # one has started it, one has found it
    found = service.running(settings)
    assert found is not None
    assert answers(found.url)
    assert len({process.pid for process in service.processes(settings.home)}) == 2  # mlflow and its child
    assert os.getsid(found.pid) == found.pid  # a closed terminal reaches no other session

    other = regtune("up", "--port", str(free_port()))
    assert other.returncode == 1
    assert f"{found.url} on" in other.stderr
    assert "regtune down, then: regtune up --port" in other.stderr
    page = regtune("ui", "--no-browser")
    assert page.returncode == 0
    assert page.stderr.startswith(f"MLflow: {found.url}, which") or page.stdout.startswith(
        f"MLflow: {found.url}"
    )

    status = json.loads(regtune("status", "--json").stdout)
    assert status["server"] == {
        "state": "running",
        "url": found.url,
        "foreign": False,
        "since": found.since,
        "auth": False,
        "page": None,
        "problem": "",
    }
    assert trouble(found.url) == ""
    assert [database["state"] for database in status["databases"]] == ["current", "current"]

    assert regtune("down").stderr.strip() == "Ended."
    assert regtune("down").stderr.strip() == "Nothing runs here."
    assert not answers(found.url)
    assert not service.processes(settings.home)

    assert service.usual_port(settings) == port
    with socket.socket() as taken:  # where it would come back
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert f"port {port} is taken by" in regtune("up").stderr


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["mlflow", "its child", "both"])
def test_whatever_is_killed_the_next_up_starts_again(settings: Settings, victim: str) -> None:
    port = free_port()
    found = service.up(settings, port=port, tell=lambda _: None)
    parts = service.processes(settings.home)
    killed = {
        "mlflow": [process for process in parts if process.pid == found.pid],
        "its child": [process for process in parts if process.pid != found.pid],
        "both": parts,
    }[victim]
    assert killed
    for process in killed:
        process.send_signal(signal.SIGKILL)
    gone, _ = psutil.wait_procs(killed, timeout=120)
    assert gone
    if victim == "mlflow":
        assert answers(found.url)  # the child goes on alone
        assert json.loads(regtune("status", "--json").stdout)["server"]["state"] == "parts"
    until(lambda: service.running(settings) is None)
    assert target_of(settings).uri == settings.mlflow_uri
    again = service.up(settings, port=port, tell=lambda _: None)
    assert again.pid != found.pid
    assert answers(again.url)
    assert len(service.processes(settings.home)) == 2


@pytest.mark.slow
def test_an_up_that_is_killed_while_it_starts_leaves_nothing_in_the_way(settings: Settings) -> None:
    port = free_port()
    starting = subprocess.Popen(
        [sys.executable, "-m", "regtune", "up", "--port", str(port)], env={**os.environ, "PYTHONPATH": ROOT}
    )
    until(lambda: bool(service.processes(settings.home)))
    starting.kill()
    starting.wait()
    assert service.running(settings) is None
    assert service.processes(settings.home)
    found = service.up(settings, port=port, tell=lambda _: None)
    assert answers(found.url)
    assert len(service.processes(settings.home)) == 2


@pytest.mark.slow
def test_the_server_outlives_the_terminal_and_a_sweep_writes_through_it(
    settings: Settings, tmp_path: Path
) -> None:
    terminal = pexpect.spawn("/bin/sh", env={**os.environ, "PYTHONPATH": ROOT}, encoding="utf-8", timeout=240)
    terminal.sendline(f"{sys.executable} -m regtune up --port {free_port()}")
    terminal.expect("MLflow: http")
    until(lambda: service.running(settings) is not None)
    terminal.close(force=True)  # SIGHUP to what is on it
    found = service.running(settings)
    assert found is not None
    time.sleep(1)
    assert answers(found.url)

    (tmp_path / "small.yaml").write_text(yaml.safe_dump({**SPEC, "run_cap": 2}))
    ended = regtune("sweep", "small.yaml", "--workers", "1")
    assert ended.returncode == 0, ended.stderr
    from regtune.storage.mlflow import connect

    through = connect(found.url, settings.artifacts)
    direct = connect(settings.mlflow_uri, settings.artifacts)
    runs = []
    for client in (through, direct):
        experiment = client.get_experiment_by_name("small")
        assert experiment.artifact_location == (settings.artifacts / "runs").as_uri()
        runs.append({run.info.run_id for run in client.search_runs([experiment.experiment_id])})
        listed = [file.path for run in runs[-1] for file in client.list_artifacts(run)]
        assert "config.yaml" in listed
    assert runs[0] == runs[1]
    assert len(runs[0]) == 3

    page = f"{found.url}{runs_path(experiment.experiment_id)}"  # and not the server's own first page
    assert f"compare the runs:  {page}" in ended.stderr
    assert page in regtune("up").stderr
    assert json.loads(regtune("status", "--json").stdout)["server"]["page"] == page
