"""The verb decide: what it draws, what it refuses, and how it ends."""

from __future__ import annotations

import io
from itertools import product
from pathlib import Path

import pytest
import studies
from decisions import decision, judged
from rich.console import Console
from terminals import run_here

from regtune.cli.views.decision import decision_view, interval_line
from regtune.study.decision import Decision, Estimate

Capture = pytest.CaptureFixture[str]


def drawn(found: Decision, width: int) -> list[str]:
    out = Console(width=width, file=io.StringIO(), highlight=False)
    with out.capture() as shown:
        out.print(decision_view(found, width))
    return [line.rstrip() for line in shown.get().splitlines()]


MANY = decision()
ALONE = decision(
    judged("t9", "tied", replicates=0).model_copy(update={"estimate": None}),
    **{"chosen": None, "answer": None, "winner": None, "end": "one_candidate", "replicates": 0},
)
ACCURATE = decision(
    judged("c-none", "beaten", 0.938, to_chosen=-0.0062, half_width=0.0009),
    judged("t16", "diverged", replicates=3, diverged=5).model_copy(update={"estimate": None}),
    judged("t9", "chosen", 0.9442, to_none=0.0062, half_width=0.0009).model_copy(update={"beats_none": True}),
    **{"metric": "val_accuracy", "goal": "maximize", "practical": 0.0005, "end": "settled", "winner": None},
)


def test_a_decision_fits_every_terminal() -> None:
    for found, width in product((MANY, ALONE, ACCURATE), (60, 80, 100, 120, 140)):
        assert max(map(len, drawn(found, width))) <= width
        assert drawn(found, 24)  # where it breaks lines


def test_the_order_is_the_answer_the_candidates_what_was_bought_and_the_optimism() -> None:
    text = "\n".join(drawn(MANY, 120))
    order = [
        *(
            "Batch norm before the activation with dropout 0.15 beats",
            "val_cross_entropy against no technique",
        ),
        *(
            "to the chosen one",
            "What a technique adds to no technique",
            "The search's own winner",
            "Each open candidate",
        ),
        "The budget is used",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    for figure in (
        "accuracy",
        "cross-entropy",
        "gap",
        "ECE",
        "Brier",
        "epochs",
        "epoch",
        "weight norm",
        "prunable",
    ):
        assert figure in text
    assert "Under Adam an L1 penalty makes weights small, not zero." in text


def test_a_technique_is_compared_with_early_stopping_alone_and_early_stopping_with_no_technique() -> None:
    beyond = {"val_cross_entropy": Estimate(mean=-0.0123, half_width=0.01)}
    found = decision(
        judged("c-dropout", "chosen", to_none=-0.05).model_copy(update={"beyond": beyond}),
        judged("c-early_stopping", to_none=-0.04),
        judged("c-none"),
    )
    lines = drawn(found, 80)
    title = "What a technique adds to early stopping alone (early stopping: to no technique)"
    none, early_stopping, dropout = lines[lines.index(title) + 3 :][:3]
    assert none.split()[:2] + none.split()[6:9] == ["no", "technique", "0.190", "±", "0.010"], none
    assert early_stopping.split()[:2] + early_stopping.split()[5:8] == [
        "early",
        "stopping",
        "−0.019",
        "±",
        "0.010",
    ]
    assert dropout.split() == ["dropout", "0.2", "–", "−0.012", "±", "0.010", "–", "–"]


def test_each_candidate_is_one_interval_on_a_common_axis() -> None:
    lines = [line for line in drawn(MANY, 100) if "●" in line]
    assert [line.split()[-1] for line in lines] == ["chosen", "tied", "tied", "tied", "beaten"]
    means = [line.index("●") for line in lines]
    assert means[1] < means[0] < means[2] < means[3] < means[4]
    zeros = {line.index("│") for line in lines[:4]} | {lines[4].index("┼")}
    assert len(zeros) == 1
    (axis,) = (line for line in drawn(MANY, 100) if line.strip().startswith("−0.0713"))
    assert axis.index("0", axis.index("3") + 1) in zeros


def test_an_interval_is_drawn_to_scale() -> None:
    line = interval_line(Estimate(mean=0.5, half_width=0.25), 0.0, 1.0, 41)
    assert (line.index("│"), line.index("├"), line.index("●"), line.index("┤")) == (0, 10, 20, 30)
    crossing = interval_line(Estimate(mean=0.25, half_width=0.5), -0.5, 1.0, 31)
    assert (crossing.index("├"), crossing.index("┼"), crossing.index("●"), crossing.index("┤")) == (
        5,
        10,
        15,
        25,
    )
    assert interval_line(Estimate(mean=1.0), 0.0, 1.0, 11) == "│         ●"


def test_accuracies_are_in_points_and_what_diverged_has_no_figures() -> None:
    text = "\n".join(drawn(ACCURATE, 100))
    assert "beats no technique by 0.62 ± 0.09 points of\nval_accuracy" in text
    assert "val_accuracy against no technique, paired, points: right is better" in text
    assert "94.42 ± 0.52 %" in text
    (line,) = (line for line in text.splitlines() if line.startswith("trial 16"))
    assert line.split()[-4:] == ["3", "–", "–", "diverged"]


def test_a_decision_about_one_candidate_says_so_and_draws_no_axis() -> None:
    lines = drawn(ALONE, 100)
    assert lines[0] == "Batch norm before the activation with dropout 0.15 is the only candidate."
    assert not any("●" in line or "trained 0 times" in line for line in lines)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (
            ["--budget", "5x"],
            "--budget 5x: expected replicates of each candidate, such as 8, or a time, such as 90s",
        ),
        (["--budget", "0"], "--budget 0: expected replicates"),
        (["--budget", "-3"], "--budget -3: expected replicates"),
        (["--practical", "0"], "--practical 0: expected a number above 0"),
        (["--practical", "nan"], "--practical nan: expected a number above 0"),
        (["--vary", "all"], "--vary all: expected both, seed or split"),
        ([], 'no study "presence"; did you mean "present"?'),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(typed: list[str], expected: str, capsys: Capture) -> None:
    studies.fill(studies.create(Path("mlruns/studies.db"), "present"))
    code, output, errors = run_here(capsys, "decide", "presence", *typed)
    assert (code, output, len(errors.splitlines())) == (2, "", 1)
    assert expected in errors
