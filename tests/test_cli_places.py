"""The command line in uncomfortable places: no such study, flags at odds, narrow, in ASCII, a full disk, no home."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from unittest.mock import patch

import pytest
import studies
from optuna.trial import TrialState
from parts import file_system
from terminals import START, Terminal, environment, regtune
from typer.main import get_command

from regtune.cli import app, main
from regtune.config.sweepfile import SweepSpec
from regtune.config.trial import DataConfig
from regtune.search import Space
from regtune.settings import Settings, load_settings
from regtune.study.ownership import hold
from regtune.study.study import Study
from regtune.sweep.proposals import Proposals
from regtune.sweep.standing import Standing

COMMAND = get_command(app)
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
READING = {
    "board": ("board", NAME),
    "show": ("show", NAME),
    "show a trial": ("show", NAME, "0"),
    "show a failed trial": ("show", NAME, "7"),
    "studies": ("studies",),
    "status": ("status",),
    "plan": ("plan", "quick.yaml"),
    "data list": ("data", "list"),
    "doctor": ("doctor",),
    "db check": ("db", "check"),
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


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run a verb in this process: exit code, output and errors."""
    words = patch.object(sys, "argv", ["regtune", *arguments])
    with words, patch("regtune.cli.app", COMMAND), pytest.raises(SystemExit) as ended:
        main()
    found = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, found.out, found.err


# -- studies that are not there


@pytest.mark.parametrize(
    "typed", ["mnist-regularisation", "mnist-regularizatio", "MNIST-regularization", "mnist_regularization"]
)
@pytest.mark.parametrize(
    "verb",
    [
        *(("board",), ("show",), ("watch",), ("watch", "--json"), ("stop",), ("best",), ("best", "--json")),
        *(("delete", "--yes"), ("sync",), ("sync", "--check")),
    ],
    ids=" ".join,
)
def test_a_study_that_is_nearly_there_is_suggested(
    capsys: pytest.CaptureFixture[str], verb: tuple[str, ...], typed: str
) -> None:
    code, output, errors = run(capsys, verb[0], typed, *verb[1:])
    assert (code, output) == (2, "")
    assert errors == f'error: no study "{typed}"; did you mean "{NAME}"?\n'


def test_a_study_that_is_nearly_there_is_suggested_where_its_best_are_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, _, errors = run(capsys, "sweep", "quick.yaml", "--from", "mnist-regularisation", "--quiet")
    assert (code, errors.splitlines()[-1].endswith(f'did you mean "{NAME}"?')) == (2, True)
    assert run(capsys, "enqueue", "mnist-regularisation", "dropout=0.1")[0] == 2


# -- a configuration is queued


def test_whoever_queues_a_configuration_is_told_which_trial_runs_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
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
        assert run(capsys, "enqueue", "quick", "dropout=0.1")[2] == "Queued dropout=0.1; trial 0 runs it.\n"
    finally:
        done.set()
        coordinator.join()
    said = run(capsys, "enqueue", "quick", "dropout=0")[2]
    assert said == "Queued dropout=0.0; it runs when the study resumes.\n"


# -- flags at odds, and values that are none

