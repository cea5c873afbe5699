"""The file `best.yaml`: a study's best configuration with its provenance, ready to train again.

The file is a TrialConfig in YAML and one block more, `provenance`, which training does not read: where the
configuration comes from, and the figures that training it again has to reach.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from sqlalchemy import Engine

from regtune.config.mistakes import Keys, explain
from regtune.config.source import Source, parse_mapping, read, text_of
from regtune.config.sweepfile.specification import differences_of
from regtune.config.trial import METRICS, PROVENANCE, Frozen, TrialConfig
from regtune.errors import ConfigError, StorageError, StudyNotFound
from regtune.escaping import printable, shell_word
from regtune.study.board import read_best, read_study, read_trial


class Provenance(Frozen):
    """Where a configuration comes from.

    config: `fingerprint` of the configuration that was recorded; one that was changed since has another, and no
    figures to reach. study, uid: the study's name and identity. trial, trial_uid: the trial's. metric, value: by what
    it was chosen. figures: all METRICS of the kept weights, exactly; epoch: theirs, from 1. epochs: how many were
    trained. versions: of what it was trained with. created: when this was written, ISO 8601 in UTC.
    """

    config: str = Field(pattern=r"^[0-9a-f]{64}$")
    study: str = Field(min_length=1, max_length=512)
    uid: str
    trial: int = Field(ge=0)
    trial_uid: str
    metric: str = Field(pattern=rf"^({'|'.join(METRICS)})$")
    value: float
    val_accuracy: float
    epoch: int = Field(ge=1)
    epochs: int = Field(ge=1)
    figures: dict[str, float]
    versions: dict[str, str] = Field(default_factory=dict)
    created: str


@dataclass(frozen=True)
class Best:
    """A configuration and where it comes from; `provenance` is None for a bare configuration."""

    config: TrialConfig
    provenance: Provenance | None

    @property
    def changed(self) -> bool:
        """Whether the configuration is no longer the one whose figures the provenance has."""
        known = self.config.digest, fingerprint(self.config)  # the first: of a version that wrote names, too
        return self.provenance is not None and self.provenance.config not in known

    def to_dict(self) -> dict[str, Any]:
        values = self.config.to_dict()
        if self.provenance is not None:
            values[PROVENANCE] = self.provenance.model_dump(mode="json")
        return values

    def to_yaml(self) -> str:
        """The text of `best.yaml`. Numbers are written so that they are read back exactly."""
        block = self.provenance and {PROVENANCE: self.provenance.model_dump(mode="json")}
        return self.config.to_yaml() + (text_of(block, flow=False) if block else "")

    def is_in(self, path: Path) -> bool:
        """Whether the file at `path` holds this, whenever it was written."""
        try:
            there = load_best(path)
        except ConfigError:
            return False
        if there.provenance and self.provenance:
            written = there.provenance.model_copy(update={"created": self.provenance.created})
            there = replace(there, provenance=written)
        return there == self

    def write(self, path: Path) -> None:
        """Write `best.yaml` whole or not at all. Raises StorageError."""
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            beside.write_text(self.to_yaml(), encoding="utf-8")
            beside.replace(path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise StorageError(f"{path}: cannot be written ({error.strerror})") from None


def fingerprint(config: TrialConfig) -> str:
    """The digest of a configuration in which known data has its digest for a name: wherever it lies, it is the same."""
    data = config.data
    named = data.model_copy(update={"name": data.digest or data.name})
    return config.model_copy(update={"data": named}).digest


def best_of(engine: Engine, study: str) -> Best:
    """The best complete trial of a study. Raises StudyNotFound without one, StorageError without kept figures."""
    info, row = read_study(engine, study), read_best(engine, study)
    record = row.record
    if record is None or record.kept is None or row.value is None:
        raise StorageError(f"{info.name}: trial {row.number} has no kept figures")
    provenance = Provenance(
        config=fingerprint(record.config),
        study=info.name,
        uid=info.uid,
        trial=row.number,
        trial_uid=record.uid,
        metric=info.metric,
        value=row.value,
        val_accuracy=record.kept.figures["val_accuracy"],
        epoch=record.kept.epoch,
        epochs=record.epochs,
        figures=dict(record.kept.figures),
        versions={name: str(version) for name, version in info.versions.items()},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return Best(record.config, provenance)


def changes(best: Best, engine: Engine) -> list[str]:
    """What was changed since the configuration was recorded, one line a key; empty where its trial is unknown."""
    if best.provenance is None:
        return []
    try:
        record = read_trial(engine, best.provenance.study, best.provenance.trial).record
    except (StudyNotFound, StorageError):
        return []
    if record is None or record.uid != best.provenance.trial_uid:
        return []
    return list(differences_of(record.config.to_dict(), best.config.to_dict()))


def load_best(path: Path) -> Best:
    """Read `best.yaml`, or a bare configuration. Raises ConfigError with one line for each mistake."""
    return _best(read(path, ConfigError), str(path))


def parse_best(text: str, source: str = "best.yaml") -> Best:
    """The same from text; `source`, a path, leads each line of an error."""
    return _best(parse_mapping(text, printable(source), ConfigError), source)


def _best(source: Source, path: str) -> Best:
    values, label = source.values, source.label
    if "parameters" in values:
        raise ConfigError([f"{label}: this is a sweep file; try: regtune sweep {shell_word(path)}"])
    config = TrialConfig.from_dict({key: values[key] for key in values if key != PROVENANCE}, source)
    if values.get(PROVENANCE) is None:
        return Best(config, None)
    try:
        return Best(config, Provenance.model_validate(values[PROVENANCE]))
    except ValidationError as error:
        raise ConfigError(source.lines(explain(error, Keys(Provenance), (PROVENANCE,)))) from None
