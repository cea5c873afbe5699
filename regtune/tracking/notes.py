"""Descriptions in MLflow for people who do not know regtune: what the rows are and how to read them."""

from __future__ import annotations

from collections.abc import Mapping

from regtune.config.trial import format_number
from regtune.escaping import code, markdown, printable, shell_word
from regtune.tracking import names
from regtune.tracking.facts import ParentState, RetrainedFrom, StudyFacts
from regtune.tracking.views import TITLE


def experiment_note(facts: StudyFacts) -> str:
    """Markdown for the experiment's page."""
    metric = names.best(facts.metric)
    better = "lower" if facts.goal == "minimize" else "higher"
    searched = ", ".join(map(code, facts.parameters))
    rows = (
        f"Each *study* is one sweep of {searched}. The runs under it are its trials: one network each, named "
        "by number and technique mix. The *controls* use no technique, or one alone: what every mix has to beat. "
        f"*Views*, then *{TITLE}*, lists all trials with their parameters."
    )
    if facts.retrained is not None:
        rows = "Each *training* is one configuration that `regtune train` trained; the run under it has its figures."
    lines = [
        f"Which regularization makes this network generalize best? {markdown(facts.description)}".strip(),
        "",
        f"**Rows.** {rows}",
        "",
        f"**Figures.** `{metric}` is what the sweep {facts.goal}s ({better} is better). All `best/` figures are those "
        "of the weights a trial keeps; of a pruned one, those of its best epoch. Cross-entropy here never contains the "
        "L1 or L2 penalty, so it compares across strengths. `best/generalization_gap` is validation minus training "
        "cross-entropy: near 0 is good.",
        "",
        "**Status.** Finished: trained to its end. Killed: pruned because others did better (`regtune.state` says "
        "PRUNED), or stopped. Failed: diverged or broke; `regtune.end_reason` says how.",
        "",
        "**Compare.** The chart symbol above the table draws every trial from its parameters to its accuracy, and all "
        "curves. Or select trials and press *Compare*.",
    ]
    return "\n".join(lines)


def study_note(
    facts: StudyFacts,
    state: ParentState,
    winner: int | None,
    tags: Mapping[str, str],
    figures: Mapping[str, float],
) -> str:
    """Markdown for the parent run's page. winner: number of the best trial; tags and figures: of its run."""
    data, again = facts.data, facts.retrained
    lines = []
    if winner is not None and figures:
        wanted = dict.fromkeys((names.best(facts.metric), names.best("val_accuracy"), names.BEST_GAP))
        given = {name.removeprefix("best/"): figures[name] for name in wanted if name in figures}
        said = ", ".join(f"{name} {_figure(name, value)}" for name, value in given.items())
        label = "Best trial" if state == "FINISHED" else "Best so far"
        label = f"{label}: #{winner:03d}" if again is None else "Trained:"
        mix = markdown(tags.get(names.MIX, ""))
        lines += [f"**{label} {mix}** with {said}. The metrics of this page are that trial's.", ""]
    lines += [
        _what_it_is(facts, state) if again is None else f"{_origin(again)} Its run is nested under this one.",
        "",
        f"Data: {markdown(printable(data.name))}, {data.train:,} training and {data.validation:,} validation images, "
        f"digest `{data.digest[:12]}`.",
    ]
    if again is None:
        word = shell_word(facts.name)
        best = code(f"regtune best {word} -o best.yaml")
        lines += ["", f"In a terminal: {code(f'regtune board {word}')}, {best}."]
    return "\n".join(lines)


def _what_it_is(facts: StudyFacts, state: ParentState) -> str:
    said = {
        "RUNNING": "is running",
        "FINISHED": "has ended",
        "KILLED": "was interrupted",
        "FAILED": "broke off",
    }
    size = "small" if facts.goal == "minimize" else "large"
    return (
        f"The study **{markdown(printable(facts.name))}** {said[state]}. Its trials are the runs nested under this "
        f"one; `{facts.method}` proposes them, and `{facts.metric}` is to be as {size} as possible."
    )


def trial_note(facts: StudyFacts, number: int) -> str:
    """Markdown for a trial's page."""
    if facts.retrained is not None:
        return _origin(facts.retrained)
    return f"Trial {number} of the study **{markdown(printable(facts.name))}**. {_shown(facts.name, number)}"


def _origin(again: RetrainedFrom) -> str:
    if again.study is None or again.trial is None:
        return "A configuration, trained by `regtune train`."
    study = markdown(printable(again.study))
    return f"Trial {again.trial} of the study **{study}**, trained again. {_shown(again.study, again.trial)}"


def _shown(study: str, number: int) -> str:
    return f"In a terminal: {code(f'regtune show {shell_word(study)} {number}')}."


def _figure(name: str, value: float) -> str:
    return f"{value:.2%}" if name.endswith("accuracy") else format_number(value)
