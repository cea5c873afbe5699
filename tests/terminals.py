"""Running the command line as a person does: as a process, on a terminal of a given size or in a pipe."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import pexpect
import pyte
import pytest
from typer.main import get_command

from regtune.cli import app, main

ROOT = Path(__file__).resolve().parent.parent
COMMAND = get_command(app)
START = "import sys; sys.argv[0] = 'regtune'; from regtune.cli import main; main()"


def environment(**changes: str) -> dict[str, str]:
    """The environment of a fresh terminal, in which regtune can be imported."""
    kept = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    return kept | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color"} | changes


def regtune(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    command, variables = [sys.executable, "-c", START, *arguments], environment(**changes)
    return subprocess.run(command, capture_output=True, text=True, timeout=400, env=variables, check=False)


def imported(code: str) -> set[str]:
    """Names of the modules that a fresh Python has when it has run `code`."""
    code += "\nimport sys; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
    return {*found.stdout.split()}


def run_here(capsys: pytest.CaptureFixture[str], *arguments: str, **changes: str) -> tuple[int, str, str]:
    """Run a verb in this process, which has these variables meanwhile: exit code, output and errors."""
    words, variables = patch.object(sys, "argv", ["regtune", *arguments]), patch.dict(os.environ, changes)
    with variables, words, patch("regtune.cli.app", COMMAND), pytest.raises(SystemExit) as ended:
        main()
    written = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, written.out, written.err


class Terminal:
    """A verb on a terminal: what it draws is on `screen`, what has scrolled away is kept."""

    def __init__(self, arguments: Sequence[str], *, columns: int, rows: int = 24, **changes: str) -> None:
        self.columns = columns
        self.screen = pyte.HistoryScreen(columns, rows, history=2000)
        self.stream = pyte.ByteStream(self.screen)
        self.raw = b""
        command, variables = ["-c", START, *arguments], environment(**changes)
        size = rows, columns
        self.process = pexpect.spawn(sys.executable, command, dimensions=size, env=variables, timeout=120)

    def read(self, seconds: float) -> bool:
        """Feed the screen for at most `seconds`; false when the process has ended."""
        try:
            found = self.process.read_nonblocking(65536, timeout=seconds)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += found
        self.stream.feed(found)
        return True

    def until(self, text: str | re.Pattern[str], seconds: float = 120) -> str:
        """Read until `text` is on the screen, or what matches it; returns the screen."""
        wanted = re.compile(re.escape(text)) if isinstance(text, str) else text
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            alive = self.read(0.2)
            if wanted.search(self.text):
                return self.text
            if not alive:
                break
        raise AssertionError(f"{wanted.pattern!r} never came; the terminal shows:\n{self.everything}")

    def finish(self) -> int:
        while self.read(60):
            continue
        self.process.close()
        code = self.process.exitstatus
        return int(code if code is not None else -self.process.signalstatus)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    @property
    def everything(self) -> str:
        lines = self.screen.history.top
        gone = ["".join(line[i].data for i in range(self.columns)).rstrip() for line in lines]
        return "\n".join([*gone, self.text])
