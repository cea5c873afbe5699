"""MLflow brought to what studies say, at once: looking what it lacks, catching up, rebuilding, and deleting a
study's runs for good.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from filelock import Timeout
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from regtune.errors import TrackingError
from regtune.settings import Settings
from regtune.storage import database_path, explain, is_sqlite
from regtune.storage import place as place_of
from regtune.storage.artifacts import Stray, find_strays, inside, is_own, local_path, remove
from regtune.storage.mlflow import (
    check_server,
    connect,
    is_server,
    open_sql,
    prepare,
    settle_environment,
    tracking_engine,
    tracking_schema,
)
from regtune.tracking import names
from regtune.tracking.contents import study_contents, trial_contents
from regtune.tracking.differences import experiment_lacks, lacking
from regtune.tracking.facts import ParentState, StudyFacts
from regtune.tracking.runs import Reader, RestReader, Run, SqlReader
from regtune.tracking.target import Target, target_of
from regtune.tracking.trials import StudyTrials, Trials

PAGE = 1000
Tell = Callable[[int], None]
"""Told how many trials have been seen to."""


@dataclass(frozen=True)
class Missing:
    """What MLflow lacks of a study. absent: trials without a run. wrong: trials whose run lacks something; of what
    kind, is counted in `kinds`. own: whether the study's own run or experiment lack something. place: where the
    artifacts of the folder lay before it was moved or copied, if MLflow says so still.
    """

    absent: int = 0
    wrong: int = 0
    own: bool = False
    kinds: Counter[str] = field(default_factory=Counter)
    place: str | None = None

    def __bool__(self) -> bool:
        return bool(self.absent or self.wrong or self.own or self.place)

    def __str__(self) -> str:
        found = []
        if self.absent:
            found.append(f"{_trials(self.absent)} without a run")
        if self.wrong:
            kinds = ", ".join(f"{kind} of {count}" for kind, count in self.kinds.most_common())
            found.append(f"{_trials(self.wrong)} whose run lacks something ({kinds})")
        if self.own:
            found.append("the study's own run or its experiment")
        if self.place:
            found.append(f"the place of its artifacts, which is {self.place} no longer")
        return "; ".join(found)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(replace(self, kinds=Counter())), "kinds": dict(self.kinds)}


class Caught(NamedTuple):
    """What had to be written: how many trials, and whether the study's own run or experiment."""

    trials: int
    own: bool


def project(settings: Settings, facts: StudyFacts, target: Target | None = None) -> Any:
    """A `Projection` of a study to where its runs are written; a SQLite store is made first where there is none.

    Raises TrackingError and what MLflow raises.
    """
    target = target or target_of(settings)
    client = connect(target.uri, settings.artifacts)
    from regtune.tracking.projection import Projection

    return Projection(client, facts, settings.artifacts, target.place, _database(settings, target))


def catch_up(
    settings: Settings,
    facts: StudyFacts,
    trials: Trials,
    state: ParentState | None = None,
    winner: int | None = None,
    ended_ms: int | None = None,
    tell: Tell = lambda done: None,
) -> Caught:
    """Write everything of a study that MLflow lacks; from nothing, if it has nothing.

    Args:
        settings: where the store and the artifacts are.
        facts: the study.
        trials: its trials.
        state: how the study stands; None leaves its own run as it is.
        winner: number of its best trial, if it has one.
        ended_ms: when it ended, in Unix milliseconds.
        tell: told of the progress.

    Returns:
        What had to be made or changed.

    Raises:
        TrackingError: the store cannot be used.
    """
    with understood(settings):
        projection = project(settings, facts)
        before, changed = projection.writes, 0
        projection.open()
        own = projection.writes > before
        for done, changed_ in projection.catch_up(trials):
            changed = changed_
            tell(done)
        if state is not None:
            own |= projection.study(state, winner, ended_ms)
        if projection.refusals:
            number, reason = next(iter(projection.refusals.items()))
            raise TrackingError(
                f"MLflow refuses {_trials(len(projection.refusals))}; #{number:03d}: {reason}"
            )
        return Caught(changed, own)


