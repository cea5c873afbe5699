"""Verification of a registered version: every hash, the network from its weights, and the recorded figures again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from regtune.config.trial import DATASETS, Frozen
from regtune.data.datasets import Arrays, load_arrays, split_of
from regtune.errors import DataError, VersionDamaged
from regtune.escaping import printable
from regtune.registry.contents import FILES, read_predictions
from regtune.registry.lineage import tags_of
from regtune.registry.pull import ask, download
from regtune.registry.store import Version, open_registry
from regtune.registry.version import Figures, Record
from regtune.settings import Settings
from regtune.study.study import versions
from regtune.tracking.names import MANIFEST_DIGEST, NOTE_DIGEST
from regtune.training.runtime import configure


@dataclass(frozen=True)
class Verified:
    """A version that is what was registered.

    files: how many were hashed. refit: whether it was trained on the validation images. validation: predicted again.
    test: from the stored predictions.
    """

    name: str
    alias: str
    number: int
    digest: str
    files: int
    data: str
    refit: bool
    validation: Figures
    test: Figures

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "validation": self.validation.model_dump(), "test": self.test.model_dump()}


def verify(settings: Settings, target: str) -> Verified:
    """Download a version, check every file, and repeat its figures; the test set's images are not looked at.

    Figures are the recorded ones to the last bit, which takes the recorded versions and the same kind of processor.

    Raises VersionDamaged with a line for each file or figure, DataError where its data is not on this machine, and as
    `regtune.registry.pull.ask` does.
    """
    configure()
    found = ask(settings, target)
    with TemporaryDirectory(prefix="regtune-") as home:
        folder = Path(home, "files")
        record = download(settings, found, folder)
        arrays = arrays_of(record, settings)
        from regtune.registry.deployed import figures_of, load_network, predict_pixels

        split = split_of(arrays, record.config.data)
        counts = {"train": len(split.train), "validation": len(split.validation), "test": len(arrays.x_test)}
        counts |= {"classes": int(arrays.y_train.max()) + 1, "split_seed": record.config.data.split_seed}
        if problems := [*_differences("data", record.data.model_copy(update=counts), record.data)]:
            raise VersionDamaged(problems)
        held_out = split.validation
        probabilities = predict_pixels(load_network(folder, record), arrays.x_train[held_out])
        validation = figures_of(probabilities, arrays.y_train[held_out])
        test = figures_of(read_predictions(folder, record), arrays.y_test)
    problems = [
        *_differences("validation", validation, record.validation),
        *_differences("test", test, record.test),
    ]
    if problems:
        problems.append(_why(record))
    version = open_registry(settings).find(f"{found.name}@v{found.number}")
    if problems := [*problems, *_edited(version, record)]:
        raise VersionDamaged(problems)
    return Verified(
        **found.model_dump(exclude={"at"}),
        files=len(FILES) + 1,
        data=record.data.name,
        refit=record.refit,
        validation=validation,
        test=test,
    )


def arrays_of(record: Record, settings: Settings) -> Arrays:
    """The data of a version, wherever it lies. Raises DataError, which says what to set."""
    name, digest = record.config.data.name, record.data.digest
    file = f"{name}.npz" if name in DATASETS else Path(name).name
    places = [name] if name in DATASETS or not settings.data_dir else [name, str(settings.data_dir / file)]
    for place in places:
        with suppress(DataError):
            arrays = load_arrays(place, settings.data_dir)
            if arrays.digest == digest:
                return arrays
    fetch = f", or try: regtune data fetch {name}" if name in DATASETS else ""
    raise DataError(
        f"{printable(name)}: the data that the version was measured on (digest {digest[:12]}...) is not on this "
        f"machine; set REGTUNE_DATA_DIR to the folder with {printable(file)}{fetch}"
    )


def _edited(version: Version, record: Record) -> Iterator[str]:
    """What MLflow shows of a version beside its files, and is no longer what the record says."""
    for name, recorded in tags_of(record, version.tags[MANIFEST_DIGEST], version.description).items():
        if (now := version.tags.get(name, "none")) == recorded:
            continue
        if name == NOTE_DIGEST:
            yield "its description in MLflow, the card, was changed since"
        else:
            yield f"the tag {name} is {printable(now):.80}, {printable(recorded):.80} is recorded"


def _differences(part: str, found: Frozen, recorded: Frozen) -> Iterator[str]:
    for name, value in recorded:
        if (now := getattr(found, name)) != value:
            yield f"{part}: {name} is {now}, {value} is recorded"


def _why(record: Record) -> str:
    """What a person should know before a figure that is not repeated is taken for damage."""
    installed = versions()
    others = [
        f"{printable(name)} {printable(version)}, here {installed.get(name, 'absent')}"
        for name, version in record.versions.items()
        if installed.get(name) != version
    ]
    made = f"it was made with {', '.join(others)}" if others else "the versions are those it was made with"
    return (
        f"every file is as it was registered; {made}. Another version or processor may change the last digits"
    )
