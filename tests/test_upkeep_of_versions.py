"""What upkeep does to registered versions: deletion leaves them alone, a backup brings them back whole."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import tracking_records as records
from optuna.trial import TrialState

from regtune.training.runtime import configure

configure()

import studies  # noqa: E402
from versions import register_version  # noqa: E402

from regtune.registry import journal  # noqa: E402
from regtune.registry.contents import check_folder  # noqa: E402
from regtune.registry.store import open_registry  # noqa: E402
from regtune.registry.version import Record  # noqa: E402
from regtune.settings import Settings  # noqa: E402
from regtune.study.ownership import hold  # noqa: E402
from regtune.study.record import RECORD, STUDY_UID  # noqa: E402
from regtune.tracking import names  # noqa: E402
from regtune.tracking.store import tracked_studies  # noqa: E402
from regtune.tracking.studies import Recorded  # noqa: E402
from regtune.tracking.sync import catch_up  # noqa: E402
from regtune.upkeep.backup import make_backup  # noqa: E402
from regtune.upkeep.cleanup import delete_study, find_garbage  # noqa: E402
from regtune.upkeep.restore import restore  # noqa: E402

NAME, UID, MODEL = "tried", "0a1b2c", "digits"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with an older study, and one with its run, in whose experiment two versions were promoted."""
    settings = Settings(REGTUNE_HOME=tmp_path_factory.mktemp("made") / "mlruns")
    for name, uid, year in (("older", "aaaaaa", 2020), (NAME, UID, 2024)):
        begin(settings, name, uid, year)
    runs = [(0, "COMPLETE", replace(records.complete(0)[2], uid=f"{UID}-0"))]
    catch_up(settings, Recorded(records.facts(NAME, UID), runs, winner=0))
    client = open_registry(settings).client
    (experiment,) = [one for one in client.search_experiments() if names.SWEEP in one.tags]
    for seed in (0, 1):
        register_version(settings, MODEL, seed, experiment=experiment.experiment_id)
    return settings.home


@pytest.fixture
def settings(made: Path, tmp_path: Path) -> Settings:
    return Settings(REGTUNE_HOME=shutil.copytree(made, tmp_path / "mlruns"))


def begin(settings: Settings, name: str, uid: str, year: int) -> None:
    """A study of one trial that began in `year`; its name was held, as a sweep does."""
    study = studies.create(settings.home / "studies.db", name)
    study.set_user_attr(STUDY_UID, uid)
    record = replace(studies.record(0, {"dropout": 0.2}), uid=f"{uid}-0")
    attributes = {RECORD: record.to_json()}
    trial = optuna.trial.create_trial(state=TrialState.COMPLETE, value=0.1, user_attrs=attributes)
    trial.datetime_start = trial.datetime_start and trial.datetime_start.replace(year=year)
    study.add_trial(trial)
    with hold(settings, name):
        pass


def standing(settings: Settings, folder: Path) -> tuple[journal.State, list[Record]]:
    """Where the aliases are, and every version, downloaded and checked against its tag."""
    registry, found = open_registry(settings), []
    for version in registry.versions(MODEL):
        files = folder / f"{version.number}"
        files.mkdir(parents=True)
        found.append(check_folder(registry.download(version, files), version.tags[names.MANIFEST_DIGEST]))
    state = journal.read(registry, MODEL)
    assert (state.champion, state.previous, len(found), state.notes) == (2, 1, 2, ())
    return state, found


def test_a_study_is_deleted_without_what_was_promoted_from_it(settings: Settings, tmp_path: Path) -> None:
    before = standing(settings, tmp_path / "before")
    assert find_garbage(settings) == []
    delete_study(settings, NAME)
    assert UID not in tracked_studies(settings)
    assert find_garbage(settings) == []
    assert standing(settings, tmp_path / "after") == before


def test_a_backup_brings_versions_aliases_and_their_journal_back_into_another_folder(
    settings: Settings, tmp_path: Path
) -> None:
    before = standing(settings, tmp_path / "before")
    make_backup(settings, tmp_path / "copy")
    shutil.rmtree(settings.home)
    new = Settings(REGTUNE_HOME=tmp_path / "a new home")
    restore(new, tmp_path / "copy")
    assert standing(new, tmp_path / "after") == before
    state = journal.roll_back(open_registry(new), MODEL)
    assert (state.champion, state.previous) == (1, 2)
