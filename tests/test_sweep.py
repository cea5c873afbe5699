"""The coordinator: real workers, real databases, small networks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from mlflow import MlflowClient
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from tracking_records import Untracked

from regtune.config.sweepfile import SweepSpec
from regtune.errors import (
    AGAIN,
    DataError,
    SettingsError,
    SpecChanged,
    SpecError,
    StudyBusy,
    StudyNotFound,
    TooManyFailures,
)
from regtune.executors.local import LocalExecutor
from regtune.settings import Settings, load_settings
from regtune.storage import open_engine
from regtune.study.board import read_progress, read_study
from regtune.study.ownership import hold, holder
from regtune.study.progress import FinishedTrial, Progress
from regtune.study.record import TrialRecord
from regtune.study.study import derive_seed, record_of, request
from regtune.sweep import SweepOutcome, run_sweep
from regtune.upkeep.cleanup import delete_study, find_garbage

SPEC: dict[str, Any] = {
    "name": "small",
    "dataset": "mnist-5k",
    "method": "tpe",
    "run_cap": 6,
    "seed": 3,
    "model": {"hidden": [16]},
    "training": {"batch_size": 64, "max_epochs": 3},
    "early_stopping": {"patience": 2},
    "parameters": {
        "dropout": {"min": 0.0, "max": 0.6},
        "l2": {"distribution": "log_uniform_values", "min": 1e-6, "max": 1e-3, "optional": True},
    },
    "controls": False,
}


DROPOUT = {"dropout": FloatDistribution(0.0, 0.6)}


def spec(**changes: Any) -> SweepSpec:
    return SweepSpec.from_dict({**SPEC, **changes})


class Watching:
    """An observer that remembers, and can act on the first epoch of a trial, and at a trial's end."""

    def __init__(self, act: Any = None, at_end: Any = None) -> None:
        self.ended: list[FinishedTrial] = []
        self.notes: list[str] = []
        self.last: Progress | None = None
        self._act = act
        self._at_end = at_end

    def progress(self, progress: Progress) -> None:
        self.last = progress
        if self._act is not None and self._act(progress):
            self._act = None

    def finished(self, trial: FinishedTrial, progress: Progress) -> None:
        self.ended.append(trial)
        if self._at_end is not None:
            self._at_end(trial)

    def note(self, message: str) -> None:
        self.notes.append(message)


WARM: list[LocalExecutor] = []


@pytest.fixture(scope="module", autouse=True)
def _warm_worker() -> Iterator[None]:
    """One worker for all sweeps of this file that do not ask for their own."""
    WARM.append(LocalExecutor(1))
    yield
    WARM.pop().close()


def run(**changes: Any) -> SweepOutcome:
    names = ("observer", "stop", "fresh", "from_study", "workers")
    options = {key: changes.pop(key) for key in names if key in changes}
    if "workers" not in options:
        options["executor"] = WARM[0]
    if not changes.pop("tracked", False):
        options["tracker"] = Untracked
    return run_sweep(spec(**changes), settings=load_settings(), **options)


def study(name: str = "small", home: str = "mlruns") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{Path(home).resolve()}/studies.db")


def records(trials: list[FrozenTrial]) -> list[TrialRecord]:
    found = [record_of(trial) for trial in trials]
    assert all(record is not None for record in found)
    return [record for record in found if record is not None]


def finished(name: str = "small", home: str = "mlruns") -> list[FrozenTrial]:
    return [
        trial for trial in study(name, home).trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    ]


def what_repeats(home: str = "mlruns") -> list[tuple[Any, ...]]:
    """Everything of a study's trials but times."""
    return [
        (
            trial.number,
            trial.state,
            trial.value,
            trial.params,
            record.config.canonical(),
            record.history,
            record.kept,
        )
        for trial, record in zip(study(home=home).trials, records(study(home=home).trials), strict=True)
    ]


