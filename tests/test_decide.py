"""A decision: which replicates are trained, what they conclude, and how it resumes; most with made-up figures."""

from __future__ import annotations

import shutil
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import optuna
import pytest
from made_up import MadeUp
from places import SWEEP

from benchmarks.simulated import Untracked
from regtune import errors
from regtune.config.sweepfile import SweepSpec
from regtune.config.trial import TrialConfig
from regtune.evidence.conclusion import techniques
from regtune.evidence.decide import Budget, decide
from regtune.evidence.run import run_sweep
from regtune.executors import Event, Executor, Task, TrialFailed
from regtune.search.controls import STRENGTHS
from regtune.settings import Settings, load_settings
from regtune.storage import open_engine
from regtune.study.decision import Decision, Replicate, Vary, read_decision, read_replicates, replicate_uid
from regtune.study.decision_text import sentence
from regtune.study.ownership import hold
from regtune.study.progress import Progress, Row
from regtune.study.record import DATA, ENDED
from regtune.study.study import derive_seed, request
from regtune.sweep import SweepOutcome
from regtune.sweep import run_sweep as search
from regtune.training.result import Verdict

SHORT: dict[str, Any] = {
    "training": {"batch_size": 64, "max_epochs": 1},
    "early_stopping": {"patience": 2},
    "controls": True,
    "run_cap": 12,
    "method": "random",
}
NAME = "small"


def spec(**changes: Any) -> SweepSpec:
    return SweepSpec.from_dict({"name": NAME, **SWEEP, **SHORT, **changes})


def luck(task: Task) -> float:
    """What a seed and a split give every configuration alike."""
    return Random(f"{task.config.seed} {task.config.data.split_seed}").gauss(0.0, 0.05)


def own_luck(task: Task) -> float:
    """What a training gives itself alone."""
    return Random(task.config.digest).gauss(0.0, 0.01)


def dropout_helps(task: Task) -> float:
    """A loss that dropout lowers by 0.1 and L2 by nothing."""
    better = 0.1 if task.config.regularization.dropout[0] > 0.05 else 0.0
    return 1.0 - better + luck(task) + own_luck(task)


class Team:
    """Several made-up workers, whose events come in a drawn order."""

    def __init__(self, members: Sequence[MadeUp], draw: int) -> None:
        self._members, self._draw = members, Random(draw)

    @property
    def idle(self) -> int:
        return sum(one.idle for one in self._members)

    def submit(self, task: Task) -> None:
        next(one for one in self._members if one.idle).submit(task)

    def events(self, timeout_seconds: float) -> Sequence[Event]:
        return self._draw.choice([one for one in self._members if one.waiting]).events(timeout_seconds)

    def decide(self, uid: str, verdict: Verdict) -> None:
        next(one for one in self._members if one.submitted and one.submitted[-1].uid == uid).decide(
            uid, verdict
        )

    def withdraw(self) -> Sequence[str]:
        return ()

    def close(self) -> None:
        for one in self._members:
            one.close()


class Crowded:
    """One worker of three: the tasks of the others wait for room."""

    def __init__(self) -> None:
        self.one = MadeUp(dropout_helps)
        self._waiting: deque[Task] = deque()

    @property
    def idle(self) -> int:
        return 2 + self.one.idle - len(self._waiting)

    def submit(self, task: Task) -> None:
        self._waiting.append(task)
        self._hand_on()

    def events(self, timeout_seconds: float) -> Sequence[Event]:
        told = self.one.events(timeout_seconds)
        self._hand_on()
        return told

    def decide(self, uid: str, verdict: Verdict) -> None:
        self.one.decide(uid, verdict)

    def withdraw(self) -> Sequence[str]:
        uids = [task.uid for task in self._waiting]
        self._waiting.clear()
        return uids

    def close(self) -> None:
        self.one.close()

    def _hand_on(self) -> None:
        if self.one.idle and self._waiting:
            self.one.submit(self._waiting.popleft())


