"""A canary in every place where a user may put a password is afterwards found nowhere else, however much is said."""

from __future__ import annotations

import base64
import gzip
import json
import os
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from canary import Canaries, Watch
from stores import Postgres, free_port, postgres
from test_db import age_studies
from typer.testing import CliRunner

from regtune.cli import app
from regtune.errors import StorageError
from regtune.server.databases import init_databases, upgrade_databases
from regtune.settings import Settings
from regtune.storage.mlflow import connect

ROOT = Path(__file__).parents[1]
STUDIES, RUNS = "OPTUNA_STORAGE_PASSWORD", "MLFLOW_TRACKING_PASSWORD"
ADMIN, KEY = "MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY"
LOUD = {
    **{"MLFLOW_LOGGING_LEVEL": "DEBUG", "MLFLOW_SQLALCHEMYSTORE_ECHO": "true", "PYTHONFAULTHANDLER": "1"},
    **{"PYTHONWARNINGS": "always", "GRPC_VERBOSITY": "debug", "TF_CPP_MIN_LOG_LEVEL": "0", "COLUMNS": "1000"},
}
"""What makes Python and the libraries say the most, and nothing that is searched broken into lines."""
VERBS = (
    "sweep sweep.yaml, plan sweep.yaml, studies, board x, ui, up, down, status, doctor, gc, db init, db check, "
    "db upgrade, db backup there, delete x --yes, best x, stop x, watch x"
)
WORKER, WRITER, SERVER = "worker", "writer", "server"
ROLES = {WORKER: "regtune.forks", WRITER: "regtune.tracking.live", SERVER: "mlflow server"}
SWEEP = """
{name: canary, dataset: mnist-5k, run_cap: 2, controls: false, model: {hidden: [8]}, training: {max_epochs: 2},
parameters: {dropout: {values: [0.0, 0.1]}}}
"""


def run(*arguments: str, environment: Mapping[str, str], code: str | None = None) -> tuple[int, str]:
    """Exit code, and all that was printed, of a verb or of Python code, at the loudest."""
    command = [sys.executable, *(("-c", code) if code else ("-m", "regtune", *arguments))]
    variables = {**os.environ, **LOUD, "PYTHONPATH": str(ROOT), **environment}
    ended = subprocess.run(command, env=variables, input=b"", capture_output=True, timeout=400, check=False)
    return ended.returncode, (ended.stdout + ended.stderr).decode(errors="replace")


# -- the search itself


def test_a_canary_is_found_in_whatever_disguise(tmp_path: Path) -> None:
    canaries = Canaries("one", "other")
    secret = canaries["one"]
    headers = [base64.b64encode(f"{user}:{secret}".encode()).decode() for user in ("a", "ab", "abc")]
    plain = (urllib.request.quote(secret, safe=""), json.dumps({"a": secret}), repr(secret))
    for text in (*plain, secret.encode().hex(), *headers):
        assert canaries.found(f"... {text} ...") == {"one"}, text
    (tmp_path / "plain.txt").write_text(text)
    (tmp_path / "packed.gz").write_bytes(gzip.compress(f"{text} ".encode() * 50))
    with zipfile.ZipFile(tmp_path / "model.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", f"{text} " * 50)
    with closing(sqlite3.connect(tmp_path / "tags.db")) as database, database:
        database.execute("CREATE TABLE tags (value TEXT)")
        database.execute("INSERT INTO tags VALUES (?)", (text,))
    (tmp_path / secret.partition("-")[0]).mkdir()
    assert [*canaries.in_files(tmp_path).values()] == [{"one"}] * 5
    assert canaries.found("no canary here: " + Canaries("one")["one"]) == set()


# -- refused before any library sees it


@pytest.mark.parametrize("variable", ["OPTUNA_STORAGE", "MLFLOW_TRACKING_URI"])
def test_a_password_in_a_url_is_refused_by_every_verb_in_arguments_too_and_not_repeated(
    variable: str, tmp_path: Path
) -> None:
    canaries = Canaries("url")
    Path("sweep.yaml").write_text(SWEEP)
    given = {variable: f"http://127.0.0.1:9/?token={canaries['url']}"}
    argument = f"postgresql+psycopg://someone:{canaries['url']}@127.0.0.1:9/x"
    for verb in (*VERBS.split(", "), f"up {argument}", f"up --postgres {argument}"):
        ended = CliRunner().invoke(app, verb.split(), env={} if argument in verb else given)
        assert "a URL with a password or token ends up in logs" in str(ended.exception), (verb, ended.output)
        assert not canaries.found(f"{ended.output} {ended.exception!r}"), verb
    assert not canaries.in_files(tmp_path)


