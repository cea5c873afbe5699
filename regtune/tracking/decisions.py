"""What MLflow is to say of a decision, in a run beside the study's, and of the replicates under it.

What a later look or another `regtune decide` may change is in tags and metrics: MLflow keeps a param for good.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from regtune.escaping import code, markdown, printable, shell_word
from regtune.study.decision import Candidate, Decision, Judged, named
from regtune.study.decision_text import (
    FIGURES,
    VARIED,
    added_title,
    basis_text,
    end_text,
    more_command,
    optimism_text,
    sentence,
    signed_text,
    value_text,
)
from regtune.study.record import State, TrialRecord
from regtune.tracking import names
from regtune.tracking.contents import Contents, Point, trial_contents
from regtune.tracking.replicates import ReplicateKey, label
from regtune.tracking.studies import DecisionFacts, StudyFacts
from regtune.tracking.views import REPLICATES_TITLE

MOST_ROWS = 16
"""Candidates in the table of a description: a tag of MLflow's has room for 8,000 characters."""
_MEANS = {
    **{name: names.best(name) for name in ("val_cross_entropy", "val_accuracy", "generalization_gap")},
    **{"sparsity": names.SPARSITY, "l2_norm": names.L2_NORM},
    **{name: names.evidence(name) for name in ("ece", "brier", "prunable")},
}
"""Figures of a candidate -> the single points that their means are."""


def decision_contents(facts: StudyFacts) -> Contents:
    """What the run of a decision says."""
    deciding, decision = facts.deciding or DecisionFacts("RUNNING"), facts.decision
    decided_ms = (
        None if decision is None else round(1000 * datetime.fromisoformat(decision.decided).timestamp())
    )
    started = deciding.started_ms or decided_ms or round(1000 * time.time())
    day = time.strftime("%Y-%m-%d %H:%M", time.localtime(started / 1000))
    running = deciding.state == "RUNNING"
    tags = {
        **_source(facts),
        names.KIND: names.DECISION,
        names.STUDY_TAG: facts.uid,
        names.METRIC: facts.metric,
        names.GOAL: facts.goal,
        names.STATE: deciding.state,
    }
    text, points = "", dict[str, list[Point]]()
    if decision is not None:
        text = decision.model_dump_json(indent=2)
        tags |= {
            names.CANDIDATES: str(len(decision.candidates)),
            names.VARY: decision.vary,
            names.LEVEL: f"{decision.level:g}",
            names.PRACTICAL: f"{decision.practical:.6g}",
            names.END: decision.end,
            names.CHOSEN: _label(decision.judged(decision.chosen)),
            names.ANSWER: _label(decision.judged(decision.answer)),
            names.CONFIG_DIGEST: hashlib.sha256(text.encode()).hexdigest(),
        }
        if not running:
            single = _single_points(decision, deciding.trained)
            points = {
                name: [Point(deciding.trained, value, decided_ms or 0)] for name, value in single.items()
            }
    return Contents(
        name=f"decision of {day}",
        started_ms=started,
        tags=tags,
        note=_note(facts, decision),
        params={},
        points=points,
        status=deciding.state,
        ended_ms=None if running else deciding.ended_ms or decided_ms,
        config=(lambda: text) if text else None,
        config_name=names.DECISION_FILE,
    )


def _single_points(decision: Decision, trained: int) -> dict[str, float]:
    """What a row of the table shows: of the chosen candidate, or of the answer where none inside the search is."""
    single = {names.TRAININGS: float(trained)}
    judged = decision.judged(decision.chosen) or decision.judged(decision.answer)
    if judged is None:
        return single
    single[names.REPLICATES] = float(judged.replicates)
    estimates = {_MEANS[name]: figure for name, figure in judged.figures.items() if name in _MEANS}
    ranked = {names.best(decision.metric): judged.estimate, names.AGAINST_NONE: judged.to_none}
    ranked[names.OPTIMISM] = decision.optimism
    estimates |= {name: figure for name, figure in ranked.items() if figure is not None}
    single |= {name: figure.mean for name, figure in estimates.items()}
    for name, figure in (
        (names.HALF_WIDTH, judged.estimate),
        (names.AGAINST_NONE_HALF_WIDTH, judged.to_none),
    ):
        if figure is not None and figure.half_width is not None:
            single[name] = figure.half_width
    return {name: value for name, value in single.items() if math.isfinite(value)}


