"""A study as Python reads it: `open_study(name)` gives its board, its decision, its configurations and its models."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from regtune.config.trial import TrialConfig
from regtune.errors import StorageError
from regtune.escaping import printable
from regtune.executors.worker import MODEL_FILE
from regtune.settings import Settings, load_settings
from regtune.storage import open_engine
from regtune.study.best import best_of
from regtune.study.board import read_board, read_study, read_trial
from regtune.study.decision import Decision
from regtune.study.record import TrialRecord
from regtune.training.archive import load_weights

if TYPE_CHECKING:
    import pandas as pd


def open_study(name: str, settings: Settings | None = None) -> StudyHandle:
    """Open a study for reading; it may be running meanwhile.

    Args:
        name: Name of the study.
        settings: Where databases and artifacts are; by default read from the environment.

    Returns:
        The study; each access reads it as it is then.

    Raises:
        StudyNotFound: There is no such study.
        StorageError: The database cannot be opened or read.

    Example:
        >>> study = open_study("quickstart")
        >>> study.board().query("decision == 'tied'")
        >>> model = study.model(16)
    """
    settings = settings or load_settings()
    engine = open_engine(settings.storage_url)
    read_study(engine, name)
    return StudyHandle(name, settings, engine)


class StudyHandle:
    """A study that was opened for reading; `open_study` makes it."""

    def __init__(self, name: str, settings: Settings, engine: Engine) -> None:
        self.name = name
        self._settings, self._engine = settings, engine

    def __repr__(self) -> str:
        return f"<study {self.name}>"

    @property
    def best(self) -> TrialConfig:
        """The configuration that the decision has chosen, or without a decision the best one of the search.

        Raises StudyNotFound where no trial is complete, StorageError.
        """
        return best_of(self._engine, self.name).config

    @property
    def decision(self) -> Decision | None:
        """What the replicates decided last; None where nothing was replicated. Raises StorageError."""
        return read_study(self._engine, self.name).decision

    def board(self) -> pd.DataFrame:
        """Return the leaderboard, the best trial first: the columns of `regtune board --csv`. Raises StorageError."""
        import pandas as pd

        board = read_board(self._engine, self.name)
        return pd.DataFrame(board.cells(), columns=board.columns)

    def config(self, trial: int) -> TrialConfig:
        """Return the whole configuration of a trial. Raises StudyNotFound for one that is not there, StorageError."""
        return self._record(trial).config

    def model(self, trial: int) -> Any:
        """Return the trained network of a trial, a plain `keras.Sequential`.

        It is built from the trial's configuration, and takes nothing but weights from the file `model.keras`, whose
        digest must be the recorded one.

        Raises StudyNotFound for a trial that is not there, StorageError where its weights were not kept, are gone, or
        are others than those that were recorded.
        """
        record, facts = self._record(trial), read_study(self._engine, self.name).data
        file = self._settings.artifacts / "trials" / record.uid / MODEL_FILE
        which = f"trial {trial} of {printable(self.name)}"
        digest = record.artifacts.get(MODEL_FILE)
        if digest is None:
            raise StorageError(
                f"{which} kept no weights (keep_models); train it again: train(study.config({trial}))"
            )
        try:
            content = file.read_bytes()
        except OSError as error:
            raise StorageError(f"{file}: the weights of {which} cannot be read ({error.strerror})") from None
        if (found := hashlib.sha256(content).hexdigest()) != digest:
            raise StorageError(
                f"{file}: expected the weights of {which} (SHA-256 {digest[:12]}), found {found[:12]}"
            )
        from regtune import build_model

        model = build_model(record.config, features=facts["features"], classes=facts["classes"])
        try:
            load_weights(model, content)
        except ValueError as error:
            raise StorageError(f"{file}: {error}") from None
        return model

    def _record(self, trial: int) -> TrialRecord:
        record = read_trial(self._engine, self.name, trial).record
        if record is None:
            raise StorageError(
                f"trial {trial} of {printable(self.name)} has no record: regtune has not trained it yet"
            )
        return record
