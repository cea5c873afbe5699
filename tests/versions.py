"""Versions of a tiny network, written by hand: their record has real figures, as a promotion writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regtune.config.trial import DataConfig, ModelConfig, RegularizationConfig, TrialConfig
from regtune.data.datasets import load_arrays, split_of
from regtune.registry.version import DataUsed, Opening, Record, Source
from regtune.study.best import Best, fingerprint

DATA = DataConfig(name="mnist-5k")
TECHNIQUES = RegularizationConfig(dropout=(0.2, 0.1), l2=(1e-4,), batchnorm=("none", "after_activation"))


def write_version(folder: Path, name: str = "digits", seed: int = 0, **record: Any) -> tuple[Record, str]:
    """Write a version of an untrained network of 8 + 6 units; return its record and its manifest's digest."""
    from regtune import build_model
    from regtune.registry.contents import write_folder
    from regtune.registry.deployed import deployable, figures_of, predict_pixels

    arrays = load_arrays(DATA.name)
    split = split_of(arrays, DATA)
    config = TrialConfig(
        model=ModelConfig(hidden=(8, 6)),
        regularization=TECHNIQUES,
        data=DATA.model_copy(update={"digest": arrays.digest}),
        seed=seed,
    )
    network = deployable(build_model(config))
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
        "epochs": 1,
        "kept_epoch": 1,
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
