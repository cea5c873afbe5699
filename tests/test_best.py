"""best.yaml: complete, exact, and refused when it is not what it should be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import studies

from regtune.config.trial import TrialConfig
from regtune.errors import ConfigError, StorageError
from regtune.storage import open_engine
from regtune.study.best import Best, best_of, changes, load_best, parse_best

NAME = "mnist-regularization"


@pytest.fixture
def best(tmp_path: Path) -> Best:
    studies.fill(studies.create(tmp_path / "studies.db"))
    return best_of(open_engine(f"sqlite:///{tmp_path / 'studies.db'}"), NAME)


def test_it_is_read_back_exactly(best: Best) -> None:
    again = parse_best(best.to_yaml())
    assert again == best
    assert again.provenance is not None
    kept = min(studies.curve(0.0742, 12), key=lambda point: point["val_cross_entropy"])
    assert again.provenance.figures == kept
    assert again.provenance.value == kept["val_cross_entropy"]


def test_data_that_lies_elsewhere_is_no_change_and_other_data_is(best: Best) -> None:
    def moved(**data: str) -> Best:
        config = best.config.model_copy(update={"data": best.config.data.model_copy(update=data)})
        return replace(best, config=config)

    assert not best.changed
    assert not moved(name="elsewhere/data.npz").changed
    assert moved(digest="0" * 64).changed
    assert parse_best(best.to_yaml().replace("max_epochs: 30", "max_epochs: 31")).changed
    assert best.provenance is not None
    of_before = best.provenance.model_copy(update={"config": best.config.digest})
    assert not replace(best, provenance=of_before).changed


def test_what_is_not_provenance_is_a_configuration(best: Best) -> None:
    text = best.to_yaml()
    bare = text[: text.index("provenance:")]
    assert TrialConfig.from_yaml(bare) == best.config
    assert parse_best(bare) == Best(best.config, None)
    assert not parse_best(bare).changed


def test_it_is_written_whole_or_not_at_all_and_read_or_named(best: Best, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        best.write(tmp_path / "absent" / "best.yaml")
    best.write(tmp_path / "best.yaml")
    assert load_best(tmp_path / "best.yaml") == best
    assert not list(tmp_path.glob(".best*"))
    Path("best.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="expected UTF-8 text"):
        load_best(Path("best.yaml"))


def test_what_was_changed_is_named_where_the_trial_is_known(best: Best, tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'studies.db'}")
    config = best.config.model_copy(update={"seed": 8})
    assert changes(replace(best, config=config), engine) == ["seed: 7 → 8"]
    assert best.provenance is not None
    other = best.provenance.model_copy(update={"trial_uid": "of another folder"})
    assert changes(Best(config, other), engine) == []
    assert changes(Best(config, None), engine) == []
