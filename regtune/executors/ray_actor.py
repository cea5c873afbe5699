"""An actor of a Ray cluster: one worker on the actor's node, in a process of its own as on this machine.

So limits, last words, a worker's replacement and its arithmetic are those of `local`. A worker ends with its actor.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from regtune.data.datasets import Arrays, digest_of_set
from regtune.executors import Event, Task, TrialEnded, TrialFailed
from regtune.executors.local import LocalExecutor
from regtune.training.result import Verdict
from regtune.training.runtime import NO_GPU

PACKAGES = ("regtune", "tensorflow", "keras", "numpy")
POLL_SECONDS = 0.2


def versions() -> dict[str, str]:
    """Versions on this machine that must be the same on every node."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for name in PACKAGES:
        for distribution in (name, f"{name}-cpu"):
            with suppress(PackageNotFoundError):
                found[name] = version(distribution)
    return found


class Actor:
    """One worker on this node. `place` first, then `begin`, then one `turn` after another."""

    def __init__(self) -> None:
        self._executor: LocalExecutor | None = None
        self._folder, self._uid, self._address = Path(), "", ""

    def place(self) -> tuple[str, str, Mapping[str, str]]:
        """Return the node's id in Ray, its address, and its versions: nothing that regtune defines."""
        import ray

        self._address = ray.util.get_node_ip_address()
        return ray.get_runtime_context().get_node_id(), self._address, versions()

    def begin(self, number: int, arrays: Arrays, gpus: bool) -> str:
        """Start with a data set, as worker `number`. Returns the digest of what has arrived."""
        found = os.environ.get("CUDA_VISIBLE_DEVICES", NO_GPU) if gpus else NO_GPU
        self._executor = LocalExecutor(1, arrays, first=number, gpus=found)
        return digest_of_set((arrays.x_train, arrays.y_train, arrays.x_test, arrays.y_test))

    def turn(self, message: Task | Verdict | None) -> tuple[Sequence[Event], Mapping[str, bytes]]:
        """Hand the worker a task or an epoch's verdict, or nothing, and wait until something has happened.

        Returns the events, and by its name each file that a task has left which ended.
        """
        assert self._executor is not None
        told: list[Event] = []
        if isinstance(message, Task):
            told += self._executor.events(0)  # a worker that died since its last task is replaced
            self._folder = Path(tempfile.gettempdir()) / f"regtune-{message.uid}"
            keeps = message.folder is not None
            self._executor.submit(replace(message, folder=self._folder if keeps else None))
            self._uid = message.uid
        elif message is not None:
            self._executor.decide(self._uid, message)
        while not told:
            told += self._executor.events(POLL_SECONDS)
        told = [self._located(event) for event in told]
        files = {}
        for event in told:
            if isinstance(event, TrialEnded):
                files = {name: (self._folder / name).read_bytes() for name in event.artifacts}
            if isinstance(event, TrialEnded | TrialFailed):
                shutil.rmtree(self._folder, ignore_errors=True)
        return told, files

    def _located(self, event: Event) -> Event:
        """The event, and of a disk that is full, whose it is."""
        if isinstance(event, TrialFailed) and event.reason == "disk_full":
            return replace(event, message=f"{event.message} on node {self._address}")
        return event
