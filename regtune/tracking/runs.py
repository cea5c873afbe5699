"""The runs that MLflow has of a study, read page by page: from a database by SQL, from a server through its client.

The client makes a dozen objects of every run, which takes ten times as long as SQL. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, String, bindparam, text

from regtune.tracking import names

PAGE = 500
_RUNS = (
    "SELECT r.run_uuid, r.artifact_uri, r.status, r.start_time, r.end_time, r.lifecycle_stage "
    "FROM tags t JOIN runs r ON r.run_uuid = t.run_uuid WHERE t.key = :key0 AND t.value = :value0 "
    "AND r.experiment_id = :experiment AND t.run_uuid > :last"
)
_TAGGED = " AND EXISTS (SELECT 1 FROM tags k WHERE k.run_uuid = t.run_uuid AND k.key = :key{0} AND k.value = :value{0})"


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
    def rank(self) -> tuple[bool, int, str]:
        """By this the run that counts comes first of several: the oldest that is not deleted."""
        return self.deleted, self.start_ms or 0, self.run_id


@dataclass(frozen=True)
class Experiment:
    """An experiment. deleted: it lies in MLflow's bin."""

    experiment_id: str
    deleted: bool
    tags: Mapping[str, str]


class SqlReader:
    """Reads MLflow's tables (`mlflow/store/tracking/dbmodels/models.py`); raises what the database raises."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def experiment(self, sweep: str) -> Experiment | None:
        """The experiment of a sweep: found by its tag, whatever it is called now, else by its name."""
        query = (
            "SELECT e.experiment_id, e.lifecycle_stage FROM experiments e "
            "LEFT JOIN experiment_tags t ON t.experiment_id = e.experiment_id AND t.key = :key "
            "WHERE t.value = :sweep OR e.name = :sweep "
            "ORDER BY CASE WHEN t.value = :sweep THEN 0 ELSE 1 END, e.experiment_id LIMIT 1"
        )
        with self.engine.connect() as connection:
            found = connection.execute(text(query), {"key": names.SWEEP, "sweep": sweep}).first()
            if found is None:
                return None
            tags = text("SELECT key, value FROM experiment_tags WHERE experiment_id = :id")
            rows = connection.execute(tags, {"id": found[0]})
            return Experiment(str(found[0]), found[1] == "deleted", dict(map(tuple, rows)))

    def history(self, run_id: str, metric: str) -> set[tuple[int, float]]:
        """Step and value of every point of a metric."""
        query = text("SELECT step, value FROM metrics WHERE run_uuid = :run_id AND key = :metric")
        with self.engine.connect() as connection:
            return {(step, y) for step, y in connection.execute(query, {"run_id": run_id, "metric": metric})}

    def pages(self, experiment_id: str, tags: Mapping[str, str]) -> Iterator[list[Run]]:
        """Every run with these tags, deleted ones too, in an order that writing does not change."""
        given: dict[str, Any] = {"experiment": int(experiment_id), "page": PAGE, "last": ""}
        query = _RUNS
        for at, (key, value) in enumerate(tags.items()):
            query += _TAGGED.format(at) if at else ""
            given |= {f"key{at}": key, f"value{at}": value}
        query += " ORDER BY t.run_uuid LIMIT :page"
        while True:
            with self.engine.connect() as connection:
                rows = connection.execute(text(query), given)
                runs = {
                    run_id: Run(run_id, uri, status, start, end, stage == "deleted")
                    for run_id, uri, status, start, end, stage in rows
                }
                _fill(connection, runs)
            yield list(runs.values())
            if len(runs) < PAGE:
                return
            given["last"] = max(runs)


def _fill(connection: Connection, runs: dict[str, Run]) -> None:
    def rows(query: str) -> Any:
        wanted = text(query).bindparams(bindparam("ids", type_=String, expanding=True))
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
    """Reads a tracking server by the same calls as `SqlReader` a database. client: a MlflowClient on it."""

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
        return Experiment(found.experiment_id, found.lifecycle_stage == "deleted", found.tags)

    def history(self, run_id: str, metric: str) -> set[tuple[int, float]]:
        return {(point.step, point.value) for point in self._client.get_metric_history(run_id, metric)}

    def pages(self, experiment_id: str, tags: Mapping[str, str]) -> Iterator[list[Run]]:
        from mlflow.entities import ViewType

        wanted = " AND ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        order, token = ["attributes.start_time ASC", "attributes.run_id ASC"], None
        while True:
            page = self._client.search_runs([experiment_id], wanted, ViewType.ALL, PAGE, order, token)
            yield [_run(found.info, found.data, found.inputs) for found in page]
            token = page.token
            if not token:
                return


def _run(info: Any, data: Any, inputs: Any) -> Run:
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
        inputs=bool(inputs and inputs.dataset_inputs),
    )


Reader = SqlReader | ClientReader


def runs_with(reader: Reader, experiment_id: str, tags: Mapping[str, str]) -> list[Run]:
    """Every run with these tags, deleted ones too; the one that counts comes first."""
    found = (run for page in reader.pages(experiment_id, tags) for run in page)
    return sorted(found, key=lambda run: run.rank)
