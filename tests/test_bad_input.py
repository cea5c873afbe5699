"""Malformed files, every one through the command line: exit code 2, one readable message, and nothing has happened.

`corpus` has them. Most run in this process; the nastiest as processes of their own, whose time and memory are measured.
Time is the processor's (`ru_utime + ru_stime`), because on a busy machine the clock says nothing about a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from unittest.mock import patch

import pytest
from corpus import CANARY, Malformed
from corpus.configurations import CONFIGURATIONS
from corpus.datasets import DATASETS
from corpus.sweeps import SWEEPS
from terminals import START, environment
from typer.main import get_command

from regtune.cli import app, main
from regtune.config.source import MAX_PROBLEMS

COMMAND = get_command(app)
"""What `app` makes of itself at each call: that takes longer than most of these files."""
SECONDS, MEGABYTES = 2.0, 500
ORDINARY_SECONDS = 1.0
"""Of the processor, for a good file."""
MOST_LETTERS = 700
"""Of one line: a path, a key and what was expected."""

SMALL = "run_cap: 1\ncontrols: false\nparameters: {dropout: {values: [0, 0.1]}}\n"

Folder = dict[str, tuple[int, int, str]]


def ids(corpus: list[Malformed]) -> list[str]:
    return [bad.what for bad in corpus]


def contents(folder: Path) -> Folder:
    """Everything below a folder: mode, time of change, and a digest of a file or the target of a link."""
    found: Folder = {}
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        if path.is_symlink():
            what = str(path.readlink())
        else:
            what = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path)] = state.st_mode, 0 if path.is_dir() else state.st_mtime_ns, what
    return found


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run a verb in this process: exit code, output and errors."""
    words = patch.object(sys, "argv", ["regtune", *arguments])
    with words, patch("regtune.cli.app", COMMAND), pytest.raises(SystemExit) as ended:
        main()
    found = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, found.out, found.err


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


def refused(capsys: pytest.CaptureFixture[str], bad: Malformed, *arguments: str) -> None:
    before = contents(Path())
    code, output, errors = run(capsys, *arguments)
    assert_readable(errors, bad.said)
    assert (code, output) == (2, "")
    assert contents(Path()) == before
    assert not Path(CANARY).exists()


def test_there_are_enough_of_them_and_no_two_are_the_same() -> None:
    assert len({bad.what for bad in SWEEPS}) == len(SWEEPS) >= 200
    others = CONFIGURATIONS + DATASETS
    assert len({bad.what for bad in CONFIGURATIONS}) == len(CONFIGURATIONS)
    assert len({bad.what for bad in DATASETS}) == len(DATASETS)
    assert len(others) >= 50


def test_no_two_sweep_files_have_the_same_contents(tmp_path: Path) -> None:
    seen: dict[bytes, str] = {}
    for number, bad in enumerate(SWEEPS):
        folder = tmp_path / str(number)
        folder.mkdir()
        os.chdir(folder)
        path = Path(bad.make())
        if path.name == "bad.yaml" and path.is_file():
            assert seen.setdefault(path.read_bytes(), bad.what) == bad.what
            path.unlink()


@pytest.mark.parametrize("bad", SWEEPS, ids=ids(SWEEPS))
def test_a_sweep_file_is_refused(capsys: pytest.CaptureFixture[str], bad: Malformed) -> None:
    file = bad.make()
    refused(capsys, bad, "plan", file)
    refused(capsys, bad, "sweep", file, "--quiet")


@pytest.mark.parametrize("bad", CONFIGURATIONS, ids=ids(CONFIGURATIONS))
def test_a_configuration_is_refused(capsys: pytest.CaptureFixture[str], bad: Malformed) -> None:
    refused(capsys, bad, "train", bad.make(), "--quiet")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sets of a known name lie in the test's own folder."""
    monkeypatch.setenv("REGTUNE_DATA_DIR", str(tmp_path))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("bad", DATASETS, ids=ids(DATASETS))
def test_a_data_set_is_refused(capsys: pytest.CaptureFixture[str], bad: Malformed) -> None:
    name = bad.make()
    sweep = Path("small.yaml")
    sweep.write_text(SMALL)
    refused(capsys, bad, "sweep", str(sweep), "--set", f"dataset={name}", "--quiet")
    best = Path("best.yaml")
    best.write_text(f"data: {{name: {name}}}\n")
    refused(capsys, bad, "train", str(best), "--quiet")


UNSPLIT = Malformed("a split that leaves none to train on", lambda: "0.9998", "leaves none of 4,000 images")


def test_a_split_that_leaves_none_to_train_on_is_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("small.yaml").write_text(f"dataset: mnist-5k\nsplit: {{validation: 0.9998}}\n{SMALL}")
    Path("best.yaml").write_text("data: {name: mnist-5k, validation: 0.9998}\n")
    refused(capsys, UNSPLIT, "sweep", "small.yaml", "--quiet")
    refused(capsys, UNSPLIT, "train", "best.yaml", "--quiet")
    code, output, errors = run(capsys, "plan", "small.yaml")
    assert_readable(errors, UNSPLIT.said)
    assert (code, output.splitlines()[0]) == (2, "study         small, new")


# -- as processes

NASTIEST = [
    *("a bomb of aliases", "groups in 20,000 groups", "100,000 empty lists", "20,000 keys without meaning"),
    *("2,000 keys without meaning", "conditions on 900 values that are none", "10 MB of brackets"),
    *("a link to endless zeros", "a tag that calls os.system", "a name that a shell runs"),
]
NASTIEST_CONFIGURATIONS = [
    *("a bomb of aliases under a key", "100,000 values", "10 MB behind a good file"),
    "a tag that calls subprocess, in the provenance",
]
NASTIEST_DATASETS = [
    *("pickled images", "images with a pickle", "images with a header that calls a function"),
    "640 MB in one, behind a header of forty images",
    "half a gigabyte of black images of one class",
    *("IDX with 640 MB behind its values", "IDX of four billion images"),
]


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
    found = subprocess.run(
        words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    )
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


def chosen(corpus: list[Malformed], names: list[str]) -> pytest.MarkDecorator:
    found = {bad.what: bad for bad in corpus}
    return pytest.mark.parametrize("bad", [found[name] for name in names], ids=names)


@pytest.mark.slow
@chosen(SWEEPS, NASTIEST)
def test_a_sweep_file_costs_little(bad: Malformed) -> None:
    cheaply_refused(bad, "plan", bad.make())


@pytest.mark.slow
@chosen(CONFIGURATIONS, NASTIEST_CONFIGURATIONS)
def test_a_configuration_costs_little(bad: Malformed) -> None:
    cheaply_refused(bad, "train", bad.make())


@pytest.mark.slow
@pytest.mark.usefixtures("here")
@chosen(DATASETS, NASTIEST_DATASETS)
def test_a_data_set_costs_little(bad: Malformed) -> None:
    name = bad.make()
    Path("small.yaml").write_text(SMALL)
    cheaply_refused(bad, "sweep", "small.yaml", "--set", f"dataset={name}")
