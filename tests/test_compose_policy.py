"""What docker-compose.yml and the Dockerfile promise, read from the files: who weakens one meets a sentence here.

Each rule yields what is wrong as sentences. The files as they are give none; each of them weakened in one place gives
the one that names it.
"""

from __future__ import annotations

import copy
import re
import shlex
import stat
import subprocess
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", TEXT))
"""As compose reads it with no variable set: each with its default."""
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")

Compose = dict[str, Any]
Instructions = list[tuple[str, str]]

SECRET_NAME = re.compile(r"PASSWORD|PASSWD|SECRET|TOKEN|CREDENTIAL|API_?KEY", re.IGNORECASE)
DATABASE_CAPABILITIES = {"CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"}
"""What the entrypoint of Postgres' image uses: chown of the data folder, then setuid to postgres."""
INIT_SECRETS = {"studies_password", "mlflow_password"}
"""What deploy/postgres-init.sh reads."""
EPOCH_GRACE_SECONDS = 120
HARDENING = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ENABLE_AI_GATEWAY": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}


# ---- the rules for docker-compose.yml


def confinement(compose: Compose) -> Iterator[str]:
    for name, service in compose["services"].items():
        if service.get("read_only") is not True:
            yield f"{name}: its root file system must be read_only"
        if service.get("cap_drop") != ["ALL"]:
            yield f"{name}: cap_drop must be [ALL]"
        surplus = set(service.get("cap_add", [])) - (DATABASE_CAPABILITIES if name == "db" else set())
        if surplus:
            yield f"{name}: must not get the capabilities {sorted(surplus)}"
        if "no-new-privileges:true" not in service.get("security_opt", []):
            yield f"{name}: security_opt must have no-new-privileges:true"
        for key in ("privileged", "devices", "pid", "ipc", "userns_mode", "network_mode"):
            if service.get(key):
                yield f"{name}: must not set {key}, which opens the host to it"
        if str(service.get("user", "")).split(":")[0] in {"0", "root"}:
            yield f"{name}: must not run as root"


def limits(compose: Compose) -> Iterator[str]:
    for name, service in compose["services"].items():
        for key in ("mem_limit", "cpus", "pids_limit"):
            if not service.get(key):
                yield f"{name}: {key} must bound what it takes from the machine"
        options = service.get("logging", {}).get("options", {})
        if not (options.get("max-size") and options.get("max-file")):
            yield f"{name}: logging must rotate (max-size and max-file)"
        tmpfs = service.get("tmpfs", [])
        if not tmpfs or any("size=" not in mount for mount in tmpfs):
            yield f"{name}: a tmpfs without a size takes half of the machine's memory"


def images(compose: Compose) -> Iterator[str]:
    for name, service in compose["services"].items():
        yield from _tag(name, service.get("image", ""))
    if compose["services"]["db"]["image"] != "postgres:17":
        yield "db: must be postgres:17; another major version cannot read the volume of this one"


def _tag(where: str, image: str) -> Iterator[str]:
    _, _, tag = image.rpartition("/")[2].partition(":")
    if not tag or tag.startswith("latest"):
        yield f"{where}: the image {image!r} must be pinned to a tag other than latest"


def ports(compose: Compose) -> Iterator[str]:
    for name, service in compose["services"].items():
        for port in service.get("ports", []):
            if not str(port).startswith("127.0.0.1:"):
                yield f"{name}: port {port!r} must be bound to 127.0.0.1; TLS stands in front of it"
            if name != "mlflow":
                yield f"{name}: must not publish a port; only mlflow is for people"
    networks = compose.get("networks", {})
    if compose["services"]["db"].get("networks") != ["databases"] or not networks["databases"].get(
        "internal"
    ):
        yield "db: must be on the internal network `databases` alone"


