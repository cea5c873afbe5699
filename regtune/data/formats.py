"""Readers of `.npz` and IDX files: first the type and shape of each array, the values only when asked for.

A file of a few kilobytes may unpack to gigabytes, and a header may promise what does not follow; so headers are read
alone, and values only as far as a header goes. Nothing is unpickled.
"""

from __future__ import annotations

import gzip
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from regtune.errors import DataError
from regtune.escaping import printable

Array = npt.NDArray[np.generic]

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
IDX_FILES: Mapping[str, str] = {
    "x_train": "train-images-idx3-ubyte.gz",
    "y_train": "train-labels-idx1-ubyte.gz",
    "x_test": "t10k-images-idx3-ubyte.gz",
    "y_test": "t10k-labels-idx1-ubyte.gz",
}
IDX_BYTES = b"\0\0\x08"
HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
MAX_REASON = 160
DAMAGE = (
    *(OSError, ValueError, EOFError, MemoryError, OverflowError, struct.error, zlib.error, lzma.LZMAError),
    *(zipfile.BadZipFile, RuntimeError),  # RuntimeError: encrypted, or packed in a way unknown here
)
"""What the readers of a damaged file raise."""


@dataclass(frozen=True)
class Part:
    """One of the four arrays of a data set. `read()` gives its values; it raises DataError when they are not there.

    note: what is unusual about its name.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    read: Callable[[], Array]
    note: str = ""

    @classmethod
    def of(cls, values: Array) -> Part:
        return cls(values.dtype, values.shape, lambda: values)

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


NO_TEST_PART = {"x_test": Part.of(np.zeros((0, 784), np.uint8)), "y_test": Part.of(np.zeros(0, np.uint8))}


def npz_parts(path: Path) -> dict[str, Part]:
    """The arrays of a `.npz`. Raises DataError when one is missing, or damaged as far as its header shows."""
    what = f"{printable(str(path))}: expected a .npz with four numeric arrays"
    with _as_data_error(what):
        if not path.is_file():
            raise ValueError("not a file")
        with zipfile.ZipFile(path) as archive:
            members = _members(path, archive.namelist())
            parts = {name: _npz_part(path, what, archive, member) for name, member in members.items()}
    return parts if "x_test" in parts else parts | NO_TEST_PART


def _members(path: Path, present: Sequence[str]) -> dict[str, str]:
    """Which member of the archive is which array: by its name, else by its name in other letters (`X_train`).

    A data set may lack its test part. Raises DataError for what else is missing.
    """
    members = {}
    for name in ARRAYS:
        alike = [member for member in present if member.lower() == f"{name}.npy"]
        exact = [member for member in alike if member == f"{name}.npy"]
        if exact or len(alike) == 1:
            members[name] = (exact or alike)[0]
    missing = [name for name in ARRAYS if name not in members]
    if missing and missing != list(NO_TEST_PART):
        others = ", ".join(sorted(set(present) - set(members.values()))[:6])
        held = f"; it has {others}: save those under these names, with np.savez" if others else ""
        raise DataError(
            f"{printable(str(path))}: expected the arrays {', '.join(ARRAYS)}; missing: {', '.join(missing)}"
            f"{printable(held)[:MAX_REASON]}"
        )
    return members


def _npz_part(path: Path, what: str, archive: zipfile.ZipFile, member: str) -> Part:
    name = member.removesuffix(".npy")
    with archive.open(member) as file:
        dtype, shape = _npy_header(file)
        note = "" if name in ARRAYS else "named in other letters"
        part = Part(dtype, shape, lambda: _npz_values(path, what, member), note)
        if dtype.hasobject:
            remedy = f"{name} = np.stack(list({name}))"
            raise ValueError(f"{member} has Python objects, which are not read; try: {remedy}")
        promised, size = file.tell() + part.size_bytes, archive.getinfo(member).file_size
        if promised != size:
            raise ValueError(f"{member} has {size} bytes, its header promises {promised}")
    return part


def _npy_header(file: IO[bytes]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    try:
        version = np.lib.format.read_magic(file)
    except ValueError:
        raise ValueError(f"{file.name} is no .npy") from None
    if version not in HEADER_READERS:
        raise ValueError(f"{file.name} has version {version} of the format")
    try:
        shape, _, dtype = HEADER_READERS[version](file)
    except Exception:  # a header is a literal of Python, and fails in as many ways as those do
        raise ValueError(f"{file.name} has no header of an array") from None
    if any(length < 0 for length in shape):
        raise ValueError(f"{file.name} has the shape {shape}")
    return dtype, tuple(map(int, shape))


def _npz_values(path: Path, what: str, member: str) -> Array:
    with _as_data_error(what), zipfile.ZipFile(path) as archive, archive.open(member) as file:
        values: Array = np.lib.format.read_array(file, allow_pickle=False)
        file.read(1)  # the end, where the checksum is compared
        return values


def idx_parts(folder: Path) -> dict[str, Part]:
    """The arrays of a folder of IDX files (LeCun, http://yann.lecun.com/exdb/mnist). Raises DataError."""
    return {name: _idx_part(folder / file) for name, file in IDX_FILES.items()}


def _idx_part(path: Path) -> Part:
    what = f"{printable(str(path))}: expected gzipped IDX of bytes"
    with _as_data_error(what), gzip.open(path) as file:
        start = file.read(4)
        if start[:3] != IDX_BYTES or len(start) < 4:
            raise ValueError(f"it begins with {start.hex() or 'nothing'}")
        shape = struct.unpack(f">{start[3]}I", file.read(4 * start[3]))
        return Part(np.dtype(np.uint8), shape, lambda: _idx_values(path, what, shape))


def _idx_values(path: Path, what: str, shape: tuple[int, ...]) -> Array:
    size = math.prod(shape)
    with _as_data_error(what), gzip.open(path) as file:
        file.read(4 + 4 * len(shape))
        raw = file.read(size + 1)
        if len(raw) != size:
            raise ValueError(f"{'more' if len(raw) > size else 'less'} than the {size} values it promises")
        return np.frombuffer(raw, np.uint8).reshape(shape)


@contextmanager
def _as_data_error(what: str) -> Iterator[None]:
    """Raise what a damaged file makes its readers raise as a DataError that begins with `what`."""
    try:
        yield
    except DAMAGE as error:
        reason = printable(str(getattr(error, "strerror", None) or error or type(error).__name__))
        raise DataError(f"{what} ({reason[:MAX_REASON]})") from None
