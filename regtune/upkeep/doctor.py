"""What `doctor` looks at: whether everything a sweep needs is here and works, and what to mend where it does not."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from regtune.data.datasets import expanded
from regtune.data.inventory import list_datasets
from regtune.errors import NoStudies, RegtuneError, SettingsError
from regtune.escaping import printable
from regtune.executors.local import default_workers
from regtune.settings import Settings
from regtune.storage import open_engine, place, redact
from regtune.storage.health import trouble
from regtune.storage.mlflow import check_patience, is_server, sqlite_path
from regtune.study.board import list_studies
from regtune.study.ownership import holder
from regtune.sweep.plan import free_bytes
from regtune.tracking.sync import strays
from regtune.training.runtime import OF_OTHERS, environment_of_worker

Status = Literal["ok", "note", "mend"]
PYTHONS = ((3, 11), (3, 13))
PACKAGES = (
    "regtune",
    "tensorflow",
    "keras",
    "optuna",
    "mlflow",
    "sqlalchemy",
    "numpy",
    "pydantic",
    "typer",
    "rich",
)
KERAS_DEFAULTS = {
    "floatx": "float32",
    "epsilon": 1e-07,
    "backend": "tensorflow",
    "image_data_format": "channels_last",
}
"""Keras writes them into `keras.json` by itself."""
OF_TERRAFORM = (
    "TF_CLI_",
    "TF_DATA_DIR",
    "TF_IN_AUTOMATION",
    "TF_LOG",
    "TF_PLUGIN_",
    "TF_TOKEN_",
    "TF_VAR_",
    "TF_WORKSPACE",
)
"""Begin like TensorFlow's, and are none."""
WANTED_FREE_BYTES = 2 * 10**9
WANTED_MEMORY_BYTES_A_WORKER = 10**9


@dataclass(frozen=True)
class Check:
    """One thing looked at. status: `ok`, `note` (works, worth knowing) or `mend`. mend: what to do, or empty."""

    name: str
    status: Status
    found: str
    mend: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def examine(settings: Settings) -> list[Check]:
    """Look at everything; nothing is changed and TensorFlow is not imported."""
    return [
        _python(),
        *_packages(),
        *_of_others(),
        _processor(),
        _memory(settings),
        _folder(settings),
        _disk(settings),
        _studies(settings),
        _mlflow(settings),
        *_strays(settings),
        *_data(settings),
    ]


def _python() -> Check:
    found = platform.python_version()
    low, high = PYTHONS
    if low <= sys.version_info[:2] <= high:
        return Check("python", "ok", f"{found}, {platform.system()} {platform.machine()}")
    return Check("python", "mend", found, f"install Python {low[0]}.{low[1]} to {high[0]}.{high[1]}")


