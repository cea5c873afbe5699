"""The MLflow store: what its environment may say, what is refused before a sweep, and what MLflow keeps to itself."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.environment_variables import MLFLOW_SQLALCHEMYSTORE_POOL_SIZE
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from regtune.errors import SettingsError
from regtune.settings import Settings
from regtune.storage import mlflow
from regtune.storage.mlflow import bad_variable, check_store


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
