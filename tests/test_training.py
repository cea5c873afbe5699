"""Training: the network, what it reports, how it ends, that it repeats itself, and what two trials share."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import weakref
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from regtune.training.runtime import ARITHMETIC, configure

configure()

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

import regtune  # noqa: E402
from regtune.config.trial import (  # noqa: E402
    METRICS,
    Activation,
    DataConfig,
    EarlyStoppingConfig,
    ModelConfig,
    RegularizationConfig,
    TrainingConfig,
    TrialConfig,
)
from regtune.data.datasets import Data, load_data  # noqa: E402
from regtune.errors import ConfigError, WorkerError  # noqa: E402
from regtune.training.epoch import EpochModel, batch_order  # noqa: E402
from regtune.training.fused import FusedModel  # noqa: E402
from regtune.training.loop import Graphs, structure, train  # noqa: E402
from regtune.training.model import Seeds, build_model, plain_keras  # noqa: E402
from regtune.training.result import TrialResult  # noqa: E402


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data(DataConfig(name="mnist-5k"))


@pytest.fixture(scope="module")
def few(data: Data) -> Data:
    """So few images that a network learns them by heart, and early stopping has something to stop."""
    return replace(data, x_train=data.x_train[:300], y_train=data.y_train[:300])


def _config(epochs: int = 3, seed: int = 1, **changes: Any) -> TrialConfig:
    training = {"max_epochs": epochs, **changes.pop("training", {})}
    regularization = {key: changes.pop(key) for key in ("dropout", "l1", "l2", "batchnorm") if key in changes}
    return TrialConfig(
        model=changes.pop("model", ModelConfig(hidden=(32, 16))),
        regularization=RegularizationConfig(**regularization),
        training=TrainingConfig(**training),
        early_stopping=changes.pop("early_stopping", None),
        seed=seed,
    )


def _by_hand(model: keras.Sequential, images: Any, labels: Any) -> tuple[float, float]:
    """Cross-entropy and accuracy of a network in inference mode, in double precision."""
    probabilities = model.predict(images, verbose=0, batch_size=1000).astype(np.float64)
    chosen = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(chosen).mean()), float((probabilities.argmax(axis=1) == labels).mean())


def _assert_measured(result: TrialResult, data: Data) -> None:
    """The figures are those of the network that is kept."""
    cross_entropy, _ = _by_hand(result.model, data.x_val, data.y_val)
    assert result.figures["val_cross_entropy"] == pytest.approx(cross_entropy, rel=1e-5)


BOTH_WAYS = pytest.mark.parametrize("fused", [True, False], ids=["fused", "exact"])
EXACT_IS_SLOW = pytest.mark.parametrize(
    "fused", [pytest.param(True, id="fused"), pytest.param(False, id="exact", marks=pytest.mark.slow)]
)


def test_the_network_has_the_layers_of_the_design_each_with_its_own_amounts() -> None:
    placement = ("before_activation", "none", "after_activation")
    amounts: dict[str, Any] = {"dropout": (0.2, 0.0, 0.3), "l1": (0.0, 1e-5, 0.0), "l2": (1e-4, 1e-3, 0.0)}
    model = build_model(_config(model=ModelConfig(hidden=(8, 8, 8)), batchnorm=placement, **amounts))
    assert [layer.name for layer in model.layers] == [
        *("dense_1", "batchnorm_1", "activation_1", "dropout_1"),
        *("dense_2", "activation_2"),
        *("dense_3", "activation_3", "batchnorm_3", "dropout_3"),
        "probabilities",
    ]
    assert [model.get_layer(f"dropout_{layer}").rate for layer in (1, 3)] == [0.2, 0.3]
    assert model.get_layer("dense_2").kernel_regularizer.get_config() == {"l1": 1e-5, "l2": 1e-3}
    penalized = [weight.path for weight in model.trainable_weights if weight.regularizer is not None]
    assert penalized == ["regtune/dense_1/kernel", "regtune/dense_2/kernel"]
    assert all(keras.activations.get(activation) for activation in get_args(Activation))


def test_seeds_differ_and_initial_weights_are_the_seed_s_and_nothing_else_s() -> None:
    first, again, other = (build_model(_config(seed=seed)) for seed in (3, 3, 4))
    for one, same, another in zip(first.weights, again.weights, other.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), same.numpy())
        assert one.path.endswith("bias") or not np.array_equal(one.numpy(), another.numpy())
    seeds = Seeds.of(_config(seed=11))
    everything = [*seeds.kernels, *seeds.dropouts, seeds.order]
    assert len(set(everything)) == len(everything)
    assert all(0 <= seed < 2**31 - 2 for seed in everything)
    orders = [batch_order(5, epoch, 1000).numpy() for epoch in (0, 1)]
    assert all(np.array_equal(np.sort(order), np.arange(1000)) for order in orders), (
        "each image once an epoch"
    )
    assert not np.array_equal(*orders)


@BOTH_WAYS
def test_cross_entropy_is_the_data_s_loss_where_the_loss_is_mostly_penalty(data: Data, fused: bool) -> None:
    result = train(_config(l1=1e-2, l2=1e-2, training={"fused": fused}), data)
    cross_entropy, accuracy = _by_hand(result.model, data.x_val, data.y_val)
    kernels = [result.model.get_layer(f"dense_{layer}").kernel for layer in (1, 2)]
    penalty = sum(1e-2 * float(tf.reduce_sum(abs(kernel) + kernel**2)) for kernel in kernels)

    assert result.figures["val_cross_entropy"] == pytest.approx(cross_entropy, rel=1e-5)
    assert result.figures["val_accuracy"] == pytest.approx(accuracy, rel=1e-6)
    assert result.figures["val_loss"] == pytest.approx(cross_entropy + penalty, rel=1e-5)
    assert result.figures["val_loss"] > 1.2 * result.figures["val_cross_entropy"]
    assert result.figures["loss"] > 1.2 * result.figures["cross_entropy"]
    entries = np.concatenate([np.ravel(kernel) for kernel in kernels]).astype(np.float64)
    assert 0.5 < result.sparsity == pytest.approx(float((np.abs(entries) < 1e-3).mean()))
    assert result.l2_norm == pytest.approx(float(np.sqrt(np.square(entries).sum())), rel=1e-6)


@pytest.mark.parametrize(
    ("monitor", "min_delta"),
    [("val_cross_entropy", 0.0), ("val_accuracy", 0.0), ("val_loss", 0.0), ("val_cross_entropy", 0.5)],
)
def test_early_stopping_follows_its_figure_and_the_value_is_that_of_the_kept_weights(
    few: Data, monitor: Any, min_delta: float
) -> None:
    stopping = EarlyStoppingConfig(monitor=monitor, patience=3, min_delta=min_delta)
    result = train(_config(epochs=40, early_stopping=stopping, training={"learning_rate": 0.01}), few)
    curve = result.history[monitor]
    best = np.argmax(curve) if monitor == "val_accuracy" else np.argmin(curve)
    assert (result.end, result.kept_epoch) == ("early_stopping", len(curve) - 3)
    assert (result.kept_epoch == best + 1) == (min_delta == 0), "never the value of another, better epoch"
    assert result.figures == {name: result.history[name][result.kept_epoch - 1] for name in METRICS}
    _assert_measured(result, few)


def test_the_gap_is_taken_in_inference_mode_where_dropout_hides_it(few: Data) -> None:
    result = train(_config(epochs=20, dropout=0.7), few)
    train_cross_entropy, train_accuracy = _by_hand(result.model, few.x_train, few.y_train)
    val_cross_entropy, _ = _by_hand(result.model, few.x_val, few.y_val)
    naive = result.figures["val_cross_entropy"] - result.figures["cross_entropy"]

    assert (result.end, result.kept_epoch) == ("max_epochs", 20), "without early stopping the last epoch's"
    assert result.train_cross_entropy == pytest.approx(train_cross_entropy, rel=1e-5)
    assert result.train_accuracy == pytest.approx(train_accuracy, rel=1e-6)
    assert result.generalization_gap == pytest.approx(val_cross_entropy - train_cross_entropy, rel=1e-4)
    assert naive < 0 < result.generalization_gap


@pytest.mark.parametrize(("verdict", "end"), [("prune", "pruned"), ("stop", "stopped")])
def test_on_epoch_ends_training_and_the_best_weights_are_restored(data: Data, verdict: Any, end: str) -> None:
    config = _config(epochs=9, early_stopping=EarlyStoppingConfig())
    result = train(config, data, lambda epoch, figures, seconds: verdict if epoch == 2 else "continue")
    assert result.end == end
    assert len(result.history["loss"]) == len(result.epoch_seconds) == 2
    assert result.generalization_gap is None
    _assert_measured(result, data)


def test_epochs_are_reported_one_by_one_and_a_diverging_trial_ends_as_non_finite(data: Data) -> None:
    seen: list[tuple[int, dict[str, float], float]] = []

    def on_epoch(epoch: int, figures: Mapping[str, float], seconds: float) -> Any:
        seen.append((epoch, dict(figures), seconds))
        return "continue"

    diverging = {"optimizer": "sgd", "learning_rate": 10.0, "momentum": 0.99}
    result = train(_config(epochs=20, l2=1.0, training=diverging), data, on_epoch)
    assert result.end == "non_finite"
    assert np.isfinite([list(figures.values()) for _, figures, _ in seen]).all()
    assert len(seen) == len(result.history["loss"])
    assert (result.kept_epoch, result.figures, result.model) == (0, {}, None)
    seen.clear()
    result = train(_config(), data, on_epoch)
    assert result.end == "max_epochs", "the graph is sound for the next trial"
    assert [epoch for epoch, _, _ in seen] == [1, 2, 3]
    assert all(tuple(figures) == METRICS for _, figures, _ in seen)
    assert {name: tuple(figures[name] for _, figures, _ in seen) for name in METRICS} == result.history
    assert tuple(seconds for _, _, seconds in seen) == result.epoch_seconds


def test_keras_own_callbacks_work(data: Data, tmp_path: Path) -> None:
    calls: list[Any] = []
    watch, log = keras.callbacks.Callback(), tmp_path / "log.csv"
    watch.on_train_begin = lambda logs=None: calls.append("begin")
    watch.on_epoch_end = lambda epoch, logs=None: calls.append((epoch, sorted(logs) == sorted(METRICS)))
    watch.on_train_end = lambda logs=None: calls.append("end")
    halved = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    result = train(_config(epochs=2), data, callbacks=[watch, halved, keras.callbacks.CSVLogger(log)])
    assert calls == ["begin", (0, True), (1, True), "end"]
    assert len(log.read_text().splitlines()) == 3
    assert result.history != train(_config(epochs=2), data).history, "the schedule was in force"

    stop = keras.callbacks.EarlyStopping("val_loss", min_delta=100.0, patience=1)
    stopped = train(_config(epochs=9), data, callbacks=[stop])
    assert stopped.end == "early_stopping"
    assert len(stopped.epoch_seconds) == 2


def test_a_file_trains_as_its_configuration_does_on_its_own_data_with_a_callback_alone(data: Data) -> None:
    config = _config(epochs=1).model_copy(update={"data": DataConfig(name="mnist-5k")})
    Path("best.yaml").write_text(config.to_yaml() + "provenance: {study: small}\n")
    epochs: list[int] = []
    counting = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: epochs.append(epoch))
    result = train("best.yaml", callbacks=counting)
    assert epochs == [0]
    assert result.history == train(config, data).history
    with pytest.raises(ConfigError, match="no such file"):
        train("nowhere.yaml")
    with pytest.raises(ConfigError, match="expected a configuration or the path of its file, found 7"):
        train(7)  # type: ignore[arg-type]


def test_the_network_is_that_of_its_trial_whenever_it_is_asked_for(data: Data) -> None:
    config = _config(epochs=1, batchnorm="before_activation")
    first = train(config, data)
    before = first.make_model().get_weights()
    train(config.model_copy(update={"seed": 8}), data)  # in the same graph
    assert all(map(np.array_equal, first.model.get_weights(), before))
    assert first.model is first.model
    assert first.without_model().model is None


def test_a_trained_network_and_a_checkpoint_of_it_load_where_regtune_is_not_installed(data: Data) -> None:
    placement = ("before_activation", "after_activation")
    config = _config(epochs=2, batchnorm=placement, dropout=0.2, l1=1e-5, l2=1e-4)
    model = train(config, data, callbacks=[keras.callbacks.ModelCheckpoint("checkpoint.keras")]).model
    model.save("model.keras")
    images = data.x_val[:50]
    for file in ("model.keras", "checkpoint.keras"):
        with zipfile.ZipFile(file) as archive:
            modules = set(re.findall(r'"module": "(\w+)', archive.read("config.json").decode()))
        assert modules == {"keras"}, "loading imports nothing else"
        loaded = keras.models.load_model(file)
        assert type(loaded) is type(model) is keras.Sequential
        np.testing.assert_array_equal(loaded.predict(images, verbose=0), model.predict(images, verbose=0))


def test_keras_settings_of_a_user_change_nothing_and_are_left_as_they_are(
    few: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _config(epochs=2, dropout=0.2)
    plain = train(config, few)
    monkeypatch.setattr("regtune.training.loop._graphs", Graphs())
    with plain_keras():  # which sets back what it finds
        keras.config.set_floatx("float64")
        keras.config.set_dtype_policy("mixed_bfloat16")
        keras.config.set_max_epochs(1)
        result = train(config, few)
        left = keras.config.floatx(), keras.config.dtype_policy().name, keras.config.max_epochs()
    assert left == ("float64", "mixed_bfloat16", 1)
    assert result.history == plain.history
    assert result.model.dtype_policy.name == "float32"


def test_a_file_in_place_of_a_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "keras.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "keras")
    with pytest.raises(WorkerError, match=r"keras\.py is found in place of the package keras; rename"):
        regtune.train  # noqa: B018


FRESH = """
import json, sys
from regtune.training.runtime import configure
configure()
sys.modules["matplotlib"] = None
from regtune.training.loop import train
print(json.dumps(train(json.loads(sys.argv[1])).history))
"""
"""As a worker trains: without what Keras would import besides, which the tests' own process has."""


