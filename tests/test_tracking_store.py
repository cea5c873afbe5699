"""The MLflow store: who answers at its address, what is refused before a sweep, and what MLflow keeps to itself."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.environment_variables import MLFLOW_SQLALCHEMYSTORE_POOL_SIZE
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from stores import free_port
from strangers import silent, stranger

from regtune.errors import SettingsError, TrackingError
from regtune.settings import Settings
from regtune.storage import mlflow
from regtune.storage.mlflow import bad_variable, check_store, connect, trouble
from regtune.tracking.live import Tracker
from regtune.upkeep.doctor import examine
from regtune.upkeep.status import look

OTHERWISE = "does not answer as MLflow does"


@pytest.mark.parametrize(
    ("status", "body", "kind", "said"),
    [
        (403, "", "text/html", f"{OTHERWISE} (HTTP 403)"),
        (403, "Invalid Host header", "text/plain", f"{OTHERWISE} (HTTP 403: Invalid Host header)"),
        (502, "<html>proxy</html>", "text/html", f"{OTHERWISE} (HTTP 502)"),
        (200, "<html>hello</html>", "text/html", OTHERWISE),
        (200, '{"status": "ok"}', "application/json", OTHERWISE),
        (200, "{}", "application/json", ""),
        (401, "You are not authenticated.", "text/html", ""),
        (500, '{"error_code": "INTERNAL_ERROR"}', "application/json", ""),
    ],
)
def test_who_answers_otherwise_than_mlflow_is_told_from_it(
    status: int, body: str, kind: str, said: str
) -> None:
    with stranger(status, body, kind) as url:
        assert trouble(url) == said


def test_a_port_that_never_answers_and_one_that_nobody_listens_at_are_told() -> None:
    with silent() as url:
        assert trouble(url, 0.2).startswith("does not answer within ")
    assert trouble(f"http://127.0.0.1:{free_port()}") == "cannot be reached (Connection refused)"


def test_where_mlflows_client_signs_in_by_itself_it_alone_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_AWS_SIGV4", "true")
    with stranger(403) as url:
        assert trouble(url) == ""


def test_a_stranger_is_said_first_of_all_by_a_sweep_and_found_by_doctor_and_status() -> None:
    with stranger(403) as url:
        settings = Settings(MLFLOW_TRACKING_URI=url)
        tracker = Tracker(settings, "mnist-regularization")
        away = "MLflow is away; the sweep continues, and MLflow catches up later"
        assert tracker.news() == [f"{url} {OTHERWISE} (HTTP 403): {away}"]
        tracker.close(0)
        (found,) = (check for check in examine(settings) if check.name == "MLflow")
        assert (found.status, found.found) == ("mend", f"{url} {OTHERWISE} (HTTP 403)")
        assert look(settings).server.problem == f"{OTHERWISE} (HTTP 403)"
        with pytest.raises(TrackingError, match=rf"^MLflow at {url} {OTHERWISE} \(HTTP 403\)$"):
            connect(url, settings.artifacts)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "abc"),
        ("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "-1"),
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "0"),
    ],
)
def test_patience_that_is_no_number_is_refused_before_training(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"^{name}: expected a whole number.*, found {value}$"):
        check_store(Settings().mlflow_uri)


def test_a_value_that_mlflow_cannot_read_is_said_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_POOL_SIZE", "abc")
    with pytest.raises(ValueError, match="abc") as caught:
        MLFLOW_SQLALCHEMYSTORE_POOL_SIZE.get()
    said = "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE: MLflow cannot read 'abc'; unset it"
    assert str(bad_variable(caught.value)) == said
    assert bad_variable(ValueError("MLFLOW_NO_SUCH_THING")) is None


def test_what_is_relied_upon_of_mlflows_private_names(tmp_path: Path) -> None:
    """Tables without an experiment, connections that are kept by URL, runs and experiments that are gone for good."""
    uri = mlflow.store_url(f"sqlite:///{tmp_path / 'mlflow.db'}")
    mlflow._create_tables(uri)
    mlflow._upgrade_tables(uri)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        assert database.execute("SELECT count(*) FROM experiments").fetchone() == (0,)
        store = mlflow.open_sql(uri, tmp_path)
        assert SqlAlchemyStore._get_or_create_engine(uri) is store.engine
        mlflow._drop_connections(uri)
        assert store.engine.pool.checkedin() == 0
        client = MlflowClient(uri)
        experiment = client.create_experiment("gone")
        run = client.create_run(experiment, tags={"a": "b"}).info.run_id
        client.log_metric(run, "loss", 0.5)
        client.log_param(run, "l2", 0.1)
        client.delete_experiment(experiment)
        mlflow.erase_run(store, run)
        mlflow.erase_experiment(store, experiment)
        for table in ("runs", "tags", "metrics", "latest_metrics", "params"):
            assert database.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
        assert database.execute("SELECT count(*) FROM experiments").fetchone() == (1,)  # the default one
