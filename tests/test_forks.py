"""Forks: children of one process that has imported what they need, on real processes."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.connection import Connection

import psutil
import pytest
from stores import until

from regtune.forks import SAFE, Forks
from regtune.processes import Child, Process

pytestmark = pytest.mark.skipif(not SAFE, reason="this system's libraries do not survive a fork")

prepared_by: list[int] = []


def prepare() -> None:
    """What a server calls once: this module is one that children run."""
    prepared_by.append(os.getpid())


def main(link: Connection, way: str) -> None:
    """Say who prepared this process, then end as asked."""
    link.send((prepared_by, os.getpid(), os.getppid()))
    if way == "error":
        raise ValueError("what went wrong")
    if way in ("never", "killed"):
        signal.pause()


@pytest.fixture
def forks() -> Iterator[Forks]:
    with closing(Forks("test_forks", os.environ)) as forks:
        yield forks


def said(child: Child) -> tuple[list[int], int, int]:
    assert child.connection.poll(300)
    prepared, own, parent = child.connection.recv()
    return prepared, own, parent


def test_children_are_forks_of_the_process_that_prepared_once_and_say_how_they_ended(forks: Forks) -> None:
    children = {way: forks.child(way) for way in ("returns", "error", "never", "killed")}
    server = said(children["killed"])[2]
    for way in ("returns", "error", "never"):
        assert said(children[way]) == ([server], children[way].pid, server)
    assert children["returns"].wait() == "exit code 0"
    assert children["error"].wait() == "exit code 1: ValueError: what went wrong"
    assert children["never"].wait(0.1) == "signal SIGKILL"
    children["killed"].kill()
    assert children["killed"].wait() == "signal SIGKILL"
    assert not psutil.Process(server).children()


def test_a_server_that_is_killed_is_replaced_and_its_forks_go_on(forks: Forks) -> None:
    before = forks.child("never")
    server = psutil.Process(said(before)[2])
    server.kill()
    until(lambda: server.status() == psutil.STATUS_ZOMBIE)
    after = forks.child("never")
    assert said(after)[2] != server.pid
    assert psutil.Process(before.pid).is_running()
    for child in (before, after):
        child.kill()
        assert child.wait() == "signal SIGKILL"


def test_too_many_open_files_are_an_error_and_nothing_waits_for_ever(
    forks: Forks, monkeypatch: pytest.MonkeyPatch
) -> None:
    said(forks.child("returns"))

    def fail(*_: int) -> Process:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(forks, "_fork", fail)
    with pytest.raises(OSError, match="Too many open files"):
        forks.child("returns")


def test_a_child_that_was_never_forked_ends_as_its_server_did() -> None:
    with closing(Forks("no_such_module", os.environ)) as forks:
        assert forks.child().wait(300) == "exit code 1: ModuleNotFoundError: No module named 'no_such_module'"


def test_a_child_that_is_killed_before_it_was_forked_leaves_room_for_another(forks: Forks) -> None:
    child = forks.child("never")
    child.kill()
    assert child.wait() == "signal SIGKILL"
    another = forks.child("returns")
    said(another)
    assert another.wait() == "exit code 0"
