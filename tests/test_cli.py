"""The command line as a whole: help at once, errors without tracebacks, completion, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import studies
from parts import file_system
from terminals import COMMAND, Terminal, imported, regtune, run_here

from regtune.cli.terminal import wrapped

Capture = pytest.CaptureFixture[str]
HEAVY = {"tensorflow", "keras", "mlflow", "optuna", "sqlalchemy", "numpy", "yaml"}
NAME = "mnist-regularization"


def test_the_command_line_itself_imports_no_pydantic() -> None:
    assert "pydantic" not in imported("import regtune.cli")


def test_help_of_every_verb_imports_nothing_heavy() -> None:
    code = """
from typer.testing import CliRunner
from regtune.cli import GROUPS, app
def shown(*verb):
    found = CliRunner().invoke(app, [*verb, "--help"])
    assert found.exit_code == 0 and "Usage" in found.output, (verb, found.output)
shown()
for command in app.registered_commands:
    shown(command.name)
for group, (*_, verbs) in GROUPS.items():
    for verb in verbs:
        shown(group, verb.__name__.rstrip("_"))
"""
    assert not imported(code) & HEAVY


def test_without_a_verb_the_verbs_are_shown_in_groups(capsys: Capture) -> None:
    shown = run_here(capsys)[1]
    for panel in ("Sweep", "Look", "Evidence", "Serve", "Use", "Keep in order", "Set up"):
        assert f"─ {panel} ─" in shown
    for verb in COMMAND.commands:  # type: ignore[attr-defined]
        assert verb in shown


def test_the_version_is_the_package_s(capsys: Capture) -> None:
    from regtune import __version__

    assert run_here(capsys, "--version") == (0, f"regtune {__version__}\n", "")


def test_a_folder_without_studies_says_how_to_begin_and_stays_empty(tmp_path: Path, capsys: Capture) -> None:
    code, _, errors = run_here(capsys, "studies")
    assert code == 1
    assert "no studies yet; try: regtune sweep sweeps/quickstart.yaml" in errors
    assert list(tmp_path.iterdir()) == []


def test_only_a_terminal_has_colour_unless_no_color_is_set(capsys: Capture) -> None:
    studies.fill(studies.create(Path("mlruns/studies.db")))
    for arguments in (["board", NAME], ["show", NAME, "3"], ["board", "x"]):
        assert "\x1b" not in "".join(run_here(capsys, *arguments)[1:])
    for changes, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        terminal = Terminal(["board", NAME], columns=100, **changes)
        assert terminal.finish() == 0
        assert (b"\x1b[32m" in terminal.raw) is coloured


def test_prose_on_a_terminal_breaks_between_words_and_commands_stay_whole() -> None:
    said = (
        "It stopped (the budget is used up). Resume with: regtune sweep 'a b.yaml' --set run_cap=20; or not."
    )
    lines = wrapped(said, 30).splitlines()
    assert " ".join(lines) == said
    assert "regtune sweep 'a b.yaml' --set run_cap=20;" in lines
    assert all(len(line) <= 30 for line in lines if "regtune" not in line)
    aligned = "compare the runs:  regtune ui  (MLflow, best trial first)"
    assert wrapped(aligned, 80) == aligned


def test_doctor_finds_nothing_to_mend_here_and_names_what_workers_ignore() -> None:
    found = regtune("doctor", "--json", KERAS_MAX_EPOCHS="1")
    checks = {check["name"]: check for check in json.loads(found.stdout)}
    assert found.returncode == 0, [check for check in checks.values() if check["status"] == "mend"]
    assert {"packages", "processor", "memory", "folder", "disk", "studies", "MLflow"} <= checks.keys()
    assert (checks["Keras"]["status"], "KERAS_MAX_EPOCHS" in checks["Keras"]["found"]) == ("note", True)


def test_data_is_fetched_into_its_folder_and_a_broken_setting_of_keras_is_one_line(tmp_path: Path) -> None:
    Path(".keras").mkdir()
    Path(".keras/keras.json").write_text('{"floatx": "broken"}')
    given = {"HOME": str(tmp_path), "KERAS_HOME": "elsewhere", "KERAS_BACKEND": "torch"}
    found = regtune("data", "fetch", "mnist", **given)
    assert found.returncode == 2
    said = "fetching mnist\nerror: mnist: cannot be fetched (Invalid `floatx` configuration."
    assert found.stderr.startswith(said)
    assert len(found.stderr.splitlines()) == 2
    assert not Path("elsewhere").exists()


def test_doctor_says_what_to_mend(tmp_path: Path, capsys: Capture) -> None:
    home = tmp_path / "mlruns"
    home.mkdir()
    (home / "studies.db").write_bytes(b"no database at all" * 400)
    code, output, _ = run_here(capsys, "doctor", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert (code, "2 to fix" in output) == (1, True)
    assert "not a SQLite database" in output
    assert "start the server, or unset MLFLOW_TRACKING_URI" in output
    with file_system(home, "ro"):  # a mode would not stop root
        code, output, _ = run_here(capsys, "doctor", "--home", str(home / "below"))
    assert (code, "make it writable" in output) == (1, True)


def test_data_sets_are_listed_and_verified(tmp_path: Path, capsys: Capture) -> None:
    listed = json.loads(run_here(capsys, "data", "list", "--json")[1])
    assert {entry["name"] for entry in listed} == {"mnist", "mnist-5k", "fashion-mnist"}
    (entry,) = json.loads(run_here(capsys, "data", "verify", "mnist-5k", "--json")[1])
    assert (entry["train"], entry["test"], entry["problem"]) == (4000, 1000, "")
    (tmp_path / "mnist.npz").write_bytes(b"nothing")
    code, output, _ = run_here(capsys, "data", "verify", "mnist", REGTUNE_DATA_DIR=str(tmp_path))
    assert (code, "expected a .npz with numeric arrays" in output) == (1, True)