def _packages() -> list[Check]:
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {_version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    checks = [Check("packages", "ok", ", ".join(found))]
    if missing:
        checks.append(Check("packages", "mend", f"missing: {', '.join(missing)}", "pip install regtune"))
    torch = importlib.util.find_spec("torch") is not None
    checks.append(
        Check(
            "method gp",
            "ok" if torch else "note",
            "can be used" if torch else "needs torch: pip install regtune[gp]",
        )
    )
    return checks


def _version(name: str) -> str:
    if name == "tensorflow":
        try:
            return version("tensorflow-cpu")
        except PackageNotFoundError:
            return version(name)
    if name == "regtune":
        from regtune import __version__

        return __version__
    return version(name)


def _of_others() -> list[Check]:
    """What is set here for other programs that use Keras, and files that a script would import in its place."""
    ours = environment_of_worker({}) | {"KERAS_HOME": os.environ.get("KERAS_HOME")}
    ignored = [
        name
        for name in sorted(os.environ)
        if name.startswith(OF_OTHERS)
        and not name.startswith(OF_TERRAFORM)
        and os.environ[name] != ours.get(name)
    ]
    settings = expanded(Path(os.environ.get("KERAS_HOME") or "~/.keras")) / "keras.json"
    try:
        found = json.loads(settings.read_bytes())
        ignored += [f"{key} in {settings}" for key in found if KERAS_DEFAULTS.get(key) != found[key]]
    except OSError:
        pass
    except (ValueError, TypeError, RecursionError):
        ignored.append(f"{settings}, which is damaged")
    folders = dict.fromkeys(("", *os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    files = [
        Path(folder, file).absolute()
        for folder in folders
        for name in ("keras", "tensorflow")
        for file in (f"{name}.py", f"{name}/__init__.py")
    ]
    shadows = [str(file) for file in files if file.exists()]
    if not ignored and not shadows:
        return []
    told = printable(", ".join(ignored + shadows))
    mend = "rename the file: scripts beside it import it in place of the package" if shadows else ""
    return [Check("Keras", "note", f"workers ignore what is meant for other programs: {told}", mend)]


def _processor() -> Check:
    model, flags = _cpu()
    wanted = [flag for flag in ("avx", "avx2", "fma", "avx512f", "neon", "asimd") if flag in flags]
    found = f"{model}, {default_workers()} cores for workers" + (f", {' '.join(wanted)}" if wanted else "")
    if platform.machine() in ("x86_64", "AMD64") and "avx" not in flags:
        return Check("processor", "mend", found, "TensorFlow's packages need AVX; use another machine")
    return Check("processor", "ok", found)


def _cpu() -> tuple[str, set[str]]:
    """Model and feature flags, from /proc/cpuinfo or sysctl; empty where neither tells."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line.split(":", 1) for line in info.read_text().splitlines() if ":" in line]
        values = {key.strip().lower(): value.strip() for key, value in reversed(lines)}
        return values.get("model name", platform.machine()), set(
            (values.get("flags") or values.get("features") or "").split()
        )
    try:
        brand = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return platform.processor() or platform.machine(), set()
    return brand, {"neon"} if platform.machine() == "arm64" else set()


def _memory(settings: Settings) -> Check:
    import psutil

    free = psutil.virtual_memory().available
    workers = settings.workers or default_workers()
    found = f"{free / 1e9:.1f} GB free for {workers} workers"
    if free < workers * WANTED_MEMORY_BYTES_A_WORKER:
        return Check("memory", "note", found, "about 1 GB a worker is wanted; take fewer with --workers")
    return Check("memory", "ok", found)


def _folder(settings: Settings) -> Check:
    home = settings.home.resolve()
    place = home
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return Check("folder", "mend", f"{home}: {error.strerror}", "make it writable, or set REGTUNE_HOME")
    return Check("folder", "ok", str(home) if home == place else f"{home}, made by the first sweep")


def _disk(settings: Settings) -> Check:
    free = free_bytes(settings.home)
    found = f"{free / 1e9:.1f} GB free"
    return Check(
        "disk",
        "ok" if free >= WANTED_FREE_BYTES else "note",
        found,
        "" if free >= WANTED_FREE_BYTES else "make room",
    )


def _studies(settings: Settings) -> Check:
    try:
        where = place(settings.storage_url)
        engine = open_engine(settings.storage_url)
        try:
            names = [summary.info.name for summary in list_studies(engine)]
        finally:
            engine.dispose()
        running = [f"{printable(name)} ({who})" for name in names if (who := holder(settings, name))]
    except NoStudies:
        return Check("studies", "ok", f"{where}, made by the first sweep")
    except RegtuneError as error:
        return Check(
            "studies", "mend", str(error).splitlines()[0], "move the file away, or set OPTUNA_STORAGE"
        )
    return Check(
        "studies",
        "ok",
        f"{where}, studies: {len(names)}" + (f"; running: {', '.join(running)}" if running else ""),
    )


def _server(uri: str) -> Check:
    try:
        check_patience()
    except SettingsError as error:
        return Check("MLflow", "mend", str(error), "unset it")
    wrong = trouble(uri)
    mend = "start the server, or unset MLFLOW_TRACKING_URI" if wrong else ""
    return Check("MLflow", "mend" if wrong else "ok", f"{redact(uri)} {wrong or 'answers'}", mend)


def _mlflow(settings: Settings) -> Check:
    uri = settings.mlflow_uri
    if is_server(uri):
        return _server(uri)
    path = sqlite_path(uri)
    if path is None:
        return Check("MLflow", "ok", redact(uri))
    if not path.exists():
        return Check("MLflow", "ok", f"{path}, made by the first sweep")
    if not os.access(path, os.R_OK | os.W_OK):
        return Check("MLflow", "mend", f"{path}: no right to read and write it", "mend the file's rights")
    return Check("MLflow", "ok", str(path))


def _strays(settings: Settings) -> list[Check]:
    try:
        found = strays(settings)
    except RegtuneError as error:
        return [Check("artifacts", "mend", str(error).splitlines()[0], "see: regtune db check")]
    return [
        Check(
            "artifacts",
            "mend" if stray.former else "note",
            str(stray),
            "regtune sync" if stray.former else "",
        )
        for stray in found
    ]


def _data(settings: Settings) -> list[Check]:
    checks = []
    for entry in list_datasets(settings.data_dir):
        if entry.where:
            checks.append(Check(f"data {entry.name}", "ok", entry.where))
        else:
            checks.append(Check(f"data {entry.name}", "note", "not here", f"regtune data fetch {entry.name}"))
    return checks
