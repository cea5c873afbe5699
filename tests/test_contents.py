"""The files of a registered version: whole, checked before anything is loaded, and loaded as weights alone."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from regtune.training.runtime import configure

configure()

import keras  # noqa: E402
from versions import DATA, write_version  # noqa: E402

from regtune import build_model  # noqa: E402
from regtune.data.datasets import load_arrays  # noqa: E402
from regtune.errors import VersionDamaged  # noqa: E402
from regtune.registry.contents import FILES, MANIFEST, check_folder, read_predictions  # noqa: E402
from regtune.registry.deployed import figures_of, load_network, predict_pixels  # noqa: E402
from regtune.registry.version import MODEL, PREDICTIONS, RECORD, Record  # noqa: E402
from regtune.training.deployable import deployable  # noqa: E402


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record, str]:
    folder = tmp_path_factory.mktemp("version") / "files"
    return folder, *write_version(folder)


@pytest.fixture
def copied(written: tuple[Path, Record, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(written[0], tmp_path / "copy"))


def test_every_door_gives_the_same_probabilities(written: tuple[Path, Record, str]) -> None:
    folder, record, digest = written
    assert check_folder(folder, digest) == record
    images = load_arrays(DATA.name).x_test
    loaded = predict_pixels(load_network(folder, record), images)
    assert np.array_equal(loaded, read_predictions(folder, record))
    stock = keras.models.load_model(folder / MODEL)
    assert np.array_equal(predict_pixels(stock, images), loaded)
    assert figures_of(loaded, load_arrays(DATA.name).y_test) == record.test

    import mlflow.pyfunc

    door = mlflow.pyfunc.load_model(str(folder))
    pixels = images[:50].reshape(-1, 28, 28)
    assert np.allclose(door.predict(pixels), loaded[:50], atol=1e-6)
    for wrong in (pixels / 255, pixels.astype(int), images[:50]):
        with pytest.raises(mlflow.exceptions.MlflowException, match="Failed to enforce schema"):
            door.predict(wrong)


def test_it_differs_from_the_trained_network_by_rounding_alone(written: tuple[Path, Record, str]) -> None:
    network = build_model(written[1].config)
    images = load_arrays(DATA.name).x_test[:200]
    plain = network(images.astype(np.float32) / 255, training=False).numpy()
    assert np.allclose(predict_pixels(deployable(network), images), plain, atol=1e-6)


@pytest.mark.parametrize("name", sorted(FILES | {MANIFEST}))
def test_a_flipped_bit_is_found_and_named(written: tuple[Path, Record, str], copied: Path, name: str) -> None:
    content = bytearray((copied / name).read_bytes())
    for place in (0, len(content) // 2, len(content) - 1):
        changed = bytearray(content)
        changed[place] ^= 1
        (copied / name).write_bytes(changed)
        with pytest.raises(VersionDamaged) as raised:
            check_folder(copied, written[2])
        (problem,) = raised.value.problems
        assert problem.startswith(f"{name}: "), problem


def test_what_is_missing_or_does_not_belong_there_is_named(
    written: tuple[Path, Record, str], copied: Path
) -> None:
    (copied / MODEL).unlink()
    (copied / "code.pkl").write_bytes(b"")
    (copied / "registered_model_meta").touch()  # MLflow adds it when it downloads
    with pytest.raises(VersionDamaged) as raised:
        check_folder(copied, written[2])
    assert raised.value.problems == ("code.pkl: does not belong to a version", f"{MODEL}: is missing")


def replaced(folder: Path, name: str, content: bytes) -> str:
    """Replace a file in the folder and in its manifest; return the manifest's digest."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest[name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    text = json.dumps(manifest).encode()
    (folder / MANIFEST).write_bytes(text)
    return hashlib.sha256(text).hexdigest()


