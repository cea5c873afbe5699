"""Files cut off, another program's, a newer version's, or nonsense: refused with what to do, and left alone."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from places import Place, place_on
from stores import free_port
from terminals import regtune

NAME = "small"
VERBS = (
    *("sync", "board small", "gc --yes", "show small 0"),
    *("best small", "studies", "status", "watch small --json"),
)
"""One that writes and one that reads come first: the others are tried in `make proofs`."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with place_on("sqlite", tmp_path_factory.mktemp("finished"), None) as place:
        with place.sweep(run_cap=2) as sweep:
            sweep.ended()
        yield place


@pytest.fixture
def damaged(finished: Place, tmp_path: Path) -> Iterator[Place]:
    """The same; what a test does to it is undone."""
    kept = shutil.copytree(finished.home, tmp_path / "kept")
    yield finished
    shutil.rmtree(finished.home)
    shutil.move(kept, finished.home)


def execute(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute(statement).rowcount
        connection.commit()


def cut(path: Path) -> None:
    execute(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 100])


def overwritten(path: Path) -> None:
    for file in path.parent.glob(f"{path.name}-*"):
        file.unlink()
    path.write_text("remember the milk\n" * 1000)


def foreign(path: Path) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    execute(path, "CREATE TABLE songs (title TEXT)")


def attribute(table: str, key: str, value: str) -> Callable[[Path], None]:
    """Change an attribute as it lies in Optuna's tables, JSON. value: in SQL."""
    changed = f"UPDATE {table}_user_attributes SET value_json = {value} WHERE key = 'regtune.{key}'"
    return lambda path: execute(path, changed)


TOMORROW = "substr(value_json, 1, length(value_json) - 1) || ', \"tomorrow\": 1}'"
NEWER = "a sweep file of a newer version"
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "studies cut off": (cut, "studies.db: damaged"),
    "a record of a newer version": (attribute("trial", "record", TOMORROW), "written by another version?"),
    NEWER: (attribute("study", "spec", TOMORROW), "tomorrow"),
    "studies of another program": (foreign, "studies.db"),
    "studies overwritten": (overwritten, "studies.db: damaged, or not a SQLite database"),
    "a record that is not JSON": (attribute("trial", "record", "'{'"), "an attribute in it is not JSON"),
    "a nonsense sweep file": (attribute("study", "spec", "'[1, 2]'"), "its sweep file cannot be read"),
    "a uid that names a folder elsewhere": (attribute("study", "uid", "'\"../../etc\"'"), "no uid"),
}
CASES = [
    *((name, 2) for name in list(DAMAGES)[:4]),
    *(pytest.param(name, len(VERBS), marks=pytest.mark.proof) for name in DAMAGES),
]


@pytest.mark.parametrize(("name", "verbs"), CASES)
def test_damaged_studies_are_refused_and_left_as_they_are(damaged: Place, name: str, verbs: int) -> None:
    damage, words = DAMAGES[name]
    damage(damaged.home / "studies.db")
    before = contents(damaged.home)
    again = damaged.command(run_cap=3)[3:]
    assert words in damaged.run(*again, code=2 if name == NEWER else 1)
    assert contents(damaged.home) == before
    for verb in VERBS[:verbs]:
        said = answer(damaged, *verb.split())
        assert len(said.splitlines()) < 60, said
        assert contents(damaged.home) == before, verb


@pytest.mark.parametrize(
    "damage", [cut, *(pytest.param(damage, marks=pytest.mark.proof) for damage in (overwritten, foreign))]
)
def test_a_damaged_mlflow_database_is_refused_and_the_studies_are_read_all_the_same(
    damaged: Place, damage: Callable[[Path], None]
) -> None:
    board = damaged.run("board", NAME)
    damage(damaged.home / "mlflow.db")
    before = contents(damaged.home)
    assert damaged.run("board", NAME) == board
    for verb in ("sync", "sync --check", f"up --port {free_port()}", "sweep small.yaml --set run_cap=3"):
        assert "mlflow.db" in damaged.run(*verb.split(), code=1)
        assert contents(damaged.home) == before, verb
    for file in damaged.home.glob("mlflow.db*"):
        file.unlink()
    damaged.run("sync")
    damaged.run("sync", "--check")


def answer(place: Place, *verb: str) -> str:
    """What a verb says: an answer, or one error; its exit code is 2 where none of what is left is asked for."""
    ended = regtune(*verb, **place.environment)
    assert "Traceback" not in ended.stderr, f"{verb}: {ended.stderr}"
    if ended.returncode:
        assert ended.returncode in (1, 2), f"{verb}: {ended.returncode}: {ended.stderr}"
        assert ended.stderr.startswith("error: "), f"{verb}: {ended.stderr}"
    return ended.stdout + ended.stderr


def contents(home: Path) -> dict[str, str]:
    """A digest of every file; of a database that can be read of its rows, because reading may tidy its pages."""
    digests = {}
    files = (path for path in home.rglob("*") if path.is_file())
    for path in (path for path in files if not path.name.endswith((".lock", "-wal", "-shm"))):
        content = path.read_bytes()
        with (
            suppress(sqlite3.Error),
            closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection,
        ):
            content = "\n".join(connection.iterdump()).encode()
        digests[str(path.relative_to(home))] = hashlib.sha256(content).hexdigest()[:8]
    return digests
