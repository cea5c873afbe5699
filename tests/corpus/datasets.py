"""Malformed data sets: `.npz` files, IDX folders and damaged copies under a known name. The images are noise."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from corpus import CANARY, Malformed, written

Values = Mapping[str, npt.NDArray[Any]]
NAME = "data.npz"


def arrays(count: int = 40) -> dict[str, npt.NDArray[Any]]:
    """A good data set: images of noise, and labels 0 to 9."""
    images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = (np.arange(count) % 10).astype(np.uint8)
    return {"x_train": images, "y_train": labels, "x_test": images[:20], "y_test": labels[:20]}


def saved(**changes: Any) -> bytes:
    """The bytes of a `.npz`; an array that is None is left out."""
    found = {name: values for name, values in {**arrays(), **changes}.items() if values is not None}
    file = io.BytesIO()
    np.savez(file, **found)
    return file.getvalue()


def zipped(compression: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    """A zip in which some members of a good file are these bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, values in arrays().items():
            archive.writestr(f"{name}.npy", members.get(name, npy(values)))
    return file.getvalue()


def npy(values: npt.NDArray[Any], **options: Any) -> bytes:
    """The bytes of an array as `.npy`."""
    file = io.BytesIO()
    np.lib.format.write_array(file, values, **options)
    return file.getvalue()


def headed(header: str, values: bytes = b"", version: bytes = b"\1\0") -> bytes:
    """A `.npy` with a header of one's own."""
    text = f"{header:<{117}}\n".encode("latin-1")
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + values


def described(dtype: str = "'|u1'", shape: str = "(40, 28, 28)", order: str = "False") -> str:
    """The text of a header."""
    return f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, }}"


