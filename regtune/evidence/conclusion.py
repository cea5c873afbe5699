"""What the replicates of a study's candidates conclude: the decision, and which replicates the next look needs.

Everything here is a function of the replicates, so it is the same however many workers trained them, in whatever order
and in however many runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count, pairwise
from math import sqrt
from statistics import fmean
from typing import Literal

from regtune.config.trial import TrialConfig, higher_is_better
from regtune.evidence.statistics import (
    ALPHA,
    LOOKS,
    Compared,
    Interval,
    Judgement,
    interval,
    judge,
    look_at,
    paired,
)
from regtune.study.decision import Candidate, Decision, End, Estimate, Judged, Standing, Vary
from regtune.study.decision_text import PRACTICAL_ACCURACY
from regtune.study.record import TrialRecord

NONE = "c-none"
STOPPING = "c-early_stopping"
PRACTICAL_SHARE_OF_LOSS = 0.01
LEAST_GAIN = 0.07
"""The next look is worth its replicates when it narrows the intervals by this share."""
ATTEMPTS = 2  # a replicate whose worker died is trained once more

Ended = Mapping[str, Mapping[int, TrialRecord]]
"""By the key of a candidate and the index of a replicate: the records of those that have ended."""


@dataclass(frozen=True)
class Question:
    """What is asked of the replicates. overlap: validation images / training images where the split varies, else 0.

    practical: what a person has given. features: numbers an image has.
    """

    study: str
    uid: str
    metric: str
    vary: Vary
    overlap: float
    practical: float | None
    features: int

    @property
    def goal(self) -> Literal["minimize", "maximize"]:
        return "maximize" if higher_is_better(self.metric) else "minimize"


@dataclass(frozen=True)
class Conclusion:
    """What is concluded so far.

    decision: its end is `stopped` while something is open. look: replicates of each candidate at the next look.
    ahead: candidate and index of those that it adds. wanted: of those that it lacks, in the order in which they are
    trained.
    """

    decision: Decision
    judgement: Judgement
    look: int
    ahead: frozenset[tuple[str, int]]
    wanted: tuple[tuple[str, int], ...]

    @property
    def over(self) -> bool:
        return self.decision.end != "stopped"


def conclude(
    question: Question, candidates: Sequence[Candidate], ended: Ended, notes: Sequence[str] = ()
) -> Conclusion:
    """Judge the candidates by their replicates.

    A replicate that ended without figures (its loss became infinite, it took too long) counts for no candidate, because
    differences are paired; a candidate with half of its replicates or more of this kind is `diverged` and leaves.
    """
    failed = {one.key: _failures(ended.get(one.key, {})) for one in candidates}
    left = [one.key for one in candidates if not _diverges(ended.get(one.key, {}))]
    void = frozenset(index for key in left for index in failed[key])
    counting = {key: [ended[key][index] for index in _counting(ended.get(key, {}), void)] for key in left}
    values = {key: [_figure(record, question.metric) for record in counting[key]] for key in left}
    control = NONE if NONE in left else None

    def judged_with(practical: float) -> Judgement:
        goal, overlap = question.goal, question.overlap
        return judge(values, goal=goal, overlap=overlap, practical=practical, control=control)

    practical = _practical(question, values.get(NONE, ()))
    judgement = judged_with(practical)
    exact = _practical(question, values.get(control or judgement.leader or "", ())[: judgement.replicates])
    if exact != practical:  # a later look has begun
        practical, judgement = exact, judged_with(exact)
    needed, seen = [*_first(judgement.needed, void)], {*_first(judgement.replicates, void)}
    ahead = frozenset((key, index) for key in judgement.open for index in needed if index not in seen)
    wanted = [
        (index, place, one.key)
        for place, one in enumerate(candidates)
        if one.key in judgement.open
        for index in needed
        if index not in ended.get(one.key, {})
    ]
    end: End = "stopped"
    if judgement.settled or not left:
        end = "settled"
    elif judgement.practical_only:
        end = "practical"
    notes = [*notes, *_notes(candidates, ended, failed, left), *_identical(judgement, values)]
    every = [record for of_one in ended.values() for record in of_one.values()]
    figures = {one.key: _figures_of(counting[one.key]) for one in candidates if one.key in left}
    winner = next((one for one in candidates[:1] if one.searched), None)
    chosen, answer = _choice(question, candidates, judgement, figures)
    decision = Decision(
        study=question.study,
        uid=question.uid,
        metric=question.metric,
        goal=question.goal,
        vary=question.vary,
        level=1 - ALPHA,
        practical=practical,
        replicates=judgement.replicates,
        end=end,
        candidates=tuple(
            _judged(question, one, judgement, figures, failed[one.key], ended.get(one.key, {}), chosen)
            for one in candidates
        ),
        chosen=chosen,
        answer=answer,
        winner=winner.key if winner else None,
        optimism=_optimism(question, winner, judgement),
        trainings=len(every),
        epochs=sum(record.epochs for record in every),
        seconds=round(sum(record.seconds for record in every), 3),
        decided=datetime.now(UTC).isoformat(timespec="seconds"),
        notes=tuple(notes),
    )
    in_turn = tuple((key, index) for index, _, key in sorted(wanted))
    return Conclusion(decision, judgement, judgement.needed, ahead, in_turn)


def has_ended(record: TrialRecord) -> bool:
    """Whether a replicate is over; one whose worker died has another attempt."""
    again = record.end_reason == "worker_died" and record.attempt < ATTEMPTS
    return record.end_reason is not None and not again


def gains_little(question: Question, replicates: int) -> bool:
    """Whether twice as many replicates would narrow the intervals by less than LEAST_GAIN, as their splits overlap."""
    now, then = (1 / number + question.overlap for number in (replicates, 2 * replicates))
    return sqrt(then / now) > 1 - LEAST_GAIN


def _practical(question: Question, base: Sequence[float]) -> float:
    """Differences below this do not matter. base: values of the control without any technique."""
    if question.practical is not None:
        return question.practical
    if question.metric.endswith("accuracy"):
        return PRACTICAL_ACCURACY
    return PRACTICAL_SHARE_OF_LOSS * fmean(base) if base else 0.0


def _failures(ended: Mapping[int, TrialRecord]) -> list[int]:
    """Indices of the replicates that ended without figures."""
    return [index for index, record in ended.items() if record.kept is None]


def _diverges(ended: Mapping[int, TrialRecord]) -> bool:
    """Whether half of a candidate's replicates or more had no figures at the last look that they reach."""
    reached = look_at(next(index for index in count() if index not in ended))
    if not reached:
        return False
    first: int = LOOKS[reached - 1]
    return 2 * sum(index < first for index in _failures(ended)) >= first


