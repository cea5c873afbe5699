"""What production loads in Python: a registered model's network, a study's best configuration."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from regtune.config.trial import TrialConfig
from regtune.evidence.handle import open_study
from regtune.registry.pull import fetched
from regtune.settings import Settings, load_settings

if TYPE_CHECKING:
    import keras


def load_champion(name: str, settings: Settings | None = None) -> keras.Model:
    """Load the network of a registered model after every check of `regtune pull`.

    It is built from the version's configuration, and takes nothing but weights from its files. While MLflow is away it
    comes from this machine's cache, with a warning.

    Args:
        name: Name of the registered model; with ``@alias`` or ``@v3`` that version in place of the champion.
        settings: Where MLflow is; by default read from the environment.

    Returns:
        A network from images `(n, 28, 28) uint8` to probabilities `(n, classes) float32`.

    Raises:
        ModelNotFound: There is no such model, version or alias.
        VersionDamaged: A file is not as it was registered, or holds something that regtune does not load.
        TrackingError: MLflow cannot be used, and the version is not in the cache.
        StorageError: The disk is full.

    Example:
        >>> model = load_champion("quickstart")
        >>> model(images[:2]).numpy().argmax(axis=1)
    """
    with fetched(settings or load_settings(), name, _warn) as (folder, record):
        from regtune.registry.deployed import load_network

        return load_network(folder, record)


def load_best(study: str, settings: Settings | None = None) -> TrialConfig:
    """Load the best configuration of a study.

    Args:
        study: Name of the study.
        settings: Where its database is; by default read from the environment.

    Returns:
        The configuration that the decision has chosen, or without a decision the best one of the search.

    Raises:
        StudyNotFound: There is no such study, or no trial of it is complete.
        StorageError: The database cannot be opened or read.

    Example:
        >>> load_best("quickstart").regularization.dropout
        (0.2, 0.2)
    """
    return open_study(study, settings).best


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=6)  # of who called load_champion
