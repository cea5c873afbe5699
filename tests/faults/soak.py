"""A long sweep of short trials under a random fault every few seconds: what was lost, and what doubled.

    PYTHONPATH=tests python tests/faults/soak.py [--trials 100] [--every 10] [--pairs ...] [--json FILE]

The sweep runs in a project of its own with its MLflow server up. When a fault ends the coordinator, the same command is
given again, as a person would. In the end the study is judged by `assert_consistent`; the command exits with 1 when
anything is lost or doubled.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from harness import assert_consistent, runs_of
from optuna.trial import TrialState
from places import Place, Sweep, place_on, standing
from stores import Postgres, postgres

from regtune.server import service
from regtune.study.study import record_of
from regtune.tracking import names

STOPPED = 130
PAUSE_SECONDS = 1.0
ENDS = (0, STOPPED, -signal.SIGKILL, -signal.SIGTERM)
"""How a sweep may end: with its budget used, told to, killed, ended before it listens to signals."""
BEFORE_IT_RUNS = ("run the same command again", "cannot be reached", "before they are ready")
"""What a sweep that could not begin may say."""
MOST_NOT_BEGUN = 3
"""In a row."""
SHORT = {
    "training": {"batch_size": 64, "max_epochs": 10},
    "early_stopping": {"patience": 10},
    "max_failures": 1000,
    "keep_models": 3,
    "trial_timeout": 60,
}


@dataclass
class Soak:
    place: Place
    server: Postgres | None
    dice: random.Random
    faults: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    _left: list[Callable[[Sweep], None]] = field(default_factory=list)

    def run(self, trials: int, every: float) -> dict[str, Any]:
        """Sweep, disturb, sweep again until the budget is used. Returns the figures."""
        began = time.monotonic()
        epochs = not_begun = 0
        while True:
            self.starts += 1
            with self.place.sweep(workers=2, run_cap=trials, **SHORT) as sweep:
                self._disturb(sweep, every)
                code = sweep.process.wait()
                known = max(epochs, sweep.epochs)
                told = code == 1 and known == epochs and any(words in sweep.said for words in BEFORE_IT_RUNS)
                not_begun = not_begun + 1 if told else 0
                assert code in ENDS or 0 < not_begun <= MOST_NOT_BEGUN, f"{code}: {sweep.said}"
                epochs = known
                assert "Traceback" not in sweep.said, sweep.said
                if code == 0:
                    break
        self.place.up()
        self.place.run("sync")
        seconds = time.monotonic() - began
        return {"seconds": seconds, **self._figures(trials)}

    def _disturb(self, sweep: Sweep, every: float) -> None:
        """A fault now and then, until the sweep ends; the first of all soon after training has begun."""
        while not self.faults and sweep.process.poll() is None and not sweep.epochs:
            time.sleep(PAUSE_SECONDS / 4)
        due = time.monotonic() + (self.dice.expovariate(1 / every) if self.faults else 1.0)
        while sweep.process.poll() is None:
            if time.monotonic() >= due:
                fault = self._drawn()
                with suppress(psutil.NoSuchProcess, IndexError, ProcessLookupError):
                    fault(sweep)
                    self.faults[fault.__name__.lstrip("_").replace("_", " ")] += 1
                due = time.monotonic() + self.dice.expovariate(1 / every)
            time.sleep(PAUSE_SECONDS)

    # -- the faults

    def _drawn(self) -> Callable[[Sweep], None]:
        """Each kind once, in a random order, before any comes again."""
        if not self._left:
            self._left = self.dice.sample(self._kinds(), len(self._kinds()))
        return self._left.pop()

    def _kinds(self) -> Sequence[Callable[[Sweep], None]]:
        shared = [
            self._worker_killed,
            self._every_worker_killed,
            self._worker_stopped_for_a_while,
            self._writer_killed,
            self._coordinator_killed,
            self._coordinator_terminated,
            self._mlflow_killed_and_started,
            self._mlflow_stopped_for_a_while,
        ]
        if self.server is None:
            return [*shared, self._databases_locked]
        return [*shared, self._postgresql_restarted, self._connections_ended]

    def _worker_killed(self, sweep: Sweep) -> None:
        self.dice.choice(sweep.workers).kill()

    def _every_worker_killed(self, sweep: Sweep) -> None:
        for worker in sweep.workers:
            worker.kill()

    def _worker_stopped_for_a_while(self, sweep: Sweep) -> None:
        with standing([self.dice.choice(sweep.workers)]):
            time.sleep(self.dice.uniform(0.5, 5))

    def _writer_killed(self, sweep: Sweep) -> None:
        sweep.writer.kill()

    def _coordinator_killed(self, sweep: Sweep) -> None:
        sweep.kill()

    def _coordinator_terminated(self, sweep: Sweep) -> None:
        sweep.signal(signal.SIGTERM)

    def _mlflow_killed_and_started(self, _: Sweep) -> None:
        for process in service.processes(self.place.home):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(self.dice.uniform(0.5, 5))
        self.place.up()

    def _mlflow_stopped_for_a_while(self, _: Sweep) -> None:
        with standing(service.processes(self.place.home)):
            time.sleep(self.dice.uniform(1, 15))

    def _databases_locked(self, _: Sweep) -> None:
        with ExitStack() as locks:
            for name in ("studies.db", "mlflow.db"):
                connection = locks.enter_context(
                    closing(sqlite3.connect(self.place.home / name, timeout=120))
                )
                connection.execute("BEGIN EXCLUSIVE")
            time.sleep(self.dice.uniform(1, 8))

    def _postgresql_restarted(self, _: Sweep) -> None:
        assert self.server is not None
        self.server.control("stop", "-m", self.dice.choice(["fast", "immediate"]))
        time.sleep(self.dice.uniform(0.5, 5))
        self.server.control("start")

    def _connections_ended(self, _: Sweep) -> None:
        assert self.server is not None
        self.server.end_connections()

    # -- the figures

    def _figures(self, trials: int) -> dict[str, Any]:
        study = self.place.study()
        attempts = study.trials
        finished = [trial for trial in attempts if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        failed = [trial for trial in attempts if trial.state is TrialState.FAIL]
        uids = [record.uid for trial in attempts if (record := record_of(trial)) is not None]
        tags = [run.data.tags for run in runs_of(self.place.client(), study)]
        runs = [found[names.TRIAL_UID] for found in tags if found[names.KIND] == names.TRIAL]
        assert_consistent(self.place, run_cap=trials, failed=len(failed), keep_models=3)
        return {
            "faults": sum(self.faults.values()),
            "kinds": dict(sorted(self.faults.items())),
            "sweeps_started": self.starts,
            "finished": len(finished),
            "failed_attempts": len(failed),
            "lost": trials - len(finished) + len(set(uids) - set(runs)),
            "doubled": len(uids) - len(set(uids)) + len(runs) - len(set(runs)),
        }


def soak(pair: str, trials: int, every: float, seed: int, folder: Path) -> dict[str, Any]:
    with ExitStack() as stack:
        server = stack.enter_context(postgres()) if pair.startswith("postgres") else None
        place = stack.enter_context(place_on(pair, folder, server))
        return {"pair": pair, **Soak(place, server, random.Random(seed)).run(trials, every)}


def main() -> int:
    """Soak on each pair, print and write the figures; 1 when anything is lost or doubled."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two faults, on average")
    parser.add_argument("--pairs", nargs="+", default=["sqlite-server", "postgres-server"])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where the result is written")
    arguments = parser.parse_args()
    soaks = []
    for pair in arguments.pairs:
        with tempfile.TemporaryDirectory(prefix="soak", ignore_cleanup_errors=True) as folder:
            soaks.append(soak(pair, arguments.trials, arguments.every, arguments.seed, Path(folder)))
    given = {"trials": arguments.trials, "every_seconds": arguments.every, "seed": arguments.seed}
    text = json.dumps({**given, "soaks": soaks}, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(f"{text}\n")
    return int(any(one["lost"] or one["doubled"] for one in soaks))


if __name__ == "__main__":
    raise SystemExit(main())
