"""Samplers and pruners: Optuna's own, undisturbed by what stands in the study beside the search."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, CmaEsSampler, QMCSampler, RandomSampler, TPESampler
from optuna.samplers._tpe.sampler import _split_trials, default_gamma
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from specs import spec_of

from regtune.config.sweepfile import SweepSpec
from regtune.errors import SpecError
from regtune.search import Space
from regtune.search.history import OfTheSpace
from regtune.search.samplers import BEST, History, make_pruner, make_sampler
from regtune.search.tpe import TPE
from regtune.study.trial_cache import Ledger

FLAT = {
    "dropout": {"min": 0.0, "max": 0.6},
    "l1": {"distribution": "log_uniform_values", "min": 1e-7, "max": 1e-3},
    "batch_size": {"min": 16, "max": 128, "q": 16},
    "batchnorm": {"values": ["none", "before_activation", "after_activation"]},
}
CONDITIONAL = {
    "dropout": {"min": 0.0, "max": 0.6},
    "l1": {"distribution": "log_uniform_values", "min": 1e-7, "max": 1e-3, "optional": True},
    "batchnorm": {"values": ["none", "before_activation"]},
    "l2": {"min": 0.0, "max": 0.1, "when": {"batchnorm": "none"}},
}
SEED = 7
STOCK: dict[str, Callable[[], BaseSampler]] = {
    "tpe": lambda: TPESampler(seed=SEED),
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


def run(
    study: optuna.Study, space: Space, count: int, fresh: Callable[[int], BaseSampler] | None = None
) -> list[Any]:
    """Ask, suggest and tell `count` times, with a sampler of its own for each ask if `fresh` is given."""
    proposals = []
    for _ in range(count):
        if fresh is not None:
            study.sampler = fresh(len(study.trials))
        trial = study.ask()
        shown = space.suggest(trial)
        proposals.append(shown)
        study.tell(trial, value_of(shown))
    return proposals


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("method", list(STOCK))
def test_with_nothing_beside_the_search_proposals_are_those_of_stock_optuna(method):
    spec = spec_of(FLAT, method=method, seed=SEED)
    space = Space(spec)
    ours = run(optuna.create_study(sampler=make_sampler(spec, space, SEED)), space, 40)
    stock = run(optuna.create_study(sampler=STOCK[method]()), space, 40)
    assert ours == stock


@pytest.mark.parametrize("method", ["tpe", "random"])
def test_a_conditional_space_is_proposed_as_stock_optuna_does(method):
    spec = spec_of(CONDITIONAL, method=method)
    space = Space(spec)
    ours = run(optuna.create_study(sampler=make_sampler(spec, space, SEED)), space, 40)
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        sampler = TPESampler(seed=SEED, group=True)
    stock = run(
        optuna.create_study(sampler=sampler if method == "tpe" else RandomSampler(seed=SEED)), space, 40
    )
    assert ours == stock


def with_strangers(study: optuna.Study) -> None:
    """What a study may hold beside the search: controls without parameters, another program's trials, failures."""
    for _ in range(12):
        study.add_trial(create_trial(state=TrialState.COMPLETE, value=-1.0))
    study.add_trial(
        create_trial(
            state=TrialState.COMPLETE,
            value=-2.0,
            params={"dropout": 0.5, "foreign": 1.0},
            distributions={"dropout": FloatDistribution(0, 0.6), "foreign": FloatDistribution(0, 1)},
        )
    )
    study.add_trial(
        create_trial(
            state=TrialState.COMPLETE,
            value=-2.0,
            params={"dropout": 0.1},
            distributions={"dropout": FloatDistribution(0, 0.2)},
        )
    )
    study.add_trial(create_trial(state=TrialState.FAIL))
    study.add_trial(create_trial(state=TrialState.PRUNED, intermediate_values={1: 0.5}))


@pytest.mark.parametrize("method", list(STOCK))
def test_controls_foreign_trials_and_failures_change_no_proposal(method):
    spec = spec_of(FLAT, method=method, seed=SEED)
    space = Space(spec)
    alone, beside = optuna.create_study(), optuna.create_study()
    with_strangers(beside)
    alone.sampler, beside.sampler = make_sampler(spec, space, SEED), make_sampler(spec, space, SEED)
    if (
        method == "cmaes"
    ):  # it adds the trial's number to its seed, so its draws differ; that it learns is tested below
        assert len(run(beside, space, 20)) == 20
        return
    assert run(beside, space, 30) == run(alone, space, 30)