def with_member(content: bytes, name: str, change: Callable[[bytes], bytes]) -> bytes:
    """A Keras archive with one member changed, or added."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        for member in {*old.namelist(), name}:
            there = old.read(member) if member in old.namelist() else b""
            new.writestr(member, change(there) if member == name else there)
    return made.getvalue()


class Harm:
    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return (pytest.fail, ("a pickle was loaded",))


def lambda_layer(config: bytes) -> bytes:
    whole = json.loads(config)
    whole["config"]["layers"][3] = {
        "class_name": "Lambda",
        "module": "keras.layers",
        "config": {"function": "x"},
    }
    return json.dumps(whole).encode()


def foreign_class(config: bytes) -> bytes:
    whole = json.loads(config)
    whole["config"]["layers"][3] |= {"class_name": "system", "module": "os", "registered_name": "os>system"}
    return json.dumps(whole).encode()


def disguised_class(config: bytes) -> bytes:
    whole = json.loads(config)
    whole["config"]["layers"][3] |= {
        "class_name": "system",
        "module": "os",
        "registered_name": "keras.Sequential",
    }
    return json.dumps(whole).encode()


POISON: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a Lambda layer": (
        lambda archive: with_member(archive, "config.json", lambda_layer),
        "keras.layers.Lambda",
    ),
    "a foreign class": (lambda archive: with_member(archive, "config.json", foreign_class), "os>system"),
    "a foreign class under a known name": (
        lambda archive: with_member(archive, "config.json", disguised_class),
        "os.system",
    ),
    "another member": (lambda archive: with_member(archive, "assets/run.py", bytes), "assets/run.py"),
    "a pickle": (lambda archive: pickle.dumps(Harm()), "expected a Keras archive, found a pickle"),
    "no archive": (lambda archive: archive[:100], "expected a Keras archive, found a damaged one"),
}


@pytest.mark.parametrize("what", POISON)
def test_poison_is_refused_by_name_although_every_digest_is_right(
    written: tuple[Path, Record, str], copied: Path, what: str
) -> None:
    change, named = POISON[what]
    digest = replaced(copied, MODEL, change((copied / MODEL).read_bytes()))
    with pytest.raises(VersionDamaged, match=f"{MODEL}: .*{named}"):
        check_folder(copied, digest)
    with pytest.raises(VersionDamaged, match=named):  # also where nobody has checked the folder before
        load_network(copied, written[1])


@pytest.mark.parametrize(
    ("key", "value"), [("digest", '"\nimport os  # '), ("features", 10**9), ("classes", 10**9), ("test", 0)]
)
def test_a_record_with_a_text_for_a_digest_or_a_network_without_bounds_is_none(
    copied: Path, key: str, value: object
) -> None:
    record = json.loads((copied / RECORD).read_text())
    record["data"][key] = value
    digest = replaced(copied, RECORD, json.dumps(record).encode())
    with pytest.raises(VersionDamaged, match=f"{RECORD}: not a record of this regtune"):
        check_folder(copied, digest)


def test_predictions_that_unpack_to_more_than_their_file_are_not_read(
    written: tuple[Path, Record, str], copied: Path
) -> None:
    np.savez_compressed(copied / PREDICTIONS, probabilities=read_predictions(*written[:2]))
    with pytest.raises(VersionDamaged, match=f"{PREDICTIONS}: cannot be read"):
        read_predictions(copied, written[1])


@pytest.mark.parametrize(
    ("held", "changed"),
    [
        ("data: data", "data: ../elsewhere"),
        ("save_exported_model: false", "save_exported_model: true"),
        ("loader_module: mlflow.keras", "loader_module: os"),
        ("loader_module: mlflow.keras", "loader_module: mlflow.keras\n    data: ../elsewhere"),
        ("loader_module: mlflow.keras", "loader_module: mlflow.keras\n    code: ../elsewhere"),
    ],
)
def test_mlflow_is_led_to_the_checked_network_alone(copied: Path, held: str, changed: str) -> None:
    text = (copied / "MLmodel").read_text()
    assert held in text
    digest = replaced(copied, "MLmodel", text.replace(held, changed).encode())
    with pytest.raises(VersionDamaged, match="MLmodel: expected the flavor keras"):
        check_folder(copied, digest)


@pytest.mark.parametrize(
    ("name", "held", "changed"),
    [
        ("requirements.txt", "numpy==", "harm\nnumpy=="),
        ("requirements.txt", "numpy==", "--index-url=https://elsewhere\nnumpy=="),
        ("requirements.txt", "numpy==", "numpy @ https://elsewhere/numpy.whl\nnumpy=="),
        ("conda.yaml", "- numpy==", "- harm\n  - numpy=="),
        ("python_env.yaml", "- -r requirements.txt", "- harm"),
    ],
)
def test_an_environment_installs_what_a_version_needs_alone(
    copied: Path, name: str, held: str, changed: str
) -> None:
    text = (copied / name).read_text()
    assert held in text
    digest = replaced(copied, name, text.replace(held, changed).encode())
    with pytest.raises(VersionDamaged, match=f"{name}: found what no version needs: "):
        check_folder(copied, digest)
