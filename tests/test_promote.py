"""A study's choice becomes a version: what is asked, what refuses it, what is written and what is not."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from parts import file_system
from stores import free_port
from terminals import run_here

from regtune.training.runtime import configure

configure()

from promotions import EPOCHS, GATES, LENIENT, STUDY, TrainedOnce, decided, searched  # noqa: E402
from versions import write_version  # noqa: E402

from regtune.data.datasets import load_arrays  # noqa: E402
from regtune.registry import journal  # noqa: E402
from regtune.registry.choice import choose  # noqa: E402
from regtune.registry.contents import check_folder  # noqa: E402
from regtune.registry.openings import openings_of  # noqa: E402
from regtune.registry.promote import Promotion, promote  # noqa: E402
from regtune.registry.store import Registry, open_registry  # noqa: E402
from regtune.registry.version import MODEL, DataUsed, Record  # noqa: E402
from regtune.server.process import serving  # noqa: E402
from regtune.settings import Settings  # noqa: E402
from regtune.storage import open_engine, open_storage  # noqa: E402
from regtune.study.ownership import hold  # noqa: E402
from regtune.tracking import names  # noqa: E402

pytestmark = pytest.mark.slow
Capture = pytest.CaptureFixture[str]
ONLY_READS = "this account may only read here; ask for the right to edit, or use another account"


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> TrainedOnce:
    return TrainedOnce(tmp_path_factory.mktemp("trained"))


@pytest.fixture(autouse=True)
def _given(once: TrainedOnce, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is trained a second time, and a file of gates is at hand that a small network passes."""
    monkeypatch.setattr("regtune.registry.challenger.train_twice", once)
    Path("gates.yaml").write_text(LENIENT)


