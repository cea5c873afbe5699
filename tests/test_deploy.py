"""The files of deploy/ for clusters: what they name exists, and the image, the command and the secrets are ours."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
import yaml
from parts import require_ray
from test_compose_policy import COMPOSE, SECRET_NAME, SERVICES
from test_docs import problem

from regtune.config.sweepfile import SweepSpec

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
KUBERNETES: list[dict[str, Any]] = list(yaml.safe_load_all((DEPLOY / "rayjob.yaml").read_text()))
BY_KIND = {(found["kind"], found["metadata"]["name"]): found for found in KUBERNETES}
JOB = BY_KIND["RayJob", "regtune"]["spec"]
CLUSTER = JOB["rayClusterSpec"]
CLOUD: dict[str, Any] = yaml.safe_load((DEPLOY / "ray-up.yaml").read_text())
SLURM = (DEPLOY / "slurm.sh").read_text()

RAY_JOB = {
    "backoffLimit", "entrypoint", "rayClusterSpec", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished",
}  # fmt: skip
RAY_CLUSTER = {"authOptions", "enableInTreeAutoscaling", "headGroupSpec", "rayVersion", "workerGroupSpecs"}
WORKER_GROUP = {"groupName", "maxReplicas", "minReplicas", "rayStartParams", "replicas", "template"}
"""Fields of ray.io/v1 in KubeRay 1.6 and 1.7 (ray-operator/config/crd/bases/ray.io_rayjobs.yaml)."""


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each pod's specification, by what it is of."""
    for (kind, name), found in BY_KIND.items():
        if kind == "Deployment":
            yield name, found["spec"]["template"]["spec"]
    yield "head", CLUSTER["headGroupSpec"]["template"]["spec"]
    for group in CLUSTER["workerGroupSpecs"]:
        yield group["groupName"], group["template"]["spec"]


PODS = dict(pods())


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def environment(container: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container.get("env", [])}


def commands() -> dict[str, str]:
    """The command that starts the sweep, by its file."""
    cloud = re.search(r"'cd regtune; (regtune sweep [^']*)'", (DEPLOY / "ray-up.yaml").read_text())
    slurm = re.search(r"^exec (regtune sweep .*)$", SLURM, re.M)
    assert cloud is not None
    assert slurm is not None
    return {"rayjob.yaml": JOB["entrypoint"], "ray-up.yaml": cloud[1], "slurm.sh": slurm[1]}


@pytest.mark.parametrize("file", commands())
def test_the_command_is_one_that_the_program_takes(file: str) -> None:
    words = shlex.split(commands()[file])
    assert words[:2] == ["regtune", "sweep"]
    assert words[words.index("--on") + 1] == "ray"
    assert words[words.index("--address") + 1] == ("$HEAD" if file == "slurm.sh" else "auto")
    assert problem(True, words) is None


def test_the_sweep_files_are_there_and_mounted_where_the_command_looks() -> None:
    found = Path(shlex.split(commands()["rayjob.yaml"])[2])
    head = PODS["head"]["containers"][0]
    assert str(found.parent) in {mount["mountPath"] for mount in head["volumeMounts"]}
    for name in (found.name, Path(shlex.split(commands()["ray-up.yaml"])[2]).name):
        SweepSpec.load(ROOT / "sweeps" / name)


