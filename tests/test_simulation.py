"""How often a decision errs: simulated sweeps, a few here, and the committed table of many."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bench_decision import NOISE, ROWS, Row, run

COMMITTED = json.loads((Path(__file__).resolve().parents[1] / "benchmarks/decision.json").read_text())["rows"]
ALPHA, FOUND, REPLICATES = 0.05, 0.9, 8
QUICK = 100
"""Sweeps of a quick simulation; limits allow for four standard errors of a share of them."""
PROMISED = [place for place, row in enumerate(ROWS) if row.corrected and row.noise.training == NOISE.training]
(UNCORRECTED,) = [place for place, row in enumerate(ROWS) if not row.corrected]


def named(place: int) -> str:
    return f"{ROWS[place].name} ({ROWS[place].vary})"


def has_to_find(row: Row) -> bool:
    """With few replicates, or a difference that overlapping splits hide, nothing is promised."""
    return row.better > 0 and row.budget is None and (row.vary == "seed" or row.better == 2 * NOISE.of_run)


def keeps_its_promises(row: Row, figures: dict[str, Any]) -> None:
    def error(share: float) -> float:
        return 4 * math.sqrt(share * (1 - share) / figures["sweeps"])

    assert figures["false_claims"] <= ALPHA + error(ALPHA)
    assert figures["tied_set_has_the_best"] >= 1 - ALPHA - error(ALPHA)
    for kind, share in figures["covered"].items():
        assert share >= 1 - ALPHA - error(ALPHA), kind
    if has_to_find(row):
        assert figures["found"] >= FOUND - error(FOUND)
        assert figures["replicates_when_found"] <= REPLICATES
        assert figures["regret"] <= figures["regret_of_best_single_run"] + row.better * error(0.01)


@pytest.mark.parametrize(
    "place",
    [place for place in PROMISED if ROWS[place].noise == NOISE and ROWS[place].budget is None],
    ids=named,
)
def test_a_decision_errs_as_rarely_as_it_says(place: int) -> None:
    keeps_its_promises(ROWS[place], run(ROWS[place], QUICK))


def test_a_decision_that_ignored_the_overlap_of_splits_would_err_too_often() -> None:
    figures = run(ROWS[UNCORRECTED], QUICK)
    assert figures["false_claims"] > 3 * ALPHA
    assert min(figures["covered"].values()) < 1 - 2 * ALPHA


@pytest.mark.parametrize("place", PROMISED, ids=named)
def test_the_committed_table_keeps_the_promises(place: int) -> None:
    row, figures = ROWS[place], COMMITTED[place]
    assert (figures["name"], figures["vary"], figures["sweeps"]) == (row.name, row.vary, 2000)
    keeps_its_promises(row, figures)


@pytest.mark.proof
@pytest.mark.parametrize("place", range(len(ROWS)), ids=named)
def test_the_committed_table_is_what_the_simulation_gives(place: int) -> None:
    committed = COMMITTED[place]
    figures = run(ROWS[place], committed["sweeps"])
    assert figures.pop("covered") == pytest.approx(committed.pop("covered"), abs=0.002)
    names = [name for name, value in committed.items() if isinstance(value, float)]
    assert [figures[name] for name in names] == pytest.approx(
        [committed[name] for name in names], rel=0.02, abs=0.005
    )
