"""What a person has named is written whole, or what was there stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from regtune.errors import InputError, StorageError
from regtune.storage.output import beside, check_file


def replace_with(output: Path, text: str) -> None:
    with beside(output) as made:
        made.mkdir()
        (made / "saved_model.pb").write_text(text)


def test_a_folder_is_replaced_whole_and_stays_where_it_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "model"
    replace_with(output, "first")
    replace_with(output, "second")
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "saved_model.pb"]

    def fail(path: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(Path, "replace", fail)
        with pytest.raises(StorageError, match="No space left on device"):
            replace_with(output, "third")
    assert (output / "saved_model.pb").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_file_never_takes_the_place_of_a_folder(tmp_path: Path) -> None:
    output = tmp_path / "thesis"
    replace_with(output, "years of work")
    with (
        pytest.raises(InputError, match=f"--output {output}: expected a file, found a folder"),
        beside(output) as made,
    ):
        made.write_text("seed: 1")
    assert [path.read_text() for path in tmp_path.rglob("*.pb")] == ["years of work"]
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]


def test_neither_a_device_nor_a_pipe_is_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for output in (Path("/dev/null"), tmp_path / "pipe"):
        with pytest.raises(InputError, match=f"--output {output}: expected a file, found a device or a pipe"):
            check_file(output)
        with pytest.raises(InputError, match="found a device or a pipe"), beside(output) as made:
            made.touch()
