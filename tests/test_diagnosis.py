"""The diagnosis of a study: what its parts say of known structure, and one real run of each part."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decisions import decision, judged
from jsonschema import validate
from made_up import MadeUp
from optuna.trial import TrialState
from rich.console import Console
from specs import spec_of
from studies import add, create, record
from typer.testing import CliRunner

from regtune.cli import app
from regtune.cli.views.diagnosis import diagnosis_view
from regtune.config.trial import (
    DataConfig,
    EarlyStoppingConfig,
    RegularizationConfig,
    TrainingConfig,
    TrialConfig,
)
from regtune.data.datasets import load_data
from regtune.errors import DataError, InputError, StudyNotFound
from regtune.evidence.diagnosing import diagnose
from regtune.evidence.diagnosis import Diagnosis, SizePoint, read_diagnosis
from regtune.evidence.fit import errors_of, fit_of
from regtune.evidence.parameters import curves_of, effects, most_important, replicate_noise
from regtune.evidence.strengths import curve_of, jobs_of, strengths_of
from regtune.evidence.textbook import BATCHNORM, DROPOUT, GAP, L1, L2, STOPPING, sentences
from regtune.evidence.trainings import Trained, train_all
from regtune.executors import Task, TrialEnded
from regtune.search import Space
from regtune.settings import Settings, load_settings, sqlite_url
from regtune.storage import open_engine
from regtune.study.best import Best
from regtune.study.decision import Estimate, Judged, Replicate
from regtune.study.ownership import hold
from regtune.study.progress import Row
from regtune.study.record import Kept, TrialRecord

METRIC = "val_cross_entropy"
SPACE = Space(
    spec_of(
        {
            "dropout": {"min": 0.0, "max": 0.6},
            "l1": {"distribution": "log_uniform_values", "min": 1e-7, "max": 1e-3, "optional": True},
            "batchnorm": {"values": ["none", "before_activation"]},
        }
    )
)
NOISE = 0.006
"""As measured on the embedded images."""


@pytest.fixture(autouse=True)
def _fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regtune.evidence.parameters.RESAMPLES", 20)


def searched(count: int, effect: float, seed: int = 0) -> list[Row]:
    """Complete trials whose metric dropout moves by `effect`, batch norm by a third of it, and L1 not at all."""
    random, rows = np.random.default_rng(seed), []
    for number in range(count):
        parameters = {
            "dropout": float(random.uniform(0, 0.6)),
            "l1": float(10 ** random.uniform(-7, -3)) if random.random() < 0.6 else 0.0,
            "batchnorm": str(random.choice(["none", "before_activation"])),
        }
        shift = abs(parameters["dropout"] - 0.2) / 0.4 + (parameters["batchnorm"] == "none") / 3
        value = 0.2 + effect * shift + random.normal(0, NOISE)
        found = TrialRecord(uid=f"study-{number}", config=TrialConfig(), parameters=parameters)
        rows.append(Row(number, "COMPLETE", float(value), found))
    return rows


def test_what_does_not_matter_is_called_flat_and_what_matters_is_not() -> None:
    found = {one.name: one for one in effects(SPACE, searched(60, 0.06), "minimize", NOISE)}
    assert {name: one.effect for name, one in found.items()} == {
        **{"dropout": "matters", "batchnorm": "matters", "l1": "flat"}
    }
    assert found["batchnorm"].best == "before_activation"
    assert float(found["dropout"].best or 1) == pytest.approx(0.2, abs=0.1)
    assert found["l1"].log
    assert found["l1"].points[0].value == 0
    for one in found.values():
        assert one.importance is not None
        assert one.low is not None
        assert one.high is not None
        assert 0 <= one.low <= one.importance <= one.high <= 1
        assert one.level is not None
        assert one.noise is not None
        inside = all(abs(point.metric - one.level) <= one.noise for point in one.points)
        assert inside == (one.effect == "flat")
    assert sum(one.importance or 0 for one in found.values()) == pytest.approx(1)
    assert most_important([*found.values()], ("dropout", "l1", "l2"))[0] == "dropout"  # type: ignore[index]


def test_without_any_effect_every_parameter_is_flat_and_identical_scores_are_no_mistake() -> None:
    for seed in range(4):  # 5 % over all parameters of a study; these four have none
        curves = curves_of(SPACE.columns, searched(40, 0, seed), NOISE).values()
        assert all(np.ptp([point.metric for point in one.points]) <= 2 * one.spread for one in curves)
    same = [replace(row, value=0.2) for row in searched(40, 0)]
    assert {one.effect for one in effects(SPACE, same, "minimize", NOISE)} == {"flat"}


def test_without_replicates_or_trials_enough_nothing_is_claimed() -> None:
    assert {one.effect for one in effects(SPACE, searched(40, 0.1), "minimize", None)} == {"not_measured"}
    few = effects(SPACE, searched(11, 0.1), "minimize", NOISE)
    assert [(one.effect, one.importance, one.points) for one in few] == [("not_measured", None, ())] * 3


def test_words_switches_layers_and_whole_numbers_have_effects_too() -> None:
    space = Space(
        spec_of(
            {
                "fused": {"values": [True, False]},
                "batch_size": {"values": [32, 64]},
                "dropout": {"min": 0.0, "max": 0.5, "per_layer": True, "when": {"fused": [True]}},
                "learning_rate": {"distribution": "log_uniform_values", "min": 1e-4, "max": 5e-4},
                "patience": {
                    "min": 1,
                    "max": 9,
                },  # a condition leaves the layers of dropout out of every second trial
            }
        )
    )
    random, rows = np.random.default_rng(1), []
    for number in range(80):
        fused = bool(random.integers(2))
        parameters = {
            **{"fused": fused, "batch_size": int(random.choice([32, 64]))},
            **{f"dropout.{layer}": float(random.uniform(0, 0.5)) * fused for layer in (1, 2)},
            **{"learning_rate": float(random.uniform(1e-4, 5e-4)), "patience": int(random.integers(1, 10))},
        }
        found = TrialRecord(uid=f"study-{number}", config=TrialConfig(), parameters=parameters)
        value = 0.2 + 0.1 * parameters["dropout.2"] + float(random.normal(0, NOISE))
        rows.append(Row(number, "COMPLETE", value, found))
    made = effects(space, rows, "minimize", NOISE)
    assert {one.name for one in made if one.effect == "matters"} == {
        "fused",
        "dropout.2",
    }  # one lets the other
    assert {point.value for one in made if one.name == "fused" for point in one.points} == {"True", "False"}


def test_noise_is_what_candidate_and_replicate_do_not_explain() -> None:
    random = np.random.default_rng(3)
    values = random.normal(size=(3, 1)) + random.normal(size=(1, 5)) + random.normal(0, 0.1, size=(3, 5))
    centred = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    replicates = [
        Replicate(f"t{row}", "both", column, kept_with({METRIC: float(values[row, column])}))
        for row in range(3)
        for column in range(5)
    ]
    expected = math.sqrt(float((centred**2).sum()) / (2 * 4))  # a two-way layout has (r - 1)(c - 1) left
    assert replicate_noise(replicates, METRIC) == pytest.approx(expected)
    assert replicate_noise(replicates[:5], METRIC) == pytest.approx(values[0].std(ddof=1))
    assert replicate_noise(replicates[:3], METRIC) is None


def kept_with(figures: Mapping[str, float], epoch: int = 4) -> TrialRecord:
    kept = Kept(epoch, figures, 0.1, 0.97, 0.05, 0.1, 12.0)
    return TrialRecord(uid="study-0", config=TrialConfig(), parameters={}, kept=kept, end_reason="max_epochs")


def size_point(images: int, train: float, validation: float, accuracy: float = 0.999) -> SizePoint:
    return SizePoint(
        images=images,
        trainings=2,
        train_cross_entropy=train,
        val_cross_entropy=validation,
        train_accuracy=accuracy,
        val_accuracy=0.95,
        error=0.002,
    )


@pytest.mark.parametrize(
    ("before", "last", "without", "verdict", "because"),
    [
        (
            (0.02, 0.30),
            (0.02, 0.20),
            None,
            "overfitting",
            "90 % of it is gap; twice the images lowered validation",
        ),
        ((0.02, 0.20), (0.02, 0.20), None, "overfitting", "twice the images did not lower validation"),
        ((0.15, 0.21), (0.14, 0.20), None, "neither", "30 % of it is gap"),
        ((0.40, 0.43), (0.40, 0.42, 0.88), None, "underfitting", "12.0 % of the training images are wrong"),
        ((0.02, 0.03), (0.019, 0.02), None, "neither", "without a gap to speak of"),
        (
            (0.26, 0.27),
            (0.25, 0.26),
            0.24,
            "underfitting",
            "0.2400 without any technique: they are too strong",
        ),
        ((2.30, 2.31), (2.29, 2.30, 0.12), None, "underfitting", "guessing among 10 classes has 2.3026"),
    ],
)
def test_a_learning_curve_says_over_or_underfitting_and_why(
    before: tuple[float, ...], last: tuple[float, ...], without: float | None, verdict: str, because: str
) -> None:
    fit = fit_of([size_point(1600, *before), size_point(3200, *last)], 10, without)
    assert (fit.verdict, because in fit.reason) == (verdict, True), fit.reason


def test_errors_are_the_most_frequent_and_the_surest_with_a_calibration_diagram() -> None:
    labels = np.array([0, 1, 1, 1, 2], dtype=np.int32)
    probabilities = np.array(
        [[0.9, 0.1, 0], [0.95, 0.05, 0], [0.58, 0.42, 0], [0.1, 0.7, 0.2], [0, 0.55, 0.45]], dtype=np.float32
    )
    images = np.arange(8 * 784, dtype=np.int64).astype(np.uint8).reshape(8, 784)
    errors = errors_of(probabilities, labels, np.array([7, 3, 4, 0, 1]), images)
    assert (errors.wrong, errors.accuracy, errors.indices) == (3, 0.4, (1, 2, 4))
    assert [(one.true, one.predicted, one.count) for one in errors.confusions] == [(1, 0, 2), (2, 1, 1)]
    assert [(one.index, one.image, one.probability) for one in errors.mistakes] == [
        *((1, 3, 0.95), (2, 4, 0.58), (4, 1, 0.55))
    ]
    assert [one.count for one in errors.reliability] == [2, 1, 1, 1]  # (8/15, 9/15], ..., (14/15, 1]
    assert errors.ece == pytest.approx(
        (abs(0.58 + 0.55 - 0) + abs(0.7 - 1) + abs(0.9 - 1) + 0.95) / 5, abs=1e-6
    )
    assert errors.reading.startswith("overconfident: its mean confidence is 73.6 %, its accuracy 40.0 %")


def bought(key: str, **differences: tuple[float, float]) -> Judged:
    """A candidate whose differences to no technique are mean and half width."""
    estimates = {name: Estimate(mean=mean, half_width=width) for name, (mean, width) in differences.items()}
    return judged(key).model_copy(update={"bought": estimates})


def test_a_sentence_holds_only_where_the_interval_says_so() -> None:
    of = decision(
        bought("c-l1", prunable=(0.21, 0.08), sparsity=(0.3, 0.1)),
        bought("c-dropout", generalization_gap=(-0.04, 0.05)),
        bought("c-batchnorm_before", generalization_gap=(0.04, 0.01)),
        bought("c-early_stopping", generalization_gap=(-0.04, 0.01)),
        bought("t9", generalization_gap=(-0.07, 0.02)),
        judged("c-none"),
        chosen="t9",
    )
    found = {one.text: one for one in sentences("mnist", of, None)}
    assert {text: one.holds for text, one in found.items()} == {
        L1: "holds here",
        L2: "not measured",  # the decision has no such control
        DROPOUT: "does not hold here",  # the interval contains 0
        BATCHNORM: "does not hold here",  # it lies on the other side
        STOPPING: "holds here",
        GAP: "holds here",
    }
    assert "+21.0 ± 8.0 points against no technique" in found[L1].figures
    assert "−0.040 ± 0.050 against no technique" in found[DROPOUT].figures
    beyond = {"generalization_gap": Estimate(mean=-0.01, half_width=0.02)}
    dropout = bought("c-dropout", generalization_gap=(-0.07, 0.02)).model_copy(update={"beyond": beyond})
    by_name = {
        one.text: one for one in sentences("mnist", decision(dropout, judged("c-none"), chosen="t9"), None)
    }
    assert by_name[DROPOUT].holds == "does not hold here"  # early stopping alone does as much
    assert "−0.010 ± 0.020 against early stopping alone" in by_name[DROPOUT].figures
    undecided = sentences("my study", None, None)
    assert {one.holds for one in undecided} == {"not measured"}
    assert all("regtune decide 'my study'" in one.figures for one in undecided)


CONFIG = TrialConfig(
    regularization=RegularizationConfig(dropout=(0.133,), l1=(3e-6,)),
    training=TrainingConfig(max_epochs=20),
    data=DataConfig(name="mnist-5k"),
)


def test_strengths_span_what_is_searched_with_the_choice_among_them() -> None:
    dropout = strengths_of("dropout", CONFIG, SPACE.spec.searched["dropout"], 5, 8)
    assert (dropout.values, dropout.choice, dropout.log) == ((0.0, 0.133, 0.3, 0.45, 0.6), 0.133, False)
    penalty = strengths_of("l1", CONFIG, SPACE.spec.searched["l1"], 6, 8)
    assert penalty.values == (0.0, 1e-7, 3e-6, 1e-5, 1e-4, 1e-3)
    assert strengths_of("l2", CONFIG, None, 6, 8).values == (0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)
    epochs = strengths_of("epochs", CONFIG, None, 5, 8)
    assert (epochs.values, epochs.choice) == ((1, 2, 4, 8, 20), 8)
    trained = epochs.config(CONFIG, 4)
    assert (trained.training.max_epochs, trained.early_stopping) == (4, None)
    assert dropout.config(CONFIG, 0.3).regularization.dropout == (0.3, 0.3)


def test_a_round_shares_seed_and_sample_over_the_strengths() -> None:
    strengths = strengths_of("dropout", CONFIG, None, 3, 8)
    jobs = jobs_of(strengths, CONFIG, 100, 2)
    drawn = [(job.config.seed, job.sample and job.sample.bootstrap) for job in jobs]
    assert len(set(drawn)) == 2
    assert drawn[:3] == [drawn[0]] * 3


def test_the_curve_has_its_minimum_and_the_choice_and_counts_whole_rounds() -> None:
    strengths = strengths_of("dropout", CONFIG, None, 3, 8)
    labels = np.array([0, 1, 1, 0], dtype=np.int32)
    random = np.random.default_rng(0)

    def trained(certainty: float, spread: float) -> Trained:
        right = np.clip(certainty + random.normal(0, spread, size=4), 0, 1)
        predictions = np.stack([1 - right, right], axis=1)
        predictions[labels == 0] = predictions[labels == 0][:, ::-1]
        return Trained(kept_with({METRIC: 0.2}), predictions.astype(np.float32))

    shapes = {0.0: (0.7, 0.2), 0.133: (0.72, 0.01), 0.6: (0.55, 0.01)}
    every = {(turn, value): trained(*shape) for turn in range(4) for value, shape in shapes.items()}
    del every[3, 0.6]
    curve = curve_of(strengths, every, labels, images=100, of=200, why="as asked for")
    assert curve is not None
    assert [point.trainings for point in curve.points] == [3, 3, 3]
    assert (curve.brier_minimum, curve.choice, curve.excess) == (0.133, 0.133, None)
    for point in curve.points:
        assert point.loss == pytest.approx(point.bias + point.variance)
        assert point.brier == pytest.approx(point.brier_bias + point.brier_variance)
    assert curve.points[0].brier_variance > 0.01 > curve.points[2].brier_variance
    assert curve.points[2].brier_bias > curve.points[1].brier_bias
    assert curve.reading.endswith("the Brier score is least at 0.133; which is the choice")
    chose_none = replace(strengths, choice=0.6)
    other = curve_of(chose_none, every, labels, images=100, of=200, why="")
    assert other is not None
    assert other.excess is not None
    assert other.excess.low is not None
    assert other.excess.low > 0
    assert "cannot be told apart" not in other.reading
    one_round = {key: one for key, one in every.items() if key[0] == 0}
    assert curve_of(strengths, one_round, labels, images=100, of=200, why="") is None


class Predicting(MadeUp):
    """Made-up trainings with made-up predictions: the right class with 0.9, in one image of ten the next one."""

    def __init__(self, labels: Any, **more: Any) -> None:
        super().__init__(**more)
        wrong = np.where(np.arange(len(labels)) % 10 == 0, (labels + 1) % 10, labels)
        self._predictions = (np.eye(10)[wrong] * 0.89 + 0.011).astype(np.float32)

    def _end(self, task: Task, end: str) -> None:
        super()._end(task, end)
        event = self._events.pop()
        if isinstance(event, TrialEnded) and task.predictions:
            event = replace(event, predictions=self._predictions)
        self._events.append(event)


@pytest.fixture
def settings() -> Settings:
    return load_settings(home=Path("mlruns"))


def a_study(settings: Settings, *floors: float, data: DataConfig | None = None) -> str:
    study = create(settings.home / "studies.db", "digits", spec=SPACE.spec.identity() | {"name": "digits"})
    for number, floor in enumerate(floors):
        found = record(number, {"dropout": 0.1, "l1": 0.0, "batchnorm": "none"}, floor=floor)
        if data is not None:
            found = replace(found, config=found.config.model_copy(update={"data": data}))
        add(study, found, TrialState.COMPLETE)
    return "digits"


def test_a_diagnosis_is_kept_with_its_study_and_drawn_in_80_columns(settings: Settings) -> None:
    data = DataConfig(name="mnist-5k")
    name, labels = a_study(settings, 0.09, 0.08, data=data), load_data(data).y_val
    said: list[str] = []
    made = diagnose(
        name,
        settings=settings,
        along="dropout",
        quick=True,
        executor=Predicting(labels),
        on_progress=said.append,
    )
    engine = open_engine(sqlite_url((settings.home / "studies.db").resolve()))
    assert read_diagnosis(engine, name) == made
    assert (made.subject.name, made.trainings, made.missing) == ("trial 1", 30, {})
    assert "regtune decide digits" in made.subject.why
    assert made.errors is not None
    assert made.errors.wrong == 80
    assert said[-1] == "bias and variance along dropout: 20 of 20 trainings"
    text = made.model_dump_json()
    assert len(text) < 100_000
    validate(json.loads(text), Diagnosis.model_json_schema(mode="serialization"))
    out = Console(width=80, record=True, file=StringIO(), highlight=False)
    out.print(diagnosis_view(made, 80))
    drawn = out.export_text()
    for part in (
        "over- or underfitting",
        "Brier score by dropout",
        "taken for 1",
        "confidence",
        "not measured",
    ):
        assert part in drawn
    assert "…" not in drawn
    with hold(settings, name):
        again = diagnose(name, settings=settings, along="l2", quick=True, executor=Predicting(labels))
    assert again.notes[-1].startswith('not stored: study "digits" is being run by')
    assert read_diagnosis(engine, name) == made


def test_what_cannot_be_diagnosed_is_said_in_one_line(settings: Settings) -> None:
    name = a_study(settings, 0.09)
    with pytest.raises(InputError, match="--along colour: expected dropout, l1, l2 or epochs"):
        diagnose(name, settings=settings, along="colour")
    with pytest.raises(DataError, match="expected the same data"):
        diagnose(name, settings=settings, quick=True)
    create(settings.home / "studies.db", "empty")
    with pytest.raises(StudyNotFound, match="has no complete trial"):
        diagnose("empty", settings=settings)
    short = CONFIG.model_copy(update={"training": TrainingConfig(max_epochs=2)})
    Best(short, None).write(Path("best.yaml"))
    with pytest.raises(InputError, match="the configuration trains for 2"):
        diagnose("best.yaml", settings=settings, along="epochs")


def test_when_time_is_short_a_training_ends_without_a_result_and_none_is_begun() -> None:
    jobs = jobs_of(strengths_of("l1", CONFIG, None, 3, 8), CONFIG, 9, 2)
    slow = Predicting(np.array([0, 1]), fate=lambda task, epoch: time.sleep(0.2))
    (ended,) = train_all(slow, jobs, seconds=0.1).values()
    assert (ended.record.epochs, ended.record.end_reason) == (1, "stopped")
    assert (ended.complete, ended.predictions) == (False, None)
    assert len(slow.submitted) == 1


@pytest.mark.slow
def test_a_quick_diagnosis_of_a_file_measures_what_needs_no_study() -> None:
    config = CONFIG.model_copy(
        update={
            "model": CONFIG.model.model_copy(update={"hidden": (16,)}),
            "regularization": RegularizationConfig(dropout=(0.1,)),
            "training": TrainingConfig(max_epochs=4),
            "early_stopping": EarlyStoppingConfig(patience=1),
        }
    )
    Best(config, None).write(Path("best.yaml"))
    ran = CliRunner().invoke(app, ["diagnose", "best.yaml", "--quick", "--json", "--workers", "1"])
    assert ran.exit_code == 0, ran.output
    made = Diagnosis.model_validate_json(ran.stdout)
    assert made.missing == {"parameters": "needs a study: regtune diagnose STUDY"}
    assert made.fit is not None
    assert made.errors is not None
    assert made.bias_variance is not None
    assert [point.images for point in made.fit.points] == [200, 400, 800, 1600, 3200]
    assert made.fit.points[0].val_cross_entropy > made.fit.points[-1].val_cross_entropy
    curve = made.bias_variance
    assert (curve.along, curve.why) == ("epochs", "no dropout, L1 or L2 is searched")
    assert curve.points[0].brier_bias > curve.points[-1].brier_bias  # it learns
    assert all(point.brier_variance > 0 for point in curve.points)
    assert made.errors.accuracy == pytest.approx(1 - made.errors.wrong / 800)
