"""The projection of a study into MLflow: makes the runs match the study's records, or says what they lack.

One experiment a sweep name, one parent run a study, one child run a trial; beside that parent one for the study's
decision, with one child run a replicate. Every run is found by its tag before it is made, and only what MLflow lacks is
written, with the recorded times; so writing while trials run, catching up and rebuilding from nothing are the same
calls, and comparing is the same without the writing.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from regtune.errors import TrackingError
from regtune.escaping import printable, shell_word
from regtune.settings import Settings
from regtune.storage.artifacts import inside, remove
from regtune.storage.mlflow import is_server
from regtune.storage.schema import TRACKING
from regtune.study.record import State, TrialRecord, trial_uid
from regtune.tracking import names
from regtune.tracking.contents import (
    Contents,
    Lack,
    dataset_inputs,
    digest,
    experiment_lacks,
    lacking,
    note,
    study_contents,
    trial_contents,
)
from regtune.tracking.decisions import decision_contents, replicate_contents
from regtune.tracking.missing import Missing
from regtune.tracking.runs import ClientReader, Reader, Run, SqlReader, runs_with
from regtune.tracking.store import first_line, open_client
from regtune.tracking.studies import OPEN, Key, ParentState, StudyFacts, Trial, Trials

AT_ONCE = 25
"""Trials that are made between two looks at how far it is."""
REFUSALS = (
    "INVALID_PARAMETER_VALUE",
    "PERMISSION_DENIED",
    "BAD_REQUEST",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
    "INVALID_STATE",
)
"""Error codes of MLflow."""


def refusal(error: Exception) -> str:
    """Why MLflow understood a request and will not do it, so that trying again cannot help; empty for other errors."""
    return first_line(error)[:120] if getattr(error, "error_code", None) in REFUSALS else ""


def project(settings: Settings, facts: StudyFacts) -> Projection:
    """The projection of a study to where its runs go. Raises as `open_client`."""
    client, store = open_client(settings), settings.mlflow_uri  # read directly also behind its own server
    reader = ClientReader(client) if is_server(store) else SqlReader(TRACKING.engine(store))
    return Projection(facts, settings.artifacts, reader, client)


class Projection:
    """One study in one MLflow store. artifacts: regtune's artifact folder.

    client: a MlflowClient; without one nothing is written, and `missing` says what would be.
    Every method raises what MLflow raises, and may be called again after that. What has been read or written is
    remembered of runs that are not at their end, and forgotten on any error. Not to be shared between threads.
    """

    def __init__(self, facts: StudyFacts, artifacts: Path, reader: Reader, client: Any = None) -> None:
        self.facts = facts
        """To be set again when the study's decision has changed."""
        self._artifacts, self._reader, self._client = artifacts, reader, client
        self.experiment_id = ""
        """MLflow's id of the experiment; empty before anything was read."""
        self._parent: Run | None = None
        self._decision: Run | None = None
        self._open: dict[str, Run] = {}
        self._made: set[str] = set()
        self._known: set[str] | None = None
        """Uids of the trials that have a run, once all have been read: a lookup costs more than they do."""
        self.writes = 0
        """Changes that MLflow needed."""
        self.missing = Missing()
        """What it lacked."""
        self.refusals: dict[Key, str] = {}
        """Runs that MLflow would not take: the name of each, and why."""

    @property
    def outside(self) -> str:
        """Where the study's files would go, if that is outside the project's artifacts, so that none is written."""
        found = self._parent.artifact_uri if self._parent is not None else ""
        return "" if inside(found or "mlflow-artifacts:/", self._artifacts) else found

    def bring(self, trials: Trials) -> Iterator[int]:
        """Bring MLflow up to date with a study at rest, in steps; yields how many trials have been seen to."""
        yield from self.catch_up(trials)
        self.study(trials.state, trials.winner, trials.ended_ms)

    def catch_up(self, trials: Trials) -> Iterator[int]:
        """Write whatever MLflow lacks of `trials`, read once, page by page; yields as `bring`."""
        self.facts = trials.facts
        with self._opened() as parent:
            kept: dict[str, Run] = {}
            done = 0
            for page in self._reader.pages(self.experiment_id, {names.STUDY_TAG: self.facts.uid}):
                runs = [run for run in page if names.TRIAL_UID in run.tags and self._first(run, kept)]
                uids = {run.tags[names.TRIAL_UID]: run for run in runs}
                numbers = {trials.numbers[uid]: run for uid, run in uids.items() if uid in trials.numbers}
                for found in trials.read([n for n, run in numbers.items() if not run.deleted]):
                    self._write_trial(parent, numbers[found[0]], found)
                for uid, run in uids.items():  # of runs that are seen to, only which they are is kept
                    kept[uid] = replace(run, tags={}, params={}, last={})
                done += len(numbers)
                yield done
            for found in trials.read([number for uid, number in trials.numbers.items() if uid not in kept]):
                if found[2].uid not in self._made:  # by `trial`, since the pages were read
                    self._write_trial(parent, None, found)
                done += 1
                if done % AT_ONCE == 0:
                    yield done
            self._known = set(kept)

    def trial(self, number: Key, state: State, record: TrialRecord) -> None:
        """Make the run of a trial or replicate that has begun say what its record says.

        A run that a person has deleted in MLflow stays deleted.
        """
        with self._opened() as parent:
            run = self._open.get(record.uid)
            new = self._known is not None and record.uid not in self._known and record.uid not in self._made
            if run is None and not new:
                run = self._find({names.TRIAL_UID: record.uid})
            if run is None or not run.deleted:
                self._write_trial(parent, run, (number, state, record))
            else:
                self.refusals.pop(number, None)
        if number in self.refusals:
            self._parent = None

    def study(self, state: ParentState, winner: int | None, at_ms: int | None = None) -> None:
        """Make the parents say how the study and its decision stand, and which trial is the best so far.

        at_ms: when it ended, in Unix milliseconds; None leaves what MLflow has, and means now where it has nothing.
        A retraining leaves the study that it belongs to alone.
        """
        with self._opened() as parent:
            if parent.tags[names.STUDY_TAG] != self.facts.uid:
                return
            uid = trial_uid(self.facts.uid, winner or 0)
            best = None if winner is None else self._find({names.TRIAL_UID: uid})
            best = None if best is None or best.deleted else best
            wanted = study_contents(self.facts, state, winner, best, at_ms)
            if wanted.ended_ms is None and state not in ("RUNNING", parent.status):
                wanted = replace(wanted, ended_ms=int(time.time() * 1000))
            self.missing.own |= bool(self._write(parent, wanted))
            if self.facts.deciding is not None:
                self._experiment()  # whose views show a decision, once there is one
                run = self._open_decision()
                self.missing.decision |= bool(self._write(run, decision_contents(self.facts)))

    def attach(self, path: Path) -> None:
        """Bring a file to the study's own run. It is in no record, so that nothing misses it and nothing removes it.

        Raises TrackingError when there is no such run, or its files lie outside the project's artifacts.
        """
        found, name = self._reader.experiment(self.facts.sweep), self.facts.name
        runs = [] if found is None else runs_with(self._reader, found.experiment_id, _own(self.facts.uid))
        if not runs or runs[0].deleted:
            raise TrackingError(
                f'MLflow has no run of "{printable(name)}"; try: regtune sync {shell_word(name)}'
            )
        if not inside(runs[0].artifact_uri, self._artifacts):
            raise TrackingError(
                f"MLflow keeps this study's files in {runs[0].artifact_uri}, outside {self._artifacts}"
            )
        self._repository(runs[0]).log_artifact(str(path))

    # -- finding

    @contextmanager
    def _opened(self) -> Iterator[Run]:
        """Find or make experiment and parent; after an error nothing that was remembered is sure: read it again."""
        try:
            if self._parent is None:
                before, self._open, self._known, self._decision = self.writes, {}, None, None
                self.experiment_id = self._experiment()
                self._parent = self._open_parent()
                self.missing.own |= self.writes > before
            yield self._parent
        except Exception:
            self._parent = None
            raise

    def _experiment(self) -> str:
        found = self._reader.experiment(self.facts.sweep)
        tags = experiment_lacks(self.facts, found)
        if found is None:
            own = isinstance(self._reader, SqlReader)  # else its server decides where artifacts lie
            place = (self._artifacts / "runs").as_uri() if own else None
            return str(self._change("create_experiment", self.facts.sweep, place, tags))
        if found.deleted:
            self._change("restore_experiment", found.experiment_id)
        for name, value in tags.items():
            self._change("set_experiment_tag", found.experiment_id, name, value)
        return found.experiment_id

    def _open_parent(self) -> Run:
        again = self.facts.retrained
        if again is not None and again.uid is not None:
            theirs = runs_with(self._reader, self.experiment_id, _own(again.uid))
            if theirs and not theirs[0].deleted:
                return theirs[0]
        return self._find_or_create(
            _own(self.facts.uid), lambda: study_contents(self.facts, "RUNNING", None, None)
        )

    def _open_decision(self) -> Run:
        """The run of the study's decision, beside the study's own."""
        if self._decision is None:
            before, tags = self.writes, _own(self.facts.uid, names.DECISION)
            self._decision = self._find_or_create(tags, lambda: decision_contents(self.facts))
            self.missing.decision |= self.writes > before
        return self._decision

    def _find_or_create(self, tags: Mapping[str, str], wanted: Callable[[], Contents]) -> Run:
        found = self._find(tags)
        if found is None:
            return self._create(wanted())
        if found.deleted:
            self._change("restore_run", found.run_id)
            found.deleted = False
        return found

    def _find(self, tags: Mapping[str, str]) -> Run | None:
        """The one run with these tags; others were made by a request whose answer was lost."""
        runs = runs_with(self._reader, self.experiment_id, tags)
        for other in runs[1:]:
            self._delete(other)
        return runs[0] if runs else None

    def _first(self, run: Run, kept: dict[str, Run]) -> bool:
        """Return whether a run is the one of its trial so far. kept: uid -> that run."""
        other = kept.setdefault(run.tags[names.TRIAL_UID], run)
        if other.run_id == run.run_id:  # read twice where others were made between two pages
            return other is run
        first, second = sorted((run, other), key=lambda found: found.rank)
        if not second.deleted:
            self._delete(second)
            self.missing.add(run.tags.get(names.KIND) == names.REPLICATE, ["one run only"])
        kept[run.tags[names.TRIAL_UID]] = first
        return first is run

    # -- making and writing

    def _change(self, verb: str, *arguments: Any) -> Any:
        self.writes += 1
        return None if self._client is None else getattr(self._client, verb)(*arguments)

    def _delete(self, run: Run) -> None:
        if not run.deleted:
            self._change("delete_run", run.run_id)

    def _create(self, wanted: Contents, more: Mapping[str, str] | None = None) -> Run:
        verb = "sweep" if self.facts.retrained is None else "train"
        source = {names.SOURCE_NAME: f"regtune {verb} ({self.facts.sweep})", names.SOURCE_TYPE: "LOCAL"}
        tags = {**source, **(more or {}), **wanted.tags, **note({}, wanted.note)}
        made = self._change("create_run", self.experiment_id, wanted.started_ms, tags, wanted.name)
        if made is None:
            return Run("", "", "RUNNING", tags=tags)
        return Run(made.info.run_id, made.info.artifact_uri, made.info.status, tags=tags)

    def _write_trial(self, parent: Run, run: Run | None, trial: Trial) -> None:
        """Write a trial or replicate; one that MLflow refuses does not hold up the others."""
        number, state, record = trial
        self.refusals.pop(number, None)
        if isinstance(number, int):
            wanted = trial_contents(self.facts, number, state, record)
        else:
            parent, wanted = self._open_decision(), replicate_contents(self.facts, number, state, record)
        uid = parent.tags[names.STUDY_TAG]  # a retraining goes with the study that it is of
        wanted = replace(wanted, tags={**wanted.tags, names.STUDY_TAG: uid})
        try:
            if run is None:
                self.missing.add(not isinstance(number, int))
                if self._client is None:
                    return
                run = self._create(wanted, {names.PARENT: parent.run_id})
                self._made.add(record.uid)
                self._write(run, wanted)
            elif kinds := self._write(run, wanted):
                self.missing.add(not isinstance(number, int), kinds)
        except Exception as error:
            if not (reason := refusal(error)):
                raise
            self.refusals[number] = f"{wanted.name} ({reason})"
            return
        if state in OPEN:
            self._open[record.uid] = run
        else:
            self._open.pop(record.uid, None)

    def _write(self, run: Run, wanted: Contents) -> list[str]:
        """Write what is missing: files first, then all that goes in one call, the state last. Returns of what kinds."""
        lack = lacking(run, wanted, self._reader, self._artifacts)
        if self._client is None:
            return lack.kinds
        from mlflow.entities import Metric, Param, RunTag

        tags = dict(lack.tags)
        if lack.config or lack.artifacts or lack.surplus:  # of a run inside the project's artifacts
            tags |= self._files(run, lack, wanted)
        if lack.points or lack.params or tags:
            self._change(
                "log_batch",
                run.run_id,
                [Metric(name, point.value, point.at_ms, point.step) for name, point in lack.points],
                [Param(name, value) for name, value in lack.params.items()],
                [RunTag(name, value) for name, value in tags.items()],
            )
            run.tags |= tags
            run.params |= lack.params
            run.last |= {name: (point.step, point.value) for name, point in lack.points}
        for name in lack.obsolete:
            self._change("delete_tag", run.run_id, name)
            del run.tags[name]
        if lack.inputs:
            self._change("log_inputs", run.run_id, dataset_inputs(self.facts.data, wanted.split_seed))
            run.inputs = True
        if lack.status is not None:
            if lack.ended_ms is None:
                self._change("update_run", run.run_id, lack.status)
            else:
                self._change("set_terminated", run.run_id, lack.status, lack.ended_ms)
            run.status, run.end_ms = lack.status, lack.ended_ms or run.end_ms
        return lack.kinds

    def _files(self, run: Run, lack: Lack, wanted: Contents) -> dict[str, str]:
        """Bring files and remove them; returns the tags that say which are there now."""
        repository, tags = self._repository(run), {}
        if lack.config and wanted.config is not None:
            text = wanted.config()
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / wanted.config_name
                file.write_text(text, encoding="utf-8")
                repository.log_artifact(str(file))
            tags[names.ARTIFACT + wanted.config_name] = digest(text)
        for path, sha256 in lack.artifacts.items():
            repository.log_artifact(str(path))
            tags[names.ARTIFACT + path.name] = sha256
        for name in lack.surplus:
            remove(run.artifact_uri, self._client.tracking_uri, name)
            self._change("delete_tag", run.run_id, names.ARTIFACT + name)
            del run.tags[names.ARTIFACT + name]
        return tags

    def _repository(self, run: Run) -> Any:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        return get_artifact_repository(run.artifact_uri, self._client.tracking_uri)


def _own(uid: str, kind: str = names.STUDY) -> dict[str, str]:
    return {names.STUDY_TAG: uid, names.KIND: kind}
