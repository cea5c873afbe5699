"""Samplers and pruners: Optuna's own, undisturbed by what stands in the study beside the search."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, CmaEsSampler, QMCSampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from specs import spec_of

from regtune.config.sweepfile.groups import PrunerSpec
from regtune.errors import SpecError
from regtune.search import Space
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
SEED = 7
Sampled = Callable[[int], BaseSampler]
"""The sampler of a trial, by its number."""
STOCK: dict[str, Callable[[], BaseSampler]] = {
    "tpe": lambda: TPESampler(seed=SEED),
    "tpe, conditional": lambda: TPESampler(seed=SEED, group=True),
    "random": lambda: RandomSampler(seed=SEED),
    "cmaes": lambda: CmaEsSampler(seed=SEED, warn_independent_sampling=False),
    "qmc": lambda: QMCSampler(seed=SEED, scramble=True, warn_independent_sampling=False),
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(optuna.logging.INFO)


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
    history = history or History(space)
    proposals = []
    for number in range(
        storage.get_n_trials(storage.study_id), storage.get_n_trials(storage.study_id) + count
    ):
        shown = propose(storage, space, sampler(number), history)
        through(storage).tell(number, value_of(shown))
        proposals.append(shown)
    return proposals


def one(sampler: BaseSampler) -> Sampled:
    return lambda number: sampler


def stock(sampler: BaseSampler, space: Space, count: int) -> list[Any]:
    """What Optuna proposes by itself."""
    study, proposals = optuna.create_study(sampler=sampler), []
    for _ in range(count):
        trial = study.ask()
        proposals.append(dict(space.suggest(trial)))
        study.tell(trial, value_of(proposals[-1]))
    return proposals


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("kind", list(STOCK))
def test_with_nothing_beside_the_search_proposals_are_those_of_stock_optuna(kind: str) -> None:
    method, _, conditional = kind.partition(", ")
    spec = spec_of(CONDITIONAL if conditional else FLAT, method=method, seed=SEED)
    space = Space(spec)
    ours = run(study_of(), space, 40, one(make_sampler(spec, space, SEED)))
    assert ours == stock(STOCK[kind](), space, 40)


def with_strangers(storage: StudyInMemory) -> StudyInMemory:
    """The same with what a study may hold beside the search: controls, another program's trials, failures."""
    strange = {"dropout": FloatDistribution(0, 0.6), "foreign": FloatDistribution(0, 1)}
    for trial in (
        *(create_trial(state=TrialState.COMPLETE, value=-1.0) for _ in range(12)),
        create_trial(value=-2.0, params={"dropout": 0.5, "foreign": 1.0}, distributions=strange),
        create_trial(
            value=-2.0, params={"dropout": 0.1}, distributions={"dropout": FloatDistribution(0, 0.2)}
        ),
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
    spec = spec_of(parameters, method=method, seed=SEED)
    space = Space(spec)
    alone, beside = (one(make_sampler(spec, space, SEED)) for _ in range(2))
    assert run(with_strangers(study_of()), space, 30, beside) == run(study_of(), space, 30, alone)


@pytest.mark.parametrize("method", ["tpe", "cmaes"])
def test_methods_that_learn_come_near_the_best_although_controls_stand_beside(method: str) -> None:
    spec = spec_of({name: FLAT[name] for name in ("dropout", "l1")}, method=method)
    space = Space(spec)
    proposals = run(
        with_strangers(study_of()), space, 80, lambda number: make_sampler(spec, space, 1000 + number)
    )
    best = value_of({"dropout": 0.3, "l1": 0.0})
    median = sorted(value_of(shown) - best for shown in proposals[-20:])[10]
    assert median < 0.15**2 / 3  # half of all blind draws from 0 to 0.6 are more than 0.15 away from 0.3


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("random", FLAT), ("cmaes", FLAT), ("qmc", FLAT), ("tpe", FLAT), ("tpe", CONDITIONAL)],
)
def test_a_study_taken_up_by_another_process_goes_on_as_if_it_had_not_stopped(
    method: str, parameters: dict[str, Any]
) -> None:
    spec = spec_of(parameters, method=method)
    space = Space(spec)

    def fresh(number: int) -> BaseSampler:
        return make_sampler(spec, Space(spec), 100 + number)

    whole, first = study_of(), study_of()
    proposals = run(whole, space, 24, fresh)
    parts = run(first, space, 13, fresh)
    second = StudyInMemory(first.backend, first.study_id, first.get_all_trials(first.study_id))
    assert [*parts, *run(second, space, 11, fresh)] == proposals


