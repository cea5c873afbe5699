"""Training of a recorded configuration again: in a worker, logged like any trial, then compared."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from regtune.config.trial import METRICS, RegularizationConfig, TrialConfig, higher_is_better
from regtune.data.datasets import load_arrays, load_data, split_of
from regtune.errors import TrackingError, WorkerError
from regtune.escaping import printable
from regtune.executors import Task
from regtune.executors.local import LocalExecutor
from regtune.executors.worker import MODEL_FILE
from regtune.settings import Settings
from regtune.storage import writable_folder
from regtune.storage.mlflow import check_store
from regtune.storage.output import beside
from regtune.study.best import Best, Provenance
from regtune.study.record import Kept, TrialRecord
from regtune.study.study import now_ms, versions
from regtune.sweep.held import data_facts
from regtune.sweep.loop import Loop, Running
from regtune.tracking.names import RETRAINED
from regtune.tracking.studies import DataFacts, ParentState, Recorded, RetrainedFrom, StudyFacts
from regtune.tracking.sync import catch_up
from regtune.training.result import Verdict
from regtune.training.runtime import configure


@dataclass(frozen=True)
class Retrained:
    """A configuration trained again.

    figures: METRICS of the kept weights; epoch: theirs, from 1; epochs: trained in all. recorded: the figures to reach,
    None where there are none. differences: of each figure that is not bit-identical, new minus recorded; an `epoch`
    that differs is one of them. identical: whether there are none. changed: versions that differ, as
    ``keras: 3.15.1 → 3.16.0``. model: file of its network as trials keep it. output: of the network that takes pixels,
    where one was asked for. unwritten: whether MLflow lacks it. uncompared: why there is nothing to compare with.
    """

    figures: Mapping[str, float]
    epoch: int
    epochs: int
    generalization_gap: float
    seconds: float
    recorded: Mapping[str, float] | None
    differences: Mapping[str, float]
    identical: bool | None
    changed: tuple[str, ...]
    model: str
    output: str | None
    uid: str
    unwritten: bool
    uncompared: str


def retrain(
    best: Best,
    settings: Settings,
    on_epoch: Callable[[int, Mapping[str, float]], None] = lambda epoch, figures: None,
    on_note: Callable[[str], None] = lambda message: None,
    output: Path | None = None,
) -> Retrained:
    """Train `best` again in one worker, write it to MLflow, and compare it with what is recorded.

    on_note: told what a person should know of the data, and that changed figures will not be compared. output: gets the
    trained network, which takes pixels as uint8 of 28 x 28, as a `.keras` file.

    Raises DataError when the data is not the recorded one, WorkerError when training fails, StorageError,
    TrackingError.
    """
    data = load_data(best.config.data, settings.data_dir)  # before anything is written
    known, uncompared = best.provenance, ""
    if known is None:
        uncompared = "the file has no recorded figures"
    elif best.changed:
        trial = f"trial {known.trial} of {printable(known.study)}"
        uncompared = f"the configuration was changed since {trial} was recorded"
    for note in (*data.notes, *([f"not compared: {uncompared}"] if best.changed else [])):
        on_note(note)
    writable_folder(settings.home.resolve())
    check_store(settings.mlflow_uri)
    known_data = best.config.data.model_copy(update={"digest": data.digest})
    config = best.config.model_copy(update={"data": known_data})
    uid = f"{RETRAINED}{uuid.uuid4().hex}"
    record = TrialRecord(uid=f"{uid}-0", config=config, parameters={}, worker=0, started_ms=now_ms())
    facts = _facts(best, settings, uid, record)

    def decide(running: Running, figures: Mapping[str, float]) -> Verdict:
        on_epoch(running.epoch, figures)
        return "continue"

    folder = settings.artifacts / "trials" / record.uid
    with closing(LocalExecutor(1, settings.data_dir)) as executor:
        loop = Loop(executor, decide)
        loop.submit(Task(uid=record.uid, config=config, metric=facts.metric, folder=folder), record)
        while loop.running:
            record = next(loop.turn(), record)
    kept, unwritten = record.kept, False
    state, winner = record.end_state or "FAIL", 0 if kept else None
    stands: ParentState = "FINISHED" if kept else "FAILED"
    try:
        catch_up(settings, Recorded(facts, [(0, state, record)], stands, winner, record.ended_ms))
    except TrackingError:
        unwritten = True
    if kept is None:
        raise WorkerError(f"training failed: {record.message}")
    if output is not None:
        _write(config, data.classes, folder / MODEL_FILE, output)
    compared = None if uncompared else known
    differences, changed = _compare(kept, compared) if compared else ({}, ())
    return Retrained(
        figures={name: kept.figures[name] for name in METRICS},
        epoch=kept.epoch,
        epochs=record.epochs,
        generalization_gap=kept.generalization_gap,
        seconds=record.seconds,
        recorded=compared.figures if compared else None,
        differences=differences,
        identical=not differences if compared else None,
        changed=changed,
        model=str(folder / MODEL_FILE),
        output=None if output is None else str(output),
        uid=uid,
        unwritten=unwritten,
        uncompared=uncompared,
    )


def _write(config: TrialConfig, classes: int, kept: Path, output: Path) -> None:
    configure()
    from regtune.training.deployable import load_deployable

    with beside(output) as made:
        load_deployable(config, classes, kept.read_bytes()).save(made)


def _facts(best: Best, settings: Settings, uid: str, record: TrialRecord) -> StudyFacts:
    known, origin, data = best.provenance, RetrainedFrom(), record.config.data
    if known and not best.changed:
        origin = RetrainedFrom(known.study, known.trial, known.uid)
    study = printable(known.study) if known else "train"
    metric = known.metric if known else "val_cross_entropy"
    arrays = load_arrays(data.name, settings.data_dir)
    return StudyFacts(
        uid=uid,
        name=f"{study}, again" if known else study,
        sweep=study,
        parameters=tuple(RegularizationConfig.model_fields),
        data=DataFacts(**data_facts(data, arrays, split_of(arrays, data))),
        metric=metric,
        goal="maximize" if higher_is_better(metric) else "minimize",
        method="again",
        versions=versions(),
        created_ms=record.started_ms,
        retrained=origin,
    )


def _compare(kept: Kept, known: Provenance) -> tuple[dict[str, float], tuple[str, ...]]:
    """Return each figure that is not bit-identical, new minus recorded, and each version that is another."""
    before = {name: value for name, value in known.figures.items() if name in METRICS} | {
        "epoch": known.epoch
    }
    now, installed = {**kept.figures, "epoch": kept.epoch}, versions()
    changed = (
        f"{printable(name)}: {printable(version)} → {installed.get(name, 'absent')}"
        for name, version in known.versions.items()
        if installed.get(name) != version
    )
    return {name: now[name] - value for name, value in before.items() if now[name] != value}, tuple(changed)
