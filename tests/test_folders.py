"""A folder of any name and of any account: nothing lies beside it, who may only read it reads it, a group shares it."""

from __future__ import annotations

import configparser
import fcntl
import io
import json
import os
import shlex
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
from urllib.parse import unquote

import pytest
import sqlalchemy
import studies
from mlflow.store.db.utils import create_sqlalchemy_engine_with_retry
from mlflow.utils.file_utils import local_file_uri_to_path
from parts import missing
from specs import QUICK, spec_of
from stores import UNUSUAL

from regtune.cli import main
from regtune.credentials import in_url
from regtune.errors import InputError, SettingsError
from regtune.server import service
from regtune.server.accounts import accounts_environment
from regtune.server.databases import init_databases, urls_of
from regtune.settings import Settings, sqlite_url
from regtune.storage import database_path, full_url, locks, open_storage, parse_url, place
from regtune.storage.mlflow import store_url
from regtune.storage.postgres import Embedded
from regtune.study.ownership import hold, holder
from regtune.study.study import load, request
from regtune.upkeep.backup import require_sqlite

NAME = "mnist-regularization"
NAMES = (
    """a b| a |a#b|a%20b|100%41|what?x=1|a;b|a+b|a&token=1|a'b|a"b|a,b|a@b:c|äöü|日本|{x}|[x]|a\\b|~|$HOME"""
)
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


def fill(home: Path) -> None:
    """Put a study into a folder and a sweep file beside it."""
    searched = {"dropout": {"min": 0.0, "max": 0.6}, "batchnorm": {"values": list(studies.PLACEMENTS)}}
    studies.fill(studies.create(home / "studies.db", spec=spec_of(searched, name=NAME).identity()))
    shutil.copy(QUICK, home.parent / "sweep.yaml")


# -- of any name


@pytest.fixture(params=(*NAMES.split("|"), UNUSUAL))
def named(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    found = tmp_path / "parent" / str(request.param)
    found.mkdir(parents=True)
    return found


def test_the_url_of_a_file_leads_to_it_for_all(named: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(REGTUNE_HOME=named)
    urls = {"studies.db": settings.storage_url, "mlflow.db": settings.mlflow_uri}
    assert {f"{name}.db": url for name, url in urls_of(named, "sqlite").items()} == urls
    for name, url in urls.items():
        assert not in_url(url)
        assert (database_path(url), place(url)) == (named / name, str(named / name))
        for given in (url, full_url(url), store_url(url)):
            assert given.format(SCHEMA_VERSION="12") == given  # Optuna takes it for a template
            engine = sqlalchemy.create_engine(given)
            with engine.begin() as connection:
                connection.execute(sqlalchemy.text("CREATE TABLE IF NOT EXISTS here (x)"))
            assert database_path(engine.url.render_as_string()) == named / name
            engine.dispose()
    create_sqlalchemy_engine_with_retry(store_url(settings.mlflow_uri)).dispose()  # it makes folders
    assert Path(local_file_uri_to_path(settings.artifacts.as_uri())) == named / "artifacts"
    assert sorted(path.name for path in named.iterdir()) == sorted(urls)
    assert [path.name for path in named.parent.iterdir()] == [named.name]
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "a long password")
    found = configparser.ConfigParser()
    found.read(accounts_environment(settings)["MLFLOW_AUTH_CONFIG_PATH"])
    assert database_path(found["mlflow"]["database_uri"]) == named / "auth.db"
    embedded = Embedded(named)
    hosts = {str(parse_url(url).query["host"]) for url in embedded.urls.values()}
    assert hosts == {str(embedded.socket)}
    assert "," not in hosts.pop()  # libpq takes it for two hosts


def test_the_lines_that_back_up_a_file_beside_postgresql_work(named: Path) -> None:
    settings = Settings(REGTUNE_HOME=named, MLFLOW_TRACKING_URI="postgresql+psycopg://me@db/mlflow")
    copies = named / "copies"
    copies.mkdir()
    with closing(sqlite3.connect(named / "studies.db")) as connection, connection:
        connection.execute("CREATE TABLE here (x)")
    for verb in ("backup", "restore"):
        with pytest.raises(InputError) as caught:
            require_sqlite(settings, copies, verb)
        (line,) = (line for line in str(caught.value).splitlines() if line.startswith("  sqlite3 "))
        assert shlex.split(line)[1] == str(named / "studies.db")
        if shutil.which("sqlite3"):
            subprocess.run(shlex.split(line), check=True)
            with closing(sqlite3.connect(copies / "studies.db")) as connection:
                assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("here",)]


def test_a_name_that_no_url_can_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"not UTF-8 text; rename it"):
        sqlite_url(tmp_path / "a\udcff" / "studies.db")


VERBS = """board N; board N --csv; show N; show N 2; studies; watch N --json; status --json; doctor; best N;
best N -o best.yaml; plan sweep.yaml; data list; db init; db check; sync; sync --check; stop N; enqueue N dropout=0.1;
db upgrade; db backup ../backup; db restore ../backup --yes; sync --check; delete N --yes; gc --yes; down"""


def test_every_verb_stays_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "parent" / UNUSUAL
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "argv", sys.argv)
    fill(here / "mlruns")
    copy = here.parent / unquote(UNUSUAL) / "mlruns" / "artifacts"
    for verb in VERBS.split(";"):
        if "delete" in verb:
            shutil.copytree(here / "mlruns" / "artifacts", copy)
        said = run([verb])[verb]
        assert said[0] == 0, (verb, said)
    left = list(copy.glob("runs/*"))
    assert len(left) > 7
    assert all(list(run.rglob("*.yaml")) for run in left)
    assert not list((here / "mlruns" / "artifacts").glob("runs/*"))
    shutil.rmtree(here.parent / unquote(UNUSUAL))
    assert sorted(path.name for path in here.parent.iterdir()) == sorted((UNUSUAL, "backup"))
    assert {"studies.db", "mlflow.db", "locks"} <= {path.name for path in (here / "mlruns").iterdir()}


# -- of any account

NOBODY, GROUP = 65534, 64_000
SAME = ("board N --csv", "show N", "studies", "plan sweep.yaml", "db check")
READING = (*SAME, "best N", "watch N --json", "status", "sync --check", "doctor")
WRITING = ("enqueue N dropout=0.1", "sync", "delete N --yes", "db init", "db backup ../backup", "up", "down")


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
        fill(here / "draft")
        run(["sync --home draft", "stop N --home draft", "db backup copy --home draft", "db restore copy"])
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
        there = [f"{verb} --home running" for verb in ("status", "sync --check", "stop renamed")]
        found = list(as_account(NOBODY, lambda: run((*there, "board renamed --home killed"))).values())
    assert [code for code, _, _ in found] == [0, 0, 1, 0]
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
