"""A study of any size, as a sweep of sweeps/mnist.yaml would have left it, made in seconds.

    python benchmarks/big_study.py [--trials 10000] [--storage URL] [--name NAME] [--home FOLDER]

Each trial is made as Optuna's FrozenTrial with regtune's TrialRecord, then all are inserted into Optuna's own tables in
bulk, row for row what `Study.add_trial` writes (a test compares them). What a network would have been like is a smooth
function of its parameters, and luck.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from regtune.config.sweepfile import SweepSpec
from regtune.config.trial import DataConfig
from regtune.search import Space, controls, halving
from regtune.settings import Settings, load_settings
from regtune.storage.schema import STUDIES
from regtune.study.record import DATA, ORIGIN, RECORD, Kept, Origin, TrialRecord
from regtune.study.study import Study, derive_seed

SWEEP = Path(__file__).resolve().parent.parent / "sweeps" / "mnist.yaml"
RUNGS = (2, 6, 18)
EPOCH_SECONDS = 0.8
STARTED = datetime(2025, 1, 1)
FACTS = {
    **{"name": "mnist", "source": "mnist.npz", "digest": "ab" * 32, "split_seed": 42},
    **{"train": 48_000, "validation": 12_000, "features": 784, "classes": 10},
}
_CHUNK = 1000


def make_study(
    settings: Settings, spec: SweepSpec, trials: int, seed: int = 1, *, unfinished: bool = True
) -> Study:
    """A new study of `spec` with so many trials. unfinished: the last of them wait or run."""
    study = Study.open(settings, spec)
    study.set_attribute(DATA, FACTS)
    found = list(frozen_trials(spec, study.name, study.uid, trials, seed, unfinished=unfinished))
    engine = STUDIES.engine(settings.storage_url)
    with engine.begin() as connection:
        insert(connection, study.name, found)
    engine.dispose()
    return Study.open(settings, spec)


def insert(connection: sqlalchemy.Connection, name: str, trials: Sequence[FrozenTrial]) -> None:
    """Insert trials, numbered from 0, into the empty study of this name."""
    studies, table = _table(models.StudyModel), _table(models.TrialModel)
    study = connection.execute(sqlalchemy.select(studies.c.study_id).where(studies.c.study_name == name))
    study_id = study.scalar_one()
    connection.execute(sqlalchemy.insert(table), [_trial(study_id, trial) for trial in trials])
    select = sqlalchemy.select(table.c.number, table.c.trial_id)
    ids = {row.number: row.trial_id for row in connection.execute(select.where(table.c.study_id == study_id))}
    for start in range(0, len(trials), _CHUNK):
        _insert_rest(connection, trials[start : start + _CHUNK], ids)


def _insert_rest(
    connection: sqlalchemy.Connection, trials: Sequence[FrozenTrial], ids: Mapping[int, int]
) -> None:
    rows: dict[Any, list[dict[str, Any]]] = {
        model: []
        for model in (
            models.TrialValueModel,
            models.TrialParamModel,
            models.TrialUserAttributeModel,
            models.TrialSystemAttributeModel,
            models.TrialIntermediateValueModel,
        )
    }
    for trial in trials:
        key = {"trial_id": ids[trial.number]}
        if trial.value is not None:
            value, kind = models.TrialValueModel.value_to_stored_repr(trial.value)
            rows[models.TrialValueModel].append({**key, "objective": 0, "value": value, "value_type": kind})
        rows[models.TrialParamModel] += [
            {
                **key,
                "param_name": name,
                "param_value": trial.distributions[name].to_internal_repr(value),
                "distribution_json": distribution_to_json(trial.distributions[name]),
            }
            for name, value in trial.params.items()
        ]
        for model, found in (
            (models.TrialUserAttributeModel, trial.user_attrs),
            (models.TrialSystemAttributeModel, trial.system_attrs),
        ):
            rows[model] += [
                {**key, "key": name, "value_json": json.dumps(value)} for name, value in found.items()
            ]
        for step, amount in trial.intermediate_values.items():
            stored, kind_ = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(amount)
            rows[models.TrialIntermediateValueModel].append(
                {**key, "step": step, "intermediate_value": stored, "intermediate_value_type": kind_}
            )
    for model, found_rows in rows.items():
        if found_rows:
            connection.execute(sqlalchemy.insert(_table(model)), found_rows)


def _table(model: Any) -> sqlalchemy.Table:
    table: sqlalchemy.Table = model.__table__
    return table


def _trial(study_id: int, trial: FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "study_id": study_id,
        "state": trial.state,
        "datetime_start": _utc(trial.datetime_start),
        "datetime_complete": _utc(trial.datetime_complete),
    }


def _utc(moment: datetime | None) -> datetime | None:
    """As Optuna stores it: UTC without a zone."""
    return None if moment is None else datetime.utcfromtimestamp(moment.timestamp())


def frozen_trials(
    spec: SweepSpec, name: str, uid: str, count: int, seed: int = 1, *, unfinished: bool = True
) -> Iterator[FrozenTrial]:
    """The controls, then what a sampler would have proposed: complete, pruned, and in a hundred three failed."""
    dice = np.random.default_rng(seed)
    space, data = Space(spec), DataConfig(name=spec.dataset, digest=FACTS["digest"])
    decided = controls(spec, data)[:count] if spec.controls else []
    for number in range(count):
        origin = None
        if number < len(decided):
            control = decided[number]
            origin = Origin("control", f"control {control.name}", control.config, control.parameters)
            params = space.to_optuna(control.parameters) if control.parameters else {}
            parameters = dict(control.parameters or {})
            config = control.config.model_copy(update={"seed": derive_seed(spec.seed, number, "training")})
        else:
            params = _drawn(space.distributions, dice)
            asked = FixedTrial(params, number)
            parameters = dict(space.suggest(asked))
            params = asked.params
            config = space.config(parameters, seed=derive_seed(spec.seed, number, "training"), data=data)
        left = count - number
        state = TrialState.WAITING if left <= 2 else TrialState.RUNNING if left <= 4 else None
        if not unfinished or count < 20:
            state = None
        record = TrialRecord(
            uid=f"{uid}-{number}",
            config=config,
            parameters=parameters,
            control=decided[number].name if origin else None,
            worker=number % 2,
        )
        yield _trained(record, number, params, space.distributions, dice, state, origin, name)


def _drawn(distributions: Mapping[str, BaseDistribution], dice: np.random.Generator) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, distribution in distributions.items():
        if isinstance(distribution, optuna.distributions.CategoricalDistribution):
            found[name] = distribution.choices[int(dice.integers(len(distribution.choices)))]
            continue
        assert isinstance(distribution, optuna.distributions.FloatDistribution)
        low, high = distribution.low, distribution.high
        if distribution.log:
            found[name] = math.exp(dice.uniform(math.log(low), math.log(high)))
        else:
            found[name] = float(dice.uniform(low, high))
    return found


def _floor(record: TrialRecord, dice: np.random.Generator) -> float:
    """The lowest validation cross-entropy of a network: best with some dropout, some penalty, and batch norm."""
    found = record.config.regularization
    strength = max(found.l1[0], found.l2[0] / 10, 1e-7)
    missed = 0.05 * (found.dropout[0] - 0.25) ** 2 + 0.002 * (math.log10(strength) + 5) ** 2
    return 0.066 + missed - 0.004 * (found.batchnorm[0] != "none") + 0.002 * float(dice.normal())


def _trained(
    record: TrialRecord,
    number: int,
    params: dict[str, Any],
    distributions: Mapping[str, BaseDistribution],
    dice: np.random.Generator,
    state: TrialState | None,
    origin: Origin | None,
    name: str,
) -> FrozenTrial:
    floor, epochs = _floor(record, dice), int(dice.integers(5, 13))
    luck = dice.random()
    if state is None and origin is None and luck < 0.35:
        state, epochs = TrialState.PRUNED, 2 if dice.random() < 0.5 else 6
    elif state is None and origin is None and luck < 0.38:
        state, epochs = TrialState.FAIL, 3
    elif state is TrialState.WAITING:
        epochs = 0
    elif state is TrialState.RUNNING:
        epochs = 3
    state = TrialState.COMPLETE if state is None else state  # RUNNING is 0
    begun = STARTED + timedelta(seconds=4 * number)
    begun_ms = round(begun.timestamp() * 1000)
    figures = [_figures(floor, epoch, dice) for epoch in range(1, epochs + 1)]
    for epoch, found in enumerate(figures, start=1):
        seconds = EPOCH_SECONDS * float(dice.uniform(0.9, 1.1))
        record = record.with_epoch(found, seconds, begun_ms + round(1000 * EPOCH_SECONDS * epoch))
    steps = {epoch: found["val_cross_entropy"] for epoch, found in enumerate(figures, start=1)}
    ended = begun + timedelta(seconds=EPOCH_SECONDS * (epochs + 1)) if state.is_finished() else None
    value = None
    if state is TrialState.COMPLETE:
        best = min(steps, key=lambda epoch: steps[epoch])
        value = steps[best]
        record = replace(record, kept=_kept(best, figures[best - 1], dice), end_reason="early_stopping")
        record = replace(record, artifacts={})
    elif state is TrialState.PRUNED:
        value = steps[epochs]
        record = replace(record, end_reason="pruned")
    elif state is TrialState.FAIL:
        message = f"the loss became non-finite in epoch {epochs + 1}"
        record = replace(record, end_reason="non_finite", message=message)
    if state is not TrialState.WAITING:
        record = replace(record, started_ms=begun_ms)
    if ended is not None:
        record = replace(record, ended_ms=round(ended.timestamp() * 1000))
    proposed = {"tpe:relative_params:0": json.dumps(params)} if params and origin is None else {}
    reached = [rung for rung in RUNGS if rung <= epochs and origin is None]
    system = dict(proposed)
    user: dict[str, Any] = {} if state is TrialState.WAITING else {RECORD: _plain(record)}
    if reached:
        user[halving.RUNGS] = [steps[rung] for rung in reached]
    if origin is not None:
        user[ORIGIN] = _plain_origin(origin)
        system = {"fixed_params": params}
    waits = state is TrialState.WAITING
    if waits:
        system = {"fixed_params": params}
    return FrozenTrial(
        number=number,
        state=state,
        value=value,
        datetime_start=None if waits else begun,
        datetime_complete=ended,
        params={} if waits else params,
        distributions={} if waits else {key: distributions[key] for key in params},
        user_attrs=user,
        system_attrs=system,
        intermediate_values=steps,
        trial_id=number,
    )


def _plain(record: TrialRecord) -> Any:
    return json.loads(json.dumps(record.to_json()))


def _plain_origin(origin: Origin) -> Any:
    return json.loads(json.dumps(origin.to_json()))


def _figures(floor: float, epoch: int, dice: np.random.Generator) -> dict[str, float]:
    """An epoch's figures: the validation loss falls towards its floor, then rises a little."""
    loss = 0.45 * math.exp(-epoch / 2) + 0.01
    val = (
        0.3 * math.exp(-epoch / 1.5) + floor + 0.001 * max(0, epoch - 7) + 0.0004 * abs(float(dice.normal()))
    )
    return {
        "loss": loss + 0.002,
        "accuracy": 1 - loss / 4,
        "cross_entropy": loss,
        "val_loss": val + 0.002,
        "val_accuracy": round(1 - val / 3.5, 6),
        "val_cross_entropy": val,
    }


def _kept(epoch: int, figures: Mapping[str, float], dice: np.random.Generator) -> Kept:
    return Kept(
        epoch=epoch,
        figures=dict(figures),
        train_cross_entropy=figures["cross_entropy"],
        train_accuracy=figures["accuracy"],
        generalization_gap=figures["val_cross_entropy"] - figures["cross_entropy"],
        sparsity=float(dice.integers(0, 1000)) / 1000,
        l2_norm=20 + float(dice.normal()),
    )


def main() -> None:
    """Make the study and say how long that took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument(
        "--storage", help="URL of Optuna's database; else OPTUNA_STORAGE, else a file in the home"
    )
    parser.add_argument("--home", type=Path, help="folder of databases; else REGTUNE_HOME, else mlruns")
    parser.add_argument("--name", default="big")
    arguments = parser.parse_args()
    began = time.perf_counter()
    settings = load_settings(home=arguments.home, storage=arguments.storage)
    spec = SweepSpec.load(SWEEP, [f"run_cap={arguments.trials}"], name=arguments.name)
    make_study(settings, spec, arguments.trials)
    took = time.perf_counter() - began
    print(f"{arguments.name}: {arguments.trials:,} trials in {took:.1f} s")


if __name__ == "__main__":
    main()
