"""Names, messages and paths that others wrote are shown as they are written, everywhere, and act nowhere."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle, product
from pathlib import Path

import pytest
import studies
import tracking_records
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from optuna.trial import TrialState
from rich.text import Text
from terminals import Terminal
from test_display import progress
from typer.testing import CliRunner

from regtune.cli import app
from regtune.cli.terminal import Screen, wrapped
from regtune.cli.views.drawing import sweep_view
from regtune.config.sweepfile import SweepSpec
from regtune.errors import RegtuneError, SpecError, StorageError
from regtune.escaping import code, csv_cell, markdown, printable, printable_lines, shell_word
from regtune.settings import Settings
from regtune.storage.mlflow import connect
from regtune.storage.schema import TRACKING
from regtune.study.progress import Row
from regtune.study.record import TrialRecord
from regtune.tracking.decisions import decision_contents
from regtune.tracking.projection import Projection
from regtune.tracking.runs import SqlReader
from regtune.tracking.studies import DecisionFacts, RetrainedFrom
from regtune.tracking.views import experiment_note, study_note, trial_note

HOSTILE = {
    "markup": "[red]x[/red][link=http://evil.example]y[/link][bold",
    "clear": "a\x1b[2J\x1b[H\x1b[31mb",
    "title": "a\x1b]0;owned\x07b",
    "clipboard": "a\x1b]52;c;cm0gLXJmIH4K\x07b",
    "link": "a\x1b]8;;http://evil.example\x1b\\b\x1b]8;;\x1b\\",
    "C1": "a\x9b2Jb\x90q\x9cc",
    "overwrite": "good\rerror: all is lost\x08\x08\x7f",
    "lines": "good\nerror: all is lost\u2028x\x85y",
    "bidi": "a\u202egpj.exe\u2066b\u200f",
    "NUL": "a\0b",
    "HTML": "<script>alert(1)</script><img src=x onerror=alert(1)>&lt;",
    "Markdown": "![x](http://evil.example/x.png) [x](javascript:alert(1)) *a* _b_ `c` # d :smile: www.evil.example",
    "shell": "x; touch owned $(touch owned) `touch owned` 'a' \"b\" & | > f \\ !!",
    "formula": '=HYPERLINK("http://evil.example")',
}
PLAIN = {"spec": "mnist-regularization", "path": "data/my images.npz", "words": "größer_2 (until 2026-01-01)"}
TEXTS = HOSTILE | PLAIN
EVERYTHING = " ".join(HOSTILE.values())
MARKS = "\\`*_{}[]()#+-.!~=|:<>&@\"' \n1w/"
TAG = re.compile("<[^>]*>")
SGR = re.compile(r"\x1b\[[0-9;]*m")
MOVES = re.compile(r"\x1b\[(\?25[lh]|[0-9;]*[mAGKHJ])")

runner = CliRunner()


def acts(output: str) -> list[str]:
    """What in an output a terminal would obey, apart from the ends of lines."""
    return [repr(letter) for letter in output if letter not in "\n\t" and not letter.isprintable()]


# -- the functions


@given(st.text())
def test_one_line_for_a_terminal(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert not acts(printable_lines(text))
    if text.isprintable():
        assert shown == printable_lines(text) == text


def test_a_shell_gets_the_word_back() -> None:
    no_text = b"a\xffb".decode("utf-8", "surrogateescape")  # a file's name
    for text in (text.replace("\0", "") for text in (*TEXTS.values(), no_text)):  # no argument can have one
        word = shell_word(text)
        assert word.isprintable()
        ended = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True)
        assert (ended.stdout, ended.stderr) == (text.encode("utf-8", "surrogateescape"), b"")
    assert not Path("owned").exists()


def rendered(text: str) -> str:
    """HTML of Markdown, with tables and strikethrough as MLflow's page has them."""
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text)


@pytest.mark.parametrize(("escape", "tags"), [(markdown, "<p> </p>"), (code, "<p> <code> </code> </p>")])
@given(text=st.text(st.one_of(st.characters(), st.sampled_from(MARKS)), min_size=1))
def test_markdown_shows_text_as_it_is(escape: Callable[[str], str], tags: str, text: str) -> None:
    line = printable(text)
    page = rendered(f"before {escape(line)} after")
    assert re.findall(TAG, page) == tags.split()
    assert html.unescape(re.sub(TAG, "", page)).split() == f"before {line} after".split()


def test_a_line_s_beginning_means_nothing() -> None:
    starts = "# h,- a,+ a,* a,1. a,12) a,123456789. a,> q,    code,---,===,```,a | b\n--|--,\ta"
    for line in starts.split(","):
        page = rendered(f"text\n\n{markdown(line)}\n\ntext")
        assert set(re.findall(TAG, page)) == {"<p>", "</p>"}, line


def test_text_in_a_spreadsheet_is_no_formula() -> None:
    for start in ("=", "+", "-", "@", "\t=", "\r="):
        shown = csv_cell(f"{start}1+1")
        assert isinstance(shown, str)
        assert shown[0] in "'\\"
    assert [csv_cell(value) for value in (-1.5, 3, None, True, "relu")] == [-1.5, 3, None, True, "relu"]