def test_exactly_run_cap_trials_are_finished_on_two_workers() -> None:
    watching = Watching()
    outcome = run(observer=watching, workers=2)
    assert (outcome.complete, outcome.pruned, outcome.failed, outcome.stopped) == (6, 0, 0, False)
    assert len(watching.ended) == 6
    assert watching.last is not None
    assert watching.last.finished == 6
    assert [trial.state for trial in study().trials] == [TrialState.COMPLETE] * 6
    for trial, record in zip(study().trials, records(study().trials), strict=True):
        assert record.kept is not None
        assert trial.value == record.kept.figures["val_cross_entropy"]
        assert record.config.seed == derive_seed(3, trial.number, "training")
        assert list(trial.intermediate_values.values()) == list(record.history["val_cross_entropy"])
    best = min(study().trials, key=lambda trial: trial.value or 0)
    assert outcome.best is not None
    assert (outcome.best.number, outcome.best.value) == (best.number, best.value)
    assert outcome.best.config == records([best])[0].config


def test_a_sweep_takes_what_a_person_has_and_says_what_is_wrong_as_the_command_does() -> None:
    Path("absent.yaml").write_text(
        "dataset: absent.npz\nrun_cap: 1\nparameters: {dropout: {min: 0, max: 0.5}}\n"
    )
    for wrong, error, words in (
        ("nowhere.yaml", SpecError, "nowhere.yaml: no such file"),
        ({"run_cap": 1}, SpecError, "spec: parameters: "),
        (7, SpecError, "expected a SweepSpec or the path of a sweep file, found 7"),
        ("absent.yaml", DataError, "absent.npz: not found"),
        (Path("absent.yaml"), DataError, "absent.npz: not found"),
    ):
        with pytest.raises(error, match=words):
            run_sweep(wrong)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="workers: expected a number from 1 to 256, found 0"):
        run_sweep("absent.yaml", workers=0)


def test_controls_come_first_are_labelled_and_never_pruned() -> None:
    prune = {"type": "median", "min_iter": 1}
    run(controls=True, run_cap=12, early_terminate=prune, training={"batch_size": 64, "max_epochs": 6})
    names = [record.control for record in records(study().trials)]
    assert names[:7] == [
        "none",
        "early_stopping",
        "dropout",
        "l1",
        "l2",
        "batchnorm_before",
        "batchnorm_after",
    ]
    assert names[7:] == [None] * 5
    assert {trial.state for trial in study().trials[:7]} == {TrialState.COMPLETE}
    assert len(finished()) == 12
    none = records(study().trials)[0]
    assert none.config.early_stopping is None
    assert none.config.mix == "none"


def test_a_pruner_ends_hopeless_trials() -> None:
    space = {"learning_rate": {"values": [1e-5, 1e-3]}}
    run(
        parameters=space,
        method="random",
        run_cap=12,
        training={"batch_size": 64, "max_epochs": 6},
        early_terminate={"type": "median", "min_iter": 1},
    )
    pruned = [trial for trial in study().trials if trial.state is TrialState.PRUNED]
    assert pruned
    assert {trial.params["learning_rate"] for trial in pruned} == {1e-5}
    assert all(record.epochs < 6 and record.end_reason == "pruned" for record in records(pruned))


def test_a_study_repeats_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    monkeypatch.setenv("REGTUNE_HOME", "again")
    run()
    assert what_repeats() == what_repeats("again")


def test_two_workers_train_each_configuration_as_one_does() -> None:
    run(workers=2, method="random")
    several = what_repeats()
    run(name="small", fresh=True, method="random")
    assert what_repeats() == several


def test_a_raised_budget_goes_on_and_a_changed_spec_is_refused() -> None:
    run(run_cap=2)
    outcome = run(run_cap=4)
    assert outcome.complete == 4
    with pytest.raises(SpecChanged) as refused:
        run(parameters={"dropout": {"min": 0.0, "max": 0.5}})
    assert any("dropout" in line and "0.6" in line and "0.5" in line for line in refused.value.differences)
    assert run(run_cap=4).complete == 4


def test_fresh_sets_the_earlier_study_aside() -> None:
    run(run_cap=2)
    run(run_cap=1, seed=9, fresh=True)
    names = optuna.get_all_study_names(f"sqlite:///{Path('mlruns').resolve()}/studies.db")
    assert len(names) == 2
    aside = next(name for name in names if name != "small")
    assert aside.startswith("small (until ")
    assert len(finished(aside)) == 2
    assert len(finished()) == 1


