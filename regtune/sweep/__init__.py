"""Sweeps: `run_sweep(spec) -> SweepOutcome`. `coordinator` is its loop, `proposals` says which trial comes next."""

from __future__ import annotations

from regtune.sweep.outcome import BestTrial, SweepOutcome
from regtune.sweep.run import run_sweep

__all__ = ["BestTrial", "SweepOutcome", "run_sweep"]
