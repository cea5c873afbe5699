"""A worker process: trains one trial after another, with TensorFlow imported before its first."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

from regtune.config.trial import DataConfig, higher_is_better
from regtune.data.datasets import Arrays, Data, divide, load_data_cached
from regtune.executors import EpochEnded, Task, TrialEnded, TrialFailed, TrialStarted, WorkerReady
from regtune.training.result import TrialResult, Verdict

MODEL_FILE = "model.keras"
LoadData = Callable[[DataConfig], Data]


FOR_OTHERS = ("matplotlib", "pandas", "sklearn")
"""What Keras imports where it is installed, and training does not need."""


def prepare() -> None:
    """Import what training needs; TensorFlow runs nothing and starts no thread by it."""
    from regtune.training import runtime

    runtime.configure()
    sys.modules.update(dict.fromkeys(FOR_OTHERS))  # type: ignore[arg-type]
    import_module("regtune.training.loop")


def main(coordinator: Connection, worker: int, data: Path | Arrays | None) -> None:
    """Train what the coordinator sends until it closes the connection. data: all tasks' data set, or its folder."""
    prepare()
    load: LoadData = partial(load_data_cached, data_dir=data)
    if isinstance(data, Arrays):
        load = lru_cache(maxsize=1)(partial(divide, data))
    coordinator.send(WorkerReady(worker, os.getpid()))
    while True:
        try:
            task: Task = coordinator.recv()
        except EOFError:
            return
        coordinator.send(TrialStarted(task.uid, worker))
        try:
            ended: TrialEnded | TrialFailed = _train(task, worker, coordinator, load)
        except EOFError:
            return
        except Exception as error:  # whatever it raises ends the trial, not the worker
            ended = failure(task, worker, error)
        coordinator.send(ended)


def _train(task: Task, worker: int, coordinator: Connection, load: LoadData) -> TrialEnded:
    from regtune.training.loop import train
    from regtune.training.measure import KeptWeights

    def on_epoch(epoch: int, figures: Mapping[str, float], seconds: float) -> Verdict:
        coordinator.send(EpochEnded(task.uid, worker, epoch, dict(figures), seconds))
        verdict: Verdict = coordinator.recv()
        return verdict

    data = load(task.config.data)
    if task.sample is not None:
        data = task.sample.draw(data)
    kept = KeptWeights(data.x_val, data.y_val, task.tolerance)
    measured = task.tolerance is not None or task.predictions
    result = train(task.config, data, on_epoch, [kept] if measured else ())
    if result.kept_epoch:
        result = replace(result, extra=kept.extra)
    predictions = kept.predictions if task.predictions and result.kept_epoch else None
    return TrialEnded(task.uid, worker, result.without_model(), _keep(task, result), predictions)


def _keep(task: Task, result: TrialResult) -> dict[str, str]:
    """Save the model where it is to be kept, whole or not at all. Returns the files' SHA-256."""
    if task.folder is None or result.end not in ("max_epochs", "early_stopping"):
        return {}
    value = result.figures[task.metric]
    sign = -1 if higher_is_better(task.metric) else 1
    if (
        task.threshold is not None and sign * value > sign * task.threshold
    ):  # of equals the first trial is better
        return {}
    with whole(task.folder / MODEL_FILE) as partial:
        result.model.save(partial)
        digest = hashlib.sha256(partial.read_bytes()).hexdigest()
    return {MODEL_FILE: digest}


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give the path of a file beside `path`, which takes its place when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def failure(task: Task, worker: int, error: Exception) -> TrialFailed:
    """What an error makes of a task. Who cleans up after a lack of memory or room may fail in turn, and hides it."""
    behind: list[BaseException] = [error]
    while (inner := behind[-1].__cause__ or behind[-1].__context__) is not None:
        behind.append(inner)
    cause = next((one for one in behind if _lack(one)), error)
    reason, text = _lack(cause), str(cause).strip()
    if reason == "disk_full" and task.folder is not None:
        return TrialFailed(task.uid, worker, "disk_full", str(task.folder))
    if isinstance(cause, MemoryError):
        text = text or "an object could not be allocated"
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    line = lines[-1] if lines[0].endswith(":") else lines[0]  # TensorFlow tells what is wrong last
    line = next((line for line in lines if "OOM when" in line), line)
    said = f"{type(cause).__name__}: {line}"[:500]
    return TrialFailed(task.uid, worker, "out_of_memory" if reason == "out_of_memory" else "error", said)


def _lack(error: BaseException) -> Literal["disk_full", "out_of_memory"] | None:
    """What an error says there was too little of."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk_full"
    exhausted = isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError"
    return "out_of_memory" if exhausted or (type(error) is OSError and "allocate" in str(error)) else None
