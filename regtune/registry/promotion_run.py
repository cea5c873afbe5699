"""The run of a promotion in MLflow: made before anything is trained, ended with what came of it.

A promotion that was killed leaves its run behind, and perhaps files that no version has. The next one for the same
model withdraws them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import uuid4

from regtune.errors import TrackingError
from regtune.escaping import code, markdown, printable, shell_word
from regtune.processes import identity, is_gone
from regtune.registry.choice import Choice
from regtune.registry.lineage import lineage
from regtune.registry.store import Registry
from regtune.registry.version import Gate, Record
from regtune.storage.artifacts import inside, remove
from regtune.study.record import TrialRecord
from regtune.tracking import names
from regtune.tracking.contents import dataset_inputs, points_of
from regtune.tracking.runs import ClientReader, runs_with
from regtune.tracking.studies import StudyFacts, params

LONGEST = timedelta(days=1)
"""After which a promotion of another machine counts as ended."""
TESTED = ("accuracy", "cross_entropy", "ece", "brier")


@dataclass(frozen=True)
class PromotionRun:
    """The run of one promotion. Every method raises TrackingError where MLflow cannot be used."""

    registry: Registry
    facts: StudyFacts
    experiment_id: str
    run_id: str

    def trained(self, record: TrialRecord) -> None:
        """Write the configuration, and the learning curve of the training that is registered."""
        from mlflow.entities import Metric, Param

        metrics = [
            Metric(name, point.value, point.at_ms, point.step)
            for name, points in points_of(self.facts, record).items()
            for point in points
        ]
        with self.registry.understood():
            client = self.registry.client
            given = [Param(name, value) for name, value in params(self.facts, record).items()]
            client.log_batch(self.run_id, params=given)
            for start in range(0, len(metrics), 1000):  # MLflow takes no more at once
                client.log_batch(self.run_id, metrics=metrics[start : start + 1000])
            client.log_inputs(self.run_id, dataset_inputs(self.facts.data, record.config.data.split_seed))

    def tested(self, record: Record, model_id: str | None) -> None:
        """Write the figures over the test images, also to the model that is registered."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [
            Metric(names.tested(name), getattr(record.test, name), now, 0, model_id=model_id)
            for name in TESTED
        ]
        with self.registry.understood():
            self.registry.client.log_batch(self.run_id, metrics=metrics)

    def gated(self, gates: Sequence[Gate]) -> None:
        """Write how the gates went."""
        with self.registry.understood():
            rows = [gate.model_dump(mode="json") for gate in gates]
            self.registry.client.log_dict(self.run_id, rows, names.GATES_FILE)

    def end(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Say how it ended; files that no version has are deleted."""
        with self.registry.understood():
            _end(self.registry, self.registry.client.get_run(self.run_id), status)


def begin(registry: Registry, facts: StudyFacts, choice: Choice, name: str) -> PromotionRun:
    """Make the run of a promotion in its sweep's experiment; what earlier ones left behind is withdrawn.

    Raises TrackingError, also where MLflow keeps the sweep's files outside the project's artifacts.
    """
    with registry.understood():
        client = registry.client
        reader = ClientReader(client)
        found = reader.experiment(facts.sweep)
        if found is None or found.deleted:
            again = f"regtune sync {shell_word(facts.name)}"
            raise TrackingError(f'MLflow has nothing of "{printable(facts.name)}"; try: {again}')
        _withdraw(registry, name)
        trial = choice.source.trial_uid
        runs = runs_with(reader, found.experiment_id, {names.TRIAL_UID: trial}) if trial else []
        link = f"#/experiments/{found.experiment_id}/runs/{runs[0].run_id}" if runs else ""
        tags = {
            names.KIND: names.PROMOTION,
            names.STUDY_TAG: f"{names.PROMOTED}{uuid4().hex}",
            names.MODEL: name,
            names.PROCESS: identity(),
            names.SOURCE_NAME: f"regtune promote ({facts.sweep})",
            names.SOURCE_TYPE: "LOCAL",
            names.NOTE: _note(choice, name, link),
            **lineage(choice.source, choice.config),
        }
        run = client.create_run(found.experiment_id, tags=tags, run_name=f"promotion of {name}")
        if not inside(run.info.artifact_uri, registry.settings.artifacts):
            client.delete_run(run.info.run_id)
            where = f"{run.info.artifact_uri}, outside {registry.settings.artifacts}"
            raise TrackingError(f"MLflow keeps this sweep's files in {where}")
        return PromotionRun(registry, facts, found.experiment_id, run.info.run_id)


def _note(choice: Choice, name: str, link: str) -> str:
    source = choice.source
    trial = "" if source.trial is None else f", trial {source.trial}"
    trial = f", [trial {source.trial}]({link})" if link else trial
    return (
        f"A training for the registered model **{markdown(printable(name))}**, from the study "
        f"**{markdown(printable(source.study))}**{trial}. `{names.GATES_FILE}`, among the artifacts, has its "
        f"gates.\n\n"
        f"In a terminal: {code(f'regtune model list {shell_word(name)}')}."
    )


def _withdraw(registry: Registry, name: str) -> None:
    """End the runs of promotions of `name` whose process is gone."""
    client = registry.client
    experiments = [one.experiment_id for one in client.search_experiments()]
    wanted = f"tags.`{names.KIND}` = '{names.PROMOTION}' AND attributes.status = 'RUNNING'"
    for run in client.search_runs(experiments, f"{wanted} AND tags.`{names.MODEL}` = '{name}'"):
        begun = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
        if is_gone(run.data.tags.get(names.PROCESS, "")) or datetime.now(UTC) - begun > LONGEST:
            with suppress(TrackingError), registry.understood():  # another account's, which may delete it
                _end(registry, run, "KILLED")


def _end(registry: Registry, run: Any, status: str) -> None:
    """End a run; what it uploaded without coming to a version is deleted first."""
    client, name = registry.client, run.data.tags[names.MODEL]
    uploaded = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    if uploaded:
        versions = client.search_model_versions(f"name = '{name}'")
        known = {version.source for version in versions}
        for model in uploaded:
            if names.MODEL_VERSIONS in model.tags or f"models:/{model.model_id}" in known:
                continue
            if inside(model.artifact_location, registry.settings.artifacts):
                remove(model.artifact_location, client.tracking_uri)
            client.delete_logged_model(model.model_id)
    client.set_terminated(run.info.run_id, status)
