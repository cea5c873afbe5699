"""What `gc` may remove: what is shown to be a deleted study's, and nothing else."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import optuna
import pytest
import studies
import tracking_records as records
from optuna.trial import TrialState

from regtune.errors import StorageError, TrackingError
from regtune.settings import Settings
from regtune.study.ownership import hold
from regtune.study.record import RECORD, STUDY_UID
from regtune.tracking.store import delete_study as delete_runs
from regtune.tracking.store import tracked_studies
from regtune.tracking.studies import Recorded
from regtune.tracking.sync import catch_up
from regtune.upkeep.cleanup import delete_study, find_garbage, remove

NAME, UID = "tried", "0a1b2c"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with an older study, and one of two trials with their runs and a trial's folder."""
    settings = Settings(REGTUNE_HOME=tmp_path_factory.mktemp("made") / "mlruns")
    begin(settings, "older", "aaaaaa", 2020)
    begin(settings, NAME, UID, 2024)
    runs = [(n, "COMPLETE", replace(records.complete(n)[2], uid=f"{UID}-{n}")) for n in (0, 1)]
    runs[0] = records.with_model(runs[0], settings.artifacts)
    catch_up(settings, Recorded(records.facts(NAME, UID), runs, winner=0))
    return settings.home


@pytest.fixture
def settings(made: Path, tmp_path: Path) -> Settings:
    return Settings(REGTUNE_HOME=shutil.copytree(made, tmp_path / "mlruns"))


def begin(settings: Settings, name: str, uid: str, year: int) -> None:
    """A study of two trials that began in `year`; its name was held, as a sweep does."""
    study = studies.create(settings.home / "studies.db", name)
    study.set_user_attr(STUDY_UID, uid)
    for number in (0, 1):
        record = replace(studies.record(number, {"dropout": 0.2}), uid=f"{uid}-{number}")
        attributes = {RECORD: record.to_json()}
        trial = optuna.trial.create_trial(state=TrialState.COMPLETE, value=0.1, user_attrs=attributes)
        trial.datetime_start = datetime(year, 1, 1)
        study.add_trial(trial)
    with hold(settings, name):
        pass


def test_a_study_that_another_program_renamed_loses_nothing(settings: Settings) -> None:
    """As optuna-dashboard does it; the study's attributes were lost on the way."""
    old = optuna.load_study(study_name=NAME, storage=settings.storage_url)
    renamed = optuna.create_study(study_name="renamed", storage=settings.storage_url)
    renamed.add_trials(old.get_trials())
    optuna.delete_study(study_name=NAME, storage=settings.storage_url)
    assert find_garbage(settings) == []


def test_a_study_deleted_by_another_program_is_named_and_removed(settings: Settings) -> None:
    optuna.delete_study(study_name=NAME, storage=settings.storage_url)
    (left,) = find_garbage(settings)
    assert (left.uid, left.name, left.runs, left.kept) == (UID, NAME, 3, "")
    assert [folder.name for folder in left.folders] == [f"{UID}-0"]
    assert left.size_bytes > len(b"weights") * 2  # its folder's, its run's, and two configurations
    assert left.last == datetime.fromtimestamp((records.BEGIN_MS + 9000) / 1000, UTC)
    remove(settings, left.uid)
    assert not left.folders[0].exists()
    assert tracked_studies(settings) == {}
    assert find_garbage(settings) == []


def _begun_anew(settings: Settings) -> None:
    (settings.home / "studies.db").unlink()
    begin(settings, NAME, "bbbbbb", 2030)


def _by_another_folder(settings: Settings) -> None:
    optuna.delete_study(study_name=NAME, storage=settings.storage_url)
    with closing(sqlite3.connect(settings.home / "mlflow.db")) as database, database:
        database.execute("UPDATE runs SET artifact_uri = 'file:///elsewhere/' || run_uuid")


def _in_another_database(settings: Settings) -> None:
    optuna.delete_study(study_name=NAME, storage=settings.storage_url)
    for path in (settings.home / "locks").glob(f"study-{NAME}*"):
        path.unlink()


def _without_runs(settings: Settings) -> None:
    optuna.delete_study(study_name=NAME, storage=settings.storage_url)
    delete_runs(settings, UID)


@pytest.mark.parametrize(
    ("happened", "said"),
    [
        (lambda settings: (settings.home / "studies.db").unlink(), "started later"),
        (_begun_anew, "started later"),
        (_by_another_folder, "another folder"),
        (_in_another_database, "no sweep of that name"),
        (_without_runs, "no run in MLflow"),
    ],
)
def test_what_cannot_be_shown_to_be_a_deleted_study_s_stays(
    happened: Callable[[Settings], None], said: str, settings: Settings
) -> None:
    happened(settings)
    (left,) = find_garbage(settings)
    assert (left.uid, said in left.kept) == (UID, True), left.kept


def test_a_study_is_not_deleted_before_its_runs_can_be(settings: Settings) -> None:
    (settings.home / "mlflow.db").write_bytes(b"no database, it only looks like one" * 99)
    with pytest.raises(TrackingError):
        delete_study(settings, NAME)
    assert NAME in optuna.get_all_study_names(settings.storage_url)
    assert (settings.artifacts / "trials" / f"{UID}-0" / "model.keras").exists()


def test_a_study_is_not_deleted_before_its_folders_can_be(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path, rmtree: Callable[[Path], None] = shutil.rmtree) -> None:
        if folder.parent.name == "trials":
            raise PermissionError(13, "Permission denied", str(folder))
        rmtree(folder)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", fail)
        for removal in (lambda: remove(settings, UID), lambda: delete_study(settings, NAME)):
            with pytest.raises(StorageError, match=f"trials/{UID}-0: Permission denied"):
                removal()
    assert NAME in optuna.get_all_study_names(settings.storage_url)
    delete_study(settings, NAME)
    assert NAME not in optuna.get_all_study_names(settings.storage_url)
    assert not (settings.artifacts / "trials" / f"{UID}-0").exists()
