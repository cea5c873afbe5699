"""The formats in which a network leaves for other programs: how each is written, and read back by its own runtime.

Keras converts. What a file answers is asked of what would serve it: Keras, TensorFlow, ONNX Runtime, LiteRT.
All take pixels `(n, 28, 28) uint8` and give probabilities `(n, classes) float32`.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regtune.data.arrays import Images
from regtune.errors import ExportError
from regtune.escaping import printable
from regtune.registry.gates import SIDE, Predict


@dataclass(frozen=True)
class Format:
    """A format. suffix: which a file's name has to have; empty for a folder. packages: what its extra brings.

    read: opens one, and gives what it answers. convert: makes one of a network at a path, quantized where there are
    images to calibrate with; None for the registered file itself.
    """

    suffix: str
    read: Callable[[Path], Predict]
    convert: Callable[[Any, Path, Images | None], None] | None = None
    packages: tuple[str, ...] = ()


def require(name: str) -> None:
    """Raises ExportError where the packages of a format are not installed."""
    missing = [package for package in FORMATS[name].packages if find_spec(package) is None]
    if missing:
        raise ExportError(f"{name} needs {', '.join(missing)}: pip install 'regtune[{name}]'")


def write(name: str, network: Any, registered: Path, path: Path, calibration: Images | None) -> Predict:
    """Write a network, whose registered file is given, to `path`; return what is answered there.

    Raises ExportError, OSError.
    """
    form = FORMATS[name]
    try:
        if form.convert is None:
            shutil.copyfile(registered, path)
        else:
            form.convert(network, path, calibration)
        return form.read(path)
    except OSError:
        raise
    except Exception as error:  # converters raise whatever they meet
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ExportError(f"{name}: the conversion failed ({printable(reason):.200})") from error


@contextmanager
def silence() -> Iterator[None]:
    """Keep from the terminal what converters and runtimes write there past Python."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _pixels(images: Images) -> Images:
    return images.reshape(-1, SIDE, SIDE)


def _read_keras(path: Path) -> Predict:
    import keras

    network = keras.models.load_model(path)
    return lambda images: np.asarray(network(_pixels(images), training=False))


def _convert_savedmodel(network: Any, path: Path, calibration: Images | None) -> None:
    network.export(str(path), verbose=False)


def _read_savedmodel(path: Path) -> Predict:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    return lambda images: np.asarray(loaded.serve(_pixels(images)))


def _convert_onnx(network: Any, path: Path, calibration: Images | None) -> None:
    network.export(str(path), format="onnx", verbose=False)


def _read_onnx(path: Path) -> Predict:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (pixels,) = session.get_inputs()
    return lambda images: np.asarray(session.run(None, {pixels.name: _pixels(images)})[0])


def _convert_litert(network: Any, path: Path, calibration: Images | None) -> None:
    """Quantized: weights and activations as 8-bit numbers, their ranges those of the calibration images."""
    import tensorflow as tf

    options: Mapping[str, Any] = {}
    if calibration is not None:
        options = {
            "optimizations": [tf.lite.Optimize.DEFAULT],
            "representative_dataset": lambda: ([image[None]] for image in _pixels(calibration)),
        }
    network.export(str(path), format="litert", verbose=False, **options)


def _read_litert(path: Path) -> Predict:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    (pixels,), (probabilities,) = interpreter.get_input_details(), interpreter.get_output_details()
    shape: list[tuple[int, ...]] = []

    def predict(images: Images) -> NDArray[Any]:
        given = _pixels(images)
        if shape != [given.shape]:
            interpreter.resize_tensor_input(pixels["index"], given.shape)
            interpreter.allocate_tensors()
            shape[:] = [given.shape]
        interpreter.set_tensor(pixels["index"], given)
        interpreter.invoke()
        return np.array(interpreter.get_tensor(probabilities["index"]))

    return predict


FORMATS: Mapping[str, Format] = {
    "keras": Format(".keras", _read_keras),
    "savedmodel": Format("", _read_savedmodel, _convert_savedmodel),
    "onnx": Format(".onnx", _read_onnx, _convert_onnx, ("tf2onnx", "onnx", "onnxruntime")),
    "litert": Format(".tflite", _read_litert, _convert_litert, ("ai_edge_litert",)),
}
