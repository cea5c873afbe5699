"""What a person has named is written whole, or what was there stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from regtune.errors import StorageError
from regtune.storage.output import beside


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
