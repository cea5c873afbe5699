"""The command line in uncomfortable places: no such study, flags at odds, narrow, in ASCII, a full disk, no home."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from unittest.mock import patch

import pytest
import studies
from optuna.trial import TrialState
from parts import file_system
from terminals import START, Terminal, environment, regtune, run_here

from regtune.config.sweepfile import SweepSpec
from regtune.config.trial import DataConfig
from regtune.search import Space
from regtune.settings import Settings, load_settings
from regtune.study.ownership import hold
from regtune.study.study import Study
from regtune.sweep.proposals import Proposals
from regtune.sweep.standing import Standing

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch
NAME = "mnist-regularization"
HOME = Path("mlruns")
TYPOS = ("mnist-regularisation", "mnist-regularizatio", "MNIST-regularization", "mnist_regularization")
SWEEP = """\
name: quick
dataset: mnist-5k
run_cap: 1
controls: false
training: {max_epochs: 1}
parameters: {dropout: {values: [0, 0.1]}}
"""
READING = {
    verb: tuple(verb.replace("STUDY", NAME).split())
    for verb in (
        *(
            "board STUDY",
            "show STUDY",
            "show STUDY 0",
            "show STUDY 7",
            "studies",
            "status",
            "plan quick.yaml",
        ),
        *("data list", "doctor", "db check"),
    )
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "studies.db"
    studies.fill(studies.create(path))
    space = {"name": "spaced", "run_cap": 9, "parameters": {"dropout": {"min": 0.0, "max": 0.5}}}
    studies.create(path, "spaced", spec=space, run_cap=9)
    return path


@pytest.fixture(autouse=True)
def study(made: Path) -> None:
    HOME.mkdir()
    shutil.copy(made, HOME / "studies.db")
    Path("quick.yaml").write_text(SWEEP)


# -- studies that are not there


def test_a_study_that_is_nearly_there_is_suggested(capsys: Capture) -> None:
    typos = cycle(TYPOS)
    verbs = "board; show; watch; watch --json; stop; best --json; delete --yes; sync --check"
    for verb in verbs.split("; "):
        (name, *flags), typed = verb.split(), next(typos)
        expected = f'error: no study "{typed}"; did you mean "{NAME}"?\n'
        assert run_here(capsys, name, typed, *flags) == (2, "", expected), verb
    code, _, errors = run_here(capsys, "sweep", "quick.yaml", "--from", "mnist-regularisation", "--quiet")
    assert (code, errors.splitlines()[-1].endswith(f'did you mean "{NAME}"?')) == (2, True)
    assert run_here(capsys, "enqueue", "mnist-regularisation", "dropout=0.1")[0] == 2


# -- a configuration is queued


def test_who_queues_a_configuration_is_told_which_trial_runs_it(capsys: Capture, monkeypatch: Patch) -> None:
    monkeypatch.setattr("regtune.sweep.watch.ANSWER_SECONDS", 120.0)
    ready, done = threading.Event(), threading.Event()

    def coordinate() -> None:
        spec, settings = SweepSpec.load(Path("quick.yaml")), load_settings()
        with hold(settings, spec.name):
            study = Study.open(settings, spec)
            space = Space(spec)
            proposals = Proposals(study, space, Standing(study, space), DataConfig(name=spec.dataset))
            ready.set()
            while not done.wait(0.02):
                for request in study.requests():
                    study.take(request, proposals.queue_request(request)[1])

    coordinator = threading.Thread(target=coordinate)
    coordinator.start()
    try:
        assert ready.wait(60)
        said = run_here(capsys, "enqueue", "quick", "dropout=0.1")[2]
        assert said == "Queued dropout=0.1; trial 0 runs it.\n"
    finally:
        done.set()
        coordinator.join()
    said = run_here(capsys, "enqueue", "quick", "dropout=0")[2]
    assert said == "Queued dropout=0.0; it runs when the study resumes.\n"


# -- flags at odds, and values that are none

AT_ODDS = f"""
board {NAME} --csv --json; best {NAME} --json --output best.json; up --sqlite --postgres;
up postgresql+psycopg://me@db/mlflow; up postgresql+psycopg://me:secret@db/mlflow --postgres;
up --no-auth --host 0.0.0.0; up --host 0.0.0.0; ui --no-auth --host 0.0.0.0 --no-browser;
delete {NAME} => add --yes; board {NAME} --sort nothing => --sort nothing: expected one of rank; board {NAME} --sort -;
sweep quick.yaml --set =5; sweep quick.yaml --set ''; sweep quick.yaml --set run_cap=[1; sweep quick.yaml --from '';
sweep quick.yaml --name ../elsewhere; sweep quick.yaml --name --fresh; show {NAME} 999 => has no trial 999;
enqueue spaced dropout; enqueue spaced dropout=much; enqueue spaced dropuot=0.1; enqueue spaced dropout=0.9;
enqueue spaced dropout=[[[[; up --host {"h" * 300}.example; plan . => found a folder;
train absent.yaml => absent.yaml: no such file; sweep absent.yaml --quiet => absent.yaml;
data verify cifar => expected mnist, mnist-5k, fashion-mnist or a path; data fetch cifar10 --quiet;
data fetch mnist-5k --quiet => nothing to fetch
"""
REFUSED_BY_THE_PARSER = f"""
; bord => No such command; data remove; board => Missing argument; enqueue {NAME}; sweep quick.yaml more.yaml;
show {NAME} first; show {NAME} -1; board {NAME} --limit 0; board {NAME} --limit; sweep quick.yaml --workers 257;
sweep quick.yaml --worker 2; ui --port 0; sweep quick.yaml --json; plan quick.yaml --fresh; --version=1; studies --csv
"""


def commands(text: str) -> Iterator[tuple[list[str], str]]:
    """The words of each command, and what is said of it."""
    for entry in text.split(";"):
        command, _, said = entry.strip().partition(" => ")
        yield shlex.split(command), said


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
        code, output, errors = run_here(capsys, *arguments)
        assert code == 2, arguments
        assert "Usage: " in output + errors or "─ Error ─" in errors
        assert said in errors
        assert "Traceback" not in errors
        assert len(errors.splitlines()) <= 6


def test_an_address_that_no_machine_has_is_one_line(capsys: Capture) -> None:
    for host in ("no such host", "h" * 300, b"a\xff".decode("utf-8", "surrogateescape"), "::x"):
        code, output, errors = run_here(capsys, "ui", "--no-browser", "--host", host)
        assert (code, output, len(errors.splitlines())) == (1, "", 1)
        assert "not an address of this machine; try 127.0.0.1" in errors


def test_a_word_that_is_no_text_is_shown_as_it_is_written(capsys: Capture) -> None:
    word = b"a\xff".decode("utf-8", "surrogateescape")
    for command in (
        *(
            "board W",
            "delete W --yes",
            "train W",
            "plan W",
            "up W",
            "data verify W",
            f"board {NAME} --sort W",
        ),
        *("sweep quick.yaml --from W", "sweep quick.yaml --set W=1", "sweep quick.yaml --set dataset=W"),
        *("sweep quick.yaml --name W", "enqueue spaced dropout=W", "db restore W", "W"),
    ):
        arguments = command.replace("W", word).split()
        code, _, errors = run_here(capsys, *arguments)
        assert code in (1, 2)
        assert "Traceback" not in errors
        assert "a\\xff" in errors or "a\\udcff" in errors, arguments


def test_a_variable_without_meaning_is_named_or_ignored(capsys: Capture) -> None:
    for name, values in {
        "REGTUNE_WORKERS": ("many", "0", "1e9"),
        "OPTUNA_STORAGE": ("nowhere", "redis://x", "postgresql+psycopg://me:secret@db/x", "sqlite:///a\n.db"),
        "MLFLOW_TRACKING_URI": (
            "https://me:secret@h",
            "http://",
            "http:///x",
            "http://h:99999",
            "https://[::1",
        ),
    }.items():
        for value in values:
            code, _, errors = run_here(capsys, "studies", **{name: value})
            assert (code, len(errors.splitlines()), name in errors) == (2, 1, True), (name, value)
            assert "secret" not in errors
    for name, value in (
        *(("COLUMNS", "wide"), ("COLUMNS", "-5"), ("COLUMNS", "0"), ("COLUMNS", "9" * 50)),
        *(("NO_COLOR", ""), ("LINES", "tall"), ("TERM", "nothing")),
    ):
        assert run_here(capsys, "studies", **{name: value})[::2] == (0, ""), (name, value)


def test_a_malformed_env_file_is_named_or_ignored(capsys: Capture) -> None:
    for content in (
        *(b"REGTUNE_WORKERS=caf\xe9\n", b"\xff\xfeR\0", b"REGTUNE_WORKERS=many\n", b"\0"),
        *(b"=\n=x\nREGTUNE_WORKERS", b"x" * 10_000_000),
    ):
        Path(".env").write_bytes(content)
        code, _, errors = run_here(capsys, "studies")
        assert (code, len(errors.splitlines())) in ((0, 0), (2, 1)), content[:40]
        assert Path(".env").read_bytes() == content


def test_a_byte_order_mark_in_an_env_file_hides_nothing_whatever_reads_it() -> None:
    """Python-dotenv before 1.2 takes the mark for a part of the first name."""
    Path(".env").write_bytes(b"\xef\xbb\xbfREGTUNE_WORKERS=3\n")
    text = Path(".env").read_text(encoding=Settings.model_config["env_file_encoding"])
    assert text == "REGTUNE_WORKERS=3\n"
    assert load_settings().workers == 3


def test_a_folder_whose_choice_of_databases_is_damaged_says_so(capsys: Capture) -> None:
    for content in (
        *(b"", b"[" * 100_000, b"{}", b'{"studies": 5, "mlflow": null}', b"\xff", bytes(10_000_000)),
        b'{"studies": "sqlite:///a\\n", "mlflow": "x"}',
    ):
        (HOME / "stores.json").write_bytes(content)
        code, _, errors = run_here(capsys, "studies")
        assert (code, len(errors.splitlines())) == (2, 1), content[:40]
        assert "stores.json: " in errors
        assert "choose anew with: regtune up" in errors
        assert len(errors) < 500


# -- pipes and files


def in_a_shell(command: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run a line of a shell; ``regtune`` in it is the command."""
    line = command.replace("regtune", f'"{sys.executable}" -c "{START}"', 1)
    variables = environment(**changes)
    return subprocess.run(line, shell=True, capture_output=True, text=True, env=variables, check=False)


@pytest.mark.slow
def test_a_reader_that_leaves_early_hears_nothing_more(tmp_path: Path) -> None:
    """The study is longer than a pipe holds."""
    study = studies.create(tmp_path / "studies.db", "long")
    for number in range(300):
        studies.add(study, studies.record(number, {"dropout": 0.1}, epochs=2), TrialState.COMPLETE)
    for arguments, reader in {
        "board long --json": "head -n 1",
        "board long --csv": "true",
        "--help": "true",
    }.items():
        found = in_a_shell(f"regtune {arguments} | {reader}", REGTUNE_HOME=str(tmp_path))
        assert (len(found.stdout.splitlines()), found.stderr) == (int(reader != "true"), ""), arguments


@pytest.mark.slow
def test_a_full_disk_is_said_and_a_closed_output_is_none() -> None:
    full = "error: the output could not be written completely (No space left on device)\n"
    for command, code, said in (
        (f"board {NAME} > /dev/full", 1, full),
        ("schema > /dev/full", 1, full),
        (f"best {NAME} >&-", 0, ""),
        ("--help >&- 2>&-", 0, ""),
    ):
        found = in_a_shell(f"regtune {command}")
        assert (found.returncode, found.stderr) == (code, said), command


# -- forty columns


@pytest.mark.slow
def test_a_verb_that_reads_fits_forty_columns(capsys: Capture) -> None:
    for arguments in READING.values():
        code, output, errors = run_here(capsys, *arguments, COLUMNS="40")
        assert code in (0, 1), errors
        assert max(map(len, output.splitlines())) <= 40, arguments


@pytest.mark.slow
def test_errors_and_help_fit_a_narrow_terminal() -> None:
    for columns, arguments in ((40, "board nope"), (20, "board"), (40, "sweep --help"), (20, "--help")):
        terminal = Terminal(arguments.split(), columns=columns)
        assert terminal.finish() in (0, 2)
        assert "Traceback" not in terminal.everything
        assert terminal.everything.strip()


# -- other alphabets


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_an_encoding_lacks_is_spelled(capsys: Capture, encoding: str) -> None:
    for arguments in (*READING.values(), ("--help",), ("best", NAME)):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
        with patch.object(sys, "stdout", streams[0]), patch.object(sys, "stderr", streams[1]):
            assert run_here(capsys, *arguments, COLUMNS="80")[0] in (0, 1)
        for stream in streams:
            stream.flush()
        output, errors = (stream.buffer.getvalue().decode(encoding) for stream in streams)  # type: ignore[attr-defined]
        assert output
        assert "\\u" not in output + errors, arguments


@pytest.mark.slow
def test_names_of_other_letters_are_names_in_an_ascii_locale_too() -> None:
    named = studies.create(HOME / "studies.db", "größer")
    studies.add(named, studies.record(0, {"dropout": 0.1}), TrialState.COMPLETE)
    changes = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    found = json.loads(regtune("studies", "--json", **changes).stdout)
    assert "größer" in {entry["study"] for entry in found}
    assert "gr\\xf6\\xdfer" in regtune("studies", **changes).stdout
    assert regtune("board", "größer", **changes).returncode == 0


# -- homes

NOBODY = "import pwd\ndef nobody(uid): raise KeyError(uid)\npwd.getpwuid = nobody\n"


def at_home(*arguments: str, home: str | None, start: str = START) -> subprocess.CompletedProcess[str]:
    changed = {key: value for key, value in environment().items() if key not in ("HOME", "REGTUNE_DATA_DIR")}
    if home is not None:
        changed["HOME"] = home
    command = [sys.executable, "-c", start, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=changed, check=False)


@pytest.mark.slow
def test_a_verb_that_reads_needs_neither_a_home_nor_an_account(capsys: Capture, monkeypatch: Patch) -> None:
    """In a container a process may be a number that no one knows."""

    def reads(verbs: Sequence[tuple[str, ...]]) -> None:
        for arguments in verbs:
            code, output, errors = run_here(capsys, *arguments)
            assert code in (0, 1), errors
            assert output
            assert not Path("relative").exists()

    for home in ("/nowhere/at/all", "", "relative"):
        monkeypatch.setenv("HOME", home)
        reads([READING["plan quick.yaml"], READING["data list"], READING["doctor"]])
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    reads([*READING.values(), ("data", "verify", "mnist-5k")])


@pytest.mark.slow
def test_a_home_that_is_asked_for_and_is_not_there_is_said() -> None:
    Path("best.yaml").write_text("data: {name: ~/data.npz}\n")
    found = at_home("train", "best.yaml", "--quiet", home=None, start=NOBODY + START)
    assert found.returncode == 2
    assert "~/data.npz: not found" in found.stderr
    assert len(found.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_sweep_runs_without_a_home() -> None:
    found = at_home("sweep", "quick.yaml", "--workers", "1", "--quiet", home=None, start=NOBODY + START)
    assert found.returncode == 0, found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.slow
def test_a_sweep_runs_with_a_home_that_is_read_only(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with file_system(home, "ro"):  # a mode would not stop root
        found = at_home("sweep", "quick.yaml", "--workers", "1", "--quiet", home=str(home))
        assert list(home.iterdir()) == []
    assert found.returncode == 0, found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.slow
def test_a_folder_that_is_read_only_is_said_and_can_be_read(capsys: Capture, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    with file_system(folder, "size=64m"):
        shutil.copy(HOME / "studies.db", folder)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        for arguments in (("board", NAME), ("show", NAME), ("studies",), ("best", NAME)):
            code, _, errors = run_here(capsys, *arguments, "--home", str(folder))
            assert (code, "error" in errors) == (0, False), errors
        for arguments in ("sweep quick.yaml", f"delete {NAME} --yes", "enqueue spaced dropout=0.1"):
            code, _, errors = run_here(capsys, *arguments.split(), "--home", str(folder))
            assert code == 1, arguments
            assert errors.splitlines()[-1].startswith("error: "), errors