def _counting(ended: Mapping[int, TrialRecord], void: frozenset[int]) -> Iterator[int]:
    """Indices of the replicates that count, up to the first that is missing."""
    for index in count():
        if index not in void:
            if index not in ended:
                return
            yield index


def _first(needed: int, void: frozenset[int]) -> Iterator[int]:
    """The first indices that can count."""
    for index in count():
        if needed == 0:
            return
        if index not in void:
            needed -= 1
            yield index


def _figure(record: TrialRecord, name: str) -> float:
    value = record.figure(name)
    assert value is not None
    return value


def _figures_of(records: Sequence[TrialRecord]) -> dict[str, list[float]]:
    """Figures of replicates, by name; those that not all of them have are left out."""
    each: list[dict[str, float]] = []
    for record in records:
        assert record.kept is not None
        kept, later = (
            record.kept,
            record.epoch_seconds[1:] or record.epoch_seconds,
        )  # the first may trace a graph
        each.append(
            {
                **{name: kept.figures[name] for name in ("val_accuracy", "val_cross_entropy")},
                "generalization_gap": kept.generalization_gap,
                **{name: kept.extra[name] for name in ("ece", "brier") if name in kept.extra},
                "epochs": float(record.epochs),
                "epoch_seconds": fmean(later),
                "l2_norm": kept.l2_norm,
                "sparsity": kept.sparsity,
                **{name: kept.extra[name] for name in ("prunable",) if name in kept.extra},
            }
        )
    names = [name for name in (each[0] if each else ()) if all(name in figures for figures in each)]
    return {name: [figures[name] for figures in each] for name in names}


def _choice(
    question: Question,
    candidates: Sequence[Candidate],
    judgement: Judgement,
    figures: Mapping[str, Mapping[str, Sequence[float]]],
) -> tuple[str | None, str | None]:
    """The simplest of the tied candidates inside the search space, and of all tied ones.

    Where all inside are beaten by a control outside: the simplest of those not shown to be worse than the best inside.
    """
    if len(candidates) == 1:
        (only,) = candidates
        return only.key if only.searched else None, only.key
    if judgement.too_few:
        return None, None
    by_key = {one.key: one for one in candidates}

    def simplicity(key: str) -> tuple[int, float, float, int]:
        config, counted = by_key[key].config, judgement.candidates[key].replicates
        found = {name: values[:counted] for name, values in figures[key].items()}
        weights = sum(a * b for a, b in pairwise((question.features, *config.model.hidden)))
        effective = (1 - fmean(found["sparsity"])) * weights
        return techniques(config), effective, fmean(found["epoch_seconds"]), candidates.index(by_key[key])

    inside = [key for key in judgement.candidates if by_key[key].searched]
    tied = [key for key in inside if key in judgement.tied]
    if inside and not tied:
        sign = 1.0 if question.goal == "maximize" else -1.0
        best = max(inside, key=lambda key: sign * judgement.candidates[key].estimate.mean)
        differences = judgement.differences_to(best)
        tied = [key for key in inside if key == best or not _shown(differences.get(key))]
    return min(tied, key=simplicity, default=None), min(judgement.tied, key=simplicity, default=None)