# -- the terminal


def test_a_screen_obeys_no_text() -> None:
    for text, kind in product(TEXTS.values(), (str, Text)):
        out = io.StringIO()
        plain = {"markup": False, "emoji": False}
        screen = Screen(file=out, force_terminal=True, color_system="standard", width=400, **plain)
        screen.print(kind(text), style="red")
        with_style = out.getvalue()
        assert SGR.search(with_style)
        assert not acts(SGR.sub("", with_style))
        if text.isprintable():
            assert SGR.sub("", with_style) == f"{text}\n"


def test_a_live_drawing_obeys_no_text() -> None:
    for text, width in zip(HOSTILE.values(), cycle([40, 100])):
        trial = {"parameters": {"activation": text}, "control": text}
        failed = Row(1, "FAIL", None, studies.record(1, **trial, epochs=1, end="error", message=text))
        runs = Row(2, "RUNNING", None, studies.record(2, **trial, epochs=1, end=None))
        shown = progress(study=text, tracking=text, running=(runs,))
        out = io.StringIO()
        screen = Screen(file=out, force_terminal=True, color_system="standard", width=width, height=30)
        screen.print(sweep_view(shown, [failed], width=width, height=30, notice=text))
        assert not acts(SGR.sub("", out.getvalue()))
        assert len(out.getvalue().splitlines()) <= 30
        assert not re.search("^error", out.getvalue(), re.MULTILINE)


def test_wrapped_prose_keeps_a_foreign_command_in_one_piece() -> None:
    command = f"regtune board {shell_word(HOSTILE['shell'].replace('!!', ''))}"
    assert command.split("'", maxsplit=1)[0] in wrapped(f"try: {command}", 20)


# -- a database that another program has filled


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Studies of every name, in each a failed trial with that text for its message, control and parameter."""
    folder = tmp_path_factory.mktemp("foreign")
    for text in (*TEXTS.values(), EVERYTHING):
        metric = {"name": "val_cross_entropy", "goal": "minimize"}
        spec = {**dict.fromkeys(("name", "description", "dataset", "method"), text), "metric": metric}
        study = studies.create(folder / "studies.db", text, spec=spec)
        good = studies.record(0, {"dropout": 0.1, "activation": text}, epochs=2, control=text)
        studies.add(study, good, TrialState.COMPLETE)
        broken = studies.record(1, {"dropout": 0.2, "activation": text}, epochs=1, end="error")
        studies.add(study, replace(broken, message=text), TrialState.FAIL)
        studies.add(study, studies.record(2, {"dropout": 0.3}, epochs=1, end=None), TrialState.RUNNING)
    return folder


VERBS = (
    "board N, show N 1, board N --csv, show N, show N 99, watch N, stop N, best N, board Ns, delete N, studies, "
    "studies --json, board N --json, show N --json, show N 1 --json, watch N --json, best N --json"
)


def test_every_verb_that_looks_shows_foreign_texts_as_they_are(home: Path) -> None:
    """Each verb with all texts in one, and the first two with each text alone."""
    verbs = VERBS.split(", ")
    for verb, text in (*product(verbs[:2], TEXTS.values()), *product(verbs, [EVERYTHING])):
        arguments = [word.replace("N", text) for word in verb.split()]
        ended = runner.invoke(app, [*arguments, "--home", str(home)])
        assert ended.exception is None or isinstance(ended.exception, RegtuneError | SystemExit), arguments
        told = ended.output + _told(ended.exception)
        assert not acts(told), arguments
        assert "\nerror: all is lost" not in told, arguments
        if "--json" in arguments:
            assert json.dumps(text) in json.dumps(json.loads(ended.stdout)), arguments


def _told(error: BaseException | None) -> str:
    """What the terminal shows of an error of regtune's."""
    out = io.StringIO()
    words = str(error) if isinstance(error, RegtuneError) else ""
    Screen(file=out, width=1000, markup=False, highlight=False).print(words, soft_wrap=True)
    return out.getvalue()


def test_a_spreadsheet_of_foreign_texts_has_no_formula(home: Path) -> None:
    for text in TEXTS.values():
        found = runner.invoke(app, ["board", text, "--csv", "--home", str(home)])
        rows = list(csv.DictReader(io.StringIO(found.stdout)))
        assert len(rows) == 3
        assert float(rows[0]["gap"]) == studies.record(0, {}, epochs=2).kept.generalization_gap  # type: ignore[union-attr]
        for row in rows:
            assert not any(cell.startswith(("=", "+", "@")) for cell in row.values())
            assert not row["activation"].startswith("-")