@pytest.fixture(scope="module")
def undecided(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = Settings(REGTUNE_HOME=tmp_path_factory.mktemp("undecided") / "mlruns")
    searched(settings)
    return settings


@pytest.fixture(scope="module")
def first(
    undecided: Settings, once: TrainedOnce, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Settings, Promotion]:
    """A decided study whose choice is champion."""
    home = tmp_path_factory.mktemp("first") / "mlruns"
    settings = Settings(REGTUNE_HOME=shutil.copytree(undecided.home, home))
    decided(settings)
    engine = open_engine(settings.storage_url)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("regtune.registry.challenger.train_twice", once)
        promotion = promote(choose(engine, STUDY), engine, settings=settings, limits=GATES)
    engine.dispose()
    return settings, promotion


@pytest.fixture
def registry(first: tuple[Settings, Promotion], tmp_path: Path) -> Registry:
    """The registry of a copy of it, which is the folder's own."""
    return open_registry(Settings(REGTUNE_HOME=shutil.copytree(first[0].home, tmp_path / "mlruns")))


def typed(capsys: Capture, *arguments: str) -> tuple[int, str, str]:
    return run_here(capsys, "promote", STUDY, "--gates", "gates.yaml", *arguments)


def refused(capsys: Capture, *arguments: str) -> tuple[int, str]:
    """The exit code and the one line of a promotion that is refused before anything is written."""
    before = contents(Path("mlruns"))
    code, output, errors = typed(capsys, *arguments)
    assert (output, len(errors.splitlines())) == ("", 1), errors
    assert contents(Path("mlruns")) == before
    return code, errors.removeprefix("error: ").rstrip()


def contents(folder: Path) -> dict[str, bytes]:
    """What lies in a folder; of a database what it says, which its file may hold in several ways."""
    found = dict[str, bytes]()
    for path in folder.rglob("*"):
        if path.suffix == ".db":
            with closing(sqlite3.connect(path)) as database:
                found[str(path)] = "\n".join(database.iterdump()).encode()
        elif path.is_file() and path.suffix not in (".db-shm", ".db-wal"):
            found[str(path)] = path.read_bytes()
    return found


def openings(registry: Registry) -> int:
    storage = open_storage(registry.settings)
    attributes = storage.get_study_user_attrs(storage.get_study_id_from_name(STUDY))
    return len(openings_of(attributes, STUDY))


def runs(registry: Registry) -> list[tuple[str, list[str]]]:
    """Status and files of each promotion's run, the oldest first."""
    client = registry.client
    known = [one.experiment_id for one in client.search_experiments()]
    wanted = f"tags.`{names.KIND}` = '{names.PROMOTION}'"
    found = client.search_runs(known, wanted, order_by=["attributes.start_time"])
    return [
        (run.info.status, [file.path for file in client.list_artifacts(run.info.run_id)]) for run in found
    ]


def record_of(registry: Registry, target: str, folder: Path) -> Record:
    version = registry.find(target)
    return check_folder(registry.download(version, folder), version.tags[names.MANIFEST_DIGEST])


# -- what is promoted


def test_a_decisions_choice_is_registered_with_its_evidence_and_becomes_champion(
    first: tuple[Settings, Promotion], registry: Registry, tmp_path: Path
) -> None:
    promotion = first[1]
    record = promotion.record
    assert record is not None
    assert (promotion.name, promotion.version, promotion.refused) == (STUDY, 1, ())
    assert record == record_of(registry, STUDY, tmp_path)
    assert (record.source.chosen, record.source.trial) == ("decision", 1)
    assert record.decision is not None
    assert len(record.openings) == openings(registry) == 1
    version = registry.find(STUDY)
    run = registry.client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert (
        run.data.metrics[names.tested("accuracy")]
        == record.test.accuracy
        == float(version.tags[names.TEST_ACCURACY])
    )
    assert version.tags[names.STUDY_TAG] == record.source.uid
    assert version.tags[names.NUMBER] == run.data.tags[names.NUMBER] == "1"
    assert run.data.params["dropout"] == "0.2"
    assert record.source.sentence in version.description.replace("\\", "")
    (move,) = journal.read(registry, STUDY).moves
    assert (move.alias, move.to, move.why, move.forced) == ("champion", 1, f"promoted from {STUDY}", None)


def test_without_a_decision_the_best_run_is_promoted_once_somebody_says_yes(
    undecided: Settings, tmp_path: Path, capsys: Capture
) -> None:
    shutil.copytree(undecided.home, tmp_path / "mlruns")
    lucky = f"{STUDY} has no decision; trial 1 is the best of 2 single runs, which may be luck"
    code, said = refused(capsys)
    assert (code, said.startswith(lucky)) == (2, True)
    assert "Promote it? There is no terminal to ask; add --yes: " in said
    before = contents(Path("mlruns"))
    code, _, errors = typed(capsys, "--dry-run")
    assert (code, errors.splitlines()[0], contents(Path("mlruns"))) == (0, lucky, before)

    code, output, errors = typed(capsys, "--yes", "--as", "digits", "--alias", "staging", "--refit", "--json")
    assert (code, "version 1 is @staging" in errors) == (0, True), errors
    assert errors.splitlines()[-1] == "pull it with: regtune pull digits@staging"
    assert json.loads(output)["record"]["source"]["chosen"] == "search"
    registry = open_registry(Settings(REGTUNE_HOME=tmp_path / "mlruns"))
    version = registry.find("digits@staging")
    assert "the best single run of a search, which is partly luck" in version.description
    assert journal.read(registry, "digits").champion is None
    record = record_of(registry, "digits@staging", tmp_path)
    assert (record.refit, record.epochs, record.kept_epoch) == (True, EPOCHS, EPOCHS)
    assert "validation images included" in version.description


def test_a_dry_run_shows_the_gates_but_for_the_test_set_and_writes_nothing(
    registry: Registry, capsys: Capture
) -> None:
    assert registry.models()  # and a folder that was moved is brought in order
    before = contents(registry.settings.home)
    code, output, errors = typed(capsys, "--dry-run", "--json")
    assert code == 0, errors
    assert errors.endswith("a dry run: nothing was written, and the test set stays closed\n")
    gates = {gate["name"]: gate for gate in json.loads(output)["gates"]}
    asked = {name: gate["passed"] for name, gate in gates.items()}
    assert (asked["reproducible"], asked["digests"], asked["size"]) == (True, True, True)
    assert (asked["champion"], gates["classes"]["note"]) == (None, "needs the test set")
    assert contents(registry.settings.home) == before


# -- what refuses


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--trial", "7"], f'study "{STUDY}" has no trial 7'),
        (["--as", "a/b"], "a/b: expected letters, digits, spaces and"),
        (["--alias", "latest"], "--alias latest: reserved by MLflow"),
        (["--alias", "v2"], "--alias v2: reserved by MLflow"),
        (["--alias", "previous"], "--alias previous: regtune moves it with @champion"),
        (["--force", " "], "--force: expected a reason"),
        (
            ["--force", "\udcff"],
            "--force: expected a reason",
        ),  # a letter in another encoding than the terminal's
        (["--force", "x" * 1001], "--force: expected a reason of at most 1,000 printable characters"),
        (["--gates", "wrong.yaml"], "wrong.yaml:2: max_milisecond: unknown"),
    ],
)
def test_what_is_typed_or_written_wrong_is_one_line(
    given: list[str], said: str, registry: Registry, capsys: Capture
) -> None:
    Path("wrong.yaml").write_text("max_ece: 0.1\nmax_milisecond: 3\n")
    code, line = refused(capsys, *given)
    assert (code, said in line) == (2, True), line