def test_strangers_change_no_proposal_in_a_conditional_space():
    spec = spec_of(CONDITIONAL)
    space = Space(spec)
    alone, beside = optuna.create_study(), optuna.create_study()
    with_strangers(beside)
    alone.sampler, beside.sampler = make_sampler(spec, space, SEED), make_sampler(spec, space, SEED)
    assert run(beside, space, 30) == run(alone, space, 30)


@pytest.mark.parametrize("method", ["tpe", "cmaes"])
def test_methods_that_learn_come_near_the_best_although_controls_stand_beside(method):
    spec = spec_of({name: FLAT[name] for name in ("dropout", "l1")}, method=method)
    space = Space(spec)
    study = optuna.create_study(storage="sqlite://")
    with_strangers(study)
    proposals = run(study, space, 80, lambda number: make_sampler(spec, space, 1000 + number))
    best = value_of({"dropout": 0.3, "l1": 0.0})
    median = sorted(value_of(shown) - best for shown in proposals[-20:])[10]
    assert median < 0.15**2 / 3  # half of all blind draws from 0 to 0.6 are more than 0.15 away from 0.3


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("random", FLAT), ("cmaes", FLAT), ("qmc", FLAT), ("tpe", FLAT), ("tpe", CONDITIONAL)],
    ids=["random", "cmaes", "qmc", "tpe-flat", "tpe-conditional"],
)
def test_a_study_taken_up_by_another_process_goes_on_as_if_it_had_not_stopped(tmp_path, method, parameters):
    spec = spec_of(parameters, method=method)
    space = Space(spec)

    def fresh(number: int) -> BaseSampler:
        return make_sampler(spec, Space(spec), 100 + number)

    whole = optuna.create_study(storage=f"sqlite:///{tmp_path}/whole.db", study_name="x")
    proposals = run(whole, space, 24, fresh)
    url = f"sqlite:///{tmp_path}/parts.db"
    parts = run(optuna.create_study(storage=url, study_name="x"), space, 13, fresh)
    parts += run(optuna.load_study(storage=url, study_name="x"), space, 11, fresh)
    assert parts == proposals


def test_qmc_walks_one_sequence_however_many_samplers_there_are():
    spec = spec_of(FLAT, method="qmc", seed=SEED)
    space = Space(spec)
    many = optuna.create_study()
    walked = run(many, space, 20, lambda number: make_sampler(spec, space, 500 + number))
    one = optuna.create_study()
    straight = run(
        one, space, 20, lambda number: make_sampler(spec, space, 500) if number == 0 else one.sampler
    )
    assert walked[1:] == straight[1:]  # the first is drawn at random, the rest is the sequence
    assert len({tuple(shown.items()) for shown in walked}) == 20
    thirds = [int(shown["dropout"] / 0.6 * 4) for shown in walked[1:17]]
    assert all(
        thirds.count(quarter) >= 3 for quarter in range(4)
    )  # Sobol: even over quarters, up to where it starts


def test_cmaes_takes_up_its_optimizer_from_the_database(tmp_path):
    spec = spec_of({name: FLAT[name] for name in ("dropout", "l1")}, method="cmaes")
    space = Space(spec)
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/x.db")
    run(study, space, 30, lambda number: make_sampler(spec, space, number))
    generations = [trial.system_attrs.get("cma:generation") for trial in study.trials[1:]]
    assert generations == sorted(generations)
    assert max(generations) >= 4  # 6 trials a generation in two dimensions: 4 + floor(3 ln 2)
    assert any(key.startswith("cma:optimizer") for trial in study.trials for key in trial.system_attrs)


@pytest.mark.parametrize("method", ["tpe", "qmc", "cmaes"])
def test_several_trials_at_once_are_proposed_each_for_itself(method):
    spec = spec_of(FLAT, method=method)
    space = Space(spec)
    study = optuna.create_study()
    with_strangers(study)
    run(study, space, 15, lambda number: make_sampler(spec, space, number))
    shown = []
    for number in range(6):
        study.sampler = make_sampler(spec, space, 900 + number)
        shown.append(space.suggest(study.ask()))
    assert len({tuple(found.items()) for found in shown}) == 6


