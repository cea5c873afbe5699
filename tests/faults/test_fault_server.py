"""MLflow's server is killed, away, frozen, or answers nonsense: the sweep goes on and MLflow gets everything."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from harness import Project, assert_consistent, project, standing
from stores import free_port, until

from regtune.server import service

pytestmark = [pytest.mark.slow, pytest.mark.faults]
LONG = {"run_cap": 4, "training": {"batch_size": 2, "max_epochs": 20}, "early_stopping": {"patience": 20}}
"""Half a minute and more: a server is given up after a few tries."""
AWAY, BACK = " is away; the sweep goes on", "MLflow is back"
SLOW_SECONDS = 2.0
WHOLE = pytest.mark.whole


@pytest.mark.whole
@pytest.mark.pairs("sqlite-server")
def test_up_says_that_the_running_server_does_not_answer(place: Project) -> None:
    with standing(service.processes(place.home)):
        assert "does not answer within 30 s; end it with: regtune down" in place.run("up", code=1)
    place.up()


@pytest.mark.whole
@pytest.mark.pairs("sqlite-server", "postgres-server")
def test_a_server_that_is_killed_and_started_again_costs_nothing(place: Project) -> None:
    with place.sweep(**LONG) as sweep:
        sweep.until_epochs(3)
        for process in service.processes(place.home):
            process.kill()
        sweep.until_finished(2)
        with standing(sweep.workers):
            place.up()
        assert "MLflow lacks" not in sweep.ended()
    assert_consistent(place, run_cap=4)


@pytest.mark.pairs("postgres-server", "sqlite-server")
def test_a_server_that_stands_still_holds_up_nothing(place: Project, whole: bool) -> None:
    with place.sweep(**LONG) as sweep:
        sweep.until_epochs(3)
        with standing(service.processes(place.home)):
            sweep.until_finished(2)
            time.sleep(120 if whole else 5)
        sweep.ended()
    place.run("sync")
    assert_consistent(place, run_cap=4)


def test_a_server_that_is_away_from_the_start_until_after_the_end_is_brought_everything(
    tmp_path: Path,
) -> None:
    port = free_port()
    given = {"REGTUNE_HOME": str(tmp_path / "mlruns"), "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
    place = Project(tmp_path, given, port)
    with place.sweep(run_cap=2) as sweep:
        said = sweep.ended()
    assert "MLflow lacks 3 runs; bring what it lacks with: regtune sync small" in said
    owner = Project(tmp_path, {"REGTUNE_HOME": given["REGTUNE_HOME"]}, port)
    owner.up()
    try:
        place.run("sync")
        assert_consistent(place, run_cap=2)
    finally:
        owner.run("down")


@pytest.mark.whole
def test_a_server_that_comes_up_during_the_sweep_is_brought_everything(tmp_path: Path) -> None:
    port = free_port()
    given = {"REGTUNE_HOME": str(tmp_path / "mlruns"), "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
    place = Project(tmp_path, given, port)
    owner = Project(tmp_path, {"REGTUNE_HOME": given["REGTUNE_HOME"]}, port)
    try:
        with place.sweep(**{**LONG, "run_cap": 8}) as sweep:
            sweep.until_said(AWAY)
            with standing(sweep.workers):
                owner.up()
            said = sweep.ended()
            assert BACK in said
            assert "MLflow lacks" not in said
        assert_consistent(place, run_cap=8)
    finally:
        owner.run("down")


@pytest.mark.parametrize(
    "mood",
    [
        pytest.param("500", marks=WHOLE),
        pytest.param("429", marks=WHOLE),
        "truncated",
        pytest.param("slow", marks=WHOLE),
    ],
)
def test_a_server_that_answers_badly_for_a_while_doubles_and_loses_nothing(tmp_path: Path, mood: str) -> None:
    with project("sqlite-server", tmp_path, None) as place, capricious(place.port) as proxy:
        given = {**place.environment, "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{proxy.server_port}"}
        swept = replace(place, environment=given)
        with swept.sweep(**{**LONG, "run_cap": 12}) as sweep:
            sweep.until_epochs(5)
            proxy.mood = mood
            until(lambda: proxy.spoilt > 0, 400)  # the writer begins when there is time for it
            with standing(sweep.workers):
                time.sleep(3 * SLOW_SECONDS)
            proxy.mood = ""
            assert "MLflow lacks" not in sweep.ended()
        assert_consistent(swept, run_cap=12)


class Capricious(ThreadingHTTPServer):
    """Passes requests on to MLflow's server and its answers back, as its mood is."""

    daemon_threads = True
    mood = ""
    spoilt = 0

    def __init__(self, target: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = target


class _Handler(BaseHTTPRequestHandler):
    server: Capricious

    def do_GET(self) -> None:
        mood = self.server.mood
        self.server.spoilt += bool(mood)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if mood in ("500", "429"):
            self.send_response(int(mood))
            if mood == "429":
                self.send_header("Retry-After", "2")
            self.end_headers()
            return
        if mood == "slow":
            time.sleep(SLOW_SECONDS)
        headers = {
            name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")
        }
        address = f"http://127.0.0.1:{self.server.target}{self.path}"
        request = urllib.request.Request(address, body or None, headers, method=self.command)
        try:
            with urllib.request.urlopen(request, timeout=60) as found:
                status, answer, kind = found.status, found.read(), found.headers.get("Content-Type", "")
        except urllib.error.HTTPError as error:
            status, answer, kind = error.code, error.read(), error.headers.get("Content-Type", "")
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer[: len(answer) // 2] if mood == "truncated" else answer)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_GET

    def log_message(self, *_: object) -> None: ...


@contextmanager
def capricious(target: int | None) -> Iterator[Capricious]:
    """Such a server before the one at port `target`."""
    assert target is not None
    with Capricious(target) as found:
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        try:
            yield found
        finally:
            found.shutdown()
            thread.join()
