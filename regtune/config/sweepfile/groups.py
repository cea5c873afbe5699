"""The groups of keys that only a sweep file has: `split`, `metric` and `early_terminate`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count, takewhile
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from regtune.config.trial import MAX_SEED, Frozen, Metric, higher_is_better

Goal = Literal["minimize", "maximize"]


class SplitSpec(Frozen):
    """The split of the training images: one part trains, the other validates."""

    validation: float = Field(default=0.2, gt=0.0, lt=1.0)
    """The share of the training images that validates."""
    seed: int = Field(default=42, ge=0, le=MAX_SEED)
    """The seed that chooses them."""


class MetricSpec(Frozen):
    """What a sweep is after."""

    name: Metric = "val_cross_entropy"
    """A figure of an epoch."""
    goal: Goal = "minimize"
    """maximize for accuracies, minimize for losses, when it is missing."""

    @model_validator(mode="before")
    @classmethod
    def _goal_of_the_metric(cls, given: Any) -> Any:
        return {"goal": goal_of(str(given.get("name"))), **given} if isinstance(given, Mapping) else given

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.goal != goal_of(self.name):
            raise ValueError(f"expected goal: {goal_of(self.name)} for {self.name}")
        return self


def goal_of(metric: str) -> Goal:
    """The sensible goal: accuracies grow as a network gets better, losses shrink."""
    return "maximize" if higher_is_better(metric) else "minimize"


class PrunerSpec(Frozen):
    """When an unpromising trial is ended early; epochs are counted from 1.

    `median` ends a trial whose best epoch is worse than the median of the others at the same epoch;
    `successive_halving` lets the best 1/eta of the trials pass each rung; `hyperband` runs several such
    ladders that start at different epochs.
    """

    type: Literal["median", "hyperband", "successive_halving"]
    """Which rule decides."""
    min_iter: int | None = Field(default=None, ge=1, le=10_000)
    """The first epoch at which a trial can be ended; 1 when it is missing."""
    eta: int | None = Field(default=None, ge=2, le=100)
    """The ratio of one rung to the next and of the trials that pass; 3 when it is missing."""
    max_iter: int | None = Field(default=None, ge=1, le=10_000)
    """The epoch after which no rung stands; max_epochs when it is missing."""
    s: int | None = Field(default=None, ge=1, le=20)
    """The number of rungs counted back from max_iter, instead of min_iter."""
    startup_trials: int | None = Field(default=None, ge=1, le=10_000)
    """How many trials must be complete before median judges; 5 when it is missing."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        foreign = ("eta", "max_iter", "s") if self.type == "median" else ("startup_trials",)
        for key in foreign:
            if getattr(self, key) is not None:
                raise ValueError(f"{key} means nothing for {self.type}")
        if self.s is None:
            if self.type == "successive_halving" and self.max_iter is not None:
                raise ValueError("max_iter needs s here; or give min_iter, the first rung")
        elif self.max_iter is None or self.min_iter is not None:
            meaning = "s counts rungs back from max_iter"
            raise ValueError(f"{meaning}: expected max_iter with s, or min_iter without s")
        elif self.first_epoch * self.ratio**self.s > self.max_iter:
            least = self.ratio**self.s
            raise ValueError(f"expected max_iter to be at least eta ** s = {least}, found {self.max_iter}")
        return self

    @property
    def ratio(self) -> int:
        """`eta`, or its default."""
        return 3 if self.eta is None else self.eta

    @property
    def first_epoch(self) -> int:
        if self.s is not None and self.max_iter is not None:
            return max(1, self.max_iter // int(self.ratio**self.s))
        return 1 if self.min_iter is None else self.min_iter

    def brackets(self, max_epochs: int) -> tuple[int, ...]:
        """First rungs of hyperband's ladders, for trials of at most `max_epochs`: min_iter * eta ** k."""
        rungs = (self.first_epoch * self.ratio**step for step in count())
        return tuple(takewhile(lambda rung: rung <= (self.max_iter or max_epochs), rungs))
