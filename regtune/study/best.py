"""The file `best.yaml`: a study's best configuration with its provenance, ready to train again.

The file is a TrialConfig in YAML and one block more, `provenance`, which training does not read: where the
configuration comes from, and the figures that training it again has to reach.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from sqlalchemy import Engine

from regtune.config.mistakes import Keys, explain
from regtune.config.source import read, text_of
from regtune.config.trial import METRICS, PROVENANCE, Frozen, TrialConfig
from regtune.errors import ConfigError, InputError, StorageError
from regtune.escaping import printable, shell_word
from regtune.storage.output import beside
from regtune.study.board import read_best, read_study, read_top, read_trial
from regtune.study.progress import Row, StudyInfo


class Provenance(Frozen):
    """Where a configuration comes from.

    config: `fingerprint` of the configuration that was recorded; one that was changed since has another, and no
    figures to reach. study, uid: the study's name and identity. trial, trial_uid: the trial's. metric, value: by what
    it was chosen. figures: all METRICS of the kept weights, exactly; epoch: theirs, from 1. epochs: how many were
    trained. versions: of what it was trained with. created: when this was written, ISO 8601 in UTC. chosen: by what,
    the decision, the best value of single runs, or a person who named a control or a trial. replicates, mean,
    half_width: of a decision, how often it was trained again, and the metric's mean over that with its interval.
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
    chosen: Literal["decision", "search", "control", "person"] = "search"
    replicates: int | None = None
    mean: float | None = None
    half_width: float | None = None


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
        block = self.provenance and {PROVENANCE: self.provenance.model_dump(mode="json", exclude_none=True)}
        return self.config.to_dict() | (block or {})

    def to_yaml(self) -> str:
        """The text of `best.yaml`. Numbers are written so that they are read back exactly."""
        block = {key: value for key, value in self.to_dict().items() if key == PROVENANCE}
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
        """Write `best.yaml` whole or not at all. Raises InputError for a folder, StorageError."""
        with beside(path) as made:
            made.write_text(self.to_yaml(), encoding="utf-8")


def fingerprint(config: TrialConfig) -> str:
    """The digest of a configuration in which known data has its digest for a name: wherever it lies, it is the same."""
    data = config.data
    named = data.model_copy(update={"name": data.digest or data.name})
    return config.model_copy(update={"data": named}).digest


def best_of(engine: Engine, study: str, control: str | None = None, trial: int | None = None) -> Best:
    """The decision's choice, or without a decision the best complete trial of the search.

    control, trial: this one instead, which a person names. A chosen control that the search did not train has no
    provenance. Raises InputError for an unknown control and a trial that is not complete, StudyNotFound without a
    complete trial, StorageError without kept figures.
    """
    if trial is not None:
        return _named(engine, study, trial)
    info = read_study(engine, study)
    decision = info.decision if control is None else None
    judged = decision and decision.judged(decision.chosen)
    chosen = judged.candidate.trial if judged else None
    if judged and chosen is None:
        return Best(judged.candidate.config, None)
    if control is not None:
        row = _control(engine, study, control)
    else:
        row = read_best(engine, study) if chosen is None else read_trial(engine, study, chosen)
    facts: dict[str, Any] = {"chosen": "search" if control is None else "control"}
    if judged:
        facts = {"chosen": "decision", "replicates": judged.replicates}
        facts |= judged.estimate.model_dump() if judged.estimate else {}
    return recorded(info, row, **facts)


def recorded(info: StudyInfo, row: Row, **facts: Any) -> Best:
    """The configuration of a trial with its figures; facts: how it was chosen. Raises StorageError without figures."""
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
        **facts,
    )
    return Best(record.config, provenance)


def _named(engine: Engine, study: str, trial: int) -> Best:
    """A complete trial. Raises InputError for another one, StudyNotFound."""
    info, row = read_study(engine, study), read_trial(engine, study, trial)
    if row.state != "COMPLETE":
        board = f"regtune board {shell_word(study)}"
        raise InputError(
            f"--trial {trial}: expected a complete trial, it is {row.state.lower()}; try: {board}"
        )
    return recorded(info, row, chosen="person")


def _control(engine: Engine, study: str, name: str) -> Row:
    """The complete trial of a control. Raises InputError with the names of those that there are."""
    rows = {row.control: row for row in read_top(engine, study, 0).rows if row.control and row.rank}
    if name not in rows:
        known = ", ".join(sorted(filter(None, rows))) or "none, the study has no complete control"
        raise InputError(f"--control {printable(name)}: expected one of {known}")
    return rows[name]


def load_best(path: Path) -> Best:
    """Read `best.yaml`, or a bare configuration. Raises ConfigError with one line for each mistake."""
    source = read(path, ConfigError)
    values = dict(source.values)
    if "parameters" in values:
        sweep = f"regtune sweep {shell_word(str(path))}"
        raise ConfigError([f"{source.label}: this is a sweep file; try: {sweep}"])
    provenance = values.pop(PROVENANCE, None)
    config = TrialConfig.from_dict(values, source)
    try:
        return Best(config, None if provenance is None else Provenance.model_validate(provenance))
    except ValidationError as error:
        raise ConfigError(source.lines(explain(error, Keys(Provenance), (PROVENANCE,)))) from None
