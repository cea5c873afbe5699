"""What the tests of faults share: a project folder on real stores, a sweep in processes of its own, and one judgement.

Whatever a test does to a sweep, it ends with `assert_consistent`: every trial of the budget exists once, and Optuna's
database, MLflow's store, the artifacts and the processes of the machine say the same. Optuna and MLflow are read with
their own clients, never through regtune.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import psutil
import sqlalchemy
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from optuna.trial import FrozenTrial, TrialState
from stores import Postgres, free_port, until

from regtune.settings import Settings
from regtune.storage.urls import is_sqlite
from regtune.study.record import TrialRecord
from regtune.study.study import record_of
from regtune.tracking import names
from regtune.tracking.folder import sync

os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
ROOT = Path(__file__).parents[2]
MARK = "REGTUNE_TEST_MARK"
"""In the environment of every process that a project has started."""
STATES = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}
NAME = "small"
SWEEP: dict[str, Any] = {
    "name": NAME,
    "dataset": "mnist-5k",
    "method": "tpe",
    "run_cap": 6,
    "seed": 3,
    "model": {"hidden": [16]},
    "training": {"batch_size": 16, "max_epochs": 6},
    "early_stopping": {"patience": 6},
    "parameters": {
        "dropout": {"min": 0.0, "max": 0.6},
        "l2": {"distribution": "log_uniform_values", "min": 1e-6, "max": 1e-3, "optional": True},
    },
    "controls": False,
    "keep_models": 2,
}


@dataclass
class Project:
    """A folder with its stores. environment: of its commands. port: of its own MLflow server. prefix: what a sweep's
    command is given to."""

    folder: Path
    environment: Mapping[str, str]
    port: int | None = None
    prefix: Sequence[str] = ()
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def home(self) -> Path:
        """Where its databases and artifacts lie."""
        return Path(self.environment["REGTUNE_HOME"])

    @property
    def settings(self) -> Settings:
        """As the project's own commands have them."""
        given = {name: self.environment.get(name, "") for name in ("OPTUNA_STORAGE", "MLFLOW_TRACKING_URI")}
        return Settings(REGTUNE_HOME=self.home, **{name: value for name, value in given.items() if value})

    def variables(self) -> dict[str, str]:
        """The environment of a command."""
        return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "400", MARK: self.mark, **self.environment}

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run a verb; returns all that it printed, after it ended with `code`."""
        ended = subprocess.run(
            [sys.executable, "-m", "regtune", *arguments],
            env=self.variables(),
            cwd=self.folder,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=400,
        )
        assert ended.returncode == code, f"{arguments}: {ended.returncode}: {ended.stdout}"
        assert "Traceback" not in ended.stdout, ended.stdout
        return ended.stdout

    def up(self, *arguments: str) -> None:
        """Start the MLflow server, or see that it runs."""
        assert self.port is not None
        self.run("up", "--port", str(self.port), *arguments)

    def command(self, workers: int = 1, **changes: Any) -> list[str]:
        """Write a sweep file, SWEEP with `changes`, and return the command that sweeps it."""
        spec = {**SWEEP, **changes}
        file = self.folder / f"{spec['name']}.yaml"
        file.write_text(yaml.safe_dump(spec))
        return [*self.prefix, sys.executable, "-m", "regtune", "sweep", file.name, "--workers", str(workers)]

    @contextmanager
    def sweep(self, workers: int = 1, **changes: Any) -> Iterator[Sweep]:
        """Start `regtune sweep`, with `changes` of SWEEP; what still runs when the block ends is killed."""
        name = str(changes.get("name", NAME))
        command = self.command(workers, **changes)
        with tempfile.NamedTemporaryFile(
            prefix="sweep", suffix=".log"
        ) as out:  # the folder's disk may be full
            process = subprocess.Popen(
                command,
                env=self.variables(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
            try:
                yield Sweep(self, process, Path(out.name), name)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()

    def processes(self) -> list[psutil.Process]:
        """What this project has started and is still there, its MLflow server aside."""
        from regtune.server import service

        servers = {process.pid for process in service.processes(self.home)}
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return [process for process in found if process.pid not in servers]

    def study(self, name: str = NAME) -> optuna.Study:
        """The study, read by Optuna itself."""
        from regtune.storage.engines import studies_url

        storage = optuna.storages.RDBStorage(studies_url(self.settings.storage_url))
        return optuna.load_study(study_name=name, storage=storage)

    def client(self) -> MlflowClient:
        """MLflow's own client on its own database or server."""
        return MlflowClient(f"http://127.0.0.1:{self.port}" if self.port else self.settings.mlflow_uri)


