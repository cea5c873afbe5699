"""What docker-compose.yml and the Dockerfile promise, read from the files."""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load(
    re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
)
"""As compose reads it with no variable set: each with its default."""
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SECRET_NAME = re.compile(r"PASSWORD|PASSWD|SECRET|TOKEN|CREDENTIAL|API_?KEY", re.IGNORECASE)
EPOCH_GRACE_SECONDS = 120
each_service = pytest.mark.parametrize("name", SERVICES)


@each_service
def test_a_service_is_confined_and_takes_a_bounded_part_of_the_machine(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    # what the entrypoint of Postgres' image uses: chown of the data folder, then setuid to postgres
    added = {"CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"} if name == "db" else set()
    assert set(service.get("cap_add", [])) == added
    assert "no-new-privileges:true" in service["security_opt"]
    host = ("privileged", "devices", "pid", "ipc", "userns_mode", "network_mode", "user", "env_file")
    assert not [key for key in host if service.get(key)]
    assert all(service[key] for key in ("mem_limit", "cpus", "pids_limit"))
    assert service["logging"]["options"].keys() >= {"max-size", "max-file"}
    assert service["tmpfs"]
    assert all("size=" in mount for mount in service["tmpfs"])  # else half of the machine's memory
    assert re.fullmatch(r"[^:]+:(?!latest)[^:]+", service["image"])


@each_service
def test_a_service_gets_the_secrets_that_it_needs_as_files_and_shows_none(name: str) -> None:
    service = SERVICES[name]
    needed = {"studies_password", "mlflow_password"} if name == "db" else set()  # of deploy/postgres-init.sh
    for key, value in service["environment"].items():
        folder, _, file = str(value).rpartition("/")
        if key.endswith("_FILE") and folder == "/run/secrets":
            needed.add(file)
        else:
            assert not SECRET_NAME.search(key), f"{key} is shown by `docker inspect`"
        assert not re.search(r"://[^/\s@]*:[^/\s@]*@", str(value)), f"{key} has a password in its URI"
    assert set(service["secrets"]) == needed
    for words in (service.get("command") or [], service.get("entrypoint") or []):
        assert not SECRET_NAME.search(shlex.join(words)), "a secret in a command is shown by `ps`"


@each_service
def test_a_service_writes_to_named_volumes_and_reads_of_the_host_what_it_needs(name: str) -> None:
    for mount in SERVICES[name].get("volumes", []):
        source, *rest = mount.split(":")
        if source.startswith((".", "/", "~")):
            assert source.startswith("./")
            assert rest[-1] == "ro"
        else:
            assert source in COMPOSE["volumes"]


def test_every_secret_is_a_file_that_make_secrets_makes() -> None:
    assert COMPOSE["secrets"] == {
        name: {"file": f"./deploy/secrets/{name}"}
        for service in SERVICES.values()
        for name in service["secrets"]
    }


def test_people_reach_the_server_alone_and_from_this_machine() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if service.get("ports")}
    assert ports == {"mlflow": ["127.0.0.1:5000:5000"]}
    assert SERVICES["db"]["networks"] == ["databases"]
    assert COMPOSE["networks"]["databases"] == {"internal": True}


def test_services_end_as_they_should() -> None:
    assert [name for name in SERVICES if SERVICES[name]["restart"] == "no"] == ["init", "accounts", "worker"]
    assert SERVICES["db"]["healthcheck"]["test"]
    assert "healthcheck" not in SERVICES["mlflow"]  # the image has one
    # SIGTERM arrives, and orphans are reaped
    own = [service for service in SERVICES.values() if service["image"] == "regtune:local"]
    assert all(service["init"] is True for service in own)
    assert int(SERVICES["worker"]["stop_grace_period"].removesuffix("s")) >= EPOCH_GRACE_SECONDS
    assert SERVICES["worker"]["profiles"] == ["sweep"]  # `up` alone trains nothing
    assert SERVICES["db"]["image"] == "postgres:17"  # another major version cannot read the volume


def test_the_server_has_accounts_and_starts_nothing_else() -> None:
    environment = SERVICES["mlflow"]["environment"]
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    for name in ("SERVER_ENABLE_JOB_EXECUTION", "ENABLE_AI_GATEWAY", "ALLOW_PICKLE_DESERIALIZATION"):
        assert environment[f"MLFLOW_{name}"] == "false"
    assert environment.keys() >= {"MLFLOW_AUTH_ADMIN_PASSWORD_FILE", "MLFLOW_FLASK_SERVER_SECRET_KEY_FILE"}
    assert "*" not in environment["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"]


def test_the_image_holds_what_it_needs_and_runs_as_nobody() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found = [line.split(maxsplit=1) for line in "\n".join(lines).replace("\\\n", " ").splitlines()]
    stages = [argument.split() for name, argument in found if name == "FROM"]
    known = {stage[2] for stage in stages if len(stage) == 3}
    assert len(stages) > 1  # what installs packages stays out of the image
    assert all(re.search(r":(?!latest)\w", base[0]) for base in stages if base[0] not in known)
    assert "--require-hashes" in text
    for name, argument in found:
        assert name not in ("ARG", "ENV") or not SECRET_NAME.search(argument), "it would stay in a layer"
        assert name != "ADD"
        assert name != "COPY" or argument.split()[0] not in {".", "./", "*"}
    last = found[max(index for index, (name, _) in enumerate(found) if name == "FROM") :]
    installs = r"\b(apt-get|apk|pip|gcc|build-essential)\b"
    assert not [argument for name, argument in last if name == "RUN" and re.search(installs, argument)]
    final = dict(last)
    assert re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", final["USER"])  # a number: everyone sees that it is not root
    assert final["HEALTHCHECK"] != "NONE"
    assert final["ENTRYPOINT"].startswith("[")  # a shell would keep SIGTERM from regtune
    assert final["CMD"].startswith("[")
    assert final["STOPSIGNAL"] == "SIGTERM"  # on which a sweep stops calmly


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

    (folder / "mlflow_password").unlink()
    (tmp_path / "ln").write_text("#!/bin/sh\nexit 1\n")  # a file system without links
    (tmp_path / "ln").chmod(0o700)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    failed = subprocess.run(
        ["sh", str(command)], check=False, capture_output=True, text=True, env={"PATH": path}
    )
    assert (failed.returncode, "mlflow_password cannot be made" in failed.stderr) == (1, True)
    assert not (folder / "mlflow_password").exists()


def test_secrets_reach_neither_git_nor_the_builder() -> None:
    look = ["git", "check-ignore", "--quiet", "deploy/secrets/mlflow_password"]
    subprocess.run(look, cwd=ROOT, check=True)
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [rule for rule in rules if rule and not rule.startswith("#")]
    assert patterns[0] == "*"  # nothing is sent but what is named
    assert {rule for rule in patterns if rule.startswith("!")} == {
        "!pyproject.toml", "!requirements.lock", "!requirements-ray.lock", "!README.md", "!LICENSE", "!regtune",
    }  # fmt: skip
