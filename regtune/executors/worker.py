"""A worker process: trains one trial after another, with TensorFlow imported before its first."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path

from regtune.config.trial import higher_is_better
from regtune.executors import EpochEnded, Task, TrialEnded, TrialFailed, TrialStarted, WorkerReady
from regtune.training.result import TrialResult, Verdict

MODEL_FILE = "model.keras"


FOR_OTHERS = ("matplotlib", "pandas", "sklearn")
"""What Keras imports where it is installed, and training does not need."""


def prepare() -> None:
    """Import what training needs; TensorFlow runs nothing and starts no thread by it."""
    from regtune.training import runtime

    runtime.configure()
    sys.modules.update(dict.fromkeys(FOR_OTHERS))  # type: ignore[arg-type]
    import_module("regtune.training.loop")


def main(coordinator: Connection, worker: int, data_dir: Path | None) -> None:
    """Train what the coordinator sends until it closes the connection."""
    prepare()
    coordinator.send(WorkerReady(worker, os.getpid()))
    while True:
        try:
            task: Task = coordinator.recv()
        except EOFError:
            return
        coordinator.send(TrialStarted(task.uid, worker))
        try:
            ended: TrialEnded | TrialFailed = _train(task, worker, coordinator, data_dir)
        except EOFError:
            return
        except Exception as error:  # whatever it raises ends the trial, not the worker
            ended = _failure(task, worker, error)
        coordinator.send(ended)


def _train(task: Task, worker: int, coordinator: Connection, data_dir: Path | None) -> TrialEnded:
    from regtune.data.datasets import load_data_cached
    from regtune.training.loop import train
    from regtune.training.measure import KeptWeights

    def on_epoch(epoch: int, figures: Mapping[str, float], seconds: float) -> Verdict:
        coordinator.send(EpochEnded(task.uid, worker, epoch, dict(figures), seconds))
        verdict: Verdict = coordinator.recv()
        return verdict

    data = load_data_cached(task.config.data, data_dir)
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
    if task.threshold is not None and sign * value >= sign * task.threshold:
        return {}
    task.folder.mkdir(parents=True, exist_ok=True)
    path = task.folder / MODEL_FILE
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        result.model.save(partial)
        digest = hashlib.sha256(partial.read_bytes()).hexdigest()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return {MODEL_FILE: digest}


def _failure(task: Task, worker: int, error: Exception) -> TrialFailed:
    name, text = type(error).__name__, str(error).strip()
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full and task.folder is not None:
        return TrialFailed(task.uid, worker, "disk_full", str(task.folder))
    exhausted = name == "ResourceExhaustedError" or (name == "OSError" and "allocate" in text)
    if isinstance(error, MemoryError):
        exhausted, text = True, text or "an object could not be allocated"
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    line = lines[-1] if lines[0].endswith(":") else lines[0]  # TensorFlow tells what is wrong last
    line = next((line for line in lines if "OOM when" in line), line)
    return TrialFailed(task.uid, worker, "out_of_memory" if exhausted else "error", f"{name}: {line}"[:500])
