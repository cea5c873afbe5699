"""What runs and experiments say: every name, tag, point and input, from a study's facts and a trial's record."""

from __future__ import annotations

import json
import math

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric

from regtune.record import State, TrialRecord
from regtune.tracking import names
from regtune.tracking.facts import StudyFacts
from regtune.tracking.views import view_tag

TAG_LENGTH = 5000
SHORT_DIGEST = 12


def run_name(number: int, record: TrialRecord) -> str:
    """The run's name: number and technique mix, and what else sets this trial apart."""
    parts = [f"#{number:03d}", record.config.mix]
    if record.control is not None:
        parts.append("(control)" if record.control != "early_stopping" else "(control, early stopping)")
    if record.retry_of is not None:
        parts.append(f"(retry of #{record.retry_of:03d})")
    return " ".join(parts)


def points_of(facts: StudyFacts, record: TrialRecord) -> dict[str, list[Metric]]:
    """Every point of a trial, for each metric: one an epoch, and single ones at step 0 when it is at its
    end.
    """
    points: dict[str, list[Metric]] = {
        name: [
            Metric(name, float(value), at_ms, epoch)
            for epoch, (value, at_ms) in enumerate(
                zip(record.history.get(name, ()), record.epoch_ended_ms, strict=False), start=1
            )
            if math.isfinite(value)
        ]
        for name in names.EPOCH_METRICS
    }
    if record.kept is not None and record.ended_ms is not None:
        kept = record.kept
        wanted = dict.fromkeys(("val_cross_entropy", "val_accuracy", facts.metric))
        single = {names.best(name): kept.figures[name] for name in wanted} | {
            names.BEST_EPOCH: float(kept.epoch),
            names.BEST_GAP: kept.generalization_gap,
            names.SPARSITY: kept.sparsity,
            names.L2_NORM: kept.l2_norm,
        }
        for name, value in single.items():
            if math.isfinite(value):
                points[name] = [Metric(name, float(value), record.ended_ms, 0)]
    return points


def trial_tags(number: int, state: State, record: TrialRecord) -> dict[str, str]:
    """What sets a trial's run apart, and how it stands."""
    tags = {
        names.KIND: names.TRIAL,
        names.TRIAL_UID: record.uid,
        names.NUMBER: str(number),
        names.STATE: state,
        names.MIX: record.config.mix,
        names.SEED: str(record.config.seed),
        names.CONFIG_DIGEST: record.config.digest,
        names.ATTEMPT: str(record.attempt),
    }
    optional = {
        names.END_REASON: record.end_reason,
        names.CONTROL: record.control,
        names.REQUESTED: "true" if record.requested else None,
        names.RETRY_OF: record.retry_of,
        names.WORKER: record.worker,
        names.MESSAGE: record.message[:TAG_LENGTH] if record.message else None,
    }
    return tags | {name: str(value) for name, value in optional.items() if value is not None}


def study_tags(facts: StudyFacts) -> dict[str, str]:
    """What a parent says from its beginning."""
    return {
        names.KIND: names.STUDY,
        names.STUDY_UID: facts.uid,
        names.STATE: names.RUNNING,
        names.DATA: facts.data.digest,
        names.METRIC: facts.metric,
        names.GOAL: facts.goal,
        **{f"{names.VERSION}{library}": version for library, version in facts.versions.items()},
    }


def experiment_tags(facts: StudyFacts) -> dict[str, str]:
    """By what an experiment is found again, and how MLflow's page shows it."""
    return {
        names.SWEEP: facts.sweep,
        names.EXPERIMENT_KIND: "custom_model_development",
        names.PRIMARY_METRIC: names.best(facts.metric),
        names.PRIMARY_METRIC_GREATER: str(facts.goal == "maximize"),
        **dict([view_tag(facts)]),
    }


def source_tags(facts: StudyFacts) -> dict[str, str]:
    """What MLflow shows as a run's source."""
    return {names.SOURCE_NAME: f"regtune sweep ({facts.sweep})", names.SOURCE_TYPE: "LOCAL"}


def dataset_input(facts: StudyFacts, part: str, count: int) -> DatasetInput:
    """One part of the data as MLflow's input. MLflow keeps 36 characters of a digest, so the whole is a tag
    and in the source.
    """
    data = facts.data
    where = {
        "name": data.name,
        "source": data.source,
        "sha256": data.digest,
        "split_seed": data.split_seed,
        "part": part,
    }
    shape = {"images": count, "features": data.features, "classes": data.classes}
    dataset = Dataset(
        name=f"{data.name} {part}",
        digest=data.digest[:SHORT_DIGEST],
        source_type="regtune",
        source=json.dumps(where),
        schema=json.dumps({"images": f"({count}, {data.features}) float32", "labels": f"({count},) int32"}),
        profile=json.dumps(shape),
    )
    return DatasetInput(dataset, [InputTag(names.DATA_CONTEXT, part), InputTag(names.DATA, data.digest)])