@dataclass
class Sweep:
    """A running `regtune sweep`."""

    project: Project
    process: subprocess.Popen[bytes]
    log: Path
    name: str

    @property
    def said(self) -> str:
        """All that it has printed so far."""
        return self.log.read_text(errors="replace")

    @property
    def workers(self) -> list[psutil.Process]:
        """Its worker processes, the oldest first."""
        return self._children("regtune.executors.worker")

    @property
    def writer(self) -> psutil.Process:
        """The process that writes into MLflow."""
        return self._children("regtune.tracking.live")[0]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the coordinator."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL the coordinator, and see that its children end with it."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        _, left = psutil.wait_procs(children, timeout=120)
        assert not left, f"left behind: {left}"

    def ended(self, code: int = 0, seconds: float = 600) -> str:
        """Wait for its end with `code`; returns what it has printed."""
        try:
            found = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {seconds:.0f} s: {self.said}") from None
        assert found == code, f"exit code {found}: {self.said}"
        assert "Traceback" not in self.said, self.said
        return self.said

    def until_epochs(self, count: int) -> None:
        """Wait until so many epochs are recorded."""
        self._until(lambda: self.epochs >= count, f"{count} epochs")

    def until_finished(self, count: int) -> None:
        """Wait until so many trials have ended."""
        ends = "trials WHERE state IN ('COMPLETE', 'PRUNED', 'FAIL')"
        self._until(lambda: self._count(ends) >= count, f"{count} trials")

    def until_running(self) -> None:
        """Wait until a worker trains."""
        self._until(
            lambda: self._count("trials WHERE state = 'RUNNING'") > 0 and bool(self.workers),
            "a running trial",
        )

    def until_saving(self) -> None:
        """Wait until a worker is in the midst of writing a model."""
        folder = self.project.home / "artifacts" / "trials"
        self._until(lambda: any(folder.glob("*/.*model.keras")), "half a model", pause=0.01)

    def until_in_mlflow(self) -> None:
        """Wait until its writer has written the first run into MLflow's SQLite database."""
        self._until(self._in_mlflow, "a run in MLflow")

    def until_said(self, words: str, seconds: float = 400) -> None:
        """Wait until it has printed `words`."""
        self._until(lambda: words in self.said, repr(words), seconds)

    def _until(self, true: Callable[[], bool], what: str, seconds: float = 400, pause: float = 0.05) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert self.process.poll() is None, f"ended before {what}: {self.said}"
            assert time.monotonic() < deadline, f"no {what} in {seconds:.0f} s: {self.said}"
            time.sleep(pause)

    def _in_mlflow(self) -> bool:
        file = self.project.home / "mlflow.db"
        if not file.exists():
            return False
        with (
            suppress(sqlite3.OperationalError),  # its tables are being made
            closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection,
        ):
            return bool(connection.execute("SELECT COUNT(*) FROM runs").fetchone()[0])
        return False

    @property
    def epochs(self) -> int:
        """Epochs that are recorded."""
        return self._count("trial_intermediate_values")

    def _count(self, table: str) -> int:
        """Rows of one of Optuna's tables; 0 while there is none."""
        from regtune.storage.engines import studies_engine

        engine = studies_engine(self.project.settings.storage_url)
        try:
            with engine.connect() as connection:
                return int(connection.scalar(sqlalchemy.text(f"SELECT COUNT(*) FROM {table}")) or 0)
        except sqlalchemy.exc.SQLAlchemyError:
            return 0
        finally:
            engine.dispose()

    def _children(self, module: str) -> list[psutil.Process]:
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.Error):
                if any(module in word for word in process.cmdline()):
                    found.append(process)
        return sorted(found, key=lambda process: process.create_time())


