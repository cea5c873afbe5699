"""The benchmark against the peers: its statistics, what it reads, and that all tools search and train the same.

The peers themselves run in `make bench-peers` alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import optuna
import pytest
import studies
from scipy.stats import ttest_rel

from regtune import SweepSpec, TrialConfig, build_model
from regtune.search import Space

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "peers"))
import bench_peers
import parity
import space
import task
import tree

SPEC = SweepSpec.load(bench_peers.SWEEP)
GATE = {"tools": {"Optuna": {"passed": True}, "Ray Tune": {"passed": False}}}


def test_optuna_and_ray_search_the_space_of_the_sweep_file() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    seen: dict[str, Any] = {}
    for _ in range(20):
        trial = study.ask()
        space.suggest(trial)
        seen |= trial.distributions
    assert seen == Space(SPEC).distributions


class Hyperparameters:
    """What KerasTuner's would be asked, with every switch on."""

    def __init__(self) -> None:
        self.asked: dict[str, tuple[Any, ...]] = {}
        self.scope = ""

    def Float(self, name: str, low: float, high: float, sampling: str = "linear") -> float:
        self.asked[name] = (low, high, sampling, self.scope)
        return low

    def Boolean(self, name: str) -> bool:
        self.asked[name] = (False, True)
        return True

    def Choice(self, name: str, values: list[Any]) -> Any:
        self.asked[name] = tuple(values)
        return values[0]

    @contextmanager
    def conditional_scope(self, name: str, values: list[Any]) -> Iterator[None]:
        assert values == [True]
        self.scope = name
        yield
        self.scope = ""


def test_keras_tuner_searches_the_same_space() -> None:
    hp = Hyperparameters()
    space.propose(hp)
    expected: dict[str, tuple[Any, ...]] = {}
    for name, one in Space(SPEC).distributions.items():
        if isinstance(one, optuna.distributions.FloatDistribution):
            switch = f"{name}.on" if f"{name}.on" in Space(SPEC).distributions else ""
            expected[name] = (one.low, one.high, "log" if one.log else "linear", switch)
        else:
            expected[name] = tuple(one.choices)  # type: ignore[attr-defined]
    assert hp.asked == expected


def layers(model: keras.Sequential) -> list[tuple[str, dict[str, Any]]]:
    """The layers of a network, without names and seeds."""
    plain = []
    for layer in model.layers:
        known = layer.get_config()
        if isinstance(layer, keras.layers.Dense):
            known["kernel_initializer"] = known["kernel_initializer"]["class_name"]
        plain.append((type(layer).__name__, {k: v for k, v in known.items() if k not in ("name", "seed")}))
    return plain


@pytest.mark.parametrize("placement", space.PLACEMENTS)
def test_the_peers_train_the_network_of_the_sweep_file(placement: str) -> None:
    searched = {"dropout": 0.2, "l1": 1e-5, "l2": 1e-4, "batchnorm": placement}
    ours = build_model(TrialConfig.from_dict({"model": SPEC.model.model_dump(), "regularization": searched}))
    assert layers(task.build(searched)) == layers(ours)


def test_the_peers_train_as_the_sweep_file_says() -> None:
    training, stopping = SPEC.training, SPEC.early_stopping
    assert stopping is not None
    assert (training.learning_rate, training.batch_size) == (task.LEARNING_RATE, task.BATCH_SIZE)
    assert (stopping.monitor, stopping.patience, stopping.min_delta) == (task.OBJECTIVE, task.PATIENCE, 0.0)


def test_the_epochs_of_a_fit_are_read_and_the_kept_one_is_that_which_early_stopping_restores(
    tmp_path: Path,
) -> None:
    draw = np.random.default_rng(3)
    images, labels = draw.random((96, 784), dtype=np.float32), draw.integers(10, size=96).astype(np.int32)
    data = (images[:64], labels[:64], images[64:], labels[64:])
    config = {"dropout": 0.0, "l1": 0.0, "l2": 0.0, "batchnorm": "none", "seed": 5, "name": "pair_0"}
    model = task.build(config)
    history = model.fit(**task.fitting(data, tmp_path, epochs=30)).history
    assert len(history["val_accuracy"]) < 30, "early stopping ends it"
    trials, epochs = bench_peers.their_epochs(tmp_path / "epochs.jsonl")
    assert (trials, [accuracy for _, accuracy in epochs]) == (1, history["val_accuracy"])
    trained = parity.read_trainings(tmp_path / "epochs.jsonl")["pair_0"]
    restored = model.evaluate(data[2], data[3], verbose=0, return_dict=True)
    assert parity.kept_accuracy(trained) == pytest.approx(restored["accuracy"])


def test_the_order_of_the_images_comes_from_the_seed_and_is_another_in_each_epoch() -> None:
    images, labels = np.zeros((70, 784), np.float32), np.arange(70)
    seen = []
    for _ in range(2):
        task.build({**parity.CONFIGURATIONS[0], "seed": 4})
        batches = task.in_seeded_order(images, labels)
        seen.append([[int(label) for _, some in batches for label in some] for _ in range(2)])
    assert seen[0] == seen[1]
    assert seen[0][0] != seen[0][1]
    assert sorted(seen[0][0]) == sorted(seen[0][1]) == list(range(70))


