"""A study's trials read by SQL, in batches, and what has changed since the last reading.

An ended trial stays as it is, so another look reads only new trials and those that had not ended. Never more than a
batch of records is held.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from typing import Any, Protocol, get_args

from sqlalchemy import Engine

from regtune.errors import SpecError, StorageError
from regtune.escaping import printable
from regtune.study.board import covered
from regtune.study.record import CREATED, DATA, ENDED, State, TrialRecord, trial_uid
from regtune.study.tables import Head, read_attributes, read_info, read_records, read_standings, reading
from regtune.tracking.facts import ParentState, StudyFacts

BATCH = 200
OPEN: tuple[State, ...] = ("WAITING", "RUNNING")
Trial = tuple[int, State, TrialRecord]
"""Number, state and record."""


class Trials(Protocol):
    """The trials of one study that have begun."""

    @property
    def numbers(self) -> Mapping[str, int]:
        """Uid -> number, in the order of the numbers."""

    def read(self, numbers: Collection[int]) -> Iterator[Trial]:
        """Those of `numbers` that have begun."""


class OneTrial:
    """A trial that is in no study: a configuration trained again."""

    def __init__(self, state: State, record: TrialRecord) -> None:
        self._trial: Trial = 0, state, record
        self.numbers = {record.uid: 0}

    def read(self, numbers: Collection[int]) -> Iterator[Trial]:
        return (self._trial for _ in numbers)


class StudyTrials:
    """The trials of a study in Optuna's database, and how the study itself stands.

    at_rest: nobody runs the study: a trial that still counts as running was interrupted.
    Raises StudyNotFound, StorageError.
    """

    def __init__(self, engine: Engine, name: str, *, at_rest: bool) -> None:
        self._engine = engine
        self._name = name
        self._at_rest = at_rest
        with reading(engine) as connection:
            self._info = read_info(connection, name)
        self.uid = self._info.uid
        self.numbers: dict[str, int] = {}
        self._ids: dict[int, int] = {}
        self._last = -1
        self._open: dict[int, int] = {}
        self._texts: dict[int, tuple[State, str]] = {}
        self._ranking: list[tuple[float, int]] = []
        self._spans: dict[int, tuple[datetime, datetime]] = {}
        self._attributes: Mapping[str, Any] = {}
        self._models: set[int] | None = None
        """Numbers of the trials that keep their models; None for a study of a version that kept all."""
        self._look()

    def look(self) -> set[int]:
        """Read what has changed, and return the numbers of the trials that MLflow is to say something else of."""
        with reading(self._engine) as connection:
            found = read_records(connection, self._open.values())
        texts = {number: (state, text) for number, state, text in found}
        changed = {number for number, text in texts.items() if self._texts.get(number) != text}
        models = self._models or set()
        changed |= self._look()
        self._texts = {number: text for number, text in texts.items() if number in self._open}
        return {number for number in changed if number in self._ids} | models - (self._models or set())

    def _look(self) -> set[int]:
        """Read what is new and how open trials stand; returns those that are new or have ended."""
        with reading(self._engine) as connection:
            self._attributes = read_attributes(connection, self._info.id)
            trials = read_standings(connection, self._info, self._last, self._open.values())
        changed = {trial.number for trial in trials if self._take(trial)}
        keep = self._info.budget.get("keep_models")
        self._models = None if keep is None else {number for _, number in self._ranking[:keep]}
        return changed

    def _take(self, trial: Head) -> bool:
        number, ended = trial.number, trial.state not in OPEN
        self._last = max(self._last, trial.trial_id)
        self._open[number] = trial.trial_id
        if ended:
            del self._open[number]
        if not trial.own:
            return False
        new = number not in self._ids
        self._ids[number] = trial.trial_id
        self.numbers[trial_uid(self.uid, number)] = number
        if trial.span is not None:
            self._spans[number] = trial.span
        if trial.state == "COMPLETE":
            value = math.inf if trial.value is None else trial.value
            bisect.insort(self._ranking, (-value if self._info.goal == "maximize" else value, number))
        return new or ended

    @cached_property
    def facts(self) -> StudyFacts:
        """What MLflow is told of the study; imports Optuna. Raises StorageError."""
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
    def winner(self) -> int | None:
        """Number of the best trial, None when none is complete."""
        return self._ranking[0][1] if self._ranking else None

    @property
    def state(self) -> ParentState:
        """How the study stands: as its last coordinator recorded it; of one that was killed, by its budget."""
        recorded = self._attributes.get(ENDED)
        if isinstance(recorded, Mapping) and recorded.get("state") in get_args(ParentState):
            state: ParentState = recorded["state"]
            return state
        if not self._at_rest:
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

    def read(self, numbers: Collection[int]) -> Iterator[Trial]:
        ids = [self._ids[number] for number in sorted(numbers) if number in self._ids]
        for start in range(0, len(ids), BATCH):
            with reading(self._engine) as connection:
                found = read_records(connection, ids[start : start + BATCH])
            for number, state, text in found:
                record = TrialRecord.from_json(text, f"{printable(self._name)}: trial {number}")
                interrupted = state == "RUNNING" and self._at_rest
                if record.started_ms is not None:
                    shown = (record.end_state or "WAITING") if interrupted else state
                    yield number, shown, self._kept(number, record)

    def _kept(self, number: int, record: TrialRecord) -> TrialRecord:
        """The record without artifacts where the trial is no longer among those that keep theirs.

        One that has ended since the last look may be among them by now.
        """
        dropped = self._models is not None and number not in self._models and number not in self._open
        return replace(record, artifacts={}) if dropped and record.artifacts else record