def test_a_gate_that_refuses_leaves_the_test_set_closed(registry: Registry, capsys: Capture) -> None:
    Path("gates.yaml").write_text(f"{LENIENT}max_milliseconds: 0.001\n")
    code, output, errors = typed(capsys, "--json")
    said = f"error: {STUDY}: nothing was registered; gate refuses: latency\n"
    assert (code, errors) == (1, said)
    gates = json.loads(output)["gates"]
    assert [gate["passed"] for gate in gates if gate["name"] in ("latency", "champion")] == [False, None]
    assert (openings(registry), runs(registry)[-1]) == (1, ("FAILED", ["gates.json"]))
    assert len(registry.versions(STUDY)) == 1


def test_the_same_network_again_is_refused_by_the_champion_passed_by_force_and_rolled_back(
    registry: Registry, capsys: Capture, tmp_path: Path
) -> None:
    code, output, errors = typed(capsys)
    assert (code, errors.splitlines()[-1]) == (
        1,
        f"error: {STUDY}: nothing was registered; gate refuses: champion",
    )
    assert "tied, and not simpler: only this one has 0 of 1,000 images right" in output
    assert (openings(registry), runs(registry)[-1][0]) == (2, "FAILED")

    reason = "the pixels of <class> 3 | were mended"
    code, output, errors = typed(capsys, "--force", reason, "--trial", "1")
    assert (code, f"{STUDY}: version 2 is @champion by force; accuracy " in errors) == (0, True), errors
    record, version = record_of(registry, STUDY, tmp_path), registry.find(STUDY)
    assert (record.source.chosen, record.decision) == ("person", None)
    assert (record.champion, len(record.openings)) == ("version 1", 3)
    assert "**The test set had been opened 2 times before.**" in version.description
    assert "The reason given: the pixels of " in version.description
    state = journal.read(registry, STUDY)
    assert (state.champion, state.previous) == (2, 1)
    assert record.forced == version.tags[names.FORCED] == state.moves[-1].forced == reason

    assert run_here(capsys, "model", "rollback", STUDY)[0] == 0
    assert (registry.find(STUDY).number, registry.find(f"{STUDY}@previous").number) == (1, 2)


