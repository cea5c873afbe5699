"""The facts of a study that MLflow shows, besides its trials.

`StudyFacts` has plain values, so that they cross processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from regtune.config.source import text_of
from regtune.study.progress import flat
from regtune.study.record import (
    BUDGET,
    CREATED,
    DATA,
    DESCRIPTION,
    SPEC,
    STUDY_UID,
    VERSIONS,
    TrialRecord,
    Value,
    uid_of,
)

if TYPE_CHECKING:
    from regtune.search import Space

_NO_EARLY_STOPPING = {"early_stopping": "off"}
ParentState = Literal["RUNNING", "FINISHED", "KILLED", "FAILED"]
"""How a study's own run stands: being run, at its end, interrupted, or ended by too many failures."""


@dataclass(frozen=True)
class DataFacts:
    """The data set of a study.

    digest: SHA-256 of the whole, its test part included. train, validation: images in them.
    """

    name: str
    source: str
    digest: str
    train: int
    validation: int
    features: int
    classes: int
    split_seed: int


@dataclass(frozen=True)
class RetrainedFrom:
    """What a retraining trains again: a trial of a study, or a configuration that comes from none that is known.

    uid: the study's.
    """

    study: str | None = None
    trial: int | None = None
    uid: str | None = None


@dataclass(frozen=True)
class StudyFacts:
    """A study as MLflow shows it.

    sweep: the sweep's name, which is that of the MLflow experiment. parameters: those searched. created_ms: Unix
    milliseconds. settings: the params of the study's own run. sweep_file: in the canonical form, YAML. retrained: for
    a retraining, which goes with the study that it is of; where there is none, it is shown like a study of one trial.
    """

    uid: str
    name: str
    sweep: str
    parameters: tuple[str, ...]
    data: DataFacts
    metric: str
    goal: Literal["minimize", "maximize"]
    method: str
    versions: Mapping[str, str] = field(default_factory=dict)
    created_ms: int | None = None
    description: str = ""
    settings: Mapping[str, Value] = field(default_factory=dict)
    sweep_file: str = ""
    retrained: RetrainedFrom | None = None

    @classmethod
    def of(cls, name: str, attributes: Mapping[str, Any]) -> StudyFacts:
        """The facts in a study's attributes. Raises KeyError when the study has not been set up."""
        from regtune.config.sweepfile import SweepSpec
        from regtune.search import Space  # it imports Optuna, which the writer's process does without

        spec, data = attributes[SPEC], attributes[DATA]
        space = Space(SweepSpec.from_dict({**spec, "run_cap": 1}))
        description = str(attributes.get(DESCRIPTION, ""))
        whole = {**spec, **attributes.get(BUDGET, {}), "description": description}
        file = {key: whole[key] for key in SweepSpec.model_fields if key in whole}
        return cls(
            uid=uid_of(attributes[STUDY_UID]),
            name=name,
            sweep=str(spec.get("name", name)),
            parameters=space.names,
            data=DataFacts(**{key: data[key] for key in DataFacts.__dataclass_fields__}),
            metric=str(spec["metric"]["name"]),
            goal=spec["metric"]["goal"],
            method=str(spec["method"]),
            versions=dict(attributes.get(VERSIONS, {})),
            created_ms=attributes.get(CREATED),
            settings=_settings(space) | {"data.digest": data["digest"]},
            description=description,
            sweep_file=text_of(file, flow=None),
        )


def _settings(space: Space) -> dict[str, Value]:
    """What a sweep was begun with, under the names of its trials' params: of what is searched, the range."""
    from regtune.config.sweepfile.parameters import TARGETS
    from regtune.search.columns import shown

    spec = space.spec
    fixed = [
        name
        for name, target in TARGETS.items()
        if name not in spec.searched and (target.block != "early_stopping" or spec.early_stopping)
    ]
    return {
        "method": spec.method,
        "metric": spec.metric.name,
        "early_terminate": spec.early_terminate.type if spec.early_terminate else "off",
        **({} if spec.early_stopping else _NO_EARLY_STOPPING),
        **{name: shown(spec.fixed(name)) for name in fixed},
        **{row.name: row.range for row in space.rows},
        "data.name": spec.dataset,
        "data.validation": spec.split.validation,
        "data.split_seed": spec.split.seed,
        "seed": spec.seed,
    }


def params(facts: StudyFacts, record: TrialRecord) -> dict[str, Value]:
    """The params of a trial's run: its whole configuration, flat.

    Every searched parameter is among them, off being 0; a control's are read from its configuration. The data's keys
    are `data.name` and so on; what differs between the layers is `dropout.1`, `dropout.2`.
    """
    config, every = record.config, flat(record.config)
    repeated = {name for name in every if "." in name and name.partition(".")[0] in every}
    shown = {name: every[name] for name in every if name not in repeated or name in facts.parameters}
    shown |= {} if config.early_stopping else _NO_EARLY_STOPPING
    shown |= {f"data.{key}": value for key, value in config.data if value is not None}
    return shown | {"seed": config.seed, **record.parameters}