def missing(settings: Settings, trials: StudyTrials, tell: Tell = lambda done: None) -> Missing:
    """What MLflow lacks of a study at rest. Nothing is written, neither there nor anywhere else.

    Raises TrackingError.
    """
    with understood(settings):
        reader, facts = _reader(settings), trials.facts
        place = next((stray.folder for stray in strays(settings) if stray.former), None)
        experiment = reader.experiment(facts.sweep) if reader else None
        if reader is None or experiment is None:
            return Missing(absent=sum(1 for _ in trials.read(trials.numbers.values())), own=True)
        parents = reader.parents(experiment.experiment_id, facts.uid)
        own = experiment.deleted or not parents or parents[0].deleted
        own = own or not all(parent.deleted for parent in parents[1:])
        own = own or bool(experiment_lacks(facts, experiment) or reader.misnamed(experiment.experiment_id))
        kinds: Counter[str] = Counter()
        wrong, done, best = 0, 0, None
        seen: dict[str, bool] = {}
        for page in reader.trials(experiment.experiment_id, facts.uid):
            numbers: dict[int, Run] = {}
            for run in page:
                uid = run.tags[names.TRIAL_UID]
                number = trials.numbers.get(uid)
                if seen.get(uid) and not run.deleted:
                    wrong, kinds["one run only"] = wrong + 1, kinds["one run only"] + 1
                elif number is not None:
                    seen[uid] = seen.get(uid, False) or not run.deleted
                    if not run.deleted:
                        numbers[number] = run
            for number, state, record in trials.read(numbers):
                run = numbers[number]
                lack = lacking(run, trial_contents(facts, number, state, record), reader, settings.artifacts)
                if lack:
                    wrong += 1
                    kinds.update(lack.kinds)
                if number == trials.winner:
                    best = run
            done += len(page)
            tell(done)
        unseen = [number for uid, number in trials.numbers.items() if uid not in seen]
        absent = sum(1 for _ in trials.read(unseen))
        if not own:
            wanted = study_contents(facts, trials.state, trials.winner, best, trials.ended_ms)
            own = bool(lacking(parents[0], wanted, reader, settings.artifacts))
        return Missing(absent, wrong, own, kinds, place)


def strays(settings: Settings) -> list[Stray]:
    """Where else than in the project's artifacts its own store keeps some. Raises TrackingError, StorageError."""
    if is_server(settings.mlflow_uri) or not is_own(settings.mlflow_uri, settings.artifacts):
        return []
    with understood(settings):
        reader = _reader(settings)
        return find_strays(reader.engine, settings.artifacts) if isinstance(reader, SqlReader) else []


def _database(settings: Settings, target: Target) -> str | None:
    """The store behind this folder's own server, to be read directly. Raises TrackingError when its file is gone."""
    if is_server(settings.mlflow_uri) or not is_server(target.uri):
        return None
    if is_sqlite(settings.mlflow_uri) and not database_path(settings.mlflow_uri).exists():
        raise TrackingError(
            f"{database_path(settings.mlflow_uri)}: gone, and its server still runs; try: regtune down, regtune up"
        )
    prepare(
        settings.mlflow_uri, settings.artifacts
    )  # the server runs since before the folder was moved, perhaps
    return settings.mlflow_uri


def _reader(settings: Settings) -> Reader | None:
    """Reads the store without a trace; None when there is none yet. Raises TrackingError, StorageError."""
    uri = settings.mlflow_uri
    settle_environment(uri)
    if is_server(uri):
        check_server(uri)
        from mlflow import MlflowClient

        return RestReader(MlflowClient(uri, uri))
    if is_sqlite(uri) and not database_path(uri).exists():
        return None
    found = tracking_schema(uri)
    if found is not None and found.blank:
        return None
    if found is not None and found.problem:
        raise TrackingError(found.problem)
    return SqlReader(tracking_engine(uri))


def _trials(count: int) -> str:
    return f"{count:,} trial{'' if count == 1 else 's'}"


@dataclass(frozen=True)
class Tracked:
    """What a database of MLflow has of a study. sweep: its name. last: when one of its runs began last. folders: of its
    runs' artifacts, as far as they lie in the project's. here: whether some do, and none lies elsewhere.
    """

    sweep: str
    runs: int
    last: datetime | None
    folders: tuple[Path, ...]
    here: bool


_TRACKED = """
    SELECT tags.value, runs.run_uuid, runs.start_time, runs.artifact_uri, named.value
    FROM tags JOIN runs ON runs.run_uuid = tags.run_uuid
    LEFT JOIN experiment_tags AS named ON named.experiment_id = runs.experiment_id AND named.key = :sweep
    WHERE tags.key = :uid
"""


def tracked_studies(settings: Settings) -> dict[str, Tracked]:
    """Every study that has runs in MLflow's database, deleted ones among them, by its uid. Raises TrackingError."""
    with understood(settings):
        prepare(settings.mlflow_uri, settings.artifacts)
        reader = _reader(settings)
        if not isinstance(reader, SqlReader):
            return {}
        with reader.engine.connect() as connection:
            given = {"uid": names.STUDY_UID, "sweep": names.SWEEP}
            rows = connection.execute(text(_TRACKED), given).all()
    found: dict[str, list[Any]] = {}
    for row in rows:
        found.setdefault(row[0], []).append(row)
    return {uid: _tracked(of_one, settings.artifacts) for uid, of_one in found.items()}


