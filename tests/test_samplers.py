"""Samplers and pruners: Optuna's own, undisturbed by what stands in the study beside the search."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.pruners import BasePruner, HyperbandPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from specs import spec_of

from regtune.config.sweepfile import SweepSpec
from regtune.config.sweepfile.groups import PrunerSpec
from regtune.errors import SpecError
from regtune.search import Space
from regtune.search.halving import RUNGS
from regtune.search.memory import Draft, StudyInMemory
from regtune.search.samplers import History, make_pruner, make_sampler

FLAT = {
    "dropout": {"min": 0.0, "max": 0.6},
    "l1": {"distribution": "log_uniform_values", "min": 1e-7, "max": 1e-3},
    "batch_size": {"min": 16, "max": 128, "q": 16},
    "batchnorm": {"values": ["none", "before_activation", "after_activation"]},
}
CONDITIONAL = {
    **{"dropout": FLAT["dropout"], "l1": {**FLAT["l1"], "optional": True}},
    "batchnorm": {"values": ["none", "before_activation"]},
    "l2": {"min": 0.0, "max": 0.1, "when": {"batchnorm": "none"}},
}
NUMBERS = {name: FLAT[name] for name in ("dropout", "l1")}
SEED = 7
Sampled = Callable[[int], BaseSampler]
"""The sampler of a trial, by its number."""


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def space_of(parameters: dict[str, Any], method: str = "tpe") -> Space:
    return Space(spec_of(parameters, method=method, seed=SEED))


def value_of(shown: dict[str, Any]) -> float:
    """A smooth objective with its best at dropout 0.3 and little L1; lists and steps matter a little."""
    steps = {"none": 0.02, "before_activation": 0.0, "after_activation": 0.01}
    return (
        (shown.get("dropout", 0.0) - 0.3) ** 2
        + 100 * shown.get("l1", 0.0)
        + shown.get("l2", 0.0)
        + shown.get("batch_size", 16) / 1000
        + steps[shown.get("batchnorm", "none")]
    )


def study_of(direction: str = "minimize") -> StudyInMemory:
    """An empty study in memory."""
    memory = InMemoryStorage()
    return StudyInMemory(memory, memory.create_new_study([StudyDirection[direction.upper()]], "x"))


def through(storage: StudyInMemory) -> optuna.Study:
    return optuna.load_study(study_name="x", storage=storage)


def propose(storage: StudyInMemory, space: Space, sampler: BaseSampler, history: History) -> dict[str, Any]:
    """Start the next trial as a coordinator does, and return what it has been given."""
    study = through(storage)
    draft = Draft(storage, history.shown(study.get_trials(deepcopy=False), study.direction), sampler)
    shown = dict(space.suggest(draft.trial))
    storage.keep(draft.proposed)
    return shown


def run(
    storage: StudyInMemory, space: Space, count: int, sampler: Sampled, history: History | None = None
) -> list[dict[str, Any]]:
    """Propose and tell `count` trials."""
    history, first = history or History(space), storage.get_n_trials(storage.study_id)
    proposals = []
    for number in range(first, first + count):
        proposals.append(propose(storage, space, sampler(number), history))
        through(storage).tell(number, value_of(proposals[-1]))
    return proposals


def one(space: Space) -> Sampled:
    sampler = make_sampler(space, SEED)
    return lambda number: sampler


def fresh(space: Space) -> Sampled:
    return lambda number: make_sampler(space, 100 + number)


STOCK: dict[str, Callable[[], BaseSampler]] = {
    "tpe": lambda: TPESampler(seed=SEED),
    "tpe, conditional": lambda: TPESampler(seed=SEED, group=True),
    "random": lambda: RandomSampler(seed=SEED),
    "cmaes": lambda: CmaEsSampler(seed=SEED, warn_independent_sampling=False),
    "qmc": lambda: QMCSampler(seed=SEED, scramble=True, warn_independent_sampling=False),
}


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("kind", list(STOCK))
def test_with_nothing_beside_the_search_proposals_are_those_of_stock_optuna(kind: str) -> None:
    method, _, conditional = kind.partition(", ")
    space = space_of(CONDITIONAL if conditional else FLAT, method)
    study, stock = optuna.create_study(sampler=STOCK[kind]()), list[dict[str, Any]]()
    for _ in range(40):
        trial = study.ask()
        stock.append(dict(space.suggest(trial)))
        study.tell(trial, value_of(stock[-1]))
    assert run(study_of(), space, 40, one(space)) == stock


def with_strangers(storage: StudyInMemory) -> StudyInMemory:
    """The same with what a study may hold beside the search: controls, another program's trials, failures."""
    strange = {"dropout": FloatDistribution(0, 0.6), "foreign": FloatDistribution(0, 1)}
    narrow = {"dropout": FloatDistribution(0, 0.2)}
    for trial in (
        *(create_trial(state=TrialState.COMPLETE, value=-1.0) for _ in range(12)),
        create_trial(value=-2.0, params={"dropout": 0.5, "foreign": 1.0}, distributions=strange),
        create_trial(value=-2.0, params={"dropout": 0.1}, distributions=narrow),
        create_trial(state=TrialState.FAIL),
        create_trial(state=TrialState.PRUNED, intermediate_values={1: 0.5}),
    ):
        storage.create_new_trial(storage.study_id, trial)
    return storage


