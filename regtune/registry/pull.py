"""The pull of a version: its files, checked, into a folder that a deployment reads.

    DIR/config.yaml -> version/regtune/config.yaml
    DIR/model.keras -> version/data/model.keras
    DIR/card.md     -> version/regtune/card.md
    DIR/version     -> .versions/...             all files of the version, as MLflow has them

A version is written beside the one that is there, and checked. Then `version` is replaced by one rename, which changes
everything in DIR at once, on Linux and macOS. The version before stays until the next pull, for who is reading it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from regtune.config.mistakes import shortened
from regtune.errors import InputError, RegistryError, StorageError, TrackingError, VersionDamaged
from regtune.escaping import printable
from regtune.registry.cache import Cache, Found
from regtune.registry.contents import OF_DOWNLOADS, check_folder
from regtune.registry.store import open_registry, parse_target
from regtune.registry.version import CARD, CONFIG, MANIFEST, MODEL, Record
from regtune.settings import Settings
from regtune.storage import DISK_FULL, lock
from regtune.storage.mlflow import is_server, trouble
from regtune.storage.troubles import away
from regtune.study.best import Best, load_best
from regtune.tracking.names import MANIFEST_DIGEST

VERSION, VERSIONS = "version", ".versions"
LINKS = {"config.yaml": CONFIG, "model.keras": MODEL, "card.md": CARD}
"""Names in a pulled folder, and which file of the version each is."""
LOCK_SECONDS = 600.0
"""How long another pull into the same folder is waited for."""
Say = Callable[[str], object]


@dataclass(frozen=True)
class Pulled:
    """A folder that holds a version. changed: whether it did not before."""

    name: str
    alias: str
    number: int
    digest: str
    folder: Path
    changed: bool


def ask(settings: Settings, target: str) -> Found:
    """Ask MLflow which version ``NAME[@alias]`` is. Raises InputError, ModelNotFound, RegistryError, TrackingError."""
    alias = parse_target(target)[1]
    version = open_registry(settings).find(target)
    digest = version.tags.get(MANIFEST_DIGEST)
    if digest is None:
        said = f"version {version.number} has no tag {MANIFEST_DIGEST}: regtune did not register it"
        raise RegistryError(f"{printable(version.name)}: {said}")
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    try:
        return Found(name=version.name, alias=alias, number=version.number, digest=digest, at=now)
    except ValueError:
        said = f"the tag {MANIFEST_DIGEST} of version {version.number} was changed: {printable(digest):.80}"
        raise VersionDamaged([f"{printable(version.name)}: {said}"]) from None


def find(settings: Settings, target: str, say: Say) -> Found:
    """Ask MLflow which version it is; where MLflow is away, this machine's cache, which is said.

    Raises as `ask` does.
    """
    try:
        return ask(settings, target)
    except TrackingError as error:
        uri = settings.mlflow_uri
        if not away(error) and not (is_server(uri) and trouble(uri)):
            raise
        last = Cache(settings).last(*parse_target(target))
        if last is None:
            raise TrackingError(f"{error}; {printable(target)} is not in this machine's cache") from error
        which = f"version {last.number} of {printable(last.name)} is from this machine's cache"
        say(f"{error}; {which}, @{last.alias} as of {last.at[:16].replace('T', ' ')} UTC")
        return last


def fetch(settings: Settings, found: Found, folder: Path, say: Say) -> Record:
    """Put the files of a version into `folder`, which is made: from the cache, else from MLflow. All are checked.

    Raises VersionDamaged, ModelNotFound, TrackingError, StorageError, OSError.
    """
    cache = Cache(settings)
    record, kept = _cached(cache, found, folder, say), None
    if record is None:
        record, kept = download(settings, found, folder), folder
    try:
        cache.keep(found, kept)
    except (OSError, StorageError) as error:
        say(f"not kept in this machine's cache ({getattr(error, 'strerror', None) or error})")
    return record


def _cached(cache: Cache, found: Found, folder: Path, say: Say) -> Record | None:
    try:
        return check_folder(folder, found.digest) if cache.take(found.digest, folder) else None
    except (OSError, VersionDamaged) as error:
        shutil.rmtree(folder, ignore_errors=True)
        say(f"this machine's cache of version {found.number} is not used: {str(error).partition(chr(10))[0]}")
        return None


def download(settings: Settings, found: Found, folder: Path) -> Record:
    """Download the files of a version into `folder`, which is made when all are checked.

    Raises VersionDamaged, ModelNotFound, TrackingError, StorageError, OSError.
    """
    which = f"{printable(found.name)} version {found.number}"
    with TemporaryDirectory(dir=folder.parent) as home:
        place = Path(home, "files")
        place.mkdir()
        try:
            files = open_registry(settings).download(found, place)
        except TrackingError as error:
            if error.__cause__ is None:
                raise
            reason = str(error.__cause__).strip().rpartition("\n")[2]  # MLflow's first line has none
            if "No space left on device" in str(error.__cause__):
                raise StorageError(f"{folder.parent}: {DISK_FULL}") from error
            said = f"its files cannot be downloaded ({shortened(printable(reason), 200)})"
            raise TrackingError(f"{which}: {said}") from error
        (files / OF_DOWNLOADS).unlink(missing_ok=True)  # nothing vouches for it
        try:
            record = check_folder(files, found.digest)
        except VersionDamaged as error:
            raise VersionDamaged([f"{which}: {problem}" for problem in error.problems]) from None
        files.rename(folder)
    return record


@contextmanager
def fetched(settings: Settings, target: str, say: Say) -> Iterator[tuple[Path, Record]]:
    """The checked files of a version in a folder that is deleted after the block. Raises as `find` and `fetch` do."""
    found = find(settings, target, say)
    with TemporaryDirectory(prefix="regtune-") as home:
        folder = Path(home, "files")
        yield folder, fetch(settings, found, folder, say)


def pull_best(settings: Settings, target: str, say: Say) -> Best:
    """The configuration of a version, as `best.yaml` has it. Raises as `find` and `fetch` do."""
    with fetched(settings, target, say) as (folder, _):
        return load_best(folder / CONFIG)


def pull(settings: Settings, target: str, folder: Path, say: Say) -> Pulled:
    """Make `folder` hold a version, whole and checked; whatever ends this, it holds the one before or this one.

    Raises InputError for a folder with something else in it, and as `find` and `fetch` do.
    """
    try:
        made, missing = _require_own(folder), [parent for parent in folder.parents if not parent.exists()]
        versions = folder / VERSIONS
        versions.mkdir(parents=True, exist_ok=True)
        with lock(versions, "pull", LOCK_SECONDS):
            fresh = versions / uuid.uuid4().hex
            try:
                found = find(settings, target, say)  # who has waited for another pull asks after it
                facts = found.model_dump(exclude={"at"})
                _remove_others(versions, (folder / VERSION).resolve())
                if not difference(folder, found):
                    return Pulled(**facts, folder=folder, changed=False)
                fetch(settings, found, fresh, say)
                _write_through(fresh)
            except BaseException:
                others = (folder / VERSION).exists()
                shutil.rmtree(folder if made and not others else fresh, ignore_errors=True)
                for parent in missing:
                    with suppress(OSError):  # something else is in it
                        parent.rmdir()
                raise
            for name, inner in LINKS.items():
                _link(folder, name, f"{VERSION}/{inner}")
            _link(folder, VERSION, f"{VERSIONS}/{fresh.name}")
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written ({error.strerror or error})") from None
    return Pulled(**facts, folder=folder, changed=True)


def difference(folder: Path, found: Found) -> str:
    """Why `folder` does not hold this version, whole and unchanged; empty where it does. Raises StorageError."""
    files = folder / VERSION
    if not files.is_dir():
        return "there is no pulled version"
    try:
        there = (files / MANIFEST).read_bytes()
        if hashlib.sha256(there).hexdigest() != found.digest:
            return "it holds another version, or its manifest was changed"
        check_folder(files, found.digest)
        for name, inner in LINKS.items():
            if (folder / name).read_bytes() != (files / inner).read_bytes():
                return f"{name}: was changed"
    except VersionDamaged as error:
        return "; ".join(error.problems)
    except FileNotFoundError as error:
        return f"{Path(error.filename).relative_to(folder)}: is missing"
    except OSError as error:
        raise StorageError(f"{error.filename or folder}: cannot be read ({error.strerror})") from None
    return ""


def _require_own(folder: Path) -> bool:
    """See that a pull may write into `folder`; return whether it is not there yet. Raises InputError, OSError."""
    if not folder.exists() and not folder.is_symlink():
        return True
    inside = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    begun = inside <= {VERSIONS} and not any((folder / VERSIONS).glob("*"))
    if not begun and not (folder / VERSIONS / "locks").is_dir():
        said = "something else than a pulled version is there; choose another folder with -o"
        raise InputError(f"{folder}: {said}")
    return False


def _link(folder: Path, name: str, to: str) -> None:
    """Make the link `name`, in place of what has the name, by one rename."""
    fresh = folder / VERSIONS / name
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(to)
    held = folder / name
    if held.is_dir() and not held.is_symlink():  # in a copy, `version` is no link any more
        held.rename(folder / VERSIONS / uuid.uuid4().hex)
    fresh.replace(held)


def _remove_others(versions: Path, kept: Path) -> None:
    """Remove the version before this one, and what was left of pulls that were killed."""
    for one in versions.iterdir():
        if one.resolve() == kept or one.name == "locks":
            continue
        if one.is_dir() and not one.is_symlink():
            shutil.rmtree(one)
        else:
            one.unlink()


def _write_through(folder: Path) -> None:
    """See that the files are on the disk before anything leads to them, should the machine lose its power."""
    for path in (folder, *folder.rglob("*")):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
