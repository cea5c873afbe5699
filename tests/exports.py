"""Exports made by hand, for the tests of the report: a study with its decision, replicates and diagnosis."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import studies
from decisions import decision
from sqlalchemy import Engine

from regtune.evidence.diagnosis import (
    BiasPoint,
    BiasVariance,
    Confusion,
    Diagnosis,
    Errors,
    Fit,
    MetricPoint,
    Mistake,
    ParameterEffect,
    ReliabilityBin,
    Sentence,
    SizePoint,
    Subject,
)
from regtune.settings import sqlite_url
from regtune.storage import open_engine
from regtune.study import record as stored
from regtune.study.decision import Decision, Estimate, Replicate, replicate_uid

STUDY = "mnist-regularization"
SPACE: Mapping[str, Any] = {
    "dropout": {"min": 0.0, "max": 0.6},
    "l1": {"distribution": "log_uniform_values", "min": 1e-7, "max": 1e-3, "optional": True},
    "batchnorm": {"values": ["none", "before_activation", "after_activation"]},
}
REPLICATES = 4


def study_at(home: Path, *, name: str = STUDY, decided: bool = True, description: str = "") -> Engine:
    """A study's database with trials, and a decision, its replicates and a diagnosis if it is `decided`."""
    metric = {"name": studies.METRIC, "goal": "minimize"}
    spec = {"name": name, "description": description, "metric": metric, "method": "tpe", "parameters": SPACE}
    study = studies.create(home / "studies.db", name, spec={**spec, "early_terminate": {"type": "median"}})
    studies.fill(study, [0.081, 0.0742, 0.0768, 0.0791, 0.0755])
    if decided:
        uid = study.user_attrs[stored.STUDY_UID]
        made = decision(study=name, uid=uid)
        study.set_user_attr(stored.DECISION, made.model_dump_json())
        study.set_user_attr(stored.DIAGNOSIS, diagnosis(made).model_dump_json())
        for place, one in enumerate(made.candidates):
            for index in range(REPLICATES):
                found = studies.record(place, {}, floor=0.08 + 0.01 * place + 0.003 * index)
                uid_of_run = replicate_uid(uid, "both", one.candidate.key, index)
                found = replace(found, uid=uid_of_run, config=one.candidate.config)
                replicate = Replicate(one.candidate.key, "both", index, found)
                study.set_user_attr(replicate.attribute, found.to_json())
    return open_engine(sqlite_url((home / "studies.db").resolve()))


def diagnosis(made: Decision) -> Diagnosis:
    """A diagnosis with every part."""
    chosen = made.judged(made.chosen)
    assert chosen is not None
    config = chosen.candidate.config
    points = [
        BiasPoint(
            value=value,
            trainings=12,
            loss=0.05 + (value - 0.3) ** 2,
            bias=0.04 + value**2 / 4,
            variance=0.03 * math.exp(-4 * value),
            loss_error=0.002,
            brier=0.08 + (value - 0.3) ** 2,
            brier_bias=0.06 + value**2 / 4,
            brier_variance=0.04 * math.exp(-4 * value),
            epochs=9.5,
        )
        for value in (0.0, 0.15, 0.3, 0.5)
    ]
    sizes = [
        SizePoint(
            images=images,
            trainings=3,
            train_cross_entropy=0.01,
            val_cross_entropy=20 / images,
            train_accuracy=0.99,
            val_accuracy=0.9,
            error=1 / images,
        )
        for images in (100, 400, 3200)
    ]
    effects = (
        ParameterEffect(
            name="dropout",
            log=False,
            importance=0.6,
            low=0.3,
            high=0.8,
            points=tuple(MetricPoint(value=v, count=3, metric=0.08 + v / 50) for v in (0.1, 0.2, 0.4)),
            level=0.085,
            noise=0.002,
            effect="matters",
            best=0.1,
            reading="dropout matters: 0.1 is best",
        ),
        ParameterEffect(
            name="l1",
            log=True,
            importance=0.1,
            low=0.0,
            high=0.2,
            points=tuple(MetricPoint(value=v, count=2, metric=0.082) for v in (0.0, 1e-6, 1e-4)),
            level=0.085,
            noise=0.006,
            effect="flat",
            reading="l1 is flat",
        ),
        ParameterEffect(
            name="batchnorm",
            log=False,
            points=(MetricPoint(value="none", count=2, metric=0.09),),
            effect="not_measured",
            reading="too few trials",
        ),
    )
    errors = Errors(
        images=800,
        wrong=42,
        accuracy=0.9475,
        confusions=(Confusion(true=4, predicted=9, count=6), Confusion(true=7, predicted=2, count=3)),
        mistakes=(
            Mistake(
                index=3,
                image=17,
                true=4,
                predicted=9,
                probability=0.98,
                pixels=base64.b64encode(bytes(i % 256 for i in range(784))).decode(),
            ),
        ),
        indices=(3,),
        reliability=(
            ReliabilityBin(count=20, confidence=0.6, accuracy=0.5),
            ReliabilityBin(count=780, confidence=0.98, accuracy=0.97),
        ),
        ece=0.012,
        brier=0.08,
        reading="42 of 800 images are wrong",
    )
    return Diagnosis(
        study=made.study,
        uid=made.uid,
        metric=made.metric,
        goal=made.goal,
        subject=Subject(
            name=chosen.candidate.name, mix=config.mix, why="the decision chose it", config=config
        ),
        quick=True,
        bias_variance=BiasVariance(
            along="dropout",
            why="it matters most",
            log=False,
            images=3200,
            of=3200,
            points=tuple(points),
            minimum=0.3,
            brier_minimum=0.3,
            choice=0.15,
            excess=Estimate(mean=0.002, half_width=0.003),
            reading="variance falls with dropout",
        ),
        fit=Fit(verdict="overfitting", reason="the gap is wide", points=tuple(sizes)),
        parameters=effects,
        errors=errors,
        sentences=(
            Sentence(text="L1 makes weights sparse", holds="does not hold here", figures="none is zero"),
            Sentence(text="L2 keeps weights small", holds="not measured", figures=""),
        ),
        complete=7,
        trainings=60,
        epochs=500,
        seconds=42.0,
        measured="2026-01-01T00:00:00+00:00",
    )
