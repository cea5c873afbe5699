"""Studies on real SQLite files: made once, held by one, refused when they are something else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import optuna
import pytest
from optuna.samplers import RandomSampler
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial
from scipy import stats
from terminals import environment

from regtune.config.sweepfile import SweepSpec
from regtune.config.trial import METRICS, DataConfig, TrialConfig
from regtune.errors import SpecChanged, StudyBusy
from regtune.search import Space, controls
from regtune.search.controls import every_control
from regtune.settings import load_settings
from regtune.storage import open_engine, open_storage
from regtune.study.ownership import hold
from regtune.study.record import CREATED, DATA, RECORD, STUDY_UID, Kept, Origin, TrialRecord
from regtune.study.study import Study, deleting, derive_seed, record_of
from regtune.sweep.proposals import Proposals
from regtune.sweep.standing import Standing
from regtune.tracking.studies import StudyTrials

SPEC: dict[str, Any] = {"name": "s", "run_cap": 5, "parameters": {"dropout": {"min": 0.0, "max": 0.5}}}


def opened(data: dict[str, Any] | None = None, **changes: Any) -> Study:
    return Study.open(load_settings(), SweepSpec.from_dict({**SPEC, **changes}), data=data)


def record(study: Study, number: int, **changes: Any) -> TrialRecord:
    return TrialRecord(
        uid=f"{study.uid}-{number}", config=TrialConfig(), parameters={"dropout": 0.1}, **changes
    )


def test_a_database_is_made_once_in_wal_mode_however_many_open_it() -> None:
    imports = "from regtune.settings import load_settings; from regtune.storage import open_storage"
    command = [sys.executable, "-c", f"{imports}; open_storage(load_settings())"]
    processes = [subprocess.Popen(command, env=environment()) for _ in range(3)]
    assert [process.wait() for process in processes] == [0] * 3
    with open_engine(load_settings().storage_url).connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


def test_a_study_of_somebody_else_is_refused() -> None:
    open_storage(load_settings())
    foreign = optuna.create_study(study_name="s", storage=load_settings().storage_url)
    foreign.tell(foreign.ask(), 1.0)
    with pytest.raises(SpecChanged, match="was not created by regtune"):
        opened()


def test_the_same_data_elsewhere_goes_on_and_other_data_is_refused_before_anything_is_written() -> None:
    def begun(name: str, digest: str, **changes: Any) -> Study:
        return opened({"name": name, "digest": digest}, dataset=name, **changes)

    first = begun("one.npz", "a" * 64)
    assert begun("proj/one.NPZ", "a" * 64).uid == first.uid
    with pytest.raises(SpecChanged) as refused:
        begun("one.npz", "b" * 64, run_cap=99)
    assert refused.value.differences == (
        f"  data: one.npz with digest {'a' * 12}... → one.npz with digest {'b' * 12}...",
    )
    assert begun("one.npz", "a" * 64).attributes[DATA]["name"] == "one.npz"


def test_what_was_queued_or_interrupted_is_trained_on_the_data_where_it_lies_now() -> None:
    study, spec = opened(), SweepSpec.from_dict(SPEC)
    space = Space(spec)
    standing = Standing(study, space)
    there = Proposals(study, space, standing, DataConfig(name="there.npz", digest="a" * 64))
    for _ in range(2):  # what is queued twice is queued once
        there.queue_controls()
    assert len(study.trials()) == len(controls(spec, DataConfig(name="there.npz")))
    first = there.next()
    assert first is not None
    study.requeue(first[0])
    here = Proposals(study, space, standing, DataConfig(name="here.npz", digest="a" * 64))
    for number in range(2):
        found = here.next()
        assert found is not None
        assert (found[0], found[1].control is not None) == (number, True)
        assert found[1].config.data.name == "here.npz"


def test_a_control_that_a_version_before_has_queued_is_trained_though_the_sweep_lists_it_no_more() -> None:
    study, spec = opened(), SweepSpec.from_dict(SPEC)
    data = DataConfig(digest="a" * 64)
    before = [one for one in every_control(spec, data) if one.parameters is None]
    for control in before:
        study.queue(Origin("control", f"control {control.name}", control.config), {})
    space = Space(spec)
    proposals = Proposals(study, space, Standing(study, space), data)
    proposals.queue_controls()
    started = [proposals.next() for _ in range(len(study.trials()))]
    queued_now = ["early_stopping", "dropout"]  # points of the space
    assert [one[1].control for one in started if one] == [*(one.name for one in before), *queued_now]


def test_a_beginning_that_was_cut_off_is_begun_again() -> None:
    whole, url = opened(), load_settings().storage_url
    attributes = [item for item in whole.optuna.user_attrs.items() if item[0] != STUDY_UID]
    for written in range(len(attributes) + 1):
        optuna.delete_study(study_name="s", storage=url)
        cut_off = optuna.create_study(study_name="s", storage=url)
        for key, value in attributes[:written]:
            cut_off.set_user_attr(key, value)
        assert opened().uid != whole.uid


def started(study: Study, **changes: Any) -> int:
    """Start the next trial, whose dropout is 0.1, and return its number."""
    draft = study.ask(RandomSampler(seed=1), ())
    draft.trial.suggest_float("dropout", 0.1, 0.1)
    number = draft.trial.number
    assert study.start(draft.proposed, record(study, number, **changes))
    return number


def test_an_interrupted_trial_goes_back_into_the_queue_under_its_number_and_an_ended_one_ends() -> None:
    study = opened()
    interrupted, ended, pruned, mine = (started(study) for _ in range(4))
    for number, reason in ((ended, "worker_died"), (pruned, "pruned")):
        study.report(number, 1, 0.5)
        study.write(number, record(study, number, end_reason=reason))
    study.settle(held={mine})
    assert [found.state.name for found in study.trials()] == ["WAITING", "FAIL", "PRUNED", "RUNNING"]
    assert study.start(study.trials()[interrupted], record(study, interrupted))
    again = study.trials()[interrupted]
    assert (again.number, again.state, again.params) == (0, TrialState.RUNNING, {"dropout": 0.1})


def test_what_a_process_leaves_between_two_writes_of_a_queued_trial_is_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed after each write in turn, the next process starts the trial as an undisturbed one does."""
    space, found = Space(SweepSpec.from_dict(SPEC)), []

    class Killed(BaseException): ...

    def next_trial(study: Study) -> tuple[int, TrialRecord] | None:
        return Proposals(study, space, Standing(study, space), DataConfig(digest="a" * 64)).next()

    for survived in range(4):  # a parameter, the record, the state; then nobody kills
        shutil.rmtree("mlruns", ignore_errors=True)
        study = opened()
        study.queue(Origin("request", "one"), {})
        left = iter(range(survived))
        with monkeypatch.context() as patch, suppress(Killed):
            for name in ("set_trial_param", "set_trial_user_attr", "set_trial_state_values"):
                method = getattr(RDBStorage, name)

                def killed(*given: Any, real: Any = method, left: Any = left) -> Any:
                    if next(left, None) is None:
                        raise Killed
                    return real(*given)

                patch.setattr(RDBStorage, name, killed)
            next_trial(study)
        again = opened()
        again.settle()
        ran = next_trial(again)
        assert ran is not None
        assert [trial.state for trial in again.trials()] == [TrialState.RUNNING]
        found.append((ran[0], ran[1].parameters, ran[1].config, again.trials()[0].params))
    assert all(one == found[0] for one in found)


