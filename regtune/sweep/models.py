"""The models that a sweep keeps on disk: those of its best `keep_models` trials."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from regtune.executors.worker import MODEL_FILE
from regtune.study.record import trial_uid
from regtune.study.study import Study
from regtune.sweep.standing import Standing


class KeptModels:
    """The models of `study`'s trials in `folder`, a folder a trial; `most` trials keep theirs."""

    def __init__(self, study: Study, standing: Standing, folder: Path, most: int) -> None:
        self._study = study
        self._standing = standing
        self._folder = folder
        self._most = most

    def drop_earlier(self) -> None:
        """Remove the models that an earlier sweep has left beside the best, and the halves that killed workers left."""
        self._drop(self._standing.best()[self._most :])
        kept = {trial_uid(self._study.uid, number) for number in self._standing.best(self._most)}
        for folder in self._folder.glob(f"{self._study.uid}-*"):
            if folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)
            for file in folder.glob(f".*.{MODEL_FILE}"):
                file.unlink(missing_ok=True)

    def drop_after(self, number: int) -> None:
        """Remove the model that is no longer among the best now that trial `number` is complete, or its own."""
        best = self._standing.best(self._most + 1)
        self._drop({*best[self._most :], *({number} - {*best})})

    def _drop(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            shutil.rmtree(self._folder / trial_uid(self._study.uid, number), ignore_errors=True)
