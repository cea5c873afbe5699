"""The leaderboard says what Optuna's database says, in the order a person wants; best.yaml is its first row."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import decisions
import optuna
import pytest
import studies
import tracking_records as records
from optuna.trial import TrialState, create_trial
from sqlalchemy import Engine, event
from terminals import imported

from regtune.cli.views.tables import comparison_text
from regtune.config.trial import TrialConfig
from regtune.errors import ConfigError, InputError, StorageError, StudyNotFound
from regtune.storage import open_engine
from regtune.storage.schema import STUDIES
from regtune.study import tables
from regtune.study.best import Best, best_of, load_best
from regtune.study.board import (
    Board,
    columns,
    compare,
    covered,
    follow,
    list_studies,
    order_of,
    read_best,
    read_board,
    read_ended,
    read_progress,
    read_study,
    read_top,
    read_trial,
)
from regtune.study.progress import Observer, Progress, Row, StudyInfo
from regtune.study.record import BUDGET, DATA, ORIGIN, RECORD, SPEC, STUDY_UID
from regtune.tracking.contents import points_of
from regtune.tracking.studies import StudyTrials

NAME = "mnist-regularization"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("filled") / "studies.db"
    studies.fill(studies.create(path))
    return path


@pytest.fixture
def study(filled: Path) -> optuna.Study:
    shutil.copy(filled, "studies.db")
    return optuna.load_study(study_name=NAME, storage="sqlite:///studies.db")


@pytest.fixture
def engine(study: optuna.Study) -> Engine:
    return open_engine("sqlite:///studies.db")


def test_complete_trials_come_first_with_the_values_and_parameters_of_optuna(
    engine: Engine, study: optuna.Study
) -> None:
    board = read_board(engine, NAME)
    assert board.parameters == ("dropout", "batchnorm")
    rows = board.rows
    assert [row.state for row in rows] == ["COMPLETE"] * 5 + ["PRUNED", "FAIL", "RUNNING", "WAITING"]
    assert [row.rank for row in rows] == [1, 2, 3, 4, 5, None, None, None, None]
    assert rows[0].number == study.best_trial.number
    trials = study.get_trials()
    for row in rows:
        trial = trials[row.number]
        assert (row.state, row.value) == (trial.state.name, trial.value)
        assert row.record is None or trial.params.items() <= dict(row.parameters).items()


def test_every_figure_that_mlflow_has_of_the_kept_weights_sorts_by_mlflow_s_name(engine: Engine) -> None:
    info = read_study(engine, NAME)
    kept = [name for name in points_of(records.facts(), studies.record(2, {})) if "/" in name]
    assert len(kept) == 6
    for name in set(kept) - {"best/epoch"}:
        column = order_of(info, name)
        assert column.name in {known.name for known in columns(info)}
        assert read_board(engine, NAME, name).rows == read_board(engine, NAME, column.name).rows


def test_a_control_outside_the_search_is_ranked_and_never_the_best(
    engine: Engine, study: optuna.Study
) -> None:
    before = read_best(engine, NAME)
    number = len(study.trials)
    studies.add(study, studies.record(number, {}, floor=0.01, control="l1"), TrialState.COMPLETE)
    first = read_board(engine, NAME).rows[0]
    assert (first.number, first.rank, first.searched) == (number, 1, False)
    best = replace(before, rank=2)
    top = read_top(engine, NAME, 1)
    assert read_best(engine, NAME) == top.best == read_board(engine, NAME).best == best
    assert [row.number for row in top.rows if not row.control] == [best.number]
    assert read_progress(engine, NAME).best == list_studies(engine)[0].best == best
    assert best.record is not None
    assert best_of(engine, NAME).config == best.record.config
    assert StudyTrials(engine, NAME, at_rest=True).winner == best.number
    inside = studies.record(number + 1, {"dropout": 0.2, "batchnorm": "none"}, floor=0.02, control="dropout")
    studies.add(study, inside, TrialState.COMPLETE)
    assert read_best(engine, NAME).number == number + 1


def test_a_comparison_sets_single_runs_beside_each_other_and_says_that_none_is_better(
    engine: Engine, study: optuna.Study
) -> None:
    found = compare(read_board(engine, NAME))
    assert found is not None
    assert (found.winner.number, found.baseline and found.baseline.number, found.above) == (3, 0, None)
    assert found.standard_error is None  # of a cross-entropy one run tells none
    studies.add(study, studies.record(9, {}, floor=0.01, control="l1"), TrialState.COMPLETE)
    above = compare(read_board(engine, NAME))
    assert above is not None
    lines = comparison_text(above).plain.splitlines()
    assert lines[0] == f"best  trial 3: {found.winner.mix}"
    figures = (
        f"{found.winner.value:.4f} val_cross_entropy, {100 * (found.winner.accuracy or 0):.2f} % accuracy"
    )
    assert lines[1].strip() == figures
    assert [line.split(":")[0].strip() for line in lines[2:]] == [
        "no technique",
        "control l1, outside the search",
        "Single runs",
    ]
    assert lines[-1].endswith(
        "a difference may be luck; one run tells no standard error of val_cross_entropy."
    )
    assert not {"better", "beats", "against", "±"} & set(comparison_text(above).plain.split())


def test_the_standard_error_of_single_runs_is_that_of_an_accuracy_where_an_accuracy_is_ranked(
    engine: Engine,
) -> None:
    info = read_study(engine, NAME)
    info = replace(info, spec={"metric": {"name": "val_accuracy"}}, data={"validation": 400})
    row = Row(1, "COMPLETE", 0.8, studies.record(1, {"dropout": 0.1}), 1)
    found = compare(Board(info, [row], ("dropout",)))
    assert found is not None
    assert found.standard_error == pytest.approx(0.02)  # sqrt(0.8 * 0.2 / 400)
    assert "its images alone, is ±2.00 points" in comparison_text(found).plain
    assert compare(Board(info, [replace(row, rank=None)], ())) is None


def test_what_is_not_there_is_answered_with_what_there_is(engine: Engine) -> None:
    studies.create(Path("studies.db"), "empty")
    with pytest.raises(StudyNotFound, match="no complete trial of its search yet"):
        read_best(engine, "empty")
    assert read_board(engine, "empty").rows == []
    studies.add(
        optuna.load_study(study_name="empty", storage="sqlite:///studies.db"),
        studies.record(0, {}, control="none"),
        TrialState.COMPLETE,
    )
    with pytest.raises(StudyNotFound, match="no complete trial of its search yet"):
        read_best(engine, "empty")
    assert read_progress(engine, "empty").finished == 1
    with pytest.raises(InputError, match=r"--sort dropuot: expected one of rank, .*dropout"):
        read_board(engine, NAME, "dropuot")
    with pytest.raises(StudyNotFound, match='did you mean "mnist-regularization"'):
        read_study(engine, "mnist-regularisation")
    with pytest.raises(StudyNotFound, match="has no trial 99; try: regtune board"):
        read_trial(engine, NAME, 99)


def test_a_limit_reads_only_so_many_records(engine: Engine) -> None:
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *found: statements.append(str(found[3])))
    assert len(read_board(engine, NAME, limit=2).rows) == 2
    asked = [found for found in statements if "regtune.refused" in found]  # records, or why there is none
    assert sum(len(found.split(",")) - 3 for found in asked) <= 3  # and one that has every searched parameter


def test_studies_of_other_programs_are_left_alone(engine: Engine) -> None:
    optuna.create_study(storage="sqlite:///studies.db", study_name="theirs")
    assert [summary.info.name for summary in list_studies(engine)] == [NAME]
    with pytest.raises(StudyNotFound, match="not created by regtune"):
        read_board(engine, "theirs")


def test_progress_counts_as_the_coordinator_does(engine: Engine, study: optuna.Study) -> None:
    progress = read_progress(engine, NAME)
    assert (progress.complete, progress.pruned, progress.failed, progress.waiting) == (5, 1, 1, 1)
    assert progress.trial_epochs == sum(len(trial.intermediate_values) for trial in study.get_trials())
    assert progress.best is not None
    assert progress.best.value == study.best_value
    (running,) = progress.running
    assert (running.number, running.worker, running.epochs, running.max_epochs) == (7, 1, 5, 30)
    assert [*running.curve(progress.metric)] == [
        point["val_cross_entropy"] for point in studies.curve(0.08, 5)
    ]


def test_pauses_do_not_count_as_time_spent() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    seconds = (0, 10), (5, 12), (6, 7), (100, 103)
    spans = [(start + timedelta(seconds=begun), start + timedelta(seconds=ended)) for begun, ended in seconds]
    assert math.isclose(covered(spans), 15.0)


def test_a_record_of_another_version_is_a_storage_error(engine: Engine, study: optuna.Study) -> None:
    attributes = {RECORD: {"uid": f"{study.user_attrs[STUDY_UID]}-9"}}
    given = {"params": {"dropout": 0.1}, "distributions": {"dropout": studies.DISTRIBUTIONS["dropout"]}}
    study.add_trial(create_trial(state=TrialState.COMPLETE, value=0.01, user_attrs=attributes, **given))
    with pytest.raises(StorageError, match="trial 9: its record cannot be read"):
        read_best(engine, NAME)


def test_what_others_have_trained_counts_for_nothing(engine: Engine, study: optuna.Study) -> None:
    def now() -> tuple[StudyInfo, Row, Progress]:
        progress = replace(read_progress(engine, NAME), elapsed_seconds=0)
        return read_study(engine, NAME), read_best(engine, NAME), progress

    before = now()
    given = {"params": {"dropout": 0.1}, "distributions": {"dropout": studies.DISTRIBUTIONS["dropout"]}}
    study.add_trial(create_trial(value=0.0001, intermediate_values={1: 0.0001}, **given))
    study.add_trial(study.trials[0])  # a copy of a control, with the record and the origin of that
    study.add_trial(create_trial(state=TrialState.RUNNING, **given))
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"regtune.refused": "dropout: too much"}))
    after = now()
    assert after[0].counts == {**before[0].counts, "FOREIGN": 4}
    assert replace(after[0], counts={}, foreign=()) == replace(before[0], counts={}, foreign=())
    assert after[1:] == before[1:]
    assert read_ended(engine, NAME) == {*range(7)}
    rows = read_board(engine, NAME, "metric").rows
    foreign = [row for row in rows if row.state == "FOREIGN"]
    expected = [Row(number, "FOREIGN", None, None) for number in (9, 10, 11, 12)]
    expected[-1] = replace(expected[-1], refused="dropout: too much")
    assert foreign == rows[-4:] == expected
    assert {row.cells("val_cross_entropy", ())["epochs"] for row in foreign} == {None}
    assert {*StudyTrials(engine, NAME, at_rest=True).numbers.values()} == {*range(8)}


def test_reading_a_study_imports_neither_optuna_nor_tensorflow_nor_mlflow() -> None:
    heavy = {"tensorflow", "keras", "mlflow", "optuna"}
    assert not imported("from regtune.study.board import read_board") & heavy


def test_the_names_of_what_is_stored_stay_whatever_modules_are_called() -> None:
    names = (RECORD, ORIGIN, STUDY_UID, SPEC, BUDGET, DATA)
    assert names == tuple(f"regtune.{name}" for name in ("record", "origin", "uid", "spec", "budget", "data"))


def test_an_unknown_revision_of_optuna_s_tables_is_refused(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert STUDIES.migrations.head in tables.REVISIONS
    monkeypatch.setattr(tables, "REVISIONS", frozenset({"v2.6.0.a"}))
    with pytest.raises(StorageError, match=r"revision v3.2.0.a; regtune reads v2.6.0.a"):
        read_study(engine, NAME)


@pytest.fixture
def best(engine: Engine) -> Best:
    return best_of(engine, NAME)


def test_the_best_is_read_back_exactly_and_without_provenance_is_a_configuration(best: Best) -> None:
    file = Path("best.yaml")
    best.write(file)
    assert load_best(file) == best
    assert not list(Path().glob(".best*"))
    assert best.provenance is not None
    kept = min(studies.curve(0.0742, 12), key=lambda point: point["val_cross_entropy"])
    assert (best.provenance.figures, best.provenance.value) == (kept, kept["val_cross_entropy"])
    bare = best.to_yaml().partition("provenance:")[0]
    assert TrialConfig.from_yaml(bare) == best.config
    file.write_text(bare)
    assert load_best(file) == Best(best.config, None)
    assert not load_best(file).changed


def test_data_that_lies_elsewhere_is_no_change_and_other_data_is(best: Best) -> None:
    def moved(**data: str) -> Best:
        config = best.config.model_copy(update={"data": best.config.data.model_copy(update=data)})
        return replace(best, config=config)

    assert not best.changed
    assert not moved(name="elsewhere/data.npz").changed
    assert moved(digest="0" * 64).changed
    assert replace(best, config=best.config.model_copy(update={"seed": 8})).changed
    assert best.provenance is not None
    of_before = best.provenance.model_copy(update={"config": best.config.digest})
    assert not replace(best, provenance=of_before).changed


def test_a_best_that_cannot_be_written_or_read_is_named(best: Best) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        best.write(Path("absent/best.yaml"))
    Path("best.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="expected UTF-8 text"):
        load_best(Path("best.yaml"))


# -- the replicates of a decision


def let_end(study: optuna.Study) -> None:
    """Nothing of the search is running any more."""
    for trial in study.get_trials(states=[TrialState.RUNNING]):
        study.tell(trial.number, state=TrialState.FAIL)


def test_a_decision_under_way_is_seen_with_what_is_left_until_its_look(
    engine: Engine, study: optuna.Study
) -> None:
    for index in range(4):
        decisions.replicate(study, "t3", index)
        decisions.replicate(study, "c-batchnorm_before", index, "early_stopping" if index < 2 else None)
    progress = read_progress(engine, NAME)
    assert progress.deciding is None  # a search goes on, and they were left by a decision that was stopped
    assert not any(row.replicate for row in progress.running)
    let_end(study)
    progress = read_progress(engine, NAME)
    found = progress.deciding
    assert found is not None
    assert (found.done, found.planned, found.look, found.candidates, found.best) == (6, 8, 4, 2, "")
    running = [row.replicate for row in progress.running if row.replicate]
    assert running == [("control batch norm before", 2), ("control batch norm before", 3)]


def test_a_decision_under_way_counts_no_replicates_of_another_kind(
    engine: Engine, study: optuna.Study
) -> None:
    let_end(study)
    decisions.store(study, decisions.of_filled_study())
    decisions.replicate(study, "t3", 0)
    decisions.replicate(study, "t2", 0, None)  # of a decision that was killed
    decisions.replicate(study, "t2", 0, None, vary="seed", later_ms=60_000)
    found = read_progress(engine, NAME).deciding
    assert found is not None
    assert (found.done, found.planned, found.look, found.candidates, found.best) == (0, 4, 4, 1, "")
    told = []

    class Told(Observer):
        def finished(self, trial: Row, progress: Progress) -> None:
            told.append((trial.replicate, trial.vary))

    def wait() -> bool:
        decisions.replicate(study, "t3", 0, vary="seed")
        return len(told) > 0

    follow(engine, NAME, Told(), running=lambda: True, wait=wait)
    assert told == [(("trial 3", 0), "seed")]


def test_after_a_look_what_is_open_and_who_leads_is_known(engine: Engine, study: optuna.Study) -> None:
    let_end(study)
    decisions.store(study, decisions.of_filled_study())
    for key, index in (("t3", 8), ("t2", 8)):
        decisions.replicate(study, key, index, None)
    found = read_progress(engine, NAME).deciding
    assert found is not None
    assert (found.look, found.best, found.open) == (16, "trial 3", ("control dropout", "trial 2"))


def test_a_replicate_that_ends_is_told_once_and_earlier_ones_are_not(
    engine: Engine, study: optuna.Study
) -> None:
    decisions.replicate(study, "t3", 0)
    told = []

    class Told(Observer):
        def finished(self, trial: Row, progress: Progress) -> None:
            told.append(trial.replicate)

    def wait() -> bool:
        decisions.replicate(study, "t3", 1)
        return len(told) > 0

    follow(engine, NAME, Told(), running=lambda: True, wait=wait)
    assert told == [("trial 3", 1)]
