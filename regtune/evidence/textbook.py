"""What textbooks say of regularization, each sentence held against the controls' replicates and the diagnosis.

A sentence holds where the whole interval of a paired difference lies on its side, at the decision's level; where the
interval contains 0, or lies on the other side, it does not hold here. A technique is compared with early stopping
alone, which its control has too; early stopping, and what was chosen, with no technique.
"""

from __future__ import annotations

from regtune.escaping import shell_word
from regtune.evidence.diagnosis import BiasVariance, Sentence
from regtune.study.decision import Decision, Judged
from regtune.study.decision_text import form_of, signed_text, value_text

L1 = "An L1 penalty makes weights zero: the network becomes sparse."
L2 = "An L2 penalty keeps weights small."
DROPOUT = "Dropout is noise that keeps a network from memorizing: the gap narrows."
BATCHNORM = "Batch norm's noise regularizes as well: the gap narrows."
STOPPING = "Early stopping ends training before the network memorizes."
GAP = "Regularization narrows the gap between training and validation."


def sentences(
    study: str | None, decision: Decision | None, curve: BiasVariance | None
) -> tuple[Sentence, ...]:
    """Every sentence, in this order. curve: of bias and variance, for the figures that it adds."""
    judge = _Judge(study, decision)
    chosen = decision.judged(decision.chosen) if decision else None
    closing = chosen if chosen and chosen.candidate.control != "none" else None
    return (
        judge.sentence(L1, {"l1": ("prunable", +1)}, also="sparsity"),
        judge.sentence(L2, {"l2": ("l2_norm", -1)}),
        judge.sentence(DROPOUT, {"dropout": ("generalization_gap", -1)}, more=_variance(curve, "dropout")),
        judge.sentence(
            BATCHNORM,
            {"batchnorm_before": ("generalization_gap", -1), "batchnorm_after": ("generalization_gap", -1)},
        ),
        judge.sentence(
            STOPPING,
            {"early_stopping": ("generalization_gap", -1)},
            also="val_cross_entropy",
            more=_variance(curve, "epochs"),
        ),
        judge.gap(closing),
    )


class _Judge:
    """What the replicates of a study say."""

    def __init__(self, study: str | None, decision: Decision | None) -> None:
        self._command = f"regtune decide {shell_word(study) if study else 'STUDY'}"
        self._decision = decision

    def sentence(
        self, text: str, claims: dict[str, tuple[str, int]], also: str = "", more: str = ""
    ) -> Sentence:
        """Judge a sentence by one figure and direction of each control; it holds where all that are measured say so."""
        judged = {control: self._control(control) for control in claims}
        measured = {
            control: one for control, one in judged.items() if one and claims[control][0] in one.added
        }
        if not measured:
            need = (
                f"{self._command} trains its control" if self._decision is None else "it has no control here"
            )
            return Sentence(text=text, holds="not measured", figures="; ".join(filter(None, (need, more))))
        holds = all(_shown(one, *claims[control]) for control, one in measured.items())
        parts = [_figures(one, claims[control][0], len(measured) > 1) for control, one in measured.items()]
        parts += [_figures(one, also, False) for one in measured.values() if also in one.added]
        figures = "; ".join(filter(None, (*parts, more)))
        return Sentence(text=text, holds="holds here" if holds else "does not hold here", figures=figures)

    def gap(self, chosen: Judged | None) -> Sentence:
        """Judge what the chosen configuration does to the gap."""
        name = "generalization_gap"
        if chosen is None or name not in chosen.bought:
            need = f"{self._command} measures it" if self._decision is None else "no technique was chosen"
            return Sentence(text=GAP, holds="not measured", figures=need)
        against_none = chosen.model_copy(update={"beyond": {}})
        return Sentence(
            text=GAP,
            holds="holds here" if _shown(against_none, name, -1) else "does not hold here",
            figures=_figures(against_none, name, True),
        )

    def _control(self, name: str) -> Judged | None:
        return self._decision.judged(f"c-{name}") if self._decision else None


def _shown(judged: Judged, figure: str, direction: int) -> bool:
    """Whether the whole interval of the difference lies in the direction."""
    by = judged.added[figure]
    if by.low is None or by.high is None:
        return False
    return by.low > 0 if direction > 0 else by.high < 0


def _figures(judged: Judged, figure: str, named: bool) -> str:
    """``gap 0.0812 ± 0.0103, −0.0397 ± 0.0100 against no technique``."""
    form = form_of(figure)
    by = signed_text(figure, judged.added[figure]) + (" points" if form.share else "")
    reference = "early stopping alone" if judged.beyond else "no technique"
    name = f"{judged.candidate.name}: " if named else ""
    return f"{name}{form.title} {value_text(figure, judged.figures.get(figure))}, {by} against {reference}"


def _variance(curve: BiasVariance | None, along: str) -> str:
    """What the diagnosis saw of the variance along a strength."""
    if curve is None or curve.along != along or len(curve.points) < 2:
        return ""
    first, last = curve.points[0], curve.points[-1]
    ends = (
        f"from {first.brier_variance:.4f} at {first.value:g} to {last.brier_variance:.4f} at {last.value:g}"
    )
    return f"along {along}, the variance goes {ends}"
