"""The artifacts of a version: a folder that stock MLflow loads, with regtune's evidence and a manifest of all files."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from regtune.config.source import read
from regtune.config.trial import Frozen
from regtune.errors import ConfigError, RegtuneError, VersionDamaged
from regtune.escaping import printable
from regtune.registry.version import CARD, CONFIG, MANIFEST, MODEL, PREDICTIONS, RECORD, Record
from regtune.storage.mlflow import settle_environment
from regtune.study.best import load_best
from regtune.tracking.names import MANIFEST_DIGEST
from regtune.training.archive import check_archive

MLMODEL, KERAS_MODULE = "MLmodel", "data/keras_module.txt"
ENVIRONMENTS = ("conda.yaml", "python_env.yaml", "requirements.txt")
FILES = frozenset(
    {MLMODEL, KERAS_MODULE, MODEL, CONFIG, RECORD, PREDICTIONS, CARD}
    | {*ENVIRONMENTS}
    | {"input_example.json", "serving_input_example.json"}
)
"""All files of a version but the manifest itself."""
FLAVORS = {
    "keras": {"data": "data", "save_exported_model": False},
    "python_function": {
        "loader_module": "mlflow.keras",
        "env": {"conda": "conda.yaml", "virtualenv": "python_env.yaml"},
    },
}
"""What leads MLflow to the network: its file, the module that loads it, and what that needs."""
DESCRIPTIVE = ("keras_backend", "keras_version", "python_version")
"""What a flavor says beside that."""
_NEEDED = re.compile(
    r"-r requirements\.txt|conda-forge|mlflow-env|[\d.]+"
    r"|(python|pip|setuptools|wheel|mlflow|keras|numpy|tensorflow|tensorflow-cpu)([=<>]=?[\w.]+)?(;[^;@/]*)?"
)
"""What an environment for a version may name: no other package, address or option of pip."""
OF_DOWNLOADS = "registered_model_meta"
"""What MLflow adds to a folder when it downloads it."""


class Entry(Frozen):
    """A file in a manifest."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


_Manifest = TypeAdapter(dict[str, Entry])


def write_folder(
    folder: Path,
    network: Any,
    record: Record,
    config_yaml: str,
    predictions: NDArray[np.float32],
    card: str,
) -> str:
    """Write all artifacts of a version into `folder`, which is made; return the digest of its manifest.

    network: of `deployable`. predictions: its probabilities for the test part, `(n, classes)`. config_yaml: as
    `best.yaml` has it. Raises OSError.
    """
    settle_environment()
    import mlflow.keras
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    example = np.zeros((1, *network.input_shape[1:]), np.uint8)
    example[0, 4:24, 13:15] = 255  # a one
    pixels = TensorSpec(np.dtype(np.uint8), (-1, *example.shape[1:]))
    probabilities = TensorSpec(np.dtype(np.float32), (-1, network.output_shape[-1]))
    folder.mkdir(parents=True)
    mlflow.keras.save_model(
        network,
        str(folder),
        signature=ModelSignature(Schema([pixels]), Schema([probabilities])),
        input_example=example,
        pip_requirements=_requirements(),
    )
    (folder / CONFIG).parent.mkdir()
    (folder / CONFIG).write_text(config_yaml, encoding="utf-8")
    (folder / RECORD).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (folder / CARD).write_text(card, encoding="utf-8")
    np.savez(folder / PREDICTIONS, probabilities=predictions)
    manifest = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name in sorted(FILES)
        for content in [(folder / name).read_bytes()]
    }
    text = (json.dumps(manifest, indent=2) + "\n").encode()
    (folder / MANIFEST).write_bytes(text)
    return hashlib.sha256(text).hexdigest()


def _requirements() -> list[str]:
    """Of what a version needs where regtune is not: Keras, NumPy, and TensorFlow as each platform has it."""
    import tensorflow

    small = "sys_platform == 'linux' and platform_machine == 'x86_64'"
    others = "sys_platform != 'linux' or platform_machine != 'x86_64'"
    return [
        *(f"{name}=={version(name)}" for name in ("keras", "numpy")),
        f"tensorflow-cpu=={tensorflow.__version__}; {small}",
        f"tensorflow=={tensorflow.__version__}; {others}",
    ]