def test_a_training_that_was_cut_off_is_not_read_and_the_same_one_after_it_is(tmp_path: Path) -> None:
    def epochs(training: str, *accuracies: float) -> list[dict[str, Any]]:
        said = {"training": training, "name": "pair_0"}
        return [{**said, "val_accuracy": one, "val_cross_entropy": 1 - one} for one in accuracies]

    path = tmp_path / "epochs.jsonl"
    path.write_text("\n".join(map(json.dumps, epochs("a", 0.5, 0.6))) + "\n")
    assert parity.read_trainings(path) == {}
    with path.open("a") as file:
        for line in [*epochs("b", 0.25, 0.75), {"training": "b", "name": "pair_0", "ended": True}]:
            file.write(json.dumps(line) + "\n")
    assert parity.read_trainings(path) == {"pair_0": [(0.25, 0.75), (0.75, 0.25)]}


def test_the_epochs_of_a_study_of_regtune_are_read(tmp_path: Path) -> None:
    studies.fill(studies.create(tmp_path / "mlruns" / "studies.db"), [0.08])
    trials, epochs = bench_peers.our_epochs(tmp_path)
    assert (trials, len(epochs)) == (6, 30 + 12 + 12 + 3 + 1 + 5)
    first = (studies.STARTED_MS + studies.EPOCH_MS) / 1000
    assert min(epochs) == (first, pytest.approx(studies.curve(0.095, 1)[0]["val_accuracy"]))
    measured = tree.Measured(started=first - 2.0, seconds=9.0, cpu_seconds=3.0, peak_mib=100.0)
    later = [(first, 0.97), (first + 5, 0.981), (first + 3, 0.98)]
    assert bench_peers.result(measured, 1, later)["seconds_to_target"] == 5.0
    assert bench_peers.result(measured, 1, later[:1])["seconds_to_target"] is None


def test_equivalence_is_two_one_sided_paired_t_tests() -> None:
    draw = np.random.default_rng(7)
    ours = draw.normal(0.98, 0.001, 40)
    theirs = ours + draw.normal(0.0002, 0.0017, 40)
    found = parity.equivalence(ours.tolist(), theirs.tolist())
    above = ttest_rel(ours + 0.001, theirs, alternative="greater").pvalue
    below = ttest_rel(ours - 0.001, theirs, alternative="less").pvalue
    assert found["p"] == pytest.approx(max(above, below))
    interval = ttest_rel(ours, theirs).confidence_interval(0.90)
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))
    assert found["passed"] == (max(-found["low"], found["high"]) < 0.001)


@pytest.mark.parametrize("sd", [0.0012, 0.0017])
def test_as_many_pairs_are_taken_as_two_equal_tools_pass_with_in_nine_of_ten_cases(sd: float) -> None:
    count = parity.pairs_needed(sd)
    draws = np.random.default_rng(11).normal(0.0, sd, (4000, count))
    half = draws.std(axis=1, ddof=1) / count**0.5 * parity.t.ppf(0.95, count - 1)
    passed = np.mean(np.abs(draws.mean(axis=1)) + half < parity.MARGIN)
    assert passed == pytest.approx(0.9, abs=0.025)
    assert parity.pairs_needed(sd, power=0.8) < count


def measured(seconds: float, epochs: int, **more: float) -> dict[str, Any]:
    figures = {"cpu_seconds": 10.0, "peak_mib": 900.0, "best_val_accuracy": 0.98, "seconds_to_target": None}
    return {"seconds": seconds, "trial_epochs": epochs, **figures, **more}


def test_a_ratio_is_given_to_a_peer_that_has_passed_the_gate_and_what_falls_short_says_why() -> None:
    ours = measured(20.0, 50, trials_seconds=16.0, training_seconds=12.5)
    tools = {"regtune": [ours], "Optuna": [measured(140.0, 50)], "Ray Tune": [measured(300.0, 50)]}
    setting: dict[str, Any] = {"trials": 8, "epochs": 10, "tools": tools}
    setting["summary"] = found = bench_peers.summary(setting, dict.fromkeys(parity.SPLITS, GATE))
    assert (found["Optuna"]["ratio"], found["Optuna"]["met"]) == (7.0, False)
    assert bench_peers.missed(setting) == (
        "Short of 8 times: Optuna 7.0. Of regtune's 20.0 s, 4.0 lie before its first trial and after its last, "
        "3.5 between trainings, 12.5 in training, which alone is 0.250 s a trial-epoch."
    )
    assert "ratio" not in found["Ray Tune"]
    assert "ratio" not in bench_peers.summary(setting, {"mnist": GATE})["Optuna"]


def test_a_setting_keeps_what_is_not_measured_again_unless_the_machine_is_another() -> None:
    result: dict[str, Any] = {"settings": []}
    for tools in (["regtune", "Optuna"], ["Optuna"]):
        setting = bench_peers.setting_of(result, "mnist", 8, 10, tools)
        for tool in tools:
            setting["tools"][tool].append(tools)
    assert setting["tools"] == {"regtune": [["regtune", "Optuna"]], "Optuna": [["Optuna"]]}
    setting["machine"] = {"cpu": "another"}
    assert bench_peers.setting_of(result, "mnist", 8, 10, ["Optuna"])["tools"] == {"Optuna": []}
    assert len(result["settings"]) == 1


BUSY = """
import subprocess, sys, time
held = bytearray(150 * 2**20)
subprocess.run([sys.executable, "-c", "import time\\nwhile time.process_time() < 1: pass"])
time.sleep(1.5)
"""


def test_a_command_is_measured_with_the_processes_that_it_starts(tmp_path: Path) -> None:
    found = tree.measure([sys.executable, "-c", BUSY], tmp_path, {})
    assert found.seconds > 2.5
    assert found.cpu_seconds > 1.0
    assert 150 < found.peak_mib < 400


def test_a_command_that_fails_ends_the_benchmark(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="ended with 3"):
        tree.measure([sys.executable, "-c", "raise SystemExit(3)"], tmp_path, {})
