"""The replicates of a study, read by SQL; one that has ended stays as it is, and is read no more.

Never more than a batch of records is held.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, Engine

from regtune.study import tables
from regtune.study.board import covered
from regtune.study.decision import Replicate, Vary, replicate_uid
from regtune.study.record import REPLICATE

BATCH = 200


@dataclass(frozen=True, order=True)
class ReplicateKey:
    """Which replicate of a study. candidate: its key, `t16` or `c-dropout`. index: from 0."""

    vary: Vary
    candidate: str
    index: int

    @classmethod
    def of(cls, replicate: Replicate) -> ReplicateKey:
        return cls(replicate.vary, replicate.candidate, replicate.index)

    @property
    def attribute(self) -> str:
        """As `Replicate.attribute`."""
        return f"{REPLICATE}{self.vary}.{self.candidate}.{self.index}"

    def uid(self, study: str) -> str:
        return replicate_uid(study, self.vary, self.candidate, self.index)


def label(candidate: str, mix: str) -> str:
    """How runs name a candidate: a control by its name, a trial by its techniques, too."""
    return candidate if candidate.startswith("control") else f"{candidate}: {mix}"


class Replicates:
    """What is known of a study's replicates.

    started_ms: when the first began. open: those that have begun and have no end.
    """

    def __init__(self) -> None:
        self.started_ms: int | None = None
        self.open: set[ReplicateKey] = set()
        self._ended: dict[str, tuple[datetime, datetime]] = {}

    def look(self, connection: Connection, study_id: int) -> set[ReplicateKey]:
        """Read those that are new or had no end, and return which they are. Raises StorageError."""
        names = [
            name for name in tables.read_replicate_names(connection, study_id) if name not in self._ended
        ]
        begun = set()
        self.open = set()
        for batch in _batches(names):
            for replicate in _read(connection, study_id, batch):
                key, record = ReplicateKey.of(replicate), replicate.record
                if record.started_ms is None:
                    continue
                begun.add(key)
                self.started_ms = min(record.started_ms, self.started_ms or record.started_ms)
                if record.end_reason is None:
                    self.open.add(key)
                elif record.end_reason != "worker_died":  # which may have another attempt
                    span = _moment(record.started_ms), _moment(record.ended_ms or record.started_ms)
                    self._ended[replicate.attribute] = span
        return begun

    @property
    def ended(self) -> int:
        """How many have an end."""
        return len(self._ended)

    @property
    def ended_ms(self) -> int | None:
        """When the last one ended, moved so that pauses are no part of the duration."""
        return self.started_ms and self.started_ms + round(1000 * covered(self._ended.values()))


def read(engine: Engine, study_id: int, keys: Collection[ReplicateKey]) -> Iterator[Replicate]:
    """Read replicates, in order. Raises StorageError."""
    for batch in _batches([key.attribute for key in sorted(keys)]):
        with tables.reading(engine) as connection:
            found = _read(connection, study_id, batch)
        yield from found


def _batches(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[start : start + BATCH] for start in range(0, len(names), BATCH))


def _read(connection: Connection, study_id: int, names: Sequence[str]) -> list[Replicate]:
    found = tables.read_replicates(connection, study_id, names)
    return [Replicate.of(name, found[name]) for name in names if name in found]


def _moment(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