def secrets(compose: Compose) -> Iterator[str]:
    declared = compose.get("secrets", {})
    for name, secret in declared.items():
        if secret != {"file": f"./deploy/secrets/{name}"}:
            yield f"secret {name}: must be the file ./deploy/secrets/{name}, which deploy/make-secrets makes"
    for name, service in compose["services"].items():
        environment = service.get("environment", {})
        needed = set(INIT_SECRETS) if name == "db" else set()
        for key, value in environment.items():
            folder, _, file = str(value).rpartition("/")
            if key.endswith("_FILE") and folder == "/run/secrets":
                needed.add(file)
            elif SECRET_NAME.search(key):
                yield f"{name}: {key} is shown by `docker inspect`; give {key}_FILE, a file in /run/secrets"
            if re.search(r"://[^/\s@]*:[^/\s@]*@", str(value)):
                yield f"{name}: {key} has a password in its URI"
        mounted = set(service.get("secrets", []))
        if mounted != needed:
            yield f"{name}: mounts the secrets {sorted(mounted)} and needs {sorted(needed)}"
        if mounted - set(declared):
            yield f"{name}: the secrets {sorted(mounted - set(declared))} are not declared"
        if service.get("env_file"):
            yield f"{name}: env_file puts what it holds into `docker inspect`; use secrets"
        words = [*_words(service.get("command")), *_words(service.get("entrypoint"))]
        if any(SECRET_NAME.search(word) for word in words):
            yield f"{name}: a secret in its command is shown by `ps`"


def _words(command: str | list[str] | None) -> list[str]:
    return shlex.split(command) if isinstance(command, str) else list(command or [])


def mounts(compose: Compose) -> Iterator[str]:
    for name, service in compose["services"].items():
        for mount in service.get("volumes", []):
            source, *rest = mount.split(":")
            if "docker.sock" in source:
                yield f"{name}: the engine's socket is root on the host"
            if source.startswith((".", "/", "~")):
                if rest[-1] != "ro":
                    yield f"{name}: the host's {source} must be mounted read-only (:ro)"
            elif source not in (compose.get("volumes") or {}):
                yield f"{name}: what it writes must be in a named volume, not {mount!r}"


def lifetimes(compose: Compose) -> Iterator[str]:
    services = compose["services"]
    for name in ("init", "accounts", "worker"):
        if services[name].get("restart") != "no":
            yield f"{name}: ends by itself, so restart must be 'no'"
    for name, service in services.items():
        own = service.get("healthcheck")
        if name in {"db", "mlflow"} and (own or {}).get("disable"):
            yield f"{name}: must have a health check; others wait for it"
        if name == "db" and not own:
            yield "db: must have a health check; others wait for it"
        if service["image"].startswith("regtune") and service.get("init") is not True:
            yield f"{name}: init must be true, so that SIGTERM arrives and orphans are reaped"
    if _seconds(services["worker"].get("stop_grace_period", "10s")) < EPOCH_GRACE_SECONDS:
        yield f"worker: stop_grace_period must let an epoch end: at least {EPOCH_GRACE_SECONDS} s"
    if services["worker"].get("profiles") != ["sweep"]:
        yield "worker: must be of the profile `sweep`: `up` alone trains nothing"
    made, up = {"condition": "service_completed_successfully"}, {"condition": "service_healthy"}
    for name, wanted in {
        "init": {"db": up},
        "mlflow": {"db": up, "init": made},
        "accounts": {"mlflow": up},
        "worker": {"db": up, "init": made, "mlflow": up, "accounts": made},
    }.items():
        if services[name].get("depends_on") != wanted:
            yield f"{name}: must wait for {', '.join(wanted)}"


def _seconds(duration: str) -> int:
    parts = re.findall(r"(\d+)([hms])", duration)
    return sum(int(number) * {"h": 3600, "m": 60, "s": 1}[unit] for number, unit in parts)


