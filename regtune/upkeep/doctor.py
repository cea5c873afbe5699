"""The checks of `doctor`: whether everything a sweep needs works, and how to fix what does not."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import psutil

from regtune import __version__
from regtune.data.datasets import expanded, list_datasets
from regtune.errors import SettingsError
from regtune.escaping import printable
from regtune.executors.local import default_workers
from regtune.settings import Settings
from regtune.storage import redact
from regtune.storage.mlflow import check_patience
from regtune.storage.sqlite import may_write
from regtune.training.runtime import OF_OTHERS, environment_of_worker
from regtune.upkeep.status import DatabaseStatus, Status, look

State = Literal["ok", "note", "mend"]
PACKAGES = ("tensorflow", "keras", "optuna", "mlflow", "sqlalchemy", "numpy", "pydantic", "typer", "rich")
KERAS_DEFAULTS = {
    "floatx": "float32",
    "epsilon": 1e-07,
    "backend": "tensorflow",
    "image_data_format": "channels_last",
}
"""Keras writes them into `keras.json` by itself."""
OF_TERRAFORM = (
    *("TF_CLI_", "TF_DATA_DIR", "TF_IN_AUTOMATION", "TF_LOG"),
    *("TF_PLUGIN_", "TF_TOKEN_", "TF_VAR_", "TF_WORKSPACE"),
)
"""Begin like TensorFlow's, and are none."""
WANTED_FREE_BYTES = 2 * 10**9
WANTED_MEMORY_BYTES_A_WORKER = 10**9


@dataclass(frozen=True)
class Check:
    """One thing checked. status: `ok`, `note` (works, worth knowing) or `mend`. mend: what to do, or empty."""

    name: str
    status: State
    found: str
    mend: str = ""


def examine(settings: Settings) -> list[Check]:
    """Check everything; nothing is changed and TensorFlow is not imported."""
    status = look(settings, compare=False)
    studies, mlflow = status.databases
    return [
        _python(),
        *_packages(),
        *_of_others(),
        _processor(),
        _memory(settings),
        _folder(settings),
        _disk(status),
        _database("studies", "OPTUNA_STORAGE", studies, _running(status)),
        _server(status) if status.server.foreign else _database("MLflow", "MLFLOW_TRACKING_URI", mlflow),
        *_strays(status),
        *_data(settings),
    ]


def _python() -> Check:
    here = platform.python_version()
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Check("python", "ok", f"{here}, {platform.system()} {platform.machine()}")
    return Check("python", "mend", here, "install Python 3.11 to 3.13")


def _packages() -> list[Check]:
    installed = {name: _version(name) for name in PACKAGES}
    installed["tensorflow"] = _version("tensorflow-cpu") or _version("tensorflow")
    present = [f"regtune {__version__}", *(f"{name} {here}" for name, here in installed.items() if here)]
    missing = [name for name, here in installed.items() if not here]
    checks = [Check("packages", "ok", ", ".join(present))]
    if missing:
        checks.append(Check("packages", "mend", f"missing: {', '.join(missing)}", "pip install regtune"))
    torch = importlib.util.find_spec("torch")
    needs = "needs torch: pip install regtune[gp]"
    return [*checks, Check("method gp", "ok" if torch else "note", "can be used" if torch else needs)]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _of_others() -> list[Check]:
    """What is set here for other programs that use Keras, and files that a script would import in its place."""
    ours = environment_of_worker({}) | {"KERAS_HOME": os.environ.get("KERAS_HOME")}
    meant = (name for name in sorted(os.environ) if name.startswith(OF_OTHERS))
    ignored = [name for name in meant if os.environ[name] != ours.get(name)]
    ignored = [name for name in ignored if not name.startswith(OF_TERRAFORM)]
    settings = expanded(Path(os.environ.get("KERAS_HOME") or "~/.keras")) / "keras.json"
    try:
        values = json.loads(settings.read_bytes())
        ignored += [f"{key} in {settings}" for key in values if KERAS_DEFAULTS.get(key) != values[key]]
    except OSError:
        pass
    except (ValueError, TypeError, RecursionError):
        ignored.append(f"{settings}, which is damaged")
    folders = dict.fromkeys(("", *os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    names = "keras.py", "keras/__init__.py", "tensorflow.py", "tensorflow/__init__.py"
    files = (Path(folder, name).absolute() for folder in folders for name in names)
    shadows = [str(file) for file in files if file.exists()]
    if not ignored and not shadows:
        return []
    told = printable(", ".join(ignored + shadows))
    mend = "rename the file: scripts beside it import it in place of the package" if shadows else ""
    return [Check("Keras", "note", f"workers ignore what is meant for other programs: {told}", mend)]


def _processor() -> Check:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    here = f"{values.get('model name', platform.machine())}, {default_workers()} cores for workers"
    if platform.machine() in ("x86_64", "AMD64") and lines and "avx" not in values.get("flags", "").split():
        return Check("processor", "mend", here, "TensorFlow's packages need AVX; use another machine")
    return Check("processor", "ok", here)


def _memory(settings: Settings) -> Check:
    free = psutil.virtual_memory().available
    workers = settings.workers or default_workers()
    here = f"{free / 1e9:.1f} GB free for {workers} workers"
    if free < workers * WANTED_MEMORY_BYTES_A_WORKER:
        return Check("memory", "note", here, "each worker needs about 1 GB; use fewer with --workers")
    return Check("memory", "ok", here)


def _folder(settings: Settings) -> Check:
    home = settings.home.resolve()
    place = next(path for path in (home, *home.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return Check("folder", "mend", f"{home}: {error.strerror}", "make it writable, or set REGTUNE_HOME")
    return Check("folder", "ok", str(home) if home == place else f"{home}, created by the first sweep")


def _disk(status: Status) -> Check:
    short = status.free_bytes < WANTED_FREE_BYTES
    free = f"{status.free_bytes / 1e9:.1f} GB free"
    return Check("disk", "note" if short else "ok", free, "make room" if short else "")


def _database(name: str, variable: str, database: DatabaseStatus, more: str = "") -> Check:
    if database.problem:
        return Check(name, "mend", database.problem, f"repair it, or set {variable} to another one")
    if database.state in ("missing", "empty", "unfinished"):
        return Check(name, "ok", f"{database.place}, created by the first sweep")
    path = Path(database.place)
    if path.is_absolute() and not may_write(path):
        return Check(name, "mend", f"{path}{more}; not writable", "change the file's permissions")
    return Check(name, "ok", database.place + more)


def _running(status: Status) -> str:
    running = [f"{printable(study)} ({who})" for study, who in status.running.items()]
    return f"; running: {', '.join(running)}" if running else ""


def _server(status: Status) -> Check:
    try:
        check_patience()
    except SettingsError as error:
        return Check("MLflow", "mend", str(error), "unset it")
    url, problem = redact(status.server.url or ""), status.server.problem
    if problem:
        return Check("MLflow", "mend", f"{url} {problem}", "start the server, or unset MLFLOW_TRACKING_URI")
    return Check("MLflow", "ok", f"{url} answers")


def _strays(status: Status) -> list[Check]:
    return [
        Check(
            "artifacts",
            "mend" if stray.former else "note",
            str(stray),
            "regtune sync" if stray.former else "",
        )
        for stray in status.strays
    ]


def _data(settings: Settings) -> list[Check]:
    checks = []
    for entry in list_datasets(settings.data_dir):
        mend = "" if entry.where else f"regtune data fetch {entry.name}"
        checks.append(Check(f"data {entry.name}", "note" if mend else "ok", entry.where or "not here", mend))
    return checks
