"""The inventory of data sets: which are on this machine, and whether they are intact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from regtune.data.datasets import DIGESTS, NAMES, load_arrays, locate
from regtune.errors import DataError


@dataclass(frozen=True)
class Entry:
    """A data set. where: its file, or None when it is not here. train, test, digest: known once it has been read.

    problem: what is wrong with it, or empty. known: whether its digests are known to regtune and were
    compared. notes: what was read otherwise than it is written.
    """

    name: str
    where: str | None
    train: int | None = None
    test: int | None = None
    digest: str | None = None
    known: bool = False
    notes: tuple[str, ...] = ()
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def list_datasets(data_dir: Path | None) -> list[Entry]:
    """The data sets that have a name, and where they lie; nothing is read."""
    return [Entry(name, _where(name, data_dir)) for name in NAMES]


def verify_datasets(data_dir: Path | None, name: str | None = None) -> list[Entry]:
    """Read `name`, or every data set that is here, in full. Raises DataError for a name that means nothing."""
    names: Sequence[str] = [name] if name else [found for found in NAMES if _where(found, data_dir)]
    if name:
        _where(name, data_dir)
    return [_verified(found, data_dir) for found in names]


def _where(name: str, data_dir: Path | None) -> str | None:
    if name == "mnist-5k":
        return "part of the installation"
    found = locate(name, data_dir)
    return str(found) if found else None


def _verified(name: str, data_dir: Path | None) -> Entry:
    try:
        found = load_arrays(name, data_dir)
    except DataError as error:
        return Entry(name, _where(name, data_dir), problem=str(error))
    return Entry(
        name,
        found.source,
        len(found.x_train),
        len(found.x_test),
        found.digest,
        known=name in DIGESTS,
        notes=found.notes,
    )
