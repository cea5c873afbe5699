"""Every verb does the same on SQLite and PostgreSQL, with MLflow's store written directly and behind its server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import psutil
import pytest
import yaml
from mlflow import MlflowClient
from stores import PAIRS, UNUSUAL, Postgres, free_port, until
from terminals import regtune
from test_sweep import SPEC

pytestmark = pytest.mark.slow
SWEEP = {**SPEC, "run_cap": 6, "controls": True, "early_terminate": {"type": "median"}}


@dataclass(frozen=True)
class Place:
    """A project folder with its stores. environment: what its commands are given."""

    folder: Path
    environment: Mapping[str, str]

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run a verb there; returns its standard output, after it ended with `code`."""
        ended = regtune(*arguments, **self.environment)
        assert ended.returncode == code, f"{arguments}: {ended.stdout}\n{ended.stderr}"
        assert "Traceback" not in ended.stderr, ended.stderr
        return ended.stdout if code == 0 else ended.stderr

    def json(self, *arguments: str) -> Any:
        """What a verb prints with --json."""
        return json.loads(self.run(*arguments, "--json"))

    def start(self, *arguments: str, output: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Start a verb and do not wait."""
        path = {"PYTHONPATH": str(Path(__file__).parents[1])}
        return subprocess.Popen(
            [sys.executable, "-m", "regtune", *arguments],
            env={**os.environ, **path, **self.environment},
            stdout=output,
            stderr=subprocess.DEVNULL,
        )


def _sweep_file(folder: Path) -> str:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(SWEEP))
    return str(path)


def _make(folder: Path, pair: str, server: Postgres | None) -> Place:
    """Bring the stores of one of PAIRS up for a new project folder, with the verbs that are there for it."""
    home = {"REGTUNE_HOME": str(folder / "mlruns")}
    port = str(free_port())
    if pair == "sqlite":
        return Place(folder, home)
    if pair == "sqlite-server":
        place = Place(folder, home)
        place.run("up", "--port", port)
        return place
    assert server is not None
    if pair == "postgres-server":
        place = Place(folder, home)
        for name in ("suite_studies", "suite_mlflow"):
            server.run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        place.run("up", "--port", port, "--postgres", server.url("suite"))
        return place
    named = {
        "OPTUNA_STORAGE": server.fresh("direct_studies"),
        "MLFLOW_TRACKING_URI": server.fresh("direct_mlflow"),
    }
    place = Place(folder, {**home, **named})
    assert "regtune db init" in place.run("sweep", _sweep_file(folder), code=1)
    place.run("db", "init")
    return place


@pytest.fixture(scope="module", params=PAIRS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A project folder with a finished study in it, on each pair of stores in turn."""
    pair = request.param
    server = request.getfixturevalue("postgres_server") if "postgres" in pair else None
    # MLflow keeps 200 characters of a run's place, and PostgreSQL takes no more
    folder = tmp_path_factory.mktemp(pair) / (UNUSUAL if "sqlite" in pair else "a b#%41?ä")
    folder.mkdir()
    found = _make(folder, pair, server)
    try:
        found.run("sweep", _sweep_file(folder), "--workers", "1", "--quiet")
        yield found
    finally:
        if pair.endswith("server"):
            found.run("down")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The same study on plain SQLite."""
    folder = tmp_path_factory.mktemp("reference")
    found = _make(folder, "sqlite", None)
    found.run("sweep", _sweep_file(folder), "--workers", "1", "--quiet")
    return found


TIMES = {"seconds", "uid", "started_ms", "ended_ms", "epoch_seconds", "epoch_ended_ms", "artifacts"} | {
    *("started", "last_active", "worker", "created", "elapsed_seconds", "command", "writes", "duration")
}


def timeless(found: Any) -> Any:
    """JSON without what differs between any two runs."""
    if isinstance(found, dict):
        return {key: timeless(value) for key, value in found.items() if key not in TIMES}
    return [timeless(value) for value in found] if isinstance(found, list) else found


@pytest.mark.parametrize(
    "arguments",
    [
        ("board", "small"),
        ("board", "small", "--limit", "3"),
        ("board", "small", "--sort", "dropout"),
        ("board", "small", "--sort", "-val_accuracy"),
        ("show", "small"),
        ("show", "small", "2"),
        ("studies",),
    ],
    ids=" ".join,
)
def test_what_is_read_is_the_same(place: Place, reference: Place, arguments: tuple[str, ...]) -> None:
    assert timeless(place.json(*arguments)) == timeless(reference.json(*arguments))


def test_mlflow_has_the_same_runs_with_the_same_curves(place: Place, reference: Place) -> None:
    assert _runs(place) == _runs(reference)
    assert place.run("sync", "--check") is not None
    assert place.run("sync", "small") is not None


def _runs(place: Place) -> Any:
    """Every run as MLflow's own client reads it: name, state, params, tags that say something, curves, artifacts."""
    code = f"""
import json
from regtune.settings import load_settings
from regtune.tracking.target import target_of
from regtune.storage.mlflow import connect
settings = load_settings()
client = connect(target_of(settings).uri, settings.artifacts)
experiment = client.get_experiment_by_name("small")
found = []
for run in client.search_runs([experiment.experiment_id]):
    curves = {{
        name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)] for name in run.data.metrics
    }}
    kept = {{key: value for key, value in run.data.tags.items() if key in {_TAGS!r}}}
    files = sorted(item.path for item in client.list_artifacts(run.info.run_id))
    config = None
    if "config.yaml" in files:
        config = open(client.download_artifacts(run.info.run_id, "config.yaml", ".")).read()
    trial = run.data.tags.get("regtune.number", "")
    found.append((trial, run.info.status, run.data.params, kept, curves, files, config, len(run.inputs.dataset_inputs)))
print(json.dumps(sorted(found, key=lambda entry: entry[0]), sort_keys=True))
"""
    path = {"PYTHONPATH": str(Path(__file__).parents[1])}
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **path, **place.environment},
        cwd=place.folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    runs = json.loads(ended.stdout.splitlines()[-1])
    assert len(runs) == 1 + SWEEP["run_cap"]
    return runs


