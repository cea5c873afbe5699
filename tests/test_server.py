"""The MLflow page: hardened, named, and gone with everything it started when it is ended."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import psutil
import pytest
from rich.console import Console
from stores import free_port

from regtune.cli.views.reports import status_view
from regtune.errors import NoStudies, TrackingError
from regtune.server.process import HARDENING, check_port, server_environment
from regtune.settings import Settings
from regtune.storage.mlflow import prepare
from regtune.tracking.page import serve_ui, tell_newest, trials_page
from regtune.tracking.views import runs_path
from regtune.upkeep.status import ServerStatus, Status

ROOT = Path(__file__).resolve().parents[1]
OF_ANOTHER_SERVER = {
    "MLFLOW_STATIC_PREFIX": "/elsewhere",
    "MLFLOW_GUNICORN_OPTS": "--no-such-option",
    "MLFLOW_ARTIFACTS_ONLY": "true",
    "MLFLOW_ENABLE_WORKSPACES": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "abc",
    "_MLFLOW_SERVER_ARTIFACTS_ONLY": "true",
    "UVICORN_ROOT_PATH": "/elsewhere",
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(REGTUNE_HOME=tmp_path / "home")


def children() -> list[psutil.Process]:
    """The processes of servers that this one has started."""
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE and "mlflow" in " ".join(child.cmdline())
    ]


@pytest.mark.slow
def test_ctrl_c_ends_the_page_and_every_process_of_it(settings: Settings) -> None:
    prepare(settings.mlflow_uri, settings.artifacts)
    port = free_port()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **OF_ANOTHER_SERVER}
    del environment["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]  # refused by name
    words = ["ui", "--no-browser", "--port", str(port), "--home", str(settings.home)]
    command, pipes = (
        [sys.executable, "-m", "regtune", *words],
        {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE},
    )
    page = subprocess.Popen(command, text=True, env=environment, **pipes)  # type: ignore[call-overload]
    assert page.stdout.readline() == f"MLflow: http://127.0.0.1:{port}  (Ctrl-C stops it)\n"
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
        assert answer.read() == b"OK"
    parts = psutil.Process(page.pid).children(recursive=True)
    assert parts
    for part in parts:
        variables = part.environ()
        assert {name: variables.get(name) for name in HARDENING} == HARDENING
        assert variables["MLFLOW_DISABLE_TELEMETRY"] == "true"
        assert "mlflow.db" not in " ".join(part.cmdline())
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
    assert {name: variables[name] for name in meant} == meant
    assert {name: variables[name] for name in HARDENING} == HARDENING
    assert variables["MLFLOW_AUTH_CONFIG_PATH"] == "auth.ini"


def test_a_host_that_is_not_ours_is_refused() -> None:
    with pytest.raises(TrackingError, match="cannot be bound"):
        check_port("192.0.2.1", free_port())


def answering(asked: list[str]) -> type[BaseHTTPRequestHandler]:
    class MLflow(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["filter"])
            experiments = [{"experiment_id": "7"}] if "nothing" not in asked[-1] else []
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"experiments": experiments}).encode())

        log_message: Callable[..., None] = lambda *_: None

    return MLflow


def test_every_verb_names_the_page_of_a_sweep_s_trials_and_not_the_server_s_first_one() -> None:
    asked: list[str] = []
    with HTTPServer(("127.0.0.1", 0), answering(asked)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        page = f"{url}{runs_path('7')}"
        assert (trials_page(url), trials_page(f"{url}/", "small")) == (page, page)
        assert trials_page(url, "nothing") is None
        said: list[str] = []
        assert tell_newest(url, said.append) == page
        server.shutdown()
    assert said == [f"The newest sweep's trials, best first: {page}"]
    assert asked[:2] == ["tags.`regtune.sweep` LIKE '%'", "tags.`regtune.sweep` = 'small'"]
    assert trials_page(url, seconds=1.0) is None  # nobody answers
    running = ServerStatus("running", url, page=page)
    shown = io.StringIO()
    Console(width=200, file=shown).print(status_view(Status("mlruns", running, (), {}, (), {}, 1)))
    assert page in shown.getvalue()


def test_a_folder_without_studies_has_no_page_and_is_left_as_it_is(settings: Settings) -> None:
    with pytest.raises(NoStudies, match="no studies yet; try: regtune sweep"):
        serve_ui(settings, port=free_port(), open_browser=False)
    assert not settings.home.exists()


def test_a_store_that_is_a_server_is_only_named(tmp_path: Path) -> None:
    said: list[str] = []
    settings = Settings(REGTUNE_HOME=tmp_path / "home", MLFLOW_TRACKING_URI="http://mlflow.example:5000")
    serve_ui(settings, open_browser=False, tell=said.append)
    (line,) = said
    assert line.startswith("MLflow: http://mlflow.example:5000 cannot be reached (")
    assert not (tmp_path / "home").exists()