# -- a server that asks for passwords, and everything that uses it


@dataclass(frozen=True)
class Guarded:
    """PostgreSQL on 127.0.0.1 that lets roles in by password alone; each role owns one database of its name."""

    server: Postgres
    port: int

    def make(self, role: str, password: str) -> str:
        """A role and its database, anew; its URL. The password itself never reaches the server."""
        address = f"host={self.server.socket} port={self.port} user=postgres dbname=postgres"
        with psycopg.connect(address, autocommit=True) as link:
            words = (password.encode(), role.encode(), b"scram-sha-256")
            verifier = link.pgconn.encrypt_password(*words).decode()
            link.execute(f'DROP DATABASE IF EXISTS "{role}" WITH (FORCE)')
            link.execute(f'DROP ROLE IF EXISTS "{role}"')
            link.execute(f"CREATE ROLE \"{role}\" LOGIN PASSWORD '{verifier}'")
            link.execute(f'CREATE DATABASE "{role}" OWNER "{role}"')
        return f"postgresql+psycopg://{role}@127.0.0.1:{self.port}/{role}"

    def dump(self) -> bytes:
        """Every row of every database, and the roles."""
        words = ["-h", str(self.server.socket), "-p", str(self.port), "-U", "postgres"]
        command = [self.server.programs / "pg_dumpall", *words]
        return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    port = free_port()
    with postgres() as server:
        (server.socket / "pg_hba.conf").write_text(
            "local all postgres trust\nlocal all all scram-sha-256\nhost all all 127.0.0.1/32 scram-sha-256\n"
        )
        server.run("ALTER SYSTEM SET log_statement = 'all'")
        server.control("stop", "-m", "fast")
        server.control("start", "-o", f"-h 127.0.0.1 -p {port}")
        yield Guarded(server, port)