@pytest.mark.parametrize(
    ("method", "parameters"), [("random", FLAT), ("qmc", FLAT), ("tpe", FLAT), ("tpe", CONDITIONAL)]
)
def test_controls_foreign_trials_and_failures_change_no_proposal(
    method: str, parameters: dict[str, Any]
) -> None:
    """CMA-ES adds the trial's number to its seed, so its draws differ; that it learns is tested below."""
    space = space_of(parameters, method)
    beside = run(with_strangers(study_of()), space, 30, one(space))
    assert beside == run(study_of(), space, 30, one(space))


@pytest.mark.parametrize("method", ["tpe", "cmaes"])
def test_methods_that_learn_come_near_the_best_although_controls_stand_beside(method: str) -> None:
    space = space_of(NUMBERS, method)
    proposals = run(with_strangers(study_of()), space, 80, fresh(space))
    best = value_of({"dropout": 0.3, "l1": 0.0})
    median = sorted(value_of(shown) - best for shown in proposals[-20:])[10]
    assert median < 0.15**2 / 3  # half of all blind draws from 0 to 0.6 are more than 0.15 away from 0.3


@pytest.mark.parametrize(
    ("method", "parameters"), [("random", FLAT), ("cmaes", FLAT), ("qmc", FLAT), ("tpe", CONDITIONAL)]
)
def test_a_study_taken_up_by_another_process_goes_on_as_if_it_had_not_stopped(
    method: str, parameters: dict[str, Any]
) -> None:
    space, first = space_of(parameters, method), study_of()
    proposals = run(study_of(), space, 24, fresh(space))
    parts = run(first, space, 13, fresh(space))
    second = StudyInMemory(first.backend, first.study_id, first.get_all_trials(first.study_id))
    assert [*parts, *run(second, space, 11, fresh(space))] == proposals


def test_qmc_walks_one_sequence_however_many_samplers_there_are() -> None:
    space = space_of(FLAT, "qmc")
    walked = run(study_of(), space, 20, fresh(space))
    straight = run(study_of(), space, 20, one(space))
    assert walked[1:] == straight[1:]  # the first is drawn at random, the rest is the sequence


@pytest.mark.parametrize("method", ["tpe", "qmc", "cmaes"])
def test_several_trials_at_once_are_proposed_each_for_itself(method: str) -> None:
    space, storage = space_of(FLAT, method), with_strangers(study_of())
    run(storage, space, 15, fresh(space))
    history = History(space)
    shown = [propose(storage, space, make_sampler(space, 900 + n), history) for n in range(6)]
    assert len({tuple(found.items()) for found in shown}) == 6


def test_gp_is_optunas_where_torch_is_and_refused_by_name_where_it_is_not() -> None:
    space = space_of(NUMBERS, "gp")
    if find_spec("torch"):
        assert isinstance(make_sampler(space, SEED), GPSampler)
        return
    with pytest.raises(SpecError, match=r'method: gp needs torch, .*pip install "regtune\[gp\]"'):
        make_sampler(space, SEED)


# -- pruners


def pruned_by(**given: Any) -> SweepSpec:
    return spec_of(FLAT, early_terminate=given or None, training={"max_epochs": 27})


def ended_at(spec: SweepSpec, curves: list[list[float]]) -> list[int | None]:
    """At which epoch, counted from 1, each of these trials is ended; None for never."""
    storage = study_of()
    study = through(storage)
    study.pruner = make_pruner(spec, storage.set_trial_user_attr)
    return [pruned(study, curve)[0] for curve in curves]


