"""A coordinator's machine vanishes from the network of PostgreSQL, and comes back."""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from harness import assert_consistent
from parts import missing
from places import Place, place_on
from stores import postgres, until

from regtune.errors import StudyBusy
from regtune.study.ownership import hold, holder

LONG = {"run_cap": 5, "training": {"batch_size": 8, "max_epochs": 20}, "early_stopping": {"patience": 20}}
MOST_SECONDS = 40


class Elsewhere:
    """Another machine as far as the network goes: a network namespace, joined to this one by a cable of its own.

    address: of this machine on that cable.
    """

    def __init__(self) -> None:
        number = random.SystemRandom().randrange(2**14)
        self.name, self._cable, self._end = (f"{kind}{number}" for kind in ("regtune", "rtc", "rte"))
        network = IPv4Address("10.213.0.0") + 4 * number
        self.network = f"{network}/30"
        self.address, self._theirs = network + 1, network + 2
        _ip("netns", "add", self.name)
        _ip("link", "add", self._cable, "type", "veth", "peer", "name", self._end)
        _ip("link", "set", self._end, "netns", self.name)
        _ip("address", "add", f"{self.address}/30", "dev", self._cable)
        _ip("link", "set", self._cable, "up")
        _ip("-n", self.name, "link", "set", "lo", "up")
        self.back()
        _ip("-n", self.name, "link", "set", self._end, "up")

    def vanish(self) -> None:
        """From now on nothing that is sent there is answered, and nothing comes from there: no end, no reset."""
        _ip("-n", self.name, "address", "flush", "dev", self._end)

    def back(self) -> None:
        _ip("-n", self.name, "address", "add", f"{self._theirs}/30", "dev", self._end)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def elsewhere() -> Iterator[Elsewhere]:
    if shutil.which("ip") is None:
        missing("ip is not at hand: apt-get install iproute2")
    try:
        there = Elsewhere()
    except subprocess.CalledProcessError as error:
        missing(f"a network namespace needs the right to make one: {error.stderr.decode()}")
    try:
        yield there
    finally:
        _ip("netns", "delete", there.name)  # the cable goes with it


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[tuple[Place, Place, Elsewhere]]:
    """One project on a PostgreSQL of this machine: as it is worked on here, and there."""
    with elsewhere() as there, postgres() as server, place_on("postgres", tmp_path, server) as here:
        with (server.socket / "pg_hba.conf").open("a") as accounts:
            accounts.write(f"host all all {there.network} trust\n")
        server.control("stop", "-m", "fast")
        server.control("start", "-o", f"-h {there.address}")
        environment = {
            name: re.sub(r"@/(\w+)\?host=.*", rf"@{there.address}/\1", value)
            for name, value in here.environment.items()
        }
        assert str(there.address) in environment["OPTUNA_STORAGE"]
        yield here, replace(here, environment=environment, prefix=("ip", "netns", "exec", there.name)), there


@pytest.mark.parametrize("back", ["while it runs", pytest.param("after its end", marks=pytest.mark.proof)])
def test_a_machine_that_vanishes_gives_its_study_up_and_leaves_it_to_the_one_that_took_it(
    shared: tuple[Place, Place, Elsewhere], back: str
) -> None:
    place, away, there = shared
    with away.sweep(**LONG) as cut_off:
        cut_off.until_finished(1)
        there.vanish()
        busy = f'study "small" is being run by process {cut_off.process.pid} on '
        with pytest.raises(StudyBusy, match=busy), hold(place.settings, "small"):
            pass
        until(lambda: holder(place.settings, "small") is None, MOST_SECONDS)
        with place.sweep(**LONG) as second:
            if back == "after its end":
                second.ended()
            else:
                second.until_finished(2)
                second.signal(signal.SIGSTOP)  # so that it has not ended before the other sees it
            there.back()
            said = cut_off.ended(code=1)
            if back == "while it runs":
                second.signal(signal.SIGCONT)
            second.ended()
    assert ("was run by another process" if back == "after its end" else "is being run by process") in said
    assert_consistent(place, run_cap=5)
