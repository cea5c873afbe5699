"""What costs as much in a study of thousands of trials as in one of a hundred, and says the same."""

from __future__ import annotations

import math
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import studies
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial
from sqlalchemy import Engine, event
from stores import Postgres
from threadpoolctl import threadpool_info, threadpool_limits

from regtune.config.sweepfile import SweepSpec
from regtune.search import Space
from regtune.settings import load_settings
from regtune.storage import open_engine
from regtune.study import board
from regtune.study.progress import Row, Tally
from regtune.study.record import ORIGIN, SPEC, STATES, STUDY_UID, TrialRecord
from regtune.study.study import Study, record_of
from regtune.sweep.standing import Standing

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import big_study

NAME = "big"
ODD = {
    "least": ("val_cross_entropy", "minimize"),
    "most": ("val_accuracy", "maximize"),
    "most of another": ("accuracy", "maximize"),
}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A database with a study of 300 trials, NAME, and one of every oddity for each goal."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('scale')}/studies.db"
    else:
        server: Postgres = request.getfixturevalue("postgres_server")
        url = server.fresh("scale")
    RDBStorage(url).engine.dispose()
    big_study.make_study(load_settings(storage=url), big(300), 300)
    for name in ODD:
        odd(url, name)
    engine = open_engine(url)
    yield engine
    engine.dispose()


def big(run_cap: int, name: str = NAME) -> SweepSpec:
    return SweepSpec.load(big_study.SWEEP, [f"run_cap={run_cap}"], name=name)


