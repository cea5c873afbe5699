"""A sweep: what its coordinator decides, on real databases; most with made-up figures, some with real workers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from made_up import MadeUp
from mlflow import MlflowClient
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from places import SWEEP, Place

from benchmarks.simulated import Untracked
from regtune import errors
from regtune.config.sweepfile import SweepSpec
from regtune.executors import Executor, Task, TrialFailed
from regtune.settings import load_settings
from regtune.storage import open_engine
from regtune.study.board import read_progress, read_study
from regtune.study.progress import Progress, Row
from regtune.study.record import TrialRecord
from regtune.study.study import derive_seed, record_of, request
from regtune.sweep import SweepOutcome, run_sweep
from regtune.tracking.live import Tracker
from regtune.upkeep.cleanup import delete_study, find_garbage

SHORT: dict[str, Any] = {"training": {"batch_size": 64, "max_epochs": 3}, "early_stopping": {"patience": 2}}
DROPOUT = {"dropout": FloatDistribution(0.0, 0.6)}
POINTS: dict[str, Any] = {"dropout": {"values": [0.0, 0.1, 0.2]}}


def spec(**changes: Any) -> SweepSpec:
    return SweepSpec.from_dict({"name": "small", **SWEEP, **SHORT, "keep_models": 5, **changes})


class Watching:
    """An observer that remembers, and can act on what it sees until it has acted, and at each trial's end."""

    def __init__(
        self,
        act: Callable[[Progress], Any] = lambda _: False,
        at_end: Callable[[Row], Any] = lambda _: None,
    ) -> None:
        self.ended: list[Row] = []
        self.notes: list[str] = []
        self._act, self._acted, self._at_end = act, False, at_end

    def progress(self, progress: Progress) -> None:
        self._acted = self._acted or bool(self._act(progress))

    def finished(self, trial: Row, progress: Progress) -> None:
        self.ended.append(trial)
        self._at_end(trial)

    def note(self, message: str) -> None:
        self.notes.append(message)


def run(executor: Executor | None = None, **changes: Any) -> SweepOutcome:
    """A sweep of SWEEP, made short, with these changes, without MLflow; by default nothing is trained."""
    options: dict[str, Any] = {"tracker": Untracked}
    names = ("observer", "stop", "fresh", "from_study", "workers", "tracker")
    options |= {key: changes.pop(key) for key in names if key in changes}
    if "workers" not in options:
        options["executor"] = executor or MadeUp()
    return run_sweep(spec(**changes), settings=load_settings(), **options)


def ask(verb: str, **parameters: Any) -> None:
    """What another terminal asks of the sweep."""
    request(load_settings(), "small", verb, parameters)


def study(name: str = "small", home: str = "mlruns") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{Path(home).resolve()}/studies.db")


def records(trials: list[FrozenTrial] | None = None) -> list[TrialRecord]:
    found = [record_of(trial) for trial in (study().trials if trials is None else trials)]
    assert None not in found
    return [record for record in found if record]


def what_repeats(home: str = "mlruns") -> list[tuple[Any, ...]]:
    """Everything of a study's trials but times."""
    trials = study(home=home).trials
    return [
        (trial.number, trial.state, trial.value, trial.params, record.config, record.history, record.kept)
        for trial, record in zip(trials, records(trials), strict=True)
    ]