def server(compose: Compose) -> Iterator[str]:
    environment = compose["services"]["mlflow"]["environment"]
    for key, value in HARDENING.items():
        if environment.get(key) != value:
            yield f"mlflow: {key} must be {value!r}"
    for key in ("MLFLOW_AUTH_ADMIN_PASSWORD_FILE", "MLFLOW_FLASK_SERVER_SECRET_KEY_FILE"):
        if key not in environment:
            yield f"mlflow: without {key} it has no accounts"
    hosts = environment.get("MLFLOW_SERVER_ALLOWED_HOSTS", "").split(",")
    if not {"mlflow:5000", "localhost:*"} <= set(hosts):
        yield "mlflow: MLFLOW_SERVER_ALLOWED_HOSTS must have mlflow:5000 and localhost:*"
    if any(fnmatch("attacker.example", host) for host in hosts):
        yield "mlflow: MLFLOW_SERVER_ALLOWED_HOSTS must not let every name in (DNS rebinding)"
    if "*" in environment.get("MLFLOW_SERVER_CORS_ALLOWED_ORIGINS", ""):
        yield "mlflow: MLFLOW_SERVER_CORS_ALLOWED_ORIGINS must not let every page in"


RULES = [confinement, limits, images, ports, secrets, mounts, lifetimes, server]


def faults(compose: Compose) -> list[str]:
    return [sentence for rule in RULES for sentence in rule(compose)]


# ---- the rules for the Dockerfile