def test_a_terminal_gets_rich_s_own_sequences_alone(home: Path) -> None:
    """The whole way, once: `watch` draws live, ends, and prints the board; then a question is asked."""
    study = "".join(HOSTILE[key] for key in ("clear", "title", "clipboard", "lines", "bidi"))
    found = studies.create(home / "studies.db", study)
    studies.add(found, studies.record(0, {"dropout": 0.1}, epochs=2), TrialState.COMPLETE)
    for arguments in (["watch", study], ["show", study], ["board", "nope" + study], ["delete", study]):
        terminal = Terminal([*arguments, "--home", str(home)], columns=100)
        if arguments[0] == "delete":
            terminal.until("?")
            terminal.process.sendline("n")
        terminal.finish()
        text = MOVES.sub("", terminal.raw.decode())
        assert not acts(text.replace("\r", "")), arguments


def test_completion_offers_no_word_that_a_shell_would_change(home: Path) -> None:
    typed = {"COMP_WORDS": "regtune board ", "COMP_CWORD": "2", "_TYPER_COMPLETE_ARGS": "regtune board "}
    for shell in ("bash", "zsh"):
        asked = {"_REGTUNE_COMPLETE": f"complete_{shell}", **typed, "REGTUNE_HOME": str(home)}
        offered = runner.invoke(app, [], prog_name="regtune", env=asked).stdout
        assert PLAIN["spec"] in offered
        assert not [name for name, text in HOSTILE.items() if text in offered]
        assert "owned" not in offered
        assert not acts(offered)


# -- what files may say


def test_a_sweep_file_s_name_and_data_set_cannot_act() -> None:
    spec = {"run_cap": 1, "parameters": {"dropout": {"values": [0, 0.1]}}}
    for text in HOSTILE.values():
        with pytest.raises(SpecError) as caught:
            SweepSpec.from_dict({**spec, "name": text})
        assert not acts(str(caught.value))
        if not text.isprintable():
            with pytest.raises(SpecError, match="printable") as caught:
                SweepSpec.from_dict({**spec, "dataset": f"{text}.npz"})
            assert not acts(str(caught.value))


def test_a_sweep_file_s_path_and_keys_cannot_act() -> None:
    for text in (text for name, text in HOSTILE.items() if name != "NUL"):
        path = Path(f"{text.replace('/', '_')}.yaml")
        path.write_text(json.dumps({"name": "x", "run_cap": 1, text: text, "parameters": {}}))
        for arguments in (["plan", str(path)], ["train", str(path)], ["plan", f"absent{path}"]):
            told = _told(runner.invoke(app, arguments).exception)
            assert len(told) > 1, arguments
            assert not acts(told)
            assert "\nerror: all is lost" not in told


def test_a_uid_that_would_lead_elsewhere_is_refused() -> None:
    values = studies.record(0, {"dropout": 0.1}, epochs=1).to_json()
    assert TrialRecord.from_json(values).uid == f"{0:032x}"
    for uid in ("../../etc", "a/b", "", "a' OR 'b' = 'b", "a\n", "x" * 65, 7):
        with pytest.raises(StorageError, match="no uid") as caught:
            TrialRecord.from_json({**values, "uid": uid})
        assert not acts(str(caught.value))


# -- MLflow


def test_an_experiment_is_found_again_whatever_its_name(tmp_path: Path) -> None:
    settings = Settings(REGTUNE_HOME=tmp_path / "home")
    client = connect(settings.mlflow_uri, settings.artifacts)
    reader = SqlReader(TRACKING.engine(settings.mlflow_uri))
    quoting = ("it's", "back\\", "100%", 'quo"te', "`tick`", "a' AND tags.x = 'b")
    names = [*quoting, *map(printable, HOSTILE.values())]
    for turn, (number, name) in product(range(2), enumerate(names)):
        facts = replace(tracking_records.facts(name, f"study-{number}"), description=name)
        projection = Projection(facts, settings.artifacts, reader, client)
        projection.study("RUNNING", None)
        assert client.get_experiment(projection.experiment_id).name == name
        assert (projection.writes > 0) is (turn == 0)
    assert len(client.search_experiments()) == len(names) + 1


def test_notes_are_free_of_what_acts() -> None:
    for text in HOSTILE.values():
        facts = tracking_records.facts()
        facts = replace(facts, name=text, description=text, data=replace(facts.data, name=text))
        notes = [experiment_note(facts)]
        for each in (facts, replace(facts, retrained=RetrainedFrom(text, 3))):
            notes += [study_note(each, "FINISHED", None, None), trial_note(each, 3)]
        decision = tracking_records.decision(t7="chosen", none="beaten")
        judged, none = decision.candidates
        named = judged.candidate.model_copy(update={"mix": text})
        decision = decision.model_copy(
            update={
                "study": text,
                "notes": (text,),
                "candidates": (judged.model_copy(update={"candidate": named}), none),
            }
        )
        facts = replace(facts, deciding=DecisionFacts("FINISHED", decision))
        notes += [study_note(facts, "FINISHED", None, None), decision_contents(facts).note]
        for note in notes:
            assert not acts(note)
            tags = {tag.strip("</>") for tag in re.findall(TAG, rendered(note))}
            assert tags <= {"p", "strong", "em", "code", "table", "thead", "tbody", "tr", "th", "td"}
