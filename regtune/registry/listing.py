"""What is registered: the versions of all models, or of one, and what is to be said of their aliases."""

from __future__ import annotations

from dataclasses import dataclass

from regtune.errors import RegistryError
from regtune.escaping import printable
from regtune.registry import journal
from regtune.registry.store import Version, open_registry
from regtune.settings import Settings


@dataclass(frozen=True)
class Listed:
    """Versions by model, the newest first. notes: one line for each thing that a reader should know."""

    versions: tuple[Version, ...]
    notes: tuple[str, ...]


def list_versions(settings: Settings, name: str | None = None) -> Listed:
    """List the versions of the model `name`, of all by default. Raises ModelNotFound, RegistryError, TrackingError."""
    registry = open_registry(settings)
    known = () if name is not None else registry.models()
    wanted = [name] if name is not None else [model.name for model in known if model.journal]
    notes, versions = list[str](), list[Version]()
    for one in wanted:
        try:
            found = registry.versions(one)
            said = journal.read(registry, one).notes if found else ("it has no versions",)
        except RegistryError as error:
            if name is not None:
                raise
            notes.append(str(error))
            continue
        versions += found
        notes += [f"{printable(one)}: {note}" for note in said]
    if foreign := len(known) - len(wanted) if name is None else 0:
        notes.append(f"not shown: {foreign} of other programs")
    if not wanted:
        notes.append("nothing has been promoted yet")
    return Listed(tuple(versions), tuple(notes))
