"""Studies as MLflow is told of them: their facts, their trials and their replicates, read by SQL in batches.

What has ended stays as it is, so another look reads only new trials and those that had not ended. Never more than a
batch of records is held.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

from sqlalchemy import Engine

from regtune.config.source import text_of
from regtune.errors import SpecError, StorageError
from regtune.escaping import printable
from regtune.study import tables
from regtune.study.board import covered
from regtune.study.decision import Decision, Standing, decision_of
from regtune.study.progress import flat
from regtune.study.record import (
    BUDGET,
    COORDINATOR,
    CREATED,
    DATA,
    DECISION,
    DESCRIPTION,
    ENDED,
    SPEC,
    STUDY_UID,
    VERSIONS,
    State,
    TrialRecord,
    trial_uid,
    uid_of,
)
from regtune.tracking import replicates
from regtune.tracking.replicates import BATCH, ReplicateKey, Replicates

if TYPE_CHECKING:
    from regtune.search import Space

OPEN: tuple[State, ...] = ("WAITING", "RUNNING")
Key = int | ReplicateKey
"""What is trained: a trial of the study by its number, or a replicate."""
Trial = tuple[Key, State, TrialRecord]
"""Which one, its state and its record."""
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
class DecisionFacts:
    """How the decision of a study stands.

    decision: as of the last look; None before the first. started_ms: when replication began. trained, ended_ms: how
    many replicates have ended, and when the last did, pauses left out; both are known at the end only.
    """

    state: ParentState
    decision: Decision | None = None
    started_ms: int | None = None
    trained: int = 0
    ended_ms: int | None = None


@dataclass(frozen=True)
class StudyFacts:
    """A study as MLflow shows it.

    sweep: the sweep's name, which is that of the MLflow experiment. parameters: those searched. created_ms: Unix
    milliseconds. settings: the params of the study's own run. sweep_file: in the canonical form, YAML. retrained: for
    a retraining, which goes with the study that it is of; where there is none, it is shown like a study of one trial.
    deciding: how its decision stands; None where nothing was replicated.
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
    settings: Mapping[str, str] = field(default_factory=dict)
    sweep_file: str = ""
    retrained: RetrainedFrom | None = None
    deciding: DecisionFacts | None = None

    @property
    def decision(self) -> Decision | None:
        return None if self.deciding is None else self.deciding.decision

    @property
    def standings(self) -> Mapping[int, Standing]:
        """How the decision judges trials of the search, by their numbers."""
        return _standings(self.decision)

    @classmethod
    def of(cls, name: str, attributes: Mapping[str, Any]) -> StudyFacts:
        """The facts in a study's attributes. Raises KeyError when the study has not been set up."""
        from regtune.config.sweepfile import SweepSpec
        from regtune.search import Space  # which imports Optuna

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
            settings=_settings(space, data["digest"]),
            description=description,
            sweep_file=text_of(file, flow=None),
        )


def _standings(decision: Decision | None) -> Mapping[int, Standing]:
    judged = decision.candidates if decision else ()
    return {one.candidate.trial: one.standing for one in judged if one.candidate.trial is not None}


def _settings(space: Space, digest: str) -> dict[str, str]:
    """What a sweep was begun with, under the names of its trials' params: of what is searched, the range."""
    from regtune.config.sweepfile.parameters import TARGETS
    from regtune.search.columns import shown

    spec = space.spec
    fixed = [
        name
        for name, target in TARGETS.items()
        if name not in spec.searched and (target.block != "early_stopping" or spec.early_stopping)
    ]
    settings = {
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
        "data.digest": digest,
    }
    return {name: str(value) for name, value in settings.items()}


def params(facts: StudyFacts, record: TrialRecord) -> dict[str, str]:
    """The params of a trial's run: its whole configuration, flat.

    Every searched parameter is among them, off being 0; a control's are read from its configuration. The data's keys
    are `data.name` and so on; what differs between the layers is `dropout.1`, `dropout.2`.
    """
    config, every = record.config, flat(record.config)
    repeated = {name for name in every if "." in name and name.partition(".")[0] in every}
    shown = {name: every[name] for name in every if name not in repeated or name in facts.parameters}
    shown |= {} if config.early_stopping else _NO_EARLY_STOPPING
    shown |= {f"data.{key}": value for key, value in config.data if value is not None}
    shown |= {"seed": config.seed, **record.parameters}
    return {name: str(value) for name, value in shown.items()}


@dataclass(frozen=True)
class Recorded:
    """Trials that are at hand, of a study or of none: a configuration that was trained again is one."""

    facts: StudyFacts
    trials: Sequence[Trial]
    state: ParentState = "FINISHED"
    winner: int | None = None
    ended_ms: int | None = None

    @property
    def numbers(self) -> Mapping[str, Key]:
        return {record.uid: number for number, _, record in self.trials}

    def read(self, numbers: Collection[Key]) -> Iterable[Trial]:
        return [trial for trial in self.trials if trial[0] in numbers]


