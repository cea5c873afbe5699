"""A decision in plain sentences, the same on the terminal, in MLflow and in the report.

Accuracies and shares are in percent and their differences in points of it, losses in their own unit; signs are words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from regtune.escaping import printable, shell_word
from regtune.study.decision import Candidate, Decision, Estimate, Judged, Vary

NO_TECHNIQUE = "no technique"
NOTHING_BETTER = "No technique beats the control here"
COUNTS = (
    "no",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)
PRACTICAL_ACCURACY = 0.0005
"""Differences of an accuracy below this do not matter, unless a person says otherwise."""
VARIED: dict[Vary, str] = {
    "both": "with a fresh seed and a fresh split of the images",
    "seed": "with a fresh seed, on the study's own split of the images",
    "split": "with a fresh split of the images and the study's own seed",
}


@dataclass(frozen=True)
class Figure:
    """A figure of a replicate as people read it. share: it is shown in percent."""

    title: str
    decimals: int = 4
    share: bool = False
    unit: str = ""


FIGURES = {
    "val_accuracy": Figure("accuracy", 2, share=True),
    "val_cross_entropy": Figure("cross-entropy"),
    "generalization_gap": Figure("gap"),
    "ece": Figure("ECE", 2, share=True),
    "brier": Figure("Brier"),
    "epochs": Figure("epochs", 1),
    "epoch_seconds": Figure("epoch", 3, unit=" s"),
    "l2_norm": Figure("weight norm", 1),
    "sparsity": Figure("small weights", 1, share=True),
    "prunable": Figure("prunable", 1, share=True),
}
"""The figures of replicates in the order of every table of them."""


PRUNABLE = f"share that can be set to zero before accuracy falls by {100 * PRACTICAL_ACCURACY:.2g} points"


def form_of(name: str) -> Figure:
    """How a figure or a ranked metric is shown."""
    return FIGURES.get(name) or Figure(name, 2 if name.endswith("accuracy") else 4, name.endswith("accuracy"))


def value_text(name: str, estimate: Estimate | None) -> str:
    """``0.1913 ± 0.0052``, ``94.82 ± 0.31 %``."""
    form = form_of(name)
    return (
        "–"
        if estimate is None
        else _numbers(form, estimate, estimate.mean) + (" %" if form.share else form.unit)
    )


def signed_text(name: str, difference: Estimate | None) -> str:
    """A difference for a table: ``−0.0582 ± 0.0119``, in points for shares."""
    if difference is None:
        return "–"
    text = _numbers(form_of(name), difference, abs(difference.mean))
    return ("−" if difference.mean < 0 else "+") + text


def amount_text(name: str, difference: Estimate) -> str:
    """The size of a difference: ``0.0582 ± 0.0119``, ``0.62 ± 0.09 points``."""
    form = form_of(name)
    return _numbers(form, difference, abs(difference.mean)) + (" points" if form.share else form.unit)


def difference_text(name: str, difference: Estimate) -> str:
    """``0.0582 ± 0.0119 lower``, ``0.62 ± 0.09 points higher``."""
    return f"{amount_text(name, difference)} {'lower' if difference.mean < 0 else 'higher'}"


def threshold_text(decision: Decision) -> str:
    """The difference that does not matter: ``0.05 points``, ``0.0021``."""
    form, scale = form_of(decision.metric), 100 if form_of(decision.metric).share else 1
    return f"{decision.practical * scale:.2g}" + (" points" if form.share else "")


def words(candidate: Candidate) -> str:
    """A candidate by its techniques: ``batch norm before the activation with dropout 0.15 and L2 1e-4``."""
    if candidate.control == "none":
        return NO_TECHNIQUE
    if candidate.mix == "none":
        return "early stopping alone" if candidate.control == "early_stopping" else candidate.name
    parts = sorted(candidate.mix.split(" + "), key=lambda part: not part.startswith("batch norm"))
    if parts[0] in ("batch norm before", "batch norm after"):
        parts[0] += " the activation"
    head, *rest = map(printable, parts)
    return f"{head} with {_listed(rest)}" if rest else head


def added_title(decision: Decision) -> str:
    """The title of a table of `Judged.added`, which says what each technique is compared with."""
    if any(one.beyond for one in decision.candidates):
        return f"What a technique adds to early stopping alone (early stopping: to {NO_TECHNIQUE})"
    return f"What a technique adds to {NO_TECHNIQUE}"


def sentence(decision: Decision) -> str:
    """The answer in one sentence, capitalized and with its full stop."""
    text = "; ".join(_clauses(decision))
    return f"{text[0].upper()}{text[1:]}."


def optimism_text(decision: Decision) -> str:
    """What the search's own winner was worth once trained again; empty where it was not."""
    winner, metric = decision.judged(decision.winner), decision.metric
    if (
        winner is None
        or winner.estimate is None
        or winner.candidate.value is None
        or decision.optimism is None
    ):
        return ""
    scored = value_text(metric, Estimate(mean=winner.candidate.value))
    again = f"{value_text(metric, winner.estimate)} over {winner.replicates} replicates"
    if decision.optimism.mean > 0:
        verdict = f"the search flattered it by {amount_text(metric, decision.optimism)}"
    else:
        verdict = "the search did not flatter it"
    own = f"The search's own winner, {winner.candidate.name}, has {scored} {metric} there and {again}: {verdict}."
    return " ".join(filter(None, (own, _lead_text(decision, winner))))