class Bomb:
    """What is unpickled to a call."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(CANARY),)


def _bombs(count: int) -> npt.NDArray[Any]:
    found = np.empty(count, dtype=object)
    found[:] = [Bomb() for _ in range(count)]
    return found


def _changed(content: bytes, at: int, by: bytes) -> bytes:
    at %= len(content)
    return content[:at] + by + content[at + len(by) :]


def _flagged(local: int, central: int, value: int) -> bytes:
    """A good file with a byte set in both headers of each member: at `local` of the first, `central` of the second."""
    content = bytearray(saved())
    for mark, offset in ((b"PK\3\4", local), (b"PK\1\2", central)):
        at = content.find(mark)
        while at >= 0:
            content[at + offset] = value
            at = content.find(mark, at + 4)
    return bytes(content)


def _unpacks_to(size: int) -> bytes:
    """A few kilobytes whose first array unpacks to `size` zeros behind a header of forty images."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, values in arrays().items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                member.write(npy(values))
                if name == "x_train":
                    for _ in range(size // 2**20):
                        member.write(bytes(2**20))
    return file.getvalue()


def _promises(images: int) -> bytes:
    """Headers of `images` images with their labels, all zeros, so that it unpacks to what it says."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, shape in (("x_train", f"({images}, 28, 28)"), ("y_train", f"({images},)")):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                member.write(headed(described(shape=shape)))
                left = images * (784 if name == "x_train" else 1)
                while left:
                    left -= (now := min(left, 2**24)) and member.write(bytes(now))
        for name in ("x_test", "y_test"):
            archive.writestr(f"{name}.npy", npy(arrays()[name]))
    return file.getvalue()


def _renamed(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for old, values in arrays().items():
            archive.writestr(f"{name}{old}.npy", npy(values))
    return file.getvalue()


IMAGES = {
    "images of another width": (np.zeros((40, 28, 27), np.uint8), "x_train: expected numbers of shape"),
    "images with a colour each": (np.zeros((40, 28, 28, 3), np.uint8), "(40, 28, 28, 3)"),
    "images in one row": (np.zeros(40 * 784, np.uint8), "(31360,)"),
    "one number": (np.array(7, np.uint8), "found uint8 ()"),
    "no images": (np.zeros((0, 28, 28), np.uint8), "(0, 28, 28)"),
    "images of no pixels": (np.zeros((40, 0, 0), np.uint8), "(40, 0, 0)"),
    "images around nothing": (np.linspace(-1, 1, 40 * 784).reshape(40, 28, 28), "found -1 to 1"),
    "images of half the levels": (np.linspace(0, 99.9, 40 * 784).reshape(40, 28, 28), "found 0 to 99.9"),
    "images of two bytes a pixel": (np.full((40, 28, 28), 65535, np.uint16), "found 6.554e+04 to"),
    "images without an end": (np.full((40, 28, 28), np.inf), "found inf to inf"),
    "images of complex numbers": (np.zeros((40, 28, 28), complex), "found complex128"),
    "images of days": (np.zeros((40, 28, 28), "M8[D]"), "x_train: expected numbers"),
    "images fewer than labels": (np.zeros((39, 28, 28), np.uint8), "expected 39 labels"),
}
LABELS = {
    "labels below nothing": (np.full(40, -1), "labels from 0 to 999, found -1 to -1"),
    "labels of a thousand": (np.full(40, 1000), "labels from 0 to 999"),
    "labels that are broken": (np.arange(40) / 4, "expected whole numbers, found 0.25"),
    "labels that are no numbers": (np.full(40, np.nan), "found nan to nan"),
    "labels of words": (np.full(40, "seven"), "expected whole numbers, found <U5"),
    "labels of shares": (np.full((40, 10), 0.1), "or rows with a single 1, found float64 (40, 10)"),
    "labels of two classes each": (np.ones((40, 10), np.uint8), "or rows with a single 1"),
    "no labels": (np.zeros(0, np.uint8), "found uint8 (0,)"),
    "labels of one class": (np.zeros(40, np.uint8), "at least two classes"),
}
HEADERS = {
    "a header that is no Python": (headed("{'descr': "), "no header"),
    "a header that calls a function": (headed(f"__import__('os').system('touch {CANARY}')"), "no header"),
    "a header in ten thousand brackets": (headed("(" * 10_000), "no header"),
    "a header without a shape": (headed("{'descr': '|u1', 'fortran_order': False}"), "no header"),
    "a header with keys of two sorts": (headed("{1: 1, 'descr': 2}"), "no header"),
    "a shape of broken numbers": (headed(described(shape="(40.0, 28, 28)")), "no header"),
    "a shape below nothing": (headed(described(shape="(-1, 28, 28)")), "shape (-1, 28, 28)"),
    "a shape of forty digits": (headed(described(shape=f"({'9' * 40}, 28, 28)")), "its header promises"),
    "a type of a gigabyte each": (headed(described("'|V1000000000'")), "its header promises"),
    "a type of Python objects": (headed(described("'|O'")), "Python objects"),
    "a version of the future": (headed(described(), version=b"\x09\0"), "version"),
    "more images promised than follow": (headed(described(), bytes(784)), "its header promises"),
    "fewer images promised than follow": (
        headed(described(shape="(1, 28, 28)"), bytes(784 * 40)),
        "its header promises",
    ),
    "no magic number": (b"\0" * 200, "no .npy"),
    "a pickle": (pickle.dumps(Bomb()), "no .npy"),
}
CONTENTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "four numeric arrays"),
    "a pickle under the name of a .npz": (lambda: pickle.dumps(Bomb()), "four numeric arrays"),
    "a .npy under the name of a .npz": (lambda: npy(arrays()["x_train"]), "four numeric arrays"),
    "a gzip under the name of a .npz": (lambda: gzip.compress(saved()), "four numeric arrays"),
    "the mark of a zip and no more": (lambda: b"PK\3\4", "four numeric arrays"),
    "half a file": (lambda: saved()[: len(saved()) // 2], "four numeric arrays"),
    "an empty zip": (lambda: b"PK\5\6" + bytes(18), "missing: x_train"),
    "an image whose bytes have changed": (lambda: _changed(saved(), 5000, b"\xaa\xbb\xcc"), "CRC"),
    "an encrypted file": (lambda: _flagged(6, 8, 1), "encrypted"),
    "a file packed in an unknown way": (lambda: _flagged(8, 10, 99), "compression"),
    "pickled images": (lambda: saved(x_train=_bombs(40)), "Python objects"),
    "names with a path above the folder": (lambda: _renamed("../../"), "missing: x_train"),
    "no images to train": (lambda: saved(x_train=None), "missing: x_train"),
    "no labels to test": (lambda: saved(y_test=None), "missing: y_test"),
    "a label to test that none was trained on": (
        lambda: saved(y_test=np.full(20, 99)),
        "which y_train has not",
    ),
    "a label to test between those that were trained on": (
        lambda: saved(y_train=np.arange(40) % 10 * 2, y_test=np.arange(20) % 10),
        "y_test has label 1, which y_train has not",
    ),
    "a test part without images": (
        lambda: saved(x_test=np.zeros((0, 28, 28), np.uint8)),
        "x_test: expected numbers",
    ),
    "images in capitals and otherwise": (
        lambda: saved(x_train=None, X_train=np.zeros(3), X_TRAIN=np.ones(3)),
        "missing: x_train; it has X_TRAIN.npy, X_train.npy",
    ),
    "640 MB in one, behind a header of forty images": (
        lambda: _unpacks_to(640 * 2**20),
        "its header promises",
    ),
    "half a gigabyte of black images of one class": (lambda: _promises(700_000), "at least two classes"),
    "ten megabytes of zeros": (lambda: bytes(10_000_000), "four numeric arrays"),
}


def idx_folder(**changes: bytes) -> str:
    """A folder of IDX files in which some are these bytes; the name of the data set in it."""
    folder = Path("fashion-mnist")
    folder.mkdir()
    names = {
        "x_train": "train-images-idx3-ubyte.gz",
        "y_train": "train-labels-idx1-ubyte.gz",
        "x_test": "t10k-images-idx3-ubyte.gz",
        "y_test": "t10k-labels-idx1-ubyte.gz",
    }
    for key, values in arrays().items():
        (folder / names[key]).write_bytes(changes.get(key, gzip.compress(idx(values))))
    return "fashion-mnist"


def idx(values: npt.NDArray[Any], kind: int = 8) -> bytes:
    """The bytes of an array as IDX."""
    return struct.pack(f">HBB{values.ndim}I", 0, kind, values.ndim, *values.shape) + values.tobytes()


def _bomb_of_zeros(head: bytes, size: int) -> bytes:
    return gzip.compress(head) + gzip.compress(bytes(2**20)) * (size // 2**20)


IMAGES_IDX = idx(arrays()["x_train"])
IDX: dict[str, Callable[[], dict[str, bytes]]] = {
    "IDX that is not gzipped": lambda: {"x_train": IMAGES_IDX},
    "IDX of nothing": lambda: {"x_train": gzip.compress(b"")},
    "IDX of half its values": lambda: {"x_train": gzip.compress(IMAGES_IDX[:9000])},
    "IDX of more values than promised": lambda: {"x_train": gzip.compress(IMAGES_IDX + b"x")},
    "IDX of broken numbers": lambda: {"x_train": gzip.compress(idx(arrays()["x_train"], kind=0x0D))},
    "IDX of 255 dimensions": lambda: {"x_train": gzip.compress(b"\0\0\x08\xff" + b"\0\0\0\1" * 255)},
    "IDX whose gzip is cut": lambda: {"x_train": gzip.compress(IMAGES_IDX)[:-500]},
    "IDX with 640 MB behind its values": lambda: {"x_train": _bomb_of_zeros(IMAGES_IDX, 640 * 2**20)},
    "IDX of four billion images": lambda: {
        "x_train": gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 28, 28)),
        "y_train": gzip.compress(struct.pack(">HBBI", 0, 8, 1, 2**32 - 1)),
    },
}


def _link(target: str) -> str:
    Path(NAME).symlink_to(target)
    return NAME


def _folder() -> str:
    Path(NAME).mkdir()
    return NAME


def _pipe() -> str:
    os.mkfifo(NAME)
    return NAME


def _known() -> str:
    written("mnist.npz", saved())
    return "mnist"


FILES = [
    Malformed("a data set that is not there", lambda: "absent.npz", "absent.npz: not found"),
    Malformed("a folder under the name of a .npz", _folder, "not a file"),
    Malformed("a pipe under the name of a .npz", _pipe, "not a file"),
    Malformed("a link to endless zeros", lambda: _link("/dev/zero"), "not a file"),
    Malformed("a link to the passwords", lambda: _link("/etc/passwd"), "four numeric arrays"),
    Malformed("a data set whose name has 300 letters", lambda: f"{'d' * 300}.npz", "cannot be looked for"),
    Malformed("other data under the name of MNIST", _known, "has digest"),
]


def _all() -> Iterator[Malformed]:
    def npz(what: str, content: Callable[[], bytes], said: str) -> Malformed:
        return Malformed(what, lambda: written(NAME, content()), said)

    for key, found in (("x_train", IMAGES), ("y_train", LABELS)):
        for what, (values, said) in found.items():
            yield npz(what, lambda key=key, values=values: saved(**{key: values}), said)  # type: ignore[misc]
    for what, (header, said) in HEADERS.items():
        yield npz(f"images with {what}", lambda header=header: zipped(x_train=header), said)  # type: ignore[misc]
    for what, (content, said) in CONTENTS.items():
        yield npz(what, content, said)
    for what, changes in IDX.items():
        yield Malformed(what, lambda changes=changes: idx_folder(**changes()), "fashion-mnist")  # type: ignore[misc]
    yield from FILES


DATASETS = list(_all())
