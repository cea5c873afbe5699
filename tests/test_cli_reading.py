"""The verbs that look: what they print is what the study says, in every width and as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
import urllib.request
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import decisions
import optuna
import pytest
import studies
from optuna.trial import TrialState, create_trial
from stores import free_port, until
from terminals import Terminal
from typer.testing import CliRunner

from regtune.cli import app
from regtune.errors import InputError
from regtune.settings import load_settings
from regtune.study.best import load_best
from regtune.study.decision_text import sentence
from regtune.study.ownership import hold
from regtune.study.record import RECORD

NAME = "mnist-regularization"
HOME = Path("mlruns")
DECIDE = f"regtune decide {NAME}"
DECISION = decisions.of_filled_study()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "studies.db"
    studies.fill(studies.create(path), floors=[0.08 + 0.001 * i for i in range(10)])
    return path


@pytest.fixture(autouse=True)
def study(made: Path) -> None:
    HOME.mkdir()
    shutil.copy(made, HOME / "studies.db")


def run(*arguments: str, columns: int | None = None) -> str:
    given = {"COLUMNS": str(columns) if columns else None}
    found = CliRunner().invoke(app, arguments, env=given, catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.stdout


def test_csv_and_json_have_every_column_in_full_precision() -> None:
    rows = list(csv.DictReader(io.StringIO(run("board", NAME, "--csv"))))
    assert [row["trial"] for row in rows[:3]] == ["2", "3", "4"]
    names = (
        "rank trial state decision val_cross_entropy val_accuracy gap sparsity l2_norm epochs seconds control"
    )
    assert list(rows[0]) == [*names.split(), "dropout", "batchnorm"]
    assert (rows[0]["sparsity"], rows[0]["l2_norm"]) == ("0.125", "21.5")
    expected = min(point["val_cross_entropy"] for point in studies.curve(0.08, 12))
    assert float(rows[0]["val_cross_entropy"]) == expected
    cells = json.loads(run("board", NAME, "--json"))
    assert [
        {key: "" if value is None else str(value) for key, value in cell.items()} for cell in cells
    ] == rows
    studies.create(HOME / "studies.db", "empty")
    assert run("board", "empty", "--csv").startswith(
        "rank,trial,state,decision,val_cross_entropy,val_accuracy"
    )


def test_nothing_is_wider_than_the_terminal() -> None:
    for columns in (40, 60, 80, 124):
        for arguments in (("board", NAME), ("show", NAME), ("show", NAME, "3"), ("studies",)):
            assert max(map(len, run(*arguments, columns=columns).splitlines())) <= columns


def test_hidden_columns_are_named_and_rank_trial_and_metric_stay() -> None:
    for columns in (40, 80, 124):
        text = run("board", NAME, columns=columns)
        hidden = " ".join(text[text.index("hidden columns:") :].split()) if "hidden columns:" in text else ""
        head = text.splitlines()[:2]
        for wanted in ("state", "gap", "epochs", "seconds", "control", "dropout", "batchnorm"):
            assert (wanted in hidden) != any(wanted in line for line in head), (columns, wanted)
        assert any(("rank" in line or line.strip().startswith("#")) and "trial" in line for line in head)


def test_at_eighty_columns_the_figures_stay_and_the_parameters_are_one_column() -> None:
    full = studies.create(HOME / "studies.db", "full")
    for number, control in enumerate((None, "none", "dropout", "early_stopping")):
        dropout = 0.0 if control else 0.25
        found = studies.record(number, {"dropout": dropout, "batchnorm": "none"}, control=control)
        more = {"l2": 3.33e-6, "learning_rate": 0.0012, "patience": 3}
        studies.add(full, replace(found, parameters={**found.parameters, **more}), TrialState.COMPLETE)
    narrow, text = (run("board", "full", columns=columns) for columns in (40, 80))
    head = text.splitlines()[1].split()
    assert head == ["#", "trial", "state", "_entropy", "_accuracy", "gap", "techniques"]
    assert "gap: validation minus training cross-entropy" in text
    assert "dropout 0.25, learning_rate 0.0012, patience 3" in run("board", "full", columns=100)
    assert text.count("control: ") == narrow.count("control: ") == 3
    assert "control: early sto" in narrow


def test_the_column_to_sort_by_is_shown_and_named_whatever_the_width() -> None:
    for sort, name in {
        "weights/sparsity": "sparsity, descending",
        "-dropout": "dropout, descending",
        "-val_accuracy": "val_accuracy, ascending",
        "metric": "val_cross_entropy, ascending",
    }.items():
        for columns in (40, None):
            text = run("board", NAME, "--sort", sort, "--limit", "1", columns=columns)
            assert f"sorted by {name}" in text.splitlines()
            column = name.partition(",")[0]
            heads = text.splitlines()[:2]
            assert any({column, f"_{column.rpartition('_')[2]}"} & {*line.split()} for line in heads), sort
    assert "sorted by " not in run("board", NAME)


def test_a_column_has_one_name_in_the_table_in_csv_and_for_sorting() -> None:
    names = run("board", NAME, "--csv", "--limit", "1").splitlines()[0].split(",")
    shown = [name for name in names if name not in ("decision", "sparsity", "l2_norm")]
    assert shown == run("board", NAME).split()[:11]
    for name in names:
        text = run("board", NAME, "--csv", "--sort", name, "--limit", "1")
        assert text.splitlines()[0].split(",") == names


def test_sparsity_is_on_the_board_where_l1_is_searched() -> None:
    assert "sparsity" not in run("board", NAME)
    study = studies.create(HOME / "studies.db", "l1")
    studies.add(study, studies.record(0, {"l1": 1e-5}), TrialState.COMPLETE)
    assert "12.5%" in run("board", "l1")
    assert "1e-5" in run("board", "l1")
    assert json.loads(run("board", "l1", "--json", "--sort", "sparsity"))[0]["sparsity"] == 0.125


def test_a_trial_that_waits_to_begin_anew_has_no_figures() -> None:
    study = studies.create(HOME / "studies.db", "stopped")
    begun = studies.record(0, {"dropout": 0.2}, epochs=3, end=None)
    attributes = {RECORD: studies.of(study, begun).to_json()}
    study.add_trial(create_trial(state=TrialState.WAITING, user_attrs=attributes))
    (row,) = json.loads(run("board", "stopped", "--json"))
    assert (row["state"], row["epochs"], row["val_accuracy"]) == ("WAITING", None, None)
    assert "waiting" in run("board", "stopped")
    text = run("show", "stopped", "0")
    assert "ended       waiting" in text
    assert "still running" not in text


def test_a_study_is_shown_with_its_space_its_best_and_its_controls() -> None:
    parameters = {"l1": {"values": [1e-5, 0.001]}, "dropout": {"min": 0.0, "max": 0.5}}
    spec = {"name": "spaced", "run_cap": 9, "parameters": parameters, "dataset": "mnist-5k"}
    study = studies.create(HOME / "studies.db", "spaced", spec=spec, run_cap=9)
    studies.add(study, studies.record(0, {}, control="early_stopping", floor=0.01), TrialState.COMPLETE)
    studies.add(study, studies.record(1, {"l1": 1e-5, "dropout": 0.2}), TrialState.COMPLETE)
    found = CliRunner().invoke(app, ["show", "spaced"], catch_exceptions=False)
    lines = [line.split() for line in found.stdout.splitlines()]
    assert ["l1", "values", "1e-5,", "0.001"] in lines
    assert ["dropout", "real", "number", "0", "to", "0.5"] in lines
    assert (
        "best  trial 1: dropout 0.2 + L1 1e-5\n" in found.stdout
    )  # a control outside the space ranks above it
    assert "best and controls" in found.stdout
    assert "more trial" not in found.stderr
    text = run("show", NAME)
    for wanted in (
        "12 complete, 1 pruned, 1 failed, 1 running, 1 waiting",
        "20 trials",
        "best  trial 2: dropout",
    ):
        assert wanted in text
    assert json.loads(run("show", NAME, "--json"))["best"] == 2


def test_how_and_why_a_trial_ended_is_said() -> None:
    for number, expected in {
        0: "every epoch was trained",
        2: "early stopping",
        12: "pruned: others were better at this epoch",
        13: "ended       loss is NaN",
        14: "still running",
        15: "It is queued",
    }.items():
        assert expected in run("show", NAME, str(number))


def test_a_trial_is_shown_with_its_learning_curve_and_its_figures() -> None:
    text = run("show", NAME, "0")
    assert "⠤⠤ validation  • • training  ▲ kept: " in text
    points = studies.curve(0.095, 30)
    kept = min(points, key=lambda point: point["val_cross_entropy"])
    assert f"{kept['val_cross_entropy']:.4f}" in text
    record = json.loads(run("show", NAME, "0", "--json"))["record"]
    assert record["history"]["val_cross_entropy"] == [point["val_cross_entropy"] for point in points]


def test_studies_are_listed_the_last_active_first() -> None:
    later = studies.create(HOME / "studies.db", "later")
    studies.add(later, studies.record(0, {"dropout": 0.1}), TrialState.COMPLETE)
    listed = json.loads(run("studies", "--json"))
    assert [found["study"] for found in listed] == ["later", NAME]
    assert listed[0]["best"]["number"] == 0


@pytest.fixture
def decided(study: None) -> None:
    decisions.store(optuna.load_study(study_name=NAME, storage=load_settings().storage_url), DECISION)


@pytest.mark.usefixtures("decided")
def test_a_decision_is_marked_on_the_board_and_said_below_it() -> None:
    rows = {row["trial"]: row["decision"] for row in json.loads(run("board", NAME, "--json"))}
    assert {number: word for number, word in rows.items() if word} == {
        **{3: "chosen", 2: "tied", 1: "tied", 0: "beaten"}
    }
    for columns in (60, 80, 124):
        text = run("board", NAME, columns=columns)
        assert max(map(len, text.splitlines())) <= columns
        assert ("decision" in text, "chosen" in text, "single runs" in text) == (True, True, False)
        assert " ".join(sentence(DECISION).split()[:4]) in text
    assert "single runs" not in run("show", NAME, "3")
    assert "decision    chosen" in run("show", NAME, "3")


@pytest.mark.usefixtures("decided")
def test_a_decision_is_a_line_of_show_and_of_studies() -> None:
    assert "decision  Batch norm before the activation with dropout 0.13 beats" in run("show", NAME)
    assert json.loads(run("show", NAME, "--json"))["decision"] == DECISION.model_dump(mode="json")
    assert "trial 3" in run("studies", columns=80).splitlines()[-1]
    assert json.loads(run("studies", "--json"))[0]["decision"] == sentence(DECISION)


def test_without_replicates_the_board_claims_no_winner() -> None:
    found = CliRunner().invoke(app, ["board", NAME], catch_exceptions=False)
    assert "single runs: differences may be luck" in found.stdout
    assert f"regtune decide {NAME}" in found.stderr
    assert {row["decision"] for row in json.loads(run("board", NAME, "--json"))} == {None}


@pytest.mark.usefixtures("decided")
def test_best_is_the_choice_of_the_decision_and_says_so() -> None:
    found = CliRunner().invoke(app, ["best", NAME, "-o", "best.yaml"], catch_exceptions=False)
    assert "trial 3: dropout 0.13 + batch norm before; chosen by 8 replicates" in found.stderr
    provenance = load_best(Path("best.yaml")).provenance
    assert provenance is not None
    assert (provenance.trial, provenance.chosen, provenance.replicates) == (3, "decision", 8)
    assert (provenance.mean, provenance.half_width) == (0.0805, 0.0052)
    assert provenance.figures["val_cross_entropy"] == provenance.value  # what `train` has to reach


def test_best_of_single_runs_is_of_the_search_and_says_so() -> None:
    study = optuna.load_study(study_name=NAME, storage=load_settings().storage_url)
    studies.add(study, studies.record(16, {}, floor=0.01, control="l1"), TrialState.COMPLETE)
    assert json.loads(run("board", NAME, "--json"))[0]["trial"] == 16
    found = CliRunner().invoke(app, ["best", NAME], catch_exceptions=False)
    assert (
        f"trial 2: dropout 0.1; the best of single runs, which may be luck; decide with: {DECIDE}"
        in found.stderr
    )
    assert "chosen: search" in found.stdout
    found = CliRunner().invoke(app, ["best", NAME, "--control", "l1"], catch_exceptions=False)
    assert found.stderr.splitlines()[0] == "trial 16: the control l1, as you asked"
    assert "chosen: control" in found.stdout
    with pytest.raises(InputError, match=r"--control l3: expected one of dropout, l1, none"):
        CliRunner().invoke(app, ["best", NAME, "--control", "l3"], catch_exceptions=False)


def test_best_writes_what_train_reads_and_replaces_another_file_only_when_told_to() -> None:
    printed = run("best", NAME)
    file, command = Path("best.yaml"), ["best", NAME, "-o", "best.yaml"]
    run(*command)
    run(*command)  # the same once more
    best = load_best(file)
    assert printed.startswith(best.config.to_yaml())
    assert best.provenance is not None
    assert (best.provenance.trial, best.provenance.study) == (2, NAME)
    for content in (file.read_text().replace("seed: 7", "seed: 8"), "something: else\n"):
        file.write_text(content)
        refused = CliRunner().invoke(app, command)
        assert isinstance(refused.exception, InputError)
        assert "Replace best.yaml, which holds something else?" in str(refused.exception)
        assert file.read_text() == content
    run(*command, "--yes")
    assert load_best(file).config.seed == 7
    assert [path.name for path in Path().iterdir() if "best" in path.name] == ["best.yaml"]
    Path("folder").mkdir()
    refused = CliRunner().invoke(app, ["best", NAME, "-o", "folder", "--yes"])
    assert str(refused.exception) == "--output folder: expected a file, found a folder"
    assert Path("folder").is_dir()


def test_watch_prints_one_snapshot_and_stop_leaves_no_request_where_nobody_runs() -> None:
    now = json.loads(run("watch", NAME, "--json"))
    assert (now["complete"], now["pruned"], now["running"][0]["number"]) == (12, 1, 14)
    found = CliRunner().invoke(app, ["stop", NAME], catch_exceptions=False)
    assert f"{NAME} is not running; there is nothing to stop." in found.stderr
    attributes = optuna.load_study(study_name=NAME, storage=load_settings().storage_url).user_attrs
    assert not [key for key in attributes if key.startswith("regtune.request.")]


def test_watch_follows_a_study_that_another_process_runs() -> None:
    """The test is the other process: it holds the study's lock and adds a trial."""
    with hold(load_settings(), NAME):
        terminal = Terminal(["watch", NAME], columns=100)
        terminal.until("13 of 20")
        terminal.until("5/30")
        study = optuna.load_study(study_name=NAME, storage=load_settings().storage_url)
        studies.add(study, studies.record(16, {"dropout": 0.44}, floor=0.05), TrialState.COMPLETE)
        terminal.until("14 of 20")
        text = terminal.until("trial 16")
        assert max(len(line) for line in text.splitlines()) <= 100
    assert terminal.finish() == 0
    assert f"{NAME} is not running." in terminal.everything
    assert "of 20" not in terminal.everything
    assert b"\x1b[?25h" in terminal.raw[terminal.raw.rindex(b"\x1b[?25l") :]