class Watching:
    """An observer that remembers, and acts on what it sees."""

    def __init__(self, act: Callable[[Progress], Any] = lambda _: None) -> None:
        self.ended: list[Row] = []
        self.seen: list[Progress] = []
        self.notes: list[str] = []
        self._act = act

    def progress(self, progress: Progress) -> None:
        self.seen.append(progress)
        self._act(progress)

    def finished(self, trial: Row, progress: Progress) -> None:
        self.ended.append(trial)

    def note(self, message: str) -> None:
        self.notes.append(message)


def stopping_after(replicates: int) -> tuple[Watching, threading.Event]:
    """What watches, and what it sets once so many replicates have ended."""
    stop = threading.Event()

    def act(progress: Progress) -> None:
        if progress.deciding and progress.deciding.done >= replicates and progress.running:
            stop.set()

    return Watching(act), stop


def searched(executor: Executor | None = None, **changes: Any) -> SweepOutcome:
    """A study whose search is over, without replicates."""
    options = {key: changes.pop(key) for key in ("observer", "stop") if key in changes}
    executor = executor or MadeUp(dropout_helps)
    return search(spec(**changes), settings=load_settings(), executor=executor, tracker=Untracked, **options)


def decided(executor: Executor | None = None, home: str = "mlruns", **options: Any) -> Decision:
    executor = executor or MadeUp(dropout_helps)
    return decide(
        NAME, settings=settings_of(home), executor=executor, tracker=Untracked, **{"top": 2, **options}
    )


def settings_of(home: str) -> Settings:
    return Settings.model_validate({"REGTUNE_HOME": home})


def team(draw: int) -> Team:
    return Team([MadeUp(dropout_helps), MadeUp(dropout_helps)], draw)


def seed_of(config: TrialConfig) -> int:
    return config.seed


def split_of(config: TrialConfig) -> int:
    return config.data.split_seed


def ended_state() -> str | None:
    """How the study stands, as its sweep has recorded it."""
    known = optuna.load_study(study_name=NAME, storage="sqlite:///mlruns/studies.db")
    return (known.user_attrs.get(ENDED) or {}).get("state")


def swept(executor: Executor | None = None, **changes: Any) -> SweepOutcome:
    """A sweep with its decision."""
    options = {key: changes.pop(key) for key in ("observer", "stop", "fresh") if key in changes}
    executor = executor or MadeUp(dropout_helps)
    return run_sweep(
        spec(**changes), settings=load_settings(), executor=executor, tracker=Untracked, **options
    )


def replicates(home: str = "mlruns") -> list[Replicate]:
    return read_replicates(open_engine(settings_of(home).storage_url), NAME)


def stored() -> Decision | None:
    return read_decision(open_engine(load_settings().storage_url), NAME)


