"""Studies on PostgreSQL: who runs one, what is refused, and what happens when the server goes away."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.storages import RDBStorage
from stores import Postgres, postgres, until
from terminals import environment
from test_study import started
from test_sweep import spec

from regtune.errors import SettingsError, StorageError, StudyBusy
from regtune.settings import Settings, load_settings
from regtune.storage import locks, open_engine, open_storage
from regtune.storage.locks import hold_advisory
from regtune.storage.optuna import Patience
from regtune.storage.schema import STUDIES
from regtune.study.ownership import hold, holder, session
from regtune.study.study import Study


@pytest.fixture
def settings(postgres_server: Postgres) -> Settings:
    """Settings with an initialised database of its own; MLflow stays a file."""
    return initialised(postgres_server)


def initialised(server: Postgres) -> Settings:
    url = server.fresh("studies_of_a_test")
    RDBStorage(url).engine.dispose()
    return load_settings(storage=url)


HOLD = """
import time
from regtune.settings import load_settings
from regtune.study.ownership import hold
with hold(load_settings(), "small"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_second_coordinator_is_refused_by_name_until_the_first_is_killed(
    kind: str, request: pytest.FixtureRequest
) -> None:
    settings = load_settings() if kind == "sqlite" else request.getfixturevalue("settings")
    settings.home.mkdir(exist_ok=True)
    variables = environment(OPTUNA_STORAGE=settings.storage_url)
    other = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True, env=variables)
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(StudyBusy, match=f"process {other.pid} on .* since"), hold(settings, "small"):
            pass
        assert (found := holder(settings, "small")) is not None
        assert found.pid == other.pid
        with hold(settings, "another"):
            assert holder(settings, "another") is not None
    finally:
        other.kill()
        other.wait()
    until(lambda: holder(settings, "small") is None, seconds=20)
    with hold(settings, "small"):
        pass


def test_a_lock_whose_connection_was_terminated_is_taken_again(
    settings: Settings, postgres_server: Postgres
) -> None:
    with hold_advisory(STUDIES.engine(settings.storage_url), "study small") as held:
        held.check()
        postgres_server.end_connections()
        until(lambda: holder(settings, "small") is None)
        held.check()
        assert holder(settings, "small") is not None
        postgres_server.end_connections()
        until(lambda: holder(settings, "small") is None)
        with hold(settings, "small"), pytest.raises(locks.Taken):
            held.check()


def test_who_takes_a_study_over_ends_what_its_holder_before_has_left_open(settings: Settings) -> None:
    with hold(settings, "small"):
        Study.open(settings, spec())
        connection = open_storage(settings, session=session("small")).engine.connect()
        connection.execute(sqlalchemy.text("SELECT 1"))
    with hold(settings, "small"), pytest.raises(sqlalchemy.exc.OperationalError, match="terminat"):
        connection.execute(sqlalchemy.text("SELECT 1"))
    connection.invalidate()
    connection.close()


def test_a_lock_is_taken_again_from_our_own_connection_that_the_server_does_not_know_is_lost(
    settings: Settings,
) -> None:
    class Lost:
        def __getattr__(self, name: str) -> Any:
            raise sqlalchemy.exc.OperationalError(
                "", {}, Exception("server closed the connection unexpectedly")
            )

    with hold_advisory(STUDIES.engine(settings.storage_url), "study small") as held:
        ghost, held.connection = held.connection, Lost()
        assert held.check()
        assert not held.check()
        with pytest.raises(sqlalchemy.exc.OperationalError, match="terminat"):
            ghost.execute(sqlalchemy.text("SELECT 1"))


@pytest.mark.parametrize("fresh", [False, True])
def test_a_study_that_another_has_run_while_its_database_was_away_is_left_to_it(
    settings: Settings, postgres_server: Postgres, fresh: bool
) -> None:
    with hold(settings, "small") as ours:
        study = Study.open(settings, spec(), patience=Patience("the database", ours.check))
        ours.sign(study.optuna)
        study.check(())
        postgres_server.end_connections()
        until(lambda: holder(settings, "small") is None)
        with hold(settings, "small") as theirs:
            theirs.sign(Study.open(settings, spec(), fresh=fresh).optuna)
        with pytest.raises(StudyBusy, match="was run by another process while its database was away"):
            study.set_attribute("regtune.anything", 1)
        assert "regtune.anything" not in Study.open(settings, spec()).attributes


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql+psycopg2://host/studies", "uses the driver psycopg"),
        ("postgresql://host", "name the database"),
        ("mysql://host/studies", "expected sqlite:///PATH or postgresql"),
        ("nonsense", "expected sqlite:///PATH or postgresql"),
        ("sqlite://", "would be lost"),
    ],
)
def test_urls_that_cannot_be_used_are_refused(url: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        open_engine(load_settings(storage=url).storage_url)


def test_a_database_and_a_server_that_are_not_there_are_told_apart(postgres_server: Postgres) -> None:
    with pytest.raises(StorageError, match="there is no such database"):
        open_engine(postgres_server.url("nowhere"))
    with pytest.raises(StorageError, match=r"cannot be reached .*is it running"):
        open_engine("postgresql+psycopg://someone@127.0.0.1:1/studies")


def test_a_storage_waits_for_its_server_says_so_once_and_psycopg_prints_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    notes: list[str] = []
    stop = threading.Event()
    patience = Patience("PostgreSQL studies", note=notes.append, stop=stop)
    with postgres() as server:
        study = Study.open(initialised(server), spec(), patience=patience)
        server.control("stop", "-m", "immediate")
        back = threading.Timer(3.0, server.control, ["start"])
        back.start()
        study.set_attribute("regtune.anything", 0)
        assert started(study) == len(study.trials()) - 1 == 0
        back.join()
        assert len(notes) == 2 * patience.outages >= 2
        assert "is away since" in notes[0]
        assert "is back" in notes[1]

        server.control("stop", "-m", "fast")
        threading.Timer(1.0, stop.set).start()
        begun = time.monotonic()
        with pytest.raises(optuna.exceptions.StorageInternalError):
            study.set_attribute("regtune.anything", 1)
        assert time.monotonic() - begun < 20
    assert not [record for record in caplog.records if record.name == "psycopg"]


@pytest.mark.parametrize("stopping", [False, True])
def test_a_connection_cut_off_between_two_calls_is_replaced_and_no_outage(
    settings: Settings, postgres_server: Postgres, stopping: bool
) -> None:
    """The server is there all the time. Ownership is checked first, as on any new connection."""
    notes: list[str] = []
    checked: list[bool] = []
    patience = Patience("the database", lambda: checked.append(True), notes.append)
    study = Study.open(settings, spec(), patience=patience)
    number = started(study)
    if stopping:
        patience.stop()
    checked.clear()
    postgres_server.end_connections()
    study.report(number, 1, 0.5)
    assert checked
    assert (patience.outages, notes) == (0, [])
    (stored,) = optuna.load_study(study_name="small", storage=RDBStorage(settings.storage_url)).trials
    assert stored.intermediate_values == {1: 0.5}