def odd(url: str, name: str) -> None:
    """Ties, infinite and missing values, controls with and without parameters, layers, trials without a record."""
    metric, goal = ODD[name]
    study = optuna.create_study(storage=url, study_name=name, direction=goal)
    study.set_user_attr(STUDY_UID, "ab" * 16)
    study.set_user_attr(SPEC, {"name": name, "metric": {"name": metric, "goal": goal}})

    def put(state: TrialState, value: float | None, found: TrialRecord | None) -> None:
        attributes = studies.attributes(studies.of(study, found)) if found else {}
        if found and found.control == "l1":
            attributes[ORIGIN] = {"kind": "retry", "key": "retry 3", "control": "l1"}
        given = {name: found.parameters[name] for name in ("dropout",) if found and name in found.parameters}
        known = {name: studies.DISTRIBUTIONS[name] for name in given}
        study.add_trial(
            create_trial(state=state, value=value, user_attrs=attributes, params=given, distributions=known)
        )

    for number in range(24):
        parameters: dict[str, Any] = {"dropout.1": [0.1, 0.25, 1 / 3][number % 3], "patience": number % 4}
        if number % 5:
            parameters |= {"hidden": ["64", "128-64", "16-8-4"][number % 3], "fused": number % 2 == 0}
        parameters |= {"batchnorm": studies.PLACEMENTS[number % 3], "dropout": [0.0, 0.2][number % 2]}
        found = studies.record(
            number,
            parameters,
            floor=[0.08, 0.09, 0.1][number // 2 % 3],
            epochs=[3, 12, 30][number % 3],
            end=["early_stopping", "early_stopping", "pruned", "non_finite"][number % 4],
            control={0: "none", 7: "dropout", 8: "l1"}.get(number),
        )
        if found.control in ("none", "dropout"):
            found = replace(found, parameters={})
        if found.kept:
            found = replace(found, kept=replace(found.kept, sparsity=number // 4 / 8, l2_norm=1e-9 * number))
            value = found.kept.figures[metric]
            put(TrialState.COMPLETE, [value, math.inf, -math.inf][0 if number > 2 else number], found)
        elif number % 4 == 2:
            put(TrialState.PRUNED, None if number == 2 else found.history[metric][-1], found)
        else:
            put(TrialState.FAIL, None, found)
    plain = {"dropout": 0.15, "batchnorm": "none"}
    put(TrialState.FAIL, None, None)
    put(TrialState.WAITING, None, studies.record(25, plain, epochs=4, end=None))
    put(TrialState.WAITING, None, None)
    put(TrialState.RUNNING, None, studies.record(27, plain, end=None, epochs=2))
    put(TrialState.RUNNING, None, studies.record(28, plain, end=None, epochs=4, again=1))


def parameters_of(rows: list[Row]) -> set[str]:
    return {name for row in rows for name in row.parameters}


def by_rank(rows: list[Row], goal: str) -> list[Row]:
    """The order of the board as it is defined, in Python."""
    sign = -1.0 if goal == "maximize" else 1.0

    def key(row: Row) -> tuple[int, float, int]:
        return STATES.index(row.state), math.inf if row.value is None else sign * row.value, row.number

    places = enumerate(sorted(rows, key=key), 1)
    return [replace(row, rank=place if row.state == "COMPLETE" else None) for place, row in places]


def by_column(rows: list[Row], sort: str, metric: str, goal: str) -> list[int]:
    """Numbers in the order of a column, in Python."""
    name = sort.removeprefix("-")
    better_large = goal == "maximize" if name == metric else name in ("val_accuracy", "sparsity")
    cells = {row.number: row.cells(metric, [*parameters_of(rows)])[name] for row in rows}
    have = [number for number, cell in cells.items() if cell is not None]
    have.sort(key=cells.__getitem__, reverse=sort.startswith("-") != better_large)
    return [*have, *(number for number, cell in cells.items() if cell is None)]


@pytest.mark.parametrize("study", [NAME, *ODD])
def test_the_database_ranks_and_limits_as_python_does(engine: Engine, study: str) -> None:
    info = board.read_study(engine, study)
    rows = by_rank(board.read_rows(engine, study, range(info.trials)), info.goal)
    assert len({row.value for row in rows}) < len(rows) == info.trials
    assert board.read_board(engine, study).rows == rows
    assert board.read_board(engine, study, limit=9).rows == rows[:9]
    best = next(row for row in rows if row.searched)
    for count in (1, 4, 10):
        top = board.read_top(engine, study, count)
        wanted = [row for place, row in enumerate(rows) if place < count or row.control or row == best]
        assert top.rows == [row for row in wanted if row.rank or row.control]
        assert top.best == best
        assert set(top.parameters) == parameters_of(rows)
    assert board.read_best(engine, study) == best
    assert board.read_trial(engine, study, rows[3].number) == rows[3]
    assert board.read_ended(engine, study) == {row.number for row in rows if row.state in STATES[:3]}
    running = [row.number for row in rows if row.state == "RUNNING"]
    assert [trial.number for trial in board.read_progress(engine, study).running] == sorted(running)


def test_any_column_sorts_either_way_and_rows_without_a_value_come_last(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    for study in ("least", "most of another"):
        odd(url, study)
        engine = open_engine(url)
        shown = board.read_board(engine, study)
        assert len(shown.parameters) >= 4
        for sort in [sign + column for column in shown.columns for sign in ("", "-") if column != "rank"]:
            expected = by_column(shown.rows, sort, shown.info.metric, shown.info.goal)
            assert [row.number for row in board.read_board(engine, study, sort).rows] == expected, sort
            assert [row.number for row in board.read_board(engine, study, sort, 7).rows] == expected[:7], sort


def test_a_study_made_in_bulk_is_what_optuna_would_have_made(tmp_path: Path) -> None:
    spec, settings = big(60), load_settings(home=tmp_path)
    ours = big_study.make_study(settings, spec, 60)
    theirs = RDBStorage(f"sqlite:///{tmp_path}/theirs.db")
    study = optuna.create_study(storage=theirs, study_name=NAME)
    for trial in big_study.frozen_trials(spec, ours.name, ours.uid, 60):
        study.add_trial(trial)
    stored = RDBStorage(settings.storage_url).get_all_trials(1)
    assert [vars(trial) for trial in stored] == [vars(trial) for trial in theirs.get_all_trials(1)]
    assert [record_of(trial) for trial in ours.trials()] == [record_of(trial) for trial in stored]
    assert {trial.state.name for trial in stored} == set(STATES) - {"FOREIGN"}


def test_the_standing_follows_its_trials(tmp_path: Path) -> None:
    spec = big(100, "standing")
    study = Study.open(load_settings(home=tmp_path), spec)
    standing = Standing(study, Space(spec))

    def same() -> None:
        trials = study.trials()
        states = [trial.state.name for trial in trials]
        retries = sum(trial.user_attrs.get(ORIGIN, {}).get("kind") == "retry" for trial in trials)
        counted = Tally(
            complete=states.count("COMPLETE"),
            pruned=states.count("PRUNED"),
            failed=states.count("FAIL") - retries,
            waiting=states.count("WAITING"),
            trial_epochs=sum(len(trial.intermediate_values) for trial in trials),
        )
        assert standing.tally == counted == Standing(study, Space(spec)).tally
        complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
        order = sorted((trial.value or 0.0, trial.number) for trial in complete if trial.params)
        numbers = [number for _, number in order]
        assert (standing.best(), standing.best(2)) == (numbers, numbers[:2])
        values = [standing.value(place) for place in range(1, len(order) + 2)]
        assert values == [*(value for value, _ in order), None]
        assert (standing.winner and standing.winner.number) == (numbers[0] if numbers else None)

    for turn in range(30):
        if turn % 6 == 1:
            origin = {"kind": "retry" if turn % 4 == 1 else "request", "key": str(turn)}
            study.optuna.add_trial(create_trial(state=TrialState.WAITING, user_attrs={ORIGIN: origin}))
            same()
        trial = study.optuna.ask()
        for step in range(1 + len(study.trials()[trial.number].intermediate_values), 2 + turn % 3):
            trial.report(1.0, step)
            same()
        if turn % 5 == 2:
            study.requeue(trial.number)
            same()
            continue
        state = [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL][turn % 4]
        value = float(turn * 7 % 5) if state is TrialState.COMPLETE else None
        study.write(trial.number, studies.record(trial.number, {}, epochs=1))
        if turn % 7:  # else it is a control outside the search space
            trial.suggest_float("dropout", 0.0, 0.6)
        study.optuna.tell(trial, value, state=state)
        same()


READS: dict[str, Callable[[Engine], Any]] = {
    "board": lambda engine: board.read_board(engine, NAME, limit=20),
    "best": lambda engine: board.read_best(engine, NAME),
    "studies": board.list_studies,
    "show": lambda engine: board.read_top(engine, NAME, 1),
    "show one": lambda engine: board.read_trial(engine, NAME, 17),
}


def sent_through(engine: Engine | type[Engine]) -> list[str]:
    """The statements that will have been sent through an engine."""
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *call: statements.append(str(call[2])))
    return statements


@pytest.mark.slow
def test_thousands_of_trials_are_read_with_the_statements_and_the_memory_of_hundreds(tmp_path: Path) -> None:
    costs = []
    for count in (400, 4_000):
        settings = load_settings(home=tmp_path / str(count))
        big_study.make_study(settings, big(count), count)
        engine = open_engine(settings.storage_url)
        cost = {}
        for name, read in READS.items():
            statements = sent_through(engine)
            read(engine)  # what SQLAlchemy compiles, it keeps
            sent = len(statements)
            tracemalloc.start()
            read(engine)
            cost[name] = sent, tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        engine.dispose()
        costs.append(cost)
    small, large = costs
    for name, (sent, memory) in large.items():
        assert sent == small[name][0], name
        assert memory < 1.2 * small[name][1] + 200_000, name


def statements_of_a_sweep(
    count: int, home: Path, trials: int, at_each_event: Callable[[], None] = lambda: None
) -> float:
    """SQL statements for each of `trials` trials that the coordinator runs in a study of `count`."""
    import bench_coordinator

    class Workers(bench_coordinator.VirtualWorkers):
        def events(self, timeout_seconds: float) -> Any:
            at_each_event()
            return super().events(timeout_seconds)

    settings = load_settings(home=home)
    spec = big(10**6, f"coordinator-{count}").model_copy(update={"max_failures": 10**6})
    big_study.make_study(settings, spec, count, unfinished=False)
    study = Study.open(settings, spec)
    executor = Workers(2)
    coordinator = bench_coordinator.coordinator_of(spec, study, executor, settings, trials)
    coordinator.prepare()
    statements = sent_through(Engine)  # every one
    bench_coordinator.in_virtual_time(coordinator, executor)
    return len(statements) / trials


def test_the_coordinator_asks_the_database_as_often_in_a_large_study_as_in_a_small_one(
    tmp_path: Path,
) -> None:
    small = statements_of_a_sweep(40, tmp_path / "small", 12)
    large = statements_of_a_sweep(400, tmp_path / "large", 12)
    assert large < 1.25 * small  # some trials are pruned early, in each study others
    assert small < 65


def test_beside_its_workers_the_coordinator_computes_in_one_thread(tmp_path: Path) -> None:
    def threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    import bench_coordinator  # whatever computes is loaded before the threads are counted

    assert bench_coordinator
    meanwhile: set[int] = set()
    with threadpool_limits(limits=2, user_api="blas"):
        statements_of_a_sweep(20, tmp_path, 2, lambda: meanwhile.update(threads()))
        assert threads() == {2}
    assert meanwhile == {1}
