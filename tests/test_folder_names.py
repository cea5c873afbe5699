"""A folder's name, whatever characters it has: what belongs into it lies in it and nowhere else."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

import pytest
import sqlalchemy
import studies
from mlflow.store.db.utils import create_sqlalchemy_engine_with_retry
from mlflow.utils.file_utils import local_file_uri_to_path
from specs import QUICK, spec_of
from stores import UNUSUAL
from typer.testing import CliRunner

import regtune
from regtune.cli import app
from regtune.credentials import in_url
from regtune.errors import InputError, SettingsError
from regtune.server.accounts import accounts_environment
from regtune.server.databases import urls_of
from regtune.settings import Settings, sqlite_url
from regtune.storage import database_path, full_url, parse_url, place
from regtune.storage.mlflow import store_url
from regtune.storage.postgres import Embedded
from regtune.storage.schema import TRACKING
from regtune.upkeep.backup import require_sqlite

NAMES = (
    *[
        "a b",
        " a ",
        "a#b",
        "a%20b",
        "100%41",
        "what?x=1",
        "a;b",
        "a+b",
        "a&token=1",
        "a'b",
        'a"b',
        "a,b",
        "a@b:c",
    ],
    *["äöü", "日本", "{x}", "[x]", "a\\b", "~", "$HOME"],
    UNUSUAL,
)
NAME = "mnist-regularization"


@pytest.fixture(params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    found = tmp_path / "parent" / str(request.param)
    found.mkdir(parents=True)
    return found


def test_the_url_of_a_file_leads_to_it_for_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(REGTUNE_HOME=folder)
    urls = {"studies.db": settings.storage_url, "mlflow.db": settings.mlflow_uri}
    assert {f"{name}.db": url for name, url in urls_of(folder, "sqlite").items()} == urls
    for name, url in urls.items():
        assert not in_url(url)
        assert (database_path(url), place(url)) == (folder / name, str(folder / name))
        for given in (url, full_url(url), store_url(url)):
            assert given.format(SCHEMA_VERSION="12") == given  # Optuna takes it for a template
            engine = sqlalchemy.create_engine(given)
            with engine.begin() as connection:
                connection.execute(sqlalchemy.text("CREATE TABLE IF NOT EXISTS here (x)"))
            assert database_path(engine.url.render_as_string()) == folder / name
            engine.dispose()
    create_sqlalchemy_engine_with_retry(store_url(settings.mlflow_uri)).dispose()  # it makes folders
    assert Path(local_file_uri_to_path(settings.artifacts.as_uri())) == folder / "artifacts"
    assert sorted(path.name for path in folder.iterdir()) == sorted(urls)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "a long password")
    found = configparser.ConfigParser()
    found.read(accounts_environment(settings)["MLFLOW_AUTH_CONFIG_PATH"])
    assert database_path(found["mlflow"]["database_uri"]) == folder / "auth.db"
    embedded = Embedded(folder)
    hosts = {str(parse_url(url).query["host"]) for url in embedded.urls.values()}
    assert hosts == {str(embedded.socket)}
    assert "," not in hosts.pop()  # libpq takes it for two hosts


def test_the_lines_that_back_up_a_file_beside_postgresql_work(folder: Path) -> None:
    settings = Settings(REGTUNE_HOME=folder, MLFLOW_TRACKING_URI="postgresql+psycopg://me@db/mlflow")
    copies = folder / "copies"
    copies.mkdir()
    with closing(sqlite3.connect(folder / "studies.db")) as connection, connection:
        connection.execute("CREATE TABLE here (x)")
    for verb in ("backup", "restore"):
        with pytest.raises(InputError) as caught:
            require_sqlite(settings, copies, verb)
        (line,) = (line for line in str(caught.value).splitlines() if line.startswith("  sqlite3 "))
        assert shlex.split(line)[1] == str(folder / "studies.db")
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
    made = here / "mlruns" / "studies.db"
    searched = {"dropout": {"min": 0.0, "max": 0.6}, "batchnorm": {"values": list(studies.PLACEMENTS)}}
    studies.fill(studies.create(made, spec=spec_of(searched, name=NAME).identity()))
    shutil.copy(QUICK, here / "sweep.yaml")
    copy = here.parent / unquote(UNUSUAL) / "mlruns" / "artifacts"
    for verb in VERBS.split(";"):
        words = [NAME if word == "N" else word for word in verb.split()]
        if words[0] == "delete":
            shutil.copytree(here / "mlruns" / "artifacts", copy)
        ended = CliRunner().invoke(app, words)
        assert ended.exit_code == 0, f"{verb}: {ended.output} {ended.exception!r}"
    left = list(copy.glob("runs/*"))
    assert len(left) > 7
    assert all(list(run.rglob("*.yaml")) for run in left)
    assert not list((here / "mlruns" / "artifacts").glob("runs/*"))
    shutil.rmtree(here.parent / unquote(UNUSUAL))
    assert sorted(path.name for path in here.parent.iterdir()) == sorted((UNUSUAL, "backup"))
    assert TRACKING.engine(Settings().mlflow_uri).url.database == str(here / "mlruns" / "mlflow.db")
    assert {"studies.db", "mlflow.db", "locks"} <= {path.name for path in (here / "mlruns").iterdir()}


def test_no_path_is_put_into_a_url_in_another_way() -> None:
    sources = Path(regtune.__file__).parent.rglob("*.py")
    found = [path.name for path in sources if re.search(r"(sqlite(\+\w+)?|file):/*\{", path.read_text())]
    assert sorted(found) == ["settings.py", "sqlite.py"]  # the second is SQLite's own form, for reading alone