def pruned(study: optuna.Study, curve: list[float], first: int = 1) -> tuple[int | None, FrozenTrial]:
    """At which epoch a trial with this curve is ended, asked from epoch `first` on, and that trial."""
    trial = study.ask()
    end = None
    for epoch, value in enumerate(curve, start=1):
        trial.report(value, epoch)
        now = study.get_trials(deepcopy=False)[trial.number]
        if epoch >= first and study.pruner.prune(study, now):
            end = epoch
            break
    state = TrialState.PRUNED if end else TrialState.COMPLETE
    told = study.tell(trial, None if end else 0.0, state=state)
    return end, told


def worse(count: int, epochs: int) -> list[list[float]]:
    """Curves each of which is worse than all before it."""
    return [[float(number)] * epochs for number in range(count)]


def test_median_ends_a_bad_trial_at_min_iter_and_not_before_its_startup_trials() -> None:
    for first in (1, 3, 7):
        spec = pruned_by(type="median", min_iter=first, startup_trials=2)
        assert ended_at(spec, [[1.0] * 9, [1.0] * 9, [2.0] * 9, [0.5] * 9]) == [None, None, first, None]
    curves = [[1.0] * 3] * 5 + [[2.0] * 3]
    assert ended_at(pruned_by(type="median"), curves) == [None] * 5 + [1]
    assert ended_at(pruned_by(), curves) == [None] * 6  # without a pruner


def test_successive_halving_lets_the_best_third_pass_each_rung_of_min_iter_times_eta() -> None:
    spec = pruned_by(type="successive_halving", min_iter=2, eta=3)
    # Each trial is better than all before it, so it passes; each worse one ends at the rung where that shows.
    assert ended_at(spec, [[3.0] * 20, [2.0] * 20, [1.0] * 20]) == [None, None, None]
    assert ended_at(spec, [[1.0] * 20, [2.0] * 20]) == [None, 2]
    late = [1.0] * 5 + [9.0] * 15  # good at epoch 2, bad at epoch 6
    assert ended_at(spec, [[1.5] * 20, [1.4] * 20, [1.3] * 20, late]) == [None, None, None, 6]


def test_no_rung_stands_beyond_max_iter() -> None:
    late = [1.0] * 9 + [99.0] * 18  # good until epoch 9
    curves = [*([float(10 - number)] * 27 for number in range(5)), late]
    for given, end in (({"min_iter": 3}, 27), ({"max_iter": 9, "s": 1}, None)):
        assert ended_at(pruned_by(type="successive_halving", **given), curves)[-1] == end
    assert ended_at(pruned_by(type="successive_halving", max_iter=27, s=2), worse(3, 28)) == [None, 3, 3]


def test_a_trial_whose_coordinator_was_killed_at_a_rung_is_judged_there_again() -> None:
    spec, storage = pruned_by(type="successive_halving", min_iter=2), study_of()
    study = through(storage)
    for value, end in ((1.0, False), (2.0, True), (0.5, False)):
        study.pruner = make_pruner(spec, storage.set_trial_user_attr)
        trial = study.ask()
        for epoch in (1, 2):
            trial.report(value, epoch)
        for _ in range(2):  # the second time another process
            now = study.get_trials(deepcopy=False)[trial.number]
            assert study.pruner.prune(study, now) is end
            study.pruner = make_pruner(spec, storage.set_trial_user_attr)
        assert study.get_trials(deepcopy=False)[trial.number].user_attrs[RUNGS] == [value]


@pytest.mark.parametrize(
    ("given", "rungs"),
    [
        ({"min_iter": 2}, (2, 6, 18)),
        ({"min_iter": 3, "eta": 2}, (3, 6, 12, 24)),
        ({"max_iter": 27, "s": 2}, (3, 9, 27)),
        ({"min_iter": 1, "max_iter": 9}, (1, 3, 9)),
    ],
)
def test_hyperband_has_a_bracket_for_each_rung_that_wandb_documents(
    given: dict[str, Any], rungs: tuple[int, ...]
) -> None:
    """Ever worse trials end at the first rung of their bracket."""
    ends = ended_at(pruned_by(type="hyperband", **given), worse(150, 28))
    assert set(ends) - {None} == set(rungs)
    assert PrunerSpec(type="hyperband", **given).brackets(27) == rungs


