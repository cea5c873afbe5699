"""What MLflow lacks of a study."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Missing:
    """What MLflow lacks of a study.

    absent: trials without a run. wrong: trials whose run lacks something. replicates_absent, replicates_wrong:
    likewise. kinds: how many lack what. own: whether the study's own run or experiment lack something. decision:
    whether the run of its decision does. place: where the artifacts of the folder lay before it was moved or copied, if
    MLflow says so still.
    """

    absent: int = 0
    wrong: int = 0
    replicates_absent: int = 0
    replicates_wrong: int = 0
    own: bool = False
    decision: bool = False
    kinds: dict[str, int] = field(default_factory=dict)
    place: str | None = None

    @property
    def trials(self) -> int:
        return self.absent + self.wrong

    @property
    def replicates(self) -> int:
        return self.replicates_absent + self.replicates_wrong

    def add(self, replicate: bool, kinds: Iterable[str] | None = None) -> None:
        """Count a trial or a replicate: one whose run lacks these, or without them one that has no run."""
        what = f"{'replicates_' if replicate else ''}{'absent' if kinds is None else 'wrong'}"
        setattr(self, what, getattr(self, what) + 1)
        self.kinds |= {kind: self.kinds.get(kind, 0) + 1 for kind in kinds or ()}

    def __bool__(self) -> bool:
        return bool(self.trials or self.replicates or self.own or self.decision or self.place)

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} of {count}" for kind, count in self.kinds.items())
        absent, wrong = (
            " and ".join(counted(count, word) for count, word in counts if count)
            for counts in (
                ((self.absent, "trial"), (self.replicates_absent, "replicate")),
                ((self.wrong, "trial"), (self.replicates_wrong, "replicate")),
            )
        )
        said = {
            f"{absent} without a run": absent,
            f"{wrong} whose run lacks something ({kinds})": wrong,
            "the study's own run or its experiment": self.own,
            "the run of its decision": self.decision,
            f"the place of its artifacts, which is {self.place} no longer": self.place,
        }
        return "; ".join(words for words, true in said.items() if true)


def counted(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"