def test_a_diverging_trial_fails_with_its_reason_and_is_replaced() -> None:
    training = {"batch_size": 64, "max_epochs": 3, "optimizer": "sgd"}
    rates = {"learning_rate": {"values": [0.01, 10.0]}}
    wide = {"hidden": [64, 64, 64], "activation": "elu"}
    outcome = run(
        parameters=rates, training=training, model=wide, method="random", run_cap=4, max_failures=50
    )
    failed = [trial for trial in study().trials if trial.state is TrialState.FAIL]
    assert outcome.complete == 4
    assert failed
    assert all(trial.params["learning_rate"] == 10.0 for trial in failed)
    assert all("non-finite" in str(record.message) for record in records(failed))


def test_too_many_failures_end_the_sweep_and_say_why() -> None:
    training = {"batch_size": 64, "max_epochs": 3, "optimizer": "sgd", "learning_rate": 10.0}
    with pytest.raises(TooManyFailures, match=r"3 trials failed, more than max_failures, 2.*non-finite"):
        run(training=training, model={"hidden": [64, 64, 64], "activation": "elu"}, max_failures=2)


def test_a_killed_worker_costs_one_attempt() -> None:
    killed: list[int] = []

    def kill(progress: Progress) -> bool:
        if not any(trial.epoch >= 1 for trial in progress.running):
            return False
        children = psutil.Process().children()
        worker = next(child for child in children if "executors.worker" in " ".join(child.cmdline()))
        killed.append(progress.running[0].number)
        worker.send_signal(signal.SIGKILL)
        return True

    outcome = run(observer=Watching(kill), run_cap=3, training={"batch_size": 16, "max_epochs": 40})
    assert outcome.complete == 3
    trials = study().trials
    assert len(trials) == 4
    lost, again = trials[killed[0]], next(trial for trial in trials if "regtune.origin" in trial.user_attrs)
    before, after = records([lost, again])
    assert (lost.state, before.end_reason, before.attempt) == (TrialState.FAIL, "worker_died", 1)
    assert (again.state, after.attempt, after.retry_of) == (TrialState.COMPLETE, 2, lost.number)
    assert again.params == lost.params
    assert after.config == before.config
    epochs = before.epochs
    assert all(after.history[name][:epochs] == values for name, values in before.history.items())


def test_the_models_of_the_best_trials_are_kept_and_no_others() -> None:
    run(run_cap=8, keep_models=2, tracked=True)
    best = sorted(finished(), key=lambda trial: trial.value or 0.0)[:2]
    kept = {folder.name for folder in Path("mlruns/artifacts/trials").iterdir()}
    assert kept == {record.uid for record in records(best)}
    client = MlflowClient(f"sqlite:///{Path('mlruns').resolve()}/mlflow.db")
    found = client.search_runs(
        [client.get_experiment_by_name("small").experiment_id], "tags.`regtune.kind` = 'trial'"
    )
    models = {
        found_run.data.tags["regtune.trial_uid"]
        for found_run in found
        if "model.keras" in {artifact.path for artifact in client.list_artifacts(found_run.info.run_id)}
    }
    assert len(found) == 8
    assert models == kept


def test_a_deleted_study_leaves_nothing_behind() -> None:
    settings = load_settings()
    run(run_cap=2, tracked=True)
    run(name="other", run_cap=1, tracked=True)
    deleted = delete_study(settings, "small")
    assert (deleted.runs, len(deleted.folders)) == (3, 2)  # the study's own run and two trials'
    assert optuna.get_all_study_names(settings.storage_url) == ["other"]
    client = MlflowClient(settings.mlflow_uri)
    assert [found.name for found in client.search_experiments() if found.name != "Default"] == ["other"]
    left = record_of(study("other").trials[0])
    assert left is not None
    assert [folder.name for folder in (settings.artifacts / "trials").iterdir()] == [left.uid]
    assert not find_garbage(settings)


