"""Data sets: read however they are written, where that means one thing only; checked; split."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from corpus import written
from corpus.datasets import arrays, saved
from parts import full_mnist
from sklearn.model_selection import train_test_split
from specs import spec_of

from regtune.config.trial import DataConfig, TrialConfig
from regtune.data.datasets import DIGESTS, Arrays, fetch, load_arrays, load_data, split_of
from regtune.errors import DataError, StorageError
from regtune.settings import load_settings
from regtune.study.best import Best
from regtune.sweep import run_sweep
from regtune.sweep.plan import make_plan
from regtune.sweep.retrain import retrain

GOOD = arrays()
GREY, LABELS = GOOD["x_train"], GOOD["y_train"]
INK = (GREY > 200).astype(np.uint8) * 255
BEFORE = "2f53ea42103c6aa76dbc87a61e1d98ddef7dd77ea1dffc59c1bfc47cbf20edcc"
"""Digest of GREY and LABELS as every version has had it."""


def save(name: str = "data.npz", **changes: Any) -> str:
    return str(Path(written(name, saved(**changes))).absolute())


def test_the_embedded_digits_are_split_as_scikit_learn_does() -> None:
    found = load_arrays("mnist-5k")
    assert found.digest == "bc7a752f3c334405a3ca13e36b5c9ecbe1e6eb98fb6e4341a350e81038bbb51e"
    assert np.bincount(found.y_test).tolist() == [100] * 10
    assert np.bincount(found.y_train).tolist() == [400] * 10
    data = load_data(DataConfig(name="mnist-5k", validation=0.2, split_seed=42))
    assert (data.x_train.dtype, data.y_train.dtype, data.notes) == (np.float32, np.int32, ())
    images = found.x_train / np.float32(255)
    parts = train_test_split(images, found.y_train, test_size=0.2, random_state=42)
    for ours, theirs in zip((data.x_train, data.x_val, data.y_train, data.y_val), parts, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_data_is_loaded_by_name_or_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save("fashion-mnist.npz")
    monkeypatch.setenv("REGTUNE_DATA_DIR", str(tmp_path))
    config = TrialConfig(data=DataConfig(name="fashion-mnist"))
    ways = (config, config.data, "fashion-mnist", tmp_path / "fashion-mnist.npz")
    found = [load_data(given) for given in ways]
    assert {data.digest for data in found} == {BEFORE}
    assert found[0].source == str(tmp_path / "fashion-mnist.npz")
    with pytest.raises(
        DataError, match='dataset "mnistt": expected mnist, mnist-5k, fashion-mnist or a path'
    ):
        load_data("mnistt")


def labelled(*labels: int) -> Arrays:
    y = np.array(labels, np.int32)
    x = np.zeros((len(y), 784), np.uint8)
    return Arrays("made", "made", x, y, x[:1], y[:1], "")


@pytest.mark.parametrize("count", [2, 7, 4000])
@pytest.mark.parametrize("validation", [0.0001, 0.2, 1 / 3, 0.9, 0.99975, 0.9998])
def test_a_split_is_scikit_learns_or_is_refused_as_there(count: int, validation: float) -> None:
    found = labelled(*(number % 2 for number in range(count)))
    config = DataConfig(name="made", validation=validation, split_seed=7)
    try:
        train, val = train_test_split(np.arange(count), test_size=validation, random_state=7)
    except ValueError:
        with pytest.raises(DataError, match=f"leaves none of {count:,} images to train on"):
            split_of(found, config)
        return
    parts = split_of(found, config)
    np.testing.assert_array_equal(parts.train, train)
    np.testing.assert_array_equal(parts.validation, val)


def test_a_class_that_one_part_of_the_split_lacks_is_said() -> None:
    notes = split_of(labelled(*[0] * 6, *[1] * 6, 7), DataConfig(name="made", validation=0.25)).notes
    lacks = "made: no image of class 7 is in the validation part; try another split.validation or split.seed"
    assert notes == (lacks,)
    notes = split_of(labelled(0, 0, 0, 0, 1, 2, 2), DataConfig(name="made", validation=0.8)).notes
    assert notes[0].startswith("made: no image of 2 of the 3 classes is in the training part")


def test_plan_sweep_and_train_say_how_the_data_was_read_and_what_the_split_lacks(tmp_path: Path) -> None:
    labels = np.array([*[0] * 20, *[1] * 19, 2])
    name = save(y_train=labels[:, None], y_test=labels[:20])
    spec = spec_of({"dropout": {"values": [0, 0.1]}}, dataset=name, run_cap=1)
    expected = load_data(DataConfig(name=name)).notes
    assert expected[0].endswith("y_train: int64 (40, 1) read as labels")
    assert "no image of class 2 is in the validation part" in expected[1]
    assert make_plan(spec, load_settings()).data_notes == expected
    (tmp_path / "file").write_text("")  # so that both end before anything is trained
    told, settings = list[str](), load_settings(home=tmp_path / "file")
    with pytest.raises(StorageError):
        run_sweep(spec, settings=settings, observer=SimpleNamespace(note=told.append))
    with pytest.raises(StorageError):
        retrain(Best(TrialConfig(data=DataConfig(name=name)), None), settings, on_note=told.append)
    assert tuple(told) == (*expected, *expected)


# -- where they lie


@pytest.mark.full_mnist
def test_the_full_mnist_is_known_by_its_arrays() -> None:
    assert load_arrays("mnist", full_mnist()).digest == DIGESTS["mnist"]
    assert load_data(DataConfig(name="mnist"), full_mnist()).x_train.shape == (48_000, 784)


def test_a_configuration_made_with_other_data_is_refused() -> None:
    name = save()
    assert load_data(DataConfig(name=name, digest=BEFORE)).digest == BEFORE
    with pytest.raises(DataError, match="the configuration was made with 000000000000"):
        load_data(DataConfig(name=name, digest="0" * 64))


def test_what_is_missing_is_said_with_its_places_and_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regtune.data.datasets.KERAS_CACHE", tmp_path)
    for name in ("KERAS_HOME", "KERAS_BACKEND"):
        monkeypatch.setenv(name, "as before")
    wanted = r"fashion-mnist: not found \(.*mnist\.npz or .*\); try: regtune data fetch fashion-mnist"
    with pytest.raises(DataError, match=wanted):
        load_arrays("fashion-mnist", tmp_path)
    module = SimpleNamespace(load_data=lambda: ((GREY, LABELS), (GREY[:20], LABELS[:20])))
    datasets = SimpleNamespace(mnist=None, fashion_mnist=module)
    monkeypatch.setitem(sys.modules, "keras", SimpleNamespace(datasets=datasets))
    assert fetch("fashion-mnist") == tmp_path / "fashion-mnist.npz"
    assert load_arrays("fashion-mnist").digest == BEFORE
    assert [path.name for path in tmp_path.iterdir()] == ["fashion-mnist.npz"]
    folder = tmp_path / "volume"
    with pytest.raises(DataError, match=rf"{folder}/fashion-mnist\.npz: cannot be written \(No such file"):
        fetch("fashion-mnist", folder)
    folder.mkdir()
    assert fetch("fashion-mnist", folder) == folder / "fashion-mnist.npz"
    assert [path.name for path in folder.iterdir()] == ["fashion-mnist.npz"]


# -- how they are written

IMAGES = {
    "as they are": (lambda x: x, ""),
    "flat": (lambda x: x.reshape(-1, 784), ""),
    "in Fortran's order": (np.asfortranarray, ""),
    "a channel before": (lambda x: x[:, None], ""),
    "0 to 1 in 32 bits": (lambda x: (x / 255).astype(np.float32), "float32 from 0 to 1 read as grey levels"),
    "0 to 1 in 64 bits": (lambda x: x / 255, "float64 from 0 to 1 read as grey levels"),
    "0 to 1 in 16 bits": (lambda x: (x / 255).astype(np.float16), "float16 from 0 to 1 read as grey levels"),
    "0 to 1, once in 32 bits": (lambda x: (x / 255).astype(np.float32).astype(float), "float64 from 0 to 1"),
    "0 to 255 as real numbers": (lambda x: x.astype(np.float32), "float32 from 0 to 255 read as grey levels"),
    "big-endian": (lambda x: x.astype(">u2"), "uint16 from 0 to 255 read as grey levels"),
}
LABELLED = {
    "a column": (lambda y: y[:, None], "uint8 (40, 1) read as labels"),
    "real numbers": (lambda y: y.astype(np.float32), "float32 (40,) read as labels"),
    "one-hot real numbers": (lambda y: np.eye(12)[y], "float64 (40, 12) read as labels"),
    "one-hot truths": (lambda y: np.eye(10, dtype=bool)[y], "bool (40, 10) read as labels"),
}


@pytest.mark.parametrize("form", [*IMAGES, *LABELLED])
def test_the_same_content_has_one_digest_however_it_is_written(form: str) -> None:
    letter, (make, note) = ("x", IMAGES[form]) if form in IMAGES else ("y", LABELLED[form])
    plain = {"x": GREY, "y": LABELS}[letter]
    found = load_arrays(save(**{f"{letter}_train": make(plain), f"{letter}_test": make(plain[:20])}))
    assert found.digest == BEFORE
    assert (f"{letter}_train: {note}" if note else "") in "\n".join(found.notes)
    assert bool(note) == bool(found.notes)
    assert "rounded" not in "".join(found.notes)


def test_true_is_white() -> None:
    plain = load_arrays(save("plain.npz", x_train=INK, x_test=INK[:20]))
    for form in (INK == 255, INK / 255.0):
        found = load_arrays(save("other.npz", x_train=form, x_test=form[:20]))
        assert found.digest == plain.digest


def test_names_in_capitals_are_read() -> None:
    assert load_arrays(save(x_train=None, y_train=None, X_train=GREY, Y_TRAIN=LABELS)).digest == BEFORE
    assert load_arrays(save("both.npz", X_TRAIN=np.zeros(3))).digest == BEFORE


def test_a_data_set_may_lack_its_test_part() -> None:
    found = load_arrays(save(x_test=None, y_test=None))
    assert "x_test, y_test: none, so there is no test part" in found.notes[0]
    assert load_data(DataConfig(name=found.source)).x_train.shape == (32, 784)
    empty = load_arrays(save("empty.npz", x_test=GREY[:0] / 255, y_test=LABELS[:0]))
    assert empty.digest == found.digest


def test_what_lies_between_grey_levels_is_rounded_and_said() -> None:
    between = np.linspace(0, 1, GREY.size).reshape(GREY.shape)
    found = load_arrays(save(x_train=between))
    assert "read as grey levels, rounded to whole ones" in found.notes[0]
    np.testing.assert_array_equal(found.x_train.ravel(), np.rint(between.ravel() * 255))


def test_images_that_are_nearly_black_are_said_to_be() -> None:
    found = load_arrays(save(x_train=INK // 255))
    assert "x_train: the brightest pixel is 1 of 255; if that is white" in found.notes[0]
