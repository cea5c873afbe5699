"""A folder that another account has made: who may read it reads it, what needs writing says so, a group shares it."""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, redirect_stderr, redirect_stdout
from multiprocessing import Pipe, get_context
from pathlib import Path
from typing import Any

import pytest
import studies
from parts import missing
from specs import QUICK, spec_of

from regtune.cli import main
from regtune.server import service
from regtune.server.databases import init_databases
from regtune.settings import Settings
from regtune.storage import locks, open_storage, sqlite
from regtune.study.ownership import hold, holder
from regtune.study.study import load, request

NAME = "mnist-regularization"
NOBODY = 65534
GROUP = 64_000
SAME = ("board N --csv", "show N", "studies", "plan sweep.yaml", "db check")
READING = (*SAME, "best N", "watch N --json", "status", "sync --check", "doctor")
WRITING = ("enqueue N dropout=0.1", "sync", "delete N --yes", "db init", "db backup ../backup", "up", "down")
Said = dict[str, tuple[int, str, str]]


def run(verbs: Sequence[str]) -> Said:
    """Run verbs in this process: exit code, output and errors of each."""
    found = {}
    for verb in verbs:
        sys.argv = ["regtune", *(NAME if word == "N" else word for word in verb.split())]
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            try:
                main()
            except SystemExit as ended:
                code = ended.code
        found[verb] = (code, out.getvalue(), err.getvalue())
    return found


def as_account(user: int, call: Callable[[], Any], umask: int = 0o022) -> Any:
    """What `call` returns in a fork of this process that belongs to another account."""
    answer, there = Pipe(duplex=False)

    def become_and_call() -> None:
        os.umask(umask)
        os.setgroups([])
        os.setgid(GROUP)
        os.setuid(user)
        there.send(call())

    child = get_context("fork").Process(target=become_and_call)
    child.start()
    there.close()
    said = answer.recv()
    child.join()
    return said


@pytest.fixture(scope="module")
def made() -> Iterator[tuple[Path, Said]]:
    """A folder that every account can reach, with a study in it that nobody has open; what its owner is told of it.

    What is imported for a verb is imported here: another account may not be able to.
    """
    if os.geteuid() != 0:
        missing("two accounts need root")
    patch = pytest.MonkeyPatch()
    patch.setattr(sys, "argv", sys.argv)
    with tempfile.TemporaryDirectory(prefix="accounts") as folder:
        here = Path(folder)
        here.chmod(0o755)
        patch.chdir(here)
        patch.setenv("HOME", folder)
        searched = {"dropout": {"min": 0.0, "max": 0.6}, "batchnorm": {"values": list(studies.PLACEMENTS)}}
        spec = spec_of(searched, name=NAME).identity()
        studies.fill(studies.create(here / "draft" / "studies.db", spec=spec))
        shutil.copy(QUICK, here / "sweep.yaml")
        run(["sync --home draft", "stop N --home draft"])
        (here / "mlruns").mkdir()
        for name in ("studies.db", "mlflow.db"):
            sqlite.copy(here / "draft" / name, here / "mlruns" / name)
        for name in ("artifacts", "locks"):
            shutil.copytree(here / "draft" / name, here / "mlruns" / name)
        yield here, run(READING)
        patch.undo()


@pytest.fixture
def folder(made: tuple[Path, Said], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setenv("HOME", str(made[0]))
    monkeypatch.chdir(made[0])
    return made[0]


def test_who_may_only_read_reads_and_is_told_what_needs_writing(
    folder: Path, made: tuple[Path, Said]
) -> None:
    own, before = made[1], sorted((folder / "mlruns").rglob("*"))
    theirs = as_account(NOBODY, lambda: run((*READING, *WRITING)))
    assert {verb: theirs[verb] for verb in SAME} == {verb: own[verb] for verb in SAME}
    for verb in READING:
        code, _, errors = theirs[verb]
        assert (code, errors) == (1 if verb == "doctor" else own[verb][0], own[verb][2]), theirs[verb]
    for verb in WRITING:
        code, _, errors = theirs[verb]
        assert (code, errors.count("\n")) == (1, 1), theirs[verb]
        assert "ermission denied" in errors
    assert sorted((folder / "mlruns").rglob("*")) == before


def test_it_is_read_while_a_sweep_runs_and_after_one_was_killed(folder: Path) -> None:
    shutil.copytree("mlruns", "running")
    settings = Settings(REGTUNE_HOME=Path("running"))
    with closing(sqlite3.connect("running/studies.db")) as writer, hold(settings, "renamed"):
        writer.execute("UPDATE studies SET study_name = 'renamed'")
        writer.commit()
        shutil.copytree("running", "killed")
        there = [
            f"{verb} --home running"
            for verb in ("status", "sync --check", "stop renamed", "watch renamed --json")
        ]
        found = list(as_account(NOBODY, lambda: run((*there, "board renamed --home killed"))).values())
    assert [code for code, _, _ in found] == [0, 0, 1, 0, 0]
    assert all(f"process {os.getpid()} on" in output for _, output, _ in found[:2])
    assert "Permission denied" in found[2][2]
    assert not any("Traceback" in errors for _, _, errors in found)


def test_a_lock_that_is_looked_at_is_not_opened_for_writing(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    assert locks.file_holder(path) is None
    with locks.hold_file(path):
        assert locks.file_holder(path) == locks.Holder.me()
    path.chmod(0o444)
    with path.open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)  # another who looks at the same moment
        assert locks.file_holder(path) is None


def test_the_server_of_another_account_is_known_and_left_alone(folder: Path) -> None:
    home = folder / "served"
    home.mkdir()
    home.chmod(0o777)
    settings = Settings(REGTUNE_HOME=home)
    with subprocess.Popen(["sleep", "600"], user=64_001, cwd="/") as server, ExitStack() as stack:
        stack.callback(server.kill)
        address = ("http://127.0.0.1:9", "127.0.0.1", 9)
        found = service.Service(*address, False, "", server.pid, "2026-01-01T00:00")
        file = home / service.FILE
        file.write_text(json.dumps(vars(found)))
        os.chown(file, 64_001, -1)
        assert as_account(64_002, lambda: vars(service.running(settings))) == vars(found)
        code, _, errors = as_account(64_002, lambda: run(["down --home served"]))["down --home served"]
        assert (code, file.exists(), server.poll()) == (1, True, None)
        assert "http://127.0.0.1:9, is that of the account 64001" in errors
        os.chown(file, 64_003, -1)  # who wrote it is not who runs the process: it has got another's number
        assert as_account(64_002, lambda: service.running(settings) is None)


def test_with_the_umask_of_a_group_both_accounts_write(folder: Path) -> None:
    home = folder / "shared"
    home.mkdir()
    os.chown(home, -1, GROUP)
    home.chmod(0o2775)
    settings = Settings(REGTUNE_HOME=home)

    def first() -> str:
        init_databases(settings)
        studies.create(home / "studies.db", NAME)
        with hold(settings, NAME):
            return str(holder(settings, NAME))

    def second() -> int:
        with hold(settings, NAME):
            request(settings, NAME, "stop", {})
        return len(load(open_storage(settings), NAME).user_attrs)

    assert as_account(64_001, first, umask=0o002).startswith("process ")
    assert as_account(64_002, second, umask=0o002) == 6
    assert all(path.stat().st_mode & 0o020 for path in home.rglob("*"))