def _lead_text(decision: Decision, winner: Judged) -> str:
    """By how much the search's winner was ahead of no technique, in the search and over replicates."""
    none, metric = decision.none, decision.metric
    if (
        none is None
        or none.candidate.value is None
        or winner.candidate.value is None
        or winner.to_none is None
    ):
        return ""
    then = Estimate(mean=winner.candidate.value - none.candidate.value)
    return (
        f"Compared with {NO_TECHNIQUE} it was {difference_text(metric, then)} in the search, "
        f"{difference_text(metric, winner.to_none)} over replicates."
    )


def basis_text(decision: Decision) -> str:
    """What varied, how many replicates there are, and what the intervals hold for; empty without any."""
    if not decision.replicates:
        return ""
    each = f"Each open candidate was trained {decision.replicates} times, {VARIED[decision.vary]}"
    return f"{each}, the same for all. The intervals hold at {100 * decision.level:g} % over all looks."


def end_text(decision: Decision) -> str:
    """What ended the replication."""
    return {
        "settled": "Every comparison is settled.",
        "practical": f"Only differences below {threshold_text(decision)} are open, and they do not matter.",
        "overlap": "More replicates would hardly narrow the intervals, because their splits share images.",
        "budget": "The budget is used; more replicates may tell more apart.",
        "stopped": "It was stopped; more replicates may tell more apart.",
        "one_candidate": "There is only one candidate.",
        "too_few": "The budget is too small for the first look at the replicates.",
    }[decision.end]


def more_command(decision: Decision) -> str:
    """The command that settles more; empty where nothing is open."""
    if decision.end in ("settled", "practical", "overlap", "one_candidate"):
        return ""
    vary = "" if decision.vary == "both" else f" --vary {decision.vary}"
    return f"regtune decide {shell_word(decision.study)} --budget {max(4, 2 * decision.replicates)}{vary}"


def paragraph(decision: Decision) -> list[str]:
    """All that a reader needs, a sentence or two a line: the answer, the optimism, the basis, the end, the notes."""
    lines = sentence(decision), optimism_text(decision), basis_text(decision), end_text(decision)
    return [*filter(None, lines), *decision.notes]


def _clauses(decision: Decision) -> list[str]:
    chosen, answer, none = decision.judged(decision.chosen), decision.judged(decision.answer), decision.none
    if decision.end == "one_candidate":
        (only,) = decision.candidates[:1]
        return [f"{words(only.candidate)} is the only candidate"]
    if chosen is None and answer is None:
        why = "no candidate has replicates enough" if decision.trainings else "nothing was replicated"
        return [f"nothing is decided: {why}"]
    diverged = none is not None and none.standing == "diverged"
    compared = none is not None and none.estimate is not None and not diverged
    lacks = (
        "the control without any technique diverges"
        if diverged
        else "there is no control without any technique"
    )
    clauses = [_against_none(decision, chosen) if compared else lacks]
    tied = decision.with_standing("chosen", "tied")
    above = [one for one in tied if one is not chosen and _better(decision, one.to_chosen)]
    if chosen is not None and above:
        best = words((answer if answer in above else above[0]).candidate)
        clauses.append(f"{best}, outside the search, is better than all inside it")
        return [*clauses, f"of those, {words(chosen.candidate)} is chosen"]
    if len(tied) > 1:
        clauses.append(f"{counted_word(len(tied))} configurations cannot be told apart")
    if chosen is None:
        return [*clauses, "no configuration of the search was replicated"]
    inside = " inside the search" if any(not one.candidate.searched for one in tied) else ""
    it = words(chosen.candidate)
    named = compared and chosen.beats_none
    if len(tied) > 1:
        clauses.append(f"the simplest of them{inside}{'' if named else f', {it},'} is chosen")
    elif not named:
        clauses.append(f"{it} is chosen")
    if answer not in (None, chosen, none) and not answer.candidate.searched:
        clauses.append(f"{words(answer.candidate)}, outside the search, is as good and simpler")
    return clauses


def _against_none(decision: Decision, chosen: Judged | None) -> str:
    """What beats no technique and by how much: the chosen one, where it does, or else the best of those that do."""
    above = {one.candidate.key: one.to_none for one in decision.candidates if one.beats_none and one.to_none}
    if not above:
        return NOTHING_BETTER
    sign = -1 if decision.goal == "maximize" else 1
    key = chosen.candidate.key if chosen else ""
    subject = decision.judged(key if key in above else min(above, key=lambda one: sign * above[one].mean))
    assert subject is not None
    by = amount_text(decision.metric, above[subject.candidate.key])
    return f"{words(subject.candidate)} beats {NO_TECHNIQUE} by {by} of {decision.metric}"


def _better(decision: Decision, difference: Estimate | None) -> bool:
    """Whether the whole interval of a difference lies on the better side."""
    if difference is None or difference.low is None or difference.high is None:
        return False
    return difference.low > 0 if decision.goal == "maximize" else difference.high < 0


def counted_word(count: int) -> str:
    return COUNTS[count] if count < len(COUNTS) else str(count)


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _numbers(form: Figure, estimate: Estimate, mean: float) -> str:
    """The mean and the half width, to two digits of the latter, at most one decimal less or more than the figure's."""
    scale, width = 100 if form.share else 1, estimate.half_width
    decimals = form.decimals
    if width is not None and 0 < width < math.inf:
        first = -math.floor(math.log10(width * scale))  # decimal of its first significant digit
        decimals = max(0, decimals - 1, min(max(decimals, first), first + 1))
    text = f"{mean * scale:.{decimals}f}"
    return text if width is None else f"{text} ± {width * scale:.{decimals}f}"
