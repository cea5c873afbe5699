"""Conversion of images to `(n, 784) uint8` and of labels to `(n,) int32` from 0.

What can only mean one thing is read, and said in a note; what is ambiguous is refused with the line that mends it.
So the same content has the same bytes, and one digest, however it was written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from regtune.data.formats import Part
from regtune.errors import DataError

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int32]

FEATURES = 784
SHAPES = ((28, 28), (FEATURES,))
MAX_GIB = 4
MAX_LABEL = 999
WHITE = 255
DARK = WHITE / 2
"""Images none of whose pixels is brighter are probably scaled otherwise: to 0 and 1, or to 0 to 16."""
ROWS = 4096
"""Images converted at once, which bounds the memory that takes."""


def check_forms(where: str, parts: Mapping[str, Part]) -> None:
    """Refuse by shapes and types alone what is not images with their labels, or more than memory has.

    Raises DataError.
    """
    for part in ("train", "test"):
        images, labels = parts[f"x_{part}"], parts[f"y_{part}"]
        count = images.shape[0] if images.shape else 0
        empty = count == 0 and (part == "train" or labels.shape[:1] != (0,))
        if images.dtype.kind not in "uifb" or _axes(images) not in SHAPES or empty:
            raise DataError(
                f"{where}: x_{part}: expected numbers of shape (n, 28, 28) or (n, 784), found {_form(images)}"
                f"{_reshaped(f'x_{part}', images)}"
            )
        if labels.shape[:1] != (count,) or len(_axes(labels)) > 1:
            raise DataError(f"{where}: y_{part}: expected {count} labels, found {_form(labels)}")
        if labels.dtype.kind not in "uifb":
            expected = "expected whole numbers"
            raise DataError(f"{where}: y_{part}: {expected}, found {_form(labels)}; try: {RELABELLED}")
    size = sum(part.size_bytes for part in parts.values()) / 2**30
    if size > MAX_GIB:
        raise DataError(f"{where}: {size:.1f} GiB unpacked; expected at most {MAX_GIB} GiB")


def _axes(part: Part) -> tuple[int, ...]:
    """The lengths of all axes behind the first, those of one left out."""
    return tuple(length for length in part.shape[1:] if length != 1)


def _form(part: Part) -> str:
    return f"{part.dtype!s:.40} {part.shape!s:.60}"


RELABELLED = (
    "names = np.unique(y_train); y_train, y_test = (np.searchsorted(names, y) for y in (y_train, y_test))"
)


def _reshaped(name: str, images: Part) -> str:
    if images.dtype.kind not in "uifb" or 0 in images.shape:
        return ""
    axes = _axes(images)
    if len(axes) == 3 and (axes[-1] in (3, 4) or axes[0] == 3):
        grey = f"{name}[..., :3].mean(axis=-1)" if axes[-1] in (3, 4) else f"{name}.mean(axis=1)"
        return f"; try: {name} = {grey}"
    if len(axes) == 2 and images.shape[0] > 1:
        high, wide = axes
        stretched = f"({name}.reshape(-1, {high}, {wide}), (1, 28 / {high}, 28 / {wide}), order=1)"
        return f"; try: {name} = scipy.ndimage.zoom{stretched}"
    return ""


def read_images(where: str, name: str, part: Part, notes: list[str]) -> Images:
    """The images as grey levels; what was done goes to `notes`. Raises DataError where values are ambiguous."""
    values = part.read()
    if len(part.shape) > 1 + len(_axes(part)):
        notes.append("axes of one dropped")
    if part.dtype.kind == "b":
        notes.append("true is white")
        images = values.astype(np.uint8) * np.uint8(WHITE)
    elif part.dtype == np.uint8:
        images = np.ascontiguousarray(values, np.uint8)
    else:
        images, note = _grey(where, name, values)
        notes.append(note)
    brightest = int(images.max(initial=0))
    if name == "x_train" and brightest < DARK:
        remedy = f"; if {brightest} is white, save x_train / {brightest} and x_test / {brightest}"
        notes.append(f"the brightest pixel is {brightest} of {WHITE}{remedy if brightest else ''}")
    return images.reshape(len(images), FEATURES)


def _grey(where: str, name: str, values: npt.NDArray[Any]) -> tuple[Images, str]:
    """Numbers as grey levels: whole numbers of 0 to 255, or real ones of 0 to 1 or of 0 to 255."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    real = values.dtype.kind == "f"
    slack = float(np.finfo(np.float16 if values.dtype == np.float16 else np.float32).eps) if real else 0.0
    scale = WHITE if real and high <= 1 + slack else 1
    images = np.empty(values.shape, np.uint8)
    exact = True
    if low >= 0 and high * scale <= WHITE * (1 + slack):
        for first in range(0, len(values), ROWS):
            scaled = values[first : first + ROWS] * np.float64(scale)
            grey = np.rint(scaled)
            exact = exact and float(np.abs(grey - scaled).max()) <= slack * WHITE
            images[first : first + ROWS] = grey
        if exact or scale != 1 or high > DARK:
            form = f"{values.dtype.name} from 0 to {1 if scale != 1 else WHITE}"
            return images, f"{form} read as grey levels{'' if exact else ', rounded to whole ones'}"
    start = f"(x - {low:.4g})" if low > 0 else f"(x + {-low:.4g})" if low < 0 else "x"
    stretched = f"; try for both parts: x = np.clip({start} / {high - low:.4g}, 0, 1)"
    found = f"found {low:.4g} to {high:.4g}{stretched if low < high < np.inf else ''}"
    raise DataError(f"{where}: {name}: expected values from 0 to 1 or from 0 to 255, {found}")


def read_labels(where: str, name: str, part: Part, notes: list[str]) -> Labels:
    """The labels as whole numbers; what was done goes to `notes`. Raises DataError."""
    values = np.ascontiguousarray(part.read())
    axes = _axes(part)
    if axes:
        if not ((values == 0) | (values == 1)).all() or not (np.count_nonzero(values, axis=-1) == 1).all():
            raise DataError(
                f"{where}: {name}: expected {part.shape[0]} labels, or rows with a single 1, found {_form(part)}; "
                f"try: {name} = {name}.argmax(axis=-1)"
            )
        notes.append("one-hot rows read as labels")
        values = values.reshape(len(values), axes[0]).argmax(axis=-1)
    else:
        if len(part.shape) > 1:
            notes.append("a column read as labels")
        if part.dtype.kind in "fb":
            notes.append(f"{part.dtype.name} read as whole numbers")
        values = values.reshape(len(values))
    low, high = (values.min(), values.max()) if len(values) else (0, 0)
    if not (low >= 0 and high <= MAX_LABEL):
        remedy = f"; try: {RELABELLED}" if np.isfinite([float(low), float(high)]).all() else ""
        expected = f"expected labels from 0 to {MAX_LABEL}"
        raise DataError(f"{where}: {name}: {expected}, found {low} to {high}{remedy}")
    labels = values.astype(np.int32)
    if not (labels == values).all():
        broken = values[labels != values][0]
        raise DataError(f"{where}: {name}: expected whole numbers, found {broken}; try: {RELABELLED}")
    return labels


def digest_of(values: Images | Labels) -> str:
    """SHA-256 of the bytes; labels as bytes, too, where they fit: MNIST's own are."""
    if values.dtype != np.uint8 and values.max(initial=0) < 256:
        values = values.astype(np.uint8)
    return hashlib.sha256(values.tobytes()).hexdigest()
