"""Exports: every format answers as the registered network does, and a script trains the same one with Keras alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from stock import Stock
from terminals import run_here

from regtune.training.runtime import configure

configure()

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402
from versions import DATA, register_version  # noqa: E402

from regtune.config.trial import (  # noqa: E402
    DataConfig,
    EarlyStoppingConfig,
    ModelConfig,
    RegularizationConfig,
    TrainingConfig,
    TrialConfig,
)
from regtune.data.datasets import load_arrays, load_data  # noqa: E402
from regtune.executors import Sample  # noqa: E402
from regtune.registry import export_formats  # noqa: E402
from regtune.registry.export import export_model, export_text  # noqa: E402
from regtune.registry.export_script import script_of  # noqa: E402
from regtune.registry.store import Version, open_registry  # noqa: E402
from regtune.registry.version import CONFIG  # noqa: E402
from regtune.settings import Settings  # noqa: E402
from regtune.study.best import load_best  # noqa: E402
from regtune.training.loop import train  # noqa: E402

SUFFIXES = {"keras": ".keras", "savedmodel": "", "onnx": ".onnx", "litert": ".tflite"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(REGTUNE_HOME=tmp_path_factory.mktemp("home") / "mlruns")


@pytest.fixture(scope="module")
def version(settings: Settings) -> Version:
    """A champion that has learned something: scaled wrongly, it would recognize fewer digits."""
    return register_version(settings, epochs=3)


def by_its_own_runtime(form: str, path: Path, images: NDArray[np.uint8]) -> NDArray[Any]:
    """What a program answers that knows the file alone; images: `(n, 28, 28)`."""
    if form == "keras":
        return np.asarray(keras.models.load_model(path).predict(images, verbose=0))
    if form == "savedmodel":
        loaded = tf.saved_model.load(str(path))
        return np.asarray(loaded.signatures["serving_default"](tf.constant(images))["output_0"])
    if form == "onnx":
        import onnxruntime

        return np.asarray(onnxruntime.InferenceSession(path).run(None, {"pixels": images})[0])
    from ai_edge_litert.interpreter import Interpreter

    serve = Interpreter(str(path)).get_signature_runner()
    return np.concatenate([serve(pixels=image[None])["output_0"] for image in images])


@pytest.mark.parametrize("form", SUFFIXES)
def test_each_format_has_the_recorded_test_accuracy_in_its_own_runtime(
    settings: Settings, version: Version, tmp_path: Path, form: str
) -> None:
    output = tmp_path / f"digits{SUFFIXES[form]}"
    registered, written = export_model("digits", form, output, settings, print)
    arrays = load_arrays(DATA.name)
    answers = by_its_own_runtime(form, output, arrays.x_test.reshape(-1, 28, 28))
    recorded = float(version.tags["regtune.test_accuracy"])
    assert float((answers.argmax(axis=1) == arrays.y_test).mean()) == recorded > 0.4
    assert answers.dtype == np.float32
    assert (written.other_classes, written.accuracy) == (0, registered.accuracy)
    assert written.difference <= 1e-5
    assert 0 < written.bytes < 1e6
    assert 0 < written.seconds_a_digit < 1
    assert [*tmp_path.iterdir()] == [output], "nothing lies beside it"


def test_eight_bit_numbers_are_smaller_and_their_loss_is_said(
    settings: Settings, version: Version, capfd: pytest.CaptureFixture[str]
) -> None:
    home, output = str(settings.home), Path("digits.tflite")
    asked = ("model", "export", "digits", "--format", "litert", "-o", str(output), "--home", home)
    assert run_here(capfd, *asked, "--json")[0] == 0
    size = output.stat().st_size
    code, out, err = run_here(capfd, *asked, "--quantize", "--yes")
    assert (code, err) == (0, "Wrote digits.tflite\n"), "LiteRT itself says nothing"
    assert output.stat().st_size < 0.6 * size
    arrays = load_arrays(DATA.name)
    answers = by_its_own_runtime("litert", output, arrays.x_test.reshape(-1, 28, 28))
    accuracy = float((answers.argmax(axis=1) == arrays.y_test).mean())
    assert accuracy == pytest.approx(float(version.tags["regtune.test_accuracy"]), abs=0.03)
    lost = float(out.partition("accuracy lost to 8-bit numbers: ")[2].partition(" points")[0])
    shown = [float(line.split("%")[0].split()[-1]) for line in out.splitlines() if "ms" in line]
    assert lost == pytest.approx(shown[0] - shown[1])


def test_a_model_that_answers_otherwise_is_refused_and_what_was_there_stays(
    settings: Settings, version: Version, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Probabilities that are off by less than a thousandth: no class changes."""
    known = export_formats.FORMATS["onnx"]

    def convert(network: Any, path: Path, calibration: Any) -> None:
        assert known.convert is not None
        bias = network.layers[-1].bias
        bias.assign(bias + np.eye(10)[0] * 2e-4)
        known.convert(network, path, calibration)

    monkeypatch.setitem(export_formats.FORMATS, "onnx", replace(known, convert=convert))
    Path("digits.onnx").write_text("of before")
    asked = ("--format", "onnx", "-o", "digits.onnx", "--yes", "--home", str(settings.home))
    code, out, err = run_here(capsys, "model", "export", "digits", *asked)
    assert (code, out) == (1, "")
    assert err.startswith("error: onnx: answers otherwise than digits: 0 of 800 validation images")
    assert err.endswith("apart (expected at most 1e-05); nothing was written\n")
    assert [path.name for path in Path().iterdir()] == ["digits.onnx"]
    assert Path("digits.onnx").read_text() == "of before"


