"""The TensorFlow runtime of a process that trains: one thread, and the same arithmetic every time.

What a user has set for other programs stays outside: variables that Keras and TensorFlow read, and `keras.json`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from regtune.errors import WorkerError

ARITHMETIC: Mapping[str, str] = {
    "KERAS_BACKEND": "tensorflow",
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_ENABLE_ONEDNN_OPTS": "0",
}
"""One thread a process, since several processes share a machine better than several threads do, and no
oneDNN: it is slower for layers this small, and sums in another order."""

NO_GPU = "-1"
OF_OTHERS = ("KERAS_", "TF_", "XLA_", "AUTOGRAPH_")
"""How the names of variables begin that Keras and TensorFlow read."""


def configure() -> None:
    """Set what TensorFlow reads when it starts; imports nothing. Call it before anything imports TensorFlow.

    Raises WorkerError where TensorFlow was imported under other settings: its figures would not be the same
    everywhere.
    """
    wrong = ", ".join(name for name, value in ARITHMETIC.items() if os.environ.get(name) != value)
    if wrong and "tensorflow" in sys.modules:
        raise WorkerError(f"TensorFlow was imported before it was configured ({wrong}); configure first")
    os.environ.update(ARITHMETIC)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def environment_of_worker(given: Mapping[str, str], gpus: str = NO_GPU) -> dict[str, str]:
    """The environment `given`, without what is set in it for other programs that use Keras, for a process that trains.

    gpus: those that it may use, as CUDA_VISIBLE_DEVICES names them. Keras reads `keras.json` of the folder KERAS_HOME,
    and writes one where there is none: in the null device there is none, and none can be written.
    """
    kept = {name: value for name, value in given.items() if not name.startswith(OF_OTHERS)}
    own = {"KERAS_HOME": os.devnull, "CUDA_VISIBLE_DEVICES": gpus, "PYTHONHASHSEED": "0"}
    shared = {"TF_FORCE_GPU_ALLOW_GROWTH": "true"}  # of a GPU's memory the first would take all
    return {**kept, **ARITHMETIC, **own, **shared, "TF_CPP_MIN_LOG_LEVEL": "3"}
