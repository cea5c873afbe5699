"""A registered model with three versions, made as a promotion makes it but for the training."""

from __future__ import annotations

from pathlib import Path

from regtune.registry.store import Registry, open_registry
from regtune.settings import Settings

NAME = "digits"


def three_versions(settings: Settings, folder: Path, place: str | None = None) -> Registry:
    """Register NAME with versions 1 to 3, whose files are made in `folder`. place: of the experiment's artifacts."""
    registry = open_registry(settings)
    experiment = registry.client.create_experiment("sweep", place)
    run = registry.client.create_run(experiment).info.run_id
    registry.create(NAME, experiment)
    folder.mkdir()
    (folder / "MLmodel").write_text("flavors: {}\n")
    for number in (1, 2, 3):
        (folder / "what").write_text(str(number))
        found = registry.register(
            NAME, folder, experiment_id=experiment, run_id=run, tags={"n": str(number)}, description="# card"
        )
        assert found.number == number
    return registry