@pytest.mark.parametrize("method", ["tpe", "random", "cmaes", "qmc"])
@pytest.mark.parametrize("kind", ["median", "hyperband", "successive_halving"])
def test_every_method_works_under_every_pruner(method, kind):
    given = {"type": kind, "min_iter": 1}
    spec = spec_of(FLAT, method=method, early_terminate=given, training={"max_epochs": 9})
    space = Space(spec)
    study = optuna.create_study(pruner=make_pruner(spec), study_name="x")
    with_strangers(study)
    states = []
    for number in range(40):
        study.sampler = make_sampler(spec, space, number)
        trial = study.ask()
        value = value_of(space.suggest(trial))
        state = TrialState.COMPLETE
        for epoch in range(1, 10):
            trial.report(value + 1 / epoch, epoch)
            if trial.should_prune():
                state = TrialState.PRUNED
                break
        study.tell(trial, value if state == TrialState.COMPLETE else None, state=state)
        states.append(state)
    assert set(states) == {TrialState.PRUNED, TrialState.COMPLETE}


def test_a_grid_is_walked_by_the_space_not_by_a_sampler():
    spec = spec_of({"dropout": {"values": [0.0, 0.2]}}, method="grid")
    assert isinstance(make_sampler(spec, Space(spec), 1), RandomSampler)


def test_gp_is_optunas_where_torch_is_and_refused_by_name_where_it_is_not():
    numbers = {name: FLAT[name] for name in ("dropout", "l1")}
    spec = spec_of(numbers, method="gp", seed=SEED)
    space = Space(spec)
    if find_spec("torch") is None:
        with pytest.raises(SpecError, match=r'method: gp needs torch, .*pip install "regtune\[gp\]"'):
            make_sampler(spec, space, SEED)
        return
    from optuna.samplers import GPSampler

    ours = run(optuna.create_study(sampler=make_sampler(spec, space, SEED)), space, 14)
    stock = run(optuna.create_study(sampler=GPSampler(seed=SEED, warn_independent_sampling=False)), space, 14)
    assert ours == stock
    beside = optuna.create_study(sampler=make_sampler(spec, space, SEED))
    with_strangers(beside)
    assert run(beside, space, 14) == ours


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


def test_no_pruner_ends_nothing():
    assert isinstance(pruner_of(), NopPruner)
    assert ended_at(pruner_of(), [[1.0] * 5, [9.0] * 5]) == [None, None]


@pytest.mark.parametrize("first", [1, 3, 7])
def test_median_ends_a_bad_trial_at_min_iter_and_not_before(first):
    pruner = pruner_of(type="median", min_iter=first, startup_trials=2)
    assert isinstance(pruner, MedianPruner)
    assert ended_at(pruner, [[1.0] * 9, [1.0] * 9, [2.0] * 9, [0.5] * 9]) == [None, None, first, None]


def test_median_waits_for_its_startup_trials():
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
    ("given", "first", "brackets"),
    [
        ({"min_iter": 1}, 1, 4),
        ({"min_iter": 2}, 2, 3),
        ({"min_iter": 3, "eta": 2}, 3, 4),
        ({"max_iter": 27, "s": 2}, 3, 3),
        ({"min_iter": 1, "max_iter": 9}, 1, 3),
        ({"min_iter": 99}, 27, 1),
    ],
)
def test_hyperband_has_a_bracket_for_each_rung_from_min_iter_to_the_last_epoch(given, first, brackets):
    pruner = pruner_of(type="hyperband", **given)
    assert isinstance(pruner, HyperbandPruner)
    study = optuna.create_study(pruner=pruner, study_name="x")
    trial = study.ask()
    trial.report(1.0, 1)
    trial.should_prune()
    assert (pruner._min_resource, pruner._n_brackets) == (first, brackets)
    spec = spec_of({"dropout": {"values": [0, 0.2]}}, early_terminate={"type": "hyperband", **given})
    assert spec.early_terminate is not None
    if given.get("min_iter") != 99:
        assert len(spec.early_terminate.brackets(27)) == brackets


def test_hyperband_decides_as_optunas_own():
    """Whatever stands in the study, with several trials at once, and when it is taken up anew."""
    spec = spec_of(FLAT, early_terminate={"type": "hyperband", "min_iter": 1}, training={"max_epochs": 27})
    found = []
    for pruner in (
        lambda: make_pruner(spec),
        lambda: HyperbandPruner(min_resource=1, max_resource=27, reduction_factor=3),
    ):
        study = optuna.create_study(
            study_name="x", sampler=TPESampler(seed=SEED), pruner=pruner(), direction="maximize"
        )
        with_strangers(study)
        dice, ends = random.Random(3), []
        for number in range(50):
            if number == 25:
                study.pruner = pruner()
            trials = [(study.ask(), dice.random()) for _ in range(3)]
            for trial, goal in trials:
                Space(spec).suggest(trial)
                state = TrialState.COMPLETE
                for epoch in range(1, 28):
                    trial.report(dice.choice([goal, goal, math.nan]) if number % 9 == 8 else goal, epoch)
                    if trial.should_prune():
                        state = TrialState.PRUNED
                        break
                study.tell(trial, goal if state is TrialState.COMPLETE else None, state=state)
                ends.append((trial.params, epoch, study.trials[trial.number].system_attrs))
        found.append(ends)
    assert found[0] == found[1]
    assert 30 < sum(epoch < 27 for _, epoch, _ in found[0]) < 150


