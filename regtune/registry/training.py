"""The training of what is promoted: twice side by side, and where asked for once more with the validation images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from regtune.config.trial import TrialConfig
from regtune.errors import WorkerError
from regtune.executors import Sample, Task
from regtune.executors.local import LocalExecutor
from regtune.executors.worker import MODEL_FILE
from regtune.study.record import MEASURED, TrialRecord
from regtune.study.study import now_ms
from regtune.sweep.loop import Loop, Running
from regtune.training.result import Verdict

OnEpoch = Callable[[str, int, Mapping[str, float]], object]
"""Told which training, ``training 1 of 2``, its epoch from 1, and the six METRICS."""


@dataclass(frozen=True)
class Training:
    """One training that came to its end. model: file of its network, `sha256` as its worker wrote it."""

    record: TrialRecord
    model: Path
    sha256: str

    @property
    def figures(self) -> dict[str, float]:
        """All that a training of the same configuration has to repeat, bit for bit."""
        kept = self.record.kept
        assert kept is not None
        measured = {name: float(getattr(kept, name)) for name in MEASURED}
        return {**kept.figures, **measured, "epoch": float(kept.epoch), "epochs": float(self.record.epochs)}


def train_twice(
    config: TrialConfig,
    metric: str,
    folder: Path,
    data_dir: Path | None,
    *,
    refit_epochs: int | None = None,
    on_epoch: OnEpoch = lambda which, epoch, figures: None,
) -> tuple[Training, Training, Training | None]:
    """Train `config` in two workers at once, and return both.

    metric: the study's. folder: gets the networks. refit_epochs: train a third time, on the training and the validation
    images, for so many epochs and without early stopping.

    Raises WorkerError when a training fails, DataError, StorageError when the disk is full.
    """
    with closing(LocalExecutor(2, data_dir)) as executor:
        twice = {f"training {number} of 2": _task(config, metric, folder / str(number)) for number in (1, 2)}
        first, second = _train(executor, twice, on_epoch)
        if refit_epochs is None:
            return first, second, None
        fixed = config.training.model_copy(update={"max_epochs": refit_epochs})
        whole = config.model_copy(update={"training": fixed, "early_stopping": None})
        task = replace(_task(whole, metric, folder / "refit"), sample=Sample(validation=True))
        (refit,) = _train(executor, {"training on all images": task}, on_epoch)
        return first, second, refit


def _task(config: TrialConfig, metric: str, folder: Path) -> Task:
    return Task(uid=f"promotion-{folder.name}", config=config, metric=metric, folder=folder)


def _train(executor: LocalExecutor, tasks: Mapping[str, Task], on_epoch: OnEpoch) -> list[Training]:
    names = {task.uid: name for name, task in tasks.items()}

    def decide(running: Running, figures: Mapping[str, float]) -> Verdict:
        on_epoch(names[running.record.uid], running.epoch, figures)
        return "continue"

    loop = Loop(executor, decide)
    for task in tasks.values():
        record = TrialRecord(uid=task.uid, config=task.config, parameters={}, worker=0, started_ms=now_ms())
        loop.submit(task, record)
    ended: dict[str, TrialRecord] = {}
    while loop.running:
        for record in loop.turn():
            if record.kept is None:
                raise WorkerError(f"{names[record.uid]} failed: {record.message}")
            ended[record.uid] = record
    return [
        Training(ended[task.uid], (task.folder or Path()) / MODEL_FILE, ended[task.uid].artifacts[MODEL_FILE])
        for task in tasks.values()
    ]