def check_folder(folder: Path, manifest_digest: str) -> Record:
    """Check every file of a version: its digest, and that loading it executes nothing; return its record.

    Raises VersionDamaged, which names each file that is not as it was registered.
    """
    problems = list(_changed(folder, manifest_digest)) or list(_foreign(folder))
    if problems:
        raise VersionDamaged(problems)
    try:
        record = Record.model_validate_json((folder / RECORD).read_bytes())
    except ValidationError:
        raise VersionDamaged([f"{RECORD}: not a record of this regtune"]) from None
    try:
        config = load_best(folder / CONFIG).config
    except ConfigError as error:
        raise VersionDamaged([f"{CONFIG}: {error.problems[0]}"]) from None
    if config != record.config:
        raise VersionDamaged([f"{CONFIG}: another configuration than {RECORD} has"])
    return record


def read_predictions(folder: Path, record: Record) -> NDArray[np.float32]:
    """Read the probabilities for the test part, `(n, classes)`. Raises VersionDamaged."""
    expected = (record.data.test, record.data.classes)
    try:
        with zipfile.ZipFile(folder / PREDICTIONS) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("a few bytes may unpack to more than there is memory")
        with np.load(folder / PREDICTIONS, allow_pickle=False) as arrays:
            probabilities: NDArray[np.float32] = arrays["probabilities"]
    except Exception as error:  # NumPy and zipfile raise whatever they meet
        raise VersionDamaged([f"{PREDICTIONS}: cannot be read ({type(error).__name__})"]) from None
    if probabilities.shape != expected or probabilities.dtype != np.float32:
        raise VersionDamaged([f"{PREDICTIONS}: expected float32 {expected}, found {probabilities.shape}"])
    return probabilities


def _changed(folder: Path, manifest_digest: str) -> Iterator[str]:
    """What differs from the manifest, and the manifest from the version's tag."""
    try:
        content = (folder / MANIFEST).read_bytes()
    except OSError as error:
        yield f"{MANIFEST}: cannot be read ({error.strerror})"
        return
    if (digest := hashlib.sha256(content).hexdigest()) != manifest_digest:
        yield (
            f"{MANIFEST}: has SHA-256 {digest[:12]}, the version's tag {MANIFEST_DIGEST} has "
            f"{printable(manifest_digest):.12}: one of them was changed"
        )
        return
    try:
        manifest: Mapping[str, Entry] = _Manifest.validate_json(content)
    except ValidationError:
        yield f"{MANIFEST}: not a manifest of this regtune"
        return
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    for name in sorted((there | {*manifest} | FILES) - {MANIFEST, OF_DOWNLOADS}):
        if name not in manifest or name not in FILES:
            yield f"{printable(name)}: does not belong to a version"
        elif name not in there:
            yield f"{name}: is missing"
        else:
            found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            if found != manifest[name].sha256:
                yield f"{name}: was changed (SHA-256 {found[:12]}, expected {manifest[name].sha256[:12]})"


def _foreign(folder: Path) -> Iterator[str]:
    """What would execute something, or something else, where MLflow or Keras loads it."""
    try:
        check_archive((folder / MODEL).read_bytes())
    except ValueError as error:
        yield f"{MODEL}: {error}"
    if (folder / KERAS_MODULE).read_bytes() != b"keras":
        yield f"{KERAS_MODULE}: expected keras"
    try:
        flavors = read(folder / MLMODEL, ConfigError).values["flavors"]
        found = {
            name: {key: value for key, value in flavor.items() if key not in DESCRIPTIVE}
            for name, flavor in flavors.items()
        }
    except (RegtuneError, LookupError, AttributeError, TypeError):
        yield f"{MLMODEL}: cannot be read"
        return
    if found != FLAVORS:
        shown = printable(json.dumps(found, default=str))
        yield f"{MLMODEL}: expected the flavor keras of {MODEL}, loaded by mlflow.keras; found {shown:.300}"
    for name in ENVIRONMENTS:
        try:
            path = folder / name
            named = list(_texts(read(path, ConfigError).values if path.suffix == ".yaml" else _lines(path)))
        except (RegtuneError, UnicodeDecodeError):
            yield f"{name}: cannot be read"
            continue
        if others := [text for text in named if not _NEEDED.fullmatch(text)]:
            yield f"{name}: found what no version needs: {printable(', '.join(others)):.200}"


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _texts(value: Any) -> Iterator[str]:
    """The texts in plain values, keys left out."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _texts(one)
    else:
        yield str(value)