@pytest.fixture
def always_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The coordinator looks for requests at every turn, not once a second."""
    monkeypatch.setattr("regtune.sweep.coordinator.REQUESTS_SECONDS", 0.0)


# -- what is trained


def test_exactly_run_cap_trials_are_finished_and_two_workers_train_each_as_one_does() -> None:
    watching = Watching()
    outcome = run(workers=2, method="random", observer=watching)
    assert (outcome.complete, outcome.pruned, outcome.failed, outcome.stopped) == (6, 0, 0, False)
    assert len(watching.ended) == 6
    for trial, record in zip(study().trials, records(), strict=True):
        assert trial.state is TrialState.COMPLETE
        assert record.kept is not None
        assert trial.value == record.kept.figures["val_cross_entropy"]
        assert record.config.seed == derive_seed(3, trial.number, "training")
        assert list(trial.intermediate_values.values()) == list(record.history["val_cross_entropy"])
    best = min(study().trials, key=lambda trial: trial.value or 0)
    assert outcome.best is not None
    assert (outcome.best.number, outcome.best.value) == (best.number, best.value)
    assert outcome.best.config == records([best])[0].config
    several = what_repeats()
    run(workers=1, method="random", fresh=True)
    assert what_repeats() == several


def test_a_sweep_that_is_stopped_again_and_again_ends_as_one_that_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run()
    monkeypatch.setenv("REGTUNE_HOME", "stopped")
    stops = 0
    while True:
        stop, done = threading.Event(), stops

        def act(progress: Progress, stop: threading.Event = stop, done: int = done) -> bool:
            if progress.finished < done or not any(trial.epochs for trial in progress.running):
                return False
            stop.set()
            return True

        if not run(observer=Watching(act), stop=stop).stopped:
            break
        stops += 1
    assert stops >= 4
    assert what_repeats("stopped") == what_repeats()


def test_controls_come_first_and_are_never_pruned_and_a_pruner_ends_hopeless_trials() -> None:
    def floor(task: Task) -> float:
        if len(executor.submitted) <= 3:
            return float(len(executor.submitted))  # each control worse than the one before
        return 9.0 if task.config.training.learning_rate == 1e-5 else 0.1

    executor = MadeUp(floor=floor)
    rates = {"learning_rate": {"values": [1e-5, 1e-3]}, "dropout": {"values": [0.0, 0.1]}}
    prune = {"type": "median", "min_iter": 1}
    run(executor, controls=True, run_cap=20, method="random", parameters=rates, early_terminate=prune)
    names = ["none", "early_stopping", "dropout"]
    assert [record.control for record in records()] == names + [None] * 17
    assert {trial.state for trial in study().trials[:3]} == {TrialState.COMPLETE}
    pruned = [trial for trial in study().trials if trial.state is TrialState.PRUNED]
    assert {trial.params["learning_rate"] for trial in pruned} == {1e-5}
    assert all(record.epochs < 3 and record.end_reason == "pruned" for record in records(pruned))
    none = records()[0].config
    assert (none.early_stopping, none.mix) == (None, "none")


def test_a_raised_budget_goes_on_another_spec_is_refused_and_fresh_sets_the_study_aside() -> None:
    run(run_cap=2)
    assert run(run_cap=4).complete == 4
    with pytest.raises(errors.SpecChanged) as refused:
        run(parameters={"dropout": {"min": 0.0, "max": 0.5}})
    assert any("dropout" in line and "0.6" in line and "0.5" in line for line in refused.value.differences)
    assert run(run_cap=4).complete == 4
    run(run_cap=1, seed=9, fresh=True)
    names = optuna.get_all_study_names(f"sqlite:///{Path('mlruns').resolve()}/studies.db")
    (aside,) = (name for name in names if name != "small")
    assert aside.startswith("small (until ")
    assert (len(study(aside).trials), len(study().trials)) == (4, 1)
    run(name="next", run_cap=5, from_study=aside, seed=11)
    earlier = [trial.params for trial in study("next").trials if "regtune.origin" in trial.user_attrs]
    assert sorted(map(str, earlier)) == sorted(str(trial.params) for trial in study(aside).trials)


# -- what goes wrong


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ("nowhere.yaml", errors.SpecError, "nowhere.yaml: no such file"),
        ({"run_cap": 1}, errors.SpecError, "spec: parameters: "),
        (7, errors.SpecError, "expected a SweepSpec or the path of a sweep file, found 7"),
        ({"run_cap": 1, "dataset": "absent.npz", "parameters": POINTS}, errors.DataError, "absent.npz: not"),
    ],
)
def test_what_a_person_gives_is_refused_as_the_command_does(
    wrong: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        run_sweep(wrong)
    with pytest.raises(errors.SettingsError, match="workers: expected a number from 1 to 256, found 0"):
        run_sweep(spec(), workers=0)
    assert not Path("mlruns").exists()


def test_a_trial_that_fails_is_recorded_with_its_reason_and_replaced_until_too_many_have() -> None:
    def fate(task: Task, epoch: int) -> TrialFailed | str | None:
        if len(executor.submitted) == 1 and epoch == 2:
            return "non_finite"
        return TrialFailed(task.uid, 0, "timeout", "too long") if len(executor.submitted) == 3 else None

    executor = MadeUp(fate=fate)
    outcome = run(executor, run_cap=2, max_failures=2)
    assert (outcome.complete, outcome.failed) == (2, 2)
    failed = [records()[number] for number in (0, 2)]
    assert [record.end_reason for record in failed] == ["non_finite", "timeout"]
    assert failed[0].message == "the loss became non-finite in epoch 2"
    said = "2 trials failed, more than max_failures, 1; the last: too long"
    for _ in range(2):  # nothing more is trained before it is said again
        with pytest.raises(errors.TooManyFailures, match=f"{said}; resume with: .* --set max_failures=4"):
            run(run_cap=5, max_failures=1)
        assert len(study().trials) == 4
    assert run(run_cap=3, max_failures=2).complete == 3


def test_a_worker_s_death_costs_one_attempt_and_the_second_the_trial() -> None:
    def fate(task: Task, epoch: int) -> TrialFailed | None:
        dies = epoch == 2 and len(executor.submitted) in (1, 3, 4)
        return TrialFailed(task.uid, 0, "worker_died", "signal SIGKILL") if dies else None

    executor = MadeUp(fate=fate)
    outcome = run(executor, run_cap=3)
    assert (outcome.complete, outcome.failed) == (3, 1)
    lost, again, other, last, *rest = records()
    assert [record.attempt for record in (lost, again, other, last)] == [1, 2, 1, 2]
    assert (again.retry_of, last.retry_of) == (0, 2)
    assert (again.config, again.parameters) == (lost.config, lost.parameters)
    assert [record.end_reason for record in (lost, other, last)] == ["worker_died"] * 3
    assert {record.end_reason for record in (again, *rest)} == {"max_epochs"}


@pytest.mark.usefixtures("always_asked")
def test_a_request_whose_worker_dies_stays_one() -> None:
    def fate(task: Task, epoch: int) -> TrialFailed | None:
        dies = len(executor.submitted) == 1
        return TrialFailed(task.uid, 0, "worker_died", "signal SIGKILL") if dies else None

    run(run_cap=1)
    ask("enqueue", dropout=0.123, l2=0.0)
    executor = MadeUp(fate=fate)
    run(executor, run_cap=3)
    assert [(one.attempt, one.requested) for one in records()[1:3]] == [(1, True), (2, True)]


def test_trials_of_another_program_count_for_nothing_and_what_it_queues_is_checked() -> None:
    run(run_cap=1)
    other = study()
    other.add_trial(create_trial(value=0.0001, params={"dropout": 0.1}, distributions=DROPOUT))
    other.add_trial(other.trials[0])  # with its record
    other.enqueue_trial({"dropout": 0.9, "l3": 1})
    other.enqueue_trial({"l2": 1e-4})
    other.add_trial(create_trial(state=TrialState.WAITING, params={"dropout": 0.1}, distributions=DROPOUT))
    watching = Watching()
    outcome = run(run_cap=3, max_failures=0, observer=watching)
    trials = study().trials
    mine = (0, 4, 6)
    assert (outcome.complete, outcome.failed) == (3, 0)
    assert outcome.best is not None
    assert outcome.best.number == min(mine, key=lambda number: trials[number].value or 0.0)
    assert {trial.number for trial in trials if trial.state is TrialState.COMPLETE} == {*mine, 1, 2}
    assert [record.parameters["l2"] for record in records([trials[4]]) if record.requested] == [1e-4]
    assert trials[3].state is trials[5].state is TrialState.FAIL
    assert watching.notes == [
        "trial 3, queued by another program, is refused: l3: unknown parameter; expected one of dropout, l2; "
        "dropout: expected 0 to 0.6; found 0.9",
        "trial 5, queued by another program, is refused: its parameters are set already; queue it with "
        "study.enqueue_trial",
    ]


# -- what another terminal asks for


@pytest.mark.usefixtures("always_asked")
def test_requests_of_another_terminal_are_taken_up_and_a_stop_leaves_a_study_that_goes_on() -> None:
    def enqueue(progress: Progress) -> bool:
        if progress.complete < 1:
            return False
        ask("enqueue", dropout=0.123, l2=0.0)
        ask("enqueue", dropout=7.0, l2=0.0)
        return True

    watching = Watching(enqueue, at_end=lambda trial: trial.parameters["dropout"] == 0.123 and ask("stop"))
    outcome = run(observer=watching, run_cap=400)
    wanted = [record for record in records() if record.requested]
    assert [record.parameters for record in wanted] == [{"dropout": 0.123, "l2": 0.0}]
    assert any("runs your queued configuration: dropout=0.123, l2=0.0" in note for note in watching.notes)
    assert any("refused your queued configuration" in note and "dropout" in note for note in watching.notes)
    assert (outcome.stopped, outcome.reason) == (True, "stopped from another terminal")
    assert TrialState.RUNNING not in {trial.state for trial in study().trials}
    ask("stop")  # too late: it stops nothing
    again = run(run_cap=outcome.complete + 2)
    assert (again.stopped, again.complete) == (False, outcome.complete + 2)
    with pytest.raises(errors.StudyNotFound, match='did you mean "small"'):
        request(load_settings(), "smal", "stop", {})


@pytest.mark.usefixtures("always_asked")
def test_after_an_interruption_the_attempt_that_runs_now_is_shown_and_a_drained_sweep_lets_it_end() -> None:
    stop = threading.Event()
    long = {"run_cap": 400, "training": {"batch_size": 64, "max_epochs": 5}}
    interrupt = Watching(lambda progress: any(t.epochs >= 3 for t in progress.running) and not stop.set())
    assert run(observer=interrupt, stop=stop, **long).interrupted == 1
    before = records()[-1]
    seen: list[tuple[int, int]] = []

    def look(progress: Progress) -> bool:
        if not seen:
            ask("stop", drain=True)
        watched = read_progress(open_engine(load_settings().storage_url), "small").running
        for live, other in zip(progress.running, watched, strict=True):
            seen.append((live.epochs, other.epochs))
        return False

    watching = Watching(look)
    outcome = run(observer=watching, **long)
    assert min(seen)[0] < before.epochs
    assert all(len(set(found)) == 1 for found in seen), seen
    assert any("running trials end, no new ones start" in note for note in watching.notes)
    assert (outcome.stopped, outcome.interrupted) == (True, 0)
    assert {trial.state for trial in study().trials} == {TrialState.COMPLETE}
    again = next(record for record in records() if record.uid == before.uid)
    assert again.epoch_ended_ms[: before.epochs] == before.epoch_ended_ms
    assert (again.epochs, again.again) == (5, None)


# -- grids


GRID: dict[str, Any] = {"method": "grid", "parameters": POINTS, "timeout": 600, "run_cap": 50}
ALL = "3 of 3 points of the grid are tried"


def test_what_another_program_puts_beside_a_grid_is_refused_and_no_point_of_it() -> None:
    run(**{**GRID, "run_cap": 1})
    of_another = {"width": FloatDistribution(0.0, 1.0)}
    study().add_trial(create_trial(state=TrialState.WAITING, params={"width": 0.5}, distributions=of_another))
    outcome = run(**GRID)
    assert (outcome.reason, outcome.failed) == (ALL, 0)


def test_a_grid_s_budget_is_of_its_points_controls_come_beside_and_no_point_is_trained_twice() -> None:
    outcome = run(**{**GRID, "controls": True, "run_cap": 2})
    used = "2 of 3 points of the grid are tried"
    assert outcome.reason == f"{used}; train 1 more with: the same command with --set run_cap=3"
    first = records()
    assert [record.control for record in first if record.parameters] == ["early_stopping", "dropout"]
    assert len(first) == 3  # one more beside the grid: no technique, without early stopping
    ask("enqueue", dropout=0.1)
    outcome = run(**{**GRID, "controls": True, "run_cap": 3})
    assert (outcome.complete, outcome.reason) == (4, ALL)
    assert [record.requested for record in records()[3:]] == [True]
    info = read_study(open_engine(load_settings().storage_url), "small")
    assert (info.finished, info.beside) == (3, 1)


def test_what_is_asked_for_as_the_last_trial_ends_is_still_tried_and_a_stop_stops_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "regtune.sweep.coordinator.REQUESTS_SECONDS", float("inf")
    )  # until it is about to end
    enqueue = Watching(at_end=lambda trial: trial.number == 2 and ask("enqueue", dropout=0.1))
    assert run(**GRID, observer=enqueue).complete == 4
    assert [record.requested for record in records()] == [False, False, False, True]
    stop = Watching(at_end=lambda trial: trial.number == 2 and ask("stop"))
    outcome = run(**GRID, observer=stop, fresh=True)
    assert (outcome.stopped, outcome.complete, outcome.reason) == (False, 3, ALL)


# -- what is kept


def runs_of(client: MlflowClient, name: str) -> list[Any]:
    """The runs of a study's trials."""
    found = [one.experiment_id for one in client.search_experiments(filter_string=f"name = '{name}'")]
    return list(client.search_runs(found, "tags.`regtune.kind` = 'trial'"))


