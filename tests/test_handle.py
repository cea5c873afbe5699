"""A study in Python: `open_study`."""

from __future__ import annotations

from pathlib import Path

import decisions
import pytest
import studies
from terminals import imported

from regtune import open_study
from regtune.errors import StorageError, StudyNotFound
from regtune.settings import load_settings

NAME = "mnist-regularization"


def test_an_opened_study_has_its_board_its_best_and_its_configurations() -> None:
    studies.fill(studies.create(Path("mlruns/studies.db")))
    study = open_study(NAME)
    board = study.board()
    assert list(board.columns[:4]) == ["rank", "trial", "state", "decision"]
    assert (len(board), board["rank"].max(), board.loc[0, "trial"]) == (9, 5, 3)
    assert study.best == study.config(3)
    assert study.decision is None
    with pytest.raises(StudyNotFound, match="has no trial 99"):
        study.config(99)
    with pytest.raises(StudyNotFound, match="no study"):
        open_study("another", load_settings())


def test_the_best_of_a_decided_study_is_the_chosen_one() -> None:
    made = studies.create(Path("mlruns/studies.db"))
    studies.fill(made, floors=[0.08, 0.082])
    study = open_study(NAME)
    assert study.best == study.config(2)
    decisions.store(made, decisions.of_filled_study())
    assert study.best == study.config(3)
    assert study.decision == decisions.of_filled_study()
    assert dict(study.board().set_index("trial")["decision"].dropna()) == {
        **{3: "chosen", 2: "tied", 1: "tied", 0: "beaten"}
    }


def test_a_model_that_was_not_kept_says_how_to_get_it() -> None:
    studies.fill(studies.create(Path("mlruns/studies.db")))
    with pytest.raises(StorageError, match=r"trial 3 of .* kept no weights .*train\(study.config\(3\)\)"):
        open_study(NAME).model(3)


def test_a_study_is_read_without_tensorflow() -> None:
    studies.fill(studies.create(Path("mlruns/studies.db")))
    code = f"import regtune; study = regtune.open_study('{NAME}'); study.board(); study.best"
    assert not imported(code) & {"tensorflow", "keras", "mlflow"}
