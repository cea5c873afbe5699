"""Candidates of a decision: the finalists of the search and the controls, each once, the important ones first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import studies
from specs import spec_of

from regtune.config.trial import METRICS, DataConfig
from regtune.evidence.candidates import candidates_of, mix_of, order_of_finalists
from regtune.search import Space, controls
from regtune.search.controls import every_control
from regtune.study.progress import Row

DATA = DataConfig(name="mnist-5k", digest=studies.DIGEST)
SPACE: dict[str, Any] = {
    "dropout": {"min": 0.0, "max": 0.6},
    "l2": {"distribution": "log_uniform_values", "min": 1e-7, "max": 1e-3, "optional": True},
    "batchnorm": {"values": ["none", "before_activation"]},
}
SPEC = spec_of(SPACE)
EVERY = ["none", "early_stopping", "dropout", "l1", "l2", "batchnorm_before", "batchnorm_after"]
OFF = {"dropout": 0.0, "l2": 0.0, "batchnorm": "none"}


def complete(number: int, value: float, control: str | None = None, **techniques: Any) -> Row:
    """A complete trial of the sweep, or of its control of that name."""
    config, parameters = None, {**OFF, **techniques}
    if control is not None:
        listed = next(one for one in every_control(SPEC, DATA) if one.name == control)
        config, parameters = listed.config, dict(listed.parameters or {})
    record = replace(
        studies.record(number, {}),
        config=(config or Space(SPEC).config(parameters, seed=0, data=DATA)).model_copy(
            update={"seed": number}
        ),
        parameters=parameters,
        control=control,
    )
    return Row(number, "COMPLETE", value, record)


SEARCH = [
    complete(0, 0.30, "none"),
    complete(1, 0.25, "early_stopping"),
    complete(2, 0.19, "dropout"),
    complete(3, 0.26, "l1"),
    complete(4, 0.10, dropout=0.3),
    complete(5, 0.11, dropout=0.31),
    complete(6, 0.12, dropout=0.2, batchnorm="before_activation"),
    complete(7, 0.13, batchnorm="before_activation", l2=1e-5),
    complete(8, 0.50, l2=1e-3),
]


def keys(*rows: Row, **options: Any) -> list[str]:
    return [one.key for one in candidates_of(rows, SPEC, DATA, **options)]


def test_the_best_of_each_mix_comes_before_the_second_best_of_one() -> None:
    values, mixes = [0.1, 0.2, 0.3, 0.4, 0.25], ["a", "a", "a", "b", "c"]
    assert order_of_finalists(values, mixes, 5) == [0, 4, 3, 1, 2]
    assert order_of_finalists(values, mixes, 2) == [0, 4]
    assert order_of_finalists([0.2, 0.1, 0.1], ["a", "a", "a"], 3) == [1, 2, 0]
    assert order_of_finalists([], [], 3) == []


def test_a_mix_is_which_techniques_are_on_and_where_batch_norm_stands() -> None:
    def mix(**techniques: Any) -> str:
        return mix_of(studies.record(0, techniques).config)

    assert mix() == "none"
    assert mix(dropout=0.1, l2=1e-4) == mix(dropout=(0.0, 0.3), l2=1e-6) == "dropout + l2"
    assert mix(batchnorm="before_activation") == "batchnorm before_activation"
    assert mix(batchnorm=("none", "after_activation")) == "batchnorm none/after_activation"


def test_the_winner_comes_first_then_no_technique_then_finalists_and_controls_in_turn() -> None:
    assert keys(*SEARCH, top=3) == ["t4", "c-none", "t6", "c-early_stopping", "t7", "c-dropout", "c-l1"]
    better = complete(9, 0.18, "l1")
    assert keys(*SEARCH[:3], better, SEARCH[4], top=1) == [
        "t4",
        "c-none",
        "c-early_stopping",
        "c-l1",
        "c-dropout",
    ]
    assert keys(*reversed(SEARCH), top=1) == ["t4", "c-none", "c-early_stopping", "c-dropout", "c-l1"]


def test_all_controls_are_candidates_where_they_are_asked_for_whatever_the_search_ran() -> None:
    asked = candidates_of(SEARCH[4:], spec_of(SPACE, controls=False), DATA, top=2, all_controls=True)
    assert [one.control for one in asked if one.control] == EVERY
    assert keys(*SEARCH[4:], top=2) == ["t4", "t6"]
    never = next(one for one in asked if one.control == "l1")
    assert (never.trial, never.value, never.searched) == (None, None, False)
    assert next(one for one in asked if one.control == "dropout").searched
    assert [one.control for one in candidates_of([], SPEC, DATA, all_controls=True)] == EVERY


def test_a_configuration_that_was_trained_twice_or_is_a_control_is_one_candidate_with_its_best_score() -> (
    None
):
    twice = complete(9, 0.05, dropout=0.31)
    assert keys(*SEARCH, twice, top=4)[0] == "t9"
    assert "t5" not in keys(*SEARCH, twice, top=9)
    found = candidates_of([*SEARCH, complete(9, 0.01, dropout=0.2)], SPEC, DATA, top=1)
    assert [one.key for one in found][:2] == ["c-dropout", "c-none"]
    assert (found[0].trial, found[0].value, found[0].searched) == (9, 0.01, True)
    point = spec_of({"dropout": {"values": [0.0, 0.4]}}, controls=False, early_stopping=None)
    off = replace(SEARCH[0].record or studies.record(0, {}), control=None, parameters={"dropout": 0.0})
    assert candidates_of([Row(0, "COMPLETE", 0.3, off)], point, DATA)[0].key == "c-none"


def test_a_control_of_the_search_space_may_win_the_search_and_one_outside_may_not() -> None:
    rows = [complete(0, 0.3, "none"), complete(1, 0.01, "l1"), complete(2, 0.02, "dropout"), SEARCH[4]]
    found = candidates_of(rows, SPEC, DATA, top=1)
    assert [(one.key, one.searched) for one in found] == [
        ("c-dropout", True),
        ("c-none", False),
        ("c-l1", False),
    ]


def test_only_complete_trials_are_candidates_and_the_better_end_is_the_metric_s() -> None:
    pruned = replace(complete(9, 0.01, dropout=0.5), state="PRUNED", value=0.001)
    nothing = Row(10, "COMPLETE", None, None)
    assert keys(*SEARCH, pruned, nothing, top=1) == keys(*SEARCH, top=1)
    accuracy = spec_of(SPACE, metric={"name": METRICS[4]})
    assert candidates_of(SEARCH, accuracy, DATA, top=1)[0].key == "t8"


def test_candidates_train_on_the_data_that_is_there_now() -> None:
    moved = DATA.model_copy(update={"name": "elsewhere.npz"})
    found = candidates_of(SEARCH, SPEC, moved, all_controls=True)
    assert {one.config.data for one in found} == {moved}
    assert len(found) == len(candidates_of(SEARCH, SPEC, DATA, all_controls=True))
    assert {one.name for one in controls(SPEC, DATA)} <= {one.control for one in found}
