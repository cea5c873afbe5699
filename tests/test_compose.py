"""docker-compose.yml for real: an engine, the image, a database, a server, sweeps; killed, stopped and brought back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stores import until
from team import Team
from terminals import run_here

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SHORT = ["--set", "run_cap=4", "--set", "controls=false", "--set", "training.max_epochs=2"]
KEPT = {"username": "kept", "password": "a-password-of-ones-own"}
LONG = ["--set", "run_cap=300", "--set", "training.max_epochs=60", "--set", "early_stopping.patience=60"]


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """A team's installation that is up, with the study `quickstart` in it."""
    team = Team(tmp_path_factory.mktemp("team"))
    try:
        team.build()
        began = time.monotonic()
        team.compose("up", "--detach")
        come_up(team)
        print(f"up and ready after {time.monotonic() - began:.0f} s")
        team.compose("run", "--rm", "-T", "worker", "sweep", "sweeps/quickstart.yaml", *SHORT)
        yield team
    finally:
        team.remove()


def come_up(team: Team) -> None:
    up, done = "running (healthy)", "exited (0)"
    for service, state in {"db": up, "init": done, "mlflow": up, "accounts": done}.items():
        until(lambda s=service, w=state: team.state(team.container(s)) == w, 600, 0.5, f"{service} {state}")


def board(team: Team, study: str) -> list[dict[str, Any]]:
    written = team.regtune("board", study, "--json")
    return list(json.loads(written[written.index("[") :]))


def test_a_sweep_from_inside_is_seen_with_credentials_and_by_nobody_without(team: Team) -> None:
    runs = team.runs("quickstart")
    trial = {"key": "regtune.kind", "value": "trial"}
    assert [run["info"]["status"] for run in runs if trial in run["data"]["tags"]] == ["FINISHED"] * 4
    assert {run["info"]["status"] for run in runs} == {"FINISHED"}  # its replicates, too
    assert len(board(team, "quickstart")) == 4

    search = {"max_results": 10}
    for path in ("/api/2.0/mlflow/experiments/search", "/ajax-api/2.0/mlflow/experiments/search"):
        assert team.ask(path, search)[0] == 401
        assert team.ask(path, search, account=("admin", "password1234"))[0] == 401
        assert team.ask(path, search, account=("admin", team.sweeper[1]))[0] == 401
        assert team.ask(path, search, account=team.sweeper)[0] == 200
    run = runs[0]["info"]
    assert team.ask(f"/get-artifact?path=config.yaml&run_uuid={run['run_id']}")[0] == 401
    assert run["artifact_uri"].startswith("mlflow-artifacts:")  # it came through the server
    listed = team.as_admin(f"/api/2.0/mlflow/artifacts/list?run_id={run['run_id']}")
    assert "config.yaml" in {file["path"] for file in listed["files"]}
    mine = team.docker("exec", team.container("mlflow"), "find", "/var/lib/regtune", "-name", "config.yaml")
    assert run["run_id"] in mine


def test_each_role_connects_to_its_own_database_alone(team: Team) -> None:
    def ask(role: str, password: str, database: str) -> str:
        login = ["exec", "--env", f"PGPASSWORD={team.secrets[f'{password}_password']}", team.container("db")]
        psql = ["psql", "--host", "db", "--username", role, "--dbname", database]
        return team.docker(*login, *psql, "--no-align", "--tuples-only", "--command", "SELECT 1", check=False)

    for role, other in (("studies", "mlflow"), ("mlflow", "studies")):
        assert ask(role, role, role).strip() == "1"
        for closed in (other, "postgres", "template1"):
            assert f'permission denied for database "{closed}"' in ask(role, role, closed)
    assert "password authentication failed" in ask("studies", "mlflow", "studies")


