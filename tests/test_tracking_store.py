"""The MLflow store: what its environment may say, and what is refused before a sweep begins."""

from __future__ import annotations

import pytest
from mlflow.environment_variables import MLFLOW_SQLALCHEMYSTORE_POOL_SIZE

from regtune.errors import SettingsError
from regtune.settings import Settings
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
    assert (
        str(bad_variable(caught.value))
        == "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE: MLflow cannot read 'abc'; unset it"
    )
    assert bad_variable(ValueError("MLFLOW_NO_SUCH_THING")) is None
