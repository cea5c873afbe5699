"""How often a decision errs: simulated sweeps, decided by regtune's own code.

    python -m benchmarks.bench_decision [--sweeps 2000] [--json FILE]

A sweep has 60 configurations, each of one of 24 technique mixes at random, and the seven controls, all with one run in
the search. Candidates are chosen, replicated, compared and dropped as `regtune decide` does it. A run's score:

    quality + split + seed + validation + training + own

`quality` is what is asked for: the mean over seeds, splits and data sets. `split` and `seed` are shared by all runs
with that split or seed, so pairing removes them. The others are a candidate's own: `validation` and `training` belong
to its split (the images that judge it, and those it learns from), `own` to its seed. All splits of a study are drawn
from the same images: two validation parts have 20 % of their images in common, two training parts 80 %, and so much
are effects correlated that are sums over images. They are drawn as an effect of all images and one of each split.

Sizes, in units of `own`: on the full MNIST the sd of a run by its seed is 0.0012 in accuracy, that of a paired
difference 0.00125, so `seed` is 0.9. On mnist-5k, cross-entropy, three techniques and no technique, 12 replicates each
with fresh seeds, fresh splits, and both: the sd of a run is 0.023, of a paired difference 0.010, and the losses of
single images say that which images validate makes at least half of the variance of a difference: `validation` is 1,
`training` 0.4, an assumption. `split` makes a run vary 2.1 times as much as a difference, as there.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np

from benchmarks.report import options, show, write
from regtune.evidence.candidates import TOP, in_turn, order_of_finalists
from regtune.evidence.conclusion import Question, gains_little
from regtune.evidence.statistics import LOOKS, Interval, Judgement, judge

SEED = 0
CONFIGURATIONS = 60
CONTROLS = ("none", "early_stopping", "dropout", "l1", "l2", "bn_before", "bn_after")
MIXES = tuple(
    " + ".join(name for name in mix if name) or "none"
    for mix in product(("", "dropout"), ("", "l1"), ("", "l2"), ("", "bn before", "bn after"))
)
VALIDATION, TRAINING = 0.2, 0.8
"""Shares of the images, and of the images that two parts have in common."""
MOST = LOOKS[3]
"""Replicates of a candidate at most: 32."""


PRACTICAL = 0.4  # 0.0005 of accuracy


@dataclass(frozen=True)
class Noise:
    """Standard deviations of the effects. control: factor of those of `none` that are a candidate's own."""

    split: float = 4.1
    seed: float = 0.9
    validation: float = 1.0
    training: float = 0.4
    own: float = 1.0
    control: float = 1.0

    @property
    def by_seed(self) -> float:
        """Standard deviation of a run as its seed varies."""
        return math.hypot(self.seed, self.own)

    @property
    def of_run(self) -> float:
        """Standard deviation of a run as seed and split vary."""
        return math.hypot(self.by_seed, self.split, self.validation, self.training)


@dataclass(frozen=True)
class Row:
    """What is simulated.

    better: by how much a tenth of the configurations is better. vary: `both`, or `seed`, whose claims are for the
    study's own split. budget: replicates of all candidates together; None: 32 of each, or until more gain little.
    corrected: whether overlapping splits are accounted for, as regtune always does.
    """

    name: str
    noise: Noise
    better: float = 0.0
    vary: Literal["both", "seed"] = "both"
    budget: int | None = None
    corrected: bool = True

    @property
    def overlap(self) -> float:
        return VALIDATION / TRAINING if self.vary == "both" and self.corrected else 0.0


@dataclass
class Sweep:
    """One simulated sweep. single_regret: that of as many trainings in the search, of which the best is taken."""

    false_claim: bool = False
    found_at: int | None = None
    trainings: int = 0
    regret: float = 0.0
    single_regret: float = 0.0
    kept_best: bool = True
    covered: dict[str, list[bool]] = field(default_factory=dict)