def techniques(config: TrialConfig) -> int:
    """How many techniques of regularization a configuration uses, early stopping among them."""
    used = config.regularization
    on = [any(used.dropout), any(used.l1), any(used.l2), set(used.batchnorm) != {"none"}]
    return sum(on) + (config.early_stopping is not None)


def _shown(difference: Interval | None) -> bool:
    """Whether a difference is shown not to be 0."""
    return (
        difference is not None
        and difference.half_width is not None
        and abs(difference.mean) > difference.half_width
    )


def _judged(
    question: Question,
    candidate: Candidate,
    judgement: Judgement,
    figures: Mapping[str, Mapping[str, Sequence[float]]],
    failed: Sequence[int],
    ended: Mapping[int, TrialRecord],
    chosen: str | None,
) -> Judged:
    key = candidate.key
    compared: Compared | None = judgement.candidates.get(key)
    if compared is None:
        values = [_figure(record, question.metric) for record in ended.values() if record.kept]
        estimate = Estimate(mean=fmean(values)) if values else None
        standing: Standing = "chosen" if key == chosen else "diverged" if failed else "tied"
        return Judged(
            candidate=candidate,
            standing=standing,
            replicates=len(values),
            diverged=len(failed),
            estimate=estimate,
        )
    counted = {name: found[: compared.replicates] for name, found in figures[key].items()}

    def differences(base: str) -> dict[str, Estimate]:
        others = figures.get(base, {}) if base != key else {}
        both = {name: (found, others[name]) for name, found in counted.items() if len(others.get(name, ()))}
        return {name: _known(paired(*pair, question.overlap)) for name, pair in both.items()}

    technique = candidate.control is not None and key not in (NONE, STOPPING)
    to_chosen = judgement.differences_to(chosen).get(key) if chosen else None
    return Judged(
        candidate=candidate,
        standing="chosen" if key == chosen else "beaten" if compared.beaten else "tied",
        replicates=compared.replicates,
        diverged=len(failed),
        estimate=_estimate(compared.estimate),
        to_chosen=_estimate(to_chosen),
        to_none=_estimate(compared.to_none),
        beats_none=compared.beats_none,
        below_none=compared.below_none,
        figures={name: _known(interval(found, question.overlap)) for name, found in counted.items()},
        bought=differences(NONE),
        beyond=differences(STOPPING) if technique else {},
    )


def _optimism(question: Question, winner: Candidate | None, judgement: Judgement) -> Estimate | None:
    """The winner's score in the search against its mean over replicates, positive where the search flattered it."""
    compared = None if winner is None else judgement.candidates.get(winner.key)
    if winner is None or winner.value is None or compared is None or judgement.too_few:
        return None
    sign = 1.0 if question.goal == "maximize" else -1.0
    return Estimate(
        mean=sign * (winner.value - compared.estimate.mean), half_width=compared.estimate.half_width
    )


def _known(found: Interval) -> Estimate:
    return Estimate(mean=found.mean, half_width=found.half_width)


def _estimate(found: Interval | None) -> Estimate | None:
    return None if found is None else _known(found)


def _notes(
    candidates: Sequence[Candidate], ended: Ended, failed: Mapping[str, Sequence[int]], left: Sequence[str]
) -> Iterator[str]:
    for one in candidates:
        if not failed[one.key]:
            continue
        last = ended[one.key][max(failed[one.key])]
        counts = (
            f"{one.name}: {len(failed[one.key])} of {len(ended[one.key])} replicates ended without figures"
        )
        so = "they count for no candidate" if one.key in left else "it is not replicated any further"
        yield f"{counts} (the last: {last.message or last.end_reason}); {so}"
    if any(one.key == NONE for one in candidates) and NONE not in left:
        yield "the control without any technique diverges, so nothing is compared with it"


def _identical(judgement: Judgement, values: Mapping[str, Sequence[float]]) -> Iterator[str]:
    compared = {tuple(found[: judgement.replicates]) for found in values.values()}
    if judgement.look and len(values) > 1 and len(compared) == 1:
        yield "every candidate has the same figures in every replicate: nothing tells them apart"
