"""Parts that a test needs and a machine may lack: missing ones skip with a reason, and fail in CI."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """Skip the test, or fail it where `CI` is set: there nothing may be missing."""
    if os.environ.get("CI"):
        pytest.fail(f"in CI this must be present: {reason}", pytrace=False)
    pytest.skip(reason)


DATA_FOLDERS = [
    Path(folder).expanduser().resolve()  # now, because every test changes into a folder of its own
    for folder in (os.environ.get("REGTUNE_DATA_DIR"), "~/.keras/datasets")
    if folder
]


def full_mnist() -> Path:
    for folder in DATA_FOLDERS:
        if (folder / "mnist.npz").exists():
            return folder
    missing("the full MNIST is not at hand: set REGTUNE_DATA_DIR")


def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    return found or missing("Chromium is not installed")


def require_ray() -> None:
    """Skip the test where Ray is not installed."""
    if find_spec("ray") is None:
        missing('Ray is not installed: pip install "regtune[ray]"')


@dataclass
class RayNodes:
    """A Ray cluster on this machine's 127.0.0.1; its head has no processor for actors.

    client_port: Ray Client's.
    """

    cluster: Any
    client_port: int | None

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add_node(self, cpus: int, **options: Any) -> Any:
        return self.cluster.add_node(num_cpus=cpus, node_ip_address="127.0.0.1", **options)


@contextmanager
def ray_cluster(client_port: int | None = None) -> Iterator[RayNodes]:
    """Start a Ray cluster without nodes that train, for the block."""
    os.environ |= {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # 127.0.0.1
        "RAY_USAGE_STATS_ENABLED": "0",
        "GRPC_ENABLE_FORK_SUPPORT": "0",  # gRPC in a fork: Ray Client's servers die of it now and then
        "RAY_worker_niceness": "0",  # of 15 by default, which on a busy machine gets nothing
        "RAY_health_check_period_ms": "500",  # a node's loss is noticed after 5 of them, of 3 s each by default
    }
    require_ray()
    from ray.cluster_utils import Cluster

    head = {
        "num_cpus": 0,
        "include_dashboard": False,
        "node_ip_address": "127.0.0.1",
        "ray_client_server_port": client_port,
    }
    ours = signal.getsignal(signal.SIGTERM)
    cluster = Cluster(initialize_head=True, head_node_args=head)
    signal.signal(signal.SIGTERM, ours)  # in the place of Ray's
    try:
        yield RayNodes(cluster, client_port)
    finally:
        cluster.shutdown()


@contextmanager
def file_system(folder: Path, options: str) -> Iterator[None]:
    """A small file system of its own at `folder`, mounted with `options`: to be full, or read-only."""
    mount = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    if (
        shutil.which("mount") is None
        or subprocess.run(mount, check=False, capture_output=True).returncode != 0
    ):
        missing("a file system of its own needs the right to mount one")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
