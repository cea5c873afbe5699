"""The documents say what the program does: generated parts are up to date, examples run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from regtune.config.sweepfile import SweepSpec

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def block(language: str) -> str:
    """The first code block of a language."""
    found = re.search(rf"```{language}\n(.*?)```", README, re.S)
    assert found is not None
    return found[1]


def test_generated_parts_are_up_to_date() -> None:
    script = [sys.executable, str(ROOT / "docs/readme.py"), "--check"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(script, env=environment, check=False).returncode == 0, "run: make readme"


def test_the_example_of_a_sweep_file_is_the_one_in_sweeps() -> None:
    Path("example.yaml").write_text(block("yaml"))
    assert SweepSpec.load(Path("example.yaml")) == SweepSpec.load(ROOT / "sweeps/mnist.yaml")


def test_the_error_that_is_quoted_is_the_error_that_is_given() -> None:
    quoted = re.search(r"`sweeps/mine\.yaml:\d+: (parameters\.drop_out: .*?)`", README)
    assert quoted is not None
    Path("mine.yaml").write_text(block("yaml").replace("dropout:  ", "drop_out: "))
    with pytest.raises(Exception, match=re.escape(quoted[1])):
        SweepSpec.load(Path("mine.yaml"))


@pytest.mark.slow
def test_the_python_example_runs() -> None:
    (Path("sweeps")).mkdir()
    Path("sweeps/quickstart.yaml").write_text((ROOT / "sweeps/quickstart.yaml").read_text())
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", block("python")], env=environment, check=True, capture_output=True, text=True
    )
    assert len(done.stdout.splitlines()) == 2
    assert Path("model.keras").exists()


@pytest.mark.parametrize(
    "name", sorted(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.M))
)
def test_every_make_target_is_known_to_make(name: str) -> None:
    subprocess.run(["make", "-n", "-C", str(ROOT), name], check=True, capture_output=True)


def test_every_picture_is_there() -> None:
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert pictures
    assert all((ROOT / picture).exists() for picture in pictures)


def test_a_python_that_is_too_old_is_said_with_what_to_do() -> None:
    Path("Makefile").write_text((ROOT / "Makefile").read_text())
    old = Path("python3.10")
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.10.1" && exit 0\nexit 1\n')
    old.chmod(0o755)
    done = subprocess.run(
        ["make", ".venv/.made", f"PYTHON={old.resolve()}"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "regtune needs Python 3.11, 3.12 or 3.13" in done.stderr
    assert "python3.10 is Python 3.10.1" in done.stderr
    assert not Path(".venv").exists()
