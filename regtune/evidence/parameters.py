"""What a search tells about each of its parameters: importance, and the metric along it beside the replicates' noise.

Both rest on the complete trials alone, and say nothing about cause: a search tries more where it does well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, create_trial

from regtune.config.sweepfile.parameters import Range
from regtune.config.trial import format_number
from regtune.evidence.diagnosis import MetricPoint, ParameterEffect
from regtune.search import Space
from regtune.search.columns import Column, Value
from regtune.study.decision import Replicate
from regtune.study.progress import Row

FEWEST = 12
"""Complete trials below which nothing is said about parameters."""
MOST_BINS, FEWEST_IN_BIN = 6, 4
RESAMPLES = 200
ALPHA = 0.05
Goal = Literal["minimize", "maximize"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A share from 0 to 1 and its 95 % interval."""

    share: float
    low: float
    high: float


def effects(
    space: Space, rows: Sequence[Row], goal: Goal, noise: float | None
) -> tuple[ParameterEffect, ...]:
    """What `rows` tell about each searched parameter, the most important first.

    noise: standard deviation of one training's metric, None where it was not measured.
    """
    trials = complete(space, rows)
    if len(trials) < FEWEST:
        few = f"{len(trials)} complete trials tell nothing; at least {FEWEST} are needed"
        nothing = [_effect(column, None, reading=few) for column in space.columns]
        return tuple(nothing)
    shares = importances(space.columns, trials, goal)
    curves = curves_of(space.columns, trials, noise)
    found = [
        _with_curve(column, shares.get(column.name), curves.get(column.name), goal, noise)
        for column in space.columns
    ]
    return tuple(sorted(found, key=lambda one: -(one.importance or 0.0)))


def complete(space: Space, rows: Sequence[Row]) -> list[Row]:
    """The complete trials that have a value for every searched parameter, controls outside the space left out."""
    names = set(space.names)
    return [
        row for row in rows if row.state == "COMPLETE" and names <= row.parameters.keys() and _finite(row)
    ]


def _finite(row: Row) -> bool:
    return row.value is not None and math.isfinite(row.value)


def replicate_noise(replicates: Sequence[Replicate], metric: str) -> float | None:
    """The standard deviation of one training's metric: what is left of the replicates without candidate and replicate.

    A two-way layout without interaction, by least squares; None with fewer than three degrees of freedom.
    """
    kept = [(one, one.record.kept.figures[metric]) for one in replicates if one.record.kept]
    if not kept:
        return None
    values = np.array([value for _, value in kept])
    design = [_indicators([one.candidate for one, _ in kept])]
    if len({one.candidate for one, _ in kept}) > 1:
        design.append(_indicators([f"{one.vary} {one.index}" for one, _ in kept]))
    matrix = np.hstack(design)
    free = len(values) - int(np.linalg.matrix_rank(matrix))
    if free < 3:
        return None
    residuals = values - matrix @ np.linalg.lstsq(matrix, values)[0]
    return float(math.sqrt(residuals @ residuals / free))


def _indicators(labels: Sequence[Any]) -> Floats:
    """One column of 0 and 1 for each label; None is none."""
    columns = [one for one in dict.fromkeys(labels) if one is not None]
    return np.array([[float(label == one) for one in columns] for label in labels])


def importances(columns: Sequence[Column], rows: Sequence[Row], goal: Goal) -> dict[str, Interval]:
    """Shares of the parameters in reaching the best tenth (PED-ANOVA, Watanabe et al. 2023), with intervals.

    The interval has the middle 95 % of the shares over bootstrap samples of the trials (Efron 1979). A parameter that
    is off counts as one more value, a quarter of its range below the smallest. Trials that are all equally good have
    no best tenth, and no importances.
    """
    if len({row.value for row in rows}) == 1:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    axes = {column.name: _axis(column, [row.parameters[column.name] for row in rows]) for column in columns}
    distributions = {name: axis[0] for name, axis in axes.items()}
    trials = [
        create_trial(
            value=row.value,
            params={name: axis[1](row.parameters[name]) for name, axis in axes.items()},
            distributions=distributions,
        )
        for row in rows
    ]
    random = np.random.default_rng(0)
    drawn = [
        _shares([trials[i] for i in random.integers(len(trials), size=len(trials))], goal)
        for _ in range(RESAMPLES)
    ]
    found = {}
    for name, share in _shares(trials, goal).items():
        low, high = np.quantile([one.get(name, 0.0) for one in drawn], (0.025, 0.975))
        found[name] = Interval(share, min(float(low), share), max(float(high), share))
    return found