def test_a_second_coordinator_is_refused_by_name() -> None:
    settings = load_settings()
    settings.home.mkdir()
    with hold(settings, "small"):
        who = holder(settings, "small")
        assert who is not None
        assert who.pid == os.getpid()
        with pytest.raises(StudyBusy, match=f"is being run by process {os.getpid()} on "):
            run()
    assert holder(settings, "small") is None


def test_a_missing_data_set_is_said_before_anything_is_made() -> None:
    with pytest.raises(DataError, match=r"elsewhere\.npz: not found"):
        run(dataset="elsewhere.npz")
    assert not Path("mlruns/studies.db").exists()


def test_requests_of_another_terminal_are_taken_up() -> None:
    settings: Settings = load_settings()

    def ask(progress: Progress) -> bool:
        if progress.complete < 1:
            return False
        request(settings, "small", "enqueue", {"dropout": 0.123, "l2": 0.0})
        request(settings, "small", "enqueue", {"dropout": 7.0, "l2": 0.0})
        return True

    stop = threading.Event()
    watching = Watching(ask, at_end=lambda trial: trial.parameters["dropout"] == 0.123 and stop.set())
    run(observer=watching, run_cap=400, stop=stop)
    wanted = [record for record in records(finished()) if record.requested]
    assert [record.parameters for record in wanted] == [{"dropout": 0.123, "l2": 0.0}]
    assert any("runs your queued configuration: dropout=0.123, l2=0.0" in note for note in watching.notes)
    assert any("refused what you queued" in note and "dropout" in note for note in watching.notes)


def test_trials_of_another_program_count_for_nothing_and_what_it_queues_is_checked() -> None:
    run(run_cap=1)
    other = study()
    other.add_trial(create_trial(value=0.0001, params={"dropout": 0.1}, distributions=DROPOUT))
    other.add_trial(other.trials[0])  # with its record
    other.enqueue_trial({"dropout": 0.9, "l3": 1})
    other.enqueue_trial({"l2": 1e-4})
    other.add_trial(create_trial(state=TrialState.WAITING, params={"dropout": 0.1}, distributions=DROPOUT))
    watching = Watching()
    outcome = run(run_cap=3, max_failures=0, observer=watching, tracked=True)
    trials = study().trials
    mine = (0, 4, 6)
    assert (outcome.complete, outcome.failed) == (3, 0)
    assert outcome.best is not None
    assert outcome.best.number == min(mine, key=lambda number: trials[number].value or 0.0)
    assert {trial.number for trial in finished()} == {*mine, 1, 2}
    assert [record.parameters["l2"] for record in records([trials[4]]) if record.requested] == [1e-4]
    assert trials[3].state is trials[5].state is TrialState.FAIL
    client = MlflowClient(load_settings().mlflow_uri)
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`regtune.kind` = 'trial'")
    assert {int(found.data.tags["regtune.number"]) for found in runs} == {*mine}
    assert watching.notes == [
        "trial 3, queued by another program, is refused: l3: unknown parameter; expected one of dropout, l2; "
        "dropout: expected 0 to 0.6; found 0.9",
        "trial 5, queued by another program, is refused: its parameters are set already; queue it with "
        "study.enqueue_trial",
    ]


def test_a_stop_that_came_too_late_stops_nothing() -> None:
    run(run_cap=1)
    request(load_settings(), "small", "stop")
    assert not run(run_cap=2).stopped


GRID = {"method": "grid", "parameters": {"dropout": {"values": [0.0, 0.1, 0.2]}}, "timeout": 600}


def test_a_grid_ends_when_every_configuration_is_tried() -> None:
    outcome = run(**GRID, run_cap=50)
    assert (outcome.complete, outcome.reason) == (3, "all 3 points of the grid are tried")
    assert [trial.params["dropout"] for trial in study().trials] == [0.0, 0.1, 0.2]


