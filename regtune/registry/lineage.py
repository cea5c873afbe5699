"""The tags of a version: where it comes from and what it is, for who reads MLflow alone. All follow from its record."""

from __future__ import annotations

import hashlib

from regtune.config.trial import TrialConfig
from regtune.registry.version import Record, Source
from regtune.tracking import names


def lineage(source: Source, config: TrialConfig) -> dict[str, str]:
    """The tags that say where a promotion's run, or a version, comes from."""
    found = {
        names.STUDY_NAME: source.study,
        names.NUMBER: None if source.trial is None else str(source.trial),
        names.CONFIG_DIGEST: config.digest,
        names.DATA: config.data.digest,
        names.MIX: config.mix,
        names.SEED: str(config.seed),
    }
    return {name: value for name, value in found.items() if value is not None}


def tags_of(record: Record, manifest_digest: str, description: str) -> dict[str, str]:
    """All tags of a version. description: the one that it is registered with, of which they have the digest."""
    return {
        **lineage(record.source, record.config),
        names.STUDY_TAG: record.source.uid,
        names.MANIFEST_DIGEST: manifest_digest,
        names.TEST_ACCURACY: f"{record.test.accuracy}",
        names.OPENINGS: f"{len(record.openings)}",
        names.NOTE_DIGEST: hashlib.sha256(description.encode()).hexdigest(),
        **({names.FORCED: record.forced} if record.forced is not None else {}),
    }
