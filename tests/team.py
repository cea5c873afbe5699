"""The compose file for tests: a copy of what a team checks out, with secrets, ports and names of its own."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests
from parts import missing
from stores import free_port

ROOT = Path(__file__).resolve().parents[1]
KEPT = "regtune:tested"
TOOL = ROOT.parent / "shared" / "tools" / "container-engine"


def engine() -> dict[str, str]:
    """The environment in which `docker` reaches an engine; in CI one is started where there is none."""
    own = Path(os.environ.get("TMPDIR", "/tmp")) / "container-engine" / "docker.sock"
    found = {**os.environ, "DOCKER_BUILDKIT": "0"}
    if "DOCKER_HOST" not in found and TOOL.exists():
        found["DOCKER_HOST"] = f"unix://{own}"
    if not _answers(found) and os.environ.get("CI") and TOOL.exists():
        subprocess.run([str(TOOL), "up"], check=True, stdout=subprocess.DEVNULL, timeout=1500)
    if not _answers(found):
        missing("no container engine answers: start Docker, or run ../shared/tools/container-engine up")
    return found


def _answers(environment: Mapping[str, str]) -> bool:
    if shutil.which("docker") is None:
        return False
    info = subprocess.run(["docker", "info"], env=environment, check=False, capture_output=True, timeout=60)
    return info.returncode == 0


def composers(environment: Mapping[str, str]) -> list[list[str]]:
    """The compose commands that are here: version 2 first."""
    plugin = ["docker", "compose"]
    version = subprocess.run([*plugin, "version"], env=environment, check=False, capture_output=True)
    found = [plugin] if version.returncode == 0 else []
    if shutil.which("docker-compose"):
        found.append(["docker-compose"])
    return found or missing("neither `docker compose` nor docker-compose is installed")


class Team:
    """One installation of docker-compose.yml: its folder, project and image are its own.

    folder: where the checkout's files are copied to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project = f"regtune-test-{uuid.uuid4().hex[:8]}"
        self.image = f"regtune:{self.project}"
        self.port = free_port()
        self.environment = {**engine(), "TEAM_PORT": str(self.port), "TEAM_IMAGE": self.image}
        self.composers = composers(self.environment)
        shutil.copy(ROOT / "docker-compose.yml", folder)
        shutil.copytree(ROOT / "deploy", folder / "deploy", ignore=shutil.ignore_patterns("secrets"))
        shutil.copytree(ROOT / "sweeps", folder / "sweeps")
        subprocess.run([str(folder / "deploy" / "make-secrets")], check=True, stdout=subprocess.DEVNULL)
        secrets = (folder / "deploy" / "secrets").iterdir()
        self.secrets = {file.name: file.read_text(encoding="utf-8") for file in secrets}
        self.admin = "admin", self.secrets["tracking_admin_password"]
        self.sweeper = "sweep", self.secrets["tracking_sweep_password"]

    def docker(self, *words: str, check: bool = True, seconds: float = 300) -> str:
        return self._run(["docker", *words], check, seconds)

    def compose(self, *words: str, check: bool = True, version: int = 0) -> str:
        """Run compose on this installation. Returns what it wrote, errors included."""
        return self._run([*self.composers[version], "--project-name", self.project, *words], check)

    def _run(self, command: list[str], check: bool = True, seconds: float = 300) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )
        assert done.returncode == 0 or not check, f"{' '.join(command)}\n{done.stdout}"
        return done.stdout

    def build(self) -> None:
        """Build the image of the checkout as it is; KEPT has the layers that the next build goes on from."""
        known = self.docker("images", "--quiet", "--no-trunc", KEPT).split()
        tags = ("--tag", self.image, "--tag", KEPT)
        self.docker("build", "--network", "host", *tags, str(ROOT), seconds=1500)
        if known and known != self.docker("images", "--quiet", "--no-trunc", KEPT).split():
            self.docker("rmi", *known, check=False)  # another test may be using it

    def regtune(self, *words: str) -> str:
        return self.compose("run", "--rm", "--no-deps", "-T", "worker", *words)

    def start(self, name: str, *words: str) -> str:
        container = f"{self.project}-{name}"
        self.compose("run", "--detach", "--name", container, "worker", *words)
        return container

    def follow(self, page: str, heading: str, otherwise: Mapping[str, str] | None = None) -> str:
        """Run the shell lines that a page of docs/ has under `heading`. Returns what they wrote.

        otherwise: what is said in the place of words of theirs that hold elsewhere.
        """
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        lines = text.split(f"## {heading}\n", 1)[1].split("```sh\n", 1)[1].split("```", 1)[0]
        compose = shlex.join([*self.composers[0], "--project-name", self.project])
        for said, here in {"docker compose": compose, **(otherwise or {})}.items():
            assert said in lines or said == "docker compose", f"{said!r} is not under {heading}"
            lines = lines.replace(said, here)
        return self._run(["bash", "-euc", lines])

    def containers(self) -> list[str]:
        label = f"label=com.docker.compose.project={self.project}"
        return self.docker("ps", "--all", "--quiet", "--filter", label).split()

    def container(self, service: str) -> str:
        return self.compose("ps", "--all", "--quiet", service).split()[0]

    def inspected(self, container: str) -> dict[str, Any]:
        return dict(json.loads(self.docker("inspect", container))[0])

    def state(self, container: str) -> str:
        """`running (healthy)`, `exited (0)` and so on."""
        state = self.inspected(container)["State"]
        detail = state.get("Health", {}).get("Status") if state["Running"] else state["ExitCode"]
        return f"{state['Status']} ({detail})"

    def logs(self, container: str) -> str:
        return self.docker("logs", container)

    def ask(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        account: tuple[str, str] | None = None,
        host: str | None = None,
    ) -> tuple[int, Any]:
        """Ask the server for `path`, as nobody without `account`. Returns the status and the answer's JSON.

        body: posted as JSON where there is one. account: name and password. host: name the server by this.
        """
        method, headers = "GET" if body is None else "POST", {"Host": host} if host else None
        address = f"http://127.0.0.1:{self.port}{path}"
        answer = requests.request(method, address, json=body, auth=account, headers=headers, timeout=30)
        return answer.status_code, answer.json() if answer.ok and answer.content else None

    def as_admin(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        status, answer = self.ask(path, body, account=self.admin)
        assert status == 200, (path, status)
        return answer

    def runs(self, sweep: str) -> list[dict[str, Any]]:
        found = self.as_admin("/api/2.0/mlflow/experiments/search", {"max_results": 1000})
        ids = [known["experiment_id"] for known in found.get("experiments", []) if known["name"] == sweep]
        if not ids:
            return []
        asked = {"experiment_ids": ids, "max_results": 1000, "filter": "tags.`mlflow.parentRunId` LIKE '%'"}
        return list(self.as_admin("/api/2.0/mlflow/runs/search", asked).get("runs", []))

    def remove(self) -> None:
        for container in self.containers():
            self.docker("rm", "--force", "--volumes", container, check=False)
        self.compose("down", "--volumes", check=False)
        self.docker("rmi", self.image, check=False)
