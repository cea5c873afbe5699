"""Data sets as people write them: read where they mean one thing only, else refused with the line that mends them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
from corpus import written
from corpus.datasets import arrays, saved

from regtune.config.trial import DataConfig
from regtune.data.datasets import load_arrays, load_data
from regtune.errors import DataError

PLAIN = arrays()
GREY, LABELS, COUNT = PLAIN["x_train"], PLAIN["y_train"], len(PLAIN["y_train"])
INK = (GREY > 200).astype(np.uint8) * 255
BEFORE = "2f53ea42103c6aa76dbc87a61e1d98ddef7dd77ea1dffc59c1bfc47cbf20edcc"
"""Digest of GREY and LABELS as every version has had it."""


def save(name: str = "data.npz", **changes: Any) -> str:
    return str(Path(written(name, saved(**changes))).absolute())


def test_the_digest_of_bytes_is_what_it_always_was() -> None:
    found = load_arrays(save())
    assert (found.digest, found.notes) == (BEFORE, ())
    embedded = "bc7a752f3c334405a3ca13e36b5c9ecbe1e6eb98fb6e4341a350e81038bbb51e"
    assert load_arrays("mnist-5k").digest == embedded


IMAGES = {
    "flat": (lambda x: x.reshape(-1, 784), ""),
    "in Fortran's order": (np.asfortranarray, ""),
    "a channel behind": (lambda x: x[..., None], "axes of one dropped"),
    "a channel before": (lambda x: x[:, None], "axes of one dropped"),
    "0 to 1 in 32 bits": (lambda x: (x / 255).astype(np.float32), "float32 from 0 to 1 read as grey levels"),
    "0 to 1 in 64 bits": (lambda x: x / 255, "float64 from 0 to 1 read as grey levels"),
    "0 to 1 in 16 bits": (lambda x: (x / 255).astype(np.float16), "float16 from 0 to 1 read as grey levels"),
    "0 to 1, once in 32 bits": (lambda x: (x / 255).astype(np.float32).astype(float), "float64 from 0 to 1"),
    "0 to 255 as real numbers": (lambda x: x.astype(np.float32), "float32 from 0 to 255 read as grey levels"),
    "0 to 255 in eight bytes": (lambda x: x.astype(np.int64), "int64 from 0 to 255 read as grey levels"),
    "big-endian": (lambda x: x.astype(">u2"), "uint16 from 0 to 255 read as grey levels"),
}
LABELLED = {
    "a column": (lambda y: y[:, None], "a column read as labels"),
    "whole real numbers": (lambda y: y.astype(np.float32), "float32 read as whole numbers"),
    "a column of real numbers": (lambda y: y[:, None] * 1.0, "float64 read as whole numbers"),
    "one-hot bytes": (lambda y: np.eye(10, dtype=np.uint8)[y], "one-hot rows read as labels"),
    "one-hot real numbers": (lambda y: np.eye(12)[y], "one-hot rows read as labels"),
    "one-hot truths": (lambda y: np.eye(10, dtype=bool)[y], "one-hot rows read as labels"),
}


@pytest.mark.parametrize("form", [*IMAGES, *LABELLED])
def test_the_same_content_has_one_digest_however_it_is_written(form: str) -> None:
    letter, (make, note) = ("x", IMAGES[form]) if form in IMAGES else ("y", LABELLED[form])
    plain = {"x": GREY, "y": LABELS}[letter]
    found = load_arrays(save(**{f"{letter}_train": make(plain), f"{letter}_test": make(plain[:20])}))
    assert found.digest == BEFORE
    assert (f"{letter}_train, {letter}_test: {note}" if note else "") in "\n".join(found.notes)
    assert bool(note) == bool(found.notes)
    assert "rounded" not in "".join(found.notes)


def test_true_is_white() -> None:
    plain = load_arrays(save("plain.npz", x_train=INK, x_test=INK[:20]))
    for form in (INK == 255, INK / 255.0):
        found = load_arrays(save("other.npz", x_train=form, x_test=form[:20]))
        assert found.digest == plain.digest


def test_names_in_capitals_are_read() -> None:
    found = load_arrays(save(x_train=None, y_train=None, X_train=GREY, Y_TRAIN=LABELS))
    assert found.digest == BEFORE
    assert [note.split(": ", 1)[1] for note in found.notes] == ["x_train, y_train: named in other letters"]
    both = load_arrays(save("both.npz", X_TRAIN=np.zeros(3)))
    assert (both.digest, both.notes) == (BEFORE, ())


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
    found = load_arrays(save(x_train=INK // 255, x_test=INK[:20] // 255))
    assert "x_train: the brightest pixel is 1 of 255; if 1 is white, save x_train / 1" in found.notes[0]
    white = load_arrays(save("white.npz", x_train=INK // 255 / 1, x_test=INK[:20] // 255 / 1))
    assert white.x_train.max() == 255


WORDS = np.array(["nil", *"abcdefghi"])
REFUSED = {
    "colours": {"x_train": np.stack([GREY] * 3, axis=-1)},
    "colours and opacity": {"x_train": np.stack([GREY] * 4, axis=-1)},
    "colours first": {"x_train": np.stack([GREY] * 3, axis=1)},
    "another size": {"x_train": np.pad(GREY, ((0, 0), (2, 2), (2, 2)))},
    "Python objects": {"x_train": np.array([*GREY, None], dtype=object)[:COUNT]},
    "around nothing": {"x_train": GREY / 127.5 - 1, "x_test": GREY[:20] / 127.5 - 1},
    "standardized": {"x_train": (GREY - 130.25) / 73.7, "x_test": (GREY[:20] - 130.25) / 73.7},
    "two bytes": {"x_train": GREY.astype(np.uint16) * 257, "x_test": GREY[:20].astype(np.uint16) * 257},
    "0 to 16": {"x_train": GREY / 16, "x_test": GREY[:20] / 16},
    "words": {"y_train": WORDS[LABELS], "y_test": WORDS[LABELS[:20]]},
    "large numbers": {"y_train": LABELS * 500.0 + 7, "y_test": LABELS[:20] * 500.0 + 7},
    "halves": {"y_train": LABELS / 2, "y_test": LABELS[:20] / 2},
    "shares": {"y_train": np.eye(10)[LABELS] * 0.9 + 0.01, "y_test": np.eye(10)[LABELS[:20]] * 0.9 + 0.01},
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_can_be_mended_as_the_message_says(what: str) -> None:
    values: dict[str, Any] = {**PLAIN, **REFUSED[what]}
    for time in range(3):  # what is said of the training part, then of the test part
        try:
            found = load_arrays(save(f"{time}.npz", **values))
            break
        except DataError as error:
            for_both, _, line = str(error).partition("; try")[2].partition(": ")
        for name in ("x_train", "x_test") if for_both else ("",):
            names = {"np": np, "scipy": scipy, "x": values.get(name), **values}
            exec(line.removesuffix(")") if "stack" in line else line, names)
            values = {key: names["x" if key == name else key] for key in values}
    assert found.x_train.shape == (COUNT, 784)
    assert len(np.unique(found.y_train)) == 10