def test_no_process_of_a_service_is_roots_and_none_can_change_the_image(team: Team) -> None:
    server = team.container("mlflow")
    status = team.docker("exec", server, "cat", "/proc/1/status")
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert set(facts["Uid"].split()) == {"10001"}
    assert int(facts["CapEff"], 16) == int(facts["CapBnd"], 16) == 0
    assert facts["NoNewPrivs"] == "1"
    assert "Read-only file system" in team.docker("exec", server, "touch", "/opt/venv/x", check=False)
    look = "for tool in gcc cc g++ clang make ld; do command -v $tool; done"
    assert team.docker("exec", server, "sh", "-c", look, check=False) == ""
    database = team.docker("top", team.container("db"), "-eo", "pid,user,args").splitlines()[1:]
    owners = {line.split()[1] for line in database if "pg_isready" not in line and "runc" not in line}
    assert owners
    assert "root" not in owners


def test_only_names_that_are_the_servers_own_are_answered(team: Team) -> None:
    for host, status in (("attacker.example", 403), (f"localhost:{team.port}", 401), ("mlflow:5000", 401)):
        assert team.ask("/", host=host)[0] == status, host


def test_the_account_lines_of_the_readme_make_an_account_and_then_an_administrator(team: Team) -> None:
    (team.folder / "ada.json").write_text(json.dumps({"username": "ada", "password": "a-password-of-adas"}))
    netrc = team.folder / "netrc"
    netrc.touch(0o600)
    netrc.write_text(f"machine localhost login admin password {team.secrets['tracking_admin_password']}\n")
    typed = {"--user admin": "--netrc-file netrc", "localhost:5000": f"localhost:{team.port}"}
    create = "/api/2.0/mlflow/users/create"
    assert team.ask(create, KEPT)[0] == 401
    assert team.ask(create, KEPT, account=team.sweeper)[0] == 403
    team.as_admin(create, KEPT)
    team.follow("team.md", "Accounts", typed)
    assert team.as_admin("/api/2.0/mlflow/users/get?username=ada")["user"]["is_admin"] is True
    runs = {"experiment_ids": [team.runs("quickstart")[0]["info"]["experiment_id"]]}
    account = ("ada", "a-password-of-adas")
    assert team.ask("/api/2.0/mlflow/runs/search", runs, account=account)[0] == 200


def test_a_running_sweep_shows_no_secret_and_ends_its_epoch_when_stopped(team: Team) -> None:
    sweep = team.start("seen", "sweep", "sweeps/quickstart.yaml", "--set", "name=seen", *LONG)
    until(lambda: team.runs("seen"), 600, 0.5, "the first trials")
    dump = ["pg_dumpall", "--username", "postgres", "--no-role-passwords"]
    shown = {
        "compose config": team.compose("config"),
        "compose ps": team.compose("ps", "--all"),
        "compose logs": team.compose("logs", "--no-color"),
        "image": team.docker("image", "inspect", team.image),
        "history": team.docker("history", "--no-trunc", team.image),
        "databases": team.docker("exec", team.container("db"), *dump),
    }
    for container in team.containers():
        shown[f"inspect {container}"] = team.docker("inspect", container)
        shown[f"logs {container}"] = team.logs(container)
        if team.state(container).startswith("running"):
            shown[f"ps {container}"] = team.docker("top", container, "-eo", "pid,args")
    team.docker("stop", sweep)

    # what is looked through is what it should be
    sweep_id = str(team.inspected(sweep)["Id"])[:12]
    assert "/run/secrets/postgres_password" in shown["compose config"]
    assert "sweeps/quickstart.yaml" in shown[f"inspect {sweep_id}"]
    assert "sweeps/quickstart.yaml" in shown[f"ps {sweep_id}"]
    assert "regtune.trial_uid" in shown["databases"]
    for place, text in shown.items():
        for name, value in team.secrets.items():
            assert value not in text, f"{place} shows {name}"
    search = 'test -n "$(ls /volume)" || echo empty; for file in /s/*; do grep -rlF -f $file /volume; done'
    for volume in ("artifacts", "trials"):
        mounts = [f"{team.project}_{volume}:/volume:ro", f"{team.folder}/deploy/secrets:/s:ro"]
        options = [word for mount in mounts for word in ("--volume", mount)]
        found = team.docker("run", "--rm", *options, "python:3.11-slim", "sh", "-c", search, check=False)
        assert found == "", f"{volume}: {found}"

    assert team.inspected(sweep)["State"]["ExitCode"] == 130, team.logs(sweep)  # 137 would be a kill
    assert "Stopped; finished trials are kept" in team.logs(sweep)
    assert "RUNNING" not in {row["state"] for row in board(team, "seen")}
    team.docker("rm", sweep)


