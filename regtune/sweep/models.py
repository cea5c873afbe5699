"""The models of a sweep's trials on disk: the best `keep_models` have theirs, and no others."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
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

    def drop_earlier(self) -> Iterator[tuple[int, TrialRecord]]:
        """Remove the models that an earlier sweep has left beside the best, and the halves that killed workers left."""
        yield from self._drop(self._standing.best()[self._most :])
        kept = {trial_uid(self._study.uid, number) for number in self._standing.best(self._most)}
        for folder in self._folder.glob(f"{self._study.uid}-*"):
            if folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)
            for file in folder.glob(f".*.{MODEL_FILE}"):
                file.unlink(missing_ok=True)

    def drop_after(self, number: int) -> Iterator[tuple[int, TrialRecord]]:
        """Remove the model that is no longer among the best now that trial `number` is complete, or its own."""
        best = self._standing.best(self._most + 1)
        yield from self._drop({*best[self._most :], *({number} - {*best})})

    def _drop(self, numbers: Iterable[int]) -> Iterator[tuple[int, TrialRecord]]:
        """Remove these trials' models; yields numbers, and records of what is left."""
        for number in numbers:
            folder = self._folder / trial_uid(self._study.uid, number)
            if folder.exists():
                shutil.rmtree(folder)
                record = record_of(self._study.trials()[number])
                assert record is not None
                yield number, replace(record, artifacts={})
