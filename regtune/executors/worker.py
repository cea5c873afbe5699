"""A worker process: imports TensorFlow once and trains one trial after another."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from regtune.config.trial import higher_is_better
from regtune.executors import EpochEnded, Task, TrialEnded, TrialFailed, TrialStarted, WorkerReady
from regtune.training.result import TrialResult, Verdict

MODEL_FILE = "model.keras"
_NODE = re.compile(r"\{\{[^{}]*\}\} ?| \[Op:\w+\]( name:)?")
"""Where in its graph TensorFlow complains: of no use to a person."""


def main(coordinator: Connection, worker: int, data_dir: Path | None) -> None:
    """Train what the coordinator sends until it closes the connection."""
    from regtune.training import runtime

    runtime.configure()
    with runtime.without_matplotlib():
        from regtune.training.loop import train

    coordinator.send(WorkerReady(worker, os.getpid()))
    while True:
        try:
            task: Task = coordinator.recv()
        except EOFError:
            return
        coordinator.send(TrialStarted(task.uid, worker))
        try:
            result = _train(train, task, worker, coordinator, data_dir)
        except EOFError:
            return
        except MemoryError as error:
            what = str(error) or "Python could not allocate an object"
            coordinator.send(TrialFailed(task.uid, worker, "out_of_memory", f"out of memory: {what}"))
        except Exception as error:  # whatever it raises ends the trial, not the worker
            coordinator.send(_failure(task, worker, error))
        else:
            coordinator.send(result)


def _train(train, task: Task, worker: int, coordinator: Connection, data_dir: Path | None) -> TrialEnded:  # type: ignore[no-untyped-def]
    from regtune.data.datasets import load_data_cached

    def on_epoch(epoch: int, figures: Mapping[str, float], seconds: float) -> Verdict:
        coordinator.send(EpochEnded(task.uid, worker, epoch, dict(figures), seconds))
        verdict: Verdict = coordinator.recv()
        return verdict

    result: TrialResult = train(task.config, load_data_cached(task.config.data, data_dir), on_epoch)
    artifacts = {}
    ended = result.end in ("max_epochs", "early_stopping")
    if ended and task.folder is not None and _is_better(result.figures[task.metric], task):
        task.folder.mkdir(parents=True, exist_ok=True)
        artifacts[MODEL_FILE] = save_model(result.model, task.folder / MODEL_FILE)
    return TrialEnded(task.uid, worker, result.without_model(), artifacts)


def _is_better(value: float, task: Task) -> bool:
    if task.threshold is None:
        return True
    return value > task.threshold if higher_is_better(task.metric) else value < task.threshold


def save_model(model, path: Path) -> str:  # type: ignore[no-untyped-def]
    """Write `model` so that `path` holds it whole or not at all. Returns the file's SHA-256."""
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        model.save(partial)
        digest = hashlib.sha256(partial.read_bytes()).hexdigest()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return digest


def _failure(task: Task, worker: int, error: Exception) -> TrialFailed:
    name, text = type(error).__name__, str(error).strip()
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full and task.folder is not None:
        return TrialFailed(task.uid, worker, "disk_full", str(task.folder))
    exhausted = name == "ResourceExhaustedError" or (name == "OSError" and "allocate" in text)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    line = lines[-1] if lines[0].endswith(":") else lines[0]  # TensorFlow tells what is wrong last
    line = _NODE.sub("", next((line for line in lines if "OOM when" in line), line))
    return TrialFailed(task.uid, worker, "out_of_memory" if exhausted else "error", f"{name}: {line}"[:500])