def test_before_its_first_check_hyperband_has_one_bracket_and_then_optunas():
    study = optuna.create_study(study_name="x", pruner=pruner_of(type="hyperband", min_iter=1))
    for _ in range(20):
        study.add_trial(create_trial(state=TrialState.PRUNED, intermediate_values={1: 0.5}))
    pruner = study.pruner

    def brackets() -> list[list[int]]:
        found = (pruner._create_bracket_study(study, bracket) for bracket in range(4))
        return [[trial.number for trial in bracket.get_trials()] for bracket in found]

    assert brackets() == [list(range(20)), [], [], []]
    study.ask().should_prune()
    asked = study.ask()
    asked.report(1.0, 1)
    asked.should_prune()
    assert brackets() == [
        [trial.number for trial in study.trials if pruner._get_bracket_id(study, trial) == bracket]
        for bracket in range(4)
    ]
    assert sum(map(bool, brackets())) > 1


def test_a_searched_number_of_epochs_gives_the_pruner_its_most():
    spec = SweepSpec.from_dict(
        {
            "run_cap": 99,
            "early_terminate": {"type": "hyperband", "min_iter": 1},
            "parameters": {"max_epochs": {"values": [5, 81]}},
        }
    )
    assert make_pruner(spec)._max_resource == 81


# -- a bounded history


def long_study(count: int, direction: str = "minimize", seed: int = 0) -> optuna.Study:
    """A study of `count` trials of CONDITIONAL by chance: complete, pruned and failed ones, with ties, two running."""
    space = Space(spec_of(CONDITIONAL))
    study = optuna.create_study(direction=direction, sampler=RandomSampler(seed=seed))
    for number in range(count):
        trial = study.ask()
        value = round(value_of(space.suggest(trial)), 2)
        for step in range(1, 2 + number % 3):
            trial.report(value if number % 11 else float("nan"), step)
        if number % 4 == 3:
            study.tell(trial, state=TrialState.PRUNED)
        elif number % 10 == 9:
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, value)
    for _ in range(2):
        space.suggest(study.ask())
    return study


