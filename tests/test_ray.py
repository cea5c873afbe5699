"""Training on a Ray cluster: what it promises beyond what every executor does."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from faults.harness import assert_consistent
from parts import RayNodes, file_system, ray_cluster, require_ray
from places import place_on
from stores import free_port, until
from terminals import imported, run_here
from test_executors import SMALL, collect, last, task

from regtune.credentials import ADMIN_PASSWORD
from regtune.data.datasets import load_arrays
from regtune.errors import SettingsError, WorkerError
from regtune.executors import TrialEnded, TrialFailed, TrialStarted, WorkerDied, ray_driver
from regtune.executors import ray as executors_ray
from regtune.executors.ray import RayExecutor
from regtune.executors.ray_driver import RayCluster

ARRAYS = load_arrays(SMALL.data.name)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayNodes]:
    with ray_cluster(free_port()) as nodes:
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
    with closing(RayExecutor(RayCluster(cluster.address), ARRAYS)) as executor:
        assert executor.idle == 2
        executor.submit(task(tmp_path))
        executor.submit(task(tmp_path, "b"))
        told = collect(executor, TrialEnded) + collect(executor, TrialEnded)
        assert executor.idle == 1
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
        environment = psutil.Process(executor.pids[0]).environ()
        assert environment["CUDA_VISIBLE_DEVICES"] == "0"
        assert environment["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"
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
def test_without_an_address_a_cluster_on_127_0_0_1_ends_with_its_sweep_however_that_ends(
    tmp_path: Path,
) -> None:
    require_ray()
    changes = {"run_cap": 3, "training": {"batch_size": 4, "max_epochs": 6}}
    with place_on("sqlite", tmp_path, None) as place:
        environment = {**place.environment, ADMIN_PASSWORD: "for the server alone"}
        on_ray = replace(place, options=["--on", "ray"], environment=environment)
        with on_ray.sweep(workers=2, **changes) as sweep:
            sweep.until_epochs(1)
            names, addresses, told = set(), set(), set()
            for process in place.processes():
                with suppress(psutil.NoSuchProcess):
                    names.add(process.name())
                    told |= {process.pid} if ADMIN_PASSWORD in process.environ() else set()
                    listening = [one for one in process.net_connections() if one.status == psutil.CONN_LISTEN]
                    addresses |= {one.laddr.ip.removeprefix("::ffff:") for one in listening}
            sweep.process.kill()
            sweep.process.wait()
        assert names >= {"raylet", "gcs_server"}
        assert told == {sweep.process.pid}  # of a secret
        assert addresses == {"127.0.0.1"}
        until(lambda: not place.processes(), 60)
        with on_ray.sweep(workers=2, **changes) as sweep:
            sweep.ended()
        assert_consistent(place, run_cap=3)  # and nothing runs


def test_ray_that_is_not_installed_or_not_there_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, said = run_here(capsys, "sweep", "any.yaml", "--address", "auto", "--cpus-per-trial", "2")
    assert (code, "--address, --cpus-per-trial: expected only with --on ray" in said) == (2, True)
    monkeypatch.setattr(executors_ray, "find_spec", lambda name: None)
    with pytest.raises(WorkerError, match=r'try: pip install "regtune\[ray\]"'):
        RayExecutor(RayCluster(), ARRAYS)


def made_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workers: int) -> tuple[RayExecutor, Connection]:
    """An executor with as many tasks as its cluster has room for, and the side of its driver."""
    ours, driver = Pipe()
    child = SimpleNamespace(connection=ours, wait=lambda seconds: "")
    monkeypatch.setattr(executors_ray, "Child", lambda *given: child)
    driver.send(ray_driver.Room(workers))
    executor = RayExecutor(RayCluster("auto"), ARRAYS)
    for number in range(workers):
        executor.submit(task(tmp_path, f"trial {number}"))
    return executor, driver


def test_a_node_that_takes_all_actors_with_it_before_they_are_ready_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    executor, driver = made_up(monkeypatch, tmp_path, 8)
    for _ in range(8):
        driver.send(ray_driver.Lost(driver.recv().worker, "the node is gone"))
    assert len(executor.events(1.0)) == 8
    assert [type(driver.recv()) for _ in range(8)] == [ray_driver.Hire] * 8


def test_tasks_that_no_actor_has_are_taken_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    executor, driver = made_up(monkeypatch, tmp_path, 3)
    hired = [driver.recv().worker for _ in range(3)]
    driver.send(ray_driver.Hired(hired[1]))
    executor.events(1.0)
    assert driver.recv() == ray_driver.Turn(hired[1], task(tmp_path, "trial 0"))
    assert executor.withdraw() == ["trial 1", "trial 2"]
    assert (executor.idle, executor.withdraw()) == (2, [])
    executor.events(0.0)
    assert [driver.recv() for _ in range(2)] == [ray_driver.Dismiss(hired[0]), ray_driver.Dismiss(hired[2])]
    assert not driver.poll()


@pytest.mark.slow
def test_gpus_that_this_machine_lacks_are_said() -> None:
    require_ray()
    with pytest.raises(
        WorkerError, match="this machine's Ray cluster has too few GPUs for --gpus-per-trial 64"
    ):
        RayExecutor(RayCluster(None, 1.0, 64.0), ARRAYS, 1)


@pytest.mark.parametrize(("workers", "losses"), [(1, 4), (8, 16)])
def test_actors_that_are_lost_before_they_are_ready_again_and_again_end_the_sweep(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workers: int, losses: int
) -> None:
    executor, driver = made_up(monkeypatch, tmp_path, workers)
    for number in range(1, losses + 1):
        driver.send(ray_driver.Lost(driver.recv().worker, "no TensorFlow there"))
        if number < losses:
            assert [type(event) for event in executor.events(1.0)] == [WorkerDied]
    with pytest.raises(WorkerError, match="workers die before they are ready: no TensorFlow there"):
        executor.events(1.0)


def test_a_connection_that_ray_client_breaks_off_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    require_ray()
    import ray

    tries: list[object] = []

    def init(**options: object) -> None:
        tries.append(options["address"])
        if len(tries) != 3:
            raise ConnectionAbortedError("Starting Ray client server failed")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_DEDUP_LOGS"):
        monkeypatch.setenv(name, "0")
    assert ray_driver.connect(RayCluster("auto"), 2, str(tmp_path)) is ray
    assert tries == ["auto"] * 3
    with pytest.raises(ConnectionAbortedError):
        ray_driver.connect(RayCluster("auto"), 2, str(tmp_path))
    assert len(tries) == 3 + ray_driver.CONNECT_TRIES
    monkeypatch.setattr(ray_driver, "CONNECT_SECONDS", 0.0)
    with pytest.raises(ConnectionAbortedError):
        ray_driver.connect(RayCluster("auto"), 2, str(tmp_path))
    assert len(tries) == 4 + ray_driver.CONNECT_TRIES


@pytest.mark.slow
def test_a_task_that_finds_no_room_is_a_demand_that_an_autoscaler_sees(
    cluster: RayNodes, tmp_path: Path
) -> None:
    def demands() -> str:
        command = [Path(sys.executable).with_name("ray"), "status", "--address", cluster.address]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    nodes = [cluster.add_node(1)]
    with closing(RayExecutor(RayCluster(cluster.address), ARRAYS, 2)) as executor:
        for uid in ("a", "b"):
            executor.submit(task(tmp_path, uid))
        until(lambda: "{'CPU': 1.0}: 1+ pending tasks/actors" in demands(), 60, 1)
        nodes.append(cluster.add_node(1))
        until(lambda: "(no resource demands)" in demands(), 60, 1)
    for node in nodes:
        cluster.cluster.remove_node(node)


@pytest.mark.slow
def test_through_ray_client_a_node_s_full_disk_is_named_models_come_back_and_no_actor_is_left(
    cluster: RayNodes, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    node = cluster.add_node(1, env_vars={"TMPDIR": str(small)})
    with closing(RayExecutor(RayCluster(f"ray://127.0.0.1:{cluster.client_port}"), ARRAYS)) as executor:
        with file_system(small, "size=64k"):
            executor.submit(task(tmp_path))
            failed = last(executor, TrialFailed)
        assert (failed.reason, failed.message) == ("disk_full", f"{small}/regtune-a on node 127.0.0.1")
        executor.submit(task(tmp_path))
        ended = last(executor, TrialEnded)
        pid = executor.pids[0]
    found = hashlib.sha256((tmp_path / "a" / "model.keras").read_bytes()).hexdigest()
    assert ended.artifacts == {"model.keras": found}
    until(lambda: not psutil.pid_exists(pid))
    cluster.cluster.remove_node(node)


@pytest.mark.parametrize("address", ["local", "127.0.0.1", "ray://head", "http://head:8265", "head:6379/x"])
def test_an_address_is_auto_or_names_a_port(address: str) -> None:
    with pytest.raises(SettingsError, match=f"expected auto, HOST:PORT or ray://HOST:PORT, found {address}"):
        RayCluster(address)


def test_a_process_that_does_not_use_ray_does_not_import_it() -> None:
    assert "ray" not in imported("import regtune.cli.run, regtune.evidence.run, regtune.sweep.plan")


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_named() -> None:
    require_ray()
    with pytest.raises(WorkerError, match=r"the Ray cluster at 127\.0\.0\.1:1 cannot be used: "):
        RayExecutor(RayCluster("127.0.0.1:1"), ARRAYS)
