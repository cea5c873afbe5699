"""The projection of a study into MLflow: makes the runs say what the study's records say, and nothing twice.

One experiment a sweep name, one parent run a study, one child run a trial. Every run is found by its tag
before it is made, and only what MLflow lacks is written, with the recorded times; so writing while trials
run, catching up and rebuilding from nothing are the same calls. What has been read or written is remembered
for each run and forgotten on any error.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from regtune.quoting import printable
from regtune.record import State, TrialRecord
from regtune.tracking import names
from regtune.tracking.contents import (
    dataset_input,
    experiment_tags,
    points_of,
    run_name,
    source_tags,
    study_tags,
    trial_tags,
)
from regtune.tracking.facts import ParentState, StudyFacts, params
from regtune.tracking.notes import experiment_note, study_note, trial_note
from regtune.tracking.store import is_server

METRICS_A_BATCH = 1000
PARAMS_A_BATCH = 100
TAGS_A_BATCH = 100
PAGE = 1000

Point = tuple[int, float]
"""Step and value: a point with both is the same point, whenever it was written."""


def trial_folder(artifacts: Path, uid: str) -> Path:
    """Where a trial's own artifacts lie."""
    return artifacts / "trials" / uid


@dataclass
class _Run:
    """What MLflow has for one run, as far as it was read or written. last: each metric's newest point.

    RunData shows only the newest values through its public face; equal values of two epochs need the steps
    beside them.
    """

    run_id: str
    artifact_uri: str
    status: str
    end_ms: int | None
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    last: dict[str, Point] = field(default_factory=dict)
    inputs: bool = False


