"""How TensorFlow runs in a process that trains: one thread, and the same arithmetic every time."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from regtune.errors import WorkerError

ENVIRONMENT: Mapping[str, str] = {
    "KERAS_BACKEND": "tensorflow",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
"""One thread a process (several processes share a machine best so), and without oneDNN's graph rewriting, which is slower
for layers this small and sums in another order."""


def configure() -> None:
    """Set what TensorFlow reads when it starts. Call it before anything imports TensorFlow; imports nothing itself.

    Raises WorkerError where TensorFlow has been imported under other settings: bit-identical training is then not to be had.
    """
    late = "tensorflow" in sys.modules
    wrong = [name for name, value in ENVIRONMENT.items() if os.environ.get(name) != value]
    if late and wrong:
        raise WorkerError(
            f"TensorFlow was imported before it was configured ({', '.join(wrong)}); configure first"
        )
    os.environ.update(ENVIRONMENT)
