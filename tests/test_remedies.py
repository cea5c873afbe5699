"""What a person should type stands there whole: the verb, the sweep file, the study, the folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import studies
import yaml
from optuna.trial import TrialState
from terminals import run_here

from regtune.errors import COMMAND, TooManyFailures
from regtune.study.record import FILE

SWEEP = """
name: small
dataset: mnist-5k
run_cap: 1
parameters: {dropout: {min: 0.0, max: 0.5}}
"""


@pytest.fixture(autouse=True)
def _sweep_file() -> None:
    Path("my sweep.yaml").write_text(SWEEP)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command says, on one line."""
    return " ".join("".join(run_here(capsys, *arguments)[1:]).split())


def made(home: str, **changes: Any) -> None:
    spec = {**yaml.safe_load(SWEEP.replace("run_cap: 1\n", "")), **changes}
    study = studies.create(Path(home) / "studies.db", "small", spec=spec, run_cap=1)
    study.set_user_attr(FILE, "my sweep.yaml")
    studies.add(study, studies.record(0, {"dropout": 0.1}), TrialState.COMPLETE)


def test_too_many_failures_are_answered_with_the_whole_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise TooManyFailures(f"7 trials failed; resume with: {COMMAND.get()} --set max_failures=14")

    monkeypatch.setattr("regtune.sweep.run_sweep", fail)
    found = said(capsys, "sweep", "my sweep.yaml", "--fresh", "--set", "run_cap=3", "--home", "else")
    again = "regtune sweep 'my sweep.yaml' --set run_cap=3 --home else"
    assert found.endswith(f"error: 7 trials failed; resume with: {again} --set max_failures=14")


@pytest.mark.parametrize("verb", [("plan",), ("sweep", "--dry-run")])
def test_another_sweep_file_of_the_same_name_is_answered_with_two_whole_commands(
    verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    made("mlruns", parameters={"l2": {"min": 0.0, "max": 0.5}})
    found = said(capsys, verb[0], "my sweep.yaml", *verb[1:])
    assert "take another name with: regtune sweep 'my sweep.yaml' --name small-2;" in found
    assert "or set the earlier one aside with: regtune sweep 'my sweep.yaml' --fresh;" in found


def test_a_suggested_command_names_the_study_s_own_sweep_file_and_the_folder_that_was_given(
    capsys: pytest.CaptureFixture[str],
) -> None:
    made("else")
    found = said(capsys, "enqueue", "small", "dropout=0.2", "--home", "else")
    assert found.rstrip().endswith("regtune sweep 'my sweep.yaml' --set run_cap=2 --name small --home else")
    found = said(capsys, "show", "small", "99", "--home", "else")
    assert found.endswith("try: regtune board small --home else")


def test_a_question_that_nobody_can_answer_names_the_command_that_needs_no_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made("mlruns")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    assert "add --yes: regtune delete small --yes" in said(capsys, "delete", "small")
