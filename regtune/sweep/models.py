"""The models of a sweep's trials on disk: the best `keep_models` have theirs, and no others."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from regtune.executors.worker import MODEL_FILE
from regtune.study.record import TrialRecord, trial_uid
from regtune.study.study import Study, record_of
from regtune.sweep.standing import Standing


class KeptModels:
    """The models of `study`'s trials in `folder`, a folder a trial; `most` trials keep theirs."""

    def __init__(self, study: Study, standing: Standing, folder: Path, most: int) -> None:
        self._study = study
        self._standing = standing
        self._folder = folder
        self._most = most
        self._numbers: set[int] = set()

    def take_up(self) -> None:
        """Count with the models of all trials that a study has from before."""
        self._numbers = set(self._standing.best())

    def add(self, number: int) -> None:
        """Count with the model of a trial that is complete."""
        self._numbers.add(number)

    def drop(self) -> Iterator[tuple[int, TrialRecord]]:
        """Remove the models of trials that are no longer among the best; their numbers, and records of what is left."""
        trials = self._study.trials()
        for number in sorted(self._numbers.difference(self._standing.best(self._most))):
            self._numbers.remove(number)  # it will never be among the best again
            folder = self._folder / trial_uid(self._study.uid, number)
            if folder.exists():
                shutil.rmtree(folder)
                record = record_of(trials[number])
                assert record is not None
                yield number, self._present(record)

    def drop_remains(self) -> None:
        """Remove what workers that were killed have left of models: half of one, or one of a trial that has none."""
        kept = {trial_uid(self._study.uid, number) for number in self._standing.best(self._most)}
        for folder in self._folder.glob(f"{self._study.uid}-*"):
            if folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)
            for file in folder.glob(f".*.{MODEL_FILE}"):
                file.unlink(missing_ok=True)

    def _present(self, record: TrialRecord) -> TrialRecord:
        """The record with those of its artifacts that are still there."""
        found = {
            name: sha for name, sha in record.artifacts.items() if (self._folder / record.uid / name).exists()
        }
        return replace(record, artifacts=found)