def test_hyperband_has_one_bracket_beyond_the_last_epoch_and_takes_the_most_that_is_searched() -> None:
    assert set(ended_at(pruned_by(type="hyperband", min_iter=99), worse(40, 27))) == {None, 27}
    hyperband = {"type": "hyperband", "min_iter": 1}
    spec = spec_of({"max_epochs": {"values": [5, 81]}}, early_terminate=hyperband)
    assert set(ended_at(spec, worse(300, 81))) - {None} == {1, 3, 9, 27, 81}


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize(
    ("given", "peer"),
    [
        ({"type": "hyperband", "min_iter": 2}, HyperbandPruner(2, 27, 3)),
        ({"type": "hyperband", "min_iter": 1, "eta": 2}, HyperbandPruner(1, 27, 2)),
        ({"type": "successive_halving", "min_iter": 2}, SuccessiveHalvingPruner(2, 3)),
    ],
)
def test_halving_decides_and_marks_as_optunas_pruners_also_when_a_study_is_resumed(
    given: dict[str, Any], peer: BasePruner, direction: str
) -> None:
    dice, spec = np.random.default_rng(SEED), pruned_by(**given)
    ours, theirs = study_of(direction), study_of(direction)
    study, beside = through(ours), through(theirs)
    beside.pruner = peer
    ends = set()
    for number in range(400):
        if number % 150 == 0:
            study.pruner = make_pruner(spec, ours.set_trial_user_attr)
        curve = [float("nan") if value > 2.2 else round(value, 1) for value in dice.normal(size=27)]
        first = (
            int(dice.integers(1, 10)) if number % 3 else 1
        )  # from there on, several rungs may be reached at once
        (end, trial), (expected, peers) = pruned(study, curve, first), pruned(beside, curve, first)
        marks = [value for key, value in peers.system_attrs.items() if key.startswith("completed_rung_")]
        assert (end, trial.user_attrs.get(RUNGS, [])) == (expected, marks)
        ends.add(end)
    assert len(ends) > 3


# -- a bounded history


@pytest.mark.parametrize("parameters", [FLAT, CONDITIONAL], ids=["flat", "conditional"])
def test_up_to_its_bound_a_history_changes_no_proposal(parameters: dict[str, Any]) -> None:
    space = space_of(parameters)
    bounded = run(study_of(), space, 40, fresh(space), History(space, 10, 20))
    whole = run(study_of(), space, 40, fresh(space), History(space, None))
    assert bounded[:31] == whole[:31]
    assert bounded[31:] != whole[31:]


MIXED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE, TrialState.FAIL)


def ended(space: Space, count: int, direction: str, states: tuple[TrialState, ...]) -> list[FrozenTrial]:
    """Trials of `space` by chance, with ties and figures that are no numbers, the last two running."""
    storage = study_of(direction)
    for number in range(count):
        propose(storage, space, RandomSampler(seed=number), History(space))
        value = round(number * 0.37 % 1, 2)
        for step in range(1, 2 + number % 3):
            storage.set_trial_intermediate_value(number, step, value if number % 11 else float("nan"))
        if number < count - 2:
            state = states[number % len(states)]
            through(storage).tell(number, value if state is TrialState.COMPLETE else None, state=state)
    return storage.get_all_trials(storage.study_id)


@pytest.mark.parametrize(("direction", "states"), [("minimize", MIXED), ("maximize", MIXED[1:2])])
def test_a_bounded_history_has_the_best_trials_and_the_latest(
    direction: str, states: tuple[TrialState, ...]
) -> None:
    """The best: complete ones by value, then pruned ones, the longer trained first (Optuna's order for TPE)."""
    space = space_of(CONDITIONAL)
    trials = ended(space, 200, direction, states)
    history = History(space, 20, 30)
    for count in (0, 100, 101, 199):
        history.shown(trials[:count], StudyDirection[direction.upper()])
    shown = history.shown(trials, StudyDirection[direction.upper()])
    told = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    sign = 1 if direction == "minimize" else -1

    def goodness(trial: FrozenTrial) -> tuple[Any, ...]:
        if trial.state is TrialState.COMPLETE:
            return 0, sign * (trial.value or 0.0)
        last = max(trial.intermediate_values)
        value = trial.intermediate_values[last]
        return 1, -last, float("inf") if value != value else sign * value

    best = sorted(told, key=goodness)[:20]
    latest = [trial for trial in told if trial not in best][-30:]
    assert shown == sorted([*best, *latest, *trials[-2:]])
