"""The origins of queued trials: a control, a grid, a retry, a request from a terminal, an earlier study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from optuna.trial import FrozenTrial

from regtune.config.trial import TrialConfig
from regtune.study.record import ORIGIN, Value


@dataclass(frozen=True)
class Origin:
    """Why a queued trial exists, when the sampler did not propose it.

    kind: `control`, `grid`, `retry` of trial `retry_of` (of that control, if it was one), `request` from another
    terminal, or `earlier` (another study's best). key: unique; what is queued under it is queued once.
    config: the whole configuration where the search space does not hold it, or where the seed is another trial's.
    """

    kind: str
    key: str
    config: TrialConfig | None = None
    parameters: Mapping[str, Value] | None = None
    attempt: int = 1
    retry_of: int | None = None
    control: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(self), "config": self.config.to_dict() if self.config else None}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Origin:
        """What `to_json` wrote."""
        config = TrialConfig.from_dict(values["config"], "origin") if values["config"] else None
        return cls(**{**values, "config": config})


@dataclass(frozen=True)
class Request:
    """What another terminal asks of the coordinator."""

    key: str
    verb: str
    parameters: Mapping[str, Value]


def origin_of(trial: FrozenTrial) -> Origin | None:
    """Where a trial comes from, or None when the sampler proposed it."""
    found = trial.user_attrs.get(ORIGIN)
    return None if found is None else Origin.from_json(found)
