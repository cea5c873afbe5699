"""An environment of Python with MLflow and Keras in which regtune is not installed."""

from __future__ import annotations

import os
import signal
import subprocess
import sysconfig
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stores import free_port

PROGRAMS = {"mlflow": "mlflow.cli:cli", "uvicorn": "uvicorn.main:main"}


class Stock:
    """A virtual environment that sees this one's packages, but not what a `.pth` file adds, as regtune's does."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder / "venv", with_pip=False, symlinks=True)
        self.folder = folder
        self.programs = folder / "venv" / "bin"
        self.python = self.programs / "python"
        inner = sysconfig.get_path("purelib", vars={"base": str(folder / "venv")})
        (Path(inner) / "packages.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
        for name, entry in PROGRAMS.items():
            module, function = entry.split(":")
            program = self.programs / name
            program.write_text(f"#!{self.python}\nfrom {module} import {function}\n{function}()\n")
            program.chmod(0o755)

    def environment(self, uri: str) -> dict[str, str]:
        """What its programs see: the store, and nothing of this process's Python."""
        kept = {name: text for name, text in os.environ.items() if not name.startswith(("PYTHON", "REGTUNE"))}
        path = f"{self.programs}{os.pathsep}/usr/bin{os.pathsep}/bin"
        return {**kept, "PATH": path, "MLFLOW_TRACKING_URI": uri, "TF_CPP_MIN_LOG_LEVEL": "3"}

    def run(self, code: str, uri: str, *arguments: str) -> str:
        """Run a program of Python; return what it printed."""
        done = subprocess.run(
            [self.python, "-c", code, *arguments],
            **self._process(uri),
            check=False,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextmanager
    def serve(self, model: str, uri: str) -> Iterator[str]:
        """Run `mlflow models serve` until the block ends; gives its address."""
        port = str(free_port())
        words = ["models", "serve", "-m", model, "--env-manager", "local", "-p", port, "-h", "127.0.0.1"]
        with (self.folder / "serve.log").open("w") as log:
            process = subprocess.Popen(
                [self.programs / "mlflow", *words],
                **self._process(uri),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                yield f"http://127.0.0.1:{port}"
            finally:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(60)

    def _process(self, uri: str) -> dict[str, Any]:
        return {"env": self.environment(uri), "cwd": self.folder, "stdin": subprocess.DEVNULL}


def alive(address: str) -> bool:
    """Whether a served model answers `/ping`."""
    try:
        with urllib.request.urlopen(f"{address}/ping", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
