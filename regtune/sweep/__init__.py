"""Sweeps: `run_sweep(spec) -> SweepOutcome`.

`coordinator` decides, `loop` drives the executor, `proposals` chooses the next trial.
"""

from __future__ import annotations

from regtune.sweep.coordinator import BestTrial, SweepOutcome
from regtune.sweep.run import run_sweep

__all__ = ["BestTrial", "SweepOutcome", "run_sweep"]
