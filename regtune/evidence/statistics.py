"""The statistics of a decision: which candidates beat no technique, which cannot be told apart, and how far each is.

Candidates are compared by paired differences: replicate i of every candidate has the same seed and the same split.
There is a look at them after 4, 8, 16, ... replicates; those that are beaten then get no more.

- Error over looks: look k spends alpha / (k (k + 1)), which add up to alpha however many looks there are, so that no
  largest number of replicates is planned (a union bound; Lan and DeMets 1983 has finer ones for planned looks). An
  interval at look k's level is a repeated confidence interval (Jennison and Turnbull 1989): it holds whenever
  replication stops, and for whatever reason.
- Error over candidates: against the control, Holm 1979. Against the best, Bonferroni: whichever candidate is truly the
  best, it is beaten by none of the others with probability 1 - alpha, though they are chosen by the data (Gupta 1965;
  Hsu 1984). So the tied set contains the best, and differences to a candidate chosen from it keep their level.
- Variance of a mean of J replicates: S^2 (1/J + overlap), overlap = validation images / training images where the
  split varies (Nadeau and Bengio 2003): replicates share images, and more replicates do not bring new ones. Where only
  the seed varies, overlap is 0 and what is claimed is claimed for that split.
- S^2 of a difference: the mean over all pairs of candidates, which is twice the residual variance of the two-way layout
  (candidates, replicates). Between candidates that are not the control its pairs are left out: without early stopping
  it varies several times as much as they do, and would drown what sets them apart. A noisier candidate, or a noisier
  control, would be claimed too easily with S^2: the mean over the pairs of either candidate, or the pair's own
  variance, is taken where it is larger, with the degrees of freedom of that sum of variances (Satterthwaite 1946).

Gupta, On some multiple decision (selection and ranking) rules, Technometrics 7, 1965. Holm, A simple sequentially
rejective multiple test procedure, Scandinavian Journal of Statistics 6, 1979. Hsu, Constrained simultaneous confidence
intervals for multiple comparisons with the best, Annals of Statistics 12, 1984. Jennison and Turnbull, Interim
analyses: the repeated confidence interval approach, Journal of the Royal Statistical Society B 51, 1989. Lan and
DeMets, Discrete sequential boundaries for clinical trials, Biometrika 70, 1983. Nadeau and Bengio, Inference for the
generalization error, Machine Learning 52, 2003. Satterthwaite, An approximate distribution of estimates of variance
components, Biometrics Bulletin 2, 1946.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

ALPHA = 0.05
LOOKS = tuple(4 * 2**look for look in range(9))
"""Replicates of each open candidate at look 1, 2, 3, ..."""


def spent(look: int, alpha: float = ALPHA) -> float:
    """The share of alpha that a look spends. look: from 1."""
    return alpha / (look * (look + 1))


def look_at(replicates: int) -> int:
    """The last look that so many replicates reach; 0 for fewer than 4."""
    return sum(needed <= replicates for needed in LOOKS)


@dataclass(frozen=True)
class Interval:
    """A mean and the half width of its confidence interval; None where there are too few replicates for one."""

    mean: float
    half_width: float | None

    @property
    def low(self) -> float | None:
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        return None if self.half_width is None else self.mean + self.half_width

    def within(self, bound: float) -> bool:
        """Whether the whole interval lies between -bound and bound."""
        return self.half_width is not None and abs(self.mean) + self.half_width <= bound


@dataclass(frozen=True)
class Compared:
    """What the replicates say of a candidate.

    replicates: how many count; fewer than others have where it was beaten early. estimate: of its mean; holds for this
    candidate alone. to_none: this candidate minus the control, over the replicates that both have; None for the control
    itself. They hold together for all candidates, except that that of one that is shown to be better or worse holds for
    it alone. beats_none, below_none: it is shown to be better or worse than the
    control. beaten: another candidate is shown to be better.
    """

    replicates: int
    estimate: Interval
    to_none: Interval | None
    beats_none: bool
    below_none: bool
    beaten: bool


@dataclass(frozen=True)
class Judgement:
    """What the replicates say at a look.

    look: from 1; 0 where the first is not reached, and nothing is claimed. replicates: of each open candidate, as far
    as they count. leader: the candidate with the best mean. tied: those that are not shown to be worse than another,
    the leader among them. settled: only the leader is left. practical_only: every tied candidate differs from the
    leader by less than `practical`. open: what the next look needs, the control included; empty where the question is
    settled or only practical differences are left. needed: how many replicates each of these has to have then.
    """

    look: int
    replicates: int
    leader: str | None
    candidates: Mapping[str, Compared]
    tied: tuple[str, ...]
    settled: bool
    practical_only: bool
    open: tuple[str, ...]
    needed: int
    _looks: tuple[_Look, ...] = field(repr=False, compare=False)

    @property
    def too_few(self) -> bool:
        return self.look == 0

    def differences_to(self, reference: str) -> dict[str, Interval]:
        """Every other candidate minus the reference, over the replicates that both have; empty before the first look.

        For a reference named beforehand they hold together; each holds for a reference that the data chose.
        """
        return _differences(self._looks, reference)


@dataclass(frozen=True)
class _Look:
    """The comparisons at one look, all pairs. Arrays `(candidates, candidates)`: row minus column."""

    keys: tuple[str, ...]
    difference: Any
    error: Any
    freedom: Any
    half_width: Any
    p: Any

    @classmethod
    def of(
        cls,
        values: Mapping[str, Sequence[float]],
        keys: Iterable[str],
        look: int,
        level: float,
        overlap: float,
        control: str | None,
    ) -> _Look:
        """level: of each interval. control: the candidate whose pairs are not pooled with those of the others."""
        from scipy.special import stdtr, stdtrit  # Student's distribution and its quantiles

        keys, replicates = tuple(keys), LOOKS[look - 1]
        scores = np.array([values[key][:replicates] for key in keys], dtype=float)
        means = scores.mean(axis=1)
        difference = means[:, None] - means[None, :]
        if len(keys) < 2:
            nothing = np.zeros((1, 1))
            return cls(keys, difference, nothing, nothing, nothing, np.ones((1, 1)))
        own = (scores[:, None] - scores[None, :]).var(axis=2, ddof=1)
        everyone, others = np.full(len(keys), True), np.array([key != control for key in keys])
        variance, freedom = _variance(own, everyone, replicates - 1)
        if not others.all() and others.sum() > 1:
            apart = np.logical_and.outer(others, others)
            among = _variance(own, others, replicates - 1)
            variance, freedom = np.where(apart, among[0], variance), np.where(apart, among[1], freedom)
        error = np.sqrt(variance * (1 / replicates + overlap))
        with np.errstate(divide="ignore", invalid="ignore"):  # no variance at all: every difference is exact
            t = np.where(difference == 0, 0.0, np.abs(difference) / error)
        half_width = stdtrit(freedom, 1 - level / 2) * error
        return cls(keys, difference, error, freedom, half_width, 2 * stdtr(freedom, -t))

    def better(self, sign: float) -> Any:
        """Whether the row is shown to be better than the column. sign: -1 where lower is better."""
        return sign * self.difference > self.half_width


def _variance(own: Any, pool: Any, residual: int) -> tuple[Any, Any]:
    """The variance of each pair's difference, at least the pool's, and its degrees of freedom.

    own: of each pair's own differences, with `residual` degrees of freedom. pool: which candidates' pairs are pooled.
    """
    of_candidate = own[:, pool].sum(axis=1) / (pool.sum() - pool)
    pooled = of_candidate[pool].mean()
    variance = np.maximum(np.maximum(own, np.maximum.outer(of_candidate, of_candidate)), pooled)
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = variance**2 / (
            pooled**2 / ((pool.sum() - 1) * residual) + (variance - pooled) ** 2 / residual
        )
    return variance, np.where(variance > 0, freedom, residual)


def judge(
    values: Mapping[str, Sequence[float]],
    *,
    goal: Literal["minimize", "maximize"],
    overlap: float,
    practical: float,
    control: str | None,
    alpha: float = ALPHA,
) -> Judgement:
    """Compare candidates by their replicates.

    The looks are gone through in order: each as soon as all that are not beaten, and the control, have its number of
    replicates. What a candidate has beyond the last look, and what it got after it was beaten, does not count yet. So
    the same replicates give the same judgement, in one run or in several.

    Args:
        values: The metric of each candidate's replicates, finite; at [i] that of replicate i, which shares seed and
            split with replicate i of the others.
        goal: Whether lower or higher is better.
        overlap: Validation images / training images where the split varies, else 0.
        practical: Differences up to this do not matter, in units of the metric.
        control: Key of the candidate without any technique; it gets replicates as long as any other does.
        alpha: Probability of an error, over all looks; one for the claims against the control, one for the tied set.
    """
    sign = 1.0 if goal == "maximize" else -1.0
    family = max(len(values) - 1, 1)
    active, looks = tuple(values), list[_Look]()
    beaten: dict[str, bool] = {}
    replicates: dict[str, int] = {}
    better, worse = dict.fromkeys(values, False), dict.fromkeys(values, False)
    by: dict[str, Interval | None] = {}
    for look, needed in enumerate(LOOKS, start=1):
        if not values or any(len(values[key]) < needed for key in active):
            break
        at = _Look.of(values, active, look, spent(look, alpha) / family, overlap, control)
        looks.append(at)
        shown = at.better(sign).any(axis=0)
        beaten |= {key: bool(shown[i]) for i, key in enumerate(active)}
        replicates |= dict.fromkeys(active, needed)
        if control in active and len(active) > 1:
            for key, claim in _against(at, control, sign, family, spent(look, alpha)).items():
                better[key], worse[key], by[key] = claim
        active = tuple(key for key in active if key == control or not beaten[key])
    if not looks:
        estimates = {key: _mean(values[key]) for key in values if len(values[key])}
        return Judgement(
            look=0,
            replicates=min(map(len, values.values()), default=0),
            leader=None,
            candidates={
                key: Compared(len(values[key]), estimate, None, False, False, False)
                for key, estimate in estimates.items()
            },
            tied=tuple(values),
            settled=False,
            practical_only=False,
            open=tuple(values),
            needed=LOOKS[0],
            _looks=(),
        )
    last = LOOKS[len(looks) - 1]
    leader = max(looks[-1].keys, key=lambda key: sign * float(np.mean(values[key][:last])))
    tied = tuple(key for key in values if not beaten[key])
    to_leader = _differences(looks, leader)
    to_none = _differences(looks, control) if control in beaten else {}
    to_none |= {key: interval for key, interval in by.items() if interval is not None}
    settled = len(tied) == 1
    practical_only = not settled and all(to_leader[key].within(practical) for key in tied if key != leader)
    return Judgement(
        look=len(looks),
        replicates=last,
        leader=leader,
        candidates={
            key: Compared(
                replicates=replicates[key],
                estimate=interval(values[key][: replicates[key]], overlap, alpha=alpha),
                to_none=to_none.get(key),
                beats_none=better[key],
                below_none=worse[key],
                beaten=beaten[key],
            )
            for key in values
        },
        tied=tied,
        settled=settled,
        practical_only=practical_only,
        open=() if settled or practical_only else active,
        needed=2 * last,
        _looks=tuple(looks),
    )


def interval(values: Sequence[float], overlap: float, *, alpha: float = ALPHA) -> Interval:
    """The mean of a candidate's replicates, with a t interval at the level of the last look that they reach.

    Its variance is the candidate's own; the effect of the splits, which pairing removes from differences, is in it.
    """
    look = look_at(len(values))
    if not look:
        return _mean(values)
    from scipy.special import stdtrit

    scores = np.asarray(values[: LOOKS[look - 1]], dtype=float)
    error = float(np.sqrt(scores.var(ddof=1) * (1 / len(scores) + overlap)))
    return Interval(float(scores.mean()), float(stdtrit(len(scores) - 1, 1 - spent(look, alpha) / 2)) * error)


def paired(
    values: Sequence[float], reference: Sequence[float], overlap: float, *, alpha: float = ALPHA
) -> Interval:
    """The mean of values minus reference over the replicates that both have, with its own variance, as `interval`."""
    both = min(len(values), len(reference))
    return interval(np.subtract(values[:both], reference[:both]).tolist(), overlap, alpha=alpha)


def _mean(values: Sequence[float]) -> Interval:
    return Interval(float(np.mean(values)), None)


def _differences(looks: Sequence[_Look], reference: str) -> dict[str, Interval]:
    """Every other candidate minus the reference, at the last look that has both."""
    found: dict[str, Interval] = {}
    for look in looks:
        if reference in look.keys:
            column = look.keys.index(reference)
            found |= {
                key: Interval(float(look.difference[row, column]), float(look.half_width[row, column]))
                for row, key in enumerate(look.keys)
                if row != column
            }
    return found


def _against(
    look: _Look, control: str, sign: float, family: int, level: float
) -> dict[str, tuple[bool, bool, Interval | None]]:
    """Whether each candidate is shown to be better, or worse, than the control, and by how much if it is either.

    That interval has the level of the candidate's own step in Holm's procedure, so that it excludes 0; it holds for
    the candidate alone. family: how many candidates there are beside the control; those without data at this look
    count as not shown.
    """
    from scipy.special import stdtrit

    column = look.keys.index(control)
    rows = [row for row in range(len(look.keys)) if row != column]
    p = np.ones(family)
    p[: len(rows)] = look.p[rows, column]
    rank = np.argsort(np.argsort(p, kind="stable"))
    steps = level / (family - rank)
    shown = rank < rank[p > steps].min(initial=family)  # until the first step that fails
    claims: dict[str, tuple[bool, bool, Interval | None]] = {}
    for i, row in enumerate(rows):
        difference = float(look.difference[row, column])
        interval = None
        if shown[i]:
            t = float(stdtrit(look.freedom[row, column], 1 - steps[i] / 2))
            interval = Interval(difference, t * float(look.error[row, column]))
        better = bool(shown[i]) and sign * difference > 0
        claims[look.keys[row]] = better, bool(shown[i]) and not better, interval
    return claims
