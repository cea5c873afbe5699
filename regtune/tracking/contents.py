"""What MLflow is to say of a study and its trials, and what it lacks of that.

Plain values: MLflow is imported only for what is its own.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from regtune.config.trial import METRICS
from regtune.escaping import printable
from regtune.storage.artifacts import inside
from regtune.study.record import State, TrialRecord
from regtune.tracking import names
from regtune.tracking.runs import Experiment, Reader, Run
from regtune.tracking.studies import DataFacts, ParentState, RetrainedFrom, StudyFacts, params
from regtune.tracking.views import experiment_note, study_note, trial_note, view_tags

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
    written again when the tag CONFIG_DIGEST changes; None for a run without one. artifacts: other files and their
    SHA-256. status: as MLflow has it. ended_ms: None while it runs, and for "whenever it was"; moved so that
    from started_ms on it is as long as the run took, pauses left out. split_seed: of its data; None for the study's.
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
    artifacts: Mapping[str, str] = field(default_factory=dict)
    split_seed: int | None = None


def trial_contents(facts: StudyFacts, number: int, state: State, record: TrialRecord) -> Contents:
    """What a trial's run says, its parent's id aside."""
    status = names.status(state, record.end_reason)
    ended, again = None, facts.retrained
    if status != "RUNNING":
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
        names.STANDING: facts.standings.get(number) if again is None else None,
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
        name=_run_name(number, record, again),
        started_ms=record.started_ms,
        tags={name: value for name, value in tags.items() if value is not None},
        note=trial_note(facts, number),
        params=params(facts, record),
        points=points_of(facts, record),
        status=status,
        ended_ms=ended,
        config=record.config.to_yaml,
        artifacts=record.artifacts,
    )


def _run_name(number: int, record: TrialRecord, retrained: RetrainedFrom | None) -> str:
    """Number, technique mix, and what else sets this trial apart; one that is trained again has its own number."""
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
    started = facts.created_ms or int(time.time() * 1000)
    day = time.strftime("%Y-%m-%d %H:%M", time.localtime(started / 1000))
    name = "study" if facts.name == facts.sweep else f"study {printable(facts.name)}"
    if facts.retrained is not None:
        name = "training" if facts.retrained.trial is None else "retraining"
    return Contents(
        name=f"{name} of {day}",
        started_ms=started,
        tags=tags,
        note=study_note(facts, state, winner, best),
        params=facts.settings,
        points=points,
        status=state,
        ended_ms=None if state == "RUNNING" else at_ms,
        config=(lambda: file) if file else None,
        config_name=names.SWEEP_FILE,
    )


def points_of(facts: StudyFacts, record: TrialRecord) -> dict[str, list[Point]]:
    """Every point of a trial, for each metric.

    There is one per epoch, and at the trial's end a single one at step 0: of the weights that it keeps, or, for a
    pruned trial, of its best epoch. Points that are not finite are left out.
    """
    points: dict[str, list[Point]] = {}
    for name in METRICS:
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
            **{names.evidence(name): value for name, value in kept.extra.items()},
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


def dataset_inputs(data: DataFacts, split_seed: int | None = None) -> list[Any]:
    """Return both parts of the data as `mlflow.entities.DatasetInput`. split_seed: another than the study's.

    MLflow keeps 36 characters of a digest, so the whole is a tag and in the source; of one name and digest it keeps one
    entry, so the parts of another split have another name.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs, another = [], ""
    if split_seed not in (None, data.split_seed):
        data, another = replace(data, split_seed=split_seed), f", split {split_seed}"
    where = {"name": data.name, "source": data.source, "sha256": data.digest, "split_seed": data.split_seed}
    for part, count in (("training", data.train), ("validation", data.validation)):
        schema = {"images": f"({count}, {data.features}) float32", "labels": f"({count},) int32"}
        shape = {"images": count, "features": data.features, "classes": data.classes}
        dataset = Dataset(
            name=f"{data.name} {part}{another}",
            digest=data.digest[:12],
            source_type="regtune",
            source=json.dumps({**where, "part": part}),
            schema=json.dumps(schema),
            profile=json.dumps(shape),
        )
        tags = [InputTag(names.DATA_CONTEXT, part), InputTag(names.DATA, data.digest)]
        inputs.append(DatasetInput(dataset, tags))
    return inputs


PASSING = names.STANDING, names.MESSAGE, names.END_REASON
"""Tags that another decision, or another attempt, does without."""


@dataclass(frozen=True)
class Lack:
    """What a run lacks. points: with their metric's name, oldest first. config: whether its configuration is missing.

    obsolete: tags that its record no longer gives it. artifacts: files to be brought, with their SHA-256.
    surplus: files to be removed. ended_ms: Unix milliseconds.
    """

    points: Sequence[tuple[str, Point]]
    params: Mapping[str, str]
    tags: Mapping[str, str]
    obsolete: Sequence[str]
    inputs: bool
    config: bool
    artifacts: Mapping[Path, str]
    surplus: Sequence[str]
    status: str | None
    ended_ms: int | None

    @property
    def kinds(self) -> list[str]:
        """What is missing, in words."""
        found = {
            "points": self.points,
            "params": self.params,
            "tags": self.tags or self.obsolete,
            "data sets": self.inputs,
            names.CONFIG: self.config,
            "files": self.artifacts or self.surplus,
            "state": self.status,
        }
        return [kind for kind, lack in found.items() if lack]