def replicate_contents(facts: StudyFacts, key: ReplicateKey, state: State, record: TrialRecord) -> Contents:
    """What the run of a replicate says: all that a trial's does, and whose replicate it is."""
    found = trial_contents(facts, -1, state, record)
    candidate = label(named(key.candidate), record.config.mix)
    which = {
        names.KIND: names.REPLICATE,
        names.CANDIDATE: candidate,
        names.INDEX: str(key.index),
        names.VARY: key.vary,
    }
    tags = {name: value for name, value in found.tags.items() if name != names.NUMBER}
    only = "" if key.vary == "both" else f"({key.vary} only) "
    of, study = _shown(candidate), _shown(facts.name)
    note = (
        f"**{of}** of the study **{study}**, trained again {VARIED[key.vary]}, the same in replicate {key.index} of "
        "every candidate. It is no trial of the search."
    )
    return replace(
        found,
        name=f"replicate {key.index} {only}of {candidate}",
        tags={**_source(facts), **tags, **which},
        note=note,
        split_seed=record.config.data.split_seed,
    )


def _label(judged: Judged | None) -> str:
    return "" if judged is None else label(judged.candidate.name, judged.candidate.mix)


def _source(facts: StudyFacts) -> dict[str, str]:
    return {names.SOURCE_NAME: f"regtune decide ({facts.sweep})"}


def _note(facts: StudyFacts, decision: Decision | None) -> str:
    """Markdown for the page of a decision's run."""
    study, word = _shown(facts.name), shell_word(facts.name)
    rows = (
        f"The best configurations of the study **{study}** and its controls are trained again. The runs nested under "
        f"this one are the replicates; *Views*, then *{REPLICATES_TITLE}*, groups them by candidate."
    )
    if decision is None:
        return f"{rows}\n\nNothing is decided before the first look at them."
    said = basis_text(decision), end_text(decision), *decision.notes
    paragraphs = [
        f"**{markdown(sentence(decision))}**",
        markdown(optimism_text(decision)),
        _candidates(decision),
        markdown(" ".join(said)),
        _added(decision),
        f"{rows} All figures: `{names.DECISION_FILE}`, among the artifacts.",
        f"In a terminal: {code(more_command(decision) or f'regtune best {word}')}.",
    ]
    return "\n\n".join(filter(None, paragraphs))


def _candidates(decision: Decision) -> str:
    """The table of the candidates, the best mean first."""
    metric, sign = decision.metric, -1 if decision.goal == "maximize" else 1

    def rank(one: Judged) -> float:
        return math.inf if one.estimate is None else sign * one.estimate.mean

    ranked = sorted(decision.candidates, key=rank)
    against = "minus the chosen one", "minus no technique"
    head = "candidate", "techniques", markdown(metric), *against, "standing", "replicates"
    rows = [
        (
            _shown(one.candidate.name),
            _shown(one.candidate.mix),
            value_text(metric, one.estimate),
            *(signed_text(metric, difference) for difference in (one.to_chosen, one.to_none)),
            one.standing,
            f"{one.replicates}" + (f" ({one.diverged} diverged)" if one.diverged else ""),
        )
        for one in ranked[:MOST_ROWS]
    ]
    more = len(ranked) - len(rows)
    return _table(head, rows) + (f"\n\nAnd {more} more." if more else "")


def _added(decision: Decision) -> str:
    """What each technique adds, in Markdown; empty where no control has figures."""
    controls = {_technique(one.candidate): one.added for one in decision.techniques}
    figures = [name for name in FIGURES if any(name in added for added in controls.values())]
    head = "", *map(_shown, controls)
    rows = [
        (
            FIGURES[name].title + (" (points)" if FIGURES[name].share else ""),
            *(signed_text(name, added.get(name)) for added in controls.values()),
        )
        for name in figures
    ]
    return f"**{added_title(decision)}**:\n\n{_table(head, rows)}" if rows else ""


def _shown(text: str) -> str:
    return markdown(printable(text))


def _technique(control: Candidate) -> str:
    return control.name.removeprefix("control ") if control.mix == "none" else control.mix


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
