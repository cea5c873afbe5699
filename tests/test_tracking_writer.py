"""The background writer: it delays nobody, loses nothing, survives what happens to the store, and ends with
its coordinator.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import tracking_records as records
from mlflow import MlflowClient
from stores import free_port, until

from regtune.errors import TrackingError
from regtune.server.process import Server
from regtune.settings import Settings
from regtune.tracking import TrackingWriter, names

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def writer(home: Path) -> Iterator[TrackingWriter]:
    made = TrackingWriter(Settings(REGTUNE_HOME=home), records.facts())
    yield made
    made.close(0)


def runs(uri: str) -> dict[str, object]:
    """Number (or None for the parent) -> run."""
    client = MlflowClient(uri)
    experiments = [found.experiment_id for found in client.search_experiments()]
    return {run.data.tags.get(names.NUMBER): run for run in client.search_runs(experiments)}


def test_what_is_put_is_in_mlflow_when_it_is_closed(writer: TrackingWriter, home: Path) -> None:
    for epochs in range(12):
        writer.put(0, "RUNNING", records.after(records.started(0), epochs))
    writer.put(*records.complete(0))
    writer.put(*records.failed(1, "pruned"))
    writer.finish("FINISHED", 0)
    assert writer.close(240) == 0
    assert writer.status == ""
    found = runs(f"sqlite:///{home / 'mlflow.db'}")
    assert {key: run.info.status for key, run in found.items()} == {
        None: "FINISHED",
        "0": "FINISHED",
        "1": "KILLED",
    }
    assert found[None].data.tags[names.BEST_NUMBER] == "0"
    assert writer.experiment_id == found["0"].info.experiment_id


def test_curves_are_live(writer: TrackingWriter, home: Path) -> None:
    writer.put(0, "RUNNING", records.after(records.started(0), 2))
    until(lambda: writer.unwritten == 0)
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    run = runs(f"sqlite:///{home / 'mlflow.db'}")["0"]
    assert run.info.status == "RUNNING"
    writer.put(0, "RUNNING", records.after(records.started(0), 3))
    until(lambda: len(client.get_metric_history(run.info.run_id, "val_loss")) == 3)


def test_handing_over_waits_for_nothing(writer: TrackingWriter) -> None:
    os.kill(writer.pid or 0, signal.SIGSTOP)  # far more than a pipe holds, and nobody reads
    record = records.after(records.started(0), 100)
    handing = threading.Thread(
        target=lambda: [writer.put(n, "RUNNING", record) for n in range(500)], daemon=True
    )
    handing.start()
    handing.join(30)
    assert not handing.is_alive()
    os.kill(writer.pid or 0, signal.SIGCONT)


def test_only_the_newest_record_of_a_trial_is_kept(writer: TrackingWriter) -> None:
    os.kill(writer.pid or 0, signal.SIGSTOP)
    for epochs in range(100):
        for number in range(3):
            writer.put(number, "RUNNING", records.after(records.started(number), min(epochs, 5)))
    assert writer.unwritten == 3
    os.kill(writer.pid or 0, signal.SIGCONT)
    assert writer.close(240) == 0


def test_a_writer_that_is_killed_is_replaced_and_loses_nothing(writer: TrackingWriter, home: Path) -> None:
    writer.put(*records.complete(0))
    first = writer.pid
    os.kill(first or 0, signal.SIGKILL)
    writer.put(*records.complete(1))
    assert writer.close(240) == 0
    assert writer.pid != first
    assert set(runs(f"sqlite:///{home / 'mlflow.db'}")) == {None, "0", "1"}


def test_a_database_that_is_deleted_under_it_is_made_again(writer: TrackingWriter, home: Path) -> None:
    writer.put(*records.complete(0))
    until(lambda: writer.unwritten == 0)
    for file in home.glob("mlflow.db*"):
        file.unlink()
    writer.put(*records.complete(1))
    assert writer.close(240) == 0
    assert set(runs(f"sqlite:///{home / 'mlflow.db'}")) == {None, "1"}


def test_ctrl_c_is_the_coordinators_business(writer: TrackingWriter) -> None:
    writer.put(*records.complete(0))
    until(lambda: writer.unwritten == 0)
    pid = writer.pid
    os.kill(pid or 0, signal.SIGINT)
    writer.put(*records.complete(1))
    assert writer.close(240) == 0
    assert writer.pid == pid


def test_closing_leaves_no_process(writer: TrackingWriter) -> None:
    pid = writer.pid
    writer.close(0)
    assert not psutil.pid_exists(pid or 0)


def test_a_uri_that_mlflow_cannot_use_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="expected sqlite:///PATH"):
        TrackingWriter(Settings(REGTUNE_HOME=tmp_path, MLFLOW_TRACKING_URI="mlruns"), records.facts())


@pytest.mark.slow
def test_two_writers_may_open_an_empty_home_at_once(home: Path) -> None:
    settings = Settings(REGTUNE_HOME=home)
    writers = [TrackingWriter(settings, records.facts(f"sweep-{n}", f"study-{n}")) for n in range(3)]
    for index, writer in enumerate(writers):
        number, state, record = records.complete(0)
        writer.put(number, state, replace(record, uid=f"other-{index}"))
    assert [writer.close(240) for writer in writers] == [0, 0, 0]


@pytest.mark.slow
def test_it_ends_with_a_coordinator_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "coordinator.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, time
            from pathlib import Path
            import tracking_records as records
            from regtune.settings import Settings
            from regtune.tracking import TrackingWriter

            if __name__ == "__main__":
                writer = TrackingWriter(Settings(REGTUNE_HOME=Path(sys.argv[1])), records.facts())
                for number in range(40):
                    writer.put(*records.complete(number))
                while writer.unwritten > 30:
                    time.sleep(0.05)
                print(writer.pid, flush=True)
                time.sleep(60)
            """
        )
    )
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    environment = {**os.environ, "PYTHONPATH": paths}
    command = [sys.executable, str(script), str(tmp_path / "home")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as coordinator:
        assert coordinator.stdout is not None
        pid = int(coordinator.stdout.readline())
        writing = psutil.Process(pid)
        coordinator.kill()
        writing.wait(timeout=120)
    uri = f"sqlite:///{tmp_path / 'home' / 'mlflow.db'}"
    again = TrackingWriter(Settings(REGTUNE_HOME=tmp_path / "home"), records.facts())
    for number in range(40):
        again.put(*records.complete(number))
    assert again.close(240) == 0
    assert len(runs(uri)) == 41


@pytest.mark.slow
def test_a_server_that_was_away_has_everything_when_it_is_back(home: Path) -> None:
    port = free_port()
    settings = Settings(REGTUNE_HOME=home)
    uri = f"http://127.0.0.1:{port}"
    with Server(settings, port=port):
        writer = TrackingWriter(Settings(REGTUNE_HOME=home, MLFLOW_TRACKING_URI=uri), records.facts())
        writer.put(*records.complete(0))
        until(lambda: writer.unwritten == 0)
        assert (writer.experiment_url or "").startswith(f"{uri}/#/experiments/{writer.experiment_id}/runs?")
    try:
        writer.put(*records.complete(1))
        until(lambda: writer.status.startswith("MLflow is away since "))
        writer.put(*records.complete(2))
        assert writer.status.endswith("; 2 trials wait")
        with Server(settings, port=port):
            until(lambda: writer.unwritten == 0)
            assert writer.status == ""
            assert set(runs(uri)) == {None, "0", "1", "2"}
            artifacts = MlflowClient(uri).list_artifacts(runs(uri)["2"].info.run_id)
            assert [entry.path for entry in artifacts] == ["config.yaml"]
    finally:
        writer.close(0)


def test_what_cannot_be_written_is_counted_at_the_end(home: Path) -> None:
    away = Settings(REGTUNE_HOME=home, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{free_port()}")
    writer = TrackingWriter(away, records.facts())
    writer.put(*records.complete(0))
    writer.put(*records.complete(1))
    begin = time.monotonic()
    assert writer.close(2) == 2
    assert time.monotonic() - begin < 20  # MLflow itself would try for minutes


def test_a_process_that_takes_long_to_begin_is_waited_for(
    writer: TrackingWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regtune.tracking.writer.DRAIN_SECONDS", 2.0)
    process = psutil.Process(writer.pid)
    process.suspend()
    writer.put(*records.complete(0))
    threading.Timer(5.0, process.resume).start()
    assert writer.close() == 0


def test_at_the_end_what_was_refused_is_tried_once_more(writer: TrackingWriter, home: Path) -> None:
    record = records.after(records.started(0), 2)
    writer.put(0, "RUNNING", record)
    until(lambda: writer.unwritten == 0)
    uri = f"sqlite:///{home / 'mlflow.db'}"
    run = runs(uri)["0"].info.run_id
    with closing(sqlite3.connect(home / "mlflow.db", timeout=30)) as database, database:
        for table in ("runs", "tags"):
            database.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (run,))
    writer.put(0, "RUNNING", records.after(record, 1))
    until(lambda: writer.status.startswith("MLflow refuses #000 "))
    assert writer.close(240) == 0
    assert runs(uri)["0"].info.run_id != run


def test_at_the_end_a_store_that_was_away_is_tried_once_more(home: Path) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    writer = TrackingWriter(Settings(REGTUNE_HOME=home, MLFLOW_TRACKING_URI=uri), records.facts())
    writer.put(*records.complete(0))
    until(lambda: writer.status.startswith("MLflow is away since "))
    with Server(Settings(REGTUNE_HOME=home), port=port):
        assert writer.close(240) == 0
        assert set(runs(uri)) == {None, "0"}