def _shares(trials: Sequence[FrozenTrial], goal: Goal) -> dict[str, float]:
    study = optuna.create_study(direction=goal)
    study.add_trials(trials)
    return {
        name: float(share)
        for name, share in get_param_importances(study, evaluator=PedAnovaImportanceEvaluator()).items()
    }


def _axis(column: Column, values: Sequence[Any]) -> tuple[BaseDistribution, Callable[[Any], Any]]:
    """The distribution of what a column shows, off among it, and how a shown value is written there."""
    parameter = column.parameter
    if not isinstance(parameter, Range):
        choices = tuple(dict.fromkeys((*(column.choices or ()), *values)))
        return CategoricalDistribution(choices), lambda value: value
    ends = [float(parameter.min), float(parameter.max)]
    if parameter.log:
        ends = [math.log10(end) for end in ends]
    below = ends[0] - (ends[1] - ends[0]) / 4

    def write(value: float) -> float:
        if not parameter.log:
            return float(value)
        return math.log10(value) if value > 0 else below

    ends += map(write, values)
    return FloatDistribution(min(ends), max(ends)), write


@dataclass(frozen=True)
class Curve:
    """The metric along a parameter. spread: half the range that equal bins would have by chance."""

    points: tuple[MetricPoint, ...]
    spread: float


def curves_of(columns: Sequence[Column], rows: Sequence[Row], noise: float | None) -> dict[str, Curve]:
    """The metric along each parameter, in bins of equally many trials, adjusted for all other parameters.

    The bins' effects add up (a main-effects layout), fitted by Huber's M-estimator (Huber 1981), which a few trials far
    off do not move. Two bins differ by chance up to a t interval at 5 % over all pairs of bins and all parameters
    (Bonferroni); one trial's noise is that of the fit, and never less than that of a replicate. Trials in which a
    condition leaves a parameter out say nothing of it. Empty where the trials are too few or too alike.
    """
    from scipy.special import stdtrit

    values = np.array([row.value for row in rows], dtype=float)
    labels: dict[str, list[Value | None]] = {}
    size = 0
    for most in range(MOST_BINS, 1, -1):
        labels = {column.name: _bins(column, rows, most) for column in columns}
        labels = {name: bins for name, bins in labels.items() if len({*bins} - {None}) > 1}
        size = 1 + sum(len({*bins} - {None}) - 1 for bins in labels.values())
        if len(values) >= 2 * size:
            break
    free = len(values) - size
    if not labels or free < 3:
        return {}
    blocks = {name: _indicators(bins)[:, 1:] for name, bins in labels.items()}
    applying = {name: np.array([label is not None for label in labels[name]]) for name in blocks}
    centred = [
        block - np.outer(applying[name], block[applying[name]].mean(axis=0)) for name, block in blocks.items()
    ]
    design = np.hstack([np.ones((len(values), 1)), *centred])
    if np.linalg.matrix_rank(design) < size:
        return {}
    fitted, scale = _fit(design, values)
    deviation = max(scale, noise or 0.0)
    covariance = np.linalg.inv(design.T @ design) * deviation**2
    found, start = {}, 1
    for name, block in blocks.items():
        own = slice(start, start := start + block.shape[1])
        effects = np.concatenate([[0.0], fitted[own]])
        level = float(np.mean((design @ fitted - block @ fitted[own])[applying[name]]))
        order = [label for label in dict.fromkeys(labels[name]) if label is not None]
        points = [
            MetricPoint(value=_plain(label), count=labels[name].count(label), metric=level + float(effect))
            for label, effect in zip(order, effects, strict=True)
        ]
        between = np.zeros(block.shape[1] + 1)
        between[[int(effects.argmin()), int(effects.argmax())]] = -1, 1
        error = math.sqrt(max(0.0, float(between[1:] @ covariance[own, own] @ between[1:])))
        comparisons = len(blocks) * math.comb(len(order), 2)
        critical = float(stdtrit(free, 1 - ALPHA / comparisons / 2))
        column = next(one for one in columns if one.name == name)
        found[name] = Curve(tuple(_in_order(column, points)), critical * error / 2)
    return found


