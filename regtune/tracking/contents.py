"""The contents of runs and experiments: every name, tag, point and input of a study and its trials.

Plain values: MLflow is imported only for what is its own.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from regtune.escaping import printable
from regtune.study.record import State, TrialRecord, Value
from regtune.tracking import names
from regtune.tracking.facts import ParentState, RetrainedFrom, StudyFacts, params
from regtune.tracking.notes import study_note, trial_note
from regtune.tracking.runs import Run
from regtune.tracking.views import view_tag

TAG_LENGTH = 5000


class Point(NamedTuple):
    """One point of a metric. at_ms: Unix milliseconds."""

    step: int
    value: float
    at_ms: int


@dataclass(frozen=True)
class Contents:
    """What a run says, all of it.

    tags: those that a run is made with and keeps to. note: its description, until a person writes another.
    points: of each metric, in the order of the steps. config: makes the text of the file `config_name`, which is
    written again when the tag CONFIG_DIGEST changes; None for a run without one. artifacts: file name -> SHA-256,
    without that file. status: as MLflow has it. ended_ms: None while it runs, and for "whenever it was"; moved so that
    from started_ms on it is as long as the run took, pauses left out.
    """

    name: str
    started_ms: int | None
    tags: Mapping[str, str]
    note: str
    params: Mapping[str, str]
    points: Mapping[str, Sequence[Point]]
    status: str
    ended_ms: int | None
    config: Callable[[], str] | None = None
    config_name: str = names.CONFIG
    artifacts: Mapping[str, str] | None = None


def trial_contents(facts: StudyFacts, number: int, state: State, record: TrialRecord) -> Contents:
    """What a trial's run says, its parent's id aside."""
    status = names.status(state, record.end_reason)
    ended, again = None, facts.retrained
    if status != names.RUNNING:
        last = record.epoch_ended_ms[-1] if record.epoch_ended_ms else record.started_ms
        ended = record.ended_ms or last
        if ended and record.started_ms and record.again_ms and ended >= record.again_ms:
            ended -= record.again_ms - record.started_ms  # pauses and lost attempts
    tags = {
        names.STUDY_TAG: facts.uid,
        names.KIND: names.TRIAL if again is None else names.RETRAINING,
        names.TRIAL_UID: record.uid,
        names.NUMBER: str(number) if again is None else None,
        names.STATE: state,
        names.MIX: record.config.mix,
        names.SEED: str(record.config.seed),
        names.CONFIG_DIGEST: record.config.digest,
        names.ATTEMPT: str(record.attempt),
        names.END_REASON: record.end_reason,
        names.CONTROL: record.control,
        names.REQUESTED: "true" if record.requested else None,
        names.RETRY_OF: None if record.retry_of is None else str(record.retry_of),
        names.WORKER: None if record.worker is None else str(record.worker),
        names.MESSAGE: record.message[:TAG_LENGTH] if record.message else None,
    }
    return Contents(
        name=run_name(number, record, again),
        started_ms=record.started_ms,
        tags={name: value for name, value in tags.items() if value is not None},
        note=trial_note(facts, number),
        params=_text(params(facts, record)),
        points=points_of(facts, record),
        status=status,
        ended_ms=ended,
        config=record.config.to_yaml,
        artifacts=record.artifacts,
    )


def _text(values: Mapping[str, Value]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}


def run_name(number: int, record: TrialRecord, retrained: RetrainedFrom | None = None) -> str:
    """The run's name: number, technique mix, and what else sets this trial apart.

    A trial that is trained again has its own number.
    """
    parts = [f"#{number:03d}", record.config.mix]
    if retrained is not None:
        parts[0] = "trained" if retrained.trial is None else f"again #{retrained.trial:03d}"
    if record.control is not None:
        parts.append("(control)" if record.control != "early_stopping" else "(control, early stopping)")
    if record.retry_of is not None:
        parts.append(f"(retry of #{record.retry_of:03d})")
    return " ".join(parts)


def study_contents(
    facts: StudyFacts, state: ParentState, winner: int | None, best: Run | None, at_ms: int | None = None
) -> Contents:
    """What a study's own run says. best: the run of its best trial, `winner`. at_ms: when it ended, pauses left out."""
    file = facts.sweep_file
    tags = {
        names.KIND: names.STUDY,
        names.STUDY_TAG: facts.uid,
        names.DATA: facts.data.digest,
        names.METRIC: facts.metric,
        names.GOAL: facts.goal,
        **{f"{names.VERSION}{library}": version for library, version in facts.versions.items()},
        names.STATE: state,
    }
    tags |= {names.CONFIG_DIGEST: hashlib.sha256(file.encode()).hexdigest()} if file else {}
    points: dict[str, list[Point]] = {}
    if best is not None:
        tags |= {names.BEST_RUN: best.run_id, names.BEST_NUMBER: str(winner)}
        points = {
            name: [Point(0, value, best.end_ms or 0)]
            for name, (_, value) in sorted(best.last.items())
            if name.startswith(("best/", "weights/"))
        }
    figures = {name: found[0].value for name, found in points.items()}
    started = facts.created_ms or int(time.time() * 1000)
    day = time.strftime("%Y-%m-%d %H:%M", time.localtime(started / 1000))
    name = "study" if facts.name == facts.sweep else f"study {printable(facts.name)}"
    if facts.retrained is not None:
        name = "training" if facts.retrained.trial is None else "retraining"
    return Contents(
        name=f"{name} of {day}",
        started_ms=started,
        tags=tags,
        note=study_note(facts, state, winner, best.tags if best else {}, figures),
        params=_text(facts.settings),
        points=points,
        status=state,
        ended_ms=None if state == names.RUNNING else at_ms,
        config=(lambda: file) if file else None,
        config_name=names.SWEEP_FILE,
    )


