"""Data sets: found, checked, split; and every way in which a file can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus.datasets import arrays, idx_folder, saved
from parts import full_mnist
from sklearn.model_selection import train_test_split
from specs import spec_of

from regtune.config.trial import DataConfig, TrialConfig
from regtune.data.datasets import DIGESTS, Arrays, load_arrays, load_data, split_of
from regtune.errors import DataError, StorageError
from regtune.settings import load_settings
from regtune.study.best import Best
from regtune.study.progress import FinishedTrial, Progress
from regtune.sweep import run_sweep
from regtune.sweep.plan import make_plan
from regtune.sweep.retrain import retrain


def save(path: Path, **changes: Any) -> str:
    path.write_bytes(saved(**changes))
    return str(path)


def test_the_embedded_digits_are_split_into_three_parts() -> None:
    data = load_data(DataConfig(name="mnist-5k"))
    assert data.x_train.shape == (3200, 784)
    assert data.x_val.shape == (800, 784)
    assert (data.x_train.dtype, data.y_train.dtype) == (np.float32, np.int32)
    assert data.x_train.min() == 0.0
    assert data.x_train.max() == 1.0
    found = load_arrays("mnist-5k")
    assert np.bincount(found.y_test).tolist() == [100] * 10
    assert np.bincount(found.y_train).tolist() == [400] * 10


def test_data_is_loaded_by_name_or_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "fashion-mnist.npz")
    monkeypatch.setenv("REGTUNE_DATA_DIR", str(tmp_path))
    config = TrialConfig(data=DataConfig(name="fashion-mnist"))
    ways = (config, config.data, "fashion-mnist", tmp_path / "fashion-mnist.npz")
    found = [load_data(given) for given in ways]
    assert {data.digest for data in found} == {found[0].digest}
    assert found[0].source == str(tmp_path / "fashion-mnist.npz")
    with pytest.raises(
        DataError, match='dataset "mnistt": expected mnist, mnist-5k, fashion-mnist or a path'
    ):
        load_data("mnistt")


def test_the_split_is_scikit_learns() -> None:
    found = load_arrays("mnist-5k")
    data = load_data(DataConfig(name="mnist-5k", validation=0.2, split_seed=42))
    images = found.x_train / np.float32(255)
    parts = train_test_split(images, found.y_train, test_size=0.2, random_state=42)
    for ours, theirs in zip((data.x_train, data.x_val, data.y_train, data.y_val), parts, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def labelled(*labels: int) -> Arrays:
    y = np.array(labels, np.int32)
    x = np.zeros((len(y), 784), np.uint8)
    return Arrays("made", "made", x, y, x[:1], y[:1], {})


@pytest.mark.parametrize("count", [2, 3, 7, 4000])
@pytest.mark.parametrize("validation", [0.0001, 0.2, 1 / 3, 0.5, 0.9, 0.99975, 0.9998])
def test_a_split_is_scikit_learns_or_is_refused_as_there(count: int, validation: float) -> None:
    found = labelled(*(number % 2 for number in range(count)))
    for seed in (0, 42):
        config = DataConfig(name="made", validation=validation, split_seed=seed)
        try:
            train, val = train_test_split(np.arange(count), test_size=validation, random_state=seed)
        except ValueError:
            with pytest.raises(DataError, match=f"leaves none of {count:,} images to train on"):
                split_of(found, config)
            continue
        parts = split_of(found, config)
        np.testing.assert_array_equal(parts.train, train)
        np.testing.assert_array_equal(parts.validation, val)


def test_a_class_that_one_part_of_the_split_lacks_is_said() -> None:
    notes = split_of(labelled(*[0] * 6, *[1] * 6, 7), DataConfig(name="made", validation=0.25)).notes
    lacks = "made: no image of class 7 is in the validation part; try another split.validation or split.seed"
    assert notes == (lacks,)
    notes = split_of(labelled(0, 0, 0, 0, 1, 2, 2), DataConfig(name="made", validation=0.8)).notes
    assert notes[0].startswith("made: no image of 2 of the 3 classes is in the training part")
    assert split_of(load_arrays("mnist-5k"), DataConfig(name="mnist-5k")).notes == ()


class Notes:
    def __init__(self) -> None:
        self.told: list[str] = []

    def progress(self, progress: Progress) -> None: ...
    def finished(self, trial: FinishedTrial, progress: Progress) -> None: ...
    def note(self, message: str) -> None:
        self.told.append(message)


def test_plan_sweep_and_train_say_how_the_data_was_read_and_what_the_split_lacks(tmp_path: Path) -> None:
    labels = np.array([*[0] * 20, *[1] * 19, 2])
    name = save(tmp_path / "own.npz", y_train=labels[:, None], y_test=labels[:20])
    spec = spec_of({"dropout": {"values": [0, 0.1]}}, dataset=name, run_cap=1)
    expected = load_data(DataConfig(name=name)).notes
    assert expected[0].endswith("y_train: a column read as labels")
    assert "no image of class 2 is in the validation part" in expected[1]
    assert make_plan(spec, load_settings()).data_notes == expected
    (tmp_path / "file").write_text("")  # so that both end before anything is trained
    notes, settings = Notes(), load_settings(home=tmp_path / "file")
    with pytest.raises(StorageError):
        run_sweep(spec, settings=settings, observer=notes)
    with pytest.raises(StorageError):
        retrain(Best(TrialConfig(data=DataConfig(name=name)), None), settings, on_note=notes.note)
    assert tuple(notes.told) == (*expected, *expected)


@pytest.mark.full_mnist
def test_the_full_mnist_is_known_by_its_arrays() -> None:
    found = load_arrays("mnist", full_mnist())
    assert dict(found.digests) == dict(DIGESTS["mnist"])
    assert load_data(DataConfig(name="mnist"), full_mnist()).x_train.shape == (48_000, 784)


def test_other_data_under_mnists_name_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "mnist.npz")
    wanted = r"mnist: x_train has digest .* expected 741c988805d0.*regtune data fetch mnist"
    with pytest.raises(DataError, match=wanted):
        load_arrays("mnist", tmp_path)


def test_a_configuration_made_with_other_data_is_refused(tmp_path: Path) -> None:
    name = save(tmp_path / "a.npz")
    digest = load_data(DataConfig(name=name)).digest
    assert load_data(DataConfig(name=name, digest=digest)).digest == digest
    with pytest.raises(DataError, match="the configuration was made with 000000000000"):
        load_data(DataConfig(name=name, digest="0" * 64))


def test_idx_files_are_read_as_npz_are(tmp_path: Path) -> None:
    read = load_arrays(idx_folder(), tmp_path)
    np.testing.assert_array_equal(read.x_train, arrays()["x_train"].reshape(-1, 784))
    assert read.digest == load_arrays(save(tmp_path / "same.npz")).digest


def test_what_is_missing_is_said_with_its_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regtune.data.datasets.KERAS_CACHE", tmp_path / "keras")
    wanted = r"mnist: not found \(.*mnist\.npz or .*\); try: regtune data fetch mnist"
    with pytest.raises(DataError, match=wanted):
        load_arrays("mnist", tmp_path)