class World:
    """The images of one sweep. luck: sd of a run in the search. offset: what the study's split adds to every run."""

    def __init__(self, noise: Noise, vary: str, rng: np.random.Generator) -> None:
        self.noise, self.rng = noise, rng
        self.fixed = vary == "seed"
        self.luck = (
            noise.by_seed if self.fixed else math.hypot(noise.by_seed, noise.validation, noise.training)
        )
        self.offset = 0.0

    def effects(self, sd: float, common: float, candidates: int, splits: int) -> Any:
        """Effects `(candidates, splits)`, of which any two splits have the correlation `common`."""
        drawn = self.rng.standard_normal((candidates, splits + 1))
        return sd * (math.sqrt(common) * drawn[:, :1] + math.sqrt(1 - common) * drawn[:, 1:])

    def scores(self, quality: Any, splits: int) -> Any:
        """Scores `(candidates, splits)`: in column 0 those of the search, each with its own seed."""
        noise, count = self.noise, len(quality)
        shared = self.effects(noise.split, VALIDATION, 1, splits)
        belonging = self.effects(noise.validation, VALIDATION, count, splits)
        belonging = belonging + self.effects(noise.training, TRAINING, count, splits)
        if self.fixed:  # what the study's split does to a candidate is a part of its quality
            shared, belonging = shared[:, :1].repeat(splits, 1), np.zeros_like(belonging)
            self.offset = float(shared[0, 0])
        seeds = noise.seed * self.rng.standard_normal((1, splits))
        own = noise.own * self.rng.standard_normal((count, splits))
        factor = np.where(np.arange(count) == count - len(CONTROLS), noise.control, 1.0)[:, None]
        scores = quality[:, None] + shared + seeds + factor * (belonging + own)
        scores[:, 0] += noise.seed * self.rng.standard_normal(count) - seeds[:, 0]
        return scores


