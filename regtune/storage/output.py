"""A file or folder that a person has named: written whole, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from regtune.errors import InputError, StorageError
from regtune.escaping import printable


def check_file(output: Path, suffix: str = "") -> bool:
    """Return whether there is a file that one at `output` would replace. Raises InputError where none can be."""
    shown = f"--output {printable(str(output))}"
    if not output.name.endswith(suffix):
        raise InputError(f"{shown}: expected a name that ends in {suffix}")
    if output.is_dir():
        raise InputError(f"{shown}: expected a file, found a folder")
    _require_parent(output)
    _refuse_special(output)
    return output.exists()


def check_folder(output: Path, mark: str) -> bool:
    """The same of a folder; one with something in it may be replaced where it has the file `mark`."""
    shown = f"--output {printable(str(output))}"
    if output.exists() and not output.is_dir():
        raise InputError(f"{shown}: expected a folder, found a file")
    _require_parent(output)
    full = output.is_dir() and any(output.iterdir())
    if full and not (output / mark).is_file():
        raise InputError(f"{shown}: a folder with something else in it; choose another")
    return full


def _require_parent(output: Path) -> None:
    if not output.parent.is_dir():
        raise InputError(
            f"--output {printable(str(output))}: there is no folder {printable(str(output.parent))}"
        )


def _refuse_special(output: Path) -> None:
    if output.exists() and not (output.is_file() or output.is_dir()):
        raise InputError(f"--output {printable(str(output))}: expected a file, found a device or a pipe")


@contextmanager
def beside(output: Path) -> Iterator[Path]:
    """A path to write to, whose file or folder takes the place of `output` once the block has ended without an error.

    A folder is never replaced by a file, nor is what is neither. Raises InputError for these, StorageError where it
    cannot be written.
    """
    _refuse_special(output)
    try:
        with TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as home:
            made = Path(home, "new", output.name)
            made.parent.mkdir()
            yield made
            if output.is_dir() and not made.is_dir():
                raise InputError(f"--output {printable(str(output))}: expected a file, found a folder")
            old = Path(home, "old")
            try:
                if output.is_dir():
                    output.rename(old)
                made.replace(output)
            except BaseException:
                if old.exists():
                    old.rename(output)
                raise
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(f"{printable(str(output))}: cannot be written ({reason})") from None