def _listed(result: TrialResult) -> dict[str, list[float]]:
    return {name: list(values) for name, values in result.history.items()}


@EXACT_IS_SLOW
def test_a_used_graph_repeats_a_fresh_process_bit_for_bit(data: Data, fused: bool) -> None:
    """The trials before differ from it in every value a graph can hold, their split too; one of them diverges."""
    strengths = {"batchnorm": ("before_activation", "none"), "dropout": 0.25, "l1": 1e-4, "l2": 1e-3}
    config = _config(seed=17, **strengths, training={"fused": fused, "optimizer": "adamw"})
    config = config.model_copy(update={"data": DataConfig(name="mnist-5k")})
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    said = subprocess.check_output(
        [sys.executable, "-c", FRESH, config.canonical()], env=environment, timeout=600
    )
    fresh = json.loads(said.splitlines()[-1])

    before = config.to_dict()
    before["regularization"].update(dropout=[0.6, 0.1], l1=[1e-2, 1e-6], l2=[1e-1, 1e-6])
    before["training"].update(learning_rate=0.03, weight_decay=0.2)
    other = TrialConfig.from_dict({**before, "seed": 5})
    assert structure(other) == structure(config)
    elsewhere = load_data(DataConfig(name="mnist-5k", split_seed=7))
    assert _listed(train(other, elsewhere)) != fresh
    before["training"]["learning_rate"] = 10.0
    train(TrialConfig.from_dict(before), elsewhere)

    assert _listed(train(config, data)) == fresh
    assert _listed(train(config, data)) == fresh


