"""The candidates of a decision: the best few configurations of the search, and the controls."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest

from optuna.trial import TrialState

from regtune.config.sweepfile import SweepSpec
from regtune.config.trial import DataConfig, TrialConfig, higher_is_better
from regtune.search.controls import every_control
from regtune.study.decision import Candidate
from regtune.study.progress import Row
from regtune.study.study import Study, record_of

TOP = 5
"""Configurations of the search that are replicated, unless another number is asked for."""

FIRST = ("none", "early_stopping")
"""The controls that come before the others: what all of these are compared with."""


def complete_rows(study: Study) -> list[Row]:
    """Return the complete trials of an open study, by number. Raises StorageError."""
    trials = study.trials(TrialState.COMPLETE)
    return [Row(trial.number, "COMPLETE", trial.value, record_of(trial)) for trial in trials]


def candidates_of(
    rows: Iterable[Row], spec: SweepSpec, data: DataConfig, *, top: int = TOP, all_controls: bool = False
) -> list[Candidate]:
    """Choose what is replicated, in the order of importance, so that a small budget takes the first few.

    The search's winner comes first, then the control `none`, then the next finalist and the next control in turn. Of
    the controls, early stopping alone comes first, then the better scores, last those that the search did not train.
    Configurations that differ in their seed alone are one candidate; one that is a control is named so.

    Args:
        rows: Trials of the study; those that are not complete count for nothing.
        spec: The study's sweep file.
        data: The data set with its digest, on which the candidates train.
        top: How many configurations of the search, at most.
        all_controls: Every control, also those that the search did not train.

    Returns:
        The candidates; none where no trial is complete and no control is asked for.
    """
    sign = -1.0 if higher_is_better(spec.metric.name) else 1.0
    trained: dict[TrialConfig, Candidate] = {}
    for row in sorted(rows, key=lambda row: (sign * (row.value or 0.0), row.number)):
        candidate = _trained(row, data)
        if candidate is not None:
            same = trained.setdefault(candidate.config, candidate)
            if same.control is None and candidate.control:
                trained[candidate.config] = _named(same, candidate.control)

    def importance(control: Candidate) -> tuple[int, bool, float]:
        place = FIRST.index(control.control) if control.control in FIRST else len(FIRST)
        return place, control.value is None, sign * (control.value or 0.0)

    controls: list[Candidate] = []
    for control in every_control(spec, data):
        named = (one for one in trained.values() if one.control == control.name)
        known = next(named, None) or trained.get(control.config)
        if known is not None:
            known = trained[known.config] = _named(known, known.control or control.name)
            controls.append(known)
        elif all_controls:
            key, searched = f"c-{control.name}", control.parameters is not None
            config, mix = control.config, control.config.mix
            one = Candidate(key=key, control=control.name, searched=searched, mix=mix, config=config)
            controls.append(one)
    searched_ones = [one for one in trained.values() if one.searched]
    values = [sign * (one.value or 0.0) for one in searched_ones]
    chosen = order_of_finalists(values, [mix_of(one.config) for one in searched_ones], top)
    finalists = [searched_ones[index] for index in chosen]
    return list(in_turn(finalists, sorted(controls, key=importance)))


def order_of_finalists(values: Sequence[float], mixes: Sequence[str], top: int) -> list[int]:
    """Choose the places of at most `top` configurations: the best of each mix before the second-best of one.

    A plain top few of a search is often one lucky mix several times over. values: of the metric, the smaller the
    better. mixes: `mix_of` each.
    """
    seen = Counter[str]()
    ranks: dict[int, int] = {}
    order = sorted(range(len(values)), key=lambda place: (values[place], place))
    for place in order:
        ranks[place] = seen[mixes[place]]
        seen[mixes[place]] += 1
    return sorted(order, key=lambda place: (ranks[place], values[place], place))[:top]


def mix_of(config: TrialConfig) -> str:
    """The techniques of a configuration without their strengths: ``dropout + l2 + batchnorm before_activation``."""
    techniques = config.regularization
    parts = [name for name in ("dropout", "l1", "l2") if any(getattr(techniques, name))]
    placements = techniques.batchnorm if len(set(techniques.batchnorm)) > 1 else techniques.batchnorm[:1]
    if placements != ("none",):
        parts.append(f"batchnorm {'/'.join(placements)}")
    return " + ".join(parts) or "none"


def _trained(row: Row, data: DataConfig) -> Candidate | None:
    """The candidate of a complete trial; its seed is 0, and its data are where they are now."""
    record = row.record
    if row.state != "COMPLETE" or record is None or row.value is None or not math.isfinite(row.value):
        return None
    config = record.config.model_copy(update={"seed": 0, "data": data})
    candidate = Candidate(
        key=f"t{row.number}",
        trial=row.number,
        searched=row.searched,
        value=row.value,
        mix=config.mix,
        config=config,
    )
    return _named(candidate, record.control) if record.control else candidate


def _named(candidate: Candidate, control: str) -> Candidate:
    return candidate.model_copy(update={"key": f"c-{control}", "control": control})


def in_turn(finalists: Sequence[Candidate], controls: Sequence[Candidate]) -> Iterator[Candidate]:
    """The winner, the first control, then finalists and controls in turn, each once."""
    turns = zip_longest(finalists[1:], controls[1:])
    order = [*finalists[:1], *controls[:1], *(one for turn in turns for one in turn if one is not None)]
    yield from {one.key: one for one in order}.values()
