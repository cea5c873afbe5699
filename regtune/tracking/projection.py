"""The projection of a study into MLflow: makes the runs match the study's records.

One experiment a sweep name, one parent run a study, one child run a trial. Every run is found by its tag
before it is made, and only what MLflow lacks is written, with the recorded times; so writing while trials
run, catching up and rebuilding from nothing are the same calls. What has been read or written is remembered
of runs that are not at their end, and forgotten on any error.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from regtune.storage.artifacts import inside, remove
from regtune.storage.mlflow import is_server
from regtune.storage.schema import TRACKING
from regtune.study.record import State, TrialRecord
from regtune.tracking import names
from regtune.tracking.contents import (
    Contents,
    dataset_inputs,
    experiment_tags,
    study_contents,
    trial_contents,
)
from regtune.tracking.differences import Lack, digest, experiment_lacks, lacking, note
from regtune.tracking.facts import ParentState, StudyFacts
from regtune.tracking.notes import experiment_note
from regtune.tracking.runs import ClientReader, Reader, Run, SqlReader
from regtune.tracking.store import refusal
from regtune.tracking.trials import Trials

AT_ONCE = 25
"""Trials that are made between two looks at how far it is."""


class Projection:
    """One study in one MLflow store. `client` is a MlflowClient; artifacts is regtune's artifact folder.

    place: where a new experiment keeps its artifacts, a URI; None leaves it to a server, and means the artifact
    folder for a database. database: the URI of the client's store where that is known to lie behind a server, to
    be read faster than through it.
    Every method raises what MLflow raises, and may be called again after that. Not to be shared between
    threads.
    """

    def __init__(
        self,
        client: Any,
        facts: StudyFacts,
        artifacts: Path,
        place: str | None = None,
        database: str | None = None,
    ) -> None:
        self._client, self._facts, self._artifacts = client, facts, artifacts
        server = is_server(client.tracking_uri)
        self._place = place or (None if server else (artifacts / "runs").as_uri())
        direct = database or (None if server else client.tracking_uri)
        self._reader: Reader = SqlReader(TRACKING.engine(direct)) if direct else ClientReader(client)
        self.experiment_id = ""
        """MLflow's id of the experiment; empty before anything was read."""
        self._parent: Run | None = None
        self._open: dict[str, Run] = {}
        self._known: set[str] | None = None
        self._made: set[str] = set()
        self.writes = 0
        """Calls that changed something in MLflow."""
        self.refusals: dict[int, str] = {}
        """Trials that MLflow would not take, by their numbers, and why."""

    @property
    def outside(self) -> str:
        """Where the study's files would go, if that is outside the project's artifacts, so that none is written."""
        found = self._parent.artifact_uri if self._parent is not None else ""
        return "" if inside(found or "mlflow-artifacts:/", self._artifacts) else found

    def open(self) -> None:
        """Find or make the experiment and the parent."""
        if self._parent is None:
            self._open, self._known = {}, None
            self.experiment_id = self._experiment()
            self._parent = self._open_parent()

    def trial(self, number: int, state: State, record: TrialRecord) -> None:
        """Make the run of one trial say what its record says.

        A trial that has not started has no run. A run that a person has deleted in MLflow stays deleted.
        """
        if record.started_ms is None:
            return
        with self._opened():
            run = self._find(record.uid)
            if run is None or not run.deleted:
                self._write_trial(run, number, state, record)
        if number in self.refusals:
            self._parent = None

    def catch_up(self, trials: Trials) -> Iterator[tuple[int, int]]:
        """Write whatever MLflow lacks of `trials`, read once, page by page.

        Yields after each step how many trials were compared and how many of them had to be written.
        """
        with self._opened():
            kept: dict[str, Run] = {}
            done = changed = 0
            for page in self._reader.trials(self.experiment_id, self._facts.uid):
                before = self.writes
                runs = [run for run in page if self._first(run, kept)]
                changed += self.writes - before
                uids = {run.tags[names.TRIAL_UID]: run for run in runs}
                numbers = {trials.numbers[uid]: run for uid, run in uids.items() if uid in trials.numbers}
                for found in trials.read([n for n, run in numbers.items() if not run.deleted]):
                    changed += self._write_trial(numbers[found[0]], *found)
                for run in runs:  # of runs that are seen to, only which they are is kept
                    kept[run.tags[names.TRIAL_UID]] = replace(run, tags={}, params={}, last={})
                done += len(numbers)
                yield done, changed
            missing = [(number, uid) for uid, number in trials.numbers.items() if uid not in kept]
            for start in range(0, len(missing), AT_ONCE):
                batch = missing[start : start + AT_ONCE]
                for found in trials.read([number for number, uid in batch if uid not in self._made]):
                    changed += self._write_trial(None, *found)
                done += len(batch)
                yield done, changed
            self._known = kept.keys() | self._made

    def study(self, state: ParentState, winner: int | None, at_ms: int | None = None) -> bool:
        """Make the parent say how the study stands, and which trial, by its number, is the best so far.

        at_ms: when it ended, in Unix milliseconds; None leaves what MLflow has, and means now where it has nothing.
        Returns whether anything had to be written. A retraining leaves the study that it belongs to alone.
        """
        before = self.writes
        with self._opened() as parent:
            if parent.tags[names.STUDY_TAG] != self._facts.uid:
                return False
            best = None if winner is None else self._find(f"{self._facts.uid}-{winner}")
            best = None if best is None or best.deleted else best
            wanted = study_contents(self._facts, state, winner, best, at_ms)
            if wanted.ended_ms is None and state not in (names.RUNNING, parent.status):
                wanted = replace(wanted, ended_ms=int(time.time() * 1000))
            self._write(parent, wanted)
        return self.writes > before

    # -- finding

    def _experiment(self) -> str:
        facts = self._facts
        found = self._reader.experiment(facts.sweep)
        tags = experiment_tags(facts)
        if found is None:
            tags |= note({}, experiment_note(facts))
            return str(self._change(self._client.create_experiment, facts.sweep, self._place, tags))
        if found.deleted:
            self._change(self._client.restore_experiment, found.experiment_id)
        for name, value in experiment_lacks(facts, found).items():
            self._change(self._client.set_experiment_tag, found.experiment_id, name, value)
        return found.experiment_id

    def _open_parent(self) -> Run:
        again = self._facts.retrained
        others = self._reader.parents(self.experiment_id, again.uid) if again and again.uid else []
        if whose := next(
            (run for run in others if not run.deleted), None
        ):  # of the study that was trained again
            return whose
        found = self._reader.parents(self.experiment_id, self._facts.uid)
        if not found:
            return self._create(study_contents(self._facts, "RUNNING", None, None))
        first, *others = found
        for other in others:  # made by a request whose answer was lost
            self._delete(other)
        if first.deleted:
            self._change(self._client.restore_run, first.run_id)
            first.deleted = False
        return first

    def _find(self, uid: str) -> Run | None:
        """The run of a trial; None where there is none."""
        if uid in self._open:
            return self._open[uid]
        if self._known is not None and uid not in self._known and uid not in self._made:
            return None
        kept: dict[str, Run] = {}
        for run in self._reader.trial(self.experiment_id, uid):
            self._first(run, kept)
        return kept.get(uid)

    def _delete(self, run: Run) -> None:
        if not run.deleted:
            self._change(self._client.delete_run, run.run_id)

    def _first(self, run: Run, kept: dict[str, Run]) -> bool:
        """Return whether a run is the one of its trial.

        Of two, created by a request that was answered too late, the later is deleted. kept: uid -> the run's age and
        whether it is deleted, of those seen so far.
        """
        uid = run.tags[names.TRIAL_UID]
        other = kept.get(uid)
        if other is None or (other.deleted and not run.deleted):
            kept[uid] = run
            return True
        if run.deleted:
            return False
        first, second = sorted((run, other), key=lambda found: found.age)
        self._delete(second)
        kept[uid] = first
        return first is run

    # -- making and writing

    def _change(self, call: Callable[..., Any], *arguments: Any) -> Any:
        self.writes += 1
        return call(*arguments)

    def _create(self, wanted: Contents, more: Mapping[str, str] | None = None) -> Run:
        verb = "sweep" if self._facts.retrained is None else "train"
        source = {names.SOURCE_NAME: f"regtune {verb} ({self._facts.sweep})", names.SOURCE_TYPE: "LOCAL"}
        tags = {**(more or {}), **wanted.tags, **note({}, wanted.note), **source}
        made = self._change(self._client.create_run, self.experiment_id, wanted.started_ms, tags, wanted.name)
        return Run(made.info.run_id, made.info.artifact_uri, made.info.status, tags=tags)

    def _write_trial(self, run: Run | None, number: int, state: State, record: TrialRecord) -> bool:
        """Write a trial and return whether that was needed; one that MLflow refuses does not hold up the others."""
        assert self._parent is not None
        before = self.writes
        self.refusals.pop(number, None)
        wanted = trial_contents(self._facts, number, state, record)
        study = self._parent.tags[names.STUDY_TAG]  # a retraining goes with the study that it is of
        wanted = replace(wanted, tags={**wanted.tags, names.STUDY_TAG: study})
        try:
            if run is None:
                run = self._create(wanted, {names.PARENT: self._parent.run_id})
                self._made.add(record.uid)
            self._write(run, wanted)
        except MlflowException as error:
            if not (reason := refusal(error)):
                raise
            self.refusals[number] = reason
            return False
        if wanted.status == names.RUNNING:
            self._open[record.uid] = run
        else:
            self._open.pop(record.uid, None)
        return self.writes > before

    def _write(self, run: Run, wanted: Contents) -> None:
        """Write what is missing: files first, then all that goes in one call, the state last."""
        lack = lacking(run, wanted, self._reader, self._artifacts)
        tags = dict(lack.tags)
        if lack.config or lack.artifacts or lack.surplus:  # of a run inside the project's artifacts
            tags |= self._files(run, lack, wanted)
        if lack.points or lack.params or tags:
            self._change(
                self._client.log_batch,
                run.run_id,
                [Metric(name, point.value, point.at_ms, point.step) for name, point in lack.points],
                [Param(name, value) for name, value in lack.params.items()],
                [RunTag(name, value) for name, value in tags.items()],
            )
            run.tags |= tags
            run.params |= lack.params
            run.last |= {name: (point.step, point.value) for name, point in lack.points}
        if lack.inputs:
            self._change(self._client.log_inputs, run.run_id, dataset_inputs(self._facts))
            run.inputs = True
        if lack.status is not None:
            if lack.ended_ms is None:
                self._change(self._client.update_run, run.run_id, lack.status)
            else:
                self._change(self._client.set_terminated, run.run_id, lack.status, lack.ended_ms)
            run.status, run.end_ms = lack.status, lack.ended_ms or run.end_ms

    def _files(self, run: Run, lack: Lack, wanted: Contents) -> dict[str, str]:
        """Bring files and remove them; returns the tags that say which are there now."""
        repository = get_artifact_repository(run.artifact_uri, self._client.tracking_uri)
        tags = {}
        if lack.config and wanted.config is not None:
            text = wanted.config()
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / wanted.config_name
                file.write_text(text, encoding="utf-8")
                self._change(repository.log_artifact, str(file))
            tags[names.ARTIFACT + wanted.config_name] = digest(text)
        for path, sha256 in lack.artifacts.items():
            self._change(repository.log_artifact, str(path))
            tags[names.ARTIFACT + path.name] = sha256
        for name in lack.surplus:
            remove(run.artifact_uri, self._client.tracking_uri, name)
            self._change(self._client.delete_tag, run.run_id, names.ARTIFACT + name)
            del run.tags[names.ARTIFACT + name]
        return tags

    @contextmanager
    def _opened(self) -> Iterator[Run]:
        """Find or make experiment and parent; after an error nothing that was remembered is sure: read it again."""
        try:
            self.open()
            assert self._parent is not None
            yield self._parent
        except Exception:
            self._parent = None
            raise
