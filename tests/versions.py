"""Versions of a tiny network, written by hand: their record has real figures, as a promotion writes them."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from regtune.config.trial import DataConfig, ModelConfig, RegularizationConfig, TrainingConfig, TrialConfig
from regtune.data.datasets import load_arrays, split_of
from regtune.registry import journal
from regtune.registry.lineage import tags_of
from regtune.registry.store import Version, open_registry
from regtune.registry.version import CARD, MANIFEST, DataUsed, Opening, Record, Source
from regtune.settings import Settings
from regtune.storage.artifacts import local_path
from regtune.study.best import Best, fingerprint
from regtune.tracking import names

DATA = DataConfig(name="mnist-5k")
TECHNIQUES = RegularizationConfig(dropout=(0.2, 0.1), l2=(1e-4,), batchnorm=("none", "after_activation"))


def write_version(
    folder: Path, name: str = "digits", seed: int = 0, epochs: int = 0, **record: Any
) -> tuple[Record, str]:
    """Write a version of a network of 8 + 6 units, untrained without `epochs`; return its record and its digest."""
    from regtune import build_model, train
    from regtune.registry.contents import write_folder
    from regtune.registry.deployed import figures_of, predict_pixels
    from regtune.training.deployable import deployable

    arrays = load_arrays(DATA.name)
    split = split_of(arrays, DATA)
    config = TrialConfig(
        model=ModelConfig(hidden=(8, 6)),
        regularization=TECHNIQUES,
        data=DATA.model_copy(update={"digest": arrays.digest}),
        training=TrainingConfig(max_epochs=max(epochs, 1)),
        seed=seed,
    )
    network = deployable(train(config).model if epochs else build_model(config))
    test = predict_pixels(network, arrays.x_test)
    validation = predict_pixels(network, arrays.x_train[split.validation])
    facts: Mapping[str, Any] = {
        "name": name,
        "source": Source(study="sweep", uid="0", chosen="search", metric="val_cross_entropy"),
        "config": config,
        "fingerprint": fingerprint(config),
        "data": DataUsed(
            name=DATA.name,
            digest=arrays.digest,
            split_seed=DATA.split_seed,
            train=len(split.train),
            validation=len(split.validation),
            test=len(arrays.x_test),
            features=784,
            classes=10,
        ),
        "refit": False,
        "epochs": epochs,
        "kept_epoch": epochs,
        "techniques": 3,
        "entries": 784 * 8 + 8 * 6,
        "validation": figures_of(validation, arrays.y_train[split.validation]),
        "test": figures_of(test, arrays.y_test),
        "accuracy_low": 0.0,
        "accuracy_high": 1.0,
        "champion": None,
        "gates": (),
        "openings": (
            Opening(
                data=arrays.digest, at="2026-01-01T00:00:00+00:00", study="sweep", model=name, config="0"
            ),
        ),
        "bytes": 0,
        "seconds_a_digit": 0.001,
        "created": "2026-01-01T00:00:00+00:00",
        **record,
    }
    made = Record(**facts)
    card = f"# {name}\n"
    return made, write_folder(folder, network, made, Best(config, None).to_yaml(), test, card)


def register_version(
    settings: Settings, name: str = "digits", seed: int = 0, epochs: int = 0, experiment: str | None = None
) -> Version:
    """Register a version of such a network under a run of its own, and make it champion; as a promotion does it.

    experiment: id of the one that gets the run; by default a new one.
    """
    registry = open_registry(settings)
    client = registry.client
    if experiment is None:
        experiment = str(client.create_experiment("sweep", (settings.artifacts / "runs").as_uri()))
    tags = {names.KIND: names.PROMOTION, names.STUDY_TAG: f"{names.PROMOTED}{uuid.uuid4().hex}"}
    run = client.create_run(experiment, tags=tags, run_name=f"promotion of {name}")
    registry.create(name, experiment)
    with TemporaryDirectory() as home:
        files = Path(home, "files")
        record, digest = write_version(files, name, seed, epochs)
        description = (files / CARD).read_text()
        version = registry.register(
            name,
            files,
            experiment_id=experiment,
            run_id=run.info.run_id,
            tags=tags_of(record, digest, description),
            description=description,
        )
    state = journal.settle(registry, name)
    journal.move(registry, name, names.CHAMPION, version.number, state, why="promoted")
    client.set_terminated(run.info.run_id)
    return registry.find(name)


def replace_file(
    settings: Settings, version: Version, name: str, change: Callable[[bytes], bytes], *, signed: bool = True
) -> None:
    """Change a file of a registered version where MLflow keeps it; signed: its digests in manifest and tag, too."""
    client = open_registry(settings).client
    folder = local_path(client.get_logged_model(version.model_id).artifact_location)
    assert folder is not None
    content = change((folder / name).read_bytes())
    (folder / name).write_bytes(content)
    if signed:
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest[name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        text = json.dumps(manifest).encode()
        (folder / MANIFEST).write_bytes(text)
        digest = hashlib.sha256(text).hexdigest()
        client.set_model_version_tag(version.name, str(version.number), names.MANIFEST_DIGEST, digest)