@BOTH_WAYS
def test_momentum_is_its_own_in_each_trial(few: Data, fused: bool) -> None:
    training = {"optimizer": "sgd", "learning_rate": 0.05, "fused": fused}
    configs = [_config(epochs=1, training={**training, "momentum": value}) for value in (0.9, 0.7, 0.9, 0.0)]
    results = [train(config, few) for config in configs]
    assert results[0].history == results[2].history
    assert len({result.figures["loss"] for result in results}) == 3
    whole = _config(training={"batch_size": 65536, "fused": fused})
    assert train(whole, few).end == "max_epochs"


def test_graphs_are_shared_by_structure_bounded_and_of_data_of_one_form(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regtune.training.loop.MAX_GRAPHS", 2)
    graphs, one = Graphs(), _config(dropout=0.1, l1=1e-5)
    first = graphs.get(one, data)
    assert graphs.get(_config(dropout=0.4, l2=1e-3, seed=9, training={"learning_rate": 0.5}), data) is first
    assert graphs.get(_config(dropout=0.4), data) is not first
    assert graphs.get(one, data) is first
    for batchnorm in ("before_activation", "after_activation"):
        graphs.get(_config(batchnorm=batchnorm), data)
    second = graphs.get(one, data)
    assert second is not first
    split = replace(data, x_train=data.x_train[::-1].copy())
    assert graphs.get(one, split) is second
    freed = weakref.ref(split)
    del split
    assert freed() is None, "its images are held once, by the graphs"
    fewer = replace(data, x_train=data.x_train[1:], y_train=data.y_train[1:])
    third = graphs.get(one, fewer)
    assert third is not second
    assert graphs.get(one, replace(fewer, classes=11)) is not third


def test_graphs_of_large_networks_are_fewer(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs, plain, dropped = Graphs(), _config(), _config(dropout=0.1)
    first = graphs.get(plain, data)
    monkeypatch.setattr("regtune.training.loop.MAX_BYTES", 2 * 16 * first.count_params())
    graphs.get(dropped, data)
    assert graphs.get(plain, data) is first
    monkeypatch.setattr("regtune.training.loop.MAX_BYTES", 1)
    second = graphs.get(dropped, data)  # which stays, however large
    assert graphs.get(dropped, data) is second
    assert graphs.get(plain, data) is not first


def test_configuring_after_tensorflow_was_imported_otherwise_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")
    with pytest.raises(WorkerError, match="TF_ENABLE_ONEDNN_OPTS"):
        configure()
    for name, value in ARITHMETIC.items():
        monkeypatch.setenv(name, value)
    configure()


@BOTH_WAYS
def test_a_second_trial_of_a_structure_traces_nothing_on_another_split_too(
    data: Data, monkeypatch: pytest.MonkeyPatch, fused: bool
) -> None:
    """TensorFlow runs the Python of a method to trace it, and never again."""
    monkeypatch.setattr("regtune.training.loop._graphs", Graphs())
    kind, traced = FusedModel if fused else EpochModel, list[str]()
    for name in ("train_step", "train_batch", "_evaluate"):
        method = getattr(kind, name)

        def noted(model: EpochModel, *given: Any, real: Any = method) -> Any:
            traced.append(real.__name__)
            return real(model, *given)

        monkeypatch.setattr(kind, name, noted)
    train(_config(epochs=2, seed=1, dropout=0.1, l2=1e-4, training={"fused": fused}), data)
    assert {"train_step", "train_batch", "_evaluate"} == set(traced)
    before = len(traced)
    for seed in (2, 3):
        training = {"fused": fused, "learning_rate": seed / 1000}
        split = load_data(DataConfig(name="mnist-5k", split_seed=seed))
        train(_config(epochs=2, seed=seed, dropout=seed / 10, l2=10.0**-seed, training=training), split)
    assert len(traced) == before
