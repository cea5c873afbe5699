"""The checks of `doctor`: whether everything a sweep needs works, and how to fix what does not."""

from __future__ import annotations

import importlib.util
import os
import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from regtune.data.datasets import list_datasets
from regtune.escaping import printable
from regtune.executors.local import default_workers
from regtune.settings import Settings
from regtune.storage.artifacts import Stray
from regtune.storage.sqlite import may_write
from regtune.study.study import versions
from regtune.training.runtime import OF_OTHERS
from regtune.upkeep.status import DatabaseStatus, ServerStatus, Status, look

State = Literal["ok", "note", "mend"]
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
    status = look(settings)
    server, (studies, mlflow) = status.server, status.databases
    return [
        _packages(),
        _method_gp(),
        *_ignored(),
        _processor(),
        _memory(settings),
        _folder(settings),
        _disk(status),
        _database("studies", "OPTUNA_STORAGE", studies),
        _server(server) if server.foreign else _database("MLflow", "MLFLOW_TRACKING_URI", mlflow),
        *map(_stray, status.strays),
        *_data(settings),
    ]


def _packages() -> Check:
    here = versions()
    found = ", ".join(f"{name} {version}" for name, version in here.items())
    if missing := {"tensorflow", "keras", "mlflow"} - here.keys():
        return Check("packages", "mend", f"{found}; missing: {', '.join(missing)}", "pip install regtune")
    return Check("packages", "ok", found)


def _method_gp() -> Check:
    if importlib.util.find_spec("torch"):
        return Check("method gp", "ok", "can be used")
    return Check("method gp", "note", "needs torch: pip install regtune[gp]")


def _ignored() -> list[Check]:
    ignored = ", ".join(name for name in sorted(os.environ) if name.startswith(OF_OTHERS))
    said = f"workers ignore what is set for other programs: {printable(ignored)}"
    return [Check("Keras", "note", said)] if ignored else []


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


def _database(name: str, variable: str, database: DatabaseStatus) -> Check:
    if database.problem:
        return Check(name, "mend", database.problem, f"repair it, or set {variable} to another one")
    if database.state in ("missing", "empty", "unfinished"):
        return Check(name, "ok", f"{database.place}, created by the first sweep")
    path = Path(database.place)
    if path.is_absolute() and not may_write(path):
        return Check(name, "mend", f"{path}: not writable", "change the file's permissions")
    return Check(name, "ok", database.place)


def _server(server: ServerStatus) -> Check:
    if server.problem:
        said = f"{server.url} {server.problem}"
        return Check("MLflow", "mend", said, "start the server, or unset MLFLOW_TRACKING_URI")
    return Check("MLflow", "ok", f"{server.url} answers")


def _stray(stray: Stray) -> Check:
    if stray.former:
        return Check("artifacts", "mend", str(stray), "regtune sync")
    return Check("artifacts", "note", str(stray))


def _data(settings: Settings) -> list[Check]:
    checks = []
    for entry in list_datasets(settings.data_dir):
        mend = "" if entry.where else f"regtune data fetch {entry.name}"
        checks.append(Check(f"data {entry.name}", "note" if mend else "ok", entry.where or "not here", mend))
    return checks
