"""What a study says of its trials and of itself, read by SQL and in batches: what its runs in MLflow are to be.

Optuna is not imported, and never more than a batch of records is held.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol, get_args

from sqlalchemy import Engine

from regtune.errors import SpecError, StorageError
from regtune.escaping import printable
from regtune.study.board import end_without_pauses
from regtune.study.board.tables import (
    read_attributes,
    read_heads,
    read_info,
    read_numbers,
    read_records,
    read_spans,
    reading,
)
from regtune.study.record import CREATED, DATA, ENDED, State, TrialRecord, trial_uid
from regtune.tracking import names
from regtune.tracking.facts import ParentState, StudyFacts

BATCH = 200
_COMPLETE: tuple[State] = ("COMPLETE",)


class Trials(Protocol):
    """The trials of one study that have begun."""

    def number(self, tags: Mapping[str, str]) -> int | None:
        """The number of the trial whose run has these tags; None for what is none of them."""

    def uids(self) -> Iterator[tuple[int, str]]:
        """Number and uid of each, in order."""

    def read(self, numbers: Collection[int]) -> Iterator[tuple[int, State, TrialRecord]]:
        """Number, state and record of those of `numbers` that have begun."""


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
            self._info = info = read_info(connection, name)
            attributes = read_attributes(connection, info)
            # Before the ranking: what has ended by now is ranked.
            self._numbers = read_numbers(connection, info)
            spans = read_spans(connection, info, running=False)
            keep = info.budget.get("keep_models")
            ranked = read_heads(connection, info, states=_COMPLETE, limit=max(1, keep or 0))
            best = [row.number for row in ranked]
            self._models = None if keep is None else set(best[:keep])
        self.uid = info.uid
        self.begun = DATA in attributes
        """Whether the study knows its data, without which it has no trials."""
        self._attributes = attributes
        self.winner = best[0] if best else None
        """Number of the best trial, None when none is complete."""
        self.state = _state(attributes.get(ENDED), info)
        """How the study stands at rest."""
        self.ended_ms = end_without_pauses(attributes.get(CREATED), spans)
        """Its end as MLflow shows it: pauses between its sweeps are no part of its duration."""

    @cached_property
    def facts(self) -> StudyFacts:
        """What MLflow is told of the study; imports Optuna. Raises StorageError."""
        return _facts(self._name, self._attributes)

    def __len__(self) -> int:
        return len(self._numbers)

    def number(self, tags: Mapping[str, str]) -> int | None:
        """See `Trials`."""
        study, _, number = tags.get(names.TRIAL_UID, "").rpartition("-")
        known = study == self.uid and number.isdigit() and int(number) in self._numbers
        return int(number) if known else None

    def uids(self) -> Iterator[tuple[int, str]]:
        """See `Trials`."""
        return ((number, trial_uid(self.uid, number)) for number in sorted(self._numbers))

    def read(self, numbers: Collection[int]) -> Iterator[tuple[int, State, TrialRecord]]:
        """See `Trials`."""
        wanted = sorted(numbers)
        for start in range(0, len(wanted), BATCH):
            with reading(self._engine) as connection:
                found = read_records(connection, self._info, wanted[start : start + BATCH])
            for number, state, values in found:
                record = TrialRecord.from_json(values, f"{printable(self._name)}: trial {number}")
                if record.started_ms is not None:
                    yield number, self._shown(state, record), self._kept(number, record)

    def _shown(self, state: State, record: TrialRecord | None) -> State:
        if state != "RUNNING" or not self._at_rest:
            return state
        return (record.end_state if record else None) or "WAITING"

    def _kept(self, number: int, record: TrialRecord) -> TrialRecord:
        """The record without artifacts where the trial is no longer among those that keep theirs. One that has ended
        since they were read may be among them by now.
        """
        ended = self._numbers.get(number) in _COMPLETE
        dropped = ended and self._models is not None and number not in self._models
        return replace(record, artifacts={}) if dropped and record.artifacts else record


def _facts(name: str, attributes: Mapping[str, Any]) -> StudyFacts:
    try:
        return StudyFacts.of(name, attributes)
    except (KeyError, TypeError, ValueError, AttributeError, SpecError) as error:
        why = str(error) if isinstance(error, SpecError) else repr(error)
        raise StorageError(
            f"{printable(name)}: its attributes cannot be read ({why}); was it written by another version?"
        ) from None


def _state(recorded: Any, info: Any) -> ParentState:
    """How a study at rest stands: as its coordinator recorded it, or, when that was killed, by its budget."""
    if isinstance(recorded, Mapping) and recorded.get("state") in get_args(ParentState):
        state: ParentState = recorded["state"]
        return state
    cap = info.budget.get("run_cap")
    return "FINISHED" if cap is not None and info.finished >= cap else "KILLED"
