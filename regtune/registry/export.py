"""The export of a registered version, or of a configuration: as text, or as a model that other programs run.

A model is compared with the registered network on the validation images before it gets its name; the test set stays
closed. Nothing is left of one that answers otherwise.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regtune.config.trial import TrialConfig
from regtune.data.arrays import Images, Labels
from regtune.errors import ExportError, InputError
from regtune.escaping import printable, shell_word
from regtune.registry.export_formats import FORMATS, require, silence, write
from regtune.registry.gates import Predict, seconds_a_digit
from regtune.registry.pull import Say, fetched
from regtune.registry.verify import arrays_of
from regtune.registry.version import CONFIG, MODEL, Record
from regtune.settings import Settings
from regtune.storage.output import beside, check_file, check_folder
from regtune.study.best import Best, load_best

TEXTS = ("yaml", "json", "python")
LARGEST_DIFFERENCE = 1e-5
"""Of one probability from the registered network's."""
BATCH = 4000
"""Images at once."""
CALIBRATION = 500
"""Training images that the ranges of a quantized network are taken from."""


@dataclass(frozen=True)
class Exported:
    """A model beside the registered network, over the validation images.

    seconds_a_digit: the median for one image alone. difference: the largest of a probability. other_classes: how many
    images get another class.
    """

    format: str
    bytes: int
    seconds_a_digit: float
    accuracy: float
    difference: float
    other_classes: int


def check_export(target: str, form: str, output: Path | None) -> bool:
    """Whether something is at `output` that would be replaced.

    Raises InputError for what cannot be written there, ConfigError, and ExportError where packages are missing.
    """
    if form in TEXTS:
        return output is not None and check_file(output)
    if _is_configuration(target):
        load_best(Path(target))
        train = f"regtune train {shell_word(target)} -o model.keras"
        raise InputError(f"{printable(target)}: a configuration has no weights; train it with: {train}")
    if output is None:
        raise InputError(f"{form} is not printed; expected -o PATH")
    require(form)
    suffix = FORMATS[form].suffix
    return check_file(output, suffix) if suffix else check_folder(output, "saved_model.pb")


def _is_configuration(target: str) -> bool:
    return target.endswith((".yaml", ".yml"))


def export_text(target: str, form: str, settings: Settings, say: Say) -> str:
    """Return the configuration of `target` as YAML, as JSON, or as a script that trains it without regtune.

    Raises ConfigError, and as `regtune.registry.pull.fetched` does.
    """
    if _is_configuration(target):
        best = load_best(Path(target))
        return _script(best.config, target) if form == "python" else _written(best, form)
    with fetched(settings, target, say) as (folder, record):
        if form == "python":
            title = f"{record.name} as it was registered on {record.created:.10}: {record.config.mix}"
            return _script(_config(record), title, record.epochs if record.refit else None)
        return _written(load_best(folder / CONFIG), form)


def _written(best: Best, form: str) -> str:
    return best.to_yaml() if form == "yaml" else json.dumps(best.to_dict(), indent=2) + "\n"


def _script(config: TrialConfig, title: str, refit_epochs: int | None = None) -> str:
    from regtune.training.runtime import configure

    configure()
    from regtune.registry.export_script import script_of

    return script_of(config, title, refit_epochs)


def _config(record: Record) -> TrialConfig:
    """The configuration of a version, its data named by the digest that it was trained on."""
    data = record.config.data.model_copy(update={"digest": record.data.digest})
    return record.config.model_copy(update={"data": data})


def export_model(
    target: str, form: str, output: Path, settings: Settings, say: Say, quantize: bool = False
) -> tuple[Exported, ...]:
    """Write a registered version to `output` in a model format; return the registered network, and what was written.

    quantize: to 8-bit numbers, for which a difference is no error. `check_export` comes first. Raises ExportError for a
    model that answers otherwise, DataError, StorageError, and as `regtune.registry.pull.fetched` does.
    """
    from regtune.training.runtime import configure

    configure()
    with fetched(settings, target, say) as (folder, record):
        from regtune.data.datasets import split_of
        from regtune.registry.deployed import load_network, predict_pixels

        network = load_network(folder, record)
        arrays = arrays_of(record, settings)
        split = split_of(arrays, record.config.data)
        calibration = arrays.x_train[split.train[:CALIBRATION]] if quantize else None
        images, labels = arrays.x_train[split.validation], arrays.y_train[split.validation]

        def registered(images: Images) -> NDArray[np.float32]:
            return predict_pixels(network, images)

        expected, model = registered(images), folder / MODEL
        known = _measured("registered", model, registered, expected, images, labels)
        name = f"{form}, 8 bits" if quantize else form
        with beside(output) as made:
            with silence():
                given = write(form, network, model, made, calibration)
                found = _measured(name, made, given, expected, images, labels)
            if not quantize and (found.difference > LARGEST_DIFFERENCE or found.other_classes):
                others = f"{found.other_classes} of {len(images):,} validation images in another class"
                raise ExportError(
                    f"{form}: answers otherwise than {printable(target)}: {others}, probabilities up to "
                    f"{found.difference:.1e} apart (expected at most {LARGEST_DIFFERENCE:g}); nothing was written"
                )
    return known, found


def _measured(
    name: str,
    path: Path,
    predict: Predict,
    expected: NDArray[np.float32],
    images: Images,
    labels: Labels,
) -> Exported:
    batches = range(0, len(images), BATCH)
    found = np.concatenate([predict(images[begin : begin + BATCH]) for begin in batches])
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return Exported(
        format=name,
        bytes=sum(file.stat().st_size for file in files),
        seconds_a_digit=seconds_a_digit(predict, images),
        accuracy=float((found.argmax(axis=1) == labels).mean()),
        difference=float(np.abs(found - expected).max()),
        other_classes=int((found.argmax(axis=1) != expected.argmax(axis=1)).sum()),
    )