def test_nothing_else_is_replaced_and_what_is_missing_is_named(
    settings: Settings, version: Version, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = replace(export_formats.FORMATS["onnx"], packages=("numpy", "of_nobody"))
    monkeypatch.setitem(export_formats.FORMATS, "onnx", lacking)
    Path("folder").mkdir()
    Path("folder", "mine").touch()
    Path("mine.keras").touch()
    Path("best.yaml").write_text(export_text("digits", "yaml", settings, print))
    for words, code, said in (
        ("digits --format keras -o mine.keras", 2, "Replace mine.keras, which holds something else?"),
        (
            "digits --format keras -o digits.onnx",
            2,
            "--output digits.onnx: expected a name that ends in .keras",
        ),
        (
            "digits --format savedmodel -o folder --yes",
            2,
            "--output folder: a folder with something else in it",
        ),
        (
            "digits --format savedmodel -o mine.keras",
            2,
            "--output mine.keras: expected a folder, found a file",
        ),
        ("digits --format json -o folder", 2, "--output folder: expected a file, found a folder"),
        ("digits --format keras", 2, "keras is not printed; expected -o PATH"),
        ("digits --format yaml --json", 2, "--json: yaml has no table"),
        (
            "digits --format keras -o no/m.keras",
            2,
            "--output no/m.keras: there is no folder no",
        ),
        ("digits --format onnx -o m.onnx", 1, "onnx needs of_nobody: pip install 'regtune[onnx]'"),
        (
            "digits --format keras --quantize -o m.keras",
            2,
            "--quantize: expected --format litert, found keras",
        ),
        (
            "best.yaml --format keras -o m.keras",
            2,
            "best.yaml: a configuration has no weights; train it with: ",
        ),
        ("gone.yaml --format keras -o m.keras", 2, "gone.yaml: no such file"),
        ("nobody --format keras -o m.keras", 2, 'no registered model "nobody"'),
    ):
        found = run_here(capsys, "model", "export", *words.split(), "--home", str(settings.home))
        assert (found[0], found[1]) == (code, ""), words
        assert found[2].startswith(f"error: {said}"), found[2]
        assert found[2].count("\n") == 1, found[2]
    assert sorted(path.name for path in Path().iterdir()) == ["best.yaml", "folder", "mine.keras"]
    assert not Path("mine.keras").stat().st_size


def test_a_configuration_comes_out_as_it_was_registered(settings: Settings, version: Version) -> None:
    registry = open_registry(settings)
    config = load_best(registry.download(version, Path()) / CONFIG)
    Path("best.yaml").write_text(export_text("digits", "yaml", settings, print))
    assert load_best(Path("best.yaml")) == config
    for target in ("digits", "best.yaml"):
        assert json.loads(export_text(target, "json", settings, print)) == config.to_dict()
        compile(export_text(target, "python", settings, print), target, "exec")


def test_a_damaged_version_is_not_exported(
    settings: Settings, version: Version, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = settings.artifacts.rglob("model.keras")
    content = file.read_bytes()
    try:
        file.write_bytes(content[:-1] + b"?")
        for form in ("keras", "yaml"):
            asked = ("--format", form, "-o", f"m.{form}", "--home", str(settings.home))
            code, _, err = run_here(capsys, "model", "export", "digits", *asked)
            assert (code, err.startswith("error: digits version 1: data/model.keras: was changed")) == (
                1,
                True,
            ), err
    finally:
        file.write_bytes(content)
    assert not [*Path().iterdir()]


HISTORIES = """
import importlib.util, json, runpy, sys
assert importlib.util.find_spec("regtune") is None, "regtune can be imported here"
scripts, found = sys.argv[1:], []
for script in scripts:
    sys.argv = [script, script.replace(".py", ".keras")]
    found.append(runpy.run_path(script)["history"])
print(json.dumps(found))
"""


def _config(data: str, **changes: Any) -> TrialConfig:
    return TrialConfig(
        model=ModelConfig(hidden=(16, 8), activation="gelu"),
        regularization=RegularizationConfig(
            dropout=(0.2, 0.1),
            l1=(1e-5, 0.0),
            l2=(1e-4, 1e-3),
            batchnorm=("after_activation", "before_activation"),
        ),
        data=DataConfig(name=data, validation=0.3, split_seed=5, digest=load_arrays(data).digest),
        seed=3,
        **changes,
    )


@pytest.mark.slow
def test_the_script_trains_the_same_network_where_regtune_is_not_installed(tmp_path: Path) -> None:
    arrays = load_arrays("mnist-5k")
    few = {f"{part}_train": getattr(arrays, f"{part}_train")[::4] for part in "xy"}
    npz = str(tmp_path / "it's few.npz")
    np.savez(npz, **few)
    stopping = EarlyStoppingConfig(monitor="val_accuracy", patience=1, min_delta=0.01)
    sgd = TrainingConfig(
        optimizer="sgd", learning_rate=0.05, momentum=0.9, batch_size=24, max_epochs=30, fused=False
    )
    adamw = TrainingConfig(optimizer="adamw", learning_rate=0.003, max_epochs=4, fused=False)
    adam = TrainingConfig(max_epochs=3)
    stopped, refit = _config("mnist-5k", training=sgd, early_stopping=stopping), _config(npz, training=adamw)
    fused = _config(npz, training=adam, early_stopping=None)
    scripts = [tmp_path / name for name in ("stopped.py", "refit.py", "fused.py")]
    for script, text in zip(
        scripts,
        (script_of(stopped, "a"), script_of(refit, "b", refit_epochs=2), script_of(fused, "c\nimport no")),
        strict=True,
    ):
        script.write_text(text)

    said = Stock(tmp_path).run(HISTORIES, "", *map(str, scripts)).splitlines()[-1]

    found = [{name: tuple(values) for name, values in history.items()} for history in json.loads(said)]
    result = train(stopped)
    assert result.end == "early_stopping"
    assert found[0] == result.history
    whole = refit.model_copy(
        update={"training": adamw.model_copy(update={"max_epochs": 2}), "early_stopping": None}
    )
    everything = Sample(validation=True).draw(load_data(refit))
    assert found[1] == train(whole, everything).history
    ours = train(fused).history
    for name, values in found[2].items():  # rounding grows from step to step: 35 of them in the first epoch
        assert values[0] == pytest.approx(ours[name][0], rel=1e-3), name
        assert values == pytest.approx(ours[name], rel=0.05), name
    images = load_arrays("mnist-5k").x_test
    plain = result.model.predict(images / np.float32(255), verbose=0)
    saved = keras.models.load_model(scripts[0].with_suffix(".keras"))
    assert np.allclose(saved.predict(images.reshape(-1, 28, 28), verbose=0), plain, atol=1e-6)
