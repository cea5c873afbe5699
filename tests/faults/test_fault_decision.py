"""The coordinator is killed while it decides: each replicate is trained once, the decision is the undisturbed one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from harness import assert_replicates
from places import Place, Sweep, place_on

from regtune.storage import open_engine
from regtune.study.decision import Decision, Replicate, read_decision, read_replicates

CHANGES: dict[str, Any] = {"run_cap": 5, "decide": 6, "controls": True, "method": "random", "keep_models": 0}


def found(place: Place) -> tuple[list[Replicate], Decision]:
    engine = open_engine(place.settings.storage_url)
    replicates, decision = read_replicates(engine, place.name), read_decision(engine, place.name)
    engine.dispose()
    assert decision is not None
    return replicates, decision


def what_repeats(replicates: list[Replicate]) -> list[tuple[Any, ...]]:
    """Everything of replicates but times and uids."""
    records = [(one.attribute, one.record) for one in replicates]
    return [(name, one.config.canonical(), one.history, one.kept, one.end_reason) for name, one in records]


def until_begun(sweep: Sweep, count: int) -> None:
    begun = "study_user_attributes", "study_user_attributes.key LIKE 'regtune.replicate.%'"
    sweep.until(lambda: sweep.count(*begun) >= count, f"{count} replicates")


@pytest.mark.pairs("sqlite", "postgres")
@pytest.mark.parametrize("kills", [(9,), pytest.param((1, 6, 14), marks=pytest.mark.proof)])
def test_a_coordinator_killed_while_it_decides_and_started_again_concludes_as_an_undisturbed_one(
    place: Place, tmp_path: Path, kills: Sequence[int]
) -> None:
    """kills: how many replicates have begun when it is killed."""
    ended = dict[str, int]()
    for begun in kills:
        with place.sweep(**CHANGES) as sweep:
            until_begun(sweep, begun)
            sweep.kill()
        known = read_replicates(open_engine(place.settings.storage_url), place.name)
        now = {one.attribute: one.record.ended_ms for one in known if one.record.ended_ms is not None}
        assert now.items() >= ended.items()  # none is trained twice
        ended = now
    with place.sweep(**CHANGES) as sweep:
        sweep.ended()
    assert_replicates(place)
    replicates, decision = found(place)
    assert {one.attribute: one.record.ended_ms for one in replicates}.items() >= ended.items()
    assert set(Counter(one.candidate for one in replicates).values()) <= {4, 8, 16}
    with place_on("sqlite", tmp_path, None) as elsewhere:
        undisturbed = replace(elsewhere, name=place.name)
        with undisturbed.sweep(**CHANGES) as sweep:
            sweep.ended()
        others, expected = found(undisturbed)
    assert what_repeats(replicates) == what_repeats(others)
    times = {"uid", "decided", "seconds"}
    assert decision.model_dump(exclude=times | {"candidates"}) == expected.model_dump(
        exclude=times | {"candidates"}
    )
    without_times: dict[str, Any] = {"figures": {}, "bought": {}, "beyond": {}}
    for one, other in zip(decision.candidates, expected.candidates, strict=True):
        assert one.model_copy(update=without_times) == other.model_copy(update=without_times)