def test_each_database_gets_its_own_password_and_a_wrong_one_is_named_by_its_variable(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    canaries = Canaries(STUDIES, RUNS)
    urls = {"OPTUNA_STORAGE": guarded.make("studies", canaries[STUDIES])}
    urls["MLFLOW_TRACKING_URI"] = guarded.make("mlflow", canaries[RUNS])
    settings = Settings(REGTUNE_HOME=tmp_path / "home", **urls)
    monkeypatch.setenv(STUDIES, canaries[STUDIES])
    monkeypatch.setenv(RUNS, canaries[STUDIES])
    with pytest.raises(StorageError, match=RUNS) as caught:
        init_databases(settings)
    assert not canaries.found(repr(caught.value))
    monkeypatch.delenv(RUNS)
    monkeypatch.setenv(f"{RUNS}_FILE", str(tmp_path / "password"))
    (tmp_path / "password").touch(mode=0o600)
    (tmp_path / "password").write_text(f"{canaries[RUNS]}\n")
    init_databases(settings)
    assert connect(settings.mlflow_uri, settings.artifacts).search_experiments()[0].name == "Default"
    age_studies(settings.storage_url)
    assert "tables upgraded" in upgrade_databases(settings)[0]
    assert not {"PGPASSWORD", RUNS} & os.environ.keys()


REFUSED = """
from regtune.settings import load_settings
from regtune.storage.mlflow import connect
settings = load_settings()
connect(settings.mlflow_uri, settings.artifacts).search_experiments()
"""


@pytest.mark.slow
def test_a_canary_is_nowhere_but_where_it_was_put(guarded: Guarded, tmp_path: Path) -> None:
    canaries = Canaries(STUDIES, RUNS, ADMIN, KEY)
    work = tmp_path / "work"
    work.mkdir()
    os.chdir(work)
    Path("sweep.yaml").write_text(SWEEP)
    files = {tmp_path / "runs": canaries[RUNS], work / ".env": f"export {ADMIN}='{canaries[ADMIN]}'"}
    for path, text in files.items():
        path.touch(mode=0o600)
        path.write_text(f"{text}\n")
    variables = {
        "OPTUNA_STORAGE": guarded.make("studies", canaries[STUDIES]),
        "MLFLOW_TRACKING_URI": guarded.make("mlflow", canaries[RUNS]),
        STUDIES: canaries[STUDIES],
        f"{RUNS}_FILE": str(tmp_path / "runs"),
        KEY: canaries[KEY],
    }
    port = str(free_port())
    printed = []

    def verb(*arguments: str, **more: str) -> str:
        code, said = run(*arguments, environment={**variables, **more})
        assert code == 0, (arguments, said)
        printed.append(said)
        return said

    with Watch(canaries, ROLES) as watch:
        verb("db", "init")
        assert "MLflow is behind" not in verb("sweep", "sweep.yaml", "--workers", "1")
        for arguments in (["doctor"], ["db", "check"], ["show", "canary", "1", "--json"]):
            verb(*arguments)
        assert "an account" in verb("up", "--auth", "--port", port) + verb("status")
        try:
            server = f"http://127.0.0.1:{port}"
            variables |= {"MLFLOW_TRACKING_URI": server, "MLFLOW_TRACKING_USERNAME": "admin"}
            variables.pop(f"{RUNS}_FILE", None)
            variables[RUNS] = canaries[ADMIN]
            more = verb("sweep", "sweep.yaml", "--workers", "1", "--set", "run_cap=3")
            assert "MLflow is behind" not in more
            assert f"compare the runs:  {server}/#/experiments/" in more
            variables[RUNS] = canaries[KEY]  # a wrong one
            printed.append(run(environment=variables, code=REFUSED)[1])
            assert "UNAUTHENTICATED" in printed[-1] or "401" in printed[-1], printed[-1]
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(f"{server}/api/2.0/mlflow/experiments/search?max_results=1")
        finally:
            verb("down")

    dump = guarded.dump()
    for told in (b"SCRAM-SHA-256$", b"regtune.trial_uid", b"regtune.record"):
        assert told in dump
    assert not canaries.found(dump)
    assert not canaries.found("\n".join(printed))
    assert (work / "mlruns").is_dir()
    assert not canaries.in_files(work, but={work / ".env"})
    assert b"CREATE TABLE" in (guarded.server.socket / "log").read_bytes()
    assert not canaries.in_files(guarded.server.socket)
    assert watch.seen > 10
    assert not watch.arguments
    assert set(watch.environments) == set(ROLES)
    assert watch.environments[WORKER] == set()
    assert watch.environments[WRITER] <= {RUNS, ADMIN, STUDIES}
    assert watch.environments[SERVER] == {RUNS, ADMIN, KEY}


FAILING = """
import logging, sys
logging.basicConfig(level=logging.DEBUG)
from regtune import SweepSpec, run_sweep
from regtune.settings import load_settings
def uncaught(call):
    try:
        call()
    except Exception:
        import traceback
        traceback.print_exc()
    else:
        sys.exit("it went well")
settings = load_settings()
import mlflow.store.db.utils
mlflow.store.db.utils.MAX_RETRY_COUNT = 3  # each time with the same words; all ten take 100 s
from regtune.storage import open_storage
from regtune.storage.mlflow import connect, open_sql
from regtune.storage.schema import STUDIES, TRACKING
uncaught(lambda: run_sweep(SweepSpec.load("sweep.yaml"), settings=settings, workers=1))
uncaught(lambda: STUDIES.engine(settings.storage_url).connect())
uncaught(lambda: open_storage(settings))
uncaught(lambda: TRACKING.engine(settings.mlflow_uri).connect())
uncaught(lambda: connect(settings.mlflow_uri, settings.artifacts).search_experiments())
uncaught(lambda: open_sql(settings.mlflow_uri, settings.artifacts))
open_storage(settings)
"""


@pytest.mark.slow
def test_wrong_passwords_are_in_no_driver_s_message_and_in_no_traceback(
    guarded: Guarded, tmp_path: Path
) -> None:
    right, wrong = Canaries(STUDIES, RUNS), Canaries(STUDIES, RUNS)
    Path("sweep.yaml").write_text(SWEEP)
    variables = {
        "OPTUNA_STORAGE": guarded.make("studies", right[STUDIES]),
        "MLFLOW_TRACKING_URI": guarded.make("mlflow", right[RUNS]),
        STUDIES: wrong[STUDIES],
        RUNS: wrong[RUNS],
    }
    for verb in ("db init", "sweep sweep.yaml", "doctor", "status", f"up --port {free_port()}"):
        code, said = run(*verb.split(), environment=variables)
        assert code == (0 if verb == "status" else 1), (verb, said)
        assert "password authentication failed" in said
        assert not wrong.found(said) | right.found(said), verb
    code, said = run(environment=variables, code=FAILING)
    assert code == 1
    assert said.count("Traceback") > 6
    assert said.count("password authentication failed") > 6
    assert "it went well" not in said
    assert not wrong.found(said)
    assert not wrong.in_files(tmp_path)
    assert b"password authentication failed" in (guarded.server.socket / "log").read_bytes()
    assert not wrong.in_files(guarded.server.socket)
