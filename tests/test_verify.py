"""Verification of registered versions: every hash and every figure again, to the last bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from terminals import run_here

from regtune.training.runtime import configure

configure()

from versions import DATA, register_version, replace_file, write_version  # noqa: E402

from regtune.data.datasets import ARRAYS, load_arrays  # noqa: E402
from regtune.errors import DataError, VersionDamaged  # noqa: E402
from regtune.registry.contents import FILES, MANIFEST  # noqa: E402
from regtune.registry.store import Version, open_registry  # noqa: E402
from regtune.registry.verify import verify  # noqa: E402
from regtune.registry.version import CONFIG, MODEL, RECORD  # noqa: E402
from regtune.settings import Settings  # noqa: E402
from regtune.tracking import names  # noqa: E402

NAME = "digits"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: bytes) -> Path:
    settings = Settings(REGTUNE_HOME=tmp_path_factory.mktemp("made"))
    (settings.home / "mlflow.db").write_bytes(empty_mlflow)
    register_version(settings, NAME)
    return settings.home


@pytest.fixture
def champion(made: Path, monkeypatch: pytest.MonkeyPatch) -> Version:
    monkeypatch.setenv("REGTUNE_HOME", str(made))
    return open_registry(Settings()).find(NAME)


@pytest.fixture
def version(made: Path, tmp_path: Path) -> Version:
    """One that a test may leave changed."""
    shutil.copytree(made, tmp_path / "mlruns")
    return open_registry(Settings()).find(NAME)


def changed_record(content: bytes, part: str, **changes: Any) -> bytes:
    record = json.loads(content)
    record[part] |= changes
    return json.dumps(record).encode()


def test_a_version_repeats_its_recorded_figures_exactly(
    champion: Version, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, said = run_here(capsys, "model", "verify", NAME, "--json")
    assert (code, said) == (0, "")
    verified = json.loads(out)
    assert (verified["number"], verified["files"]) == (1, len(FILES) + 1)
    assert verified["digest"] == champion.tags[names.MANIFEST_DIGEST]
    assert str(verified["test"]["accuracy"]) == champion.tags[names.TEST_ACCURACY]
    assert verified["validation"]["images"] == 800
    assert run_here(capsys, "model", "verify", NAME)[1].count("exactly as recorded") == 2


def test_a_flipped_bit_in_what_mlflow_keeps_is_named(
    champion: Version, capsys: pytest.CaptureFixture[str]
) -> None:
    def flip(content: bytes) -> bytes:
        middle = len(content) // 2
        return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]

    for name in sorted(FILES | {MANIFEST}):
        replace_file(Settings(), champion, name, flip, signed=False)
        code, out, said = run_here(capsys, "model", "verify", NAME)
        assert (code, out, said.count("\n")) == (1, "", 1)
        assert said.startswith(f"error: digits version 1: {name}: ")
        replace_file(Settings(), champion, name, flip, signed=False)
    assert run_here(capsys, "model", "verify", NAME)[0] == 0


def test_figures_that_are_not_repeated_are_named_although_every_digest_is_right(version: Version) -> None:
    def change(content: bytes) -> bytes:
        return changed_record(changed_record(content, "validation", brier=0.5), "test", ece=0.5)

    replace_file(Settings(), version, RECORD, change)
    with pytest.raises(VersionDamaged) as raised:
        verify(Settings(), NAME)
    validation, test, why = raised.value.problems
    assert (validation.split(" is ")[0], validation.endswith(", 0.5 is recorded")) == (
        "validation: brier",
        True,
    )
    assert (test.split(" is ")[0], test.endswith(", 0.5 is recorded")) == ("test: ece", True)
    assert why.startswith("every file is as it was registered; ")


def test_counts_that_are_not_those_of_the_data_are_named(version: Version) -> None:
    replace_file(
        Settings(), version, RECORD, lambda content: changed_record(content, "data", classes=5, test=7)
    )
    with pytest.raises(VersionDamaged) as raised:
        verify(Settings(), NAME)
    assert raised.value.problems == (
        "data: test is 1000, 7 is recorded",
        "data: classes is 10, 5 is recorded",
    )


def test_what_mlflow_shows_and_somebody_has_changed_is_named(version: Version) -> None:
    client = open_registry(Settings()).client
    client.set_model_version_tag(NAME, "1", names.TEST_ACCURACY, "0.999")
    client.delete_model_version_tag(NAME, "1", names.STUDY_NAME)
    client.update_model_version(NAME, "1", f"{version.description} It is the best.")
    with pytest.raises(VersionDamaged) as raised:
        verify(Settings(), NAME)
    assert raised.value.problems == (
        "the tag regtune.study is none, sweep is recorded",
        f"the tag regtune.test_accuracy is 0.999, {version.tags[names.TEST_ACCURACY]} is recorded",
        "its description in MLflow, the card, was changed since",
    )


def test_other_weights_than_those_that_were_measured_are_noticed(version: Version, tmp_path: Path) -> None:
    """What somebody can do who may write to the store: files and digests agree, the figures are another network's."""
    write_version(tmp_path / "other", NAME, seed=1)
    replace_file(Settings(), version, MODEL, lambda _: (tmp_path / "other" / MODEL).read_bytes())
    with pytest.raises(VersionDamaged, match=r"^validation: accuracy is [\d.]+, [\d.]+ is recorded"):
        verify(Settings(), NAME)


def test_the_data_is_found_by_its_digest_or_what_to_set_is_said(version: Version, tmp_path: Path) -> None:
    arrays = load_arrays(DATA.name)
    held = {key: getattr(arrays, key) for key in ARRAYS}

    def rename(content: bytes) -> bytes:
        return content.replace(b"mnist-5k", b"/elsewhere/mine.npz")

    for name in (CONFIG, RECORD):
        replace_file(Settings(), version, name, rename)
    said = (
        rf"^/elsewhere/mine\.npz: the data that the version was measured on \(digest {arrays.digest[:12]}\.\.\.\) is "
        r"not on this machine; set REGTUNE_DATA_DIR to the folder with mine\.npz$"
    )
    with pytest.raises(DataError, match=said):
        verify(Settings(), NAME)
    np.savez(tmp_path / "mine.npz", **(held | {"y_test": held["y_test"][::-1]}))
    settings = Settings(REGTUNE_DATA_DIR=tmp_path)
    with pytest.raises(DataError, match=said):
        verify(settings, NAME)
    load_arrays.cache_clear()
    np.savez(tmp_path / "mine.npz", **held)
    with pytest.raises(VersionDamaged, match=r"^the tag regtune\.config_digest is \w+, \w+ is recorded$"):
        verify(settings, NAME)  # all that is wrong is that the record was renamed
