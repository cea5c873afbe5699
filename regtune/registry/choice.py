"""What a study has to promote: the decision's choice, without one the best trial, or one that a person names."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine

from regtune.config.trial import TrialConfig
from regtune.errors import InputError
from regtune.escaping import printable
from regtune.registry.version import Source
from regtune.study.best import Best, best_of
from regtune.study.board import read_study
from regtune.study.decision import Decision, read_replicates
from regtune.study.decision_text import sentence


@dataclass(frozen=True)
class Choice:
    """A configuration to be promoted. best: with its provenance, as `best.yaml` has it.

    sweep: name of the study's sweep. epochs: for how many to train where no validation images are left to stop early.
    lucky: what a person should know of a choice that no replicate stands behind; empty where replicates do, or a person
    chose.
    """

    best: Best
    source: Source
    sweep: str
    epochs: int
    decision: Decision | None = None
    lucky: str = ""

    @property
    def config(self) -> TrialConfig:
        return self.best.config


def choose(engine: Engine, study: str, trial: int | None = None) -> Choice:
    """Choose what is promoted. trial: number of a complete trial, in place of the decision's choice.

    Raises InputError for a trial that is not complete, StudyNotFound, StorageError.
    """
    info = read_study(engine, study)
    sweep, decision = str(info.spec.get("name", study)), info.decision if trial is None else None
    judged = decision.judged(decision.chosen) if decision else None
    best = best_of(engine, study, trial=trial)
    known = best.provenance
    source = Source(
        study=info.name,
        uid=info.uid,
        metric=info.metric,
        trial=known.trial if known else None,
        trial_uid=known.trial_uid if known else None,
        chosen="search" if trial is None else "person",
    )
    if decision is None or judged is None:
        if known is None:  # a decision's choice alone can have none
            raise InputError(f"{printable(study)}: nothing is chosen")
        lucky = ""
        if trial is None:
            complete = info.counts["COMPLETE"]
            runs = "the only single run" if complete == 1 else f"the best of {complete:,} single runs"
            lucky = f"{printable(study)} has no decision; trial {known.trial} is {runs}, which may be luck"
        return Choice(best, source, sweep, known.epoch, None, lucky)
    estimate = judged.estimate
    decided = {
        "candidate": judged.candidate.key,
        "chosen": "decision",
        "replicates": judged.replicates,
        "mean": estimate.mean if estimate else None,
        "half_width": estimate.half_width if estimate else None,
        "sentence": sentence(decision),
    }
    kept = [
        one.record.kept.epoch
        for one in read_replicates(engine, study)
        if (one.candidate, one.vary) == (judged.candidate.key, decision.vary) and one.record.kept
    ]
    epochs = round(sum(kept) / len(kept)) if kept else best.config.training.max_epochs
    return Choice(best, source.model_copy(update=decided), sweep, epochs, decision)
