"""Parts that a test needs and a machine may lack: missing ones skip with a reason, and fail in CI."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

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