@pytest.mark.parametrize("parameters", [FLAT, CONDITIONAL], ids=["flat", "conditional"])
def test_up_to_its_bound_a_history_changes_no_proposal(parameters):
    spec = spec_of(parameters)
    space = Space(spec)
    bounded, whole = optuna.create_study(), optuna.create_study()
    history, everything = History(space, 10, 20), History(space, None)
    ours = run(bounded, space, 30, lambda number: make_sampler(spec, space, number, history))
    assert ours == run(whole, space, 30, lambda number: make_sampler(spec, space, number, everything))
    ours = run(bounded, space, 10, lambda number: make_sampler(spec, space, number, history))
    assert ours[0] == run(whole, space, 1, lambda number: make_sampler(spec, space, number, everything))[0]
    rest = run(whole, space, 9, lambda number: make_sampler(spec, space, number, everything))
    assert ours[1:] != rest


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_bounded_history_has_the_trials_that_tpe_takes_for_good_and_the_latest(direction):
    study = long_study(260, direction)
    trials = study.get_trials(deepcopy=False)
    space = Space(spec_of(CONDITIONAL))
    found = History(space, 30, 50).shown(trials, study.direction)
    piecemeal = History(space, 30, 50)
    for count in (0, 100, 101, 259):
        piecemeal.shown(trials[:count], study.direction)
    assert piecemeal.shown(trials, study.direction) == found
    assert [trial.number for trial in found] == sorted(trial.number for trial in found)
    ended = [trial for trial in found if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(ended) == 80
    assert [trial.number for trial in found if trial.state is TrialState.RUNNING] == [260, 261]

    def good(of: list[FrozenTrial]) -> set[int]:
        ended = [trial for trial in of if trial.state is not TrialState.FAIL]
        return {trial.number for trial in _split_trials(study, ended, 25)[0]}

    assert good(found) == good(trials)
    others = [trial.number for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    kept = {trial.number for trial in ended}
    latest = [number for number in others if number in kept][-50:]
    assert set(others[-45:]) <= set(latest)


def test_where_few_are_complete_the_pruned_that_came_far_are_shown():
    space = Space(spec_of({"dropout": {"min": 0.0, "max": 0.6}}))
    study = optuna.create_study()
    for number in range(60):
        trial = study.ask()
        space.suggest(trial)
        for step in range(1, 2 + number % 5):
            trial.report(1.0 / (1 + number), step)
        study.tell(trial, state=TrialState.PRUNED)
    found = History(space, 30, 5).shown(study.get_trials(deepcopy=False), study.direction)
    ended = study.get_trials(deepcopy=False)
    assert len(found) == 35
    assert {trial.number for trial in _split_trials(study, found, 25)[0]} == {
        trial.number for trial in _split_trials(study, ended, 25)[0]
    }


class Plain(OfTheSpace, TPESampler):
    """Optuna's TPE as it is, over what a history shows."""


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("bound", [(None, 0), (15, 25), (3, 40)], ids=["all", "bounded", "few best"])
@pytest.mark.parametrize("parameters", [FLAT, CONDITIONAL], ids=["flat", "conditional"])
def test_what_is_looked_up_changes_no_proposal_of_tpe(parameters, bound, direction):
    """Ties, pruned and failed trials, figures that are no numbers, several at once, and trials of other programs."""
    spec = spec_of(parameters)
    space = Space(spec)
    studies = [optuna.create_study(direction=direction) for _ in range(2)]
    histories = [History(space, *bound) for _ in studies]
    for study in studies:
        with_strangers(study)

    def samplers(seed: int) -> list[BaseSampler]:
        plain = Plain(seed=seed, group=not space.static)
        plain.history = histories[1]
        return [make_sampler(spec, space, seed, histories[0]), plain]

    differ = set()
    for number in range(60):
        asked = []
        for study, sampler in zip(studies, samplers(number), strict=True):
            study.sampler = sampler
            trials = [study.ask() for _ in range(1 + number % 3)]
            asked.append([(trial, space.suggest(trial)) for trial in trials])
        ours, stock = ([shown for _, shown in found] for found in asked)
        assert ours == stock
        differ.update(tuple(shown.items()) for shown in ours)
        for study, found in zip(studies, asked, strict=True):
            for trial, shown in found:
                end(study, trial, round(value_of(shown), 2))
    assert len(differ) > 90


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_the_space_of_a_study_is_found_anew_when_trials_of_another_kind_are_told(tmp_path, monkeypatch):
    """In a `Ledger`, as in a sweep: there trials of the same parameters have one set of distributions."""
    spec = spec_of(CONDITIONAL)
    space = Space(spec)
    searched = {TPE: 0, Plain: 0}
    real = OfTheSpace.infer_relative_search_space

    def counted(self: OfTheSpace, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        searched[type(self)] += 1
        return real(self, study, trial)

    monkeypatch.setattr(OfTheSpace, "infer_relative_search_space", counted)
    storage = RDBStorage(f"sqlite:///{tmp_path}/studies.db")
    studies = []
    for name in "ab":
        made = optuna.create_study(storage=storage, study_name=name)
        studies.append(optuna.load_study(storage=Ledger(storage, made._study_id), study_name=name))
    histories = [History(space, 10, 10) for _ in studies]
    for number in range(60):
        plain = Plain(seed=number, group=True)
        plain.history = histories[1]
        ours, stock = (
            run(study, space, 1, lambda _, sampler=sampler: sampler)  # type: ignore[misc]
            for study, sampler in zip(
                studies, (make_sampler(spec, space, number, histories[0]), plain), strict=True
            )
        )
        assert ours == stock
    assert searched[Plain] == 60
    assert searched[TPE] < 30


def end(study: optuna.Study, trial: optuna.Trial, value: float) -> None:
    """As its number says: pruned, with a figure that may be none; failed; left running; or complete."""
    for step in range(1, 2 + trial.number % 3):
        trial.report(value if trial.number % 11 else math.nan, step)
    if trial.number % 4 == 3:
        study.tell(trial, state=TrialState.PRUNED)
    elif trial.number % 10 == 9:
        study.tell(trial, state=TrialState.FAIL)
    elif trial.number % 50 != 30:
        study.tell(trial, value)


def test_what_is_shown_covers_what_tpe_takes_for_good_by_default():
    assert default_gamma(10**6) <= BEST
