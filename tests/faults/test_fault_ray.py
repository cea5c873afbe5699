"""A Ray cluster loses its driver, a node, its head: each costs an attempt at most, never a trial."""

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
from places import MARK, Place, place_on
from stores import until
from test_fault_workers import failures

LONG = {"training": {"batch_size": 4, "max_epochs": 30}, "early_stopping": {"patience": 30}, "run_cap": 2}
REPORTED = "trials.state = 'RUNNING' AND trials.trial_id IN (SELECT trial_id FROM trial_intermediate_values)"


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayNodes]:
    """A head, which the last test ends, and a node with two processors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, uuid.uuid4().hex)
        patch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "5")  # of 60: how long a head may be away
        with ray_cluster() as nodes:
            nodes.add_node(2)
            yield nodes


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with place_on("sqlite", tmp_path, None) as place:
        yield place


def on(cluster: RayNodes, place: Place) -> Place:
    return replace(place, options=["--on", "ray", "--address", cluster.address])


def trainers() -> list[psutil.Process]:
    """The processes of workers on the nodes, those that have lost their parents among them."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            marked = process.environ().get(MARK) == os.environ[MARK]
            found += [process] if marked and "regtune.forks" in " ".join(process.cmdline()) else []
    return found


def test_a_killed_driver_leaves_no_actor_and_its_study_goes_on_there_and_here_as_if_undisturbed(
    cluster: RayNodes, place: Place, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with place.sweep(**LONG) as sweep:
        sweep.until_epochs(4)
        sweep.kill()
    with on(cluster, place).sweep(**LONG) as sweep:
        sweep.until_finished(1)
        assert trainers()
        sweep.kill()
        until(lambda: not trainers(), 60)
    with place.sweep(**LONG) as sweep:
        sweep.ended()
    assert_consistent(place, run_cap=2)
    with place_on("sqlite", tmp_path_factory.mktemp("local"), None) as local:
        with local.sweep(**LONG) as sweep:
            sweep.ended()
        assert what_repeats(place) == what_repeats(local)


def test_a_node_lost_costs_its_trials_one_attempt_each_and_one_that_joins_takes_work(
    cluster: RayNodes, place: Place
) -> None:
    (node,) = cluster.cluster.worker_nodes
    with on(cluster, place).sweep(workers=2, **{**LONG, "run_cap": 3}) as sweep:
        sweep.until(lambda: sweep.count("trials", REPORTED) == 2, "two trials with epochs")
        cluster.cluster.remove_node(node, allow_graceful=False)
        sweep.until(lambda: not trainers(), "the node's end")
        cluster.add_node(2)
        sweep.ended()
    assert [(one.end_reason, one.attempt) for one in failures(place)] == [("worker_died", 1)] * 2
    assert_consistent(place, run_cap=3, failed=2)


def test_a_head_that_dies_ends_a_study_that_resumes_on_this_machine(cluster: RayNodes, place: Place) -> None:
    address = cluster.address
    with on(cluster, place).sweep(workers=2, **LONG) as sweep:
        sweep.until_epochs(4)
        cluster.cluster.remove_node(cluster.cluster.head_node, allow_graceful=False)
        said = " ".join(sweep.ended(1).split())
    assert f"the Ray cluster at {address} is gone (exit code 1: Failed to connect to GCS within 5 sec" in said
    assert f"resume with: regtune sweep {place.name}.yaml --on ray --address {address}" in said
    until(lambda: not trainers(), 60)
    with place.sweep(**LONG) as sweep:
        sweep.ended()
    assert_consistent(place, run_cap=2, failed=len(failures(place)))
