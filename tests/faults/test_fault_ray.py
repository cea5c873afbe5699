"""A Ray cluster loses a node, its head, its driver: each costs an attempt at most, never a trial."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from harness import assert_consistent, what_repeats
from parts import RayNodes, ray_cluster
from places import MARK, Place, Sweep, place_on
from stores import until
from test_fault_workers import failures

LONG = {"training": {"batch_size": 4, "max_epochs": 20}, "early_stopping": {"patience": 20}, "run_cap": 3}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[RayNodes]:
    """A head, and two nodes with one processor each."""
    monkeypatch.setenv(MARK, uuid.uuid4().hex)
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "5")  # of 60: how long a head may be away
    with ray_cluster() as nodes:
        nodes.add_node(1)
        nodes.add_node(1)
        yield nodes


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with place_on("sqlite", tmp_path, None) as place:
        yield place


def on(cluster: RayNodes, place: Place) -> Place:
    return replace(place, options=["--on", "ray", "--address", cluster.address])


def trainers() -> list[psutil.Process]:
    """The processes that train on the cluster's nodes, those that have lost their parents among them."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            marked = process.environ().get(MARK) == os.environ[MARK]
            found += [process] if marked and "regtune.executors.worker" in " ".join(process.cmdline()) else []
    return found


def until_trainers(sweep: Sweep, count: int) -> None:
    sweep.until(lambda: len(trainers()) == count, f"{count} processes that train")


def test_a_node_lost_costs_its_trial_one_attempt_and_one_that_joins_takes_work(
    cluster: RayNodes, place: Place
) -> None:
    lost = cluster.cluster.list_all_nodes()[-1]
    with on(cluster, place).sweep(workers=2, **LONG) as sweep:
        until_trainers(sweep, 2)
        sweep.until_epochs(4)
        cluster.cluster.remove_node(lost, allow_graceful=False)
        sweep.until_finished(1)
        until_trainers(sweep, 1)
        cluster.add_node(1)
        until_trainers(sweep, 2)
        sweep.ended()
    (failed,) = failures(place)
    assert (failed.end_reason, failed.attempt) == ("worker_died", 1)
    assert_consistent(place, run_cap=3, failed=1)


def test_a_head_that_dies_ends_a_study_that_resumes_on_this_machine(cluster: RayNodes, place: Place) -> None:
    with on(cluster, place).sweep(workers=2, **LONG) as sweep:
        sweep.until_epochs(4)
        cluster.cluster.remove_node(cluster.cluster.head_node, allow_graceful=False)
        said = " ".join(sweep.ended(1).split())
    assert f"the Ray cluster at {cluster.address} is gone" in said
    assert f"resume with: regtune sweep {place.name}.yaml --on ray --address {cluster.address}" in said
    until(lambda: not trainers(), 120)
    with place.sweep(**LONG) as sweep:
        sweep.ended()
    assert_consistent(place, run_cap=3, failed=len(failures(place)))


def test_a_killed_driver_leaves_no_actor_and_its_study_ends_on_ray_as_on_this_machine(
    cluster: RayNodes, place: Place, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with on(cluster, place).sweep(**LONG) as sweep:
        sweep.until_epochs(4)
        assert trainers()
        sweep.kill()
        until(lambda: not trainers(), 120)
    with on(cluster, place).sweep(**LONG) as sweep:
        sweep.ended()
    assert_consistent(place, run_cap=3)
    with place_on("sqlite", tmp_path_factory.mktemp("local"), None) as local:
        with local.sweep(**LONG) as sweep:
            sweep.ended()
        assert what_repeats(place) == what_repeats(local)
