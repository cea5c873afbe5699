"""Promotions as processes that have TensorFlow and a trained network from the start, for tests that kill many.

`python promoting.py FOLDER` trains, in FOLDER, then forks for each line of JSON a process that runs a verb in a place.
All that such a process does to databases and to MLflow it does as `regtune promote` does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import stores
from places import Place

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    from regtune.training.runtime import configure

    configure()
    _warm_up(Path(sys.argv[1]))
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if pid := asked.get("wait"):
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        elif pid := os.fork():
            print(pid, flush=True)
        else:
            _run(**asked)


def _warm_up(folder: Path) -> None:
    """Promote once, elsewhere: what is imported, traced and trained then is there in every copy of this process."""
    from promotions import GATES, STUDY, TrainedOnce, decided, searched

    from regtune.registry import challenger
    from regtune.registry.choice import choose
    from regtune.registry.promote import promote
    from regtune.settings import Settings
    from regtune.storage import open_engine

    settings = Settings(REGTUNE_HOME=folder / "mlruns")
    searched(settings)
    decided(settings)
    challenger.train_twice = TrainedOnce(folder / "trained")
    engine = open_engine(settings.storage_url)
    promote(choose(engine, STUDY), engine, settings=settings, limits=GATES)
    engine.dispose()


def _run(words: Sequence[str], folder: str, variables: dict[str, str], log: str) -> None:
    from regtune.cli import main as regtune

    os.chdir(folder)
    os.environ.update(variables)
    written = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for number, stream in ((os.open(os.devnull, os.O_RDONLY), 0), (written, 1), (written, 2)):
        os.dup2(number, stream)
    sys.argv = ["regtune", *words]
    code: Any = 1
    try:
        regtune()
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.stdout.flush()
        os._exit(code)


@dataclass(frozen=True)
class Verb:
    """A verb that runs, or ran. log: what it has written. wait: for its end; returns its exit code."""

    pid: int
    log: Path
    wait: Callable[[], int]

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def until(self, text: str) -> None:
        """Wait until it has said `text`, or has ended."""
        process = psutil.Process(self.pid)

        def seen() -> bool:
            return text in self.said or process.status() == psutil.STATUS_ZOMBIE

        stores.until(seen, pause=0.005, what=text)

    def kill(self) -> bool:
        """SIGKILL; return whether it still ran."""
        os.kill(self.pid, signal.SIGKILL)  # one that has ended is there until it is waited for
        return self.wait() == -signal.SIGKILL


@dataclass(frozen=True)
class Nursery:
    """The process that forks. folder: of the logs."""

    process: subprocess.Popen[str]
    folder: Path
    numbers: Iterator[int] = field(default_factory=count)

    def ask(self, **question: Any) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(question), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def start(self, place: Place, *words: str) -> Verb:
        log = self.folder / f"{next(self.numbers)}.log"
        given = {"folder": str(place.folder), "variables": dict(place.environment), "log": str(log)}
        pid = self.ask(words=words, **given)
        return Verb(pid, log, partial(self.ask, wait=pid))


@contextmanager
def nursery(folder: Path) -> Iterator[Nursery]:
    """The process that forks, until the block ends; a person's settings are none of its own."""
    command = [sys.executable, __file__, str(folder)]
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Nursery(process, folder)
        assert process.stdin is not None
        process.stdin.close()  # it ends


if __name__ == "__main__":
    main()