def _tracked(rows: Sequence[Any], artifacts: Path) -> Tracked:
    inner = {uri: inside(uri, artifacts) for _, _, _, uri, _ in rows}
    places = [folder for uri, own in inner.items() if own and (folder := local_path(uri)) is not None]
    folders = tuple(folder for folder in places if folder.is_dir())
    starts = [start for _, _, start, _, _ in rows if start]
    return Tracked(
        sweep=rows[0][4] or "",
        runs=len(rows),
        last=datetime.fromtimestamp(max(starts) / 1000, UTC) if starts else None,
        folders=folders,
        here=bool(folders) and len(places) == len(inner),
    )


def delete_study(settings: Settings, uid: str) -> int:
    """Delete the runs of one study and their artifacts, and its experiment when nothing is left in it.

    In a database they are gone for good. A tracking server offers no such thing: there the artifacts are
    deleted and the runs put into its bin, which `mlflow gc`, given on the server, empties. Artifacts on this machine
    outside the project's are left. Returns how many runs. Raises TrackingError.
    """
    with understood(settings):
        target = target_of(settings)
        client = connect(target.uri, settings.artifacts)
        _database(settings, target)
        runs = list(_runs(client, f"tags.`{names.STUDY_UID}` = '{uid}'"))
        store = None if is_server(settings.mlflow_uri) else open_sql(settings.mlflow_uri, settings.artifacts)
        for run in runs:
            if inside(run.info.artifact_uri, settings.artifacts):
                remove(run.info.artifact_uri, client.tracking_uri)
            if run.info.lifecycle_stage != "deleted":
                client.delete_run(run.info.run_id)
            if store is not None:
                _delete_row(store, run.info.run_id)
        for experiment_id in {run.info.experiment_id for run in runs}:
            _delete_empty(client, store, experiment_id)
        return len(runs)


def _runs(client: Any, wanted: str) -> Iterator[Any]:
    """Runs of every experiment, deleted ones too."""
    from mlflow.entities import ViewType

    experiments = [found.experiment_id for found in client.search_experiments(ViewType.ALL)]
    token = None
    while True:
        page = client.search_runs(experiments, wanted, ViewType.ALL, PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _delete_row(store: Any, run_id: str) -> None:
    """As `mlflow gc` does it, and the run's data set inputs, which that leaves behind."""
    from mlflow.store.tracking.dbmodels.models import SqlInput, SqlInputTag

    with store.ManagedSessionMaker(read_only=False) as session:
        inputs = session.query(SqlInput).filter(
            SqlInput.destination_type == "RUN", SqlInput.destination_id == run_id
        )
        uuids = [entry.input_uuid for entry in inputs]
        session.query(SqlInputTag).filter(SqlInputTag.input_uuid.in_(uuids)).delete(synchronize_session=False)
        inputs.delete(synchronize_session=False)
    store._hard_delete_run(run_id)


def _delete_empty(client: Any, store: Any, experiment_id: str) -> None:
    """Delete an experiment of a sweep when no run is left in it."""
    from mlflow.entities import ViewType

    experiment = client.get_experiment(experiment_id)
    view = ViewType.ALL if store is not None else ViewType.ACTIVE_ONLY
    if names.SWEEP not in experiment.tags or client.search_runs([experiment_id], "", view, 1):
        return
    if experiment.lifecycle_stage != "deleted":
        client.delete_experiment(experiment_id)
    if store is not None:
        store._hard_delete_experiment(experiment_id)


@contextmanager
def understood(settings: Settings) -> Iterator[None]:
    """Turn what MLflow and its database throw into a TrackingError that says where and what."""
    settle_environment()
    try:
        yield
    except Exception as error:
        if not _of_the_store(error):
            raise
        if isinstance(error, SQLAlchemyError | sqlite3.Error) and not is_server(settings.mlflow_uri):
            raise TrackingError(explain(error, place_of(settings.mlflow_uri))) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TrackingError(f"MLflow at {place_of(settings.mlflow_uri)}: {reason}") from error


def _of_the_store(error: Exception) -> bool:
    """MLflow is not imported only to recognize its exceptions."""
    named = any(kind.__name__ == "MlflowException" for kind in type(error).__mro__)
    return named or isinstance(error, SQLAlchemyError | sqlite3.Error | OSError | Timeout)
