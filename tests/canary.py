"""Canaries: passwords that are looked for in everything that was printed, written, stored or run."""

from __future__ import annotations

import base64
import gzip
import io
import secrets
import sqlite3
import threading
import urllib.parse
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Self

import psutil

SQLITE = b"SQLite format 3\0"
EVERY_SECONDS = 0.1
LOOKS = 20
"""At one process: arguments and environment are settled when it has begun."""


class Canaries:
    """Passwords by name. Each has a core that nothing else contains, and characters that URLs and shells mind.

    `found` looks for the cores: they are the same in a URL, in JSON and in a shell's quotes; and for what base64 and
    hexadecimal make of them, wherever in a longer text they stand (a header `Basic`, for one).
    """

    def __init__(self, *names: str) -> None:
        self._cores = {name: f"canary{secrets.token_hex(8)}" for name in names}
        self._needles = {needle: name for name, core in self._cores.items() for needle in _disguises(core)}

    def __getitem__(self, name: str) -> str:
        return f"{self._cores[name]}-p@s:s/w?r#d%20&é"

    def found(self, data: bytes | str) -> set[str]:
        if isinstance(data, str):
            data = data.encode(errors="surrogatepass")
        return {name for needle, name in self._needles.items() if needle in data}

    def in_files(self, folder: Path, but: Collection[Path] = ()) -> dict[str, set[str]]:
        """What is found in every file below `folder`: place -> names. Archives and databases are unpacked."""
        places = {}
        for path in set(folder.rglob("*")).difference(but):
            found = self.found(str(path))
            for data in contents(path.read_bytes(), path) if path.is_file() else ():
                found |= self.found(data)
            if found:
                places[str(path)] = found
        return places


def _disguises(core: str) -> Iterator[bytes]:
    data = core.encode()
    yield data
    yield data.hex().encode()
    yield urllib.parse.quote(core).encode()
    yield core.encode("utf-16-le")
    for shift in range(3):
        whole = base64.b64encode(b"\0" * shift + data + b"\0" * (-(shift + len(data)) % 3))
        yield whole[4 * (shift > 0) : len(whole) - 4 * ((shift + len(data)) % 3 > 0)]


def contents(data: bytes, path: Path | None = None) -> Iterator[bytes]:
    """The bytes themselves, and what they hold: of an archive every member, of a database every row."""
    yield data
    if data.startswith(b"\x1f\x8b"):
        yield from contents(gzip.decompress(data))
    elif data.startswith(b"PK\3\4"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield from contents(archive.read(name))
    elif data.startswith(SQLITE) and path is not None:
        place = f"file:{urllib.parse.quote(str(path))}?mode=ro"
        with closing(sqlite3.connect(place, uri=True)) as connection:
            connection.text_factory = lambda raw: raw.decode(errors="replace")
            for statement in connection.iterdump():
                yield statement.encode()


class Watch:
    """Sees the arguments of every process of the machine while it is open, and the environment of those with a role.

    roles: role -> a text in the arguments of its processes. `arguments`: canaries seen in arguments, with the
    arguments; `environments`: role -> canaries seen; a role that was never seen is absent.
    """

    def __init__(self, canaries: Canaries, roles: Mapping[str, str]) -> None:
        self._canaries = canaries
        self._roles = roles
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on)
        self._looks: Counter[int] = Counter()
        self.arguments: dict[str, set[str]] = {}
        self.environments: dict[str, set[str]] = {}

    @property
    def seen(self) -> int:
        return len(self._looks)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look_on(self) -> None:
        while not self._over.wait(EVERY_SECONDS):
            self._looks.update(psutil.pids())
            for pid in (pid for pid in psutil.pids() if self._looks[pid] <= LOOKS):
                with suppress(psutil.Error, OSError):  # gone in this moment
                    self._look(psutil.Process(pid))

    def _look(self, process: psutil.Process) -> None:
        words = " ".join(process.cmdline())
        if found := self._canaries.found(words):
            self.arguments[words] = found
        for role, mark in self._roles.items():
            if mark in words and (variables := process.environ()):
                found = self._canaries.found("\n".join(variables.values()))
                self.environments.setdefault(role, set()).update(found)