_TAGS = ("regtune.state", "regtune.end_reason", "regtune.control", "regtune.mix", "regtune.seed")


def test_a_study_goes_on_with_what_another_terminal_asks_for(place: Place) -> None:
    place.run("enqueue", "small", "dropout=0.25", "l2=0.0001")
    place.run("sweep", str(place.folder / "small.yaml"), "--set", "run_cap=10", "--workers", "1", "--quiet")
    rows = place.json("board", "small")
    asked = [row for row in rows if row.get("dropout") == 0.25 and row.get("l2") == 0.0001]
    assert [row["state"] for row in asked] == ["COMPLETE"]
    place.run("sync", "--check")


def test_a_running_study_is_refused_to_others_stopped_killed_and_resumed(place: Place) -> None:
    file = str(place.folder / "small.yaml")
    slow = "training.batch_size=16"  # so that few trials end meanwhile
    arguments = ("sweep", file, "--name", "killed", "--quiet", "--workers", "1", "--set", slow, "--set")
    long = "run_cap=1000"  # so that no machine is too fast for what happens meanwhile
    started = [running := place.start(*arguments, long)]
    try:
        until(lambda: _finished(place, "killed") >= 1, 600, pause=2)
        assert f"process {running.pid}" in place.run(*arguments, long, code=1)
        workers = psutil.Process(running.pid).children(recursive=True)
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
        psutil.wait_procs(workers, timeout=120)
        assert not [worker for worker in workers if worker.is_running()]
        before = _finished(place, "killed")
        started.append(resumed := place.start(*arguments, long))
        until(lambda: _finished(place, "killed") > before, 600, pause=2)
        place.run("stop", "killed")
        resumed.wait(600)
        finished = _finished(place, "killed")
        assert before < finished < 1000
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
    place.run(*arguments, f"run_cap={finished + 2}")
    rows = [row for row in place.json("board", "killed") if row["state"] != "WAITING"]
    assert sorted(row["trial"] for row in rows) == list(range(finished + 2))
    assert {row["state"] for row in rows} <= {"COMPLETE", "PRUNED"}
    place.run("sync", "--check")
    place.run("delete", "killed", "--yes")
    assert [study["study"] for study in place.json("studies")] == ["small"]
    place.run("gc", "--yes")
    place.run("sync", "--check")


def _finished(place: Place, study: str) -> int:
    ended = regtune("board", study, "--json", **place.environment)
    if ended.returncode:
        return 0
    return sum(row["state"] in ("COMPLETE", "PRUNED") for row in json.loads(ended.stdout))


def test_what_looks_at_the_folder_finds_it_in_order(place: Place) -> None:
    place.run("plan", str(place.folder / "small.yaml"))
    place.run("watch", "small")
    place.run("db", "check")
    place.run("db", "upgrade")
    assert {check["status"] for check in place.json("doctor")} <= {"ok", "note"}
    place.json("status")


def test_the_page_of_its_runs_is_served_or_named(place: Place) -> None:
    with TemporaryFile("w+") as said:
        page = place.start("ui", "--port", str(free_port()), "--no-browser", output=said.fileno())

        def newest() -> list[tuple[str, str]]:
            said.seek(0)
            return re.findall(r"best first: (http://127\.0\.0\.1:\d+)/#/experiments/(\d+)/runs", said.read())

        try:
            until(lambda: bool(newest()))
            ((url, experiment),) = newest()
            shown = MlflowClient(url).search_runs([experiment])
        finally:
            page.terminate()
            page.wait(240)
    assert len(shown) == 1 + sum(row["state"] != "WAITING" for row in place.json("board", "small"))


def test_the_best_is_the_same_file_and_trains_to_the_same_figures(place: Place, reference: Place) -> None:
    def essential(text: str) -> Any:
        values = yaml.safe_load(text)
        provenance = values.pop("provenance", {})
        return values, provenance.get("figures"), provenance.get("trial")

    best = place.run("best", "small")
    assert essential(best) == essential(reference.run("best", "small"))
    file = place.folder / "best.yaml"
    file.write_text(best)
    place.run("train", str(file))