def _fit(design: Floats, values: Floats) -> tuple[Floats, float]:
    """Coefficients and scale of a robust fit, the scale for the degrees of freedom that are left."""
    if np.ptp(values) == 0:
        return np.concatenate([values[:1], np.zeros(design.shape[1] - 1)]), 0.0
    from statsmodels.robust.robust_linear_model import RLM

    result = RLM(values, design).fit()
    free = len(values) - design.shape[1]
    return np.asarray(result.params), float(result.scale) * math.sqrt(len(values) / free)


def _bins(column: Column, rows: Sequence[Row], most: int) -> list[Value | None]:
    """The bin of each row, by the value of its middle trial, None where a condition leaves the parameter out.

    A word, one of few values, and off are bins of their own.
    """
    values = [row.parameters[column.name] if column.active(row.parameters) else None for row in rows]
    if not isinstance(column.parameter, Range):
        return values
    on = sorted(float(value) for value in values if value is not None and not column.is_off(value))
    bins = min(most, max(1, len(on) // FEWEST_IN_BIN))
    if len(set(on)) <= bins:
        return values
    parts = np.array_split(np.array(on), bins)
    middles = [float(part[len(part) // 2]) for part in parts]
    ends = np.array([part[-1] for part in parts])

    def bin_of(value: Value | None) -> Value | None:
        if value is None or column.is_off(value):
            return value
        return middles[int(np.searchsorted(ends, float(value)))]

    return [bin_of(value) for value in values]


def _plain(value: Value) -> float | str:
    return str(value) if isinstance(value, bool | str) else float(value)


def _in_order(column: Column, points: Sequence[MetricPoint]) -> list[MetricPoint]:
    """In the order of the values, words as the sweep file has them."""
    words = [str(choice) for choice in column.choices or ()]
    if any(isinstance(one.value, str) for one in points):
        return sorted(points, key=lambda one: words.index(str(one.value)))
    return sorted(points, key=lambda one: float(one.value))


def _effect(column: Column, interval: Interval | None, **facts: Any) -> ParameterEffect:
    log = isinstance(column.parameter, Range) and column.parameter.log
    shares = (interval.share, interval.low, interval.high) if interval else (None, None, None)
    importance = dict(zip(("importance", "low", "high"), shares, strict=True))
    return ParameterEffect(name=column.name, log=log, **{"effect": "not_measured", **importance, **facts})


def _with_curve(
    column: Column, interval: Interval | None, curve: Curve | None, goal: Goal, noise: float | None
) -> ParameterEffect:
    if curve is None:
        return _effect(column, interval, reading="the trials are too few, or too alike, for its curve")
    sign = -1 if goal == "maximize" else 1
    ordered = sorted(curve.points, key=lambda one: sign * one.metric)
    best, worst = ordered[0], ordered[-1]
    height = abs(worst.metric - best.metric)
    drawn: Mapping[str, Any] = {"points": curve.points, "best": best.value}
    ends = f"{height:.4f} between {_text(column, best.value)} (best) and {_text(column, worst.value)}"
    if noise is None:
        return _effect(column, interval, **drawn, reading=f"{ends}; noise not measured")
    flat = height <= 2 * curve.spread
    reading = (
        f"flat: {height:.4f} between its bins, and {2 * curve.spread:.4f} can be chance"
        if flat
        else f"matters: {ends}; {2 * curve.spread:.4f} can be chance"
    )
    return _effect(
        column,
        interval,
        **drawn,
        level=(best.metric + worst.metric) / 2,
        noise=curve.spread,
        effect="flat" if flat else "matters",
        reading=reading,
    )


def _text(column: Column, value: Value) -> str:
    if column.is_off(value):
        return "off"
    return format_number(value) if isinstance(value, float) else str(value)


def most_important(found: Sequence[ParameterEffect], names: Sequence[str]) -> tuple[str, float] | None:
    """The name among `names` with the greatest importance, and that; layers of one technique count together."""
    shares = dict.fromkeys(names, 0.0)
    searched = set[str]()
    for one in found:
        name = one.name.partition(".")[0]
        if name in shares:
            searched.add(name)
            shares[name] += one.importance or 0.0
    if not searched:
        return None
    best = max((name for name in names if name in searched), key=shares.__getitem__)
    return best, shares[best]