def lacking(run: Run, wanted: Contents, reader: Reader, folder: Path) -> Lack:
    """What `run` lacks of `wanted`. folder: regtune's artifact folder.

    A file of another digest is not brought. A file that is not here cannot be brought and is not missed: the
    trial's folder may lie on another machine. Nor is any of a run that keeps its files outside the project.
    """
    reached = inside(run.artifact_uri, folder)
    wanted_tags, brought = dict(wanted.tags), {}
    tagged = {
        name.removeprefix(names.ARTIFACT): sha256
        for name, sha256 in run.tags.items()
        if name.startswith(names.ARTIFACT)
    }
    present = {name: sha256 for name, sha256 in tagged.items() if not _lost(run, name, folder)}
    for name, sha256 in wanted.artifacts.items():
        file = folder / "trials" / wanted.tags[names.TRIAL_UID] / name
        if not reached or present.get(name) == sha256 or not file.is_file():
            continue
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found == sha256:
            brought[file] = sha256
        else:
            said = f"{name} has digest {found}, its record says {sha256}: not shown here"
            wanted_tags[names.MESSAGE] = said
    tags = _differing(wanted_tags, run.tags) | note(run.tags, wanted.note)
    done = run.status == wanted.status and wanted.ended_ms in (None, run.end_ms)
    stale = wanted.config_name not in present or names.CONFIG_DIGEST in tags
    return Lack(
        points=_points(run, wanted.points, reader),
        params={name: value for name, value in wanted.params.items() if name not in run.params},
        tags=tags,
        obsolete=[name for name in PASSING if name in run.tags and name not in wanted_tags],
        inputs=not run.inputs,
        config=reached and wanted.config is not None and stale,
        artifacts=brought,
        surplus=sorted(tagged.keys() - {wanted.config_name, *wanted.artifacts}) if reached else [],
        status=None if done else wanted.status,
        ended_ms=None if done else wanted.ended_ms,
    )


def _lost(run: Run, name: str, folder: Path) -> bool:
    """Whether a file that MLflow is said to have in this folder is not there; elsewhere its server sees to it."""
    own = f"{(folder / 'runs').as_uri()}/"
    if not run.artifact_uri.startswith(own):
        return False
    return not (folder / "runs" / unquote(run.artifact_uri.removeprefix(own)) / name).exists()


def experiment_lacks(facts: StudyFacts, found: Experiment | None) -> dict[str, str]:
    """The tags that an experiment lacks; all where it has to be made.

    They are those of the study that has the sweep's name; others that share the experiment, set aside or trained
    again, leave them alone.
    """
    if found is not None and facts.name != facts.sweep:
        return {}
    tags = {} if found is None else found.tags
    wanted = {
        names.SWEEP: facts.sweep,
        names.EXPERIMENT_KIND: "custom_model_development",
        names.PRIMARY_METRIC: names.best(facts.metric),
        names.PRIMARY_METRIC_GREATER: str(facts.goal == "maximize"),
        **view_tags(facts),
    }
    return _differing(wanted, tags) | note(tags, experiment_note(facts))


def _differing(wanted: Mapping[str, str], found: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in wanted.items() if found.get(name) != value}


def note(tags: Mapping[str, str], text: str) -> dict[str, str]:
    """The tags of a description, unless it is there, or a person has written another since."""
    current = tags.get(names.NOTE, "")
    if current == text or (current and digest(current) != tags.get(names.NOTE_DIGEST)):
        return {}
    return {names.NOTE: text, names.NOTE_DIGEST: digest(text)}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _points(run: Run, wanted: Mapping[str, Sequence[Point]], reader: Reader) -> list[tuple[str, Point]]:
    """The points that MLflow lacks, oldest first.

    A metric's points are written in order, so its newest tells how many there are; the whole history is
    read only when the newest is none of those wanted. Of points of one step MLflow shows the latest: where that is
    another, the last one wanted is written as of now, also where the history has it from before.
    """
    missing: list[tuple[str, Point]] = []
    for name, points in wanted.items():
        last, known = run.last.get(name), [(point.step, point.value) for point in points]
        if last in known:
            missing += [(name, point) for point in points[known.index(last) + 1 :]]
        else:
            there = set() if last is None else reader.history(run.run_id, name)
            lacking = [point for point in points if (point.step, point.value) not in there]
            if last is not None and points and last[0] == points[-1].step:
                now = int(time.time() * 1000)
                lacking = [*(one for one in lacking if one is not points[-1]), points[-1]._replace(at_ms=now)]
            missing += [(name, point) for point in lacking]
    return sorted(missing, key=lambda entry: entry[1].step)
