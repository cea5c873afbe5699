"""Training of a recorded configuration again: in a worker, logged like any trial, then compared."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from regtune.config.trial import METRICS, RegularizationConfig, higher_is_better
from regtune.data.datasets import Data, load_data
from regtune.errors import TrackingError, WorkerError
from regtune.escaping import printable
from regtune.executors import Task
from regtune.executors.local import LocalExecutor
from regtune.executors.worker import MODEL_FILE
from regtune.settings import Settings
from regtune.storage import writable_folder
from regtune.storage.mlflow import check_store
from regtune.study.best import Best, Provenance
from regtune.study.record import Kept, TrialRecord
from regtune.study.study import now_ms, versions
from regtune.sweep.loop import Loop, Running
from regtune.tracking.names import RETRAINED
from regtune.tracking.studies import DataFacts, ParentState, Recorded, RetrainedFrom, StudyFacts
from regtune.tracking.sync import catch_up
from regtune.training.result import Verdict


@dataclass(frozen=True)
class Retrained:
    """A configuration trained again.

    figures: METRICS of the kept weights; epoch: theirs, from 1; epochs: trained in all. recorded: the
    figures the file has, None for a bare configuration. differences: of each figure that is not
    bit-identical, found minus recorded; an `epoch` that differs is one of them. changed: versions that
    differ, as ``keras: 3.15.1 → 3.16.0``. unwritten: whether MLflow has not got it. uncompared: why there is
    nothing to compare with, or empty.
    """

    figures: Mapping[str, float]
    epoch: int
    epochs: int
    generalization_gap: float | None
    seconds: float
    recorded: Mapping[str, float] | None
    differences: Mapping[str, float]
    changed: tuple[str, ...]
    model: str
    uid: str
    unwritten: bool
    uncompared: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"identical": None if self.recorded is None else not self.differences}


def retrain(
    best: Best,
    settings: Settings,
    on_epoch: Callable[[int, Mapping[str, float]], None] = lambda epoch, figures: None,
    on_note: Callable[[str], None] = lambda message: None,
) -> Retrained:
    """Train `best` again in one worker, write it to MLflow, and compare it with what is recorded.

    on_note: told what a person should know of the data, and why nothing will be compared.

    Raises DataError when the data is not the recorded one, WorkerError when training fails, StorageError,
    TrackingError.
    """
    data = load_data(best.config.data, settings.data_dir)  # before anything is written
    uncompared = _uncompared(best)
    for note in (*data.notes, *([f"not compared: {uncompared}"] if best.changed else [])):
        on_note(note)
    writable_folder(settings.home.resolve())
    check_store(settings.mlflow_uri)
    known_data = best.config.data.model_copy(update={"digest": data.digest})
    config = best.config.model_copy(update={"data": known_data})
    uid = f"{RETRAINED}{uuid.uuid4().hex}"
    record = TrialRecord(uid=f"{uid}-0", config=config, parameters={}, worker=0, started_ms=now_ms())
    facts = _facts(best, uid, record, data)

    def decide(running: Running, figures: Mapping[str, float]) -> Verdict:
        on_epoch(running.epoch, figures)
        return "continue"

    folder = settings.artifacts / "trials" / record.uid
    executor = LocalExecutor(1, settings.data_dir)
    try:
        metric = best.provenance.metric if best.provenance else "val_cross_entropy"
        task = Task(uid=record.uid, config=config, metric=metric, folder=folder)
        loop = Loop(executor, decide)
        loop.submit(task, record)
        while loop.running:
            record = next(loop.turn(), record)
    finally:
        executor.close()
    unwritten = not _track(settings, facts, record)
    if record.kept is None:
        raise WorkerError(f"training failed: {record.message}")
    known = None if best.changed else best.provenance
    kept = record.kept
    return Retrained(
        figures={name: kept.figures[name] for name in METRICS},
        epoch=kept.epoch,
        epochs=record.epochs,
        generalization_gap=kept.generalization_gap,
        seconds=record.seconds,
        recorded=known.figures if known else None,
        differences=_differences(kept, known) if known else {},
        changed=_changed_versions(known) if known else (),
        model=str(folder / MODEL_FILE),
        uid=uid,
        unwritten=unwritten,
        uncompared=uncompared,
    )


def _uncompared(best: Best) -> str:
    """Why the figures of `best` are not compared, or empty."""
    if best.provenance is None:
        return "the file has no recorded figures"
    trial = f"trial {best.provenance.trial} of {printable(best.provenance.study)}"
    return f"the configuration was changed since {trial} was recorded" if best.changed else ""


def _facts(best: Best, uid: str, record: TrialRecord, data: Data) -> StudyFacts:
    found = best.provenance
    known = None if best.changed else found
    metric = found.metric if found else "val_cross_entropy"
    return StudyFacts(
        uid=uid,
        name=f"{printable(found.study)}, again" if found else "train",
        sweep=printable(found.study) if found else "train",
        parameters=tuple(RegularizationConfig.model_fields),
        data=DataFacts(
            name=data.name,
            source=data.source,
            digest=data.digest,
            train=len(data.x_train),
            validation=len(data.x_val),
            features=data.features,
            classes=data.classes,
            split_seed=record.config.data.split_seed,
        ),
        metric=metric,
        goal="maximize" if higher_is_better(metric) else "minimize",
        method="again",
        versions=versions(),
        created_ms=record.started_ms,
        retrained=RetrainedFrom(known.study, known.trial, known.uid) if known else RetrainedFrom(),
    )


def _track(settings: Settings, facts: StudyFacts, record: TrialRecord) -> bool:
    """Write the run and its trial into MLflow; False when MLflow does not take them."""
    state, winner = record.end_state or "FAIL", 0 if record.kept else None
    stands: ParentState = "FINISHED" if record.kept else "FAILED"
    try:
        catch_up(settings, Recorded(facts, [(0, state, record)], stands, winner, record.ended_ms))
    except TrackingError:
        return False
    return True


def _differences(kept: Kept, known: Provenance) -> dict[str, float]:
    """Each figure that is not bit-identical, and the epoch: new minus recorded."""
    before: dict[str, float] = {name: value for name, value in known.figures.items() if name in METRICS}
    before["epoch"] = known.epoch
    now = {**kept.figures, "epoch": kept.epoch}
    return {name: now[name] - value for name, value in before.items() if now[name] != value}


def _changed_versions(known: Provenance) -> tuple[str, ...]:
    now = versions()
    return tuple(
        f"{printable(name)}: {printable(before)} → {now.get(name, 'absent')}"
        for name, before in known.versions.items()
        if now.get(name) != before
    )