AT_ODDS = [
    ("board", NAME, "--csv", "--json"),
    ("best", NAME, "--json", "--output", "best.json"),
    ("up", "--sqlite", "--postgres"),
    ("up", "postgresql+psycopg://me@db/mlflow"),
    ("up", "postgresql+psycopg://me@db/mlflow", "--sqlite"),
    ("up", "postgresql+psycopg://me:secret@db/mlflow", "--postgres"),
    ("up", "--no-auth", "--host", "0.0.0.0"),
    ("up", "--host", "0.0.0.0"),
    ("up", "--auth"),
    ("ui", "--no-auth", "--host", "0.0.0.0", "--no-browser"),
    ("ui", "--host", "0.0.0.0", "--no-browser"),
    ("delete", NAME),
    ("delete", NAME, "--quiet"),
    ("board", NAME, "--sort", "nothing"),
    ("board", NAME, "--sort", ""),
    ("board", NAME, "--sort", "-"),
    ("sweep", "quick.yaml", "--set", "run_cap"),
    ("sweep", "quick.yaml", "--set", "=5"),
    ("sweep", "quick.yaml", "--set", ""),
    ("sweep", "quick.yaml", "--set", "run_cap=[1"),
    ("sweep", "quick.yaml", "--set", "run_cap.more=1"),
    ("sweep", "quick.yaml", "--set", "..=1"),
    ("sweep", "quick.yaml", "--name", ""),
    ("sweep", "quick.yaml", "--name", "../elsewhere"),
    ("sweep", "quick.yaml", "--name", "--fresh"),
    ("sweep", "quick.yaml", "--from", ""),
    ("show", NAME, "999"),
    ("enqueue", "spaced", "dropout"),
    ("enqueue", "spaced", "dropout="),
    ("enqueue", "spaced", "dropout=much"),
    ("enqueue", "spaced", "dropout=0.1", "dropout=0.2"),
    ("enqueue", "spaced", "dropuot=0.1"),
    ("enqueue", "spaced", "dropout=0.9"),
    ("enqueue", "spaced", "dropout=[[[["),
    ("up", "--host", f"{'h' * 300}.example"),
    ("data", "verify", "cifar10"),
    ("data", "fetch", "cifar10", "--quiet"),
    ("data", "fetch", "mnist-5k", "--quiet"),
]
REFUSED_BY_THE_PARSER = [
    *(
        (),
        ("bord",),
        ("data", "remove"),
        ("db", "drop"),
        ("board",),
        ("show",),
        ("enqueue", NAME),
        ("train",),
    ),
    *(("sweep",), ("sweep", "quick.yaml", "more.yaml"), ("board", NAME, "more"), ("show", NAME, "1", "2")),
    *(("show", NAME, "first"), ("show", NAME, "-1"), ("show", NAME, "1.5")),
    *(("board", NAME, "--limit", "0"), ("board", NAME, "--limit", "ten"), ("board", NAME, "--limit")),
    *(("sweep", "quick.yaml", "--workers", "0"), ("sweep", "quick.yaml", "--workers", "257")),
    *(("sweep", "quick.yaml", "--workers", "two"), ("sweep", "quick.yaml", "--worker", "2")),
    *(("ui", "--port", "0"), ("ui", "--port", "65536"), ("up", "--port", "http"), ("down", "--port", "5000")),
    *(
        ("sweep", "quick.yaml", "--json"),
        ("plan", "quick.yaml", "--fresh"),
        ("plan", "quick.yaml", "--dry-run"),
    ),
    *(("studies", "--csv"), ("best", NAME, "--quiet"), ("schema", "--json"), ("data", "list", "--home", "x")),
    *(("--version=1",), ("--verbose",), ("board", NAME, "--json=yes")),
]


