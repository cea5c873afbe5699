"""Files of images and labels, `.npz` and IDX: what they say of their arrays first, the values only when asked for.

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

NAMES = ("x_train", "y_train", "x_test", "y_test")
IDX_FILES: Mapping[str, str] = {
    "x_train": "train-images-idx3-ubyte.gz",
    "y_train": "train-labels-idx1-ubyte.gz",
    "x_test": "t10k-images-idx3-ubyte.gz",
    "y_test": "t10k-labels-idx1-ubyte.gz",
}
IDX_UINT8 = 0x08
MAX_REASON = 160


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
        """Values that are in memory already."""
        return cls(values.dtype, values.shape, lambda: values)

    @property
    def size_bytes(self) -> int:
        """How much memory the values take."""
        return math.prod(self.shape) * self.dtype.itemsize


NO_TEST_PART = {"x_test": Part.of(np.zeros((0, 784), np.uint8)), "y_test": Part.of(np.zeros(0, np.uint8))}


def npz_parts(path: Path) -> dict[str, Part]:
    """The arrays of a `.npz`. Raises DataError when one is missing, or damaged as far as its header shows."""
    what = f"{printable(str(path))}: expected a .npz with four numeric arrays"
    with _understood(what):
        if not path.is_file():
            raise ValueError("not a file")
        with zipfile.ZipFile(path) as archive:
            members = _members(path, archive.namelist())
            found = {name: _npz_part(path, what, archive, member) for name, member in members.items()}
    return found if "x_test" in found else found | NO_TEST_PART


def _members(path: Path, present: Sequence[str]) -> dict[str, str]:
    """Which member of the archive is which array: by its name, else by its name in other letters (`X_train`).

    A data set may lack its test part. Raises DataError for what else is missing.
    """
    found = {}
    for name in NAMES:
        alike = [member for member in present if member.lower() == f"{name}.npy"]
        if f"{name}.npy" in alike or len(alike) == 1:
            found[name] = f"{name}.npy" if f"{name}.npy" in alike else alike[0]
    missing = [name for name in NAMES if name not in found]
    if missing and missing != list(NO_TEST_PART):
        others = sorted(set(present) - set(found.values()))
        held = (
            f"; it has {', '.join(others[:6])}: save those under these names, with np.savez" if others else ""
        )
        raise DataError(
            f"{printable(str(path))}: expected the arrays {', '.join(NAMES)}; missing: {', '.join(missing)}"
            f"{printable(held)[:MAX_REASON]}"
        )
    return found


def _npz_part(path: Path, what: str, archive: zipfile.ZipFile, member: str) -> Part:
    with archive.open(member) as file:
        dtype, shape = _npy_header(file)
        found = Part(dtype, shape, lambda: _npz_values(path, what, member), _letters(member))
        if dtype.hasobject:
            name = member.removesuffix(".npy")
            raise ValueError(
                f"{member} has Python objects, which are not read; try: {name} = np.stack(list({name}))"
            )
        promised, present = file.tell() + found.size_bytes, archive.getinfo(member).file_size
        if promised != present:
            raise ValueError(f"{member} has {present} bytes, its header promises {promised}")
    return found


def _letters(member: str) -> str:
    return "" if member.removesuffix(".npy") in NAMES else "named in other letters"


def _npy_header(file: IO[bytes]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        version = np.lib.format.read_magic(file)
    except ValueError:
        raise ValueError(f"{file.name} is no .npy") from None
    if version not in readers:
        raise ValueError(f"{file.name} has version {version} of the format")
    try:
        shape, _, dtype = readers[version](file)
    except Exception:  # a header is a literal of Python, and fails in as many ways as those do
        raise ValueError(f"{file.name} has no header of an array") from None
    if any(length < 0 for length in shape):
        raise ValueError(f"{file.name} has the shape {shape}")
    return dtype, tuple(map(int, shape))


def _npz_values(path: Path, what: str, member: str) -> Array:
    with _understood(what), zipfile.ZipFile(path) as archive, archive.open(member) as file:
        values: Array = np.lib.format.read_array(file, allow_pickle=False)
        file.read(1)  # the end, where the checksum is compared
        return values


def idx_parts(folder: Path) -> dict[str, Part]:
    """The arrays of a folder of IDX files (LeCun, http://yann.lecun.com/exdb/mnist). Raises DataError."""
    return {name: _idx_part(folder / file) for name, file in IDX_FILES.items()}


def _idx_part(path: Path) -> Part:
    what = f"{printable(str(path))}: expected gzipped IDX of bytes"
    with _understood(what), gzip.open(path) as file:
        zero, kind, dimensions = struct.unpack(">HBB", _exactly(file, 4))
        if (zero, kind) != (0, IDX_UINT8):
            raise ValueError(f"it begins with {zero:04x}{kind:02x}{dimensions:02x}")
        shape = struct.unpack(f">{dimensions}I", _exactly(file, 4 * dimensions))
        return Part(np.dtype(np.uint8), shape, lambda: _idx_values(path, what, shape))


def _exactly(file: gzip.GzipFile, count: int) -> bytes:
    found = file.read(count)
    if len(found) != count:
        raise EOFError("it ends within its header")
    return found


def _idx_values(path: Path, what: str, shape: tuple[int, ...]) -> Array:
    size = math.prod(shape)
    with _understood(what), gzip.open(path) as file:
        file.read(4 + 4 * len(shape))
        raw = file.read(size + 1)
        if len(raw) != size:
            raise ValueError(f"{'more' if len(raw) > size else 'less'} than the {size} values it promises")
        return np.frombuffer(raw, np.uint8).reshape(shape)


@contextmanager
def _understood(what: str) -> Iterator[None]:
    """All that a damaged file makes its readers raise, as a DataError that begins with `what`."""
    try:
        yield
    except (
        *(OSError, ValueError, EOFError, MemoryError, zlib.error, lzma.LZMAError),
        *(
            zipfile.BadZipFile,
            RuntimeError,
            OverflowError,
        ),  # RuntimeError: encrypted, or packed in a way unknown here
    ) as error:
        reason = printable(str(getattr(error, "strerror", None) or error or type(error).__name__))
        raise DataError(f"{what} ({reason[:MAX_REASON]})") from None