def instructions(text: str) -> Instructions:
    """(name, arguments) of each instruction, continued lines joined and comments left out."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0].upper(), line.split(maxsplit=1)[1]) for line in joined.splitlines()]


def image_faults(text: str) -> Iterator[str]:
    found = instructions(text)
    stages = [argument for name, argument in found if name == "FROM"]
    names = {stage.split(" AS ")[1] for stage in stages if " AS " in stage}
    for stage in stages:
        if stage.split()[0] not in names:
            yield from _tag("Dockerfile", stage.split()[0])
    if len(stages) < 2:
        yield "Dockerfile: must be multi-stage: what installs packages stays out of the image"
    last = found[max(index for index, (name, _) in enumerate(found) if name == "FROM") :]
    final = dict(last)
    for name, argument in found:
        if name in {"ARG", "ENV"} and SECRET_NAME.search(argument):
            yield f"Dockerfile: {name} {argument.split('=')[0]} would stay in a layer"
        if name == "ADD" or (name == "COPY" and argument.split()[0] in {".", "./", "*"}):
            yield "Dockerfile: must copy what it names, not all there is"
    if any(
        name == "RUN" and re.search(r"\b(apt-get|apk|pip|gcc|build-essential)\b", argument)
        for name, argument in last
    ):
        yield "Dockerfile: the final stage must install nothing: no compiler, no package manager's leavings"
    if not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", final.get("USER", "")):
        yield "Dockerfile: USER must be a number other than 0, so that everyone sees it is not root"
    if "HEALTHCHECK" not in final or final["HEALTHCHECK"] == "NONE":
        yield "Dockerfile: HEALTHCHECK is missing"
    for name in ("ENTRYPOINT", "CMD"):
        if not final.get(name, "").startswith("["):
            yield f"Dockerfile: {name} must be in exec form: a shell would keep SIGTERM from regtune"
    if final.get("STOPSIGNAL", "SIGTERM") != "SIGTERM":
        yield "Dockerfile: STOPSIGNAL must be SIGTERM, on which a sweep stops calmly"
    if "--require-hashes" not in text:
        yield "Dockerfile: packages must be installed from the lock with --require-hashes"


# ---- the tests


def test_the_compose_file_holds_the_policy() -> None:
    assert faults(COMPOSE) == []


def test_the_image_holds_the_policy() -> None:
    assert list(image_faults(DOCKERFILE)) == []


def _put(*path: str, value: Any) -> Callable[[Compose], None]:
    def change(compose: Compose) -> None:
        place = compose
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


SERVICES = "services"
WEAKENED = {
    "db: its root file system must be read_only": _put(SERVICES, "db", "read_only", value=False),
    "worker: cap_drop must be [ALL]": _put(SERVICES, "worker", "cap_drop", value=["NET_RAW"]),
    "db: must not get the capabilities": _put(SERVICES, "db", "cap_add", value=["SYS_ADMIN"]),
    "mlflow: must not get the capabilities": _put(SERVICES, "mlflow", "cap_add", value=["CHOWN"]),
    "init: security_opt must have": _put(SERVICES, "init", "security_opt", value=[]),
    "worker: must not set privileged": _put(SERVICES, "worker", "privileged", value=True),
    "worker: must not set network_mode": _put(SERVICES, "worker", "network_mode", value="host"),
    "mlflow: must not run as root": _put(SERVICES, "mlflow", "user", value="0:0"),
    "worker: mem_limit must bound": _put(SERVICES, "worker", "mem_limit", value=None),
    "db: cpus must bound": _put(SERVICES, "db", "cpus", value=None),
    "accounts: pids_limit must bound": _put(SERVICES, "accounts", "pids_limit", value=None),
    "mlflow: logging must rotate": _put(SERVICES, "mlflow", "logging", value={"driver": "json-file"}),
    "init: a tmpfs without a size": _put(SERVICES, "init", "tmpfs", value=["/tmp"]),
    "mlflow: the image 'regtune'": _put(SERVICES, "mlflow", "image", value="regtune"),
    "init: the image 'registry:5000/regtune'": _put(SERVICES, "init", "image", value="registry:5000/regtune"),
    "db: must be postgres:17": _put(SERVICES, "db", "image", value="postgres:16"),
    "mlflow: port '5000:5000'": _put(SERVICES, "mlflow", "ports", value=["5000:5000"]),
    "db: must not publish": _put(SERVICES, "db", "ports", value=["127.0.0.1:5432:5432"]),
    "db: must be on the internal": _put("networks", "databases", value={"internal": False}),
    "secret mlflow_password: must be the file": _put("secrets", "mlflow_password", value={"file": "./pw"}),
    "mlflow: MLFLOW_AUTH_ADMIN_PASSWORD is shown": _put(
        SERVICES, "mlflow", "environment", "MLFLOW_AUTH_ADMIN_PASSWORD", value="changeme"
    ),
    "init: OPTUNA_STORAGE has a password": _put(
        SERVICES, "init", "environment", "OPTUNA_STORAGE", value="postgresql://studies:changeme@db/studies"
    ),
    "worker: mounts the secrets": _put(
        SERVICES,
        "worker",
        "secrets",
        value=["studies_password", "tracking_sweep_password", "mlflow_password"],
    ),
    "worker: env_file puts": _put(SERVICES, "worker", "env_file", value=".env"),
    "worker: a secret in its command": _put(SERVICES, "worker", "command", value="sweep --password x"),
    "worker: the engine's socket": _put(
        SERVICES, "worker", "volumes", value=["/var/run/docker.sock:/var/run/docker.sock:ro"]
    ),
    "worker: the host's ./sweeps": _put(
        SERVICES, "worker", "volumes", value=["./sweeps:/srv/regtune/sweeps"]
    ),
    "db: what it writes": _put(SERVICES, "db", "volumes", value=["scratch:/var/lib/postgresql/data"]),
    "worker: ends by itself": _put(SERVICES, "worker", "restart", value="always"),
    "mlflow: must have a health check": _put(SERVICES, "mlflow", "healthcheck", value={"disable": True}),
    "worker: init must be true": _put(SERVICES, "worker", "init", value=False),
    "worker: stop_grace_period": _put(SERVICES, "worker", "stop_grace_period", value="1m30s"),
    "worker: must be of the profile": _put(SERVICES, "worker", "profiles", value=[]),
    "mlflow: must wait for": _put(SERVICES, "mlflow", "depends_on", value=["db"]),
    "mlflow: MLFLOW_ENABLE_AI_GATEWAY must": _put(
        SERVICES, "mlflow", "environment", "MLFLOW_ENABLE_AI_GATEWAY", value="true"
    ),
    "mlflow: MLFLOW_SERVER_ALLOWED_HOSTS must not": _put(
        SERVICES, "mlflow", "environment", "MLFLOW_SERVER_ALLOWED_HOSTS", value="mlflow:5000,localhost:*,*"
    ),
    "mlflow: MLFLOW_SERVER_CORS_ALLOWED_ORIGINS must": _put(
        SERVICES, "mlflow", "environment", "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS", value="*"
    ),
}


@pytest.mark.parametrize("sentence", WEAKENED)
def test_a_weakened_compose_file_is_told_in_a_sentence(sentence: str) -> None:
    compose = copy.deepcopy(COMPOSE)
    WEAKENED[sentence](compose)
    assert [fault for fault in faults(compose) if fault.startswith(sentence)]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("USER 10001:10001", "USER root", "USER must be a number"),
        ("FROM python:3.11-slim AS packages", "FROM python AS packages", "must be pinned"),
        ("HEALTHCHECK --interval", "HEALTHCHECK NONE\n# --interval", "HEALTHCHECK is missing"),
        ('ENTRYPOINT ["regtune"]', "ENTRYPOINT regtune", "ENTRYPOINT must be in exec form"),
        ("STOPSIGNAL SIGTERM", "STOPSIGNAL SIGKILL", "STOPSIGNAL must be SIGTERM"),
        ("EXPOSE 5000", "RUN apt-get install -y gcc", "the final stage must install nothing"),
        ("EXPOSE 5000", "ENV MLFLOW_TRACKING_PASSWORD=x", "would stay in a layer"),
        ("COPY regtune /build/regtune", "COPY . /build", "must copy what it names"),
        (" --require-hashes", "", "--require-hashes"),
    ],
)
def test_a_weakened_dockerfile_is_told_in_a_sentence(old: str, new: str, sentence: str) -> None:
    assert old in DOCKERFILE
    assert [fault for fault in image_faults(DOCKERFILE.replace(old, new)) if sentence in fault]


def test_one_command_makes_every_secret_once_and_closes_the_folder(tmp_path: Path) -> None:
    (tmp_path / "deploy").mkdir()
    command = tmp_path / "deploy" / "make-secrets"
    command.write_bytes((ROOT / "deploy" / "make-secrets").read_bytes())
    first = subprocess.run(["sh", str(command)], check=True, capture_output=True, text=True)
    folder = tmp_path / "deploy" / "secrets"
    made = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()}
    assert set(made) == set(COMPOSE["secrets"])
    assert len(set(made.values())) == len(made)
    assert all(re.fullmatch(r"[0-9a-f]{48}", value) for value in made.values())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o444}

    (folder / "mlflow_password").unlink()
    again = subprocess.run(["sh", str(command)], check=True, capture_output=True, text=True)
    renewed = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()}
    assert [name for name in made if made[name] != renewed[name]] == ["mlflow_password"]
    assert not any(value in first.stdout + again.stdout for value in [*made.values(), *renewed.values()])


def test_secrets_reach_neither_git_nor_the_builder() -> None:
    ignored = subprocess.run(
        ["git", "check-ignore", "--quiet", "deploy/secrets/mlflow_password"], cwd=ROOT, check=False
    )
    assert ignored.returncode == 0
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [rule for rule in rules if rule and not rule.startswith("#")]
    assert patterns[0] == "*"  # nothing is sent but what is named
    assert {rule for rule in patterns if rule.startswith("!")} == {
        "!pyproject.toml", "!requirements.lock", "!README.md", "!LICENSE", "!regtune",
    }  # fmt: skip