def what_repeats(decision: Decision | None) -> dict[str, Any]:
    """A decision without times."""
    assert decision is not None
    values = decision.model_dump(mode="json", exclude={"decided", "seconds", "uid"})
    for one in values["candidates"]:
        for figures in (one["figures"], one["bought"], one["beyond"]):
            figures.pop("epoch_seconds", None)
    return values


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study whose search is over."""
    home = tmp_path_factory.mktemp("searched") / "mlruns"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGTUNE_HOME", str(home))
        searched()
    return home


@pytest.fixture
def study(folder: Path) -> None:
    """That study, in the folder of a test."""
    shutil.copytree(folder, "mlruns")


# -- what is trained, and what it concludes


@pytest.mark.usefixtures("study")
@pytest.mark.parametrize("vary", ["both", "seed", "split"])
def test_replicate_i_of_every_candidate_has_the_same_fresh_seed_and_split(vary: Vary) -> None:
    executor = MadeUp(dropout_helps)
    decision = decided(executor, vary=vary, budget=Budget(replicates=4))
    keys = [one.candidate.key for one in decision.candidates]
    assert {key for key in keys if key.startswith("c-")} == {f"c-{name}" for name in STRENGTHS}
    assert sum(key.startswith("t") for key in keys) == 2
    found = replicates()
    assert Counter(one.candidate for one in found) == dict.fromkeys(keys, 4)
    seeds, splits = ({(one.index, pick(one.record.config)) for one in found} for pick in (seed_of, split_of))
    fresh_seeds = {derive_seed(3, index, "replicate") for index in range(4)}
    fresh_splits = {derive_seed(3, index, "split") for index in range(4)}
    assert {seed for _, seed in seeds} == (
        fresh_seeds if vary != "split" else {derive_seed(3, 0, "replicate")}
    )
    assert {split for _, split in splits} == (fresh_splits if vary != "seed" else {42})
    assert (len(seeds), len(splits)) == (4, 4)
    order = [(task.config.seed, task.config.data.split_seed) for task in executor.submitted]
    assert order == sorted(
        order, key=order.index
    )  # replicate by replicate: all candidates one after the other
    configurations = {one.candidate.key: one.candidate.config for one in decision.candidates}
    for one in found:
        config = one.record.config
        known = {"seed": 0, "data": config.data}
        assert config.model_copy(update=known) == configurations[one.candidate].model_copy(update=known)
        assert one.record.uid == replicate_uid(decision.uid, vary, one.candidate, one.index)
        assert one.record.end_reason == "max_epochs"
    assert decision == stored()


@pytest.mark.usefixtures("study")
def test_what_is_beaten_is_trained_no_further_and_the_simplest_of_the_tied_is_chosen() -> None:
    watching = Watching()
    decision = decided(observer=watching, budget=Budget(replicates=8))
    judged = {one.candidate.key: one for one in decision.candidates}
    helped = {key for key, one in judged.items() if one.candidate.config.regularization.dropout[0] > 0.05}
    assert {key for key, one in judged.items() if one.beats_none} == helped
    assert {one.candidate.key for one in decision.with_standing("chosen", "tied")} == helped
    assert decision.none is not None
    trained = Counter(one.candidate for one in replicates())
    assert {key for key, number in trained.items() if number == 8} == {
        *helped,
        "c-none",
    }
    assert {one.replicates for one in decision.with_standing("beaten") if one is not decision.none} == {4}
    chosen = decision.judged(decision.chosen)
    assert chosen is not None
    assert chosen.candidate.searched
    fewest = min(techniques(judged[key].candidate.config) for key in helped if judged[key].candidate.searched)
    assert techniques(chosen.candidate.config) == fewest
    assert (decision.end, decision.replicates) == ("budget", 8)
    assert chosen.to_none is not None
    assert chosen.to_none.mean == pytest.approx(-0.1, abs=0.02)
    winner = judged[decision.winner or ""]
    assert winner.estimate is not None
    assert decision.optimism is not None
    assert decision.optimism.mean == pytest.approx(winner.estimate.mean - (winner.candidate.value or 0.0))
    assert decision.practical == pytest.approx(
        0.01 * decision.none.estimate.mean if decision.none.estimate else 0.0
    )
    assert len(watching.ended) == decision.trainings == len(replicates())
    assert {trial.replicate for trial in watching.ended} == {
        (judged[one.candidate].candidate.name, one.index) for one in replicates()
    }
    first = watching.seen[0].deciding
    assert first is not None
    assert (first.done, first.planned, first.look, first.candidates) == (0, 4 * len(judged), 4, len(judged))
    last = watching.seen[-1].deciding
    assert last is not None
    assert last.done == last.planned == len(replicates())


@pytest.mark.usefixtures("study")
def test_two_workers_in_any_order_and_any_number_of_interruptions_conclude_the_same() -> None:
    shutil.copytree("mlruns", "undisturbed")
    expected = what_repeats(decided(home="undisturbed", budget=Budget(replicates=8)))
    known = {one.attribute: one.record.kept for one in replicates("undisturbed")}
    ended: list[Row] = []
    for draw in range(2):
        watching, stop = stopping_after(30 * draw + 12)
        decision = decided(team(draw), observer=watching, stop=stop, budget=Budget(replicates=8))
        ended += watching.ended
        assert decision.end == "stopped"
    watching = Watching()
    decision = decided(team(9), observer=watching, budget=Budget(replicates=8))
    assert what_repeats(decision) == expected
    assert {one.attribute: one.record.kept for one in replicates()} == known
    assert (
        len({row.replicate for row in (*ended, *watching.ended)})
        == len(ended) + len(watching.ended)
        == len(known)
    )
    executor = MadeUp(dropout_helps)
    assert decided(executor, budget=Budget(replicates=8)) == stored() == decision
    assert executor.submitted == []


@pytest.mark.usefixtures("study")
def test_a_second_decision_goes_on_from_the_first_and_a_settled_one_trains_nothing() -> None:
    few = decided(budget=Budget(replicates=4))
    assert (few.end, few.replicates) == ("budget", 4)
    more = decided(budget=Budget(replicates=15))
    assert (more.end, more.replicates) == ("budget", 8)  # the look before 15
    assert more.trainings == len(replicates())
    assert (practical := decided(practical=0.5)).end == "practical"
    assert practical.trainings == more.trainings
    watching, stop = stopping_after(
        more.trainings + 1
    )  # more candidates have no look yet: what is known stands
    wider = decided(top=9, observer=watching, stop=stop)
    assert wider.candidates == practical.candidates
    assert (wider.end, stored()) == ("stopped", practical)
    assert (
        decided(top=1, budget=Budget(replicates=8)).candidates[-1].replicates
    )  # what was replicated once stays a candidate


def test_a_later_trial_of_a_configuration_that_was_replicated_is_no_other_candidate() -> None:
    few = {"dropout": {"values": [0.0, 0.2]}, "l2": {"values": [0.0, 1e-4]}}
    executor = MadeUp(dropout_helps)
    for cap in (6, 12, 24):
        searched(parameters=few, run_cap=cap)
        found = decided(executor, top=4, budget=Budget(replicates=8))
        configs = [one.candidate.config for one in found.candidates]
        assert len(set(configs)) == len(configs)
    trained = [task.config for task in executor.submitted]
    assert len(set(trained)) == len(trained)


def test_a_control_outside_the_search_can_be_the_answer_and_the_choice_is_from_inside() -> None:
    searched(parameters={"l2": SWEEP["parameters"]["l2"]}, run_cap=6)
    decision = decided(budget=Budget(replicates=8))
    answer, chosen = decision.judged(decision.answer), decision.judged(decision.chosen)
    assert answer is not None
    assert chosen is not None
    assert (answer.candidate.key, answer.candidate.searched, answer.standing) == ("c-dropout", False, "tied")
    assert (chosen.candidate.searched, chosen.standing) == (True, "chosen")
    assert "dropout 0.2, outside the search, is better than all inside it; of those, " in sentence(decision)


# -- what goes wrong


@pytest.mark.parametrize(
    ("executor", "said"),
    [
        ({"fate": lambda task, epoch: "non_finite"}, ": 1 failed, the last: the loss became non-finite"),
        ({"stop": True}, "; try: regtune board small"),
    ],
    ids=["all failed", "too small"],
)
def test_a_study_without_a_complete_trial_is_not_decided(executor: dict[str, Any], said: str) -> None:
    stop = threading.Event()
    act = (lambda _: stop.set()) if executor.pop("stop", False) else (lambda _: None)
    with suppress(errors.TooManyFailures):
        searched(MadeUp(**executor), observer=Watching(act), stop=stop, controls=False, max_failures=0)
    with pytest.raises(errors.StudyNotFound, match='study "small" has no complete trial yet') as refused:
        decided()
    assert said in str(refused.value)
    with pytest.raises(errors.StudyNotFound, match='did you mean "small"'):
        decide("smal", settings=load_settings())
    assert replicates() == []


def test_one_candidate_and_no_candidate_are_nothing_to_compare_and_nothing_is_trained() -> None:
    executor = MadeUp(dropout_helps)
    decision = swept(executor, controls=False, run_cap=1, decide=True).decision
    assert decision is not None
    assert (decision.end, decision.chosen, len(executor.submitted)) == ("one_candidate", "t0", 1)
    assert sentence(decision).endswith("is the only candidate.")
    assert stored() is None


@pytest.mark.usefixtures("study")
def test_identical_figures_are_said_to_tell_nothing_apart() -> None:
    decision = decided(MadeUp(lambda task: 0.5))
    assert (decision.end, decision.replicates) == ("practical", 4)
    assert decision.answer == "c-none"  # the simplest of all
    assert decision.chosen != "c-none"
    assert not any(one.beats_none or one.below_none for one in decision.candidates)
    assert decision.notes == (
        "every candidate has the same figures in every replicate: nothing tells them apart",
    )


@pytest.mark.usefixtures("study")
@pytest.mark.parametrize(("failing", "standing", "others"), [((1, 3), "diverged", 4), ((2,), "beaten", 5)])
def test_a_candidate_that_diverges_in_half_of_its_replicates_leaves_and_one_that_does_not_costs_the_others_one(
    failing: Sequence[int], standing: str, others: int
) -> None:
    seeds = {derive_seed(3, index, "replicate") for index in failing}

    def fate(task: Task, epoch: int) -> str | None:
        return "non_finite" if task.config.seed in seeds and task.config.regularization.l1[0] else None

    decision = decided(MadeUp(dropout_helps, fate), budget=Budget(replicates=4))
    fails = decision.judged("c-l1")
    assert fails is not None
    assert (fails.standing, fails.diverged) == (standing, len(failing))
    assert fails.replicates == 4 - len(failing) if standing == "diverged" else 4
    assert {one.replicates for one in decision.candidates if one is not fails} == {4}
    assert set(Counter(one.candidate for one in replicates()).values()) == {4, others} - (
        {5} if others == 4 else {4}
    )
    (note,) = decision.notes
    assert note.startswith(f"control l1: {len(failing)} of {others} replicates ended without figures")
    assert "the loss became non-finite in epoch 1" in note


@pytest.mark.usefixtures("study")
@pytest.mark.parametrize("epochs", [30, 33, 60])
def test_a_budget_of_epochs_holds_where_replicates_end_without_figures_interrupted_or_not(
    epochs: int,
) -> None:
    seed = derive_seed(3, 2, "replicate")

    def fate(task: Task, epoch: int) -> str | None:
        return "non_finite" if task.config.seed == seed and task.config.regularization.l1[0] else None

    shutil.copytree("mlruns", "beside")
    stop = threading.Event()
    stop_at = Watching(lambda progress: len(stop_at.ended) == 33 and stop.set())
    decided(MadeUp(dropout_helps, fate), observer=stop_at, stop=stop, budget=Budget(epochs=epochs))
    resumed = decided(MadeUp(dropout_helps, fate), budget=Budget(epochs=epochs))
    whole = decided(MadeUp(dropout_helps, fate), home="beside", budget=Budget(epochs=epochs))
    assert what_repeats(resumed) == what_repeats(whole)
    assert whole.epochs <= epochs


@pytest.mark.usefixtures("study")
def test_where_every_candidate_diverges_nothing_is_chosen_and_each_says_so() -> None:
    executor = MadeUp(dropout_helps, lambda task, epoch: TrialFailed(task.uid, 0, "timeout", "too long"))
    decision = decided(executor)
    assert {one.standing for one in decision.candidates} == {"diverged"}
    assert (decision.chosen, decision.answer, decision.end) == (None, None, "settled")
    assert len(executor.submitted) == 4 * len(decision.candidates)
    assert "control none: 4 of 4 replicates ended without figures (the last: too long)" in decision.notes[1]
    assert "the control without any technique diverges, so nothing is compared with it" in decision.notes
    assert stored() is None  # no look was had


@pytest.mark.usefixtures("study")
def test_a_worker_s_death_costs_a_replicate_one_attempt_and_the_second_the_replicate() -> None:
    def fate(task: Task, epoch: int) -> TrialFailed | None:
        dies = len(executor.submitted) in (1, 4, 5)
        return TrialFailed(task.uid, 0, "worker_died", "signal SIGKILL") if dies else None

    executor = MadeUp(dropout_helps, fate)
    decision = decided(executor, budget=Budget(replicates=4))
    first, _, third, *_ = (one.candidate.key for one in decision.candidates)
    by_name = {(one.candidate, one.index): one.record for one in replicates()}
    assert (by_name[first, 0].attempt, by_name[first, 0].end_reason) == (2, "max_epochs")
    assert (by_name[third, 0].attempt, by_name[third, 0].end_reason) == (2, "worker_died")
    assert {len(record.epoch_ended_ms) for record in by_name.values() if record.kept} == {1}
    assert decision.replicates == 4
    assert max(one.index for one in replicates()) == 4


@pytest.mark.usefixtures("study")
def test_other_data_and_a_study_that_is_held_are_refused() -> None:
    with hold(load_settings(), NAME), pytest.raises(errors.StudyBusy, match="regtune watch small"):
        decided()
    known = optuna.load_study(study_name=NAME, storage="sqlite:///mlruns/studies.db")
    known.set_user_attr(DATA, {**known.user_attrs[DATA], "digest": "0" * 64})
    with pytest.raises(
        errors.DataError, match=r'mnist-5k: has digest \w+..., study "small" was run on 000000000000...'
    ):
        decided()
    assert replicates() == []


# -- budgets


@pytest.mark.usefixtures("study")
def test_a_small_budget_takes_the_most_important_candidates_and_one_too_small_says_what_to_type() -> None:
    decision = decided(budget=Budget(epochs=4 * 3))
    assert [one.candidate.key for one in decision.candidates][1] == "c-none"
    assert (len(decision.candidates), decision.replicates, decision.end, decision.epochs) == (
        3,
        4,
        "budget",
        12,
    )
    assert decision.notes[0].startswith("the budget has no room for control early stopping, ")
    assert decision.notes[0].endswith("; replicate them too with: regtune decide small")


@pytest.mark.usefixtures("study")
@pytest.mark.parametrize("budget", [{"replicates": 3}, {"epochs": 7}, {"seconds": 1e-6}])
def test_a_budget_too_small_for_a_first_look_trains_nothing_and_says_what_to_type(
    budget: dict[str, Any],
) -> None:
    executor = MadeUp(dropout_helps)
    decision = decided(executor, budget=Budget(**budget))
    assert (decision.end, decision.chosen, executor.submitted, stored()) == ("too_few", None, [], None)
    assert decision.notes[-1].startswith(
        "the first look is after 4 replicates of each of at least two candidates"
    )
    assert "decide with: regtune decide small" in decision.notes[-1]


# -- stops


@pytest.mark.usefixtures("study")
@pytest.mark.parametrize("drain", [False, True])
def test_another_terminal_stops_a_decision_and_the_same_line_resumes_it(
    drain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regtune.evidence.replication.REQUESTS_SECONDS", 0.0)
    asked: list[Progress] = []

    def ask(progress: Progress) -> None:
        if not asked and progress.running:
            asked.append(progress)
            request(load_settings(), NAME, "stop", {"drain": drain})

    decision = decided(observer=Watching(ask), budget=Budget(replicates=4))
    assert decision.end == "stopped"
    ends = [one.record.end_reason for one in replicates()]
    assert ends == (["max_epochs"] if drain else [None])
    executor = MadeUp(dropout_helps)
    again = decided(executor, budget=Budget(replicates=4))
    assert again.end == "budget"
    assert len(executor.submitted) == again.trainings - drain


@pytest.mark.parametrize("drain", [False, True])
@pytest.mark.parametrize("deciding", [False, True])
def test_a_stop_does_not_wait_for_what_waits_for_room(
    drain: bool, deciding: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in ("evidence.replication", "sweep.coordinator"):
        monkeypatch.setattr(f"regtune.{room}.REQUESTS_SECONDS", 0.0)
    crowded, asked = Crowded(), list[int]()

    def ask(progress: Progress) -> None:
        if not asked and len(progress.running) == 3 and (progress.deciding is not None) == deciding:
            asked.append(len(crowded.one.submitted))
            request(load_settings(), NAME, "stop", {"drain": drain})

    outcome = swept(crowded, observer=Watching(ask), decide=1.5)
    assert outcome.stopped
    assert asked == [len(crowded.one.submitted)]  # and nothing was begun after it
    expected = swept(decide=1.5)
    assert (expected.stopped, expected.complete, expected.waiting) == (False, 12, 0)
    assert what_repeats(stored()) == what_repeats(expected.decision)


# -- sweeps that end in a decision


def test_a_sweep_ends_in_a_decision_that_takes_its_share_of_the_epochs_and_is_had_once() -> None:
    states: list[Any] = []
    watching = Watching(lambda progress: progress.deciding and not states and states.append(ended_state()))
    executor = MadeUp(dropout_helps)
    outcome = swept(executor, observer=watching, decide=1.5)
    decision = outcome.decision
    assert decision == stored()
    assert decision is not None
    assert decision.replicates >= 4
    assert decision.epochs <= 1.5 * outcome.trial_epochs
    assert len(executor.submitted) == outcome.complete + decision.trainings
    assert not outcome.stopped
    assert (states, ended_state()) == ([None], "FINISHED")
    assert {one.candidate.key for one in decision.candidates if one.candidate.control} <= {
        *("c-none", "c-early_stopping", "c-dropout", "c-l2")  # what the sweep is about
    }
    again = MadeUp(dropout_helps)
    assert swept(again, decide=1.5).decision == decision
    assert again.submitted == []


def test_a_sweep_that_is_stopped_while_it_decides_resumes_there_and_concludes_the_same() -> None:
    expected = what_repeats(swept(decide=1.5).decision)
    shutil.rmtree("mlruns")
    for done in (0, 5):
        watching, stop = stopping_after(done)
        outcome = swept(observer=watching, stop=stop, decide=1.5)
        assert (outcome.stopped, ended_state(), outcome.interrupted) == (True, "KILLED", 1)
    outcome = swept(decide=1.5)
    assert (outcome.stopped, ended_state()) == (False, "FINISHED")
    assert what_repeats(outcome.decision) == expected


def test_a_sweep_that_shall_not_decide_or_was_stopped_does_not() -> None:
    stop = threading.Event()
    assert swept(decide=False).decision is None
    watching = Watching(lambda progress: progress.complete == 3 and stop.set())
    assert swept(observer=watching, stop=stop, fresh=True, decide=True).decision is None
    assert replicates() == []


@pytest.mark.slow
def test_real_replicates_are_measured_in_all_their_figures() -> None:
    outcome = run_sweep(
        spec(controls=False, run_cap=2, decide=10, early_stopping={"patience": 0}),
        workers=2,
        tracker=Untracked,
    )
    decision = outcome.decision
    assert decision is not None
    assert decision == stored()
    assert decision.trainings == len(replicates()) >= 8
    for judged in decision.candidates:
        assert set(judged.figures) == {
            *("val_accuracy", "val_cross_entropy", "generalization_gap", "ece", "brier"),
            *("epochs", "epoch_seconds", "l2_norm", "sparsity", "prunable"),
        }