def points_of(facts: StudyFacts, record: TrialRecord) -> dict[str, list[Point]]:
    """Every point of a trial, for each metric.

    There is one per epoch, and at the trial's end a single one at step 0: of the weights that it keeps, or, for a
    pruned trial, of its best epoch. Points that are not finite are left out.
    """
    points: dict[str, list[Point]] = {}
    for name in names.EPOCH_METRICS:
        curve = zip(record.history.get(name, ()), record.epoch_ended_ms, strict=False)
        points[name] = [Point(at, float(y), ms) for at, (y, ms) in enumerate(curve, 1) if math.isfinite(y)]
    wanted = dict.fromkeys(("val_cross_entropy", "val_accuracy", facts.metric))
    single: dict[str, float] = {}
    if record.kept is not None:
        kept = record.kept
        single = {names.best(name): kept.figures[name] for name in wanted} | {
            names.BEST_EPOCH: float(kept.epoch),
            names.BEST_GAP: kept.generalization_gap,
            names.SPARSITY: kept.sparsity,
            names.L2_NORM: kept.l2_norm,
        }
    elif record.end_reason == "pruned" and (reached := points[facts.metric]):
        sign = 1 if facts.goal == "minimize" else -1
        epoch = min(reached, key=lambda point: sign * point.value).step
        single = {names.best(name): record.history[name][epoch - 1] for name in wanted}
        single[names.BEST_EPOCH] = float(epoch)
    if record.ended_ms is not None:
        finite = {name: float(value) for name, value in single.items() if math.isfinite(value)}
        points |= {name: [Point(0, value, record.ended_ms)] for name, value in finite.items()}
    return points


def experiment_tags(facts: StudyFacts) -> dict[str, str]:
    """By what an experiment is found again, and how MLflow's page shows it."""
    return {
        names.SWEEP: facts.sweep,
        names.EXPERIMENT_KIND: "custom_model_development",
        names.PRIMARY_METRIC: names.best(facts.metric),
        names.PRIMARY_METRIC_GREATER: str(facts.goal == "maximize"),
        **view_tag(facts),
    }


def dataset_inputs(facts: StudyFacts) -> list[Any]:
    """Return both parts of the data as `mlflow.entities.DatasetInput`.

    MLflow keeps 36 characters of a digest, so the whole is a tag and in the source.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data, inputs = facts.data, []
    where = {"name": data.name, "source": data.source, "sha256": data.digest, "split_seed": data.split_seed}
    for part, count in (("training", data.train), ("validation", data.validation)):
        schema = {"images": f"({count}, {data.features}) float32", "labels": f"({count},) int32"}
        shape = {"images": count, "features": data.features, "classes": data.classes}
        dataset = Dataset(
            name=f"{data.name} {part}",
            digest=data.digest[:12],
            source_type="regtune",
            source=json.dumps({**where, "part": part}),
            schema=json.dumps(schema),
            profile=json.dumps(shape),
        )
        tags = [InputTag(names.DATA_CONTEXT, part), InputTag(names.DATA, data.digest)]
        inputs.append(DatasetInput(dataset, tags))
    return inputs
