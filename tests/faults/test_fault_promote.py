"""Promotions are killed at random moments, and meet each other: the next verb finds the registry in order."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from places import Place
from promoting import Nursery, Verb, nursery
from promotions import LENIENT, decided, searched
from stores import until

from regtune.registry import journal
from regtune.registry.contents import check_folder
from regtune.registry.listing import list_versions
from regtune.registry.openings import openings_of
from regtune.registry.store import Registry, open_registry
from regtune.tracking import names
from regtune.tracking.sync import sync

OPENING = "opening the test set"


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with nursery(tmp_path_factory.mktemp("nursery")) as started:
        yield started


@dataclass
class Watched:
    """What has been seen of the registered model of a place: nothing of it may be lost.

    openings: of the test set. versions: numbers of those whose files were right.
    """

    place: Place
    folder: Path
    openings: int = 0
    versions: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.registry: Registry = open_registry(self.place.settings)

    def look(self) -> journal.State:
        """What holds after a verb that only reads, too."""
        opened = len(openings_of(self.place.study().user_attrs, self.place.name))
        assert opened >= self.openings
        self.openings = opened
        found = {
            version.number: version
            for version in list_versions(self.place.settings, self.place.name).versions
        }
        assert self.versions <= set(found)
        state = journal.read(self.registry, self.place.name)
        assert set(state.aliases.values()) <= set(found)
        for number in set(found) - self.versions:
            version = found[number]
            files = self.registry.download(version, self.folder / f"{number}")
            record = check_folder(files, version.tags[names.MANIFEST_DIGEST])
            assert len(record.openings) <= opened
            run = self.registry.client.get_run(version.run_id)
            assert run.data.tags[names.KIND] == names.PROMOTION
        self.versions = set(found)
        return state

    def settled(self, champion: int, previous: int | None) -> None:
        """What holds after a verb that writes."""
        state = self.look()
        assert (state.champion, state.previous, state.notes) == (champion, previous, ())
        assert self.registry.model(self.place.name).aliases == state.aliases
        assert state.moved == len(state.moves)

    def whole(self) -> None:
        """What holds after a promotion: nothing is left of those that were killed before it."""
        client = self.registry.client
        experiments = [one.experiment_id for one in client.search_experiments()]
        of_model = f"tags.`{names.KIND}` = '{names.PROMOTION}' AND tags.`{names.MODEL}` = '{self.place.name}'"
        runs = client.search_runs(experiments, of_model)
        assert {run.info.status for run in runs} <= {"FINISHED", "FAILED", "KILLED"}
        versions = self.registry.versions(self.place.name)
        assert len({version.run_id for version in versions}) == len(versions) <= len(runs)
        own = {run.info.run_id for run in runs}
        logged = {
            one.model_id for one in client.search_logged_models(experiments) if one.source_run_id in own
        }
        assert logged == {version.model_id for version in versions}
        folders = [path for one in logged for path in self.place.home.rglob(f"{one}")]
        assert len(folders) == len(logged)


Start = Callable[..., Verb]


@pytest.fixture
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Start:
    """Starts a verb in a place: as a copy of a process that has trained already, or as a person starts it."""
    if request.param == "forked":
        forks: Nursery = request.getfixturevalue("forks")
        return forks.start

    def whole(place: Place, *words: str) -> Verb:
        log = tmp_path / f"{next(numbers)}.log"
        with log.open("wb") as written:
            command = [sys.executable, "-m", "regtune", *words]
            given: dict[str, Any] = {
                "env": place.variables(),
                "cwd": place.folder,
                "stdin": subprocess.DEVNULL,
            }
            process = subprocess.Popen(command, **given, stdout=written, stderr=written)
        return Verb(process.pid, log, process.wait)

    numbers = count()
    return whole


@pytest.fixture
def promotion(place: Place) -> tuple[str, ...]:
    """What is typed to promote the choice of a decided study, whatever refuses it."""
    searched(place.settings, place.name)
    decided(place.settings, place.name)
    assert [one.problem for one in sync(place.settings, [place.name], tell=lambda *_: None)] == [None]
    (place.folder / "gates.yaml").write_text(LENIENT)
    return "promote", place.name, "--gates", "gates.yaml", "--force", "again"


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("start", "place", "kills"),
    [
        ("forked", "sqlite", 10),
        ("forked", "postgres", 5),
        pytest.param("forked", "sqlite", 20, marks=pytest.mark.proof),
        pytest.param("forked", "postgres", 20, marks=pytest.mark.proof),
        pytest.param("whole", "sqlite", 20, marks=pytest.mark.proof),
        pytest.param("whole", "postgres", 20, marks=pytest.mark.proof),
    ],
    indirect=["start", "place"],
)
def test_a_promotion_killed_at_any_moment_leaves_what_the_next_verb_puts_in_order(
    place: Place, promotion: Sequence[str], start: Start, kills: int, tmp_path: Path
) -> None:
    begun = time.monotonic()
    first = start(place, *promotion)
    first.until(OPENING)
    early = time.monotonic() - begun
    assert first.wait() == 0, first.said
    late = time.monotonic() - begun - early
    watched = Watched(place, tmp_path)
    watched.settled(1, None)
    dice, killed = random.Random(7), 0
    for number in range(kills):
        verb = start(place, *promotion)
        if number % 3:
            verb.until(OPENING)
            time.sleep(dice.uniform(0.0, late))
        else:
            time.sleep(dice.uniform(0.0, early))
        killed += verb.kill()
        state = watched.look()
        if number % 5 == 4:
            after = start(place, *promotion)
            assert after.wait() == 0, after.said
            watched.look()
            watched.settled(max(watched.versions), state.champion)
            watched.whole()
        elif state.previous is not None:
            journal.roll_back(watched.registry, place.name)
            watched.settled(state.previous, state.champion)
    assert killed > kills / 2
    until(lambda: not place.processes(), what="the workers have ended")


@pytest.mark.parametrize(
    ("start", "place"),
    [
        ("forked", "postgres"),
        pytest.param("forked", "sqlite", marks=pytest.mark.proof),
        pytest.param("whole", "sqlite", marks=pytest.mark.proof),
        pytest.param("whole", "postgres", marks=pytest.mark.proof),
    ],
    indirect=True,
)
def test_of_two_promotions_at_once_one_wins_and_the_other_is_told(
    place: Place, promotion: Sequence[str], start: Start, tmp_path: Path
) -> None:
    both = [start(place, *promotion)]
    both[0].until(OPENING)
    os.kill(both[0].pid, signal.SIGSTOP)  # until the other, too, has seen which version is champion
    both.append(start(place, *promotion))
    both[1].until(OPENING)
    os.kill(both[0].pid, signal.SIGCONT)
    ends = {verb.wait(): verb for verb in both}
    assert set(ends) == {0, 1}, [verb.said for verb in both]
    made = {code: re.findall(r"registered as version (\d+)", verb.said) for code, verb in ends.items()}
    assert sorted(made.values()) == [["1"], ["2"]], [verb.said for verb in both]
    numbers = {code: int(found) for code, (found,) in made.items()}
    told = (
        rf"error: {place.name}: @champion was moved to version {numbers[0]} by .+ on .+ at .+ UTC \(promoted from "
        rf"{place.name}\) meanwhile, so it was left there; look at it with: regtune model show {place.name}; "
        rf"version {numbers[1]} is registered, without an alias"
    )
    assert re.fullmatch(told, ends[1].said.splitlines()[-1]), ends[1].said
    watched = Watched(place, tmp_path)
    watched.settled(numbers[0], None)
    watched.whole()
    assert watched.openings == 2
