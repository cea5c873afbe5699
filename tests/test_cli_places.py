"""The command line in uncomfortable places: no such study, flags at odds, in ASCII, a full disk, no home."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import studies
from optuna.trial import TrialState
from parts import file_system
from terminals import START, environment, regtune, run_here

from regtune.config.sweepfile import SweepSpec
from regtune.errors import COMMAND, TooManyFailures
from regtune.settings import load_settings
from regtune.study.ownership import hold
from regtune.study.record import FILE
from regtune.study.study import Study

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch
NAME = "mnist-regularization"
HOME = Path("mlruns")
SWEEP = """\
name: quick
dataset: mnist-5k
run_cap: 1
controls: false
training: {max_epochs: 1}
parameters: {dropout: {values: [0, 0.1]}}
"""
SPACED = {"dropout": {"min": 0.0, "max": 0.5}}
NO_TEXT = b"a\xff".decode("utf-8", "surrogateescape")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "studies.db"
    studies.fill(studies.create(path))
    spaced = studies.create(path, "spaced", spec={"name": "spaced", "parameters": SPACED}, run_cap=1)
    spaced.set_user_attr(FILE, "my sweep.yaml")
    studies.add(spaced, studies.record(0, {"dropout": 0.1}), TrialState.COMPLETE)
    return path


@pytest.fixture(autouse=True)
def study(made: Path) -> None:
    HOME.mkdir()
    shutil.copy(made, HOME / "studies.db")
    Path("quick.yaml").write_text(SWEEP)


def commands(text: str) -> Iterator[tuple[list[str], str]]:
    """The words of each command, and what is said of it."""
    for entry in text.split(";"):
        command, _, said = entry.strip().partition(" => ")
        yield shlex.split(command), said


# -- studies that are not there


def test_a_study_that_is_nearly_there_is_suggested(capsys: Capture) -> None:
    verbs = "board; show; watch; watch --json; stop; best --json; delete --yes; sync --check"
    for (verb, *flags), _ in commands(verbs):
        expected = f'error: no study "MNIST-regularisation"; did you mean "{NAME}"?\n'
        assert run_here(capsys, verb, "MNIST-regularisation", *flags) == (2, "", expected), verb
    code, _, errors = run_here(capsys, "sweep", "quick.yaml", "--from", "mnist-regularisation", "--quiet")
    assert (code, errors.splitlines()[-1].endswith(f'did you mean "{NAME}"?')) == (2, True)
    assert run_here(capsys, "enqueue", "mnist-regularisation", "dropout=0.1")[0] == 2


# -- a configuration is queued


def test_who_queues_a_configuration_is_told_when_it_runs(capsys: Capture) -> None:
    spec, settings = SweepSpec.load(Path("quick.yaml")), load_settings()
    with hold(settings, spec.name):
        Study.open(settings, spec)
        said = run_here(capsys, "enqueue", "quick", "dropout=0.1")[2]
        assert said == "Queued dropout=0.1; the running sweep will run it.\n"
    said = run_here(capsys, "enqueue", "quick", "dropout=0")[2]
    assert said == "Queued dropout=0.0; it runs when the study resumes.\n"


# -- what a person should type stands there whole: the verb, the sweep file, the study, the folder


def test_too_many_failures_are_answered_with_the_whole_command(monkeypatch: Patch, capsys: Capture) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise TooManyFailures(f"7 trials failed; resume with: {COMMAND.get()} --set max_failures=14")

    monkeypatch.setattr("regtune.evidence.run.run_sweep", fail)
    errors = run_here(capsys, "sweep", "quick.yaml", "--fresh", "--set", "run_cap=3", "--home", "a b")[2]
    again = "regtune sweep quick.yaml --set run_cap=3 --home 'a b'"
    assert errors == f"error: 7 trials failed; resume with: {again} --set max_failures=14\n"


def test_another_sweep_file_of_the_same_name_is_answered_with_two_whole_commands(capsys: Capture) -> None:
    Path("my sweep.yaml").write_text(SWEEP.replace("quick", "spaced"))
    for verb, *flags in (("plan",), ("sweep", "--dry-run")):
        errors = run_here(capsys, verb, "my sweep.yaml", *flags)[2]
        assert "take another name with: regtune sweep 'my sweep.yaml' --name spaced-2;" in errors
        assert "or set the earlier one aside with: regtune sweep 'my sweep.yaml' --fresh;" in errors


def test_a_suggested_command_names_the_study_s_own_sweep_file_and_the_folder_that_was_given(
    capsys: Capture,
) -> None:
    HOME.rename("else")
    said = run_here(capsys, "enqueue", "spaced", "dropout=0.2", "--home", "else")[2]
    assert said.endswith("regtune sweep 'my sweep.yaml' --set run_cap=2 --name spaced --home else\n")
    said = run_here(capsys, "show", "spaced", "99", "--home", "else")[2]
    assert said.endswith("try: regtune board spaced --home else\n")


# -- flags at odds, and values that are none

AT_ODDS = f"""
board {NAME} --csv --json; best {NAME} --json --output best.json; up --sqlite --postgres;
up postgresql+psycopg://me@db/mlflow; up postgresql+psycopg://me:secret@db/mlflow --postgres;
up --no-auth --host 0.0.0.0; up --host 0.0.0.0; ui --no-auth --host 0.0.0.0 --no-browser;
delete {NAME} => add --yes: regtune delete {NAME} --yes;
board {NAME} --sort nothing => --sort nothing: expected one of rank; board {NAME} --sort -;
sweep quick.yaml --set =5; sweep quick.yaml --set ''; sweep quick.yaml --set run_cap=[1; sweep quick.yaml --from '';
sweep quick.yaml --name ../elsewhere; sweep quick.yaml --name --fresh; show {NAME} 999 => has no trial 999;
enqueue spaced dropout; enqueue spaced dropout=much; enqueue spaced dropuot=0.1; enqueue spaced dropout=0.9;
enqueue spaced dropout=[[[[; plan . => Is a directory;
train absent.yaml => absent.yaml: no such file; sweep absent.yaml --quiet => absent.yaml;
data verify cifar => expected mnist, mnist-5k, fashion-mnist or a path; data fetch cifar10 --quiet;
data fetch mnist-5k --quiet => nothing to fetch
"""
REFUSED_BY_THE_PARSER = (
    f"bord => No such command; show {NAME} -1; sweep quick.yaml --workers 257; plan x --fresh"
)


def test_what_cannot_be_is_one_line(capsys: Capture) -> None:
    for arguments, said in commands(AT_ODDS):
        code, output, errors = run_here(capsys, *arguments)
        assert (code, output) == (2, ""), arguments
        (line,) = errors.splitlines()
        assert line.startswith("error: ")
        assert said in line
        assert len(line) < 400
        assert "secret" not in line
        assert sorted(path.name for path in Path().iterdir()) == ["mlruns", "quick.yaml"]


def test_what_cannot_be_parsed_is_said_in_a_box(capsys: Capture) -> None:
    for arguments, said in commands(REFUSED_BY_THE_PARSER):
        code, _, errors = run_here(capsys, *arguments)
        assert (code, "─ Error ─" in errors, said in errors) == (2, True, True), arguments
        assert len(errors.splitlines()) <= 6


def test_an_address_that_no_machine_has_is_one_line(capsys: Capture) -> None:
    for host in ("h" * 300, NO_TEXT, "::x"):
        for verb in ("ui", "up"):
            code, output, errors = run_here(capsys, verb, "--host", host)
            assert (code, output, len(errors.splitlines())) == (1, "", 1)
            assert "not an address of this machine; try 127.0.0.1" in errors


def test_a_word_that_is_no_text_is_shown_as_it_is_written(capsys: Capture) -> None:
    words = f"""board W; delete W --yes; train W; plan W; up W; data verify W; board {NAME} --sort W; db restore W; W;
        sweep quick.yaml --from W; sweep quick.yaml --set W=1; sweep quick.yaml --name W; enqueue spaced dropout=W"""
    for arguments, _ in commands(words.replace("W", NO_TEXT)):
        code, _, errors = run_here(capsys, *arguments)
        assert code in (1, 2)
        assert "Traceback" not in errors
        assert "a\\xff" in errors or "a\\udcff" in errors, arguments


def test_a_variable_without_meaning_is_named_or_ignored(capsys: Capture) -> None:
    for name, values in {
        "REGTUNE_WORKERS": "many 0 1e9",
        "OPTUNA_STORAGE": "nowhere redis://x postgresql+psycopg://me:secret@db/x sqlite:///a\x7f.db",
        "MLFLOW_TRACKING_URI": "https://me:secret@h http:// http:///x http://h:99999 https://[::1",
    }.items():
        for value in values.split():
            code, _, errors = run_here(capsys, "studies", **{name: value})
            assert (code, len(errors.splitlines()), name in errors) == (2, 1, True), (name, value)
            assert "secret" not in errors
    for word in (
        "COLUMNS=wide",
        "COLUMNS=-5",
        "COLUMNS=0",
        f"COLUMNS={'9' * 50}",
        "NO_COLOR=",
        "TERM=nothing",
    ):
        name, _, value = word.partition("=")
        assert run_here(capsys, "studies", **{name: value})[::2] == (0, ""), word


def test_a_malformed_env_file_is_named_or_ignored(capsys: Capture) -> None:
    large = b"x" * 10_000_000
    for content in (
        b"REGTUNE_WORKERS=caf\xe9\n",
        b"\xff\xfeR\0",
        b"REGTUNE_WORKERS=many\n",
        b"=\n=x\nR",
        large,
    ):
        Path(".env").write_bytes(content)
        code, _, errors = run_here(capsys, "studies")
        assert (code, len(errors.splitlines())) in ((0, 0), (2, 1)), content[:40]
        assert Path(".env").read_bytes() == content
    Path(".env").write_bytes(b"\xef\xbb\xbfREGTUNE_WORKERS=3\n")
    assert load_settings().workers == 3


def test_a_folder_whose_choice_of_databases_is_damaged_says_so(capsys: Capture) -> None:
    for content in (b"", b"[" * 100_000, b'{"studies": 5, "mlflow": null}', b"\xff", bytes(10_000_000)):
        (HOME / "stores.json").write_bytes(content)
        code, _, errors = run_here(capsys, "studies")
        assert (code, len(errors.splitlines())) == (2, 1), content[:40]
        assert "stores.json: " in errors
        assert "choose anew with: regtune up" in errors
        assert len(errors) < 500


# -- pipes and files


def in_a_shell(command: str) -> subprocess.CompletedProcess[str]:
    """Run a line of a shell; ``regtune`` in it is the command."""
    line = command.replace("regtune", f'"{sys.executable}" -c "{START}"', 1)
    return subprocess.run(line, shell=True, capture_output=True, text=True, env=environment(), check=False)


@pytest.mark.slow
def test_a_reader_that_leaves_early_a_full_disk_and_a_closed_output() -> None:
    """The study is longer than a pipe holds."""
    study = studies.create(HOME / "studies.db", "long")
    for number in range(300):
        studies.add(study, studies.record(number, {"dropout": 0.1}, epochs=2), TrialState.COMPLETE)
    full = "error: the output could not be written completely (No space left on device)\n"
    for command, code, said in (
        ("board long --json | head -n 1", 0, ""),
        ("--help | true", 0, ""),
        (f"board {NAME} > /dev/full", 1, full),
        ("studies >&-", 0, ""),
        ("--help >&- 2>&-", 0, ""),
    ):
        found = in_a_shell(f"regtune {command}")
        assert (found.returncode, found.stderr) == (code, said), command


# -- other alphabets


def test_what_an_encoding_lacks_does_not_fail(capsys: Capture) -> None:
    for arguments, _ in commands(f"board {NAME}; show {NAME} 0; --help"):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2)]
        with patch.object(sys, "stdout", streams[0]), patch.object(sys, "stderr", streams[1]):
            assert run_here(capsys, *arguments, COLUMNS="80")[0] == 0
        streams[0].flush()
        assert b"\\u" not in streams[0].buffer.getvalue()  # type: ignore[attr-defined]


@pytest.mark.slow
def test_names_of_other_letters_are_names_in_an_ascii_locale_too() -> None:
    named = studies.create(HOME / "studies.db", "größer")
    studies.add(named, studies.record(0, {"dropout": 0.1}), TrialState.COMPLETE)
    changes = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    found = json.loads(regtune("studies", "--json", **changes).stdout)
    assert "größer" in {entry["study"] for entry in found}
    assert regtune("board", "größer", **changes).returncode == 0


# -- homes

NOBODY = "import pwd\ndef nobody(uid): raise KeyError(uid)\npwd.getpwuid = nobody\n"


@pytest.mark.slow
def test_a_verb_that_reads_needs_neither_a_home_nor_an_account(capsys: Capture, monkeypatch: Patch) -> None:
    """In a container a process may be a number that no one knows."""

    def reads(verbs: str) -> None:
        for arguments, _ in commands(verbs):
            code, output, errors = run_here(capsys, *arguments)
            assert code in (0, 1), errors
            assert output
            assert not Path("relative").exists()

    for home in ("/nowhere/at/all", "", "relative"):
        monkeypatch.setenv("HOME", home)
        reads("plan quick.yaml; data list; doctor")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    reads(f"board {NAME}; show {NAME} 0; studies; status; doctor; db check; data verify mnist-5k")
    Path("best.yaml").write_text("data: {name: ~/data.npz}\n")
    code, _, errors = run_here(capsys, "train", "best.yaml", "--quiet")
    assert (code, len(errors.splitlines()), "~/data.npz: not found" in errors) == (2, 1, True)


@pytest.mark.slow
def test_a_sweep_runs_without_a_home_and_with_one_that_is_read_only(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    homeless = {key: value for key, value in environment().items() if key not in ("HOME", "REGTUNE_DATA_DIR")}
    with file_system(home, "ro"):  # a mode would not stop root
        for start, variables in ((NOBODY + START, homeless), (START, {**homeless, "HOME": str(home)})):
            command = [
                sys.executable,
                "-c",
                start,
                "sweep",
                "quick.yaml",
                "--workers",
                "1",
                "--fresh",
                "--quiet",
            ]
            found = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
            assert (found.returncode, "Traceback" in found.stderr) == (0, False), found.stderr
        assert list(home.iterdir()) == []


@pytest.mark.slow
def test_a_folder_that_is_read_only_is_said_and_can_be_read(capsys: Capture, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    with file_system(folder, "size=64m"):
        shutil.copy(HOME / "studies.db", folder)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        for arguments, _ in commands(f"board {NAME}; show {NAME}; studies; best {NAME}"):
            code, _, errors = run_here(capsys, *arguments, "--home", str(folder))
            assert (code, "error" in errors) == (0, False), errors
        for arguments, _ in commands(f"sweep quick.yaml; delete {NAME} --yes; enqueue spaced dropout=0.1"):
            code, _, errors = run_here(capsys, *arguments, "--home", str(folder))
            assert code == 1, arguments
            assert errors.splitlines()[-1].startswith("error: "), errors