def test_a_grid_s_budget_is_of_its_points_controls_come_beside_and_no_point_is_trained_twice() -> None:
    short = {
        **GRID,
        "controls": True,
        "training": {"batch_size": 128, "max_epochs": 1},
        "early_terminate": None,
    }
    outcome = run(**short, run_cap=2)
    assert (
        outcome.reason
        == "the budget is used; 2 of 3 points of the grid are tried, all with: the same command with --set run_cap=3"
    )
    first = records(study().trials)
    assert [record.control for record in first if record.parameters] == ["early_stopping", "dropout"]
    assert len(first) == 7  # five more beside the grid
    request(load_settings(), "small", "enqueue", {"dropout": 0.1})
    outcome = run(**short, run_cap=3)
    assert (outcome.complete, outcome.reason) == (8, "all 3 points of the grid are tried")
    assert [record.requested for record in records(study().trials)[7:]] == [True]
    info = read_study(open_engine(load_settings().storage_url), "small")
    assert (info.finished, info.beside) == (3, 5)


def test_what_is_asked_for_at_the_end_of_a_grid_is_still_tried() -> None:
    settings = load_settings()

    def ask(progress: Progress) -> bool:
        if progress.complete + len(progress.running) < 3:
            return False
        request(settings, "small", "enqueue", {"dropout": 0.1})
        return True

    slow = {"batch_size": 16, "max_epochs": 60}
    outcome = run(**GRID, run_cap=50, workers=2, observer=Watching(ask), training=slow, early_stopping=None)
    assert outcome.complete == 4
    assert [record.requested for record in records(study().trials)].count(True) == 1


def test_what_is_asked_for_as_the_last_trial_ends_is_still_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regtune.sweep.coordinator.REQUESTS_SECONDS", float("inf"))  # no look but the last

    def ask(trial: FinishedTrial) -> None:
        if trial.number == 2:
            request(load_settings(), "small", "enqueue", {"dropout": 0.1})

    outcome = run(**GRID, run_cap=50, observer=Watching(at_end=ask))
    assert outcome.complete == 4
    assert [record.requested for record in records(study().trials)] == [False, False, False, True]


def test_a_stop_as_the_last_trial_ends_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regtune.sweep.coordinator.REQUESTS_SECONDS", float("inf"))  # no look but the last

    def ask(trial: FinishedTrial) -> None:
        if trial.number == 2:
            request(load_settings(), "small", "stop")

    outcome = run(**GRID, run_cap=50, observer=Watching(at_end=ask))
    assert (outcome.stopped, outcome.reason) == (False, "all 3 points of the grid are tried")


def test_a_trial_longer_than_its_timeout_is_recorded_and_replaced() -> None:
    with pytest.raises(TooManyFailures, match=r"2 trials failed.*longer than trial_timeout, 0\.001 s"):
        run(trial_timeout=0.001, max_failures=1, workers=1, tracked=True)
    failed = study().trials
    assert [trial.state for trial in failed] == [TrialState.FAIL] * 2
    assert {record.end_reason for record in records(failed)} == {"timeout"}
    client = MlflowClient(load_settings().mlflow_uri)
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], "tags.`regtune.kind` = 'trial'")
    told = {(a_run.info.status, a_run.data.tags["regtune.end_reason"]) for a_run in found}
    assert told == {("FAILED", "timeout")}
    with pytest.raises(TooManyFailures, match=f"2 trials failed.*; go on with: {AGAIN} --set max_failures=4"):
        run(trial_timeout=0.001, max_failures=1)  # nothing more is trained before it is said again
    assert len(study().trials) == 2
    assert run(run_cap=1, max_failures=2).complete == 1


def test_a_store_that_is_away_delays_nothing_and_is_caught_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr("regtune.tracking.tracker.DRAIN_SECONDS", 600.0)
    outcome = run(run_cap=2, tracked=True)
    assert (outcome.complete, outcome.unwritten) == (2, 3)  # the study's own run is one, too
    assert outcome.seconds < 600
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert run(run_cap=2, tracked=True).unwritten == 0
    client = MlflowClient(load_settings().mlflow_uri)
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id], "tags.`regtune.kind` = 'trial'")) == 2


def test_no_model_is_kept_when_none_is_wanted() -> None:
    run(run_cap=1, keep_models=0)
    assert not Path("mlruns/artifacts/trials").exists()