def test_a_damaged_champion_refuses_until_it_is_replaced_by_force(
    registry: Registry, capsys: Capture
) -> None:
    (file,) = registry.settings.home.rglob(f"artifacts/{MODEL}")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    code, output, errors = typed(capsys)
    assert (code, errors.splitlines()[-1].endswith("gate refuses: champion")) == (1, True)
    assert f"version 1 is not as it was registered: {MODEL}: was changed" in output
    assert openings(registry) == 1
    shutil.rmtree(file.parents[1])
    code, _, errors = typed(capsys, "--force", "the disk was broken")
    assert (code, "version 2 is @champion by force" in errors) == (0, True), errors


@pytest.mark.parametrize("cause", [OSError(28, "No space left on device"), MlflowException("timed out")])
def test_a_champion_that_cannot_be_had_now_is_passed_over_by_no_force(
    registry: Registry, capsys: Capture, monkeypatch: pytest.MonkeyPatch, cause: Exception
) -> None:
    def fail(*_: object) -> Path:
        with registry.understood():
            raise cause

    monkeypatch.setattr(Registry, "download", fail)
    code, output, errors = typed(capsys, "--force", "it is slow, which is fine")
    assert (code, output, str(cause) in errors.splitlines()[-1]) == (1, "", True)
    assert (openings(registry), len(registry.versions(STUDY))) == (1, 1)
    assert runs(registry)[-1][0] == "FAILED"


def test_a_champion_on_other_data_is_not_comparable(
    registry: Registry, capsys: Capture, tmp_path: Path
) -> None:
    arrays = load_arrays("mnist-5k")
    facts = {"split_seed": 42, "train": 3200, "validation": 800, "features": 784, "classes": 10}
    data = DataUsed(name="mnist-5k", digest="f" * 64, test=len(arrays.x_test), **facts)
    _, digest = write_version(tmp_path / "files", STUDY, data=data)
    version = registry.find(STUDY)
    (experiment,) = (one for one in registry.client.search_experiments() if names.SWEEP in one.tags)
    other = registry.register(
        STUDY,
        tmp_path / "files",
        experiment_id=experiment.experiment_id,
        run_id=version.run_id or "",
        tags={names.MANIFEST_DIGEST: digest},
        description="",
    )
    journal.move(registry, STUDY, "champion", other.number, journal.read(registry, STUDY), why="by hand")
    code, output, _ = typed(capsys)
    assert (code, "version 2 was tested on other data (ffffffffffff...): not comparable" in output) == (
        1,
        True,
    )