def test_ctrl_c_ends_the_looking_and_leaves_the_terminal_as_it_was() -> None:
    with hold(load_settings(), NAME):
        terminal = Terminal(["watch", NAME], columns=80)
        terminal.until("13 of 20")
        terminal.process.sendintr()
        assert terminal.finish() == 130
    assert terminal.everything.strip() == ""
    assert terminal.raw.count(b"\x1b[?25h") >= 1


# -- another program reads the study

WITHOUT_REGTUNE = """
import sys
sys.modules["regtune"] = None  # importing it is an error from here on
from optuna_dashboard import run_server
run_server(sys.argv[1], host="127.0.0.1", port=int(sys.argv[2]))
"""


def answer(url: str) -> Any:
    with suppress(OSError), urllib.request.urlopen(url, timeout=60) as response:
        return json.load(response)
    return None


def test_optuna_dashboard_shows_the_study_without_importing_regtune() -> None:
    port, storage = str(free_port()), load_settings().storage_url
    url = f"http://127.0.0.1:{port}/api/studies"
    command = [sys.executable, "-I", "-c", WITHOUT_REGTUNE, storage, port]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        (summary,) = until(lambda: answer(url))["study_summaries"]
        assert summary["study_name"] == NAME
        shown = {trial["number"]: trial for trial in answer(f"{url}/{summary['study_id']}")["trials"]}
    finally:
        process.kill()
        process.wait()
    rows = [row for row in json.loads(run("board", NAME, "--json")) if row["rank"]]
    assert len(rows) == 12
    for row in rows:
        assert shown[row["trial"]]["values"] == [row["val_cross_entropy"]]
        assert len(shown[row["trial"]]["intermediate_values"]) == row["epochs"]