def test_stop_from_another_terminal_leaves_a_study_that_goes_on() -> None:
    settings = load_settings()

    def ask(progress: Progress) -> bool:
        if progress.complete < 1:
            return False
        request(settings, "small", "stop")
        return True

    outcome = run(observer=Watching(ask), run_cap=400)
    assert outcome.stopped
    assert TrialState.RUNNING not in {trial.state for trial in study().trials}
    again = run(run_cap=outcome.complete + 2)
    assert (again.stopped, again.complete) == (False, outcome.complete + 2)


def test_after_an_interruption_the_attempt_that_runs_now_is_shown_and_a_drained_sweep_lets_it_end() -> None:
    stop = threading.Event()
    long = {"run_cap": 400, "training": {"batch_size": 64, "max_epochs": 5}, "early_stopping": None}
    interrupt = Watching(lambda progress: any(t.epoch >= 3 for t in progress.running) and not stop.set())
    assert run(observer=interrupt, stop=stop, **long).interrupted == 1
    before = records(list(study().trials))[-1]
    seen: list[tuple[int, int, int, int]] = []

    def look(progress: Progress) -> bool:
        if not seen:
            request(load_settings(), "small", "stop", {"drain": True})
        watched = read_progress(open_engine(load_settings().storage_url), "small").running
        for live, other in zip(progress.running, watched, strict=True):
            seen.append((live.epoch, len(live.curve), other.epoch, len(other.curve)))
        return False

    watching = Watching(look)
    outcome = run(observer=watching, **long)
    assert min(seen)[0] < before.epochs
    assert all(len(set(found)) == 1 for found in seen), seen
    assert any("running trials end, no new ones start" in note for note in watching.notes)
    assert (outcome.stopped, outcome.interrupted) == (True, 0)
    assert {trial.state for trial in study().trials} == {TrialState.COMPLETE}
    again = next(record for record in records(list(study().trials)) if record.uid == before.uid)
    assert again.epoch_ended_ms[: before.epochs] == before.epoch_ended_ms
    assert (again.epochs, again.again) == (5, None)


def test_a_request_for_an_unknown_study_names_the_nearest() -> None:
    run(run_cap=1)
    with pytest.raises(StudyNotFound, match='did you mean "small"'):
        request(load_settings(), "smal", "stop")


def test_the_best_of_an_earlier_study_are_enqueued() -> None:
    run(run_cap=3)
    run(name="next", run_cap=4, from_study="small", seed=11)
    earlier = [trial.params for trial in study("next").trials if "regtune.origin" in trial.user_attrs]
    assert sorted(map(str, earlier)) == sorted(str(trial.params) for trial in finished())


def test_stop_ends_at_the_epoch_and_the_study_repeats_itself_when_resumed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run()
    monkeypatch.setenv("REGTUNE_HOME", "stopped")
    stops = 0
    while True:
        stop, done = threading.Event(), stops

        def act(progress: Progress, stop: threading.Event = stop, done: int = done) -> bool:
            if progress.finished < done or not any(trial.epoch for trial in progress.running):
                return False
            stop.set()
            return True

        if not run(observer=Watching(act), stop=stop).stopped:
            break
        stops += 1
    assert stops >= 4
    assert what_repeats("stopped") == what_repeats()


SCRIPT = """
import json, sys
from regtune import SweepSpec, run_sweep
run_sweep(SweepSpec.from_dict(json.loads(sys.argv[1])), workers=int(sys.argv[2]))
"""


def coordinator(workers: int = 1, **changes: Any) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    arguments = [sys.executable, "-c", SCRIPT, json.dumps({**SPEC, **changes}), str(workers)]
    return subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_two_sweeps_at_once_in_one_folder_both_end_whole() -> None:
    processes = [coordinator(name=name, run_cap=5) for name in ("one", "other")]
    for process in processes:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors.decode()
    client = MlflowClient(load_settings().mlflow_uri)
    for name in ("one", "other"):
        assert [trial.state for trial in study(name).trials] == [TrialState.COMPLETE] * 5
        experiment = client.get_experiment_by_name(name)
        assert experiment is not None
        found = client.search_runs([experiment.experiment_id], "tags.`regtune.kind` = 'trial'")
        assert [a_run.info.status for a_run in found] == ["FINISHED"] * 5
