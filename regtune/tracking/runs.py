"""What MLflow has of a study, read by pages and fast: a database by SQL, a tracking server by its REST API.

MLflow's own client makes a dozen objects of every run, which takes minutes for ten thousand; here a run is what the
projection compares, and nothing else. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

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


class Reader(Protocol):
    """Reads one MLflow store. Raises what the store raises."""

    def experiment(self, sweep: str) -> Experiment | None:
        """The experiment of a sweep: found by its tag, whatever it is called now, else by its name."""

    def parents(self, experiment_id: str, uid: str) -> list[Run]:
        """The study's own runs, deleted ones too; the first comes first."""

    def trials(self, experiment_id: str, uid: str) -> Iterator[list[Run]]:
        """Every run of the study's trials by pages, deleted ones too, in an order that writing does not change."""

    def trial(self, experiment_id: str, uid: str) -> list[Run]:
        """The runs of the trial `uid`, deleted ones too; the first comes first."""

    def misnamed(self, experiment_id: str) -> list[Run]:
        """Retrainings that an earlier version has called trials."""

    def history(self, run_id: str, metric: str) -> set[tuple[int, float]]:
        """Step and value of every point of a metric."""


class SqlReader:
    """Reads MLflow's tables (`mlflow/store/tracking/dbmodels/models.py`). engine: on its database."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def experiment(self, sweep: str) -> Experiment | None:
        """See `Reader`."""
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
        """See `Reader`."""
        kind = "EXISTS (SELECT 1 FROM tags k WHERE k.run_uuid = t.run_uuid AND k.key = :kind AND k.value = :study)"
        found = self._page(
            experiment_id, names.STUDY_UID, uid, kind, {"kind": names.KIND, "study": names.STUDY}
        )
        return sorted(found, key=lambda run: run.age)

    def trials(self, experiment_id: str, uid: str) -> Iterator[list[Run]]:
        """See `Reader`."""
        last = ""
        while page := self._page(experiment_id, names.STUDY_UID, uid, "t.run_uuid > :last", {"last": last}):
            yield [run for run in page if names.TRIAL_UID in run.tags]
            last = page[-1].run_id

    def trial(self, experiment_id: str, uid: str) -> list[Run]:
        """See `Reader`."""
        return sorted(self._page(experiment_id, names.TRIAL_UID, uid), key=lambda run: run.age)

    def misnamed(self, experiment_id: str) -> list[Run]:
        """See `Reader`."""
        uid = "EXISTS (SELECT 1 FROM tags k WHERE k.run_uuid = t.run_uuid AND k.key = :uid AND k.value LIKE :again)"
        given = {"uid": names.TRIAL_UID, "again": f"{names.RETRAINED}%"}
        return self._page(experiment_id, names.KIND, names.TRIAL, uid, given)

    def history(self, run_id: str, metric: str) -> set[tuple[int, float]]:
        """See `Reader`."""
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


class RestReader:
    """Reads a tracking server. client: a MlflowClient on it, whose address and credentials are used."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def experiment(self, sweep: str) -> Experiment | None:
        """See `Reader`."""
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
        """See `Reader`."""
        return self._all(experiment_id, f"{_is(names.STUDY_UID, uid)} AND {_is(names.KIND, names.STUDY)}")

    def trials(self, experiment_id: str, uid: str) -> Iterator[list[Run]]:
        """See `Reader`."""
        for page in self._pages(experiment_id, _is(names.STUDY_UID, uid)):
            yield [run for run in page if names.TRIAL_UID in run.tags]

    def trial(self, experiment_id: str, uid: str) -> list[Run]:
        """See `Reader`."""
        return self._all(experiment_id, _is(names.TRIAL_UID, uid))

    def misnamed(self, experiment_id: str) -> list[Run]:
        """See `Reader`."""
        again = f"tags.`{names.TRIAL_UID}` LIKE '{names.RETRAINED}%'"
        return self._all(experiment_id, f"{_is(names.KIND, names.TRIAL)} AND {again}")

    def history(self, run_id: str, metric: str) -> set[tuple[int, float]]:
        """See `Reader`."""
        return {(point.step, point.value) for point in self._client.get_metric_history(run_id, metric)}

    def _all(self, experiment_id: str, wanted: str) -> list[Run]:
        return [run for page in self._pages(experiment_id, wanted) for run in page]

    def _pages(self, experiment_id: str, wanted: str) -> Iterator[list[Run]]:
        from mlflow.utils.rest_utils import http_request, verify_rest_response

        asked = {
            "experiment_ids": [experiment_id],
            "filter": wanted,
            "run_view_type": "ALL",
            "max_results": PAGE,
            "order_by": ["attributes.start_time ASC", "attributes.run_id ASC"],
        }
        place = "/api/2.0/mlflow/runs/search"
        while True:
            credentials = self._client._tracking_client.store.get_host_creds()
            answer = http_request(host_creds=credentials, endpoint=place, method="POST", json=asked)
            found = verify_rest_response(answer, place).json()
            yield [_run(entry) for entry in found.get("runs", ())]
            if not found.get("next_page_token"):
                return
            asked["page_token"] = found["next_page_token"]


def _is(tag: str, value: str) -> str:
    return f"tags.`{tag}` = '{value}'"


def _run(entry: Mapping[str, Any]) -> Run:
    """A run as the REST API has it: JSON, 64-bit numbers as text or not, absent where they are zero."""
    info, data = entry["info"], entry.get("data", {})
    return Run(
        run_id=info["run_id"],
        artifact_uri=info["artifact_uri"],
        status=info["status"],
        start_ms=int(info.get("start_time", 0)),
        end_ms=int(info["end_time"]) if info.get("end_time") else None,
        deleted=info["lifecycle_stage"] == "deleted",
        tags={tag["key"]: tag["value"] for tag in data.get("tags", ())},
        params={param["key"]: param["value"] for param in data.get("params", ())},
        last={
            point["key"]: (int(point.get("step", 0)), float(point["value"]))
            for point in data.get("metrics", ())
        },
        inputs=bool(entry.get("inputs", {}).get("dataset_inputs")),
    )