class StudyTrials:
    """The trials and replicates of a study in Optuna's database, and how the study itself and its decision stand.

    numbers: uid -> number of the trials that have begun, in the order of the numbers, and key of the replicates.
    at_rest: nobody runs the study: what still counts as running was interrupted. Raises StudyNotFound, StorageError.
    """

    def __init__(self, engine: Engine, name: str, *, at_rest: bool) -> None:
        self._engine, self._name, self.at_rest = engine, name, at_rest
        with tables.reading(engine) as connection:
            self._info = tables.read_info(connection, name)
            tables.require_records(connection, self._info)
        self.numbers: dict[str, Key] = {}
        self._replicates = Replicates()
        self._decision: Decision | None = None
        self._ids: dict[int, int] = {}
        self._last = -1
        self._open: dict[int, int] = {}
        self._ranking: list[tuple[float, int]] = []
        self._spans: dict[int, tuple[datetime, datetime]] = {}
        self._attributes: Mapping[str, Any] = {}
        self._models: set[int] | None = None
        """Numbers of the trials that keep their models; None for a study of a version that kept all."""
        self.look()

    def look(self) -> set[Key]:
        """Read what is new and open, and return what of it MLflow may be told something else of."""
        known = self._attributes.get(DECISION)
        with tables.reading(self._engine) as connection:
            self._attributes = tables.read_attributes(connection, self._info.id)
            trials = tables.read_standings(connection, self._info, self._last, self._open.values())
            changed: set[Key] = {*self._replicates.look(connection, self._info.id)}
        self.numbers |= {key.uid(self._info.uid): key for key in changed if isinstance(key, ReplicateKey)}
        for trial in trials:
            self._take(trial)
        keep, before = self._info.budget.get("keep_models"), self._models
        self._models = None if keep is None else {number for _, number in self._ranking[:keep]}
        changed |= {trial.number for trial in trials if trial.own} | (before or set()) - (
            self._models or set()
        )
        if self._attributes.get(DECISION) != known:
            before_it, self._decision = self._decision, decision_of(self._attributes)
            changed |= _standings(before_it).keys() | _standings(self._decision).keys()
        return changed

    def _take(self, trial: tables.Head) -> None:
        number = trial.number
        self._last = max(self._last, trial.trial_id)
        if trial.state in OPEN:
            self._open[number] = trial.trial_id
        else:
            self._open.pop(number, None)
        if not trial.own:
            return
        self._ids[number] = trial.trial_id
        self.numbers[trial_uid(self._info.uid, number)] = number
        if trial.span is not None:
            self._spans[number] = trial.span
        if trial.state == "COMPLETE" and trial.searched:
            value = math.inf if trial.value is None else trial.value
            bisect.insort(self._ranking, (-value if self._info.goal == "maximize" else value, number))

    @property
    def facts(self) -> StudyFacts:
        """Raises StorageError."""
        return replace(self._facts, deciding=self._deciding)

    @property
    def _deciding(self) -> DecisionFacts | None:
        """How the decision stands; one that was stopped may be one that goes on."""
        decision, seen = self._decision, self._replicates
        if decision is None and seen.started_ms is None:
            return None
        over = decision is not None and decision.end != "stopped" and not seen.open
        if not over and not self.at_rest:
            return DecisionFacts("RUNNING", decision, seen.started_ms)
        state: ParentState = "FINISHED" if over else "KILLED"
        return DecisionFacts(state, decision, seen.started_ms, seen.ended, seen.ended_ms)

    @cached_property
    def _facts(self) -> StudyFacts:
        try:
            return StudyFacts.of(self._name, self._attributes)
        except (KeyError, TypeError, ValueError, AttributeError, SpecError) as error:
            why = str(error) if isinstance(error, SpecError) else repr(error)
            said = f"its attributes cannot be read ({why}); was it written by another version?"
            raise StorageError(f"{printable(self._name)}: {said}") from None

    @property
    def begun(self) -> bool:
        """Whether the study knows its data, without which it has no trials."""
        return DATA in self._attributes

    @property
    def coordinator(self) -> str | None:
        """The signature of the process that runs the study, or ran it last."""
        return self._attributes.get(COORDINATOR)

    @property
    def winner(self) -> int | None:
        """Number of the best trial of the search, None when none is complete."""
        return self._ranking[0][1] if self._ranking else None

    @property
    def state(self) -> ParentState:
        """How the study stands: as its last coordinator recorded it; of one that was killed, by its budget."""
        recorded = self._attributes.get(ENDED)
        if isinstance(recorded, Mapping) and recorded.get("state") in get_args(ParentState):
            state: ParentState = recorded["state"]
            return state
        if not self.at_rest:
            return "RUNNING"
        cap = self._info.budget.get("run_cap")
        return "FINISHED" if cap is not None and self._info.finished >= cap else "KILLED"

    @property
    def ended_ms(self) -> int | None:
        """Its end as MLflow shows it: pauses between its sweeps are no part of its duration."""
        created = self._attributes.get(CREATED)
        return None if created is None else created + round(1000 * covered(self._spans.values()))

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, numbers: Collection[Key]) -> Iterator[Trial]:
        """Those of `numbers` that have begun, trials first."""
        yield from self._read_trials(sorted(self._ids.keys() & numbers))
        if keys := [key for key in numbers if isinstance(key, ReplicateKey)]:
            for one in replicates.read(self._engine, self._info.id, keys):
                state = one.record.end_state or ("WAITING" if self.at_rest else "RUNNING")
                yield ReplicateKey.of(one), state, one.record

    def _read_trials(self, numbers: Sequence[int]) -> Iterator[Trial]:
        ids = [self._ids[number] for number in numbers]
        for start in range(0, len(ids), BATCH):
            with tables.reading(self._engine) as connection:
                found = tables.read_records(connection, ids[start : start + BATCH])
            for number, state, text in found:
                record = TrialRecord.from_json(text, f"{printable(self._name)}: trial {number}")
                interrupted = state == "RUNNING" and self.at_rest
                if record.started_ms is not None:
                    shown = (record.end_state or "WAITING") if interrupted else state
                    yield number, shown, self._kept(number, record)

    def _kept(self, number: int, record: TrialRecord) -> TrialRecord:
        """The record without artifacts where the trial is no longer among those that keep theirs.

        One that has ended since the last look may be among them by now.
        """
        dropped = self._models is not None and number not in self._models and number not in self._open
        return replace(record, artifacts={}) if dropped and record.artifacts else record


Trials = StudyTrials | Recorded
