"""Registered versions from an environment without regtune: MLflow loads, serves and lists them as any other model's."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stock import Stock, alive
from stores import until

from regtune.training.runtime import configure

configure()

from versions import DATA, register_version  # noqa: E402

from regtune.data.datasets import load_arrays  # noqa: E402
from regtune.registry.store import Version  # noqa: E402
from regtune.settings import Settings  # noqa: E402

pytestmark = pytest.mark.slow

DOORS = """
import importlib.util, json, sys
assert importlib.util.find_spec("regtune") is None, "regtune can be imported here"
import mlflow, numpy as np
from mlflow import MlflowClient

data = np.load(sys.argv[1])
images, labels = data["images"], data["labels"]
def accuracy(probabilities):
    return float((np.asarray(probabilities).argmax(axis=1) == labels).mean())

version = MlflowClient().get_model_version_by_alias("digits", "champion")
keras_model = mlflow.keras.load_model("models:/digits@champion")
pyfunc = mlflow.pyfunc.load_model("models:/digits@champion")
print(json.dumps({
    "keras": accuracy(keras_model.predict(images, verbose=0)),
    "pyfunc": accuracy(pyfunc.predict(images)),
    "number": keras_model.count_params() and int(version.version),
    "tags": dict(version.tags),
    "aliases": list(version.aliases),
    "description": version.description,
    "run": version.run_id,
    "logged": [model.model_id for model in MlflowClient().search_logged_models([
        MlflowClient().get_run(version.run_id).info.experiment_id])],
    "regtune": sorted(name for name in sys.modules if name.startswith("regtune")),
}))
"""
"""What somebody types who has never heard of regtune."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(REGTUNE_HOME=tmp_path_factory.mktemp("home") / "mlruns")


@pytest.fixture(scope="module")
def version(settings: Settings) -> Version:
    """A champion that has learned something: scaled wrongly, it would recognize fewer digits."""
    return register_version(settings, epochs=3)


def ask(address: str, body: Any) -> tuple[int, Any]:
    request = urllib.request.Request(
        f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_every_door_of_stock_mlflow_has_the_accuracy_that_was_recorded(
    settings: Settings, version: Version, tmp_path: Path
) -> None:
    arrays = load_arrays(DATA.name)
    images = arrays.x_test.reshape(-1, 28, 28)
    np.savez(tmp_path / "test.npz", images=images, labels=arrays.y_test)
    recorded = float(version.tags["regtune.test_accuracy"])
    assert recorded > 0.4
    stock = Stock(tmp_path)
    with stock.serve("models:/digits@champion", settings.mlflow_uri) as address:
        said = json.loads(stock.run(DOORS, settings.mlflow_uri, str(tmp_path / "test.npz")).splitlines()[-1])
        assert {door: said[door] for door in ("keras", "pyfunc")} == {"keras": recorded, "pyfunc": recorded}
        assert (said["number"], said["aliases"], said["regtune"]) == (1, ["champion"], [])
        assert (said["tags"], said["description"]) == (version.tags, version.description)
        assert (said["run"], said["logged"]) == (version.run_id, [version.model_id])

        until(lambda: alive(address), 120, 0.2, "the served model answers")
        status, answer = ask(address, {"inputs": images.tolist()})
        assert status == 200
        served = np.array(answer["predictions"])
        assert float((served.argmax(axis=1) == arrays.y_test).mean()) == recorded
        flat, too_bright = images[:2].reshape(2, 784), images[:2].astype(int) + 200
        for wrong in (flat, too_bright):
            status, answer = ask(address, {"inputs": wrong.tolist()})
            assert (status, "uint8" in answer["message"]) == (400, True), answer