def simulate(row: Row, rng: np.random.Generator) -> Sweep:
    """One sweep and its decision."""
    world = World(row.noise, row.vary, rng)
    quality = np.append(qualities(row, CONFIGURATIONS, rng), np.zeros(len(CONTROLS)))
    scores = world.scores(quality, MOST + 1)
    mixes = [MIXES[place] for place in rng.integers(len(MIXES), size=CONFIGURATIONS)]
    places = candidates(scores[:, 0], mixes)
    if row.budget is not None:
        places = dict(list(places.items())[: row.budget // LOOKS[0]])
    truth = {key: float(quality[place]) for key, place in places.items()}
    asked = Question("", "", "val_accuracy", row.vary, row.overlap, PRACTICAL, 0)
    sweep = Sweep()
    replicates, spent = dict.fromkeys(places, 0), 0
    while True:
        values = {key: scores[place, 1 : 1 + replicates[key]].tolist() for key, place in places.items()}
        judgement = judge(values, goal=asked.goal, overlap=row.overlap, practical=PRACTICAL, control="c-none")
        winners = [key for key, one in judgement.candidates.items() if one.beats_none]
        sweep.false_claim |= any(truth[key] <= 0 for key in winners)
        if sweep.found_at is None and any(truth[key] > 0 for key in winners):
            sweep.found_at = judgement.replicates
        spent += sum(judgement.needed - replicates[key] for key in judgement.open)
        if (
            not judgement.open
            or judgement.needed > MOST
            or (row.budget is not None and spent > row.budget)
            or (judgement.look and gains_little(asked, judgement.replicates))
        ):
            break
        replicates |= dict.fromkeys(judgement.open, judgement.needed)
    chosen = simplest(judgement, places, mixes)
    sweep.kept_best = any(truth[key] == max(truth.values()) for key in judgement.tied)
    sweep.covered = coverage(judgement, chosen, truth, world.offset)
    sweep.trainings = len(quality) + sum(replicates.values())
    sweep.regret = row.better - truth[chosen]
    others = qualities(row, sweep.trainings, rng)
    single = others[np.argmax(others + world.luck * rng.standard_normal(len(others)))]
    sweep.single_regret = row.better - float(single)
    return sweep


def candidates(searched: Any, mixes: Sequence[str]) -> dict[str, int]:
    """Keys and places of the candidates, in the order of importance. searched: scores of the search."""
    places = order_of_finalists((-searched[:CONFIGURATIONS]).tolist(), mixes, TOP)
    finalists = [SimpleNamespace(key=f"t{place}", place=place) for place in places]
    controls = [
        SimpleNamespace(key=f"c-{name}", place=CONFIGURATIONS + index) for index, name in enumerate(CONTROLS)
    ]
    return {one.key: one.place for one in in_turn(finalists, controls)}


def qualities(row: Row, count: int, rng: np.random.Generator) -> Any:
    """A tenth of the configurations is better."""
    found = np.zeros(count)
    found[: round(count / 10)] = row.better
    return rng.permutation(found)


def simplest(judgement: Judgement, places: dict[str, int], mixes: Sequence[str]) -> str:
    """The tied candidate with the fewest techniques; the search's order stands for weights and seconds."""

    def techniques(key: str) -> int:
        if key.startswith("c"):
            return int(key not in ("c-none", "c-early_stopping"))
        return 0 if mixes[places[key]] == "none" else 1 + mixes[places[key]].count("+")

    return min(judgement.tied, key=techniques)


def coverage(
    judgement: Judgement, chosen: str, truth: dict[str, float], offset: float
) -> dict[str, list[bool]]:
    """Whether each interval holds the truth, by what it is of."""

    def holds(interval: Interval | None, value: float) -> bool:
        return interval is not None and interval.low <= value <= interval.high  # type: ignore[operator]

    found = judgement.candidates
    against = judgement.differences_to(chosen)
    return {
        "to none": [
            holds(one.to_none, truth[key] - truth["c-none"]) for key, one in found.items() if key != "c-none"
        ],
        "chosen to none": [holds(found[chosen].to_none, truth[chosen] - truth["c-none"])]
        if chosen != "c-none"
        else [],
        "to chosen": [holds(one, truth[key] - truth[chosen]) for key, one in against.items()],
        "mean": [holds(one.estimate, truth[key] + offset) for key, one in found.items()],
    }


def summary(row: Row, sweeps: Sequence[Sweep]) -> dict[str, Any]:
    """The figures of a row."""
    found = [sweep.found_at for sweep in sweeps if sweep.found_at is not None]
    covered = {
        kind: statistics.fmean(hit for sweep in sweeps for hit in sweep.covered[kind])
        for kind in sweeps[0].covered
        if any(sweep.covered[kind] for sweep in sweeps)
    }
    return {
        "name": row.name,
        "vary": row.vary,
        "better": row.better,
        "budget": row.budget,
        "corrected": row.corrected,
        "sweeps": len(sweeps),
        "false_claims": statistics.fmean(sweep.false_claim for sweep in sweeps),
        "found": len(found) / len(sweeps),
        "replicates_when_found": statistics.median(found) if found else None,
        "trainings": statistics.fmean(sweep.trainings for sweep in sweeps),
        "regret": statistics.fmean(sweep.regret for sweep in sweeps),
        "regret_of_best_single_run": statistics.fmean(sweep.single_regret for sweep in sweeps),
        "tied_set_has_the_best": statistics.fmean(sweep.kept_best for sweep in sweeps),
        "covered": covered,
    }


def run(row: Row, sweeps: int, seed: int = SEED) -> dict[str, Any]:
    """Simulate a row. The first sweeps are the same for any number of them."""
    return summary(row, [simulate(row, np.random.default_rng([seed, index])) for index in range(sweeps)])


NOISE = Noise()
RUN, SEED_ALONE = 2 * NOISE.of_run, 2 * NOISE.by_seed
ROWS = (
    Row("none", NOISE),
    Row("none, no technique is twice as noisy", replace(NOISE, control=2.0)),
    Row("none", NOISE, vary="seed"),
    Row("a tenth is better by 2 sd of a run", NOISE, better=RUN),
    Row("a tenth is better by 2 sd of a run, 20 replicates in all", NOISE, better=RUN, budget=20),
    Row("a tenth is better by 2 sd of a seed", NOISE, better=SEED_ALONE),
    Row("a tenth is better by 2 sd of a seed", NOISE, better=SEED_ALONE, vary="seed"),
    Row("none, training images matter as much as validation images", replace(NOISE, training=1.0)),
    Row("none, overlap not accounted for", NOISE, corrected=False),
)


def main() -> None:
    """Simulate every row, show the figures and write them."""
    parser = options(__doc__, verdict=False)
    parser.add_argument("--sweeps", type=int, default=2000)
    asked = parser.parse_args()
    rows = [run(row, asked.sweeps) for row in ROWS]
    shown = (
        (
            f"{row['name']} ({row['vary']})",
            f"{row['false_claims']:.1%}",
            f"{row['found']:.1%}",
            f"{row['replicates_when_found'] or 0:.0f}",
            f"{row['regret']:.3f}",
            f"{row['regret_of_best_single_run']:.3f}",
            f"{min(row['covered'].values()):.1%}",
        )
        for row in rows
    )
    columns = (
        "difference",
        "false claims",
        "found",
        "replicates",
        "regret",
        "of best single run",
        "coverage",
    )
    show(f"{asked.sweeps} simulated sweeps", columns, shown)
    write(asked.json, {"noise": asdict(NOISE), "sd_of_a_run_by_its_seed": NOISE.by_seed, "rows": rows})


if __name__ == "__main__":
    main()
