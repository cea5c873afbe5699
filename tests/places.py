"""A project folder with its stores, and a sweep that runs in it as a process of its own."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
import psutil
import sqlalchemy
import yaml
from mlflow import MlflowClient
from stores import Postgres, free_port, until

from regtune.server import service
from regtune.settings import Settings
from regtune.storage import full_url
from regtune.storage.schema import STUDIES

ROOT = Path(__file__).resolve().parents[1]
MARK = "REGTUNE_TEST_MARK"
"""In the environment of every process that a place has started."""
SWEEP: dict[str, Any] = {
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
    "decide": False,
    "keep_models": 2,
}
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Place:
    """A folder with its stores. name: of the study that is swept. prefix: what a sweep's command is given to.

    options: what a sweep's command has besides.
    """

    folder: Path
    environment: Mapping[str, str]
    name: str = "small"
    port: int | None = None
    prefix: Sequence[str] = ()
    options: Sequence[str] = ()
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def with_new_study(self) -> Place:
        return replace(self, name=f"study-{next(_numbers)}")

    @property
    def home(self) -> Path:
        return Path(self.environment["REGTUNE_HOME"])

    @property
    def settings(self) -> Settings:
        return Settings.model_validate(dict(self.environment))

    def variables(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "400", MARK: self.mark, **self.environment}

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run a verb, which must end with `code`. Returns its standard output, or its error output for another code."""
        command = [sys.executable, "-m", "regtune", *arguments]
        ended = subprocess.run(
            command, **self._process(), check=False, capture_output=True, text=True, timeout=400
        )
        assert ended.returncode == code, f"{arguments}: {ended.returncode}: {ended.stdout}\n{ended.stderr}"
        assert "Traceback" not in ended.stderr, ended.stderr
        return ended.stderr if code else ended.stdout

    def _process(self) -> dict[str, Any]:
        return {"env": self.variables(), "cwd": self.folder, "stdin": subprocess.DEVNULL}

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json"))

    def up(self, *arguments: str) -> None:
        assert self.port is not None
        self.run("up", "--port", str(self.port), *arguments)

    def command(self, workers: int = 1, **changes: Any) -> list[str]:
        """Write a sweep file, SWEEP with `changes`, and return the command that sweeps it."""
        file = self.folder / f"{self.name}.yaml"
        file.write_text(yaml.safe_dump({"name": self.name, **SWEEP, **changes}))
        return [
            *self.prefix,
            sys.executable,
            "-m",
            "regtune",
            "sweep",
            file.name,
            "--workers",
            str(workers),
            *self.options,
        ]

    @contextmanager
    def sweep(self, workers: int = 1, **changes: Any) -> Iterator[Sweep]:
        """Start `regtune sweep` with `changes` of SWEEP; the block's end kills it if it still runs."""
        command = self.command(workers, **changes)
        with tempfile.NamedTemporaryFile(prefix="sweep", suffix=".log") as log:  # its own disk may be full
            process = subprocess.Popen(
                command, **self._process(), stdout=log, stderr=log, start_new_session=True
            )
            started = Sweep(self, process, Path(log.name))
            try:
                yield started
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
                print(started.said)  # shown where a test fails

    def processes(self) -> list[psutil.Process]:
        """Its running processes, without its MLflow server."""
        running = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    running.append(process)
        servers = {process.pid for process in service.processes(self.home)}
        return [process for process in running if process.pid not in servers]

    def study(self) -> optuna.Study:
        storage = optuna.storages.RDBStorage(full_url(self.settings.storage_url))
        return optuna.load_study(study_name=self.name, storage=storage)

    def client(self) -> MlflowClient:
        return MlflowClient(f"http://127.0.0.1:{self.port}" if self.port else self.settings.mlflow_uri)


@dataclass
class Sweep:
    place: Place
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def workers(self) -> list[psutil.Process]:
        """The forks of the process that imports for them."""
        return [one for one in self._children("regtune.forks") if one.ppid() != self.process.pid]

    @property
    def writer(self) -> psutil.Process:
        return self._children("regtune.tracking.live")[0]

    def _children(self, module: str) -> list[psutil.Process]:
        children = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.Error):
                children += [process] if module in " ".join(process.cmdline()) else []
        return sorted(children, key=lambda process: process.create_time())

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL the coordinator; its children must end with it."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        _, left = psutil.wait_procs(children, timeout=120)
        assert not left, f"left behind: {left}"

    def ended(self, code: int = 0, seconds: float = 600) -> str:
        """Wait for its end with `code`. Returns what it has printed."""
        assert self.process.wait(timeout=seconds) == code
        assert "Traceback" not in self.said
        return self.said

    def until(self, true: Callable[[], bool], what: str, pause: float = 0.05) -> None:
        def seen() -> bool:
            assert self.process.poll() is None, f"ended before {what}"
            return true()

        until(seen, 400, pause, what)

    def until_epochs(self, count: int) -> None:
        self.until(lambda: self.epochs >= count, f"{count} epochs")

    def until_finished(self, count: int) -> None:
        ends = "trials.state IN ('COMPLETE', 'PRUNED', 'FAIL')"
        self.until(lambda: self.count("trials", ends) >= count, f"{count} trials")

    def until_running(self) -> None:
        running = "trials.state = 'RUNNING'"
        self.until(lambda: self.count("trials", running) > 0 and bool(self.workers), "a running trial")

    def until_in_mlflow(self) -> None:
        """Wait until the first run is in MLflow's SQLite database."""
        file = f"file:{self.place.home / 'mlflow.db'}?mode=ro"

        def seen() -> bool:
            with suppress(sqlite3.OperationalError), closing(sqlite3.connect(file, uri=True)) as connection:
                return bool(connection.execute("SELECT COUNT(*) FROM runs").fetchone()[0])
            return False

        self.until(seen, "a run in MLflow")

    @property
    def epochs(self) -> int:
        return self.count("trial_intermediate_values JOIN trials USING (trial_id)")

    def count(self, table: str, condition: str = "TRUE") -> int:
        """Rows of one of Optuna's tables that belong to the study; 0 while there is no table."""
        query = f"SELECT COUNT(*) FROM {table} JOIN studies USING (study_id) WHERE study_name = :name AND {condition}"
        engine = STUDIES.engine(self.place.settings.storage_url)
        try:
            with engine.connect() as connection:
                return int(connection.scalar(sqlalchemy.text(query), {"name": self.place.name}) or 0)
        except sqlalchemy.exc.SQLAlchemyError:
            return 0
        finally:
            engine.dispose()


@contextmanager
def standing(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """Stop the processes (SIGSTOP) until the block ends."""
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
def place_on(pair: str, folder: Path, server: Postgres | None) -> Iterator[Place]:
    """A new place on one of `stores.PAIRS`; its MLflow server, where it has one, runs until the block ends."""
    given = {"REGTUNE_HOME": str(folder / "mlruns")}
    if pair.startswith("postgres"):
        assert server is not None
        unique = uuid.uuid4().hex[:8]
        given["OPTUNA_STORAGE"] = server.fresh(f"studies_{unique}")
        given["MLFLOW_TRACKING_URI"] = server.fresh(f"mlflow_{unique}")
    place = Place(folder, given, port=free_port() if pair.endswith("server") else None)
    if pair.startswith("postgres"):
        place.run("db", "init")
    if place.port:
        place.up()
    try:
        yield place
    finally:
        if place.port:
            place.run("down")