@pytest.mark.parametrize("arguments", AT_ODDS, ids=" ".join)
def test_what_cannot_be_is_one_line(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    code, output, errors = run(capsys, *arguments)
    assert (code, output) == (2, "")
    (line,) = errors.splitlines()
    assert line.startswith("error: ")
    assert len(line) < 400
    assert "secret" not in line
    assert sorted(path.name for path in Path().iterdir()) == ["mlruns", "quick.yaml"]


@pytest.mark.parametrize("arguments", REFUSED_BY_THE_PARSER, ids=lambda words: " ".join(words) or "nothing")
def test_what_cannot_be_parsed_is_said_in_a_box(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    code, output, errors = run(capsys, *arguments)
    assert code == 2
    assert "Usage: " in output + errors or "─ Error ─" in errors
    assert "Traceback" not in errors
    assert len(errors.splitlines()) <= 6


@pytest.mark.parametrize(
    "host", ["no such host", "h" * 300, b"a\xff".decode("utf-8", "surrogateescape"), "::x"], ids=ascii
)
def test_an_address_that_no_machine_has_is_one_line(capsys: pytest.CaptureFixture[str], host: str) -> None:
    code, output, errors = run(capsys, "ui", "--no-browser", "--host", host)
    assert (code, output, len(errors.splitlines())) == (1, "", 1)
    assert "not an address of this machine; try 127.0.0.1" in errors


@pytest.mark.parametrize(
    "arguments",
    [
        *(("board", "{}"), ("show", "{}"), ("watch", "{}"), ("stop", "{}"), ("best", "{}"), ("sync", "{}")),
        *(("delete", "{}", "--yes"), ("enqueue", "{}", "dropout=0.1"), ("train", "{}"), ("plan", "{}")),
        *(("sweep", "quick.yaml", "--from", "{}"), ("sweep", "quick.yaml", "--name", "{}")),
        *(("sweep", "quick.yaml", "--set", "{}=1"), ("sweep", "quick.yaml", "--set", "dataset={}")),
        *(
            ("board", NAME, "--sort", "{}"),
            ("enqueue", "spaced", "{}=1"),
            ("enqueue", "spaced", "dropout={}"),
        ),
        *(("data", "verify", "{}"), ("db", "restore", "{}"), ("up", "{}"), ("{}",)),
    ],
    ids=" ".join,
)
def test_a_word_that_is_no_text_is_shown_as_it_is_written(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    word = b"a\xff".decode("utf-8", "surrogateescape")
    code, _, errors = run(capsys, *(argument.replace("{}", word) for argument in arguments))
    assert code in (1, 2)
    assert "Traceback" not in errors
    assert "a\\xff" in errors or "a\\udcff" in errors


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        *(("REGTUNE_WORKERS", "many", 2), ("REGTUNE_WORKERS", "0", 2), ("REGTUNE_WORKERS", "1e9", 2)),
        *(("OPTUNA_STORAGE", "nowhere", 2), ("OPTUNA_STORAGE", "redis://x", 2)),
        *(
            ("OPTUNA_STORAGE", "postgresql+psycopg://me:secret@db/x", 2),
            ("OPTUNA_STORAGE", "sqlite:///a\n.db", 2),
        ),
        *(("MLFLOW_TRACKING_URI", "https://me:secret@host", 2), ("MLFLOW_TRACKING_URI", "http://", 2)),
        *(
            ("MLFLOW_TRACKING_URI", url, 2)
            for url in ("http:///x", "HTTP://h:port", "http://h:99999", "https://[::1")
        ),
        *(("COLUMNS", "wide", 0), ("COLUMNS", "-5", 0), ("COLUMNS", "0", 0), ("COLUMNS", "9" * 50, 0)),
        *(("NO_COLOR", "", 0), ("LINES", "tall", 0), ("TERM", "nothing", 0)),
    ],
)
def test_a_variable_without_meaning_is_named_or_passed_over(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, value: str, code: int
) -> None:
    monkeypatch.setenv(name, value)
    found, _, errors = run(capsys, "studies")
    assert found == code
    assert len(errors.splitlines()) == (1 if code else 0)
    assert (name in errors) == bool(code)
    assert "secret" not in errors


@pytest.mark.parametrize(
    "content",
    [
        b"REGTUNE_WORKERS=caf\xe9\n",
        b"\xff\xfeR\0",
        b"REGTUNE_WORKERS=many\n",
        b"\0",
        b"=\n=x\nREGTUNE_WORKERS",
        b"x" * 10_000_000,
    ],
    ids=["Latin-1", "UTF-16", "a value without meaning", "a NUL", "no names", "10 MB"],
)
def test_a_malformed_env_file_is_named_or_passed_over(
    capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    Path(".env").write_bytes(content)
    code, _, errors = run(capsys, "studies")
    assert (code, len(errors.splitlines())) in ((0, 0), (2, 1))
    assert Path(".env").read_bytes() == content


def test_a_byte_order_mark_in_an_env_file_hides_nothing_whatever_reads_it() -> None:
    """Python-dotenv before 1.2 takes the mark for a part of the first name."""
    Path(".env").write_bytes(b"\xef\xbb\xbfREGTUNE_WORKERS=3\n")
    text = Path(".env").read_text(encoding=Settings.model_config["env_file_encoding"])
    assert text == "REGTUNE_WORKERS=3\n"
    assert load_settings().workers == 3


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[" * 100_000,
        b"{}",
        b'{"studies": 5, "mlflow": null}',
        b"\xff",
        b'{"studies": "sqlite:///a\\n", "mlflow": "x"}',
        bytes(10_000_000),
    ],
    ids=["nothing", "100,000 brackets", "no keys", "no text", "no UTF-8", "an end of line", "10 MB"],
)
def test_a_folder_whose_choice_of_databases_is_damaged_says_so(
    capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    (HOME / "stores.json").write_bytes(content)
    code, _, errors = run(capsys, "studies")
    assert (code, len(errors.splitlines())) == (2, 1)
    assert "stores.json: " in errors
    assert "choose anew with: regtune up" in errors
    assert len(errors) < 500


# -- pipes and files


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose study `long` is longer than a pipe holds."""
    home = tmp_path_factory.mktemp("long")
    study = studies.create(home / "studies.db", "long")
    for number in range(150):
        studies.add(study, studies.record(number, {"dropout": 0.1}, epochs=2), TrialState.COMPLETE)
    return home


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "reader"),
    [
        *(("board long", "head -n 1"), ("board long", "true"), ("board long --csv", "head -n 1")),
        *(
            ("board long --json", "true"),
            ("--help", "head -n 1"),
            ("--help", "true"),
            ("schema", "head -n 1"),
        ),
    ],
)
def test_a_reader_that_leaves_early_hears_nothing_more(long: Path, arguments: str, reader: str) -> None:
    command = f'"{sys.executable}" -c "{START}" {arguments} | {reader}'
    variables = environment(REGTUNE_HOME=str(long))
    found = subprocess.run(command, shell=True, capture_output=True, text=True, env=variables, check=False)
    assert len(found.stdout.splitlines()) == (1 if reader.startswith("head") else 0)
    assert found.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", ["board mnist-regularization", "schema", "--help", "best mnist-regularization"]
)
def test_a_full_disk_is_said_and_a_closed_output_is_none(arguments: str) -> None:
    for target, code, said in (
        ("> /dev/full", 1, "error: the output could not be written completely (No space left on device)\n"),
        (">&-", 0, ""),
        (">&- 2>&-", 0, ""),
    ):
        command = f'"{sys.executable}" -c "{START}" {arguments} {target}'
        found = subprocess.run(
            command, shell=True, capture_output=True, text=True, env=environment(), check=False
        )
        assert (found.returncode, found.stderr) == (code, said), target


# -- forty columns


@pytest.mark.slow
@pytest.mark.parametrize("arguments", READING.values(), ids=READING)
def test_a_verb_that_reads_fits_forty_columns(arguments: tuple[str, ...]) -> None:
    terminal = Terminal(arguments, columns=40)
    assert terminal.finish() in (0, 1)
    for line in terminal.everything.splitlines():
        assert len(line) <= 40
    assert "Traceback" not in terminal.everything


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("board", "nope"),
        ("board",),
        ("--help",),
        ("sweep", "--help"),
        ("board", "--help"),
        ("sweep", "absent.yaml"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("columns", [40, 20])
def test_errors_and_help_fit_a_narrow_terminal(arguments: tuple[str, ...], columns: int) -> None:
    terminal = Terminal(arguments, columns=columns)
    assert terminal.finish() in (0, 2)
    assert "Traceback" not in terminal.everything
    assert terminal.everything.strip()


# -- other alphabets

NO_UTF8 = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "encoding"),
    [
        *((arguments, "ascii") for arguments in (*READING.values(), ("--help",), ("best", NAME))),
        *((arguments, "latin-1") for arguments in (("board", NAME), ("show", NAME, "0"), ("--help",))),
    ],
    ids=lambda found: found if isinstance(found, str) else " ".join(found),
)
def test_what_an_encoding_lacks_is_spelled(arguments: tuple[str, ...], encoding: str) -> None:
    command = [sys.executable, "-c", START, *arguments]
    changes = {**NO_UTF8, "PYTHONIOENCODING": encoding, "COLUMNS": "80"}
    found = subprocess.run(command, capture_output=True, env=environment(**changes), check=False)
    assert found.returncode in (0, 1)
    assert b"Traceback" not in found.stderr
    assert found.stdout.decode(encoding)
    assert b"\\u" not in found.stdout + found.stderr


@pytest.mark.slow
def test_names_of_other_letters_are_names_in_an_ascii_locale_too() -> None:
    named = studies.create(HOME / "studies.db", "größer")
    studies.add(named, studies.record(0, {"dropout": 0.1}), TrialState.COMPLETE)
    changes = {**NO_UTF8, "PYTHONIOENCODING": "ascii"}
    found = json.loads(regtune("studies", "--json", **changes).stdout)
    assert "größer" in {entry["study"] for entry in found}
    assert "gr\\xf6\\xdfer" in regtune("studies", **changes).stdout
    assert regtune("board", "größer", **changes).returncode == 0


# -- homes

NOBODY = "import pwd\ndef nobody(uid): raise KeyError(uid)\npwd.getpwuid = nobody\n"


def at_home(*arguments: str, home: str | None, start: str = START) -> subprocess.CompletedProcess[str]:
    """Run a verb with another HOME, or with none."""
    changed = {key: value for key, value in environment().items() if key not in ("HOME", "REGTUNE_DATA_DIR")}
    if home is not None:
        changed["HOME"] = home
    command = [sys.executable, "-c", start, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=changed, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("home", ["/nowhere/at/all", "", "relative"])
@pytest.mark.parametrize("arguments", [("plan", "quick.yaml"), ("data", "list"), ("doctor",)], ids=" ".join)
def test_a_verb_that_reads_needs_no_home(arguments: tuple[str, ...], home: str | None) -> None:
    found = at_home(*arguments, home=home)
    assert found.returncode in (0, 1)
    assert "Traceback" not in found.stderr
    assert found.stdout
    assert not Path("relative").exists()


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [*READING.values(), ("data", "verify", "mnist-5k")], ids=" ".join)
def test_a_verb_that_reads_needs_no_account(arguments: tuple[str, ...]) -> None:
    """In a container a process may be a number that no one knows."""
    found = at_home(*arguments, home=None, start=NOBODY + START)
    assert found.returncode in (0, 1)
    assert "Traceback" not in found.stderr
    assert found.stdout


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
def test_a_folder_that_is_read_only_is_said_and_can_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    with file_system(folder, "size=64m"):
        shutil.copy(HOME / "studies.db", folder)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        for arguments in (("board", NAME), ("show", NAME), ("studies",), ("best", NAME)):
            found = regtune(*arguments, "--home", str(folder))
            assert found.returncode == 0, found.stderr
            assert "error" not in found.stderr
        for arguments in (
            ("sweep", "quick.yaml"),
            ("delete", NAME, "--yes"),
            ("enqueue", "spaced", "dropout=0.1"),
        ):
            found = regtune(*arguments, "--home", str(folder))
            assert found.returncode == 1, arguments
            assert "Traceback" not in found.stderr
            assert found.stderr.splitlines()[-1].startswith("error: "), found.stderr