def test_a_study_that_is_being_run_is_left_alone(
    registry: Registry, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regtune.registry.promote.PATIENCE_SECONDS", 0.2)
    with hold(registry.settings, STUDY):
        code, said = refused(capsys)
    assert (code, said.startswith(f'study "{STUDY}" is being run by process ')) == (1, True)
    assert said.endswith(f"look at it with: regtune watch {STUDY}")


def test_data_that_changed_since_the_study_is_refused(tmp_path: Path, capsys: Capture) -> None:
    arrays = load_arrays("mnist-5k")
    parts = {
        "x_train": arrays.x_train,
        "y_train": arrays.y_train,
        "x_test": arrays.x_test,
        "y_test": arrays.y_test,
    }
    np.savez("own.npz", **parts)
    searched(Settings(), dataset="own.npz")
    np.savez("own.npz", **{**parts, "y_test": parts["y_test"][::-1]})
    load_arrays.cache_clear()
    code, said = refused(capsys, "--yes")
    assert (code, "own.npz: the data at " in said, "expected the same data" in said) == (2, True, True)


def test_another_programs_model_of_that_name_is_left_alone(registry: Registry, capsys: Capture) -> None:
    registry.client.create_registered_model("digits")
    code, said = refused(capsys, "--as", "digits")
    assert (code, said) == (1, "digits: a registered model of another program; choose another with --as")


# -- where it cannot be written


def test_artifacts_outside_the_project_are_not_written(
    registry: Registry, first: tuple[Settings, Promotion], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = first[0]
    before = contents(theirs.home / "artifacts")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", theirs.mlflow_uri)
    code, _, errors = typed(capsys)
    assert (code, len(errors.splitlines())) == (1, 1), errors
    assert f"error: MLflow keeps this sweep's files in {theirs.home.as_uri()}" in errors
    assert contents(theirs.home / "artifacts") == before
    assert len(runs(open_registry(theirs))) == 1


def unregistered(registry: Registry) -> set[str]:
    """Files that MLflow knows as a model's, and that no version has."""
    client = registry.client
    known = [one.experiment_id for one in client.search_experiments()]
    versions = client.search_model_versions()
    logged = client.search_logged_models(known)
    return {one.model_id for one in logged} - {version.source.rpartition("/")[2] for version in versions}


def test_a_full_disk_is_one_line_and_leaves_nothing_half_registered(
    registry: Registry, capsys: Capture, tmp_path: Path
) -> None:
    artifacts = registry.settings.artifacts
    kept = Path(shutil.copytree(artifacts, tmp_path / "kept"))
    with file_system(artifacts, "size=2m"):
        shutil.copytree(kept, artifacts, dirs_exist_ok=True)
        filler = artifacts / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(artifacts).free - 65_536))
        code, _, errors = typed(capsys, "--force", "room")
        assert (code, "registered" in errors) == (1, False)
        assert re.fullmatch("error: MLflow at .*No space left on device.*", errors.splitlines()[-1]), errors
        assert (runs(registry)[-1], unregistered(registry)) == (("FAILED", ["gates.json"]), set())
        assert len(list(artifacts.rglob(MODEL))) == 1
        filler.unlink()
        code, _, errors = typed(capsys, "--force", "room")
        assert (code, "version 2 is @champion" in errors) == (0, True)


def test_no_room_for_what_is_trained_is_one_line(
    undecided: Settings, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = open_registry(Settings(REGTUNE_HOME=shutil.copytree(undecided.home, tmp_path / "mlruns")))
    disk = tmp_path / "disk"
    disk.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(disk))
    with file_system(disk, "size=360k"):
        code, _, errors = typed(capsys, "--yes")
        said = errors.splitlines()[-1]
        assert (code, said.startswith(f"error: {disk}/regtune-"), "No space" in said) == (1, True, True), (
            errors
        )
        assert (runs(registry)[0][0], list(disk.glob("regtune-*"))) == ("FAILED", [])


def test_an_account_without_the_right_is_told_and_leaves_nothing(
    undecided: Settings, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader may write nowhere; who owns another sweep may not add to a model that is somebody else's."""
    shutil.copytree(undecided.home, "mlruns")
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "correct-horse-battery")

    def sign_in(name: str, password: str = "correct-horse-battery") -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)

    with serving(Settings(REGTUNE_HOME=tmp_path / "served"), free_port(), auth=True) as server:
        sign_in("admin")
        from mlflow.server.auth.client import AuthServiceClient

        AuthServiceClient(server.url).create_user("other", "correct-horse-battery")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        assert typed(capsys, "--yes")[0] == 0
        registry = open_registry(Settings())
        sign_in("other")
        told = f"error: MLflow at {server.url}: {ONLY_READS}"
        code, output, errors = typed(capsys, "--yes", "--force", "mine")
        assert (code, output, errors.splitlines()) == (1, "", [told])
        searched(Settings(), "theirs")
        code, output, errors = run_here(
            capsys, "promote", "theirs", "--as", STUDY, "--yes", "--force", "mine", "--gates", "gates.yaml"
        )
        assert (code, output, errors.splitlines()) == (1, "", [told])
        sign_in("admin")
        assert [status for status, _ in runs(registry)] == ["FINISHED"]
        assert (len(registry.versions(STUDY)), unregistered(registry)) == (1, set())
        assert len(list((tmp_path / "served").rglob(MODEL))) == 1