def test_qmc_walks_one_sequence_however_many_samplers_there_are() -> None:
    spec = spec_of(FLAT, method="qmc", seed=SEED)
    space = Space(spec)
    walked = run(study_of(), space, 20, lambda number: make_sampler(spec, space, 500 + number))
    straight = run(study_of(), space, 20, one(make_sampler(spec, space, 500)))
    assert walked[1:] == straight[1:]  # the first is drawn at random, the rest is the sequence
    quarters = [int(shown["dropout"] / 0.6 * 4) for shown in walked[1:17]]
    assert min(map(quarters.count, range(4))) >= 3  # Sobol: even over quarters, up to where it starts


@pytest.mark.parametrize("method", ["tpe", "qmc", "cmaes"])
def test_several_trials_at_once_are_proposed_each_for_itself(method: str) -> None:
    spec = spec_of(FLAT, method=method)
    space, storage = Space(spec), with_strangers(study_of())
    run(storage, space, 15, lambda number: make_sampler(spec, space, number))
    history = History(space)
    shown = [propose(storage, space, make_sampler(spec, space, 900 + n), history) for n in range(6)]
    assert len({tuple(found.items()) for found in shown}) == 6


def test_a_grid_is_walked_by_the_space_not_by_a_sampler() -> None:
    spec = spec_of({"dropout": {"values": [0.0, 0.2]}}, method="grid")
    assert isinstance(make_sampler(spec, Space(spec), 1), RandomSampler)


def test_gp_is_optunas_where_torch_is_and_refused_by_name_where_it_is_not() -> None:
    numbers = {name: FLAT[name] for name in ("dropout", "l1")}
    spec = spec_of(numbers, method="gp", seed=SEED)
    space = Space(spec)
    if find_spec("torch") is None:
        with pytest.raises(SpecError, match=r'method: gp needs torch, .*pip install "regtune\[gp\]"'):
            make_sampler(spec, space, SEED)
        return
    from optuna.samplers import GPSampler

    ours = run(study_of(), space, 14, one(make_sampler(spec, space, SEED)))
    assert ours == stock(GPSampler(seed=SEED, warn_independent_sampling=False), space, 14)
    assert run(with_strangers(study_of()), space, 14, one(make_sampler(spec, space, SEED))) == ours


# -- pruners


def pruner_of(max_epochs: int = 27, **given: Any) -> optuna.pruners.BasePruner:
    spec = spec_of(
        {"dropout": {"values": [0, 0.2]}}, early_terminate=given or None, training={"max_epochs": max_epochs}
    )
    return make_pruner(spec, max_epochs)


def ended_at(pruner: optuna.pruners.BasePruner, curves: list[list[float]]) -> list[int | None]:
    """At which epoch, counted from 1, each of these trials is ended; None for never."""
    study = optuna.create_study(pruner=pruner, study_name="x")
    found: list[int | None] = []
    for curve in curves:
        trial = study.ask()
        end = None
        for epoch, value in enumerate(curve, start=1):
            trial.report(value, epoch)
            if trial.should_prune():
                end = epoch
                break
        study.tell(
            trial, curve[-1] if end is None else None, state=TrialState.PRUNED if end else TrialState.COMPLETE
        )
        found.append(end)
    return found


def test_no_pruner_ends_nothing() -> None:
    assert isinstance(pruner_of(), NopPruner)
    assert ended_at(pruner_of(), [[1.0] * 5, [9.0] * 5]) == [None, None]


def test_median_ends_a_bad_trial_at_min_iter_and_not_before_its_startup_trials() -> None:
    for first in (1, 3, 7):
        pruner = pruner_of(type="median", min_iter=first, startup_trials=2)
        assert isinstance(pruner, MedianPruner)
        assert ended_at(pruner, [[1.0] * 9, [1.0] * 9, [2.0] * 9, [0.5] * 9]) == [None, None, first, None]
    assert ended_at(pruner_of(type="median"), [[1.0] * 3] * 5 + [[2.0] * 3]) == [None] * 5 + [1]
    assert ended_at(pruner_of(type="median", startup_trials=1), [[1.0] * 3, [2.0] * 3]) == [None, 1]


