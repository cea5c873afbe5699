"""The runs that MLflow has of a study, read page by page: from a database by SQL, from a server through its client.

The client makes a dozen objects of every run, which takes ten times as long as SQL. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, bindparam, text

from regtune.tracking import names

PAGE = 500
_RUNS = (
    "SELECT r.run_uuid, r.artifact_uri, r.status, r.start_time, r.end_time, r.lifecycle_stage "
    "FROM tags t JOIN runs r ON r.run_uuid = t.run_uuid "
    "WHERE t.key = :key AND t.value = :value AND r.experiment_id = :experiment"
)


@dataclass
class Run:
    """What MLflow has of one run. last: each metric's newest point, its step and value. inputs: data sets."""

    run_id: str
    artifact_uri: str
    status: str
    start_ms: int | None = None
    end_ms: int | None = None
    deleted: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    last: dict[str, tuple[int, float]] = field(default_factory=dict)
    inputs: bool = False

    @property
    def age(self) -> tuple[int, str]:
        """By this the first of several comes first."""
        return self.start_ms or 0, self.run_id


@dataclass(frozen=True)
class Experiment:
    """An experiment. deleted: it lies in MLflow's bin."""

    experiment_id: str
    name: str
    deleted: bool
    tags: Mapping[str, str]


class SqlReader:
    """Reads MLflow's tables (`mlflow/store/tracking/dbmodels/models.py`); raises what the database raises."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def experiment(self, sweep: str) -> Experiment | None:
        """The experiment of a sweep: found by its tag, whatever it is called now, else by its name."""
        tagged = (
            "SELECT e.experiment_id, e.name, e.lifecycle_stage FROM experiments e JOIN experiment_tags t "
            "ON t.experiment_id = e.experiment_id WHERE t.key = :key AND t.value = :sweep ORDER BY 1 LIMIT 1"
        )
        named = "SELECT experiment_id, name, lifecycle_stage FROM experiments WHERE name = :sweep"
        with self.engine.connect() as connection:
            given = {"key": names.SWEEP, "sweep": sweep}
            found = connection.execute(text(tagged), given).first()
            found = found or connection.execute(text(named), {"sweep": sweep}).first()
            if found is None:
                return None
            rows = connection.execute(
                text("SELECT key, value FROM experiment_tags WHERE experiment_id = :id"), {"id": found[0]}
            )
            return Experiment(str(found[0]), found[1], found[2] == "deleted", dict(map(tuple, rows)))

    def parents(self, experiment_id: str, uid: str) -> list[Run]:
        """The study's own runs, deleted ones too; the first comes first."""
        kind = "EXISTS (SELECT 1 FROM tags k WHERE k.run_uuid = t.run_uuid AND k.key = :kind AND k.value = :study)"
        given = {"kind": names.KIND, "study": names.STUDY}
        return sorted(self._page(experiment_id, names.STUDY_TAG, uid, kind, given), key=lambda run: run.age)

    def trials(self, experiment_id: str, uid: str) -> Iterator[list[Run]]:
        """Every run of the study's trials by pages, deleted ones too, in an order that writing does not change."""
        last = ""
        while page := self._page(experiment_id, names.STUDY_TAG, uid, "t.run_uuid > :last", {"last": last}):
            yield [run for run in page if names.TRIAL_UID in run.tags]
            last = page[-1].run_id

    def trial(self, experiment_id: str, uid: str) -> list[Run]:
        """The runs of the trial `uid`, deleted ones too; the first comes first."""
        return sorted(self._page(experiment_id, names.TRIAL_UID, uid), key=lambda run: run.age)

    def history(self, run_id: str, metric: str) -> set[tuple[int, float]]:
        """Step and value of every point of a metric."""
        query = "SELECT step, value FROM metrics WHERE run_uuid = :run_id AND key = :metric"
        with self.engine.connect() as connection:
            rows = connection.execute(text(query), {"run_id": run_id, "metric": metric})
            return {(step, value) for step, value in rows}

    def _page(
        self,
        experiment_id: str,
        key: str,
        value: str,
        also: str = "1 = 1",
        given: Mapping[str, str] | None = None,
    ) -> list[Run]:
        query = f"{_RUNS} AND {also} ORDER BY t.run_uuid LIMIT :page"
        asked = {"key": key, "value": value, "experiment": int(experiment_id), "page": PAGE, **(given or {})}
        with self.engine.connect() as connection:
            rows = connection.execute(text(query), asked)
            runs = {
                run_id: Run(run_id, uri, status, start, end, stage == "deleted")
                for run_id, uri, status, start, end, stage in rows
            }
            if runs:
                _fill(connection, runs)
        return list(runs.values())