def test_the_best_models_are_kept_here_and_in_mlflow_and_a_deleted_study_leaves_nothing() -> None:
    settings = load_settings()
    assert run(run_cap=1, name="other", keep_models=0, tracker=Tracker).unwritten == 0
    assert not Path("mlruns/artifacts/trials").exists()
    run(run_cap=8, keep_models=2, tracker=Tracker)
    best = sorted(study().trials, key=lambda trial: trial.value or 0.0)[:2]
    kept = {folder.name for folder in Path("mlruns/artifacts/trials").iterdir()}
    assert kept == {record.uid for record in records(best)}
    client = MlflowClient(settings.mlflow_uri)
    runs = runs_of(client, "small")
    files = {one.data.tags["regtune.trial_uid"]: client.list_artifacts(one.info.run_id) for one in runs}
    models = {uid for uid, found in files.items() if "model.keras" in {artifact.path for artifact in found}}
    assert len(runs) == 8
    assert models == kept
    delete_study(settings, "small")
    assert optuna.get_all_study_names(settings.storage_url) == ["other"]
    assert [one.name for one in client.search_experiments() if one.name != "Default"] == ["other"]
    assert not list(Path("mlruns/artifacts/trials").iterdir())
    assert not find_garbage(settings)


@pytest.mark.slow
def test_two_sweeps_at_once_in_one_folder_both_end_whole(tmp_path: Path) -> None:
    place = Place(tmp_path, {"REGTUNE_HOME": "mlruns"}, name="one")
    other, changes = replace(place, name="other"), {**SHORT, "run_cap": 5}
    with place.sweep(**changes) as first, other.sweep(**changes) as second:
        first.ended()
        second.ended()
    client = MlflowClient(load_settings().mlflow_uri)
    for name in ("one", "other"):
        assert [trial.state for trial in study(name).trials] == [TrialState.COMPLETE] * 5
        assert [one.info.status for one in runs_of(client, name)] == ["FINISHED"] * 5