def test_a_ray_job_has_the_fields_of_kuberay_and_the_ray_that_is_tested() -> None:
    assert BY_KIND["RayJob", "regtune"]["apiVersion"] == "ray.io/v1"
    assert set(JOB) == RAY_JOB
    assert set(CLUSTER) == RAY_CLUSTER
    assert set(CLUSTER["headGroupSpec"]) == {"rayStartParams", "template"}
    assert all(set(group) == WORKER_GROUP for group in CLUSTER["workerGroupSpecs"])
    assert f"\nray=={CLUSTER['rayVersion']} " in (ROOT / "requirements-ray.lock").read_text()
    assert CLUSTER["authOptions"] == {"mode": "token"}
    assert CLUSTER["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"  # what trains has no secrets mounted
    most = sum(group["maxReplicas"] for group in CLUSTER["workerGroupSpecs"])
    assert int(re.findall(r"--workers (\d+)", JOB["entrypoint"])[0]) <= 4 * most


def test_the_image_for_clusters_is_ours_with_the_packages_of_its_lock() -> None:
    images = {one["image"] for pod in PODS.values() for one in containers(pod)}
    assert images == {"regtune:ray", SERVICES["db"]["image"]}
    build = "docker build --build-arg EXTRA=ray --tag regtune:ray ."
    assert build in (DEPLOY / "rayjob.yaml").read_text()
    assert "-r /build/requirements-$EXTRA.lock" in (ROOT / "Dockerfile").read_text()
    pins = {
        name: dict(
            re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / f"requirements{name}.lock").read_text(), re.M)
        )
        for name in ("", "-ray", "-dev")
    }
    assert not pins["-ray"].keys() & pins[""].keys()  # it is installed beside requirements.lock
    assert pins["-ray"]["ray"] == pins["-dev"]["ray"]
    assert all(pins["-dev"].get(name, version) == version for name, version in pins["-ray"].items())


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_confined_and_gets_the_secrets_that_it_needs_as_files(name: str) -> None:
    pod = PODS[name]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["enableServiceLinks"] is False
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for container in containers(pod):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"].keys() == {"cpu", "memory"}
        mounted, needed = set(), set()
        for mount in container["volumeMounts"]:
            for item in volumes[mount["name"]].get("secret", {}).get("items", []):
                mounted.add(f"{mount['mountPath']}/{item['path']}")
        for key, value in environment(container).items():
            if key.endswith("_FILE"):
                needed.add(value)
            else:
                assert not SECRET_NAME.search(key)
            assert not re.search(r"://[^/\s@]*:[^/\s@]*@", value)
        assert needed <= mounted
        if (
            name == "head"
        ):  # what `mlflow` needs `init` may know; deploy/postgres-init.sh needs more than `db` says
            assert needed == mounted
        words = [*container.get("command", []), *container.get("args", [])]
        assert not SECRET_NAME.search(shlex.join(words))
    assert name != "workers" or not any("secret" in volume for volume in pod["volumes"])


def test_every_secret_and_file_that_a_pod_mounts_is_made_by_the_commands_of_the_file() -> None:
    for pod in PODS.values():
        for volume in pod["volumes"]:
            for item in volume.get("secret", {}).get("items", []):
                assert item["key"] in COMPOSE["secrets"]
            for item in volume.get("configMap", {}).get("items", []):
                assert (DEPLOY / item["key"]).exists()
    says = (DEPLOY / "rayjob.yaml").read_text()
    assert "--from-file=deploy/postgres-init.sh --from-file=deploy/make-accounts.py" in says
    assert "create secret generic regtune --from-file=deploy/secrets" in says


@pytest.mark.parametrize(
    ("pod", "container", "service"),
    [
        ("db", "db", "db"),
        ("mlflow", "init", "init"),
        ("mlflow", "mlflow", "mlflow"),
        ("head", "accounts", "accounts"),
        ("head", "ray-head", "worker"),
    ],
)
def test_a_container_is_set_up_as_the_service_of_compose_is(pod: str, container: str, service: str) -> None:
    (found,) = [one for one in containers(PODS[pod]) if one["name"] == container]
    theirs = SERVICES[service]
    given = environment(found)
    of_cluster = {
        name: given.pop(name, None) for name in ("PGDATA", "REGTUNE_DATA_DIR", "RAY_USAGE_STATS_ENABLED")
    }
    assert of_cluster["PGDATA"] is None or of_cluster["PGDATA"].startswith("/var/lib/postgresql/data/")
    expected = {name: value for name, value in theirs["environment"].items() if name != "REGTUNE_WORKERS"}
    if service == "mlflow":
        expected["MLFLOW_SERVER_ALLOWED_HOSTS"] = "mlflow:5000,localhost:*,127.0.0.1:*"  # no name behind TLS
    plain = {
        name: re.sub("/run/secrets/(sweep|accounts)/", "/run/secrets/", value)
        for name, value in given.items()
    }
    assert plain == expected
    if service in ("init", "mlflow"):
        assert found["args"] == theirs["command"]
    if service == "accounts":
        assert found["command"] == theirs["entrypoint"]


def test_only_the_namespace_and_the_operator_reach_the_pods() -> None:
    policy = BY_KIND["NetworkPolicy", "regtune"]["spec"]
    assert policy["podSelector"] == {}
    (rule,) = policy["ingress"]
    operator = {"matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}}
    assert rule["from"] == [{"podSelector": {}}, {"namespaceSelector": {}, "podSelector": operator}]


def test_the_cloud_file_has_the_fields_of_rays_own_schema() -> None:
    require_ray()
    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    schema = json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(CLOUD, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**CLOUD, "setup_comands": []}, schema)


