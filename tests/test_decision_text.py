"""A decision in sentences."""

from __future__ import annotations

from typing import Any

import pytest
from decisions import candidate, decision, judged

from regtune.study.decision import Estimate
from regtune.study.decision_text import (
    amount_text,
    difference_text,
    end_text,
    more_command,
    optimism_text,
    paragraph,
    sentence,
    signed_text,
    value_text,
    words,
)

WINNER = "Batch norm before the activation with dropout 0.15"


def test_the_sentence_names_what_beats_no_technique_what_is_tied_and_what_is_chosen() -> None:
    assert sentence(decision()) == (
        f"{WINNER} beats no technique by 0.058 ± 0.012 of val_cross_entropy; "
        "four configurations cannot be told apart; the simplest of them inside the search is chosen; "
        "dropout 0.2, outside the search, is as good and simpler."
    )


def test_a_control_outside_the_search_that_is_better_is_called_better() -> None:
    found = decision(
        judged("c-dropout", "tied", 0.15, to_chosen=-0.05, to_none=-0.1),
        judged("t9", "chosen", 0.2, to_none=-0.05),
        judged("c-none", mean=0.25, to_chosen=0.05),
        answer="c-dropout",
    )
    assert sentence(found) == (
        f"{WINNER} beats no technique by 0.050 ± 0.012 of val_cross_entropy; "
        "dropout 0.2, outside the search, is better than all inside it; "
        "of those, batch norm before the activation with dropout 0.15 is chosen."
    )


def test_that_no_technique_beats_the_control_is_said_in_these_words() -> None:
    tied = judged("t9", "chosen", 0.201, to_none=-0.001), judged("c-none", "tied", to_chosen=0.001)
    assert sentence(decision(*tied)).startswith("No technique beats the control here; two configurations")


def test_where_the_chosen_one_is_not_shown_to_beat_no_technique_the_best_that_does_is_named() -> None:
    found = decision(
        judged("t9", "chosen", 0.24, to_none=-0.01),
        judged("t16", "tied", 0.23, to_chosen=-0.01, to_none=-0.02),
        judged("c-none", mean=0.25, to_chosen=0.01),
    )
    expected = (
        "Batch norm before the activation with dropout 0.133 and L2 7.69e-6 beats no technique by 0.020"
    )
    assert sentence(found).startswith(expected)


def test_a_chosen_one_whose_name_begins_the_answer_is_named_all_the_same() -> None:
    found = decision(
        judged("c-batchnorm_before", "chosen", 0.24, to_none=-0.01, searched=True),
        judged("t9", "tied", 0.23, to_chosen=-0.01, to_none=-0.02),
        judged("c-none", mean=0.25, to_chosen=0.01),
        chosen="c-batchnorm_before",
        answer="c-batchnorm_before",
    )
    assert sentence(found) == (
        f"{WINNER} beats no technique by 0.020 ± 0.012 of val_cross_entropy; two configurations cannot be told "
        "apart; the simplest of them, batch norm before the activation, is chosen."
    )


def test_where_the_control_diverges_nothing_is_said_to_be_compared_with_it() -> None:
    found = decision(judged("t9", "chosen", 0.24), judged("c-none", "diverged", 0.25, diverged=2))
    assert sentence(found).startswith("The control without any technique diverges; ")


def test_an_accuracy_is_in_points_of_percent() -> None:
    by = Estimate(mean=0.0062, half_width=0.0009)
    assert difference_text("val_accuracy", by) == "0.62 ± 0.09 points higher"
    assert amount_text("val_accuracy", Estimate(mean=-0.0062, half_width=0.00004)) == "0.620 ± 0.004 points"
    assert value_text("val_accuracy", Estimate(mean=0.94823)) == "94.82 %"
    assert signed_text("val_cross_entropy", Estimate(mean=-0.0582, half_width=0.0119)) == "−0.058 ± 0.012"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("c-none", "no technique"),
        ("c-early_stopping", "early stopping alone"),
        ("c-l1", "L1 1e-5"),
        ("c-batchnorm_before", "batch norm before the activation"),
        ("t9", "batch norm before the activation with dropout 0.15"),
    ],
)
def test_a_candidate_is_called_by_its_techniques(key: str, expected: str) -> None:
    assert words(candidate(key)) == expected


def test_a_trial_that_another_parameter_makes_is_called_by_its_number() -> None:
    learning_rate = candidate("t9").model_copy(update={"mix": "none"})
    assert words(learning_rate) == "trial 9"


def test_the_search_s_own_winner_is_told_with_what_it_was_worth() -> None:
    assert optimism_text(decision()) == (
        "The search's own winner, trial 16, has 0.1717 val_cross_entropy there and 0.1873 ± 0.0052 over 8 "
        "replicates: the search flattered it by 0.0156 ± 0.0052. Compared with no technique it was 0.0802 lower in "
        "the search, 0.059 ± 0.012 lower over replicates."
    )
    fair = decision(optimism=Estimate(mean=-0.001))
    assert optimism_text(fair).count("the search did not flatter it.") == 1
    assert optimism_text(decision(optimism=None)) == ""


def test_what_is_open_comes_with_the_command_that_settles_more() -> None:
    assert more_command(decision()) == "regtune decide mnist-regularization --budget 16"
    assert [more_command(decision(end=end)) for end in ("settled", "practical", "one_candidate")] == [""] * 3
    assert end_text(decision(end="practical")).startswith("Only differences below 0.0025 are open")


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"end": "too_few", "trainings": 0}, "Nothing is decided: nothing was replicated."),
        ({"end": "stopped"}, "Nothing is decided: no candidate has replicates enough."),
        ({"end": "one_candidate"}, f"{WINNER} is the only candidate."),
    ],
)
def test_a_decision_about_nothing_says_why(facts: dict[str, Any], expected: str) -> None:
    assert sentence(decision(**facts, chosen=None, answer=None)) == expected


def test_a_paragraph_has_the_answer_the_optimism_the_basis_the_end_and_the_notes() -> None:
    lines = paragraph(decision(notes=("control l1 diverged in 5 of 8 replicates",)))
    assert lines[0] == sentence(decision())
    assert lines[2].startswith("Each open candidate was trained 8 times, with a fresh seed and a fresh split")
    assert lines[-1] == "control l1 diverged in 5 of 8 replicates"
