"""Registered models: aliases move whole or not at all, whoever dies or competes, on a real store of MLflow."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from aliases import NAME, three_versions
from terminals import run_here

from regtune.errors import AliasMoved, InputError, ModelNotFound, RegistryError
from regtune.registry import journal
from regtune.registry.listing import list_versions
from regtune.registry.store import Registry, check_alias, open_registry, parse_target
from regtune.settings import Settings
from regtune.tracking import names


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: bytes) -> Path:
    """A folder whose MLflow has three versions of a model, and a model of another program's."""
    home = tmp_path_factory.mktemp("registry") / "mlruns"
    home.mkdir()
    (home / "mlflow.db").write_bytes(empty_mlflow)
    place = (home / "artifacts" / "runs" / "1").as_uri()
    registry = three_versions(Settings(REGTUNE_HOME=home), home.parent / "files", place)
    registry.client.create_registered_model("foreign")
    return home


@pytest.fixture
def registry(made: Path, tmp_path: Path) -> Registry:
    home = Path(shutil.copytree(made, tmp_path / "mlruns"))
    return open_registry(Settings(REGTUNE_HOME=home))


def point(registry: Registry, to: int, alias: str = names.CHAMPION) -> journal.State:
    return journal.move(registry, NAME, alias, to, journal.settle(registry, NAME), why="promoted")


def test_a_version_is_found_by_its_alias_and_its_number_with_its_files(
    registry: Registry, tmp_path: Path
) -> None:
    point(registry, 2)
    found = registry.find(NAME)
    assert (found.number, found.aliases, found.tags["n"], found.description) == (
        2,
        ("champion",),
        "2",
        "# card",
    )
    (tmp_path / "down").mkdir()
    assert (registry.download(found, tmp_path / "down") / "what").read_text() == "2"
    assert registry.find(f"{NAME}@v3").number == 3
    assert [version.number for version in registry.versions(NAME)] == [3, 2, 1]


def test_the_champion_before_is_the_previous_one_and_a_rollback_restores_it(registry: Registry) -> None:
    point(registry, 1)
    state = point(registry, 2)
    assert (state.champion, state.previous) == (2, 1)
    state = journal.roll_back(registry, NAME)
    assert (state.champion, state.previous) == (1, 2)
    state = journal.roll_back(registry, NAME)
    assert (state.champion, state.previous) == (2, 1)
    assert [(move.to, move.origin, move.why) for move in journal.read(registry, NAME).moves] == [
        (1, None, "promoted"),
        (2, 1, "promoted"),
        (1, 2, "rolled back from version 2"),
        (2, 1, "rolled back from version 1"),
    ]
    point(registry, 3, "staging")
    assert journal.read(registry, NAME).aliases == {"champion": 2, "previous": 1, "staging": 3}


@pytest.mark.parametrize("alias", ["first", "second", "mark"])
def test_a_move_that_died_before_an_alias_is_shown_as_it_will_be_and_completed(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, alias: str
) -> None:
    point(registry, 1)
    kind, calls = type(registry.client), 0
    before = kind.set_registered_model_alias

    def die(self: object, *of: object, **more: object) -> None:
        nonlocal calls
        calls += 1
        if alias == "second" and calls == 1:
            before(self, *of)
        else:
            raise KeyboardInterrupt

    monkeypatch.setattr(kind, "log_batch" if alias == "mark" else "set_registered_model_alias", die)
    with pytest.raises(KeyboardInterrupt):
        point(registry, 2)
    monkeypatch.undo()
    state = journal.read(registry, NAME)
    assert (state.champion, state.previous, state.moved) == (2, 1, 1)
    assert "was interrupted" in state.notes[0]
    state = journal.settle(registry, NAME)
    assert (state.champion, state.previous, state.moved, state.notes) == (2, 1, 2, ())
    assert registry.model(NAME).aliases == {"champion": 2, "previous": 1}


