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
from typing import Any

import pytest
from harness import assert_consistent
from places import Place, standing
from stores import free_port, until

from regtune.server import service

LONG = {"run_cap": 4, "training": {"batch_size": 2, "max_epochs": 20}, "early_stopping": {"patience": 20}}
"""Half a minute and more: a server is given up after a few tries."""
SLOW_SECONDS = 2.0
MORE_MOODS = [pytest.param(mood, 60, marks=pytest.mark.proof) for mood in ("500", "429", "slow")]


@pytest.mark.proof
@pytest.mark.pairs("sqlite-server")
def test_up_says_that_the_running_server_does_not_answer(place: Place) -> None:
    with standing(service.processes(place.home)):
        assert "does not answer within 30 s; restart it with: regtune down" in place.run("up", code=1)
    place.up()


@pytest.mark.pairs("sqlite-server", "postgres-server")
@pytest.mark.parametrize(("mood", "frozen_seconds"), [("truncated", 5), *MORE_MOODS])
def test_a_server_that_answers_nonsense_stands_still_and_is_killed_costs_nothing(
    place: Place, mood: str, frozen_seconds: float
) -> None:
    with capricious(place.port) as proxy:
        given = {**place.environment, "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{proxy.server_port}"}
        swept = replace(place, environment=given)
        with swept.sweep(**{**LONG, "run_cap": 6}) as sweep:
            sweep.until_epochs(5)
            proxy.mood = mood
            until(lambda: proxy.spoilt > 0, 400)  # the writer begins when there is time for it
            with standing(sweep.workers):
                time.sleep(3 * SLOW_SECONDS)
            proxy.mood = ""
            with standing(service.processes(place.home)):
                sweep.until_finished(2)
                with standing(sweep.workers):  # so that the sweep does not end meanwhile
                    time.sleep(frozen_seconds)
            for process in service.processes(place.home):
                process.kill()
            sweep.until_finished(3)
            with standing(sweep.workers):
                place.up()
            sweep.ended()
        place.run("sync")  # where the machine is too busy for a sweep to wait for MLflow
        assert_consistent(place, run_cap=6)


@pytest.mark.parametrize("back", ["after its end", pytest.param("while it runs", marks=pytest.mark.proof)])
def test_a_server_that_is_away_from_the_start_is_brought_everything(tmp_path: Path, back: str) -> None:
    port, home = free_port(), {"REGTUNE_HOME": str(tmp_path / "mlruns")}
    place = Place(tmp_path, {**home, "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}, port=port)
    owner = Place(tmp_path, home, port=port)
    changes: dict[str, Any] = {"run_cap": 2} if back == "after its end" else {**LONG, "run_cap": 8}
    try:
        with place.sweep(**changes) as sweep:
            if back == "while it runs":
                sweep.until(lambda: " is away; the sweep continues" in sweep.said, "MLflow is away")
                with standing(sweep.workers):
                    owner.up()
            said = sweep.ended()
        if back == "after its end":
            assert "MLflow is behind by 3 runs; bring it up to date with: regtune sync small" in said
            owner.up()
            place.run("sync")
        else:
            assert "MLflow is back" in said
            assert "MLflow is behind" not in said
        assert_consistent(place, run_cap=changes["run_cap"])
    finally:
        owner.run("down")


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
        if mood.isdigit():
            self.send_response(int(mood))
            self.send_header("Retry-After", "2")
            self.end_headers()
            return
        if mood == "slow":
            time.sleep(SLOW_SECONDS)
        own = ("host", "connection")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in own}
        address = f"http://127.0.0.1:{self.server.target}{self.path}"
        request = urllib.request.Request(address, body or None, headers, method=self.command)
        try:
            real = urllib.request.urlopen(request, timeout=60)
        except urllib.error.HTTPError as error:
            real = error
        except OSError:  # killed: no answer at all
            return
        with real:
            answer = real.read()
        self.send_response(real.status)
        self.send_header("Content-Type", real.headers.get("Content-Type", ""))
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer[: len(answer) // 2] if mood == "truncated" else answer)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_GET

    def log_message(self, *_: object) -> None: ...


@contextmanager
def capricious(target: int | None) -> Iterator[Capricious]:
    assert target is not None
    with Capricious(target) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
