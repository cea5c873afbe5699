"""Studies on PostgreSQL: who runs one, what is refused, and what happens when the server goes away."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.samplers import RandomSampler
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from stores import Postgres, postgres, until
from test_study import held_elsewhere
from test_sweep import Watching, spec

from regtune.config.trial import TrialConfig
from regtune.errors import SettingsError, StorageError, StudyBusy
from regtune.settings import Settings, load_settings
from regtune.storage import locks, open_engine, open_storage, redact
from regtune.storage.locks import hold_advisory
from regtune.storage.optuna import Patience
from regtune.storage.schema import STUDIES
from regtune.study.board import read_board
from regtune.study.ownership import hold, holder, session
from regtune.study.record import TrialRecord
from regtune.study.study import Study
from regtune.sweep import run_sweep


@pytest.fixture
def settings(postgres_server: Postgres) -> Settings:
    """Settings with an initialised database of its own; MLflow stays a file."""
    url = postgres_server.fresh("studies_of_a_test")
    RDBStorage(url).engine.dispose()
    return load_settings(storage=url)


@pytest.fixture
def own_server() -> Iterator[Postgres]:
    """A server that the test may stop."""
    with postgres() as server:
        yield server


def test_a_second_coordinator_is_refused_by_name_until_the_first_is_killed(settings: Settings) -> None:
    with held_elsewhere("small", OPTUNA_STORAGE=settings.storage_url) as process:
        with pytest.raises(StudyBusy, match=f"process {process.pid} on "), hold(settings, "small"):
            pass
        assert (found := holder(settings, "small")) is not None
        assert found.pid == process.pid
        assert holder(settings, "another") is None
        with hold(settings, "another"):
            pass
    until(lambda: holder(settings, "small") is None, seconds=20)
    with hold(settings, "small"):
        pass


def test_a_lock_whose_connection_was_terminated_is_taken_again(
    settings: Settings, postgres_server: Postgres
) -> None:
    with hold_advisory(STUDIES.engine(settings.storage_url), "study small") as held:
        held.check()
        cut_off(postgres_server)
        until(lambda: holder(settings, "small") is None)
        held.check()
        assert holder(settings, "small") is not None
        cut_off(postgres_server)
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
        study.sign(ours)
        study.check_ownership()
        cut_off(postgres_server)
        until(lambda: holder(settings, "small") is None)
        with hold(settings, "small") as theirs:
            Study.open(settings, spec(), fresh=fresh).sign(theirs)
        with pytest.raises(StudyBusy, match="was run by another process while its database was away"):
            study.set_attribute("regtune.anything", 1)
        assert "regtune.anything" not in Study.open(settings, spec()).attributes


def test_a_database_without_tables_and_one_that_is_not_there_are_told_apart(
    postgres_server: Postgres,
) -> None:
    url = postgres_server.fresh("empty_of_a_test")
    with pytest.raises(StorageError, match="has no tables yet; create them with: regtune db init"):
        open_storage(load_settings(storage=url))
    engine = sqlalchemy.create_engine(url)
    assert sqlalchemy.inspect(engine).get_table_names() == []
    engine.dispose()
    with pytest.raises(StorageError, match="there is no such database"):
        open_engine(postgres_server.url("nowhere"))
    with pytest.raises(StorageError, match=r"cannot be reached .*is it running"):
        open_engine("postgresql+psycopg://someone@127.0.0.1:1/studies")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql+psycopg://someone:canary@host/studies", "a URL with a password"),
        ("postgresql+psycopg://host/studies?password=canary", "a URL with a password"),
        ("postgresql+psycopg2://host/studies", "uses the driver psycopg"),
        ("postgresql://host", "name the database"),
        ("mysql://host/studies", "expected sqlite:///PATH or postgresql"),
        ("nonsense", "expected sqlite:///PATH or postgresql"),
        ("sqlite://", "would be lost"),
    ],
)
def test_urls_that_cannot_be_used_are_refused_without_their_password(url: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason) as caught:
        open_engine(load_settings(storage=url).storage_url)
    assert "canary" not in str(caught.value)
    assert "canary" not in redact("postgresql://someone:canary@host/studies")


def test_a_storage_waits_for_its_server_and_says_so_once(own_server: Postgres) -> None:
    url = own_server.fresh("studies")
    RDBStorage(url).engine.dispose()
    notes: list[str] = []
    stop = threading.Event()
    patience = Patience("PostgreSQL studies", note=notes.append, stop=stop)
    study = Study.open(load_settings(storage=url), spec(), patience=patience)
    own_server.control("stop", "-m", "immediate")
    back = threading.Timer(3.0, own_server.control, ["start"])
    back.start()
    study.read_queue()
    number = started(study)
    back.join()
    assert number == len(study.trials()) - 1
    assert study.outages >= 1
    assert len(notes) == 2 * study.outages
    assert "is away since" in notes[0]
    assert "is back" in notes[1]
    assert len(study.trials(TrialState.RUNNING)) == 1

    own_server.control("stop", "-m", "fast")
    threading.Timer(1.0, stop.set).start()
    begun = time.monotonic()
    with pytest.raises(optuna.exceptions.StorageInternalError):
        study.set_attribute("regtune.anything", 1)
    assert time.monotonic() - begun < 20
    own_server.control("start")


def started(study: Study) -> int:
    """Start a trial as a coordinator does, and return its number."""
    draft = study.ask(RandomSampler(seed=1), ())
    draft.trial.suggest_float("dropout", 0.0, 0.5)
    number = draft.trial.number
    record = TrialRecord(uid=f"{study.uid}-{number}", config=TrialConfig(), parameters={"dropout": 0.1})
    assert study.start(draft.proposed, record)
    return number


def cut_off(server: Postgres) -> None:
    server.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'studies_of_a_test'")


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
    cut_off(postgres_server)
    study.report(number, 1, 0.5)
    assert checked
    assert (study.outages, notes) == (0, [])
    (stored,) = optuna.load_study(study_name="small", storage=RDBStorage(settings.storage_url)).trials
    assert stored.intermediate_values == {1: 0.5}


def test_a_call_cut_off_in_its_middle_is_made_again_and_psycopg_prints_nothing(
    settings: Settings, postgres_server: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    notes: list[str] = []
    study = Study.open(settings, spec(), patience=Patience("the database", note=notes.append))
    number = started(study)
    cut: list[Any] = []

    def cut_once(connection: sqlalchemy.Connection, cursor: Any, statement: str, *_: Any) -> None:
        if "INSERT INTO trial_user_attributes" in statement and not cut:
            cut.append(statement)
            cut_off(postgres_server)

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", cut_once)
    try:
        study.write(number, TrialRecord(uid=f"{study.uid}-{number}", config=TrialConfig(), parameters={}))
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", cut_once)
    assert cut
    assert [study.outages, len(notes)] == [1, 2]
    (stored,) = optuna.load_study(study_name="small", storage=RDBStorage(settings.storage_url)).trials
    assert stored.user_attrs["regtune.record"]["parameters"] == {}
    assert [record.message for record in caplog.records if record.name == "psycopg"] == []


@pytest.mark.slow
def test_a_sweep_goes_on_when_its_server_is_restarted_and_ends_as_on_sqlite(own_server: Postgres) -> None:
    url = own_server.fresh("studies")
    RDBStorage(url).engine.dispose()
    finished = threading.Event()
    watching = Watching(at_end=lambda _: finished.set())

    def restart() -> None:
        finished.wait(60)
        for mode in ("immediate", "fast"):
            own_server.control("stop", "-m", mode)
            time.sleep(2)
            own_server.control("start")
            time.sleep(2)

    disturber = threading.Thread(target=restart)
    disturber.start()
    wanted = spec(run_cap=30)
    outcome = run_sweep(wanted, settings=load_settings(storage=url), workers=1, observer=watching)
    disturber.join()
    assert any("is away since" in note for note in watching.notes)
    assert (outcome.complete + outcome.pruned, outcome.failed, outcome.unwritten) == (30, 0, 0)
    run_sweep(wanted, settings=load_settings(home=Path("undisturbed")), workers=1)
    urls = url, load_settings(home=Path("undisturbed")).storage_url
    boards = [{row.number: row for row in read_board(open_engine(each), "small").rows} for each in urls]
    assert len(boards[0]) == len(boards[1]) == 30
    for number, ours in boards[0].items():
        theirs = boards[1][number]
        assert (ours.state, ours.value) == (theirs.state, theirs.value)
        assert ours.record.parameters == theirs.record.parameters
        assert ours.record.history == theirs.record.history