def _fill(connection: Connection, runs: dict[str, Run]) -> None:
    """Read what the runs have."""

    def rows(query: str) -> Any:
        wanted = text(query).bindparams(bindparam("ids", expanding=True))
        return connection.execute(wanted, {"ids": list(runs)})

    for run_id, key, value in rows("SELECT run_uuid, key, value FROM tags WHERE run_uuid IN :ids"):
        runs[run_id].tags[key] = value
    for run_id, key, value in rows("SELECT run_uuid, key, value FROM params WHERE run_uuid IN :ids"):
        runs[run_id].params[key] = value
    points = "SELECT run_uuid, key, step, value FROM latest_metrics WHERE run_uuid IN :ids"
    for run_id, key, step, value in rows(points):
        runs[run_id].last[key] = step, value
    inputs = "SELECT destination_id FROM inputs WHERE destination_type = 'RUN' AND destination_id IN :ids"
    for (run_id,) in rows(inputs):
        runs[run_id].inputs = True


class ClientReader:
    """Reads a tracking server, as `SqlReader` reads a database. client: a MlflowClient on it."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def experiment(self, sweep: str) -> Experiment | None:
        from mlflow.entities import ViewType

        found = None
        if "'" not in sweep and "\\" not in sweep:  # the filter language cannot escape them
            tagged = f"tags.`{names.SWEEP}` = '{sweep}'"
            found = next(iter(self._client.search_experiments(ViewType.ALL, 1, tagged)), None)
        found = found or self._client.get_experiment_by_name(sweep)
        if found is None:
            return None
        return Experiment(found.experiment_id, found.name, found.lifecycle_stage == "deleted", found.tags)

    def parents(self, experiment_id: str, uid: str) -> list[Run]:
        wanted = f"{_is(names.STUDY_TAG, uid)} AND {_is(names.KIND, names.STUDY)}"
        return [run for page in self._pages(experiment_id, wanted) for run in page]

    def trials(self, experiment_id: str, uid: str) -> Iterator[list[Run]]:
        for page in self._pages(experiment_id, _is(names.STUDY_TAG, uid)):
            yield [run for run in page if names.TRIAL_UID in run.tags]

    def trial(self, experiment_id: str, uid: str) -> list[Run]:
        return [run for page in self._pages(experiment_id, _is(names.TRIAL_UID, uid)) for run in page]

    def history(self, run_id: str, metric: str) -> set[tuple[int, float]]:
        return {(point.step, point.value) for point in self._client.get_metric_history(run_id, metric)}

    def _pages(self, experiment_id: str, wanted: str) -> Iterator[list[Run]]:
        from mlflow.entities import ViewType

        order, token = ["attributes.start_time ASC", "attributes.run_id ASC"], None
        while True:
            page = self._client.search_runs([experiment_id], wanted, ViewType.ALL, PAGE, order, token)
            yield [_run(found) for found in page]
            token = page.token
            if not token:
                return


Reader = SqlReader | ClientReader


def _is(tag: str, value: str) -> str:
    return f"tags.`{tag}` = '{value}'"


def _run(found: Any) -> Run:
    """A run from the client's `mlflow.entities.Run`."""
    info, data = found.info, found.data
    return Run(
        run_id=info.run_id,
        artifact_uri=info.artifact_uri,
        status=info.status,
        start_ms=info.start_time,
        end_ms=info.end_time,
        deleted=info.lifecycle_stage == "deleted",
        tags=data.tags,
        params=data.params,
        last={point.key: (point.step, point.value) for point in data.to_proto().metrics},
        inputs=bool(found.inputs and found.inputs.dataset_inputs),
    )
