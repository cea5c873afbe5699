"""A long sweep of short trials under a random fault every few seconds: what was lost, and what doubled.

    PYTHONPATH=tests python tests/faults/soak.py [--trials 100] [--json FILE]

The sweep runs in a project of its own with its MLflow server up. When a fault ends the coordinator, the same command is
given again, as a person would. In the end the study is judged by `assert_consistent`.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from harness import assert_consistent, away, locked
from places import Place, Sweep, place_on, standing
from stores import Postgres, postgres

from regtune.server import service
from regtune.study.study import record_of

PAIRS = ("sqlite-server", "postgres-server")
EVERY_SECONDS, SEED = 4.0, 1
PAUSE_SECONDS = 1.0
ENDS = (0, 130, -signal.SIGKILL, -signal.SIGTERM)
"""How a sweep may end: with its budget used, told to, killed, ended before it listens to signals."""
BEFORE_IT_RUNS = (
    "run the same command again",
    "is not running",
    "cannot be reached",
    "before they are ready",
)
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
    _left: list[str] = field(default_factory=list)

    def run(self, trials: int, every: float) -> dict[str, Any]:
        """Sweep, disturb, sweep again until the budget is used. Returns the figures."""
        began = time.monotonic()
        epochs = not_begun = 0
        code = -1
        while code != 0:
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
        self.place.up()
        self.place.run("sync")
        return {"seconds": time.monotonic() - began, **self._figures(trials)}

    def _disturb(self, sweep: Sweep, every: float) -> None:
        """A fault now and then, until the sweep ends; the first of all soon after training has begun."""
        while not self.faults and sweep.process.poll() is None and not sweep.epochs:
            time.sleep(PAUSE_SECONDS / 4)
        due = time.monotonic() + (self.dice.expovariate(1 / every) if self.faults else 1.0)
        while sweep.process.poll() is None:
            if time.monotonic() >= due:
                kinds = self._kinds(sweep)
                self._left = self._left or self.dice.sample(list(kinds), len(kinds))  # each before any again
                name = self._left.pop()
                print(f"{time.strftime('%X')} {name}")
                with suppress(psutil.NoSuchProcess, IndexError, ProcessLookupError):
                    kinds[name]()
                    self.faults[name] += 1
                due = time.monotonic() + self.dice.expovariate(1 / every)
            time.sleep(PAUSE_SECONDS)

    def _kinds(self, sweep: Sweep) -> dict[str, Callable[[], object]]:
        home, dice = self.place.home, self.dice
        kinds: dict[str, Callable[[], object]] = {
            "worker killed": lambda: dice.choice(sweep.workers).kill(),
            "every worker killed": lambda: [worker.kill() for worker in sweep.workers],
            "worker stopped for a while": lambda: self._for_a_while(standing([dice.choice(sweep.workers)])),
            "writer killed": lambda: sweep.writer.kill(),  # noqa: PLW0108 (it may not run)
            "coordinator killed": sweep.kill,
            "coordinator terminated": lambda: sweep.signal(signal.SIGTERM),
            "mlflow killed and started": lambda: self._for_a_while(self._without_mlflow()),
            "mlflow stopped for a while": lambda: self._for_a_while(standing(service.processes(home))),
        }
        if self.server is None:
            return kinds | {"databases locked": lambda: self._for_a_while(locked(home))}
        restart = away(self.server, dice.choice(["fast", "immediate"]))
        return kinds | {
            "postgresql restarted": lambda: self._for_a_while(restart),
            "connections ended": self.server.end_connections,
        }

    def _for_a_while(self, disturbed: AbstractContextManager[None]) -> None:
        with disturbed:
            time.sleep(self.dice.uniform(0.5, 8))

    @contextmanager
    def _without_mlflow(self) -> Iterator[None]:
        for process in service.processes(self.place.home):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        yield
        self.place.up()

    def _figures(self, trials: int) -> dict[str, Any]:
        attempts = self.place.study().trials
        states = Counter(trial.state.name for trial in attempts)
        uids = [record.uid for trial in attempts if (record := record_of(trial)) is not None]
        assert_consistent(self.place, run_cap=trials, failed=states["FAIL"], keep_models=3)
        finished = states["COMPLETE"] + states["PRUNED"]
        return {
            "faults": self.faults.total(),
            "kinds": dict(sorted(self.faults.items())),
            "sweeps_started": self.starts,
            "finished": finished,
            "failed_attempts": states["FAIL"],
            "lost": trials - finished,
            "doubled": len(uids) - len(set(uids)),
        }


def soak(pair: str, trials: int, every: float, seed: int, folder: Path) -> dict[str, Any]:
    with ExitStack() as stack:
        server = stack.enter_context(postgres()) if pair.startswith("postgres") else None
        place = stack.enter_context(place_on(pair, folder, server))
        return {"pair": pair, **Soak(place, server, random.Random(seed)).run(trials, every)}


def main() -> None:
    """Soak on each pair, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--json", type=Path, help="where the result is written")
    arguments = parser.parse_args()
    soaks = []
    for pair in PAIRS:
        with tempfile.TemporaryDirectory(prefix="soak", ignore_cleanup_errors=True) as folder:
            soaks.append(soak(pair, arguments.trials, EVERY_SECONDS, SEED, Path(folder)))
    given = {"trials": arguments.trials, "every_seconds": EVERY_SECONDS, "seed": SEED}
    text = json.dumps({**given, "soaks": soaks}, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(f"{text}\n")


if __name__ == "__main__":
    main()