@contextmanager
def standing(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """They stand still (SIGSTOP) until the block ends."""
    try:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()


@contextmanager
def project(pair: str, folder: Path, server: Postgres | None) -> Iterator[Project]:
    """A new project on one of `stores.PAIRS`; its MLflow server, where it has one, runs until the block ends."""
    given = {"REGTUNE_HOME": str(folder / "mlruns")}
    if pair.startswith("postgres"):
        assert server is not None
        unique = uuid.uuid4().hex[:8]
        given["OPTUNA_STORAGE"] = server.fresh(f"studies_{unique}")
        given["MLFLOW_TRACKING_URI"] = server.fresh(f"mlflow_{unique}")
    found = Project(folder, given, free_port() if pair.endswith("server") else None)
    if pair.startswith("postgres"):
        found.run("db", "init")
    if found.port:
        found.up()
    try:
        yield found
    finally:
        if found.port:
            found.run("down")


# -- the judgement


def assert_consistent(
    project: Project, name: str = NAME, *, run_cap: int = 6, failed: int = 0, keep_models: int = 2
) -> None:
    """Nothing of the study is lost, nothing doubled, nothing half done, and both stores say the same.

    run_cap: trials that are complete or pruned. failed: trials that failed, those that were tried again among them.
    """
    until(lambda: not project.processes())
    study = project.study(name)
    trials = study.trials
    records = [record_of(trial) for trial in trials]
    assert [trial.number for trial in trials] == list(range(len(trials)))
    states = [trial.state for trial in trials]
    assert sorted({state.name for state in states} - {"COMPLETE", "PRUNED", "FAIL"}) == []
    assert sum(state in (TrialState.COMPLETE, TrialState.PRUNED) for state in states) == run_cap
    assert states.count(TrialState.FAIL) == failed
    known = [record for record in records if record is not None]
    assert len(known) == len(trials)
    assert len({record.uid for record in known}) == len(trials)
    for trial, record in zip(trials, known, strict=True):
        _assert_whole(trial, record, study)
    best = sorted(
        (trial for trial in trials if trial.state is TrialState.COMPLETE),
        key=lambda trial: (trial.value, trial.number),
    )[:keep_models]
    _assert_files(project, [known[trial.number] for trial in best], known)
    _assert_mlflow(project, study, trials, known, {trial.number for trial in best})
    _assert_databases(project)
    (found,) = sync(project.settings, [name], check=True, tell=lambda *_: None)
    assert found.fine, found


def _assert_whole(trial: FrozenTrial, record: TrialRecord, study: optuna.Study) -> None:
    """A trial and its record say the same."""
    metric = study.user_attrs["regtune.spec"]["metric"]["name"]
    history = record.history.get(metric, ())
    assert dict(enumerate(history, start=1)) == trial.intermediate_values, f"trial {trial.number}"
    assert {len(points) for points in record.history.values()} <= {record.epochs}
    assert record.end_state == trial.state.name
    if trial.state is TrialState.COMPLETE:
        assert record.kept is not None
        assert trial.value == record.kept.figures[metric] == history[record.kept.epoch - 1]


def _assert_files(project: Project, best: list[TrialRecord], all_: list[TrialRecord]) -> None:
    """The best trials' models are there, whole, and no others; no file is half written."""
    folder = project.home / "artifacts" / "trials"
    found = {path.parent.name: _sha256(path) for path in folder.glob("*/model.keras")}
    ours = {record.uid for record in all_}
    assert {uid: sha for uid, sha in found.items() if uid in ours} == {
        record.uid: record.artifacts["model.keras"] for record in best
    }
    odd = [
        path
        for path in project.home.rglob("*")
        if path.name.startswith(".") or path.suffix in (".new", ".tmp")
    ]
    assert [path for path in odd if path.is_file()] == []
    for path in project.home.glob("*.json"):
        json.loads(path.read_text())


def _assert_mlflow(
    project: Project,
    study: optuna.Study,
    trials: list[FrozenTrial],
    records: list[TrialRecord],
    with_model: set[int],
) -> None:
    """MLflow has one run a trial and one of the study, which say to the last digit what Optuna's database says."""
    client = project.client()
    uid = study.user_attrs["regtune.uid"]
    runs = _runs(client, f"tags.`{names.STUDY_UID}` = '{uid}'")
    own = [run for run in runs if run.data.tags[names.KIND] == names.STUDY]
    of_trials = {
        run.data.tags[names.TRIAL_UID]: run for run in runs if run.data.tags[names.KIND] == names.TRIAL
    }
    assert len(own) == 1
    assert len(runs) == 1 + len(of_trials)
    started = [number for number, record in enumerate(records) if record.started_ms is not None]
    assert set(of_trials) == {records[number].uid for number in started}
    for number in started:
        trial, record, run = trials[number], records[number], of_trials[records[number].uid]
        where = f"the run of trial {number}"
        assert run.data.tags[names.STATE] == trial.state.name, where
        assert run.info.status == STATES[trial.state.name], where
        assert run.data.tags[names.PARENT] == own[0].info.run_id, where
        for metric in names.EPOCH_METRICS:
            points = client.get_metric_history(run.info.run_id, metric)
            curve = [(point.step, point.value, point.timestamp) for point in points]
            steps = range(1, record.epochs + 1)
            wanted = list(zip(steps, record.history.get(metric, ()), record.epoch_ended_ms, strict=False))
            assert sorted(curve) == wanted, f"{where}: {metric}"
        if trial.state is TrialState.COMPLETE:
            goal = study.user_attrs["regtune.spec"]["metric"]["name"]
            assert run.data.metrics[names.best(goal)] == trial.value, where
        _assert_artifacts(client, run, {"config.yaml", *(["model.keras"] if number in with_model else [])})
    assert own[0].info.status == own[0].data.tags[names.STATE] == "FINISHED"
    assert own[0].data.tags[names.BEST_NUMBER] == str(_best(trials))


def _best(trials: list[FrozenTrial]) -> int:
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    return min(complete, key=lambda trial: (trial.value, trial.number)).number


def _runs(client: MlflowClient, wanted: str) -> list[Run]:
    ids = [found.experiment_id for found in client.search_experiments(ViewType.ALL)]
    found: list[Run] = []
    token = None
    while True:
        page = client.search_runs(ids, wanted, ViewType.ACTIVE_ONLY, 1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _assert_artifacts(client: MlflowClient, run: Run, wanted: set[str]) -> None:
    tagged = {
        name.removeprefix(names.ARTIFACT): sha
        for name, sha in run.data.tags.items()
        if name.startswith(names.ARTIFACT)
    }
    assert set(tagged) == wanted, run.info.run_name
    assert {entry.path for entry in client.list_artifacts(run.info.run_id)} == wanted, run.info.run_name
    with tempfile.TemporaryDirectory() as folder:
        for name, sha in tagged.items():
            copy = Path(client.download_artifacts(run.info.run_id, name, folder))
            assert _sha256(copy) == sha, run.info.run_name


def _assert_databases(project: Project) -> None:
    """SQLite finds nothing wrong with its files; PostgreSQL's have no transaction left open by a dead client."""
    for path in project.home.glob("*.db"):
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)], path
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == [], path
    url = project.settings.storage_url
    if not is_sqlite(url):
        engine = sqlalchemy.create_engine(url)
        with engine.connect() as connection:
            left = "SELECT COUNT(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = "
            assert connection.scalar(sqlalchemy.text(f"{left} current_database()")) == 0
        engine.dispose()


def what_repeats(project: Project, name: str = NAME) -> list[tuple[Any, ...]]:
    """Everything of a study's trials but times and uids, for a comparison with an undisturbed sweep's."""
    found = []
    for trial in project.study(name).trials:
        record = record_of(trial)
        assert record is not None
        figures = (record.config.canonical(), record.history, record.kept)
        found.append((trial.number, trial.state, trial.value, trial.params, *figures))
    return found


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
