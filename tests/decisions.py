"""Decisions made by hand, for the tests of what shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import optuna
import studies

from regtune.config.trial import DataConfig, RegularizationConfig, TrialConfig
from regtune.study.decision import (
    Candidate,
    Decision,
    Estimate,
    Judged,
    Replicate,
    Standing,
    Vary,
    replicate_uid,
)
from regtune.study.record import DECISION, STUDY_UID

TECHNIQUES: Mapping[str, Mapping[str, Any]] = {
    "c-none": {},
    "c-early_stopping": {},
    "c-dropout": {"dropout": 0.2},
    "c-l1": {"l1": 1e-5},
    "c-batchnorm_before": {"batchnorm": "before_activation"},
    "t2": {"dropout": 0.1},
    "t3": {"dropout": 0.13, "batchnorm": "before_activation"},
    "t16": {"dropout": 0.133, "l2": 7.69e-6, "batchnorm": "before_activation"},
    "t9": {"dropout": 0.15, "batchnorm": "before_activation"},
}
FIGURES = {
    **{
        "val_accuracy": (0.944, 0.003),
        "val_cross_entropy": (0.19, 0.01),
        "generalization_gap": (0.12, 0.008),
    },
    **{
        "ece": (0.021, 0.002),
        "brier": (0.085, 0.004),
        "epochs": (11.4, 1.2),
        "epoch_seconds": (0.031, 0.002),
    },
    **{"l2_norm": (14.2, 0.3), "sparsity": (0.041, 0.004), "prunable": (0.52, 0.03)},
}


def candidate(
    key: str, *, searched: bool | None = None, value: float | None = None, trial: int | None = None
) -> Candidate:
    """A candidate of TECHNIQUES; a control lies outside the search unless `searched` says otherwise."""
    control = key.removeprefix("c-") if key.startswith("c-") else None
    stops = {"early_stopping": None} if control == "none" else {}
    config = TrialConfig(
        regularization=RegularizationConfig(**TECHNIQUES[key]), data=DataConfig(name="mnist-5k"), **stops
    )
    return Candidate(
        key=key,
        trial=trial if control else int(key[1:]),
        control=control,
        searched=control is None if searched is None else searched,
        value=value,
        mix=config.mix,
        config=config,
    )


def judged(
    key: str,
    standing: Standing = "beaten",
    mean: float = 0.2,
    *,
    to_chosen: float | None = None,
    to_none: float | None = None,
    half_width: float = 0.0119,
    replicates: int = 8,
    diverged: int = 0,
    **of: Any,
) -> Judged:
    """A candidate whose intervals are `half_width` wide; it beats none where `to_none` is beyond that."""

    def wide(value: float | None) -> Estimate | None:
        return None if value is None else Estimate(mean=value, half_width=half_width)

    return Judged(
        candidate=candidate(key, **of),
        standing=standing,
        replicates=replicates,
        diverged=diverged,
        estimate=Estimate(mean=mean, half_width=0.0052),
        to_chosen=wide(to_chosen),
        to_none=wide(to_none),
        beats_none=to_none is not None and to_none < -half_width,
        below_none=to_none is not None and to_none > half_width,
        figures={name: Estimate(mean=value, half_width=width) for name, (value, width) in FIGURES.items()},
        bought={} if to_none is None else {
            name: Estimate(mean=-value / 10, half_width=width) for name, (value, width) in FIGURES.items()
        },
    )  # fmt: skip


def decision(*candidates: Judged, **facts: Any) -> Decision:
    """A decision; by default that of a study whose winner was lucky, with a simpler one chosen."""
    shown = candidates or (
        judged("t9", "chosen", 0.1885, to_none=-0.0582),
        judged("t16", "tied", 0.1873, to_chosen=-0.0012, to_none=-0.0594, value=0.1717),
        judged("c-dropout", "tied", 0.1913, to_chosen=0.0028, to_none=-0.0554, value=0.181),
        judged("c-batchnorm_before", "tied", 0.1931, to_chosen=0.0046, to_none=-0.0536, value=0.19),
        judged("c-l1", "beaten", 0.2398, to_chosen=0.0513, to_none=-0.0069, value=0.231, replicates=4),
        judged("c-none", "beaten", 0.2467, to_chosen=0.0582, value=0.2519, replicates=8),
    )
    given: dict[str, Any] = {
        **{
            "study": "mnist-regularization",
            "uid": "f" * 32,
            "metric": "val_cross_entropy",
            "goal": "minimize",
        },
        **{"vary": "both", "level": 0.95, "practical": 0.0025, "replicates": 8, "end": "budget"},
        **{"chosen": "t9", "answer": "c-dropout" if not candidates else "t9", "winner": "t16"},
        **{"optimism": Estimate(mean=0.0156, half_width=0.0052), "trainings": 44, "epochs": 512},
        **{"seconds": 17.3, "decided": "2026-01-01T00:00:00+00:00"},
    }
    return Decision(candidates=shown, **{**given, **facts})


def store(study: optuna.Study, found: Decision) -> None:
    """Write a decision as a study has it."""
    study.set_user_attr(DECISION, found.model_dump(mode="json"))


def replicate(
    study: optuna.Study,
    key: str,
    index: int,
    end: str | None = "early_stopping",
    *,
    vary: Vary = "both",
    later_ms: int = 0,
) -> None:
    """Write a replicate of a candidate as a study has it; `end=None` while it runs. later_ms: than others it began."""
    found = studies.record(0, {"dropout": 0.2}, end=end, epochs=5)
    uid = replicate_uid(study.user_attrs[STUDY_UID], vary, key, index)
    began = (found.started_ms or 0) + later_ms
    made = Replicate(key, vary, index, replace(found, uid=uid, started_ms=began))
    study.set_user_attr(made.attribute, made.record.to_json())


def of_filled_study() -> Decision:
    """A decision about the study that `studies.fill` makes: trial 3 is chosen, trial 2 was the search's winner."""
    return decision(
        judged("t3", "chosen", 0.0805, to_none=-0.0155, half_width=0.004),
        judged("t2", "tied", 0.0815, to_chosen=0.001, to_none=-0.0145, half_width=0.004, value=0.0742),
        judged("c-dropout", "tied", 0.0811, to_chosen=0.0006, to_none=-0.0149, half_width=0.004, trial=1),
        judged("c-none", "beaten", 0.096, to_chosen=0.0155, half_width=0.004, trial=0),
        **{"chosen": "t3", "answer": "t3", "winner": "t2", "optimism": Estimate(mean=0.0073)},
    )