def test_a_trial_that_ends_while_its_study_is_read_keeps_its_model() -> None:
    """MLflow's writer reads a study that is run: first whose models are kept, then its trials, page by page."""
    study = opened(keep_models=1)
    for _ in range(3):
        started(study, started_ms=5)

    def end(number: int, value: float) -> None:
        kept = Kept(1, {"val_cross_entropy": value}, *[0.1] * 5)
        whole = {"started_ms": 5, "ended_ms": 7, "end_reason": "max_epochs", "kept": kept}
        ended = record(study, number, **whole, artifacts={"model.keras": "0" * 64})
        study.write(number, ended)
        study.tell(number, ended)

    end(0, 0.2)
    end(1, 0.3)
    found = StudyTrials(open_engine(load_settings().storage_url), "s", at_rest=False)
    end(2, 0.1)
    shown = {number: list(read.artifacts) for number, _, read in found.read(range(3))}
    assert shown == {0: ["model.keras"], 1: [], 2: ["model.keras"]}


def test_pauses_between_sweeps_and_an_attempt_that_was_cut_off_are_no_part_of_a_study_s_duration() -> None:
    study, begun = opened(), datetime(2026, 10, 25, 0, 59, 55)
    for number, (after, seconds) in enumerate(((0, 10), (2, 8), (86_400, 5))):
        trial = create_trial(state=TrialState.FAIL, user_attrs={RECORD: record(study, number).to_json()})
        trial.datetime_start = begun + timedelta(seconds=after)
        trial.datetime_complete = trial.datetime_start + timedelta(seconds=seconds)
        study.optuna.add_trial(trial)
    study.optuna.ask()
    study.set_attribute(DATA, {})
    found = StudyTrials(open_engine(load_settings().storage_url), "s", at_rest=True)
    assert found.ended_ms == study.attributes[CREATED] + 15_000


def test_a_record_comes_back_as_it_was() -> None:
    study = opened()
    number = started(study)
    figures = dict.fromkeys(METRICS, 1 / 3)
    written = record(study, 0, started_ms=5).with_epoch(figures, 0.25, 7)
    study.write(number, written)
    assert record_of(opened().trials()[0]) == written
    assert written.after_epoch(1, figures, 0.5, 9) == written
    other = written.after_epoch(1, {**figures, "loss": 0.3}, 0.5, 9)
    assert (other.epochs, other.history["loss"], other.epoch_seconds) == (1, (0.3,), (0.5,))
    assert written.after_epoch(2, figures, 0.5, 9).epochs == 2
    assert written.until(0).epochs == 0


def test_a_deleted_study_is_gone_and_a_held_one_stays() -> None:
    uid = opened().uid
    with hold(load_settings(), "s"), pytest.raises(StudyBusy), deleting(load_settings(), "s"):
        pass
    with deleting(load_settings(), "s") as found:
        assert found == uid
    assert opened().uid != uid


def test_seeds_are_those_of_numpys_seed_sequence_and_look_uniform() -> None:
    seeds = [derive_seed(1, number, "training") for number in range(2000)]
    assert len(set(seeds)) == 2000
    assert not set(seeds) & {derive_seed(1, number, "sampler") for number in range(2000)}
    assert stats.kstest([seed / 2**31 for seed in seeds], "uniform").pvalue > 0.001
