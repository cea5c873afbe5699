"""Malformed files: the reader refuses each in one readable message; verbs exit with code 2, and nothing happens.

`corpus` has them. The nastiest run as processes of their own, whose time and memory are measured. Time is the
processor's (`ru_utime + ru_stime`), because on a busy machine the clock says nothing about a file.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
from corpus import CANARY, Malformed
from corpus.configurations import CONFIGURATIONS
from corpus.datasets import DATASETS
from corpus.sweeps import SWEEPS
from terminals import START, environment, run_here

from regtune.config.source import MAX_PROBLEMS
from regtune.config.sweepfile import SweepSpec
from regtune.config.trial import DataConfig
from regtune.data.datasets import load_data
from regtune.errors import InputError
from regtune.study.best import load_best

Capture = pytest.CaptureFixture[str]
SECONDS, MEGABYTES = 2.0, 500
ORDINARY_SECONDS = 1.0
"""Of the processor, for a good file."""
MOST_LETTERS = 700
"""Of one line: a path, a key and what was expected."""

SMALL = "run_cap: 1\ncontrols: false\nparameters: {dropout: {values: [0, 0.1]}}\n"


def contents(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything below a folder, with what changes when somebody writes to it."""
    states = {path: path.lstat() for path in folder.rglob("*")}
    return {
        str(path): (state.st_mode, path.is_dir() or (state.st_size, state.st_mtime_ns))
        for path, state in states.items()
    }


def assert_readable(errors: str, said: str) -> None:
    """One message: so many lines of such a length, in letters that do not act, without Python's own words."""
    lines = errors.splitlines()
    assert errors.startswith("error: ")
    assert not any(line.startswith("error: ") for line in lines[1:])
    assert said in errors
    assert len(lines) <= MAX_PROBLEMS + 1
    assert max(map(len, lines)) <= MOST_LETTERS
    assert all(line.isprintable() for line in lines)
    for noise in ("Traceback", "object at 0x", "<class", "pydantic", "Input should be an instance"):
        assert noise not in errors


def refused(bad: Malformed, read: Callable[[str], object]) -> None:
    """The file is refused in words that say what is wrong with it, and reading it changes nothing."""
    file = bad.make()
    before = contents(Path())
    with pytest.raises(InputError) as refusal:
        read(file)
    assert_readable(f"error: {refusal.value}", bad.said)
    assert contents(Path()) == before
    assert not Path(CANARY).exists()


LARGE = "half a gigabyte of black images of one class"
"""A data set that costs seconds; it is read in a process of its own."""


def each(corpus: list[Malformed], *names: str) -> pytest.MarkDecorator:
    """All of a corpus, or those of these names."""
    chosen = [bad for bad in corpus if not names or bad.what in names]
    assert len(chosen) == len(set(names) or {bad.what for bad in corpus})
    return pytest.mark.parametrize("bad", chosen, ids=str)


@each(SWEEPS)
def test_a_sweep_file_is_refused(bad: Malformed) -> None:
    refused(bad, SweepSpec.load)


@each(CONFIGURATIONS)
def test_a_configuration_is_refused(bad: Malformed) -> None:
    refused(bad, lambda file: load_data(load_best(Path(file)).config))


@each([bad for bad in DATASETS if bad.what != LARGE])
def test_a_data_set_is_refused(bad: Malformed, tmp_path: Path) -> None:
    refused(bad, lambda name: load_data(DataConfig(name=name), tmp_path))


def by_verb(bad: Malformed, capsys: Capture, *words: str) -> str:
    """Run a verb that refuses a file; what it wrote before it did."""
    before = contents(Path())
    code, output, errors = run_here(capsys, *words)
    assert_readable(errors, bad.said)
    assert code == 2
    assert contents(Path()) == before
    return output


@each(SWEEPS, "a key without meaning", "10 MB of brackets", "a name that a shell runs")
def test_verbs_refuse_a_sweep_file_before_anything_starts(bad: Malformed, capsys: Capture) -> None:
    file = bad.make()
    assert by_verb(bad, capsys, "plan", file) == ""
    assert by_verb(bad, capsys, "sweep", file, "--quiet") == ""


@each(DATASETS, "pickled images")
def test_verbs_refuse_a_data_set_before_anything_starts(bad: Malformed, capsys: Capture) -> None:
    name = bad.make()
    Path("small.yaml").write_text(SMALL)
    Path("best.yaml").write_text(f"data: {{name: {name}}}\n")
    assert by_verb(bad, capsys, "sweep", "small.yaml", "--set", f"dataset={name}", "--quiet") == ""
    assert by_verb(bad, capsys, "train", "best.yaml", "--quiet") == ""


WAIT = """\
import json, os, sys
from pathlib import Path
_, status, usage = os.wait4(os.posix_spawn(sys.executable, [sys.executable, *sys.argv[1:]], os.environ), 0)
measured = os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, usage.ru_maxrss
Path("measured.json").write_text(json.dumps(measured))
"""
"""A small process between: Linux counts the memory of who starts a process as its own."""


def measured(*arguments: str) -> tuple[int, str, float, float]:
    """Run a verb as a process: exit code, all that it wrote, seconds of the processor and the most megabytes."""
    words = [sys.executable, "-c", WAIT, "-c", START, *arguments]
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    found = subprocess.run(words, env=environment(), text=True, check=True, **both)
    code, seconds, most = json.loads(Path("measured.json").read_text())
    Path("measured.json").unlink()
    return code, found.stdout, seconds, most / (2**20 if sys.platform == "darwin" else 2**10)


@lru_cache
def slowness() -> float:
    """How much more than on an ordinary machine a good file costs here: 1, or more where it is slow or busy."""
    Path("good.yaml").write_text(SMALL)
    _, _, seconds, _ = measured("plan", "good.yaml")
    Path("good.yaml").unlink()
    return max(1.0, seconds / ORDINARY_SECONDS)


def cheaply_refused(bad: Malformed, *arguments: str) -> None:
    slowness()
    before = contents(Path())
    code, said, seconds, megabytes = measured(*arguments)
    assert_readable(said, bad.said)
    assert code == 2
    assert seconds < SECONDS * slowness()
    assert megabytes < MEGABYTES
    assert contents(Path()) == before


@pytest.mark.slow
@each(
    SWEEPS,
    *("a bomb of aliases", "groups in 20,000 groups", "100,000 empty lists", "20,000 keys without meaning"),
    *("2,000 keys without meaning", "conditions on 900 values that are none", "10 MB of brackets"),
    "a link to endless zeros",
)
def test_a_sweep_file_costs_little(bad: Malformed) -> None:
    cheaply_refused(bad, "plan", bad.make())


@pytest.mark.slow
@each(CONFIGURATIONS, "a bomb of aliases under a key")
def test_a_configuration_costs_little(bad: Malformed) -> None:
    cheaply_refused(bad, "train", bad.make())


@pytest.mark.slow
@each(DATASETS, "pickled images", "images: a type of a gigabyte each", LARGE)
def test_a_data_set_costs_little(bad: Malformed) -> None:
    name = bad.make()
    Path("small.yaml").write_text(SMALL)
    cheaply_refused(bad, "sweep", "small.yaml", "--set", f"dataset={name}")
