"""The statistics of a decision, against SciPy, statsmodels and closed forms."""

import gc
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.anova import AnovaRM
from statsmodels.stats.multitest import multipletests

from regtune.evidence.statistics import ALPHA, LOOKS, interval, judge, look_at, paired, spent

NONE = "c-none"


@pytest.fixture(scope="module", autouse=True)
def _nothing_to_collect():
    """Keep garbage collection short: statsmodels asks for it at each call."""
    gc.freeze()
    yield
    gc.unfreeze()


def drawn(candidates=4, replicates=8, seed=0, **shifts):
    """Scores whose replicates share an effect; shifts: what is added to a candidate."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(0, 3, replicates)
    keys = [NONE, *(f"t{number}" for number in range(1, candidates))]
    return {key: (shifts.get(key, 0.0) + shared + rng.normal(size=replicates)).tolist() for key in keys}


def alike(*means):
    """Scores of three candidates, any two of which differ with the same variance, 8/3."""
    rows = np.array([[1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]])
    return {
        key: (row + mean).tolist() for key, row, mean in zip((NONE, "t1", "t2"), rows, means, strict=True)
    }


def judged(values, goal="maximize", overlap=0.0, practical=0.0, control=NONE):
    return judge(values, goal=goal, overlap=overlap, practical=practical, control=control)


def test_the_looks_together_spend_no_more_than_alpha():
    assert [spent(look) for look in (1, 2, 3)] == pytest.approx([ALPHA / 2, ALPHA / 6, ALPHA / 12])
    assert sum(spent(look) for look in range(1, 100_000)) == pytest.approx(ALPHA, abs=1e-6)
    assert sum(spent(look) for look in range(1, len(LOOKS) + 1)) < ALPHA


def test_a_look_counts_whole_blocks_of_replicates():
    assert [look_at(number) for number in (0, 3, 4, 7, 8, 15, 16, 31, 32)] == [0, 0, 1, 1, 2, 2, 3, 3, 4]


@pytest.mark.parametrize("replicates", [4, 8, 16])
def test_two_candidates_are_compared_as_scipy_does(replicates):
    values = drawn(2, replicates)
    peer = stats.ttest_rel(values["t1"], values[NONE])
    bounds = peer.confidence_interval(1 - spent(look_at(replicates)))
    found = judged(values).candidates["t1"].to_none
    assert (found.low, found.high) == pytest.approx((bounds.low, bounds.high))
    alone = paired(values["t1"], values[NONE], 0.0)
    assert (alone.low, alone.high) == pytest.approx((bounds.low, bounds.high))
    bounds = stats.ttest_1samp(values["t1"], 0).confidence_interval(1 - spent(look_at(replicates)))
    mean = interval(values["t1"], 0.0)
    assert (mean.low, mean.high) == pytest.approx((bounds.low, bounds.high))


def test_variance_is_pooled_as_in_the_two_way_layout_where_no_candidate_is_noisier():
    values = alike(0.0, 0.3, 0.5)
    cells = [(key, index, value) for key, row in values.items() for index, value in enumerate(row)]
    key, index, value = map(np.array, zip(*cells, strict=True))
    frame = pd.DataFrame({"key": key, "index": index, "value": value})
    table = AnovaRM(frame, "value", "index", ["key"]).fit().anova_table
    between = 4 * np.var([np.mean(row) for row in values.values()], ddof=1)
    residual = between / table["F Value"].iloc[0]
    freedom = table["Den DF"].iloc[0]
    expected = stats.t.ppf(1 - spent(1) / 2 / 2, freedom) * math.sqrt(2 * residual / 4)
    assert judged(values).candidates["t1"].to_none.half_width == pytest.approx(expected)


def test_a_noisier_pair_gets_its_own_variance_and_fewer_degrees_of_freedom():
    values = drawn(6, 8)
    values["t1"] = (np.array(values["t1"]) + 10 * np.random.default_rng(1).normal(size=8)).tolist()
    found = judged(values).candidates
    own = paired(values["t1"], values[NONE], 0.0).half_width
    few = stats.t.ppf(1 - spent(2) / 5 / 2, 7) / stats.t.ppf(1 - spent(2) / 2, 7)
    assert found["t2"].to_none.half_width < found["t1"].to_none.half_width
    assert own < found["t1"].to_none.half_width < 1.3 * few * own


@pytest.mark.parametrize("overlap", [0.0, 0.25, 1 / 9])
def test_overlapping_splits_widen_every_interval_by_the_factor_of_nadeau_and_bengio(overlap):
    values = drawn(3, 8)
    for replicates in (4, 8):
        some = {key: row[:replicates] for key, row in values.items()}
        alone, overlapping = judged(some).candidates["t1"], judged(some, overlap=overlap).candidates["t1"]
        factor = math.sqrt((1 / replicates + overlap) / (1 / replicates))
        assert overlapping.to_none.half_width == pytest.approx(factor * alone.to_none.half_width)
        assert overlapping.estimate.half_width == pytest.approx(factor * alone.estimate.half_width)


def test_candidates_beat_the_control_by_holm():
    error, freedom = math.sqrt(8 / 3 / 4), 6
    bonferroni, alone = (stats.t.ppf(1 - spent(1) / share / 2, freedom) for share in (2, 1))
    middle = (bonferroni + alone) / 2  # enough for the last step alone
    for first in (1.1 * bonferroni, middle, 0.9 * alone):  # the second is shown where the first is
        shifts = first * error, -middle * error
        p = 2 * stats.t.sf(np.abs(shifts) / error, freedom)
        shown = multipletests(p, alpha=spent(1), method="holm")[0]
        assert shown.tolist() == [first > bonferroni] * 2
        found = judged(alike(0.0, *shifts)).candidates
        assert [found[key].beats_none for key in ("t1", "t2")] == [shown[0], False]
        assert [found[key].below_none for key in ("t1", "t2")] == [False, shown[1]]


def test_what_is_beaten_is_dropped_and_compared_over_the_replicates_it_has():
    values = drawn(4, 16, t1=9.0, t2=-9.0)
    first = judged({key: row[:4] for key, row in values.items()})
    assert first.candidates["t2"].beaten
    assert "t2" not in first.open
    values["t2"] = values["t2"][:4]
    later = judged(values)
    assert (later.look, later.replicates, later.candidates["t2"].replicates) == (3, 16, 4)
    assert later.candidates["t2"].to_none == first.candidates["t2"].to_none
    assert later.differences_to("t3")["t2"] == first.differences_to("t3")["t2"]


def test_the_control_has_replicates_as_long_as_any_candidate():
    values = drawn(3, 4, t1=9.0, t2=9.2)
    found = judged(values)
    assert found.candidates[NONE].beaten
    assert found.tied == ("t1", "t2")
    assert found.open == (NONE, "t1", "t2")
    assert found.needed == 8


def test_replicates_beyond_a_look_wait_for_the_next():
    values = drawn(3, 8, t1=1.0)
    some = {key: row[: 5 + place] for place, (key, row) in enumerate(values.items())}
    assert judged(some) == judged({key: row[:4] for key, row in values.items()})


def test_below_four_replicates_nothing_is_claimed():
    values = drawn(3, 8, t1=99.0)
    values["t2"] = values["t2"][:3]
    found = judged(values)
    assert found.too_few
    assert (found.leader, found.tied, found.open, found.needed) == (None, tuple(values), tuple(values), 4)
    assert not any(one.beats_none or one.beaten or one.to_none for one in found.candidates.values())
    assert found.candidates["t1"].estimate.half_width is None
    assert found.differences_to("t1") == {}
    assert judged({}).too_few
    assert judged({"t1": []}).candidates == {}


def test_one_candidate_is_settled():
    found = judged({"t1": [1.0, 2.0, 3.0, 4.0]}, control=None)
    assert (found.leader, found.tied, found.settled, found.open) == ("t1", ("t1",), True, ())


def test_identical_scores_are_tied_and_differ_by_nothing():
    found = judged({key: [0.91, 0.93, 0.92, 0.9] for key in (NONE, "t1", "t2")})
    assert found.tied == (NONE, "t1", "t2")
    assert found.practical_only
    assert not found.open
    assert found.candidates["t1"].to_none.within(0.0)
    assert not found.candidates["t1"].beats_none


def test_a_difference_without_any_variance_is_exact():
    rows = {NONE: [0.0, 1.0, 2.0, 3.0], "t1": [1.0, 2.0, 3.0, 4.0]}
    found = judged(rows)
    assert found.settled
    assert found.candidates["t1"].beats_none
    assert found.candidates["t1"].to_none.low == found.candidates["t1"].to_none.high == 1.0


def test_only_practical_differences_end_replication():
    values = drawn(3, 8)
    widest = max(
        abs(one.mean) + one.half_width
        for one in judged(values).differences_to(judged(values).leader).values()
    )
    assert judged(values, practical=1.001 * widest).practical_only
    assert judged(values, practical=1.001 * widest).open == ()
    assert not judged(values, practical=0.999 * widest).practical_only


scores = st.integers(2, 5).flatmap(
    lambda candidates: st.sampled_from([4, 6, 8]).flatmap(
        lambda replicates: st.lists(
            st.lists(st.integers(-50, 50), min_size=replicates, max_size=replicates),
            min_size=candidates,
            max_size=candidates,
        )
    )
)


def claims(found):
    """What a judgement claims, without its figures."""
    each = {key: (one.beats_none, one.below_none, one.beaten) for key, one in found.candidates.items()}
    return each, set(found.tied), set(found.open), found.settled


@settings(max_examples=25, deadline=None)
@given(rows=scores, shift=st.integers(-100, 100), order=st.randoms(use_true_random=False))
def test_claims_do_not_depend_on_units_order_or_the_side_that_is_better(rows, shift, order):
    values = {
        key: [float(one) for one in row]
        for key, row in zip([NONE, "t1", "t2", "t3", "t4"], rows, strict=False)
    }
    expected = claims(judged(values, overlap=0.25))
    shuffled = list(values.items())
    order.shuffle(shuffled)
    assert claims(judged(dict(shuffled), overlap=0.25)) == expected
    assert (
        claims(judged({key: [4 * one + shift for one in row] for key, row in values.items()}, overlap=0.25))
        == expected
    )
    negative = {key: [-one for one in row] for key, row in values.items()}
    assert claims(judged(negative, goal="minimize", overlap=0.25)) == expected


def test_what_is_shown_against_the_control_has_an_interval_that_excludes_0():
    """Holm shows more than joint intervals do; what is printed beside a claim must not contradict it."""
    rng, shown = np.random.default_rng(5), 0
    for _ in range(60):
        shared = rng.normal(size=4)
        means = (0.0, 2.0, 2.6, 3.2, 4.0)
        values = {
            key: (mean + shared + 0.6 * rng.normal(size=4)).tolist()
            for key, mean in zip([NONE, "t1", "t2", "t3", "t4"], means, strict=True)
        }
        judgement = judged(values, overlap=0.25)
        for key, one in judgement.candidates.items():
            if one.beats_none or one.below_none:
                assert (one.to_none.low > 0) == one.beats_none, key
                assert (one.to_none.high < 0) == one.below_none, key
                shown += judgement.differences_to(NONE)[key].low <= 0
    assert shown  # some of them only by Holm's steps


def test_a_noisy_control_does_not_widen_the_differences_between_the_others():
    rng = np.random.default_rng(8)
    values = {key: rng.normal(size=8).tolist() for key in ("t1", "t2", "t3", "t4")}
    noise = rng.normal(size=8)
    quiet, noisy = (judged({NONE: (scale * noise).tolist(), **values}, overlap=0.25) for scale in (1, 30))
    assert noisy.differences_to("t1")["t2"] == quiet.differences_to("t1")["t2"]
    assert noisy.differences_to(NONE)["t2"].half_width > 5 * quiet.differences_to(NONE)["t2"].half_width
