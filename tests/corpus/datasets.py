"""Malformed data sets: `.npz` files, and what lies under such a name. The images are noise."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from corpus import CANARY, Malformed, written

NAME = "data.npz"


def arrays(count: int = 40) -> dict[str, npt.NDArray[Any]]:
    """A good data set: images of noise, and labels 0 to 9."""
    images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = (np.arange(count) % 10).astype(np.uint8)
    return {"x_train": images, "y_train": labels, "x_test": images[:20], "y_test": labels[:20]}


def saved(save: Callable[..., None] = np.savez, **changes: Any) -> bytes:
    """The bytes of a `.npz`; an array that is None is left out."""
    file = io.BytesIO()
    save(file, **{name: values for name, values in (arrays() | changes).items() if values is not None})
    return file.getvalue()


def zipped(**members: bytes) -> bytes:
    """A zip in which some members of a good file are these bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, values in arrays().items():
            archive.writestr(f"{name}.npy", members.get(name, npy(values)))
    return file.getvalue()


def npy(values: npt.NDArray[Any]) -> bytes:
    """The bytes of an array as `.npy`."""
    file = io.BytesIO()
    np.lib.format.write_array(file, values)
    return file.getvalue()


def headed(header: str, values: bytes = b"") -> bytes:
    """A `.npy` with a header of one's own."""
    text = f"{header:<{117}}\n".encode("latin-1")
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + values


def described(dtype: str = "'|u1'", shape: str = "(40, 28, 28)") -> str:
    """The text of a header."""
    return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}"


class Bomb:
    """What is unpickled to a call."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(CANARY),)


IMAGES = {
    "images of another width": (np.zeros((40, 28, 27), np.uint8), "x_train: expected numbers of shape"),
    "one number": (np.array(7, np.uint8), "found uint8 ()"),
    "no images": (np.zeros((0, 28, 28), np.uint8), "expected as many labels as images, found 40 and 0"),
    "images around nothing": (np.linspace(-1, 1, 40 * 784).reshape(40, 28, 28), "found -1 to 1"),
    "images of half the levels": (np.linspace(0, 99.9, 40 * 784).reshape(40, 28, 28), "found 0 to 99.9"),
    "images of two bytes a pixel": (np.full((40, 28, 28), 65535, np.uint16), "found 0 to 6.554e+04"),
    "images without an end": (np.full((40, 28, 28), np.inf), "found 0 to inf"),
    "images that are no numbers": (np.full((40, 28, 28), np.nan), "found nan to nan"),
    "images of complex numbers": (np.zeros((40, 28, 28), complex), "found complex128"),
    "images fewer than labels": (np.zeros((39, 28, 28), np.uint8), "found 40 and 39"),
}
LABELS = {
    "labels below nothing": (np.full(40, -1), "whole numbers from 0 to 999, found -1"),
    "labels that are broken": (np.arange(40) / 4, "found 0.25"),
    "labels that are no numbers": (np.full(40, np.nan), "found nan"),
    "labels of words": (np.full(40, "seven"), "expected labels from 0 to 999, found <U5"),
    "labels of shares": (np.full((40, 10), 0.1), "or rows with a single 1, found float64 (40, 10)"),
    "labels of two classes each": (np.ones((40, 10), np.uint8), "or rows with a single 1"),
    "one label": (np.array(7), "found int64 ()"),
    "no labels": (np.zeros(0, np.uint8), "at least two classes, found 0"),
    "labels of one class": (np.zeros(40, np.uint8), "at least two classes, found 1"),
}
MEMBERS = {
    "a header that calls a function": headed(f"__import__('os').system('touch {CANARY}')"),
    "a header in ten thousand brackets": headed("(" * 10_000),
    "a shape of forty digits": headed(described(shape=f"({'9' * 40}, 28, 28)")),
    "a type of a gigabyte each": headed(described("'|V1000000000'")),
    "a type of Python objects": headed(described("'|O'")),
    "more images promised than follow": headed(described(), bytes(784)),
    "a megabyte behind a header of forty images": npy(arrays()["x_train"]) + bytes(2**20),
}
CONTENTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "numeric arrays"),
    "a pickle under the name of a .npz": (lambda: pickle.dumps(Bomb()), "numeric arrays"),
    "half a file": (lambda: saved()[: len(saved()) // 2], "numeric arrays"),
    "an empty zip": (lambda: b"PK\5\6" + bytes(18), "missing: y_train"),
    "an image whose bytes have changed": (lambda: saved()[:5000] + b"\0\1\2" + saved()[5003:], "CRC"),
    "pickled images": (lambda: saved(x_train=np.array([Bomb(), None])), "x_train is not a whole array"),
    "no images to train": (lambda: saved(x_train=None), "missing: x_train"),
    "no labels to test": (lambda: saved(y_test=None), "found 0 and 20"),
    "a label to test that none was trained on": (
        lambda: saved(y_train=np.arange(40) % 10 * 2, y_test=np.arange(20) % 10),
        "y_test has label 1, which y_train has not",
    ),
    "half a gigabyte of black images of one class": (
        lambda: saved(
            np.savez_compressed,
            x_train=np.zeros((700_000, 28, 28), np.uint8),
            y_train=np.zeros(700_000, np.uint8),
        ),
        "at least two classes",
    ),
}


def _at(make: Callable[[Path], object]) -> Callable[[], str]:
    def made() -> str:
        make(Path(NAME))
        return NAME

    return made


FILES = [
    Malformed("a data set that is not there", lambda: "absent.npz", "absent.npz: not found"),
    Malformed("a folder under the name of a .npz", _at(Path.mkdir), "not a file"),
    Malformed("a pipe under the name of a .npz", _at(os.mkfifo), "not a file"),
    Malformed("a link to endless zeros", _at(lambda path: path.symlink_to("/dev/zero")), "not a file"),
    Malformed("a data set whose name has 300 letters", lambda: f"{'d' * 300}.npz", "cannot be looked for"),
    Malformed(
        "other data under the name of MNIST",
        lambda: written("mnist.npz", saved()).removesuffix(".npz"),
        "has digest",
    ),
]


def _all() -> Iterator[Malformed]:
    def npz(what: str, content: Callable[[], bytes], said: str) -> Malformed:
        return Malformed(what, lambda: written(NAME, content()), said)

    for key, found in (("x_train", IMAGES), ("y_train", LABELS)):
        for what, (values, said) in found.items():
            yield npz(what, lambda key=key, values=values: saved(**{key: values}), said)  # type: ignore[misc]
    for what, member in MEMBERS.items():
        yield npz(f"images: {what}", lambda member=member: zipped(x_train=member), "numeric arrays")  # type: ignore[misc]
    for what, (content, said) in CONTENTS.items():
        yield npz(what, content, said)
    yield from FILES


DATASETS = list(_all())