def test_what_is_promoted_inside_is_pulled_there_and_by_an_account_from_outside(
    team: Team, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forced = "promote quickstart --force 'trained for two epochs'"  # which no gate lets pass
    said = team.follow(
        "team.md", "Into production", {"promote quickstart": forced, "run --rm": "run --rm --no-deps -T"}
    )
    assert "quickstart: version 1 is @champion by force" in said
    assert "champion has version 1 of quickstart (@champion): config.yaml, model.keras, card.md" in said
    assert said.count(": exactly as recorded") == 2
    outside = {
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{team.port}",
        "MLFLOW_TRACKING_USERNAME": KEPT["username"],
        "MLFLOW_TRACKING_PASSWORD": KEPT["password"],
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    for wanted in ("model has version 1 of", "model: version 1 of"):
        check = ["--check"] if ":" in wanted else []
        code, _, said = run_here(capsys, "pull", "quickstart", "-o", "model", *check, **outside)
        assert (code, said.startswith(wanted)) == (0, True), said


def in_order(value: Any) -> Any:
    """`value` with its lists sorted: the server gives tags in the order of a table's rows, which a restore changes."""
    if isinstance(value, dict):
        return {key: in_order(member) for key, member in value.items()}
    if isinstance(value, list):
        return sorted(map(in_order, value), key=lambda member: json.dumps(member, sort_keys=True))
    return value


def standing(team: Team) -> tuple[Any, ...]:
    """What a person would miss: the board, the runs, their artifacts."""
    runs = sorted(team.runs("quickstart"), key=lambda run: str(run["info"]["run_id"]))
    listed = "/api/2.0/mlflow/artifacts/list?run_id="
    files = [team.as_admin(f"{listed}{run['info']['run_id']}") for run in runs]
    models = team.as_admin("/api/2.0/mlflow/registered-models/search")
    return in_order(runs), files, board(team, "quickstart"), in_order(models)


def test_nothing_is_lost_by_down_and_up_and_by_backup_restore_and_upgrade_of_the_docs(team: Team) -> None:
    before = standing(team)
    search = "/api/2.0/mlflow/experiments/search"

    team.compose("down")
    assert team.containers() == []
    team.compose("up", "--detach")
    come_up(team)
    assert standing(team) == before
    assert team.ask(search, {"max_results": 1})[0] == 401

    team.follow("backup.md", "Backup")
    team.compose("down", "--volumes")
    team.compose("up", "--detach", "db")
    until(lambda: team.state(team.container("db")) == "running (healthy)", what="db is healthy")
    team.follow("backup.md", "Restore")
    come_up(team)
    assert standing(team) == before
    assert team.ask(search, {"max_results": 1}, account=tuple(KEPT.values()))[0] == 200

    here = {
        "git pull && make secrets": "deploy/make-secrets",
        "build --pull": "ps",
        "run --rm": "run --rm -T",
    }
    said = team.follow("backup.md", "Upgrade", here)  # it is built already, and this is no terminal
    assert said.count(": current already (revision ") == 2, said
    come_up(team)
    assert standing(team) == before


def test_every_generation_of_compose_that_is_here_reads_the_file(team: Team) -> None:
    for version in range(len(team.composers)):
        team.compose("config", "--quiet", version=version)