def test_a_move_to_a_version_that_was_deleted_meanwhile_is_withdrawn(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    point(registry, 1)
    with monkeypatch.context() as patched:
        patched.setattr(journal, "_finish", lambda *_: pytest.exit("dead"))
        with pytest.raises(pytest.exit.Exception):
            point(registry, 2)
    registry.client.delete_model_version(NAME, "2")
    state = journal.settle(registry, NAME)
    assert (state.champion, state.previous, state.withdrawn) == (1, None, {2: "version 2 was deleted"})
    assert registry.model(NAME).aliases == {"champion": 1}


def test_a_person_who_has_moved_the_alias_of_an_interrupted_move_has_the_last_word(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    point(registry, 1)
    with monkeypatch.context() as patched:
        patched.setattr(journal, "_finish", lambda *_: pytest.exit("dead"))
        with pytest.raises(pytest.exit.Exception):
            point(registry, 2)
    registry.client.delete_model_version(NAME, "2")
    registry.client.set_registered_model_alias(NAME, "champion", "3")
    assert journal.settle(registry, NAME).withdrawn == {2: "it was moved to version 3 in MLflow"}
    assert registry.model(NAME).aliases == {"champion": 3}


@pytest.mark.parametrize(
    ("kind", "why"),
    [(AliasMoved, "it was moved to version 3 in MLflow"), (InputError, "version 2 was deleted")],
)
def test_a_move_that_a_person_is_faster_than_is_no_success(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, kind: type[Exception], why: str
) -> None:
    point(registry, 1)
    client = type(registry.client)
    record = client.log_param

    def slow(self: Any, *given: Any) -> None:
        record(self, *given)
        if kind is AliasMoved:
            self.set_registered_model_alias(NAME, "champion", "3")
        else:
            self.delete_model_version(NAME, "2")

    monkeypatch.setattr(client, "log_param", slow)
    with pytest.raises(kind, match=f"^{NAME}: @champion was not moved to version 2: {why}$"):
        point(registry, 2)
    assert registry.model(NAME).aliases == {"champion": 3 if kind is AliasMoved else 1}


def test_of_two_moves_at_once_one_wins_and_the_other_is_told_by_whom(registry: Registry) -> None:
    seen = point(registry, 1)
    point(registry, 2)
    told = r"digits: @champion was moved to version 2 by .* UTC \(promoted\) meanwhile"
    with pytest.raises(AliasMoved, match=told):
        journal.move(registry, NAME, names.CHAMPION, 3, seen, why="promoted")
    assert journal.read(registry, NAME).champion == 2


def test_of_two_that_move_at_the_same_moment_one_wins(registry: Registry) -> None:
    seen, settings = point(registry, 1), registry.settings

    def promote(to: int) -> int | str:
        try:
            return int(
                journal.move(open_registry(settings), NAME, "champion", to, seen, why="promoted").champion
                or 0
            )
        except AliasMoved as told:
            return str(told)

    with ThreadPoolExecutor(2) as both:
        ended = [*both.map(promote, (2, 3))]
    (lost,) = (one for one in ended if isinstance(one, str))
    (won,) = (one for one in ended if isinstance(one, int))
    assert f"was moved to version {won} by" in lost
    state = journal.read(registry, NAME)
    assert (state.champion, state.previous, len(state.moves)) == (won, 1, 2)


def test_an_alias_that_a_person_has_moved_is_the_truth_and_said(registry: Registry) -> None:
    point(registry, 1)
    registry.client.set_registered_model_alias(NAME, "champion", "3")
    state = journal.read(registry, NAME)
    assert state.champion == 3
    assert state.notes == ("@champion was moved to version 3 in MLflow; regtune had moved it to version 1",)
    assert (point(registry, 2).previous, registry.find(NAME).number) == (3, 2)


def test_what_cannot_be_is_one_line(registry: Registry, tmp_path: Path) -> None:
    point(registry, 1)
    asked = {
        "digit": 'no registered model "digit"; did you mean "digits"?',
        "foreign": "foreign: a registered model of another program; choose another with --as",
        "digits@staging": "digits: no alias @staging; it has @champion",
        "digits@v9": "digits: there is no version 9; try: regtune model list",
        f"digits@v{'9' * 5000}": f"digits: there is no version {'9' * 20}; try: regtune model list",
    }
    for target, said in asked.items():
        with pytest.raises((ModelNotFound, RegistryError)) as raised:
            registry.find(target)
        assert str(raised.value) == said
    with pytest.raises(ModelNotFound, match="digits: there is no previous champion to go back to"):
        journal.roll_back(registry, NAME)
    for alias in ("latest", "v3", "previous", "a b"):
        with pytest.raises(InputError, match=f"--alias {alias}: "):
            check_alias(alias)
    with pytest.raises(InputError, match="expected NAME or NAME@alias"):
        parse_target("@champion")
    empty = open_registry(Settings(REGTUNE_HOME=tmp_path / "empty"))
    assert empty.models() == ()
    with pytest.raises(ModelNotFound, match='no registered model "digits": none has been promoted yet'):
        empty.find(NAME)
    assert not (tmp_path / "empty" / "mlflow.db").exists()


def test_a_model_whose_journal_is_gone_or_whose_name_was_changed_does_not_hide_the_others(
    registry: Registry,
) -> None:
    client = registry.client
    (experiment,) = {client.get_run(run.run_id).info.experiment_id for run in registry.versions(NAME)}
    for name in ("broken", "renamed"):
        registry.create(name, experiment)
    client.delete_run(registry.model("broken").journal)
    client.rename_registered_model("renamed", "it's (old)")
    listed = list_versions(registry.settings)
    assert [version.name for version in listed.versions] == [NAME] * 3
    first, *others = listed.notes
    assert first.startswith("broken: its journal, MLflow's run ")
    assert others == ["not shown: 2 of other programs"]
    with pytest.raises(RegistryError, match=r"^broken: its journal"):
        list_versions(registry.settings, "broken")


def test_versions_are_listed_shown_and_rolled_back_from_the_command_line(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    point(registry, 1)
    point(registry, 3)
    listed = run_here(capsys, "model", "list")[1].splitlines()[-3:]
    assert [line.split()[:3] for line in listed] == [
        ["digits", "3", "@champion"],
        ["digits", "2", "–"],
        ["digits", "1", "@previous"],
    ]
    assert run_here(capsys, "model", "show", NAME) == (0, "# card\n", "")
    assert json.loads(run_here(capsys, "model", "show", NAME, "--json")[1])["number"] == 3
    said = "digits: @champion is version 1, rolled back from version 3\n"
    assert run_here(capsys, "model", "rollback", NAME) == (0, "", said)
    registry.client.set_registered_model_alias(NAME, "champion", "2")
    assert "moved to version 2 in MLflow" in run_here(capsys, "model", "show", NAME)[2]
    code, _, said = run_here(capsys, "model", "show", "digit")
    assert (code, said.endswith('did you mean "digits"?\n')) == (2, True)
