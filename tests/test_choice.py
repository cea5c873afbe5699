"""What is promoted: the decision's choice, without one the best trial, or one that a person names."""

from __future__ import annotations

from pathlib import Path

import pytest
import studies
from sqlalchemy import Engine

from regtune.errors import InputError
from regtune.registry.choice import choose
from regtune.settings import sqlite_url
from regtune.storage import open_engine

NAME = "mnist-regularization"


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    path = tmp_path / "studies.db"
    studies.fill(studies.create(path))
    return open_engine(sqlite_url(path))


def test_without_a_decision_it_is_the_best_trial_and_that_may_be_luck(engine: Engine) -> None:
    found = choose(engine, NAME)
    assert (found.source.chosen, found.source.trial) == ("search", 3)
    assert found.lucky == f"{NAME} has no decision; trial 3 is the best of 5 single runs, which may be luck"
    assert found.best.provenance is not None
    assert found.epochs == found.best.provenance.epoch


def test_a_person_may_name_a_complete_trial_and_no_other(engine: Engine) -> None:
    found = choose(engine, NAME, trial=1)
    assert (found.source.chosen, found.source.trial, found.lucky) == ("person", 1, "")
    with pytest.raises(InputError, match="--trial 5: expected a complete trial, it is pruned"):
        choose(engine, NAME, trial=5)
