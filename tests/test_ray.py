"""Training on a Ray cluster: what it promises beyond what every executor does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from faults.harness import assert_consistent, what_repeats
from parts import RayNodes, ray_cluster, require_ray
from places import place_on
from stores import until
from terminals import run_here
from test_executors import SMALL, collect, last, task

from regtune.data.datasets import load_arrays
from regtune.errors import WorkerError
from regtune.executors import TrialEnded, TrialStarted, WorkerDied
from regtune.executors import ray as executors_ray
from regtune.executors.ray import RayExecutor
from regtune.executors.ray_driver import RayCluster

ARRAYS = load_arrays(SMALL.data.name)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayNodes]:
    with ray_cluster() as nodes:
        yield nodes


def other_version(folder: Path) -> dict[str, str]:
    """An environment in which Keras says that it is of another version."""
    stub = folder / "keras-1.2.3.dist-info"
    stub.mkdir()
    (stub / "METADATA").write_text("Metadata-Version: 2.1\nName: keras\nVersion: 1.2.3\n")
    return {"PYTHONPATH": str(folder)}


@pytest.mark.slow
def test_a_node_with_other_versions_gets_no_work_and_is_named_and_none_else_ends_it(
    cluster: RayNodes, tmp_path: Path
) -> None:
    wrong = cluster.add_node(1, env_vars=other_version(tmp_path))
    said = "node 127.0.0.1 has other versions: keras 1.2.3, here 3"
    with closing(RayExecutor(RayCluster(cluster.address), ARRAYS)) as executor:
        executor.submit(task(tmp_path))
        with pytest.raises(WorkerError, match=said):
            collect(executor, TrialStarted)
    right = cluster.add_node(1)
    with closing(RayExecutor(RayCluster(cluster.address), ARRAYS, 2)) as executor:
        executor.submit(task(tmp_path))
        executor.submit(task(tmp_path, "b"))
        told = collect(executor, TrialEnded) + collect(executor, TrialEnded)
    (note,) = (event.message for event in told if isinstance(event, WorkerDied))
    assert said in note
    for node in (wrong, right):
        cluster.cluster.remove_node(node)


@pytest.mark.slow
def test_actors_come_as_nodes_join_and_go_when_they_have_no_task(
    cluster: RayNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [cluster.add_node(1, num_gpus=1)]
    with closing(RayExecutor(RayCluster(cluster.address, 0.5, 0.5), ARRAYS)) as executor:
        assert executor.idle == 2
        executor.submit(task(tmp_path))
        collect(executor, TrialStarted)
        assert psutil.Process(executor.pids[0]).environ()["CUDA_VISIBLE_DEVICES"] == "0"
        nodes.append(cluster.add_node(1, num_gpus=1))
        last(executor, TrialEnded)
        until(lambda: [executor.events(0.1)] and executor.idle == 4)
        monkeypatch.setattr(executors_ray, "IDLE_SECONDS", 0.0)
        pid = executor.pids[0]
        until(lambda: [executor.events(0.1)] and not psutil.pid_exists(pid))
        executor.submit(task(tmp_path))
        last(executor, TrialEnded)
    for node in nodes:
        cluster.cluster.remove_node(node)


@pytest.mark.slow
def test_without_an_address_a_cluster_on_127_0_0_1_lives_as_long_as_the_sweep_and_figures_are_the_same(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    require_ray()
    changes = {"method": "random", "run_cap": 3, "training": {"batch_size": 4, "max_epochs": 6}}
    with place_on("sqlite", tmp_path_factory.mktemp("ray"), None) as place:
        on_ray = replace(place, options=["--on", "ray"])
        with on_ray.sweep(workers=2, **changes) as sweep:
            sweep.until_epochs(1)
            started = [
                psutil.Process(sweep.process.pid),
                *psutil.Process(sweep.process.pid).children(recursive=True),
            ]
            addresses = {
                connection.laddr.ip
                for process in started
                for connection in process.net_connections()
                if connection.status == psutil.CONN_LISTEN
            }
            sweep.ended()
        assert addresses == {"127.0.0.1"}
        assert_consistent(place, run_cap=3)
        assert not [process for process in started if process.is_running()]
    with place_on("sqlite", tmp_path_factory.mktemp("local"), None) as local:
        with local.sweep(workers=2, **changes) as sweep:
            sweep.ended()
        assert what_repeats(place) == what_repeats(local)


def test_ray_that_is_not_installed_or_not_there_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, said = run_here(capsys, "sweep", "any.yaml", "--address", "auto", "--cpus-per-trial", "2")
    assert (code, "--address, --cpus-per-trial: expected only with --on ray" in said) == (2, True)
    monkeypatch.setattr(executors_ray, "find_spec", lambda name: None)
    with pytest.raises(WorkerError, match=r'try: pip install "regtune\[ray\]"'):
        RayExecutor(RayCluster(), ARRAYS)


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_named() -> None:
    require_ray()
    with pytest.raises(WorkerError, match=r"the Ray cluster at 127\.0\.0\.1:1 cannot be used: "):
        RayExecutor(RayCluster("127.0.0.1:1"), ARRAYS)
