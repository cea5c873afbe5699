"""The arrays of a data set: read from a `.npz`, images as `(n, 784) uint8`, labels as `(n,) int32` from 0.

What can only mean one thing is converted, and said in a note; what is ambiguous is refused. So the same content has one
digest, however it was written. Nothing is unpickled, and no array may unpack to more than 4 GiB.
"""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from regtune.errors import DataError
from regtune.escaping import printable

Array = npt.NDArray[Any]
Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int32]

FEATURES = 784
MAX_GIB = 4
MAX_LABEL = 999
MAX_REASON = 160
NUMBERS = "uifb"
WHITE = 255
DARK = WHITE / 2
"""Images none of whose pixels is brighter are probably scaled otherwise: to 0 and 1, or to 0 to 16."""
ROWS = 4096
"""Images converted at once, which bounds the memory that takes."""


def read_npz(path: Path, name: str) -> Array | None:
    """Read one array of a `.npz`; None where there is none of this name, in small letters or others (`X_train`)."""
    try:
        if not path.is_file():
            raise ValueError("not a file")
        with zipfile.ZipFile(path) as archive:
            alike = [member for member in archive.infolist() if member.filename.lower() == f"{name}.npy"]
            if not alike:
                return None
            member = max(alike, key=lambda each: each.filename)  # small letters, where there are both
            if member.file_size > MAX_GIB * 2**30:
                raise ValueError(f"{name} unpacks to more than {MAX_GIB} GiB")
            with archive.open(member) as file:
                try:
                    values: Array = np.lib.format.read_array(file, allow_pickle=False)
                except ValueError:  # in words about Python's syntax tree, or about pickle
                    raise ValueError(f"{name} is not a whole array of numbers") from None
                if file.read(1):  # at the end the checksum is compared
                    raise ValueError(f"{name} has more values than its header says")
                return values
    except Exception as error:  # a header is a literal of Python, and fails in as many ways as those do
        reason = printable(str(getattr(error, "strerror", None) or error or type(error).__name__))
        expected = "expected a .npz with numeric arrays"
        raise DataError(f"{printable(str(path))}: {expected} ({reason[:MAX_REASON]})") from None


def to_images(what: str, values: Array, notes: list[str]) -> Images:
    """Convert images to grey levels; what was done goes to `notes`. Raises DataError where values are ambiguous."""
    if values.dtype.kind not in NUMBERS or _axes(values) not in ((28, 28), (FEATURES,)):
        expected = "expected numbers of shape (n, 28, 28) or (n, 784)"
        raise DataError(f"{what}: {expected}, found {_form(values)}")
    images = values if values.dtype == np.uint8 else _grey(what, values, notes)
    brightest = images.max(initial=0)
    if len(images) and brightest < DARK:
        remedy = f"; if that is white, save the images divided by {brightest}" if brightest else ""
        notes.append(f"{what}: the brightest pixel is {brightest} of {WHITE}{remedy}")
    return np.ascontiguousarray(images.reshape(len(images), FEATURES))


def _grey(what: str, values: Array, notes: list[str]) -> Images:
    """Read whole numbers of 0 to 255, or real ones of 0 to 1 or of 0 to 255, as grey levels; true is white."""
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    expected = f"expected values from 0 to 1 or from 0 to {WHITE}"
    refusal = DataError(f"{what}: {expected}, found {low:.4g} to {high:.4g}")
    real = values.dtype.kind in "fb"
    slack = float(np.finfo(np.float16 if values.dtype == np.float16 else np.float32).eps) if real else 0.0
    scale = WHITE if real and high <= 1 + slack else 1
    if not 0 <= low <= high * scale <= WHITE * (1 + slack):
        raise refusal
    images = np.empty(values.shape, np.uint8)
    rounded = False
    for first in range(0, len(values), ROWS):
        part = slice(first, first + ROWS)
        scaled = values[part] * np.float64(scale)
        images[part] = np.rint(scaled)
        rounded = rounded or bool(np.abs(images[part] - scaled).max() > slack * WHITE)
    if rounded and scale == 1 and high <= DARK:
        raise refusal
    form = f"{values.dtype.name} from 0 to {1 if scale != 1 else WHITE}"
    notes.append(f"{what}: {form} read as grey levels{', rounded to whole ones' if rounded else ''}")
    return images


def to_labels(what: str, values: Array, notes: list[str]) -> Labels:
    """Convert labels, or one-hot rows, to whole numbers; what was done goes to `notes`. Raises DataError."""
    form, axes = _form(values), _axes(values)
    if values.dtype.kind not in NUMBERS or values.ndim == 0 or len(axes) > 1:
        raise DataError(f"{what}: expected labels from 0 to {MAX_LABEL}, found {form}")
    if values.ndim > 1 or values.dtype.kind in "fb":
        notes.append(f"{what}: {form} read as labels")
    values = values.reshape(len(values), *axes)
    if axes:
        if not np.isin(values, (0, 1)).all() or not (np.count_nonzero(values, axis=-1) == 1).all():
            raise DataError(f"{what}: expected labels, or rows with a single 1, found {form}")
        values = values.nonzero()[1]
    wrong = values[~np.isin(values, np.arange(MAX_LABEL + 1))]
    if len(wrong):
        raise DataError(f"{what}: expected whole numbers from 0 to {MAX_LABEL}, found {wrong[0]}")
    return values.astype(np.int32)


def _axes(values: Array) -> tuple[int, ...]:
    """The lengths of all axes behind the first, those of one left out."""
    return tuple(length for length in values.shape[1:] if length != 1)


def _form(values: Array) -> str:
    return f"{values.dtype!s:.40} {values.shape!s:.60}"


def digest_of(values: Images | Labels) -> str:
    """SHA-256 of the bytes; labels as bytes, too, where they fit: MNIST's own are."""
    if values.dtype != np.uint8 and values.max(initial=0) < 256:
        values = values.astype(np.uint8)
    return hashlib.sha256(values.tobytes()).hexdigest()
