"""`StudyFacts`: what MLflow is told about a study besides its trials. Plain values, so that they cross
processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from regtune.leaderboard import parameter_of
from regtune.record import CREATED, DATA, DESCRIPTION, SPEC, STUDY_UID, VERSIONS, TrialRecord, Value, uid_of

ParentState = Literal["RUNNING", "FINISHED", "KILLED", "FAILED"]
"""How a study's own run stands: being run, at its end, interrupted, or ended by too many failures."""


@dataclass(frozen=True)
class DataFacts:
    """The data set of a study. digest: SHA-256 of the whole, its test part included. train, validation:
    images in them.
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
class Origin:
    """What a retraining trains again: a trial of a study, or a configuration that comes from none that is known."""

    study: str | None = None
    trial: int | None = None


@dataclass(frozen=True)
class StudyFacts:
    """A study as MLflow shows it.

    uid: the study's random identity. name: unique in its database. sweep: the sweep's name, which is that
    of the MLflow experiment. parameters: the searched parameters, each a param of every run. metric, goal:
    what is optimized. versions: of Python and the libraries. created_ms: Unix milliseconds, None when
    unknown. retrained: for a retraining, which is shown like a study of one trial.
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
    retrained: Origin | None = None

    @classmethod
    def of(cls, name: str, attributes: Mapping[str, Any]) -> StudyFacts:
        """The facts in a study's attributes. Raises KeyError when the study has not been set up."""
        from regtune.space import Space  # it imports Optuna, which the writer's process does without
        from regtune.spec import SweepSpec

        spec = attributes[SPEC]
        return cls(
            uid=uid_of(attributes[STUDY_UID]),
            name=name,
            sweep=str(spec.get("name", name)),
            parameters=Space(SweepSpec.from_dict({**spec, "run_cap": 1})).names,
            data=DataFacts(**{key: attributes[DATA][key] for key in DataFacts.__dataclass_fields__}),
            metric=str(spec["metric"]["name"]),
            goal=spec["metric"]["goal"],
            method=str(spec["method"]),
            versions=dict(attributes.get(VERSIONS, {})),
            created_ms=attributes.get(CREATED),
            description=str(attributes.get(DESCRIPTION, "")),
        )


def params(facts: StudyFacts, record: TrialRecord) -> dict[str, Value]:
    """The params of a trial's run: every searched parameter, off being 0; a control's are read from its
    configuration.
    """
    shown = dict(record.parameters)
    for name in facts.parameters:
        if name not in shown and (value := parameter_of(record.config, name)) is not None:
            shown[name] = value
    return shown
