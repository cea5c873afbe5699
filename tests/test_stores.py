"""Every verb does the same on SQLite and PostgreSQL, with MLflow's store written directly and behind its server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from places import Place
from stores import UNUSUAL, Postgres, free_port, until
from terminals import run_here

pytestmark = pytest.mark.slow
CHANGES = {
    "training": {"batch_size": 64, "max_epochs": 3},
    "early_stopping": {"patience": 2},
    "controls": True,
    "early_terminate": {"type": "median"},
}
OTHERS = (
    "postgres-server",
    *(pytest.param(pair, marks=pytest.mark.proof) for pair in ("sqlite-server", "postgres")),
)
"""What SQLite files are compared with: what differs in both ways from them, in `make proofs` each way alone, too."""


def _place(folder: Path, pair: str, server: Postgres | None) -> Place:
    """A place on one of PAIRS, made with the verbs that are there for it, in which a study is finished."""
    # MLflow keeps 200 characters of a run's place, and PostgreSQL takes no more
    folder = folder / (UNUSUAL if "sqlite" in pair else "a b#%41?ä")
    folder.mkdir()
    given = {"REGTUNE_HOME": str(folder / "mlruns")}
    if pair == "postgres":
        given |= {name: server.fresh(name.lower()) for name in ("OPTUNA_STORAGE", "MLFLOW_TRACKING_URI")}
    place = Place(folder, given, port=free_port() if pair.endswith("server") else None)
    if place.port:
        place.up(*(("--postgres", server.url("suite")) if server else ()))
    elif server:
        place.run("db", "init")
    with place.sweep(**CHANGES) as sweep:
        sweep.ended()
    return place


@pytest.fixture(scope="module", params=OTHERS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A place with a finished study, on each of OTHERS in turn."""
    server = request.getfixturevalue("postgres_server") if "postgres" in request.param else None
    made = _place(tmp_path_factory.mktemp(request.param), request.param, server)
    try:
        yield made
    finally:
        if made.port:
            made.run("down")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The same study in SQLite files, written directly."""
    return _place(tmp_path_factory.mktemp("reference"), "sqlite", None)


TIMES = {"seconds", "uid", "started_ms", "ended_ms", "epoch_seconds", "epoch_ended_ms", "artifacts"} | {
    *("started", "last_active", "worker", "created", "elapsed_seconds", "command", "writes", "duration"),
    *("model", "mlflow"),  # where they are
}


def timeless(values: Any) -> Any:
    """JSON without what differs between any two runs."""
    if isinstance(values, dict):
        return {key: timeless(value) for key, value in values.items() if key not in TIMES}
    return [timeless(value) for value in values] if isinstance(values, list) else values


READING = (
    "board small, board small --limit 3, board small --sort dropout, board small --sort -val_accuracy, "
    "show small, show small 2, studies"
)


def test_what_is_read_is_the_same(place: Place, reference: Place, capsys: pytest.CaptureFixture[str]) -> None:
    for words in READING.split(", "):
        asked = [*words.split(), "--json"]
        answers = [run_here(capsys, *asked, **each.environment) for each in (place, reference)]
        assert [(code, errors) for code, _, errors in answers] == [(0, ""), (0, "")], words
        ours, theirs = (timeless(json.loads(output)) for _, output, _ in answers)
        assert ours == theirs, words
    place.run("sync", "--check")  # MLflow has the same runs, curves and figures


def test_the_page_of_its_runs_is_served_or_named(place: Place) -> None:
    command = [sys.executable, "-m", "regtune", "ui", "--port", str(free_port()), "--no-browser"]
    best_first = re.compile(r"best first: (http://127\.0\.0\.1:\d+)/#/experiments/(\d+)/runs")
    page = subprocess.Popen(command, env=place.variables(), stdout=subprocess.PIPE, text=True)
    try:
        url, experiment = next(filter(None, map(best_first.search, page.stdout))).groups()
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
    place.run("train", str(file))  # which adds a run of its own to those that the page lists


def test_a_study_goes_on_with_what_another_terminal_asks_for(place: Place) -> None:
    place.run("enqueue", "small", "dropout=0.25", "l2=0.0001")
    with place.sweep(**{**CHANGES, "run_cap": 10}) as sweep:
        sweep.ended()
    rows = place.json("board", "small")
    asked = [row for row in rows if row.get("dropout") == 0.25 and row.get("l2") == 0.0001]
    assert [row["state"] for row in asked] == ["COMPLETE"]
    place.run("sync", "--check")


def test_a_running_study_is_refused_to_others_stopped_resumed_and_deleted(place: Place) -> None:
    study = place.with_new_study()
    endless = {**CHANGES, "training": {"batch_size": 16, "max_epochs": 3}, "run_cap": 1000}
    with study.sweep(**endless) as sweep:
        until(lambda: _finished(study) >= 1, 600, pause=2)
        with study.sweep(**endless) as other:
            assert f"process {sweep.process.pid}" in other.ended(code=1)
        study.run("stop", study.name)
        sweep.ended(code=130)
    finished = _finished(study)
    assert 1 <= finished < 1000
    with study.sweep(**{**endless, "run_cap": finished + 2}) as sweep:
        sweep.ended()
    rows = [row for row in study.json("board", study.name) if row["state"] != "WAITING"]
    assert sorted(row["trial"] for row in rows) == list(range(finished + 2))
    assert {row["state"] for row in rows} <= {"COMPLETE", "PRUNED"}
    study.run("sync", "--check")
    study.run("delete", study.name, "--yes")
    assert [row["study"] for row in study.json("studies")] == ["small"]
    study.run("gc", "--yes")
    study.run("sync", "--check")


def _finished(place: Place) -> int:
    counts = [row["counts"] for row in place.json("studies") if row["study"] == place.name]
    return sum(count["COMPLETE"] + count["PRUNED"] for count in counts)


def test_what_looks_at_the_folder_finds_it_in_order(place: Place) -> None:
    for words in ("plan small.yaml", "watch small", "db check", "db upgrade", "status"):
        place.run(*words.split())
    assert {check["status"] for check in place.json("doctor")} <= {"ok", "note"}