def test_the_cloud_file_copies_no_secret_and_installs_what_is_pinned() -> None:
    ignored = {"deploy/secrets", ".env", "mlruns", ".git", ".venv"}
    assert ignored <= set(CLOUD["rsync_exclude"])
    setup = "\n".join(CLOUD["setup_commands"])
    assert "make .venv/.installed" in setup
    assert "--require-hashes -r requirements-ray.lock" in setup
    worker = CLOUD["available_node_types"]["worker"]
    assert worker["node_config"]["minCpuPlatform"]
    head = "\n".join(CLOUD["head_setup_commands"])
    assert "make secrets" in head
    assert "docker compose -f docker-compose.yml -f deploy/cluster.compose.yaml up" in head
    for name in set(re.findall(r"deploy/secrets/(\w+)", head)):
        assert name in COMPOSE["secrets"]
    written = dict(re.findall(r"(\S+)=(\S+)", head.split("printf ")[1].split(" > .env")[0]))
    theirs = SERVICES["worker"]["environment"]
    assert written.keys() == theirs.keys() - {"REGTUNE_WORKERS"}
    starts = [*CLOUD["head_start_ray_commands"], *CLOUD["worker_start_ray_commands"]]
    assert not any(SECRET_NAME.search(command) for command in starts)


def test_the_database_of_compose_is_reached_from_this_machine_unless_somebody_says_otherwise() -> None:
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (DEPLOY / "cluster.compose.yaml").read_text())
    more = yaml.safe_load(text)
    assert more["services"].keys() == {"db"}
    assert more["services"]["db"]["ports"] == ["127.0.0.1:5432:5432"]
    # a network that is internal publishes nothing
    (network,) = set(more["services"]["db"]["networks"]) - {"databases"}
    assert more["networks"] == {network: {}}


def test_the_slurm_script_is_one_of_bash_and_shows_no_secret() -> None:
    subprocess.run(["bash", "-n", str(DEPLOY / "slurm.sh")], check=True)
    start = re.search(r"^START='\n(.*?)'\n", SLURM, re.M | re.S)
    assert start is not None
    subprocess.run(["bash", "-n"], input=start[1], text=True, check=True)
    exported = dict(re.findall(r"^export (\w+)=(.*)$", SLURM, re.M))
    assert exported.keys() >= SERVICES["worker"]["environment"].keys() - {"REGTUNE_WORKERS"}
    files = {Path(value).name for name, value in exported.items() if name.endswith("_FILE")}
    assert files <= COMPOSE["secrets"].keys()
    for line in SLURM.splitlines():
        if re.match(r"\s*(exec|srun|timeout|until)\b", line):
            assert not SECRET_NAME.search(line)


SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
SLURM_PROCID=0 exec "$@"
"""
"""Slurm's `srun` on an allocation of one node."""
TINY = """
name: tiny
dataset: mnist-5k
method: random
run_cap: 2
controls: false
decide: false
model: {hidden: [16]}
training: {max_epochs: 2}
parameters: {dropout: {min: 0.0, max: 0.6}}
"""


@pytest.mark.slow
def test_the_slurm_script_starts_ray_with_a_token_and_ends_as_its_sweep_does(tmp_path: Path) -> None:
    require_ray()
    secrets = tmp_path / ".regtune"
    secrets.mkdir()
    for name in ("studies_password", "tracking_sweep_password"):
        (secrets / name).touch(0o600)
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    (tmp_path / "tiny.yaml").write_text(TINY)
    with socket.create_server(("127.0.0.1", 0)) as free:  # not one of those that Ray's workers take
        head = f"127.0.0.1:{free.getsockname()[1]}"
    given = {
        "HEAD": head,
        "HOME": str(tmp_path),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_CPUS_ON_NODE": "2",
        "TEAM_HOST": "unused.example",
        "OPTUNA_STORAGE": f"sqlite:///{tmp_path}/studies.db",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # 127.0.0.1
        "RAY_worker_niceness": "0",
    }
    script = ["bash", str(DEPLOY / "slurm.sh"), "tiny.yaml"]
    log = tmp_path / "log"
    try:
        with log.open("w") as said:
            done = subprocess.run(
                script,
                env={**os.environ, **given},
                stdout=said,
                stderr=subprocess.STDOUT,
                check=False,
                timeout=600,
            )
    finally:  # as Slurm does when a job's script has ended
        found = [process for process in psutil.process_iter() if _environment(process).get("HEAD") == head]
        tokens = {_environment(process).get("RAY_AUTH_TOKEN", "") for process in found}
        for process in found:
            process.kill()
        psutil.wait_procs(found, timeout=30)
    assert done.returncode == 0, log.read_text()
    assert "2 complete, 0 pruned, 0 failed" in log.read_text()
    assert len(found) > 2
    (token,) = tokens
    assert re.fullmatch(r"[0-9a-f]{64}", token)


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}