class Projection:
    """One study in one MLflow store. `client` is a MlflowClient; artifacts is regtune's artifact folder.

    Every method raises what MLflow raises, and may be called again after that. Not to be shared between
    threads.
    """

    def __init__(self, client: Any, facts: StudyFacts, artifacts: Path) -> None:
        self._client = client
        self._facts = facts
        self._artifacts = artifacts
        self._experiment_id = ""
        self._parent: _Run | None = None
        self._trials: dict[str, _Run] = {}
        self._hidden: set[str] = set()
        self.writes = 0
        """Calls that changed something in MLflow."""

    @property
    def experiment_id(self) -> str:
        """MLflow's id of the experiment; empty before anything was read."""
        return self._experiment_id

    def open(self) -> None:
        """Find or make the experiment and the parent, and read once what MLflow has of this study."""
        if self._parent is not None:
            return
        self._experiment_id = self._experiment()
        self._trials, self._hidden = {}, set()
        parents = []
        for found in self._search(f"tags.`{names.STUDY_UID}` = '{self._facts.uid}'"):
            uid = found.data.tags.get(names.TRIAL_UID)
            if uid is None:
                parents.append(found)
            elif found.info.lifecycle_stage == "deleted":
                self._hidden.add(uid)
            elif uid in self._trials:
                self._client.delete_run(
                    found.info.run_id
                )  # a request that was answered too late was made twice
            else:
                self._trials[uid] = _read(found)
        self._hidden -= self._trials.keys()
        self._parent = self._open_parent(parents)

    def trial(self, number: int, state: State, record: TrialRecord) -> bool:
        """Make the run of one trial say what its record says. Returns whether anything had to be written.

        A trial that has not started has no run. A run that a person has deleted in MLflow stays deleted.
        """
        if record.started_ms is None:
            return False
        before = self.writes
        try:
            self.open()
            if record.uid in self._hidden:
                return False
            run = self._trials.get(record.uid) or self._create_trial(number, state, record)
            self._batch(run, self._missing_points(run, points_of(self._facts, record)), record)
            self._tag(run, trial_tags(number, state, record))
            self._inputs(run)
            self._text(run, names.CONFIG, record.config.to_yaml())
            self._model(run, record)
            self._status(run, names.status(state, record.end_reason), record)
        except Exception:
            self._forget()
            raise
        return self.writes > before

    def study(self, state: ParentState, winner: int | None, at_ms: int | None = None) -> None:
        """Make the parent say how the study stands, and which trial, by its number, is the best so far.

        at_ms: when it ended, in Unix milliseconds; now, if not given. A parent that has ended stays as it is.
        """
        try:
            self.open()
            assert self._parent is not None
            parent = self._parent
            best = next((r for r in self._trials.values() if r.tags.get(names.NUMBER) == str(winner)), None)
            tags: dict[str, str] = {names.STATE: state}
            if best is not None:
                tags |= {names.BEST_RUN: best.run_id, names.BEST_NUMBER: str(winner)}
                points = [
                    Metric(name, best.last[name][1], best.end_ms or 0, 0)
                    for name in sorted(best.last)
                    if name.startswith(("best/", "weights/"))
                ]
                self._batch(
                    parent, [point for point in points if parent.last.get(point.key) != (0, point.value)]
                )
            self._tag(parent, tags)
            self._note(
                parent, study_note(self._facts, state, winner, best.tags if best else {}, best_values(best))
            )
            if state != parent.status:
                ended = None if state == names.RUNNING else at_ms or int(time.time() * 1000)
                self._set_status(parent, state, ended)
        except Exception:
            self._forget()
            raise

    # -- finding and making

    def _experiment(self) -> str:
        facts = self._facts
        text = f"tags.`{names.SWEEP}` = '{facts.sweep}'"
        quoted = "'" in facts.sweep or "\\" in facts.sweep  # the filter language cannot escape them
        tagged = (
            [] if quoted else self._client.search_experiments(ViewType.ALL, filter_string=text, max_results=1)
        )
        found = tagged[0] if tagged else self._client.get_experiment_by_name(facts.sweep)
        if found is None:
            tags = experiment_tags(facts) | {names.NOTE: experiment_note(facts)}
            place = None if is_server(self._client.tracking_uri) else (self._artifacts / "runs").as_uri()
            self.writes += 1
            return str(self._client.create_experiment(facts.sweep, artifact_location=place, tags=tags))
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
            self.writes += 1
        wanted = experiment_tags(facts)
        if names.NOTE not in found.tags:  # a person's own words stay
            wanted[names.NOTE] = experiment_note(facts)
        for name, value in wanted.items():
            if found.tags.get(name) != value:
                self._client.set_experiment_tag(found.experiment_id, name, value)
                self.writes += 1
        return str(found.experiment_id)

    def _search(self, text: str) -> Iterator[Any]:
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id],
                text,
                run_view_type=ViewType.ALL,
                max_results=PAGE,
                order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def _open_parent(self, found: Sequence[Any]) -> _Run:
        if found:
            first = found[0]
            if first.info.lifecycle_stage == "deleted":
                self._client.restore_run(first.info.run_id)
                self.writes += 1
            return _read(first)
        facts = self._facts
        started = facts.created_ms or int(time.time() * 1000)
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(started / 1000))
        name = "study" if facts.name == facts.sweep else f"study {printable(facts.name)}"
        run = self._create(f"{name} of {day}", started, study_tags(facts) | source_tags(facts))
        self._inputs(run)
        return run

    def _create_trial(self, number: int, state: State, record: TrialRecord) -> _Run:
        assert self._parent is not None
        tags = {
            names.PARENT: self._parent.run_id,
            names.STUDY_UID: self._facts.uid,
            names.NOTE: trial_note(self._facts, number),
            **trial_tags(number, state, record),
            **source_tags(self._facts),
        }
        run = self._create(run_name(number, record), record.started_ms, tags)
        self._trials[record.uid] = run
        return run

    def _create(self, name: str, started_ms: int | None, tags: Mapping[str, str]) -> _Run:
        made = self._client.create_run(self._experiment_id, started_ms, dict(tags), name)
        self.writes += 1
        return _read(made)

    # -- writing what is missing

    def _missing_points(self, run: _Run, wanted: Mapping[str, Sequence[Metric]]) -> list[Metric]:
        """The points that MLflow lacks, oldest first.

        A metric's points are written in order, so its newest tells how many there are; the whole history is
        read only when the newest is none of those wanted.
        """
        missing: list[Metric] = []
        for name, points in wanted.items():
            known = [(point.step, point.value) for point in points]
            last = run.last.get(name)
            if last is None:
                missing.extend(points)
            elif last in known:
                missing.extend(points[len(known) - known[::-1].index(last) :])
            else:
                history = {(m.step, m.value) for m in self._client.get_metric_history(run.run_id, name)}
                missing.extend(point for point in points if (point.step, point.value) not in history)
        return sorted(missing, key=lambda point: point.step)

    def _batch(self, run: _Run, points: Sequence[Metric], record: TrialRecord | None = None) -> None:
        shown = params(self._facts, record) if record is not None else {}
        new = [Param(name, str(value)) for name, value in shown.items() if name not in run.params]
        for some in _chunks(new, PARAMS_A_BATCH):
            self._client.log_batch(run.run_id, params=some)
            self.writes += 1
            run.params |= {param.key: param.value for param in some}
        for batch in _chunks(points, METRICS_A_BATCH):
            self._client.log_batch(run.run_id, metrics=batch)
            self.writes += 1
            run.last |= {point.key: (point.step, point.value) for point in batch}

    def _tag(self, run: _Run, wanted: Mapping[str, str]) -> None:
        changed = {name: value for name, value in wanted.items() if run.tags.get(name) != value}
        for some in _chunks(sorted(changed.items()), TAGS_A_BATCH):
            self._client.log_batch(run.run_id, tags=[RunTag(name, value) for name, value in some])
            self.writes += 1
            run.tags |= dict(some)

    def _inputs(self, run: _Run) -> None:
        if run.inputs:
            return
        data = self._facts.data
        parts = (("training", data.train), ("validation", data.validation))
        self._client.log_inputs(
            run.run_id, [dataset_input(self._facts, part, count) for part, count in parts]
        )
        self.writes += 1
        run.inputs = True

    def _text(self, run: _Run, name: str, text: str) -> None:
        digest = hashlib.sha256(text.encode()).hexdigest()
        if run.tags.get(names.ARTIFACT + name) != digest:
            self._client.log_text(run.run_id, text, name)
            self.writes += 1
            self._tag(run, {names.ARTIFACT + name: digest})

    def _model(self, run: _Run, record: TrialRecord) -> None:
        """Bring `model.keras` where the record says: into the run, or, when a better one took its place,
        out of it.
        """
        tag = names.ARTIFACT + names.MODEL
        wanted, present = record.artifacts.get(names.MODEL), run.tags.get(tag)
        if wanted == present:
            return
        if wanted is None:
            get_artifact_repository(run.artifact_uri, self._client.tracking_uri).delete_artifacts(names.MODEL)
            self._client.delete_tag(run.run_id, tag)
            self.writes += 1
            del run.tags[tag]
            return
        file = trial_folder(self._artifacts, record.uid) / names.MODEL
        found = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
        if found == wanted:
            self._client.log_artifact(run.run_id, str(file))
            self.writes += 1
            self._tag(run, {tag: wanted})
        elif found is not None:
            self._tag(
                run,
                {names.MESSAGE: f"model.keras has digest {found}, its record says {wanted}: not shown here"},
            )

    def _note(self, run: _Run, text: str) -> None:
        """Describe a run, unless a person has described it since."""
        digest = hashlib.sha256(text.encode()).hexdigest()
        current = run.tags.get(names.NOTE, "")
        ours = hashlib.sha256(current.encode()).hexdigest() == run.tags.get(names.NOTE_DIGEST)
        if current != text and (ours or not current):
            self._tag(run, {names.NOTE: text, names.NOTE_DIGEST: digest})

    def _status(self, run: _Run, status: str, record: TrialRecord) -> None:
        ended = None
        if status != names.RUNNING:
            last = record.epoch_ended_ms[-1] if record.epoch_ended_ms else record.started_ms
            ended = record.ended_ms or last
        if run.status != status or (ended is not None and run.end_ms != ended):
            self._set_status(run, status, ended)

    def _set_status(self, run: _Run, status: str, ended_ms: int | None) -> None:
        if ended_ms is None:
            self._client.update_run(run.run_id, status=status)
        else:
            self._client.set_terminated(run.run_id, status, ended_ms)
        self.writes += 1
        run.status, run.end_ms = status, ended_ms or run.end_ms

    def _forget(self) -> None:
        """After an error nothing that was remembered is sure: the next call reads it again."""
        self._parent = None


def best_values(run: _Run | None) -> dict[str, float]:
    """The single points of a run that is at its end."""
    return {} if run is None else {name: point[1] for name, point in run.last.items() if "/" in name}


def _read(run: Any) -> _Run:
    return _Run(
        run_id=run.info.run_id,
        artifact_uri=run.info.artifact_uri,
        status=run.info.status,
        end_ms=run.info.end_time,
        tags=dict(run.data.tags),
        params=dict(run.data.params),
        last={metric.key: (metric.step, metric.value) for metric in run.data._metric_objs},
        inputs=bool(run.inputs and run.inputs.dataset_inputs),
    )


def _chunks(items: Sequence[Any], size: int) -> Iterable[list[Any]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def refused(error: Exception) -> bool:
    """Whether MLflow understood a request and will not do it, so that trying again soon cannot help."""
    return isinstance(error, MlflowException) and error.error_code in (
        "INVALID_PARAMETER_VALUE",
        "PERMISSION_DENIED",
        "BAD_REQUEST",
        "RESOURCE_ALREADY_EXISTS",
        "RESOURCE_DOES_NOT_EXIST",
        "INVALID_STATE",
    )