def test_successive_halving_lets_the_best_third_pass_each_rung_of_min_iter_times_eta():
    pruner = pruner_of(type="successive_halving", min_iter=2, eta=3)
    assert isinstance(pruner, SuccessiveHalvingPruner)
    # Each trial is better than all before it, so it passes; each worse one ends at the rung where that shows.
    assert ended_at(pruner, [[3.0] * 20, [2.0] * 20, [1.0] * 20]) == [None, None, None]
    assert ended_at(pruner, [[1.0] * 20, [2.0] * 20]) == [None, 2]
    late = [1.0] * 5 + [9.0] * 15  # good at epoch 2, bad at epoch 6
    assert ended_at(pruner, [[1.5] * 20, [1.4] * 20, [1.3] * 20, late]) == [None, None, None, 6]


@pytest.mark.parametrize(
    ("given", "rungs"),
    [
        ({"min_iter": 1}, (1, 3, 9, 27)),
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
    pruner = pruner_of(type="hyperband", **given)
    assert isinstance(pruner, HyperbandPruner)
    ends = ended_at(pruner, [[float(number)] * 28 for number in range(150)])
    assert set(ends) - {None} == set(rungs)
    assert PrunerSpec(type="hyperband", **given).brackets(27) == rungs


def test_hyperband_has_one_bracket_beyond_the_last_epoch_and_takes_the_most_that_is_searched() -> None:
    ends = ended_at(pruner_of(type="hyperband", min_iter=99), [[float(number)] * 27 for number in range(40)])
    assert set(ends) == {None, 27}
    hyperband = {"type": "hyperband", "min_iter": 1}
    spec = spec_of({"max_epochs": {"values": [5, 81]}}, early_terminate=hyperband)
    ends = ended_at(make_pruner(spec), [[float(number)] * 81 for number in range(300)])
    assert set(ends) - {None} == {1, 3, 9, 27, 81}


# -- a bounded history


@pytest.mark.parametrize("parameters", [FLAT, CONDITIONAL], ids=["flat", "conditional"])
def test_up_to_its_bound_a_history_changes_no_proposal(parameters: dict[str, Any]) -> None:
    spec = spec_of(parameters)
    space = Space(spec)

    def fresh(number: int) -> BaseSampler:
        return make_sampler(spec, space, number)

    bounded = run(study_of(), space, 40, fresh, History(space, 10, 20))
    whole = run(study_of(), space, 40, fresh, History(space, None))
    assert bounded[:31] == whole[:31]
    assert bounded[31:] != whole[31:]


def ended(space: Space, count: int, direction: str, states: Iterable[TrialState]) -> list[FrozenTrial]:
    """Trials of `space` by chance, with ties and figures that are no numbers, the last two running."""
    storage, kinds = study_of(direction), list(states)
    for number in range(count):
        propose(storage, space, RandomSampler(seed=number), History(space))
        value = round(number * 0.37 % 1, 2)
        for step in range(1, 2 + number % 3):
            storage.set_trial_intermediate_value(number, step, value if number % 11 else float("nan"))
        if number < count - 2:
            state = kinds[number % len(kinds)]
            through(storage).tell(number, value if state is TrialState.COMPLETE else None, state=state)
    return storage.get_all_trials(storage.study_id)


MIXED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE, TrialState.FAIL)


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("states", [MIXED, (TrialState.PRUNED,)], ids=["mixed", "pruned"])
def test_a_bounded_history_has_the_best_trials_and_the_latest(
    direction: str, states: tuple[TrialState, ...]
) -> None:
    """The best: complete ones by value, then pruned ones, the longer trained first (Optuna's order for TPE)."""
    space = Space(spec_of(CONDITIONAL))
    trials = ended(space, 200, direction, states)
    history = History(space, 20, 30)
    for count in (0, 100, 101, 199):
        history.shown(trials[:count], StudyDirection[direction.upper()])
    shown = history.shown(trials, StudyDirection[direction.upper()])
    assert shown == sorted(shown)
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
